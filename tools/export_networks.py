"""Export networks to ONNX and show how far ONNX Runtime's numbers are from PyTorch's: python tools/export_networks.py

Each network of the zoo in its small configuration, MONAI's UNet and SubvoxelUNet, with random weights, by the way that
trained models go (task model, recipe, `export_onnx`): with windows of one size, and with sizes that vary.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from monai.networks.nets import UNet
from torch import nn

from itkit.criterion import DiceCELoss
from itkit.deploy.export import export_onnx
from itkit.deploy.recipe import Recipe
from itkit.deploy.trained_export import LogitsOf
from itkit.errors import ExportError
from itkit.mm.task_models import SemSeg2D, SemSeg3D
from itkit.models import SubvoxelUNet
from itkit.models.zoo import cards


def networks() -> Iterator[tuple[str, nn.Module, int, int, tuple[int, ...]]]:
    """Yield name, network, channels, classes and window of each network."""
    yield "SubvoxelUNet", SubvoxelUNet(in_channels=1, num_classes=3, widths=(24, 48, 96)), 1, 3, (32, 48, 32)
    yield "monai.UNet", UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=2), 1, 3, (32, 48, 32)
    for card in cards().values():
        if card.segments:
            small = card.small
            yield card.name, card.build(small), small.get("in_channels", 1), small["num_classes"], card.small_size


def tried(network: nn.Module, channels: int, classes: int, size: tuple[int, ...], dynamic: bool, folder: Path) -> str:
    """Return the cell of the table: largest difference and largest logit, or what hinders."""
    flat = len(size) == 2
    kind = SemSeg2D if flat else SemSeg3D
    model = kind(network, DiceCELoss(), num_classes=classes).eval()
    names = ("background", *(f"class {number}" for number in range(1, max(2, classes))))
    recipe = Recipe(
        channels,
        names,
        activation="sigmoid" if classes == 1 else "softmax",
        patch_size_zyx=(1, *size) if flat else size,
        slice_neighbours=0 if flat else None,
    )
    try:
        made = export_onnx(LogitsOf(model), recipe, folder / "n.onnx", dynamic_size=dynamic, overwrite=True)
    except ExportError as error:
        return f"no ({type(error.__cause__ or error).__name__})"
    return f"{made.largest_difference:.1e} of {made.largest_logit:.2g}"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["*"], help="networks, e.g. SegFormer* (default: all)")
    wanted = parser.parse_args().names
    print("| network | window | one size: largest difference | sizes that vary |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        for name, network, channels, classes, size in networks():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted):
                cells = [tried(network, channels, classes, size, dynamic, Path(folder)) for dynamic in (False, True)]
                print(f"| {name} | {' × '.join(map(str, size))} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
