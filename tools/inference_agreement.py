"""Do Python, the command and an ONNX file say the same of every voxel? python tools/inference_agreement.py

Also section `agreement` of tools/bench_inference.py. It needs a trained model (`mmrun 1.0 --models unet_small`) and its data.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

TIE = 1e-4
"""Difference of the two largest logits below which either class may win."""


def agreement(options: argparse.Namespace) -> None:
    """Predict all validation and test cases of a trained model in every way, and compare the labels voxel by voxel.

    Labels may only differ where the two largest logits are within `TIE`, judged by PyTorch's averaged probabilities.

    Args:
        options: May have ``experiment``, ``model`` and ``device``.
    """
    from itkit.deploy import Predictor
    from itkit.deploy.trained import of_experiment
    from itkit.deploy.trained_export import export_trained
    from itkit.errors import ItkitError
    from itkit.io.volumes import read_volume

    console = Console(width=150)
    experiment, name_of_model = getattr(options, "experiment", "1.0"), getattr(options, "model", "unet_small")
    try:
        trained = of_experiment(experiment, name_of_model)
    except ItkitError as error:
        console.print(f"agreement: not measured; {error}", markup=False)
        return
    cases = list(images_of(trained.config))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        console.print(export_trained(trained, file).describe())
        (Path(folder) / "in").mkdir()
        for case in cases:
            (Path(folder) / "in" / case.name).symlink_to(case.resolve())
        model = ["--experiment", experiment, "--model", name_of_model]
        for name, words in (("torch", model), ("onnx", ["--onnx", str(file)])):
            command = [
                sys.executable,
                "-m",
                "itkit.cli",
                "itk_infer",
                "-q",
                "-i",
                f"{folder}/in",
                "-o",
                f"{folder}/{name}",
            ]
            subprocess.run([*command, *words, "--format", "mha"], check=True, stdout=subprocess.DEVNULL)
        python = Predictor.from_experiment(experiment, name_of_model, device=getattr(options, "device", "cpu"))
        by_onnx = Predictor.from_onnx(file)
        ways = ("the command", "Python with the ONNX file", "the command with the ONNX file")
        differing, tied = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
        voxels = ties = 0
        for case in track(cases, "comparing", console=Console(stderr=True), transient=True):
            prediction = python(case, probabilities=True, confidence=False)
            is_tie = tie_of(prediction.probabilities)
            voxels, ties = voxels + is_tie.size, ties + int(is_tie.sum())
            name = case.name.partition(".")[0]
            others = (
                read_volume(f"{folder}/torch/{name}.mha").array,
                by_onnx(case, confidence=False).labels.array,
                read_volume(f"{folder}/onnx/{name}.mha").array,
            )
            for way, labels in zip(ways, others, strict=True):
                apart = labels != prediction.labels.array
                differing[way] += int(apart.sum())
                tied[way] += int((apart & is_tie).sum())
    table = Table("against Python with PyTorch", "cases", "voxels", "ties", "differ", "of them ties", "other than ties")
    for way in ways:
        rest = differing[way] - tied[way]
        table.add_row(
            way, *(f"{value:,}" for value in (len(cases), voxels, ties, differing[way], tied[way])), f"[bold]{rest}"
        )
    console.print(table)
    console.print(f"ties: voxels whose two largest logits differ by less than {TIE:g}")
    if any(differing[way] != tied[way] for way in ways):
        raise SystemExit("the ways of predicting do not agree.")


def images_of(config: dict) -> Iterator[Path]:
    """Yield the images of the validation and of the test split."""
    from mmengine.registry import DefaultScope

    from itkit.deploy.trained import dataset_of
    from itkit.registry import DATASETS

    for part in ("val", "test"):
        with DefaultScope.overwrite_default_scope("itkit"):
            dataset = DATASETS.build({**dataset_of(config, part), "pipeline": []})
        for number in range(len(dataset)):
            yield Path(dataset.get_data_info(number)["img_path"])


def tie_of(probabilities: np.ndarray) -> np.ndarray:
    """Return where the two largest logits of (K, Z, Y, X) probabilities (one: of the foreground) differ by less than `TIE`."""
    shares = np.concatenate([1 - probabilities, probabilities]) if len(probabilities) == 1 else probabilities
    second, first = np.partition(shares.astype(np.float64), -2, axis=0)[-2:]
    return np.log(first) - np.log(np.maximum(second, 1e-300)) < TIE


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="1.0", help="as mmrun takes it (default 1.0)")
    parser.add_argument("--model", default="unet_small", help="its model (default unet_small)")
    parser.add_argument("--device", default="cpu", help="where PyTorch computes (default cpu)")
    agreement(parser.parse_args())


if __name__ == "__main__":
    main()
