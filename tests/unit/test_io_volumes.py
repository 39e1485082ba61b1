"""Reading trusts nothing: every kind of damage is refused with the path, and what is sound comes back to the bit."""

from __future__ import annotations

import gzip
import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk

from itkit.errors import DataError, GeometryError
from itkit.io import volumes
from itkit.io.volumes import Volume, read_header, read_volume, volume_bytes, write_volume

FORMATS = (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")
OBLIQUE = (0.0, 1.0, 0.0, 0.6, 0.0, -0.8, -0.8, 0.0, -0.6)


def make_volume(dtype="int16", channels=None, direction=OBLIQUE, seed=0) -> Volume:
    shape = ((channels,) if channels else ()) + (7, 9, 11)
    array = np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)
    return Volume(array, (2.5, 0.75, 1.25), (-3.5, 20.25, 7.0), direction)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_what_is_written_comes_back(tmp_path, suffix, dtype):
    volume = make_volume(dtype)
    path = tmp_path / f"case{suffix}"
    write_volume(path, volume)
    back = read_volume(path)
    assert back.array.dtype == volume.array.dtype
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.spacing_zyx, volume.spacing_zyx, rtol=1e-6)
    np.testing.assert_allclose(back.origin_xyz, volume.origin_xyz, rtol=1e-6)
    np.testing.assert_allclose(back.direction_xyz, OBLIQUE, atol=1e-6)
    assert back.array.flags.writeable
    header = read_volume(path, header_only=True)
    assert (header.geometry, header.channels, header.dtype) == (back.geometry, None, back.array.dtype)
    expected = {"case.mhd", "case.zraw"} if suffix == ".mhd" else {path.name}
    assert set(os.listdir(tmp_path)) == expected, "nothing else is left in the folder"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("compress", [True, False])
def test_channels_come_first(tmp_path, suffix, compress):
    volume = make_volume("float32", channels=3)
    path = tmp_path / f"case{suffix}"
    write_volume(path, volume, compress=compress)
    back = read_volume(path)
    np.testing.assert_array_equal(back.array, volume.array)
    assert read_header(path).channels == 3


def test_fourth_nifti_dimension_becomes_channels(tmp_path):
    image = sitk.JoinSeries([sitk.GetImageFromArray(np.full((3, 4, 5), value, np.int16)) for value in (10, 20)])
    sitk.WriteImage(image, os.fspath(tmp_path / "mr.nii.gz"))
    back = read_volume(tmp_path / "mr.nii.gz")
    assert back.array.shape == (2, 3, 4, 5)
    assert [int(channel.max()) for channel in back.array] == [10, 20]


def test_big_endian_and_header_at_end_of_file(tmp_path):
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    (tmp_path / "big.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nElementByteOrderMSB = True\nDimSize = 4 3 2\nElementType = MET_SHORT\n"
        b"ElementDataFile = LOCAL\n" + array.tobytes()
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "big.mha").array, array)
    (tmp_path / "data.bin").write_bytes(b"unknown preamble" + array.tobytes())
    (tmp_path / "end.mhd").write_bytes(
        b"NDims = 3\nElementByteOrderMSB = True\nDimSize = 4 3 2\nElementType = MET_SHORT\nHeaderSize = -1\n"
        b"ElementDataFile = data.bin\n"
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "end.mhd").array, array)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.98])
def test_truncated_file_is_refused(tmp_path, suffix, keep):
    path = tmp_path / f"case_007{suffix}"
    write_volume(path, make_volume())
    victim = path.with_suffix(".zraw") if suffix == ".mhd" else path
    content = victim.read_bytes()
    victim.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match="case_007") as caught:
        read_volume(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nii", ".nrrd"])
def test_one_missing_byte_of_a_plain_file_shows_in_its_header(tmp_path, suffix):
    path = tmp_path / f"case{suffix}"
    write_volume(path, make_volume(), compress=False)
    victim = path.with_suffix(".raw") if suffix == ".mhd" else path
    os.truncate(victim, victim.stat().st_size - 1)
    with pytest.raises(DataError, match="the header asks for 1,386 bytes of voxels, the file holds at most 1,385"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nii.gz", ".nrrd"])
def test_changed_byte_in_compressed_data_is_refused(tmp_path, suffix):
    path = tmp_path / f"case{suffix}"
    write_volume(path, make_volume())
    victim = path.with_suffix(".zraw") if suffix == ".mhd" else path
    content = bytearray(victim.read_bytes())
    content[-len(content) // 8] ^= 0x10
    victim.write_bytes(content)
    with pytest.raises(DataError, match="corrupt|compressed"):
        read_volume(path)


def test_gzip_with_wrong_length_field_is_refused(tmp_path):
    path = tmp_path / "case.nii.gz"
    write_volume(path, make_volume())
    path.write_bytes(path.read_bytes()[:-4] + b"\1\0\0\0")
    with pytest.raises(DataError, match="corrupt"):
        read_volume(path)


def test_several_gzip_members_are_one_file(tmp_path):
    write_volume(tmp_path / "a.nii.gz", make_volume())
    plain = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain[:700]) + gzip.compress(plain[700:]))
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").array, make_volume().array)


def test_header_that_asks_for_terabytes_is_refused_at_once(tmp_path):
    (tmp_path / "huge.mha").write_bytes(
        b"NDims = 3\nDimSize = 20000 20000 20000\nElementType = MET_SHORT\nElementDataFile = LOCAL\nabcd"
    )
    write_volume(tmp_path / "a.nii.gz", make_volume())
    plain = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    struct.pack_into("<8h", plain, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(bytes(plain)))
    (tmp_path / "huge.nii").write_bytes(bytes(plain))
    (tmp_path / "huge.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 20000 20000 20000\nendian: little\nencoding: gzip\n\nabcd"
    )
    tracemalloc.start()
    began = time.process_time()
    for path in sorted(tmp_path.glob("huge.*")):
        for read in (read_header, read_volume):
            with pytest.raises(DataError, match="the header asks for .* bytes"):
                read(path)
    assert time.process_time() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("old,new,text", [
    (b"ElementSpacing = 1.25", b"ElementSpacing = 0", "spacing .* is not positive"),
    (b"ElementSpacing = 1.25", b"ElementSpacing = -1", "spacing .* is not positive"),
    (b"ElementSpacing = 1.25", b"ElementSpacing = nan", "spacing .* is not positive"),
    (b"ElementSpacing = 1.25", b"ElementSpacing = inf", "spacing .* is not positive"),
    (b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 0 0 0 0 0 0 0 0 0", "not orthonormal"),
    (b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0.1 0 0 1 0 0 0 1", "not orthonormal"),
    (b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 2 0 0 0 2 0 0 0 2", "not orthonormal"),
])  # fmt: skip
def test_impossible_geometry_is_refused(tmp_path, old, new, text):
    write_volume(tmp_path / "a.mha", make_volume(direction=(1.0, 0, 0, 0, 1, 0, 0, 0, 1)))
    content = (tmp_path / "a.mha").read_bytes()
    assert old in content
    (tmp_path / "bad.mha").write_bytes(content.replace(old, new))
    with pytest.raises(GeometryError, match=f"bad.mha: .*{text}"):
        read_header(tmp_path / "bad.mha")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_impossible_nifti_spacing_is_refused(tmp_path, value):
    write_volume(tmp_path / "a.nii", make_volume())
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<f", content, 80, value)
    (tmp_path / "bad.nii").write_bytes(content)
    with pytest.raises(GeometryError, match="spacing .* is not positive"):
        read_volume(tmp_path / "bad.nii")


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_impossible_nifti_direction_is_refused(tmp_path, value):
    write_volume(tmp_path / "a.nii", make_volume())
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2h", content, 252, 0, 1)  # no qform to fall back on
    for row in range(3):
        struct.pack_into("<3f", content, 280 + 16 * row, *[value] * 3)
    (tmp_path / "bad.nii").write_bytes(content)
    for read in (read_header, read_volume):
        with pytest.raises(GeometryError, match="bad.nii: direction .* is not orthonormal"):
            read(tmp_path / "bad.nii")


@pytest.mark.parametrize("new,text", [
    (b"(0,0,0) (0,0.75,0) (0,0,2.5)", "spacing .2.5, 0.75, 0. mm .Z, Y, X. is not positive"),
    (b"(nan,0,0) (0,0.75,0) (0,0,2.5)", "spacing .* is not positive"),
    (b"(1.25,0,0) (1.25,0,0) (0,0,2.5)", "is not orthonormal"),
    (b"(1.25,0,0) (0,0.75,0)", "the header|not supported|domain axes|refused"),
])  # fmt: skip
def test_impossible_nrrd_directions_are_refused(tmp_path, new, text):
    write_volume(tmp_path / "a.nrrd", make_volume(direction=(1.0, 0, 0, 0, 1, 0, 0, 0, 1)))
    content = (tmp_path / "a.nrrd").read_bytes()
    old = b"(1.25,0,0) (0,0.75,0) (0,0,2.5)"
    assert old in content
    (tmp_path / "bad.nrrd").write_bytes(content.replace(old, new))
    for read in (read_header, read_volume):
        with pytest.raises(DataError, match=text):
            read(tmp_path / "bad.nrrd")


@pytest.mark.parametrize("name,content,text", [
    ("missing.mha", None, "no such file"),
    ("empty.nii.gz", b"", "the file is empty"),
    ("note.txt", b"hello", "is not a volume file; known formats"),
    ("noise.mha", b"\x07" * 500, "has no ElementDataFile"),
    ("noise.nii", b"\x07" * 500, "does not begin like a NIfTI"),
    ("second.nii", b"\x1c\x02\0\0" + bytes(500), "ends inside the NIfTI-2 header, after 504 bytes"),
    ("third.nii", b"\x1c\x02\0\0ni2" + bytes(600), "not a single-file NIfTI"),
    ("zipped.nii", b"\x1f\x8b\x08\0" + bytes(600), "gzip-compressed: name it .nii.gz"),
    ("flat.nii", b"\x5c\1\0\0" + bytes(36) + b"\2\0\5\0\5\0" + bytes(298) + b"n+1" + bytes(20), "is 2-dimensional"),
    ("type.nii", b"\x5c\1\0\0" + bytes(36) + b"\3\0" + b"\2\0" * 3 + bytes(22) + b"\7\7" + bytes(272) + b"n+1" + bytes(9),
     "datatype 1799 is not a number type"),
    ("five.nii", b"\x5c\1\0\0" + bytes(36) + b"\5\0" + b"\2\0" * 5 + bytes(292) + b"n+1" + bytes(20), "is 5-dimens"),
    ("cut.nii.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", "end before the NIfTI header"),
    ("i.mha", b"NDims = 3\nDimSize = 2 2 2\nElementSpacing = 1 1\nElementType = MET_CHAR\nElementDataFile = LOCAL\n"
              b"12345678", "elementspacing has 2 numbers, not 3"),
    ("j.mha", b"NDims = 4\nDimSize = 2 2 2 2\nElementNumberOfChannels = 2\nElementType = MET_CHAR\n"
              b"ElementDataFile = LOCAL\n", "a time axis and several values"),
    ("k.mhd", b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = a\0b.raw\n", "which is not there"),
    ("flat.nrrd", b"NRRD0004\ntype: uchar\nsizes: 2 2\nencoding: raw\n\n1234", "is 2-dimensional"),
    ("dims.nii", b"\x5c\1\0\0" + bytes(36) + b"\x09" + bytes(303) + b"n+1" + bytes(20), "claims 9 dimensions"),
    ("pair.nii", b"\x5c\1\0\0" + bytes(340) + b"ni1" + bytes(20), "not a single-file NIfTI"),
    ("short.nii", b"\x07" * 50, "ends inside the NIfTI header"),
    ("noise.nii.gz", b"\x07" * 500, "is not a gzip file"),
    ("noise.nrrd", b"\x07" * 500, "does not begin like a NRRD"),
    ("a.nrrd", b"NRRD0004\ntype: short\n", "header does not end"),
    ("b.nrrd", b"NRRD0004\ntype: short\n\n", "has no field 'sizes'"),
    ("c.nrrd", b"NRRD0004\ntype: short\nsizes: 2 2 2\nencoding: raw\n\n0123456789abcdef", "byte order"),
    ("d.nrrd", b"NRRD0004\ntype: block\nsizes: 2 2 2\nencoding: raw\n\n0123456789abcdef", "is not a number type"),
    ("e.nrrd", b"NRRD0004\ntype: short\nsizes: 2 2 2\nencoding: bzip2\n\n0123456789abcdef", "bzip2"),
    ("f.nrrd", b"NRRD0004\ntype: short\ndimension: 4\nsizes: 2 2 2\nencoding: raw\n\n0", "dimension is 4"),
    ("g.nrrd", b"NRRD0004\ntype: short\nsizes: 2 2 2\nencoding: raw\ndata file: LIST\n\n0", "spread over several"),
    ("a.mha", b"NDims = 3\nElementDataFile = LOCAL\n", "has no DimSize"),
    ("b.mha", b"NDims = 2\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n", "NDims is 2"),
    ("c.mha", b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_OTHER\nElementDataFile = LOCAL\n", "not a number type"),
    ("d.mha", b"NDims = 3\nDimSize = 2 0 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n", "claims the size"),
    ("e.mha", b"NDims = 3\nDimSize = 2 x 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n", "cannot be underst"),
    ("f.mhd", b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = no.raw\n", "'no.raw', which is no"),
    ("g.mhd", b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = a%d.raw 1 2 1\n", "spread over"),
    ("h.mha", b"NDims = 2\nDimSize = 2 2\nElementType = MET_CHAR\nElementDataFile = LOCAL\n1234", "2-dimensional"),
])  # fmt: skip
def test_bad_file_is_named_with_the_reason(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text) as caught:
        read_volume(tmp_path / name)
    assert caught.value.path == str(tmp_path / name)


def test_folder_is_not_a_volume(tmp_path):
    (tmp_path / "case.mha").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_volume(tmp_path / "case.mha")


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"case{suffix}"
    write_volume(path, make_volume())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(stream, *args, **_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(volumes, "store_voxels", full)
    with pytest.raises(DataError, match="cannot be written .No space left on device"):
        write_volume(path, make_volume(seed=1))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("at", [0, 1])
def test_a_disk_that_loses_bytes_is_noticed(tmp_path, monkeypatch, at):
    path = tmp_path / ("case.mha", "case.mhd")[at]

    def forgetful(stream, array, **_):
        return stream.write(b"half") + 1

    monkeypatch.setattr(volumes, "store_voxels", forgetful)
    with pytest.raises(DataError, match="cannot be written .* bytes arrived on the disk"):
        write_volume(path, make_volume())
    assert list(tmp_path.iterdir()) == []


def test_an_old_header_never_meets_new_voxels(tmp_path, monkeypatch):
    path = tmp_path / "case.mhd"
    write_volume(path, make_volume())
    renames, replace = [], os.replace

    def killed_after_one(source, target):
        if renames:
            raise KeyboardInterrupt
        renames.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        write_volume(path, make_volume(seed=1))
    assert [os.path.basename(name) for name in renames] == ["case.zraw"]
    assert os.listdir(tmp_path) == ["case.zraw"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("stem", ["患者 é ß", "n" * 240, "ä" * 120, "50% of it", "LISTED", "LOCAL"])
def test_names_of_any_alphabet_and_length(tmp_path, suffix, stem):
    path = tmp_path / "größe" / f"{stem}{suffix}"
    if suffix == ".mhd" and stem in ("50% of it", "LISTED"):  # SimpleITK would crash, or read other numbers
        with pytest.raises(DataError, match="take this name for a list or pattern of files; write .mha"):
            write_volume(path, make_volume())
        return
    write_volume(path, make_volume())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(path))), make_volume().array)
    np.testing.assert_array_equal(read_volume(path).array, make_volume().array)
    assert {name[:1] for name in os.listdir(path.parent)} == {stem[0]}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("compress", [True, False])
def test_the_same_volume_makes_the_same_bytes(tmp_path, suffix, compress):
    for folder in "ab":
        write_volume(tmp_path / folder / f"case{suffix}", make_volume("float32", 2), compress=compress)
    assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "b").iterdir())
    ]


@pytest.mark.parametrize("suffix", FORMATS)
def test_any_layout_in_memory_is_written(tmp_path, suffix):
    array = np.arange(2 * 6 * 8 * 10, dtype=">i4").reshape(2, 6, 8, 10)
    for view in (array[0].T, array[1, ::-2, :, ::3], array.transpose(1, 0, 3, 2), np.asfortranarray(array)):
        write_volume(tmp_path / f"case{suffix}", Volume(view))
        back = read_volume(tmp_path / f"case{suffix}").array
        np.testing.assert_array_equal(back, view)
        assert back.dtype == np.int32


def test_bytes_in_memory_from_the_header(tmp_path):
    for suffix in FORMATS:
        write_volume(tmp_path / f"case{suffix}", make_volume("int32", channels=3))
        assert volume_bytes(tmp_path / f"case{suffix}") == 3 * 7 * 9 * 11 * 4
    write_volume(tmp_path / "a.nii", make_volume())
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2f", content, 112, 0.5, 1)
    (tmp_path / "a.nii").write_bytes(content)
    assert volume_bytes(tmp_path / "a.nii") == read_volume(tmp_path / "a.nii").array.nbytes == 7 * 9 * 11 * 4
    with pytest.raises(DataError, match="no such file"):
        volume_bytes(tmp_path / "b.nii")


def test_a_volume_larger_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    write_volume(tmp_path / "a.nii", make_volume())
    content = bytearray((tmp_path / "a.nii").read_bytes()[:352])
    struct.pack_into("<8h", content, 40, 3, 1024, 1024, 1024, 1, 1, 1, 1)
    (tmp_path / "a.nii").write_bytes(content)
    os.truncate(tmp_path / "a.nii", 352 + 2 * 1024**3)  # a sparse file
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Free", (), {"available": 2**31})())
    assert read_header(tmp_path / "a.nii").geometry.size_zyx == (1024,) * 3
    with pytest.raises(DataError, match=r"does not fit into the memory: 2.0 GiB of voxels, 2.0 GiB are free"):
        read_volume(tmp_path / "a.nii")


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_volume(tmp_path / "file" / "case.mha", make_volume())


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match="type bool cannot be stored"):
        write_volume(tmp_path / "a.mha", Volume(np.zeros((2, 2, 2), bool)))
    with pytest.raises(DataError, match="not a name for a volume"):
        write_volume(tmp_path / "a.png", make_volume())
    with pytest.raises(GeometryError, match="origin"):
        write_volume(tmp_path / "a.mha", Volume(np.zeros((2, 2, 2)), origin_xyz=(float("nan"), 0, 0)))
    with pytest.raises(GeometryError, match="axis without voxels"):
        write_volume(tmp_path / "a.mha", Volume(np.zeros((2, 0, 2))))
    with pytest.raises(DataError, match=r"axes \(Z, Y, X\)"):
        Volume(np.zeros((2, 2)))
    assert list(tmp_path.iterdir()) == []
