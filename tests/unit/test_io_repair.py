"""A leaning direction is straightened on request only: as little as possible, and on the record."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.errors import GeometryError
from itkit.io.geometry import Geometry, direction_deviation, index_to_world, largest_displacement_mm
from itkit.io.repair import fix_geometry, read_repaired
from itkit.io.volumes import Volume, read_header, read_volume, write_volume

LEANING = (1.0, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def leaning_file(path, direction=LEANING):
    write_volume(path, Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), (3.0, 2.0, 1.0), (5.0, 6.0, 7.0)))
    straight = b"TransformMatrix = 1 0 0 0 1 0 0 0 1"
    rows = np.reshape(direction, (3, 3)).T.ravel()
    content = path.read_bytes()
    assert straight in content
    path.write_bytes(content.replace(straight, b"TransformMatrix = " + " ".join(map(str, rows)).encode()))
    return path


def test_a_file_is_refused_without_and_read_with_the_repair(tmp_path):
    path = leaning_file(tmp_path / "a.mha")
    before = path.read_bytes()
    for read in (read_volume, read_header):
        with pytest.raises(GeometryError, match=r"a.mha: direction .* not orthonormal .*--fix-geometry"):
            read(path)
    volume, record = read_repaired(path)
    header, same_record = read_repaired(path, header_only=True)
    assert header.geometry == volume.geometry == record.after
    assert record == same_record
    np.testing.assert_array_equal(volume.array.ravel(), np.arange(60))
    assert direction_deviation(volume.direction_xyz) < 1e-12
    assert record.deviation == pytest.approx(0.1)
    assert path.read_bytes() == before
    again = json.loads(json.dumps(record.as_dict()))
    assert again["before"]["direction_xyz"] == list(LEANING)
    assert again["after"]["origin_xyz"] == list(volume.origin_xyz)
    assert again["largest_displacement_mm"] == record.largest_displacement_mm


def test_the_record_by_hand():
    # In the plane, the rotation nearest to a shear by s (with unit columns) turns by half the lost angle.
    grid = Geometry((1, 5, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), LEANING)
    after, record = fix_geometry(grid)
    lost = np.arctan(0.1)
    np.testing.assert_allclose(np.reshape(after.direction_xyz, (3, 3))[:2, 0], [np.cos(lost / 2), -np.sin(lost / 2)])
    assert after.spacing_zyx == pytest.approx((1, np.hypot(1, 0.1), 1))
    centre = np.array([2, 2, 0, 1])
    np.testing.assert_allclose(index_to_world(after) @ centre, index_to_world(grid) @ centre, atol=1e-12)
    corners = [[x, y, 0, 1] for x in (0, 4) for y in (0, 4)]
    moved = [np.linalg.norm((index_to_world(after) - index_to_world(grid)) @ corner) for corner in corners]
    assert record.largest_displacement_mm == pytest.approx(max(moved))
    assert record.deviation == pytest.approx(0.1)


def test_columns_that_are_not_of_length_1_become_spacing_and_nothing_moves():
    grid = Geometry((3, 4, 5), (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), (0.0, -2.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.5))
    after, record = fix_geometry(grid)
    assert after.spacing_zyx == (0.5, 4.0, 9.0)
    assert after.direction_xyz == (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert record.largest_displacement_mm == pytest.approx(0, abs=1e-12)


def test_what_is_straight_stays_as_it_is():
    volume = Volume(np.zeros((2, 3, 4)), direction_xyz=(0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0 + 1e-8))
    same, record = fix_geometry(volume)
    assert same is volume
    assert record is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-0.3, 0.3), min_size=9, max_size=9), st.integers(0, 47), st.tuples(*[st.floats(0.3, 5)] * 3))
def test_no_rotation_moves_the_voxels_less_by_much(noise, code, spacing):
    from itkit.io.orientation import ORIENTATIONS, orientation, reorient

    volume = reorient(Volume(np.zeros((4, 5, 6)), spacing), ORIENTATIONS[code])
    matrix = np.reshape(volume.direction_xyz, (3, 3)) + np.reshape(noise, (3, 3))
    grid = Geometry(volume.size_zyx, volume.spacing_zyx, (1.0, 2.0, 3.0), tuple(matrix.ravel().tolist()))
    after, record = fix_geometry(grid)
    assert record is None or direction_deviation(after.direction_xyz) < 1e-12
    assert np.sign(np.linalg.det(np.reshape(after.direction_xyz, (3, 3)))) == np.sign(np.linalg.det(matrix))
    assert len(orientation(after)) == 3
    # The polar factor is the nearest in the norm of the unit columns: a small further turn is never nearer.
    unit = matrix / np.linalg.norm(matrix, axis=0)
    near = np.linalg.norm(np.reshape(after.direction_xyz, (3, 3)) - unit)
    turn = np.array([[np.cos(0.01), -np.sin(0.01), 0], [np.sin(0.01), np.cos(0.01), 0], [0, 0, 1]])
    for other in (turn, turn.T, turn[::-1, ::-1], turn[[2, 0, 1]][:, [2, 0, 1]]):
        assert near <= np.linalg.norm(other @ np.reshape(after.direction_xyz, (3, 3)) - unit) + 1e-12
    if record is not None:
        assert record.largest_displacement_mm == largest_displacement_mm(grid, after)


@pytest.mark.parametrize(
    "direction", [(0.0,) * 9, (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0), (float("nan"),) + (0.0,) * 8]
)
def test_what_is_beyond_repair_is_refused(tmp_path, direction):
    with pytest.raises(GeometryError, match=r"a.mha: direction .* cannot be repaired"):
        fix_geometry(Geometry((2, 2, 2), (1.0, 1.0, 1.0), direction_xyz=direction), "a.mha")
    with pytest.raises(GeometryError, match="b.mha: .*cannot be repaired"):
        read_repaired(leaning_file(tmp_path / "b.mha", direction))
    with pytest.raises(GeometryError, match="spacing .* is not positive"):
        fix_geometry(Geometry((2, 2, 2), (1.0, -1.0, 1.0)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_a_sheared_affine_of_other_formats_is_repaired_too(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".nrrd":
        write_volume(path, Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5)), compress=False)
        content = path.read_bytes()
        path.write_bytes(content.replace(b"(1,0,0) (0,1,0) (0,0,1)", b"(1,0,0) (0.2,1,0) (0,0,1)"))
    else:
        nibabel = pytest.importorskip("nibabel")
        leaning = np.array([[1, 0.2, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1.0]])
        image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5).T, leaning)
        image.set_qform(None, 0)
        image.header["pixdim"][1:4] = np.linalg.norm(leaning[:3, :3], axis=0)
        nibabel.save(image, path)
    with pytest.raises(GeometryError, match="not orthonormal"):
        read_volume(path)
    volume, record = read_repaired(path)
    np.testing.assert_array_equal(volume.array.ravel(), np.arange(60))
    assert record.largest_displacement_mm < 0.5
    assert np.hypot(1, 0.2) == pytest.approx(volume.spacing_zyx[1])
