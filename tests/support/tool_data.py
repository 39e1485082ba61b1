"""Small datasets for the tests of the data tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from itkit.io.volumes import Volume, write_volume

OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def make_volume(seed: int = 0, size=(6, 8, 10), dtype="int16", *, spacing=(3.0, 2.0, 1.0), direction=OBLIQUE) -> Volume:
    """Return a volume of random numbers at an odd place in space."""
    values = np.random.default_rng(seed).integers(0, 100, size)
    return Volume(values.astype(dtype), spacing, (-12.5, 40.25, 7.0), direction)


def make_label(values=(0, 1, 2, 3), seed: int = 0, dtype="uint8", **kwargs) -> Volume:
    """Return a label map that holds all of `values`."""
    volume = make_volume(seed, **kwargs)
    labels = np.random.default_rng(seed + 1).choice(values, volume.array.shape)
    labels.flat[: len(values)] = values
    return Volume(labels.astype(dtype), volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz)


def make_dataset(root: Path, count: int = 3, suffix: str = ".mha", **kwargs) -> Path:
    """Write a dataset with `count` cases ``case_0``, ``case_1``, ... and return its folder."""
    for number in range(count):
        write_volume(root / "image" / f"case_{number}{suffix}", make_volume(number, **kwargs))
        write_volume(root / "label" / f"case_{number}{suffix}", make_label(seed=number, **kwargs))
    return root


def ledger(folder: Path) -> dict[str, dict]:
    """Return the last ledger entry of every case."""
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    return {entry["case"]: entry for entry in map(json.loads, lines)}
