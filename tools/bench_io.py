"""Time reading, resampling and writing of volumes beside SimpleITK, one thread each, and compare what comes out.

Run ``python tools/bench_io.py [--ct FILE] [--size 300 512 512] [--spacing 1.5 0.75 0.75] [--repeats 2]``. FILE is a CT that is
enlarged to the size and given the noise of a scanner; without it, a phantom of ellipsoids stands in. Times are CPU seconds of
the process, the least of the repeats; both programs work on the same files in the same run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from itkit.io.resampling import resample_to_spacing, spacing_grid
from itkit.io.volumes import Volume, read_volume, to_image, write_volume

TARGET_MM = (1.0, 1.0, 1.0)


def make_ct(size: tuple[int, int, int], source: Path | None) -> np.ndarray:
    """Return an int16 CT of `size` (Z, Y, X): a real one enlarged, or ellipsoids, with correlated noise of 15 HU."""
    generator = np.random.default_rng(0)
    if source is not None:
        small = read_volume(source).array.astype(np.float32)
        values = ndimage.zoom(small, [new / old for new, old in zip(size, small.shape, strict=True)], order=1)
    else:
        z, y, x = np.ogrid[tuple(slice(-1, 1, count * 1j) for count in size)]
        values = np.full(size, -1000, np.float32)
        values[:, ((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1)[0]] = 40
        for _ in range(40):
            centre, radius = generator.uniform(-0.5, 0.5, 3), generator.uniform(0.05, 0.25, 3)
            shift = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radius, strict=True))
            values[shift < 1] = generator.choice([-850, -80, 20, 60, 110, 300, 900])
    noise = ndimage.gaussian_filter(generator.standard_normal(size, dtype=np.float32), (0.5, 0.7, 0.7))
    noise *= 15 / noise.std()
    noise[values <= -1000] *= 0.3
    return np.clip(np.rint(values + noise), -1024, 3071).astype(np.int16)


def cpu_s(function: Callable, repeats: int) -> tuple[float, object]:
    """Return the least CPU seconds of `repeats` calls, and what the last one returned."""
    times, result = [], None
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


def sitk_resample(image: sitk.Image, kind: int) -> sitk.Image:
    """Return `image` at `TARGET_MM` by SimpleITK."""
    grid = spacing_grid(Volume(np.empty(image.GetSize()[::-1], bool), image.GetSpacing()[::-1]).geometry, TARGET_MM)
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(kind)
    resampler.SetSize([int(count) for count in grid.size_zyx[::-1]])
    resampler.SetOutputSpacing(TARGET_MM[::-1])
    resampler.SetUseNearestNeighborExtrapolator(True)
    return resampler.Execute(image)


def row(name: str, theirs: float, ours: float, remark: str = "") -> None:
    print(f"| {name} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.1f} | {remark} |")


def large(folder: Path, array: np.ndarray, spacing: tuple[float, ...], repeats: int) -> None:
    """Compare one large CT, and a label map of the same size."""
    label = np.digitize(ndimage.uniform_filter(array, 9), (-500, 0, 60, 200)).astype(np.uint8)
    for title, voxels, kind, code in (
        ("CT int16", array, "image", sitk.sitkLinear),
        ("label uint8", label, "label", sitk.sitkNearestNeighbor),
    ):
        volume = Volume(voxels, spacing)
        source = folder / "in.nii.gz"
        sitk.WriteImage(to_image(volume), os.fspath(source), True)
        theirs, ours = {}, {}
        theirs["read .nii.gz"], image = cpu_s(lambda source=source: sitk.ReadImage(os.fspath(source)), repeats)
        ours["read .nii.gz"], volume = cpu_s(lambda source=source: read_volume(source), repeats)
        assert (sitk.GetArrayViewFromImage(image) == volume.array).all()
        theirs["resample"], image = cpu_s(lambda image=image, code=code: sitk_resample(image, code), repeats)
        ours["resample"], volume = cpu_s(
            lambda v=volume, kind=kind: resample_to_spacing(v, TARGET_MM, kind=kind), repeats
        )
        apart = np.abs(sitk.GetArrayViewFromImage(image).astype(int) - volume.array)
        a, b = folder / "theirs.nii.gz", folder / "ours.nii.gz"
        theirs["write .nii.gz"], _ = cpu_s(lambda image=image, a=a: sitk.WriteImage(image, os.fspath(a), True), repeats)
        ours["write .nii.gz"], _ = cpu_s(lambda volume=volume, b=b: write_volume(b, volume), repeats)
        assert (sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(b))) == volume.array).all()
        remarks = {
            "resample": f"largest difference {apart.max()}, at {(apart > 0).mean():.2%} of the voxels",
            "write .nii.gz": f"size {b.stat().st_size / a.stat().st_size:.3f} of SimpleITK's",
        }
        for step in theirs:
            row(f"{title} {'×'.join(map(str, array.shape))}, {step}", theirs[step], ours[step], remarks.get(step, ""))
        row(f"{title}, all three", sum(theirs.values()), sum(ours.values()))
        for suffix in (".mha", ".nrrd"):
            a, b = folder / f"theirs{suffix}", folder / f"ours{suffix}"
            t, _ = cpu_s(lambda image=image, a=a: sitk.WriteImage(image, os.fspath(a), True), repeats)
            o, _ = cpu_s(lambda volume=volume, b=b: write_volume(b, volume), repeats)
            row(f"{title}, write {suffix}", t, o, f"size {b.stat().st_size / a.stat().st_size:.3f} of SimpleITK's")
            t, _ = cpu_s(lambda a=a: sitk.ReadImage(os.fspath(a)), repeats)
            o, _ = cpu_s(lambda a=a: read_volume(a), repeats)
            row(f"{title}, read {suffix}", t, o)


def small(folder: Path, count: int, repeats: int) -> None:
    """Compare many small files (36 × 50 × 35, the size of a hippocampus), where the work per file counts."""
    generator = np.random.default_rng(0)
    field = ndimage.gaussian_filter(generator.standard_normal((36, 50, 35)), 2)
    field /= field.std()
    cases = {
        "float32 MR": (1000 + 300 * field + generator.normal(0, 20, field.shape)).astype(np.float32),
        "uint8 label": np.digitize(field, (1, 1.8)).astype(np.uint8),
    }
    for title, voxels in cases.items():
        volume, image = Volume(voxels), to_image(Volume(voxels))
        for suffix in (".nii.gz", ".mha", ".nrrd"):
            a, b = ([folder / f"{who}{k}{suffix}" for k in range(count)] for who in ("a", "b"))
            t, _ = cpu_s(
                lambda a=a, image=image: [sitk.WriteImage(image, os.fspath(path), True) for path in a], repeats
            )
            o, _ = cpu_s(lambda b=b, volume=volume: [write_volume(path, volume) for path in b], repeats)
            size = b[0].stat().st_size / a[0].stat().st_size
            row(
                f"{title}, {count} files, write {suffix}",
                t,
                o,
                f"size {size:.2f} of SimpleITK's; ours are flushed to disk",
            )
            t, _ = cpu_s(lambda a=a: [sitk.ReadImage(os.fspath(path)) for path in a], repeats)
            o, _ = cpu_s(lambda a=a: [read_volume(path) for path in a], repeats)
            row(f"{title}, {count} files, read {suffix}", t, o)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, help="a CT to enlarge (default: ellipsoids)")
    parser.add_argument("--size", type=int, nargs=3, default=(300, 512, 512), help="size of the large volume, Z Y X")
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 0.75, 0.75), help="its spacing in mm, Z Y X")
    parser.add_argument("--files", type=int, default=100, help="number of small files (default 100)")
    parser.add_argument("--repeats", type=int, default=2, help="least of so many times (default 2)")
    parser.add_argument("--only", choices=("large", "small"), help="measure only one of the two")
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    print("| what | SimpleITK, CPU s | itkit, CPU s | times as fast | |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        if args.only != "small":
            large(Path(name), make_ct(tuple(args.size), args.ct), tuple(args.spacing), args.repeats)
        if args.only != "large":
            small(Path(name), args.files, args.repeats)


if __name__ == "__main__":
    main()
