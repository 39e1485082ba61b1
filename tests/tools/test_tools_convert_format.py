"""`itk_convert format`: nothing changes but the format, and what a format rounds is said."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation
from tool_data import ledger, make_dataset, make_volume

from itkit.cli.main import run_tool
from itkit.errors import DataError, GeometryError, UsageError
from itkit.io.volumes import Volume, read_volume, write_volume
from itkit.process.convert import fidelity
from itkit.process.convert.fidelity import write_kept
from itkit.process.convert.format import ConvertFormat

FORMATS = ("mha", "mhd", "nii", "nii.gz", "nrrd")
TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def geometry_numbers(volume):
    return np.array([*volume.spacing_zyx, *volume.origin_xyz, *volume.direction_xyz])


def require_equal(before, after, atol=1e-6):
    assert after.array.dtype == before.array.dtype
    np.testing.assert_array_equal(after.array, before.array)
    np.testing.assert_allclose(geometry_numbers(after), geometry_numbers(before), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [None, 3])
def test_a_round_through_all_formats_changes_nothing(tool, tmp_path, dtype, channels):
    start = make_volume(size=(4, 5, 6) if channels is None else (channels, 4, 5, 6), dtype=dtype)
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    start.array.flat[:2] = limits.min, limits.max
    write_volume(tmp_path / "0/a.mha", start)
    for number, target in enumerate((*FORMATS, "mha")):
        assert tool("itk_convert", "format", target, tmp_path / str(number), tmp_path / str(number + 1))[0] == 0
        require_equal(start, read_volume(tmp_path / str(number + 1) / f"a.{target}"))
    assert not list((tmp_path / "1").glob("*.zraw"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=arrays(np.float32, st.tuples(*[st.integers(1, 4)] * 3), elements=st.floats(width=32)),
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 12)] * 3),
    origin=st.tuples(*[st.floats(-1500, 1500)] * 3),
    target=st.sampled_from(FORMATS),
)
def test_law_any_place_in_space_is_kept_or_its_shift_is_said(tmp_path, array, turn, spacing, origin, target):
    direction = tuple(Rotation.from_euler("xyz", turn, degrees=True).as_matrix().ravel())
    volume, path = Volume(array, spacing, origin, direction), tmp_path / f"x.{target}"
    notes = write_kept(path, path, volume)
    after = read_volume(path)
    np.testing.assert_array_equal(after.array.view(np.uint32), array.view(np.uint32))
    change = np.abs(geometry_numbers(after) - geometry_numbers(volume)).max()
    assert bool(notes) == (change > 1e-6)
    assert change < 1e-3
    if not target.startswith("nii"):
        assert change < 1e-9


def test_a_dataset_keeps_its_layout_and_documents(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    write_volume(source / "image" / "ward" / "case_9.nrrd", make_volume(9))
    (source / "meta.json").write_text('{"name": "n", "classes": ["background", "a"]}')
    (source / "split.json").write_text('{"train": ["case_0"], "val": ["case_1"], "test": []}')
    code, _, said = tool("itk_convert", "format", ".NII.GZ", source, tmp_path / "out", "-r")
    assert code == 0
    assert "3 done" in said
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.nii.gz")) == [
        "image/case_0.nii.gz", "image/case_1.nii.gz", "image/ward/case_9.nii.gz", "label/case_0.nii.gz",
        "label/case_1.nii.gz",
    ]  # fmt: skip
    for name in ("meta.json", "split.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((source / name).read_text())
    assert ledger(tmp_path / "out").keys() == {"case_0", "case_1", "ward/case_9"}
    assert "0 done, 3 up to date" in tool("itk_convert", "format", "nii.gz", source, tmp_path / "out", "-r")[2]


def test_without_r_subfolders_are_left_out(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mha", make_volume())
    write_volume(tmp_path / "raw/sub/b.mha", make_volume())
    assert "1 done" in tool("itk_convert", "format", "nrrd", tmp_path / "raw", tmp_path / "out")[2]
    assert not (tmp_path / "out/sub").exists()


def test_changed_voxels_of_an_mhd_are_noticed(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mhd", make_volume())
    assert tool("itk_convert", "format", "mha", tmp_path / "raw", tmp_path / "out")[0] == 0
    header = (tmp_path / "raw/a.mhd").stat()
    write_volume(tmp_path / "new/a.mhd", make_volume(1))
    (tmp_path / "new/a.zraw").replace(tmp_path / "raw/a.zraw")
    assert (tmp_path / "raw/a.mhd").stat() == header
    code, _, said = tool("itk_convert", "format", "mha", tmp_path / "raw", tmp_path / "out")
    assert "0 up to date" in said, "the file with the voxels changed, not the header"


def test_two_files_that_would_become_one_fail_and_the_others_are_done(tool, tmp_path):
    for name in ("a.mha", "a.nii.gz", "b.mha"):
        write_volume(tmp_path / "raw" / name, make_volume())
    code, _, said = tool("itk_convert", "format", "nrrd", tmp_path / "raw", tmp_path / "out")
    assert code == 1
    assert "a.mha, a.nii.gz would become one file. Keep one of them." in said
    assert [path.name for path in (tmp_path / "out").glob("*.nrrd")] == ["b.nrrd"]


def test_rounding_by_nifti_is_a_note(tool, tmp_path):
    fine = make_volume(direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    write_volume(tmp_path / "raw/a.mha", fine)
    write_volume(tmp_path / "raw/b.mha", Volume(fine.array, fine.spacing_zyx, (1234.56789, 0.0, 0.0)))
    code, _, said = tool("itk_convert", "format", "nii.gz", tmp_path / "raw", tmp_path / "out")
    assert code == 0
    assert "note    b: b.nii.gz: the format rounds the place in space; voxels move by up to 2e-05 mm" in said
    assert "note    a" not in said


def test_scaled_numbers_and_two_places_are_notes(tool, tmp_path):
    path = tmp_path / "raw/a.nii"
    write_volume(path, make_volume())
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, 0.5, -3)
    struct.pack_into("<f", content, 268, 99)  # the qform's place along x
    path.write_bytes(content)
    code, _, said = tool("itk_convert", "format", "mha", tmp_path / "raw", tmp_path / "out")
    assert code == 0
    assert "a.nii: stores numbers with a scale factor; the voxels are float" in said
    assert "sform and qform place a voxel" in said
    np.testing.assert_array_equal(read_volume(tmp_path / "out/a.mha").array, make_volume().array * 0.5 - 3)


def test_what_a_format_cannot_hold_is_refused(tool, tmp_path):
    write_volume(tmp_path / "raw/long.mha", Volume(np.zeros((1, 1, 40000), np.uint8)))
    code, _, said = tool("itk_convert", "format", "nii.gz", tmp_path / "raw", tmp_path / "out")
    assert code == 1
    assert "40,000 voxels" in said
    assert f"FAILED  long: {tmp_path}/out/long.nii.gz: " in said
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@pytest.mark.parametrize("stored,kind,words", [
    (lambda v: replace(v, array=v.array.astype("uint8")), DataError, "voxels of uint16 as uint8; choose another"),
    (lambda v: replace(v, array=v.array[0]), DataError, "holds 1 of 2 channels; choose another"),
    (lambda v: replace(v, spacing_zyx=(3.0, 2.0, 1.5)), GeometryError, "cannot hold the place in space: .*spacing"),
])  # fmt: skip
def test_a_file_that_says_something_else_is_refused(tmp_path, monkeypatch, stored, kind, words):
    volume, path = make_volume(size=(2, 4, 5, 6), dtype="uint16"), tmp_path / "x.mha"
    monkeypatch.setattr(fidelity, "write_volume", lambda path, volume, series: write_volume(path, stored(volume)))
    with pytest.raises(kind, match=words):
        write_kept(path, path, volume)


def test_senseless_words_are_usage(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mha", make_volume())
    code, _, said = tool("itk_convert", "format", "dcm", tmp_path / "raw", tmp_path / "out")
    assert code == 2
    assert "the format is one of mha, mhd, nii, nii.gz, nrrd, not 'dcm'" in said
    assert tool("itk_convert", "format", "mha", tmp_path / "raw", tmp_path / "raw/out")[0] == 2
    assert tool("itk_convert", "format", "mha", tmp_path / "gone", tmp_path / "out")[0] == 1
    assert tool("itk_convert")[0] == 2
    with pytest.raises(UsageError, match="the format is one of"):
        ConvertFormat("", "a", "b")


def test_a_damaged_file_fails_with_its_reason(tool, tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / "raw" / name, make_volume())
    whole = (tmp_path / "raw/a.nii.gz").read_bytes()
    (tmp_path / "raw/a.nii.gz").write_bytes(whole[: len(whole) // 2])
    code, _, said = tool("itk_convert", "format", "mha", tmp_path / "raw", tmp_path / "out")
    assert code == 1
    assert "FAILED  a: " in said
    assert "a.nii.gz" in said
    assert "1 done" in said


def test_workers_do_not_change_the_files(tmp_path, capsys):
    source = make_dataset(tmp_path / "raw", 3)
    for workers in (1, 2):
        words = ["format", "nii.gz", str(source), str(tmp_path / str(workers)), "--workers", str(workers)]
        assert run_tool("itk_convert", words) == 0
    for path in sorted((tmp_path / "1").rglob("*.nii.gz")):
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()


def test_a_label_on_another_grid_fails_its_case(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    label = read_volume(source / "label/case_1.mha")
    write_volume(source / "label/case_1.mha", replace(label, array=label.array[:1]))
    code, _, said = tool("itk_convert", "format", "nii.gz", source, tmp_path / "out")
    assert code == 1
    assert "label has size (1, 8, 10), image has (6, 8, 10) (Z, Y, X). Remove the pair or fix the label." in said
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.nii.gz")) == ["case_0.nii.gz"] * 2
