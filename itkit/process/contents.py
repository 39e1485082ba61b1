"""What a file was like when it was used or written: size, time and checksum, and whether it still is."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from itkit.errors import DataError
from itkit.io.headers import claimed_files, volume_suffix

_CHUNK = 1 << 20
_KEPT_APART = (".mhd", ".nrrd")
"""The formats that may keep voxels in another file; of others the header need not be looked into."""

Facts = dict[str, int | str]
"""``size`` in bytes, ``mtime_ns`` (of the newest file), ``sha256`` in hexadecimal; of an input of several files also
``stamps``, which changes with the size or time of any of them."""


def measure_input(path: Path) -> Facts | None:
    """Return size and time of an input, without its checksum; None if it is not there.

    The voxels' own file of a .mhd or detached .nrrd belongs to it. A folder counts as all files below it.
    """
    try:
        if volume_suffix(path) not in _KEPT_APART:
            state = os.stat(path)
            if not stat.S_ISDIR(state.st_mode):
                return {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
        parts = _parts(path)
        states = [os.stat(part) for part in parts]
    except OSError:
        return None
    if not states:
        return None
    facts: Facts = {"size": sum(s.st_size for s in states), "mtime_ns": max(s.st_mtime_ns for s in states)}
    if len(states) > 1:
        each = repr([(str(part), s.st_size, s.st_mtime_ns) for part, s in zip(parts, states, strict=True)])
        facts["stamps"] = hashlib.sha256(each.encode(errors="surrogateescape")).hexdigest()[:16]
    return facts


def hash_input(path: Path) -> str:
    """Return the SHA-256 of an input's bytes, in hexadecimal.

    Raises:
        DataError: If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for part in _parts(path):
            if path.is_dir():
                digest.update(f"{part.relative_to(path).as_posix()}\0".encode(errors="surrogateescape"))
            _digest(part, digest)
    except FileNotFoundError as error:
        missing = Path(os.fsdecode(error.filename or path))
        if missing != path and path.is_file():
            raise DataError(f"the voxels should be in {missing.name!r}, which is not there.", path) from error
        raise DataError("no such file.", missing) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", error.filename or path) from error
    return digest.hexdigest()


def is_same_input(path: Path, facts: Facts) -> bool:
    """Say whether an input is as `facts` tell; only if size or time differ from them is it read."""
    now = measure_input(path)
    if now is None:
        return False
    if all(now[key] == facts.get(key) for key in now):
        return True
    return now["size"] == facts.get("size") and hash_input(path) == facts.get("sha256")


def describe_output(path: Path, checksum: str | None = None) -> Facts:
    """Return size, time and checksum of a file that was written; a symbolic link counts as itself.

    Args:
        path: The file.
        checksum: Its checksum, where it is known already.

    Raises:
        OSError: If it cannot be read.
    """
    state = os.lstat(path)
    if checksum:
        return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": checksum}
    digest = hashlib.sha256()
    if stat.S_ISLNK(state.st_mode):
        digest.update(os.fsencode(os.readlink(path)))
    else:
        _digest(path, digest)
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": digest.hexdigest()}


def compare_output(path: Path, facts: Facts) -> str:
    """Return ``"same"``, ``"missing"``, ``"lost"`` or ``"changed"``; only if size or time differ from `facts` is it read.

    Lost is a file of another size but the very time of writing: whoever changes a file changes its time, but when a machine
    loses its power, what had not reached the disk yet is missing from it.
    """
    try:
        state = os.lstat(path)
        if (state.st_size, state.st_mtime_ns) == (facts.get("size"), facts.get("mtime_ns")):
            return "same"
        if state.st_size == facts.get("size") and describe_output(path)["sha256"] == facts.get("sha256"):
            return "same"
        if state.st_size != facts.get("size") and state.st_mtime_ns == facts.get("mtime_ns"):
            return "lost"
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError):
        return "changed"
    return "changed"


def _parts(path: Path) -> list[Path]:
    if volume_suffix(path) in _KEPT_APART:
        return list(claimed_files(path))
    if os.path.isdir(path):
        return list(_files_below(path))
    return [path]


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(place, name)


def _digest(path: Path, digest) -> None:
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
