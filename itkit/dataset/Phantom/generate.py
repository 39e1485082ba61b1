"""Make CT-like volumes with known truth."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from itkit._support.files import write_json
from itkit.dataset.Phantom.meta import CLASSES, COUNTS, NAME, SIZE_ZYX, SPACING_ZYX, document
from itkit.dataset.splits import SPLIT_NAME
from itkit.errors import DataError
from itkit.io.volumes import Volume, write_volume
from itkit.process.manifest import update_manifest

LIVER, KIDNEY, SPINE, LESION = (CLASSES.index(name) for name in ("liver", "kidney", "spine", "lesion"))
NOISE_HU = 12.0
"""Standard deviation of the noise."""
LESION_RADIUS_MM = (3.6, 5.2)
"""With the spacing of the phantoms: 4 to 6 voxels across, as the cube root of the volume."""
LESION_CONTRAST_HU = (60.0, 90.0)
"""How much darker a lesion is than its liver; about the density of the tissue around the liver."""
BIAS_HU = 10.0
"""Largest slow change of the density over the volume."""
EDGE_MM = 0.6
"""Half-width of the soft edge of every structure."""


def generate_case(seed: int, number: int) -> tuple[Volume, Volume]:
    """Return image (int16, HU) and label (uint8) of one phantom.

    Args:
        seed: Seed of the dataset.
        number: Number of the case; image and label depend on the two alone.
    """
    rng = np.random.default_rng([seed, number])
    scene = _Scene(rng)
    scene.place_body()
    spine_xy = rng.uniform(-2, 2), 15 + rng.uniform(-1.5, 1.5)
    scene.place_spine(spine_xy)
    scene.place_organs(spine_xy)
    scene.place_lesions()
    extent_xyz = [(count - 1) * step for count, step in zip(SIZE_ZYX[::-1], SPACING_ZYX[::-1], strict=True)]
    origin_xyz = tuple(-extent / 2 for extent in extent_xyz)
    return tuple(Volume(array, SPACING_ZYX, origin_xyz) for array in (scene.image(), scene.label))


def generate_dataset(root: str | os.PathLike, *, seed: int = 0) -> None:
    """Write the whole dataset, ready with ``meta.json``, ``series_meta.json`` and ``split.json``.

    It is made beside `root` and moved there when complete. Where another process was faster, its result stays.

    Args:
        root: Folder to make; must not exist, or be empty.
        seed: Another seed gives other phantoms.

    Raises:
        DataError: If the place cannot be written, or `root` holds something else.
    """
    root = Path(os.path.abspath(root))
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".part-{root.name}-", dir=root.parent))
    except OSError as error:
        raise DataError(f"the phantoms cannot be written ({error.strerror}).", root) from error
    try:
        split: dict[str, list[str]] = {}
        number = 0
        for part, count in COUNTS.items():
            split[part] = [f"phantom_{number + k:03d}" for k in range(count)]
            for case_id in split[part]:
                image, label = generate_case(seed, number)
                write_volume(work / "image" / f"{case_id}.mha", image)
                write_volume(work / "label" / f"{case_id}.mha", label)
                number += 1
        write_json(work / SPLIT_NAME, split)
        update_manifest(work)
        write_json(work / "meta.json", document(seed))
        umask = os.umask(0)
        os.umask(umask)
        work.chmod(0o777 & ~umask)
        with contextlib.suppress(FileExistsError, OSError):
            os.rename(work, root)
        if work.exists() and not (root / "meta.json").is_file():
            raise DataError("the phantoms cannot be put here: the folder holds something else.", root)
    except OSError as error:
        raise DataError(f"the phantoms cannot be written ({error.strerror}).", root) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Scene:
    """A volume in the making; places are in mm from its centre, order (x to the left, y to the back, z upwards)."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        z, y, x = np.meshgrid(
            *((np.arange(n) - (n - 1) / 2) * step for n, step in zip(SIZE_ZYX, SPACING_ZYX, strict=True)), indexing="ij"
        )
        self.points = np.stack([x, y, z], -1).astype(np.float32)
        self.warped = self.points + np.stack([self._slow_field(2.0) for _ in range(3)], -1)
        self.density = np.full(SIZE_ZYX, -1000.0, np.float32)
        self.label = np.zeros(SIZE_ZYX, np.uint8)
        self.liver = (np.zeros(3), np.ones(3), np.eye(3))
        self.liver_hu = 0.0

    def place_body(self) -> None:
        """Skin, fat, muscle."""
        radii = np.array([36.0, 27.0]) + self.rng.uniform(-1.5, 1.5, 2)
        fat = self.rng.uniform(3, 6)
        centre = np.zeros(2)
        for thickness, hu in ((0.0, 10.0), (1.5, -100.0), (1.5 + fat, self.rng.uniform(35, 55))):
            self._blend(self._inside_column(centre, radii - thickness), hu)

    def place_spine(self, centre_xy: tuple[float, float]) -> None:
        """Vertebral column: a bright shell, a darker core, discs."""
        radii = np.array([7.5, 6.0]) + self.rng.uniform(-0.7, 0.7, 2)
        column = self._inside_column(np.array(centre_xy), radii)
        core = self._inside_column(np.array(centre_xy), radii - 1.8)
        self._blend(column, self.rng.uniform(260, 420), SPINE)
        self._blend(core, self.rng.uniform(130, 220))
        discs = 0.5 + 0.5 * np.sin(self.points[..., 2] / 24 * 2 * np.pi + self.rng.uniform(0, 6))
        self._blend(column * (discs > 0.9), self.rng.uniform(80, 120))

    def place_organs(self, spine_xy: tuple[float, float]) -> None:
        """What is labelled, and what only looks like it."""
        rng = self.rng
        phase = rng.uniform(0, 1)  # of the contrast agent
        aorta = np.array(spine_xy) + (rng.uniform(1, 5), -11.0)
        self._blend(self._inside_column(aorta, np.full(2, rng.uniform(3, 4.5))), 90 + 110 * phase)
        self.liver_hu = rng.uniform(95, 120)
        self.liver = (
            np.array([-15.0, -5.0, 4.0]) + rng.uniform(-2.5, 2.5, 3),
            np.array([14.0, 14.5, 22.0]) * rng.uniform(0.9, 1.1, 3),
            self._rotation(20),
        )
        self._blend(self._inside_ellipsoid(*self.liver), self.liver_hu, LIVER)
        spleen = np.array([22.0, 1.0, 14.0]) + rng.uniform(-2, 2, 3)
        self._blend(
            self._inside_ellipsoid(spleen, np.array([6.5, 8.5, 14.0]) * rng.uniform(0.85, 1.15, 3), self._rotation(20)),
            self.liver_hu + rng.uniform(-5, 25),
        )
        for side in (-1, 1):
            centre = np.array([side * 17.5, 13.5, -10.0]) + rng.uniform(-2, 2, 3)
            radii = np.array([5.5, 5.5, 12.5]) * rng.uniform(0.9, 1.15, 3)
            self._blend(self._inside_ellipsoid(centre, radii, self._rotation(15)), 85 + 75 * phase, KIDNEY)
        for _ in range(4):  # bowel
            centre = np.array([rng.uniform(-8, 22), rng.uniform(-16, -6), rng.uniform(-32, -8)])
            radii = rng.uniform(3, 6.5, 3)
            free = self.label == 0
            self._blend(self._inside_ellipsoid(centre, radii, self._rotation(90)) * free, rng.uniform(0, 120))

    def place_lesions(self) -> None:
        """Two or three small, darker balls, deep enough in the liver."""
        centre, radii, rotation = self.liver
        inner = self._inside_ellipsoid(centre, radii - 6.0, rotation) > 0.5
        for _ in range(self.rng.integers(2, 4)):
            candidates = np.argwhere(inner & (self.label == LIVER))
            where = tuple(candidates[self.rng.integers(len(candidates))])
            # The ball is round in space, not in the warped organ: measured where it lies.
            offset = self.points - self.points[where] - self.rng.uniform(-0.5, 0.5, 3) * SPACING_ZYX[::-1]
            axes = self.rng.uniform(*LESION_RADIUS_MM) * self.rng.uniform(0.9, 1.1, 3)
            distance = (np.sqrt(((offset / axes) ** 2).sum(-1)) - 1) * axes.mean()
            self._blend(_soft(distance), self.liver_hu - self.rng.uniform(*LESION_CONTRAST_HU), LESION)

    def image(self) -> np.ndarray:
        """The scanner's view: int16, HU."""
        noise = ndimage.gaussian_filter(self.rng.normal(size=SIZE_ZYX), (0.3, 0.7, 0.7))
        seen = self.density + self._slow_field(BIAS_HU) + noise * (NOISE_HU / noise.std())
        return np.clip(np.rint(seen), -1024, 3071).astype(np.int16)

    def _blend(self, inside: np.ndarray, hu: float, value: int | None = None) -> None:
        self.density += inside * (np.float32(hu) - self.density)
        if value is not None:
            self.label[inside > 0.5] = value

    def _inside_column(self, centre_xy: np.ndarray, radii_xy: np.ndarray) -> np.ndarray:
        x, y = (self.warped[..., k] - np.float32(centre_xy[k]) for k in range(2))
        x, y = x / np.float32(radii_xy[0]), y / np.float32(radii_xy[1])
        return _soft((np.sqrt(x * x + y * y) - 1) * np.float32(radii_xy.mean()))

    def _inside_ellipsoid(self, centre: np.ndarray, radii: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        scaled = (self.warped - centre.astype(np.float32)) @ (rotation / radii).astype(np.float32)
        return _soft((np.sqrt(np.einsum("...k,...k", scaled, scaled)) - 1) * np.float32(radii.mean()))

    def _rotation(self, degrees: float) -> np.ndarray:
        return Rotation.from_euler("xyz", self.rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()

    def _slow_field(self, size: float) -> np.ndarray:
        """A smooth random field: the lowest cosines along each axis, largest absolute value `size`."""
        waves = [np.cos(np.pi * np.outer(np.arange(n) + 0.5, np.arange(3)) / n).astype(np.float32) for n in SIZE_ZYX]
        weights = self.rng.uniform(-1, 1, (3, 3, 3)).astype(np.float32)
        field = np.einsum("zi,yj,xk,ijk->zyx", *waves, weights, optimize=True)
        return field * np.float32(size / np.abs(field).max())


def _soft(distance_mm: np.ndarray) -> np.ndarray:
    """1 inside (negative distance), 0 outside, with a soft edge as of voxels that are partly filled."""
    return 1 / (1 + np.exp(np.clip(distance_mm / EDGE_MM * 2, -30, 30)))


def main(arguments: list[str] | None = None) -> int:
    """Write the phantoms to a folder; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m itkit.dataset.Phantom",
        description=__doc__,
        epilog=f"Writes {sum(COUNTS.values())} cases of {' x '.join(map(str, SIZE_ZYX))} voxels with the classes "
        f"{', '.join(CLASSES)} as image/, label/, meta.json and split.json, the layout of every dataset. The same seed "
        "gives the same files.",
    )
    parser.add_argument("root", metavar="DST", help=f"folder to make, e.g. $ITKIT_DATA/{NAME}")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other phantoms (default 0)")
    options = parser.parse_args(arguments)
    try:
        generate_dataset(options.root, seed=options.seed)
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0
