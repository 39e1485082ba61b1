"""`itk_orient`: all 48 codes as SimpleITK turns them, every format, and pairs that do not fit are told."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from tool_data import OBLIQUE, make_dataset, make_label, make_volume

from itkit.errors import UsageError
from itkit.io.headers import FORMATS
from itkit.io.orientation import ORIENTATIONS
from itkit.io.volumes import write_volume
from itkit.process.orient import Orient


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


def test_a_label_on_another_grid_fails_its_case_and_a_nearly_equal_one_is_noted(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 3)
    write_volume(source / "label/case_1.mha", make_label(size=(1, 8, 10)))
    label = make_label()
    nearly = tuple(value * 1.005 for value in label.spacing_zyx)
    write_volume(source / "label/case_2.mha", replace(label, spacing_zyx=nearly))
    code, _, said = tool("itk_orient", source, tmp_path / "out", "RAS")
    assert code == 1
    assert "FAILED  case_1: " in said
    assert "case_1.mha: label has size (1, 8, 10), image has (6, 8, 10) (Z, Y, X). Remove the pair or fix" in said
    assert "used as if they were the same" in next(line for line in said.splitlines() if "note    case_2" in line)
    assert "case_0" not in said
    assert "2 done, 0 up to date, 1 failed" in said


def test_of_a_dataset_only_the_images_or_only_the_labels(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    write_volume(source / "label/case_1.mha", make_label(size=(1, 8, 10)))
    for field in ("image", "label"):
        assert tool("itk_orient", source, tmp_path / field, "RAS", "--field", field)[0] == 0
        names = sorted(path.relative_to(tmp_path / field).as_posix() for path in (tmp_path / field).rglob("*.mha"))
        assert names == [f"{field}/case_0.mha", f"{field}/case_1.mha"]
    write_volume(tmp_path / "flat/a.mha", make_volume())
    assert tool("itk_orient", tmp_path / "flat", tmp_path / "flat_out", "RAS", "--field", "label")[0] == 0
    assert (tmp_path / "flat_out/a.mha").is_file()
    with pytest.raises(UsageError, match="--field is image, label, dataset, not 'mask'"):
        Orient(str(source), str(tmp_path / "x"), "RAS", field="mask")
    (tmp_path / "unlabelled/image").mkdir(parents=True)
    write_volume(tmp_path / "unlabelled/image/a.mha", make_volume())
    code, _, said = tool("itk_orient", tmp_path / "unlabelled", tmp_path / "none", "RAS", "--field", "label")
    assert (code, "unlabelled: holds no label." in said) == (1, True)


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
