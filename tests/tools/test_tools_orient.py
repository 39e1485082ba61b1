"""`itk_orient`: all 48 codes as SimpleITK turns them, every format, and pairs that do not fit are told."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from tool_data import OBLIQUE, make_dataset, make_label, make_volume

from itkit.io.headers import FORMATS
from itkit.io.orientation import ORIENTATIONS
from itkit.io.volumes import write_volume


def test_every_code_is_what_simpleitk_makes_of_it(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mha", make_volume(direction=OBLIQUE))
    source = sitk.ReadImage(str(tmp_path / "raw/a.mha"))
    assert len(ORIENTATIONS) == 48
    for code in ORIENTATIONS:
        assert tool("itk_orient", tmp_path / "raw", tmp_path / code, code)[0] == 0
        result, expected = sitk.ReadImage(str(tmp_path / code / "a.mha")), sitk.DICOMOrient(source, code)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(result), sitk.GetArrayFromImage(expected))
        assert result.GetPixelID() == source.GetPixelID()
        for kept in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(result, kept)(), getattr(expected, kept)(), atol=1e-12)


def test_all_formats_there_and_back(tool, tmp_path):
    for number, (image, label) in enumerate(itertools.pairwise([*FORMATS, FORMATS[0]])):
        write_volume(tmp_path / f"raw/image/{number}{image}", make_volume(number, dtype="float32"))
        write_volume(tmp_path / f"raw/label/{number}{label}", make_label(seed=number))
    assert tool("itk_orient", tmp_path / "raw", tmp_path / "there", "PIR")[0] == 0
    code = sitk.DICOMOrientImageFilter().GetOrientationFromDirectionCosines(OBLIQUE)
    assert tool("itk_orient", tmp_path / "there", tmp_path / "back", code, "--workers", 2)[0] == 0
    for file in (tmp_path / "raw").rglob("*.*"):
        if file.suffix != ".zraw":
            a, b = (
                sitk.ReadImage(str(path)) for path in (file, tmp_path / "back" / file.relative_to(tmp_path / "raw"))
            )
            np.testing.assert_array_equal(sitk.GetArrayFromImage(a), sitk.GetArrayFromImage(b))
            np.testing.assert_allclose(a.GetOrigin(), b.GetOrigin(), atol=1e-5)


def test_a_label_on_another_grid_is_turned_and_told(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    write_volume(source / "label/case_1.mha", make_label(size=(1, 8, 10)))
    code, _, said = tool("itk_orient", source, tmp_path / "out", "RAS")
    assert code == 0
    assert (
        "note    case_1: label has size (1, 8, 10), image has (6, 8, 10) (Z, Y, X); each was turned for itself" in said
    )
    assert "case_0" not in said


def test_a_split_that_changed_meanwhile_is_told(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "split.json").write_text('{"train": ["case_0"], "val": ["case_1"], "test": []}')
    code, out, _ = tool("itk_orient", source, tmp_path / "out", "RAS")
    assert (code, out) == (0, "")
    (source / "split.json").write_text('{"train": ["case_1"], "val": ["case_0"], "test": []}')
    code, out, _ = tool("itk_orient", source, tmp_path / "out", "RAS")
    assert code == 0
    assert "split.json of the destination: not as in the source, left as it is; remove it to have it carried" in out
    (tmp_path / "out/split.json").unlink()
    assert tool("itk_orient", source, tmp_path / "out", "RAS")[1] == ""
    assert (tmp_path / "out/split.json").read_bytes() == (source / "split.json").read_bytes()


@pytest.mark.parametrize("code", ["XYZ", "LPL", "LP", "", "lps"])
def test_an_unknown_code_is_refused_before_anything_is_read(tool, tmp_path, code):
    status, _, said = tool("itk_orient", tmp_path / "gone", tmp_path / "out", code)
    assert (status, "is none of the 48 codes" in said) == (2, True)
