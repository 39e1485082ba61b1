"""``series_meta.json``: what each file of a dataset holds, cached, and the fingerprint that follows from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from itkit._support.files import write_text
from itkit.errors import DataError
from itkit.io.labels import count_values
from itkit.io.volumes import Volume, read_header, read_volume
from itkit.process.cases import Case, find_cases
from itkit.process.contents import hash_input
from itkit.process.ledger import stamp

MANIFEST_NAME = "series_meta.json"


def read_manifest(root: str | os.PathLike) -> dict[str, dict]:
    """Return the entries of ``<root>/series_meta.json``; empty if there is none.

    Raises:
        DataError: If the file is not a JSON object of objects.
    """
    path = Path(root) / MANIFEST_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error}); it is only a cache, remove it.", path) from error
    if not isinstance(document, dict) or not all(isinstance(entry, dict) for entry in document.values()):
        raise DataError("is not an object with one object a file; it is only a cache, remove it.", path)
    return document


def write_manifest(root: str | os.PathLike, entries: Mapping[str, dict]) -> Path:
    """Write ``<root>/series_meta.json``, one line a file, and return its path.

    Args:
        root: A dataset's folder.
        entries: Name of the image file -> entry, as `describe_case` gives it; written in the order of the names.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(root) / MANIFEST_NAME
    lines = [f"{_as_json(name)}: {_as_json(entry)}" for name, entry in sorted(entries.items())]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def describe_case(case: Case) -> dict:
    """Return the manifest's entry of a case, from its files.

    Returns:
        ``size`` and ``spacing`` (Z, Y, X; voxels and mm), ``channels`` (None without a channel axis), ``dtype``, ``min``,
        ``max`` of the image's finite voxels (None if there is none), ``nonfinite`` (how many are NaN or infinite) if there are
        any; ``labels`` (sorted finite values, None without a label file); ``sha256`` and ``stamp`` (bytes, time) of the image
        file and the same with ``label_`` in front.

    Raises:
        DataError: If a file cannot be read.
    """
    label = None if case.label is None else read_volume(case.label)
    return describe_volumes(read_volume(case.image), case.image, label, case.label)


def describe_volumes(
    image: Volume,
    image_path: Path,
    label: Volume | None = None,
    label_path: Path | None = None,
    checksums: Mapping[Path, str] | None = None,
) -> dict:
    """Return the manifest's entry of volumes that are in memory and in these files; see `describe_case`.

    Args:
        image: The image.
        image_path: Its file.
        label: The label, if there is one.
        label_path: Its file.
        checksums: Those of files that need not be read again for that.
    """
    known = checksums or {}
    low, high, nonfinite = _extremes(image.array)
    entry = {
        "size": list(image.size_zyx),
        "spacing": list(image.spacing_zyx),
        "channels": image.array.shape[0] if image.array.ndim == 4 else None,
        "dtype": str(image.array.dtype),
        "min": low,
        "max": high,
        **({"nonfinite": nonfinite} if nonfinite else {}),
        "labels": None,
        "sha256": known.get(image_path) or checksum(image_path),
        "stamp": stamp(image_path),
    }
    if label is not None:
        entry |= {
            "labels": _values(label.array),
            "label_sha256": known.get(label_path) or checksum(label_path),
            "label_stamp": stamp(label_path),
        }
    return entry


def _extremes(array: np.ndarray) -> tuple[float | None, float | None, int]:
    """The smallest and the largest finite value, and how many are not finite; JSON has no word for those."""
    low, high = array.min(), array.max()
    if np.isfinite(low) and np.isfinite(high):
        return low.item(), high.item(), 0
    finite = array[np.isfinite(array)]
    if not finite.size:
        return None, None, array.size
    return finite.min().item(), finite.max().item(), array.size - finite.size


def _values(label: np.ndarray) -> list:
    """The finite values that occur in a label map, sorted; also of one that is no label map."""
    if label.dtype.kind in "iu":
        return list(count_values(label))
    ordered = np.sort(label[np.isfinite(label)], axis=None)  # np.unique would load masked arrays: 15 ms for nothing
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))].tolist() if ordered.size else []


def update_manifest(root: str | os.PathLike, *, write: bool = True) -> dict[str, dict]:
    """Bring ``<root>/series_meta.json`` up to date and return its entries, ordered by name.

    Only files whose size or time changed are read again; entries of vanished files go. An entry without size and time
    (`without_stamps`) gets them if the checksums are right.

    Args:
        root: A dataset's folder.
        write: Write the file (if anything changed).

    Raises:
        DataError: If the folder holds no cases, or a file cannot be read or written.
    """
    known, fresh = read_manifest(root), {}
    for case in find_cases(root).cases:
        entry = known.get(case.image.name)
        complete = entry is not None and {"size", "min", "labels", "sha256"} <= entry.keys()
        if complete and "stamp" not in entry and _has_checksums(entry, case):
            entry = {**entry, **_stamps(case)}
        fresh[case.image.name] = entry if complete and is_current(entry, case) else describe_case(case)
    if write and fresh != known:
        try:
            write_manifest(root, fresh)
        except OSError as error:
            raise DataError(f"cannot be written ({error.strerror}).", Path(root) / MANIFEST_NAME) from error
    return fresh


def is_current(entry: dict, case: Case) -> bool:
    """Say whether a manifest's entry still describes the files of `case`."""
    label = None if case.label is None else stamp(case.label)
    return entry.get("stamp") == stamp(case.image) and entry.get("label_stamp") == label


def without_stamps(entry: Mapping) -> dict:
    """Return an entry that tells files by their checksums alone: the same whenever they were written."""
    return {key: value for key, value in entry.items() if key not in ("stamp", "label_stamp")}


def _has_checksums(entry: Mapping, case: Case) -> bool:
    if ("label_sha256" in entry) != (case.label is not None) or entry["sha256"] != checksum(case.image):
        return False
    return case.label is None or entry["label_sha256"] == checksum(case.label)


def _stamps(case: Case) -> dict:
    found = {"stamp": stamp(case.image)}
    return found if case.label is None else {**found, "label_stamp": stamp(case.label)}


def case_geometry(case: Case, manifest: dict[str, dict] | None = None) -> dict:
    """Return ``size``, ``spacing``, ``channels`` and ``dtype`` of a case's image: from the manifest if current, else from
    the file's header.

    Raises:
        DataError: If the header has to be read and cannot be.
    """
    entry = (manifest or {}).get(case.image.name)
    if entry is not None and entry.get("stamp") == stamp(case.image) and {"size", "spacing"} <= entry.keys():
        return entry
    return _geometry(case.image)


def checksum(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal (for .mhd of the header, then of the voxels' file too).

    Raises:
        DataError: If the file cannot be read.
    """
    return hash_input(Path(path))


def fingerprint(source: str | os.PathLike | Iterable[Case]) -> str:
    """Return one SHA-256 over the names, sizes and contents of all files of a dataset.

    It does not depend on the folder's place, the order of listing, or file times. Content checksums are taken from
    ``series_meta.json`` where size and time of the file are as noted there.

    Args:
        source: A dataset's folder, or cases (of one dataset; then only these count).

    Raises:
        DataError: If the folder holds no cases or a file cannot be read.
    """
    return fingerprints(source)[0]


def fingerprints(source: str | os.PathLike | Iterable[Case]) -> tuple[str, dict[str, str]]:
    """Return `fingerprint`, and a short one of each case by its id, from one look at the files."""
    if isinstance(source, (str, os.PathLike)):
        cases: list[Case] = list(find_cases(source).cases)
    else:
        cases = list(source)
    manifests: dict[Path, dict] = {}
    digest, of_cases = hashlib.sha256(), {}
    for case in sorted(cases, key=lambda case: (case.case_id, case.image.name)):
        root = case.image.parent.parent
        if root not in manifests:
            manifests[root] = {}
            # A manifest that cannot be read is a cache that does not help, nothing worse.
            with contextlib.suppress(DataError):
                manifests[root] = read_manifest(root)
        entry = manifests[root].get(case.image.name, {})
        of_case = hashlib.sha256()
        for role, path, prefix in (("image", case.image, ""), ("label", case.label, "label_")):
            if path is None:
                continue
            now = stamp(path)
            if now is None:
                raise DataError("no such file.", path)
            content = entry.get(f"{prefix}sha256") if entry.get(f"{prefix}stamp") == now else None
            line = f"{role}/{path.name}\0{now[0]}\0{content or checksum(path)}\n".encode()
            digest.update(line)
            of_case.update(line)
        of_cases[case.case_id] = of_case.hexdigest()[:16]
    return digest.hexdigest(), of_cases


def _geometry(path: Path) -> dict:
    header = read_header(path)
    return {
        "size": list(header.geometry.size_zyx),
        "spacing": list(header.geometry.spacing_zyx),
        "channels": header.channels,
        "dtype": str(header.dtype),
    }
