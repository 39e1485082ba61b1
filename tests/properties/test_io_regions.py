"""Law: a box read from a file is that box of the volume read whole, whatever the format and the order of the boxes."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itkit.errors import DataError, UsageError
from itkit.io import compression
from itkit.io.regions import open_regions
from itkit.io.volumes import Volume, read_volume, write_volume

SIZE = (9, 6, 7)
KINDS = ["a.mha", "a.mhd", "a.nii", "a.nii.gz", "a.nrrd", "plain.mha", "plain.mhd", "plain.nrrd"]


def stored(folder, name, array):
    path = folder / name
    write_volume(path, Volume(array), compress=not name.startswith("plain"))
    return path


@st.composite
def boxes(draw):
    found = []
    for _ in range(draw(st.integers(1, 6))):
        low = [draw(st.integers(0, n - 1)) for n in SIZE]
        high = [draw(st.integers(start + 1, n)) for start, n in zip(low, SIZE, strict=True)]
        found.append(tuple(slice(a, b) for a, b in zip(low, high, strict=True)))
    return found


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), st.sampled_from([None, 3]), st.sampled_from(["int16", "uint8", "float32"]), boxes())
def test_a_box_is_what_the_whole_volume_has_there(tmp_path_factory, name, channels, dtype, some):
    folder = tmp_path_factory.mktemp("regions")
    shape = SIZE if channels is None else (channels, *SIZE)
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    path = stored(folder, name, array)
    whole = read_volume(path).array.reshape(channels or 1, *SIZE)
    with open_regions(path) as regions:
        assert regions.channels == (channels or 1)
        for box in some:
            found = regions.read(box)
            assert found.dtype == whole.dtype
            assert found.flags.c_contiguous
            assert found.flags.writeable
            np.testing.assert_array_equal(found, whole[(slice(None), *box)])


def test_numbers_are_scaled_and_of_native_order(tmp_path):
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    path = tmp_path / "scaled.nii"
    sitk.WriteImage(image, str(path))
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()  # scl_slope and scl_inter
    for name, content in (("scaled.nii", bytes(raw)), ("scaled.nii.gz", gzip.compress(bytes(raw)))):
        (tmp_path / name).write_bytes(content)
        whole = read_volume(tmp_path / name).array
        assert whole.dtype == np.float32
        with open_regions(tmp_path / name) as regions:
            np.testing.assert_array_equal(
                regions.read((slice(1, 3), slice(0, 2), slice(2, 5)))[0], whole[1:3, 0:2, 2:5]
            )


def test_big_endian_numbers(tmp_path):
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\nElementSpacing = 1 1 1\n"
        "DimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "big.mha").write_bytes(header.encode() + array.tobytes())
    with open_regions(tmp_path / "big.mha") as regions:
        found = regions.read((slice(1, 2), slice(1, 3), slice(0, 2)))
    assert found.dtype == np.dtype("int16")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found[0], array[1:2, 1:3, 0:2])


def test_files_for_a_library_are_read_whole(tmp_path):
    text = "NRRD0004\ntype: short\ndimension: 3\nsizes: 3 2 2\nencoding: ascii\nspacings: 1 1 1\n\n"
    text += " ".join(map(str, range(12))) + "\n"
    (tmp_path / "text.nrrd").write_text(text)
    whole = read_volume(tmp_path / "text.nrrd").array
    with open_regions(tmp_path / "text.nrrd") as regions:
        np.testing.assert_array_equal(regions.read((slice(0, 2), slice(1, 2), slice(0, 3)))[0], whole[0:2, 1:2])


def test_going_forward_decompresses_once_and_keeps_few_planes(tmp_path):
    array = np.random.default_rng(1).integers(0, 99, (40, 5, 5)).astype(np.int16)
    path = stored(tmp_path, "a.nii.gz", array)
    with open_regions(path) as regions:
        for low in range(0, 36, 2):
            for row in (slice(0, 3), slice(2, 5)):
                regions.read((slice(low, low + 4), row, slice(0, 5)))
                assert len(regions._streams[0]._kept) <= 8
        assert regions.restarts == 0
        regions.read((slice(0, 1), slice(0, 1), slice(0, 1)))
        assert regions.restarts == 1


@pytest.mark.parametrize("box", [(slice(0, 10), slice(0, 1), slice(0, 1)), (slice(3, 3), slice(0, 1), slice(0, 1))])
def test_boxes_beyond_the_volume_are_refused(tmp_path, box):
    path = stored(tmp_path, "plain.mha", np.zeros(SIZE, np.uint8))
    with open_regions(path) as regions, pytest.raises(UsageError, match=r"is empty or not within the size \(9, 6, 7\)"):
        regions.read(box)


def test_damage_is_found_by_the_last_plane_at_the_latest(tmp_path):
    array = np.random.default_rng(1).integers(0, 99, (60, 120, 120)).astype(np.int16)
    path = stored(tmp_path, "a.nii.gz", array)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # a bit of the checksum
    path.write_bytes(bytes(content))
    with open_regions(path) as regions:
        regions.read((slice(0, 2), slice(0, 120), slice(0, 120)))
        with pytest.raises(DataError, match="corrupt"):
            regions.read((slice(58, 60), slice(0, 30), slice(0, 30)))
    path.write_bytes(bytes(content)[: len(content) // 2])
    with open_regions(path) as regions, pytest.raises(DataError, match="compressed data end after"):
        regions.read((slice(58, 60), slice(0, 30), slice(0, 30)))


def test_the_checksum_is_met_although_the_last_plane_comes_before_it(tmp_path):
    """Stored data whose checksum lies beyond the chunk of the file that holds the last voxel."""
    for columns in range(131_000, 131_100):
        stream = bytearray(zlib.compress(bytes(2 * columns), 0))
        if len(stream) in (compression._CHUNK + 1, compression._CHUNK + 2):
            break
    stream[-1] ^= 1
    header = (
        f"ObjectType = Image\nNDims = 3\nCompressedData = True\nCompressedDataSize = {len(stream)}\nElementSpacing = 1 1 1\n"
        f"DimSize = {columns} 1 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(header.encode() + stream)
    with open_regions(tmp_path / "a.mha") as regions:
        assert not regions.read((slice(0, 1), slice(0, 1), slice(0, columns))).any()
        with pytest.raises(DataError, match="corrupt"):
            regions.read((slice(1, 2), slice(0, 1), slice(0, columns)))


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = stored(tmp_path, "plain.mha", np.zeros(SIZE, np.uint8))
    with open_regions(path) as regions:
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="ends before the last voxel"):
            regions.read(tuple(slice(0, n) for n in SIZE))
