"""Time a training step (forward and backward) of the zoo's networks next to the public implementations that install here.

    python tools/bench_models.py                    all pairs, small inputs, one thread
    python tools/bench_models.py UNETR --repeats 9

Both of a pair run in turn in one process, now the one first and now the other. The figures are the fastest step in CPU seconds,
and the median of the ratios of two steps that followed each other. The numbers of parameters that take part are compared: a pair
is the same network.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks import nets
from torch import Tensor, nn

from itkit.models import UNETR, EfficientNet, MedNeXt, MoCoV3, SegFormer


@dataclass(frozen=True)
class Pair:
    """The same network, ours and a public one.

    Attributes:
        name: Of the network and what it is compared with.
        ours: Builds ours.
        theirs: Builds the other.
        size: Shape of the input (N, C, ...).
    """

    name: str
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    size: tuple[int, ...]


class MMSegFormer(nn.Module):
    """SegFormer out of the parts of MMSegmentation."""

    def __init__(self, embed_dims: int, num_layers: tuple[int, ...], channels: int, classes: int):
        super().__init__()
        from mmseg.models import MixVisionTransformer, SegformerHead

        self.backbone = MixVisionTransformer(
            in_channels=3,
            embed_dims=embed_dims,
            num_layers=num_layers,
            num_heads=(1, 2, 5, 8),
            qkv_bias=True,
            drop_path_rate=0.1,
        )
        widths = [embed_dims * heads for heads in (1, 2, 5, 8)]
        self.decode_head = SegformerHead(
            in_channels=widths,
            in_index=[0, 1, 2, 3],
            channels=channels,
            num_classes=classes,
            norm_cfg=dict(type="BN"),
            align_corners=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits at a quarter of the size."""
        return self.decode_head(self.backbone(x))


class MONAIEncoder(nn.Module):
    """MONAI's vision transformer with a class token, as far as MoCo's encoder goes."""

    def __init__(self):
        super().__init__()
        self.net = nets.ViT(3, 224, 16, 384, 1536, num_heads=12, classification=True, qkv_bias=True, spatial_dims=2)
        self.net.classification_head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the class token."""
        return self.net(x)[0]


def our_encoder() -> nn.Module:
    """Return the transformer of MoCo v3 without its projection, all of it trained."""
    net = MoCoV3(encoder="vit_small", freeze_patches=False).base_encoder
    net.head = nn.Identity()
    return net


MEDNEXT = dict(in_channels=1, num_classes=3, variant="S", kernel_size=3)
PAIRS = (
    Pair(
        "UNETR, MONAI",
        lambda: UNETR(3, 1, 3, 48),
        lambda: nets.UNETR(1, 3, 48, proj_type="perceptron", conv_block=True, norm_name="instance"),
        (1, 1, 48, 48, 48),
    ),
    Pair(
        "MedNeXt S, MONAI",
        lambda: MedNeXt(**MEDNEXT),
        lambda: nets.MedNeXtS(spatial_dims=3, in_channels=1, out_channels=3),
        (1, 1, 48, 48, 48),
    ),
    Pair(
        "MedNeXt S 2D, MONAI",
        lambda: MedNeXt(**MEDNEXT, spatial_dims=2),
        lambda: nets.MedNeXtS(spatial_dims=2, in_channels=1, out_channels=3),
        (2, 1, 160, 160),
    ),
    Pair(
        "SegFormer B0, MMSegmentation",
        lambda: SegFormer(3, 19, "B0", full_size=False),
        lambda: MMSegFormer(32, (2, 2, 2, 2), 256, 19),
        (2, 3, 192, 192),
    ),
    Pair(
        "SegFormer B2, MMSegmentation",
        lambda: SegFormer(3, 19, "B2", full_size=False),
        lambda: MMSegFormer(64, (3, 4, 6, 3), 768, 19),
        (1, 3, 160, 160),
    ),
    Pair(
        "EfficientNet B0, MONAI",
        lambda: EfficientNet(in_channels=3, num_classes=10, variant="B0"),
        lambda: nets.EfficientNetBN("efficientnet-b0", pretrained=False, num_classes=10),
        (4, 3, 224, 224),
    ),
    Pair("ViT-S of MoCo v3, MONAI", our_encoder, MONAIEncoder, (2, 3, 224, 224)),
)


def step_seconds(net: nn.Module, x: Tensor) -> float:
    """Return CPU seconds of a forward and a backward pass."""
    net.zero_grad(set_to_none=True)
    begin = time.process_time()
    answer = net(x)
    for tensor in [answer] if isinstance(answer, Tensor) else answer:
        tensor.float().square().mean().backward()
    return time.process_time() - begin


def used_parameters(net: nn.Module) -> int:
    """Return the parameters that have a gradient."""
    return sum(p.numel() for p in net.parameters() if p.grad is not None)


def compare(pair: Pair, repeats: int) -> tuple[float, float, float, int, int]:
    """Return the fastest step of ours and theirs, the ratio, and the parameters that took part."""
    torch.manual_seed(0)
    ours, theirs, x = pair.ours().train(), pair.theirs().train(), torch.randn(pair.size)
    step_seconds(ours, x), step_seconds(theirs, x)
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats):
        for which in (0, 1) if i % 2 else (1, 0):
            times[which].append(step_seconds((ours, theirs)[which], x))
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return min(times[0]), min(times[1]), ratio, used_parameters(ours), used_parameters(theirs)


def main() -> None:
    """Read the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only pairs whose name contains one of these words")
    parser.add_argument("--repeats", type=int, default=7, help="steps of each (default 7)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.stdout.write(
        "| network, compared with | input | ours, CPU s | theirs, CPU s | ours / theirs |\n|---|---|---|---|---|\n"
    )
    for pair in PAIRS:
        if given.names and not any(name in pair.name for name in given.names):
            continue
        ours, theirs, ratio, count, other = compare(pair, given.repeats)
        note = "" if count == other else f" ({count:,} and {other:,} parameters)"
        size = " x ".join(map(str, pair.size))
        sys.stdout.write(f"| {pair.name}{note} | {size} | {ours:.3f} | {theirs:.3f} | {ratio:.2f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
