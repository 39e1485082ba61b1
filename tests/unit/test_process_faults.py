"""What goes wrong with files, disks and names: each fault costs its own case, is named, and leaves no half file."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from itkit.cli.main import run_tool
from itkit.io.volumes import Volume, read_volume, write_volume


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("a", "b", "c"):
        image = rng.integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
        write_volume(tmp_path / "src" / "image" / f"{name}.nii.gz", Volume(image, (3.0, 1.0, 1.0)))
        write_volume(
            tmp_path / "src" / "label" / f"{name}.nii.gz", Volume((image > 0).astype(np.uint8), (3.0, 1.0, 1.0))
        )
    return tmp_path / "src"


def orient(source, target, *more):
    return run_tool("itk_orient", [str(source), str(target), "LPS", *more])


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


WHOLE = ["image/a.nii.gz", "image/b.nii.gz", "image/c.nii.gz", "label/a.nii.gz", "label/b.nii.gz", "label/c.nii.gz"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "not a volume"])
def test_a_damaged_file_costs_its_own_case(source, tmp_path, capsys, damage, workers):
    victim = source / "label" / "b.nii.gz"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 16
    victim.write_bytes(
        {"truncated": victim.read_bytes()[:-9], "empty": b"", "flipped": bytes(content), "not a volume": b"hello"}[
            damage
        ]
    )
    assert orient(source, tmp_path / "dst", "--workers", workers) == 1
    said = capsys.readouterr().err
    assert f"FAILED  b: {victim}" in said
    assert "itk_orient: 2 done, 0 up to date, 1 failed" in said
    assert names(tmp_path / "dst") == [*(name for name in WHOLE if "/b." not in name), "ledger.jsonl"]


def test_an_empty_or_missing_source_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert orient(tmp_path / "empty", tmp_path / "dst") == 1
    assert "empty: holds no volume" in capsys.readouterr().err
    assert orient(tmp_path / "nothing", tmp_path / "dst") == 1
    assert "nothing: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()


def test_links_that_lead_in_circles_end(source, tmp_path, capsys):
    (source / "image" / "loop").symlink_to(source, target_is_directory=True)
    (source / "image" / "self.nii.gz").symlink_to("self.nii.gz")
    (source / "image" / "broken.nii.gz").symlink_to("nowhere.nii.gz")
    (source / "image" / "also_a.nii.gz").symlink_to("a.nii.gz")
    assert orient(source, tmp_path / "dst", "-r") == 1
    said = capsys.readouterr().err
    assert "FAILED  broken: " in said
    assert "FAILED  self: " in said
    assert "4 done" in said
    np.testing.assert_array_equal(
        read_volume(tmp_path / "dst" / "image" / "also_a.nii.gz").array,
        read_volume(tmp_path / "dst" / "image" / "a.nii.gz").array,
    )


@pytest.mark.parametrize(
    "stem",
    [
        "Zoë Müller",
        "患者_01",
        "emoji_🫀",
        "a" * 248,
        "é" * 124,
        b"caf\xe9",
        "with\nnewline",
        " blank ",
        "100%",
        "-dash",
    ],
)
def test_any_name_that_the_file_system_takes(tmp_path, stem, capsys):
    name = f"{os.fsdecode(stem)}.nii.gz"
    assert len(os.fsencode(name)) <= 255
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    write_volume(tmp_path / "src" / name, volume)
    assert orient(tmp_path / "src", tmp_path / "dst") == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "dst" / name).array, volume.array)
    capsys.readouterr()
    assert orient(tmp_path / "src", tmp_path / "dst", "--json", "--workers", "2") == 0
    said = capsys.readouterr()
    assert "0 done, 1 up to date" in said.err
    assert json.loads(said.out)["current"] == [name.removesuffix(".nii.gz")]
    assert orient(tmp_path / "src", tmp_path / "dst2", "--dry-run") == 0
    assert "to do" in capsys.readouterr().out


def test_a_long_name_of_another_format_too(tmp_path):
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    for suffix in (".mha", ".nrrd", ".mhd"):
        name = "é" * ((255 - 5) // 2) + suffix
        write_volume(tmp_path / "src" / name, volume)
        assert (tmp_path / "src" / name).is_file()


def without_override():
    """Let file rights count for the superuser too (capabilities DAC_OVERRIDE and DAC_READ_SEARCH are gone after exec)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_folders_without_rights_are_named(source, tmp_path, workers):
    target = tmp_path / "dst"
    words = [sys.executable, "-m", "itkit.cli", "itk_orient", str(source), str(target), "LPS", "--workers", workers]

    def run():
        return subprocess.run(words, capture_output=True, text=True, timeout=60, preexec_fn=without_override)

    target.mkdir(mode=0o555)
    done = run()
    assert (done.returncode, names(target)) == (1, [])
    assert f"itk_orient: {target}" in done.stderr
    assert "cannot be written (Permission denied)" in done.stderr
    target.chmod(0o755)
    (target / "label").mkdir(mode=0o555)
    done = run()
    assert done.returncode == 1
    assert done.stderr.count(f"FAILED  a: {target / 'label' / 'a.nii.gz'}: Permission denied") == 1
    assert names(target) == ["ledger.jsonl"], "no image without its label"
    (target / "label").chmod(0o755)
    (source / "image" / "b.nii.gz").chmod(0)
    done = run()
    assert f"FAILED  b: {source / 'image' / 'b.nii.gz'}: cannot be read (Permission denied)" in done.stderr
    assert "2 done, 0 up to date, 1 failed" in done.stderr
    (source / "image").chmod(0)
    done = run()
    assert done.returncode == 1
    assert f"{source / 'image'}: cannot be listed (Permission denied)" in done.stderr
    assert "Traceback" not in done.stderr
    (source / "image").chmod(0o755)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_named_and_leaves_nothing_half(source, tmp_path, workers):
    """A limit on the size of files stands in for the disk: the system refuses in the middle of a file."""
    rng = np.random.default_rng(2)
    noise = rng.integers(-30000, 30000, (40, 60, 60)).astype(np.int16)
    write_volume(source / "image" / "b.nii.gz", Volume(noise))
    write_volume(source / "label" / "b.nii.gz", Volume((noise > 0).astype(np.uint8)))

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    words = ["itk_orient", str(source), str(tmp_path / "dst"), "LPS", "--workers", workers]
    done = subprocess.run(
        [sys.executable, "-m", "itkit.cli", *words], capture_output=True, text=True, timeout=60, preexec_fn=little_room
    )
    assert done.returncode == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert "FAILED  b: " in done.stderr
    assert "2 done, 0 up to date, 1 failed" in done.stderr
    assert names(tmp_path / "dst") == [*(name for name in WHOLE if "/b." not in name), "ledger.jsonl"]
    assert orient(source, tmp_path / "dst") == 0
    assert names(tmp_path / "dst") == [*WHOLE, "ledger.jsonl"]


def test_a_small_disk_that_is_full(source, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        rng = np.random.default_rng(3)
        for name in ("a", "b", "c"):
            noise = rng.integers(-30000, 30000, (20, 30, 30)).astype(np.int16)
            write_volume(source / "image" / f"{name}.nii.gz", Volume(noise))
            write_volume(source / "label" / f"{name}.nii.gz", Volume((noise > 0).astype(np.uint8)))
        words = ["itk_orient", str(source), str(disk / "dst"), "LPS"]
        done = subprocess.run([sys.executable, "-m", "itkit.cli", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert not [name for name in names(disk / "dst") if name.startswith(".itkit-staging")]
        for name in names(disk / "dst"):
            if name.endswith(".gz"):
                read_volume(disk / "dst" / name)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert orient(source, disk / "dst") == 0
        assert names(disk / "dst") == [*WHOLE, "ledger.jsonl"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
