"""Time the measures of a case, or the losses, beside MONAI and DeepMind's surface-distance, on one core.

Run ``python tools/bench_metrics.py [--data FOLDER]``; FOLDER is a converted dataset (``label/``) whose label maps are
then measured against shifted copies of themselves. Without it, random blobs of the same size are used. ``--organs`` times
HD95 and NSD of 13 organs in 256 x 256 x 256 voxels beside surface-distance, for predictions that are near and far off, and
says how much the numbers differ.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from scipy import ndimage

from itkit.measures.case import case_values

OVERLAP = ("Dice", "IoU", "Precision", "Recall")
ALL = (*OVERLAP, "HD95", "NSD")


def blobs(shape: tuple[int, ...], num_classes: int, sigma: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a random label map with smooth regions, and a distorted copy as its prediction (uint8)."""
    generator = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(generator.standard_normal(shape), sigma)
    noise = ndimage.gaussian_filter(generator.standard_normal(shape), sigma / 2)
    field, noise = field / field.std(), noise / noise.std()
    edges = np.linspace(0.5, 2.0, num_classes - 1)
    return np.digitize(field, edges).astype(np.uint8), np.digitize(field + 0.15 * noise, edges).astype(np.uint8)


def organs(size: int = 256, count: int = 13, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a label map of `count` bumpy ellipsoids of different sizes, and one with other bumps (uint8)."""
    generator = np.random.default_rng(seed)
    truth, prediction = np.zeros((2, size, size, size), np.uint8)
    for label in range(1, count + 1):
        centre, radius = generator.uniform(0.2, 0.8, 3) * size, generator.uniform(0.03, 0.15, 3) * size
        low = np.maximum(0, centre - 1.6 * radius).astype(int)
        high = np.minimum(size, centre + 1.6 * radius + 1).astype(int)
        box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
        axes = ((np.arange(a, b) - c) / r for a, b, c, r in zip(low, high, centre, radius, strict=True))
        distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
        bumps = []
        for _ in range(2):
            coarse = ndimage.gaussian_filter(generator.standard_normal((16, 16, 16)), 1.0)
            bumps.append(
                ndimage.zoom(coarse / coarse.std(), (high - low) / 16, order=1, grid_mode=True, mode="nearest")
            )
        truth[box][distance + 0.12 * bumps[0] < 1] = label
        prediction[box][distance + 0.12 * bumps[0] + 0.05 * bumps[1] < 1] = label
    return truth, prediction


def fastest(function, repeats: int) -> float:
    """Return the shortest of `repeats` times of a call, in ms of CPU time: other processes on the machine do not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def bench_organs(spacing: tuple[float, ...] = (1.5, 0.8, 0.8)) -> None:
    """Time HD95 and NSD of 13 organs beside surface-distance, and compare the numbers."""
    from surface_distance import metrics

    truth, near = organs()
    cases = {"near": near, "2 voxels off": np.roll(near, 2, 2), "10 voxels off": np.roll(near, 10, 2)}
    print(f"{'13 organs, 256 x 256 x 256':28}{'itkit':>10}{'surface-distance':>18}{'ratio':>8}   largest difference")
    for name, prediction in cases.items():
        own = fastest(lambda: case_values(truth, prediction, 14, ("HD95", "NSD"), spacing), 3)  # noqa: B023
        other = fastest(lambda: deepmind_surface(truth, prediction, 14, spacing), 2)  # noqa: B023
        found, differences = case_values(truth, prediction, 14, ("HD95", "NSD"), spacing), []
        for label in range(1, 14):
            theirs = metrics.compute_surface_distances(truth == label, prediction == label, spacing)
            differences.append(abs(found["HD95"][label] - metrics.compute_robust_hausdorff(theirs, 95)))
            differences.append(abs(found["NSD"][label] - metrics.compute_surface_dice_at_tolerance(theirs, 1.0)))
        print(f"{name:28}{own:7.0f} ms{other:15.0f} ms{other / own:8.2f}   {max(differences):.1e}")


def monai_surface(truth: np.ndarray, prediction: np.ndarray, num_classes: int, spacing: tuple[float, ...]) -> None:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    planes = [torch.from_numpy((volume[None] == np.arange(num_classes)[:, None, None, None])[None].astype(np.float32))
              for volume in (prediction, truth)]  # fmt: skip
    compute_hausdorff_distance(*planes, percentile=95, spacing=spacing)
    compute_surface_dice(*planes, class_thresholds=[1.0] * (num_classes - 1), spacing=spacing, use_subvoxels=True)


def deepmind_surface(truth: np.ndarray, prediction: np.ndarray, num_classes: int, spacing: tuple[float, ...]) -> None:
    from surface_distance import metrics

    for label in range(1, num_classes):
        found = metrics.compute_surface_distances(truth == label, prediction == label, spacing)
        metrics.compute_robust_hausdorff(found, 95)
        metrics.compute_surface_dice_at_tolerance(found, 1.0)


def bench_losses() -> None:
    """Time Dice + cross-entropy forward and backward beside MONAI's, and plain cross-entropy for scale."""
    import torch.nn.functional as F
    from monai.losses import DiceCELoss as MonaiDiceCELoss

    from itkit.criterion import DiceCELoss

    own, monai = DiceCELoss(), MonaiDiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    losses = {
        "itkit DiceCE": own,
        "MONAI DiceCE": lambda logits, target: monai(logits, target[:, None]),
        "torch cross-entropy alone": F.cross_entropy,
    }
    for shape in ((2, 3, 40, 56, 40), (2, 14, 96, 96, 96)):
        logits = torch.randn(shape, requires_grad=True)
        target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
        for name, loss in losses.items():
            time_ms = fastest(lambda: torch.autograd.grad(loss(logits, target), logits), 20 if shape[1] == 3 else 5)  # noqa: B023
            print(f"{shape!s:24}{name:28}{time_ms:10.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of label maps to take the hippocampus case from")
    parser.add_argument("--no-oracles", action="store_true", help="time itkit only")
    parser.add_argument("--organs", action="store_true", help="time 13 organs beside surface-distance instead")
    parser.add_argument("--losses", action="store_true", help="time the losses instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    if options.losses:
        bench_losses()
        return
    if options.organs:
        bench_organs()
        return

    cases = {
        "40x56x40, 2 classes": (*blobs((40, 56, 40), 3, 6.0), 3, (1.0, 1.0, 1.0)),
        "160x256x256, 5 classes, coarse": (*blobs((160, 256, 256), 6, 20.0), 6, (2.5, 0.8, 0.8)),
        "160x256x256, 5 classes, ragged": (*blobs((160, 256, 256), 6, 6.0), 6, (2.5, 0.8, 0.8)),
    }
    if options.data:
        import SimpleITK as sitk

        path = sorted(options.data.glob("[!.]*.*"))[0]
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.uint8)
        cases = {path.name: (truth, np.roll(truth, 1, 2), int(truth.max()) + 1, (1.0, 1.0, 1.0))} | cases
    print(f"{'case':34}{'itkit overlap':>15}{'itkit HD95+NSD':>16}{'surface-distance':>18}{'MONAI':>12}   ms")
    for name, (truth, prediction, num_classes, spacing) in cases.items():
        small = truth.size < 1e6
        arguments = (truth, prediction, num_classes)
        row = [
            fastest(lambda: case_values(*arguments, OVERLAP, spacing), 5),  # noqa: B023
            fastest(lambda: case_values(*arguments, ("HD95", "NSD"), spacing), 10 if small else 2),  # noqa: B023
        ]
        if not options.no_oracles:
            for oracle in (deepmind_surface, monai_surface):
                row.append(fastest(lambda: oracle(*arguments, spacing), 3 if small else 1))  # noqa: B023
        columns = zip(row, (15, 16, 18, 12), strict=False)
        print(f"{name:34}" + "".join(f"{value:{width}.1f}" for value, width in columns))


if __name__ == "__main__":
    main()
