"""Compressed data: every flipped bit, missing end and bomb is noticed, and what we compress others can read."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.errors import DataError
from itkit.io import compression
from itkit.io.compression import TRAILING_BYTES, Deflater, inflate
from itkit.io.volumes import Volume, read_header, read_volume, write_volume

NOISE = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes() + bytes(2000)


def unpack(data: bytes, wanted: int, skip: int = 0) -> bytes:
    out = bytearray(wanted - skip)
    inflate(io.BytesIO(data), memoryview(out), wanted=wanted, skip=skip, path="a.nii.gz")
    return bytes(out)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_every_single_flipped_bit_is_noticed_or_harmless(pack):
    packed = pack(NOISE)
    harmless = 0
    for at in range(len(packed)):
        for bit in (1, 128):
            damaged = bytearray(packed)
            damaged[at] ^= bit
            try:
                # Time and system of a gzip header, or the code of a byte that never comes, mean nothing.
                assert unpack(bytes(damaged), len(NOISE)) == NOISE
                harmless += 1
            except DataError:
                pass
    assert harmless < 0.01 * len(packed)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_every_truncation_is_noticed(pack):
    packed = pack(NOISE)
    for length in range(len(packed)):
        with pytest.raises(DataError, match="a.nii.gz: the compressed data"):
            unpack(packed[:length], len(NOISE))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), st.integers(0, 9), st.data())
def test_members_of_any_level_are_joined(parts, level, data):
    whole = b"".join(parts)
    skip = data.draw(st.integers(0, len(whole)))
    assert unpack(b"".join(gzip.compress(part, level) for part in parts), len(whole), skip) == whole[skip:]


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=5000), st.booleans(), st.booleans(), st.integers(0, 5000))
def test_what_is_deflated_zlib_can_read(data, as_gzip, thorough, cut):
    written = []
    deflater = Deflater(written.append, data, gzip=as_gzip, thorough=thorough)
    for part in (data[:cut], data[cut:]):
        deflater.feed(memoryview(part))
    deflater.finish()
    packed = b"".join(written)
    assert (gzip.decompress if as_gzip else zlib.decompress)(packed) == data
    assert (deflater.bytes_in, deflater.bytes_out) == (len(data), len(packed))


def test_label_maps_are_left_to_zlib_where_asked():
    labels = np.zeros((40, 64, 64), np.uint8)
    labels[10:30, 20:50, 7:41] = np.arange(34) // 9
    sizes = {}
    for thorough in (False, True):
        deflater = Deflater(lambda _: None, labels.tobytes(), gzip=True, thorough=thorough)
        deflater.feed(memoryview(labels.tobytes()))
        deflater.finish()
        sizes[thorough] = deflater.bytes_out
    assert sizes[True] < 0.8 * sizes[False]


def test_pieces_bound_the_memory(monkeypatch):
    packed = gzip.compress(bytes(64 << 20), 1)
    out = np.empty(64 << 20, np.uint8)
    out[:] = 1
    tracemalloc.start()
    inflate(io.BytesIO(packed), memoryview(out), wanted=out.size, skip=0, path="a")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert not out.any()


def test_a_bomb_behind_the_voxels_is_left_alone(tmp_path):
    write_volume(tmp_path / "a.nii.gz", Volume(np.ones((3, 4, 5), np.int16)))
    plain = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(TRAILING_BYTES // 2)))
    assert read_volume(tmp_path / "a.nii.gz").array.all()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(100 << 20), 1))
    served = []
    real = compression.isal_zlib.decompressobj

    class Counting:
        def __init__(self, *args, **kwargs):
            self._real = real(*args, **kwargs)

        def decompress(self, *args):
            part = self._real.decompress(*args)
            served.append(len(part))
            return part

        def __getattr__(self, name):
            return getattr(self._real, name)

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(compression.isal_zlib, "decompressobj", Counting)
        with pytest.raises(DataError, match="go on after the 472 bytes that the header describes: .* bomb"):
            read_volume(tmp_path / "a.nii.gz")
    assert sum(served) < 4 << 20


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of a process is read from Linux's /proc")
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_18_gigabytes_from_377_bytes_cost_nothing(tmp_path, suffix):
    """The file's own process may take 200 MB of memory and a second."""
    path = tmp_path / f"huge{suffix}"
    if suffix == ".nii.gz":
        write_volume(path, Volume(np.zeros((2, 2, 2), np.float64)))
        plain = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into("<8h", plain, 40, 3, 1500, 1500, 1000, 1, 1, 1, 1)
        path.write_bytes(gzip.compress(bytes(plain)))
    elif suffix == ".nrrd":
        path.write_bytes(
            b"NRRD0004\ntype: double\ndimension: 3\nsizes: 1500 1500 1000\nencoding: gzip\n\n"
            + gzip.compress(bytes(300))
        )
    else:
        path.write_bytes(
            b"NDims = 3\nDimSize = 1500 1500 1000\nElementType = MET_DOUBLE\nCompressedData = True\n"
            b"ElementDataFile = LOCAL\n" + zlib.compress(bytes(300))
        )
    code = (
        "import re, sys\n"
        "from itkit.io.volumes import read_header, read_volume\n"
        "for read in (read_header, read_volume):\n"
        "    try: read(sys.argv[1])\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
        "print(int(re.search('VmHWM:\\\\s+(\\\\d+)', open('/proc/self/status').read()).group(1)) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, os.fspath(path)], capture_output=True, text=True, check=True)
    first, second, megabytes = done.stdout.splitlines()
    for line in (first, second):
        assert line.startswith("DataError")
        assert "asks for 18,000,000" in line
    assert int(megabytes) < 200


def test_a_long_name_in_the_gzip_header_is_passed_over(tmp_path):
    write_volume(tmp_path / "a.nii.gz", Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5)))
    plain = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    buffer = io.BytesIO()
    with gzip.GzipFile("n" * 9000, "wb", fileobj=buffer) as stream:
        stream.write(plain)
    (tmp_path / "a.nii.gz").write_bytes(buffer.getvalue())
    assert read_header(tmp_path / "a.nii.gz").geometry.size_zyx == (3, 4, 5)
    assert read_volume(tmp_path / "a.nii.gz").array.ravel().tolist() == list(range(60))


def test_zeros_after_the_end_are_passed_over(tmp_path):
    write_volume(tmp_path / "a.nii.gz", Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5)))
    with open(tmp_path / "a.nii.gz", "ab") as stream:
        stream.write(bytes(512))
    assert read_volume(tmp_path / "a.nii.gz").array.ravel().tolist() == list(range(60))
