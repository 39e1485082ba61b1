"""UNet3+: a U-Net whose every decoder level sees all scales of the encoder and of the decoder below it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.registry import MODELS

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {2: F.max_pool2d, 3: F.max_pool3d}
GLOBAL_POOLS = {2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
LEVELS = 5


class ConvolutionPair(nn.Module):
    """Two 3-wide convolutions, each followed by batch normalisation and ReLU.

    Args:
        dims: 2 or 3.
        in_width: Channels of the input.
        out_width: Channels of the output.
    """

    def __init__(self, dims: int, in_width: int, out_width: int):
        super().__init__()
        conv, norm = CONVOLUTIONS[dims], NORMS[dims]
        self.conv1, self.conv2 = (
            nn.Sequential(conv(width, out_width, 3, padding=1), norm(out_width), nn.ReLU())
            for width in (in_width, out_width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_width, ...) for `x` (N, in_width, ...)."""
        return self.conv2(self.conv1(x))


@MODELS.register_module()
class UNet3Plus(nn.Module):
    """UNet3+ with full-scale skips: (N, C, ...) to logits (N, K, ...) of the same size.

    Official checkpoints of all three published forms load strictly.

    Args:
        spatial_dims: 2, as published, or 3.
        in_channels: C.
        num_classes: K.
        widths: Channels of the five encoder levels, finest first. Each decoder level has five times the first.
        deep_supervision: Return a list of five maps at full size, from the finest decoder level to the bottleneck; in
            training and in evaluation.
        class_guided: With deep supervision: a classifier on the bottleneck says whether there is anything to segment;
            where it says no, all logits of that image are 0 (CGM). The segmentation's losses give the classifier no
            gradient: train it on the answers of `classify`.
        logits: False: return the sigmoid of the logits, as the original does.

    Shape:
        Input (N, C, Y, X), or (N, C, Z, Y, X) for ``spatial_dims=3``; sizes are multiples of 16. In training a batch of
        one must be larger than 16 on some axis.

    Raises:
        ConfigError: If arguments do not fit together, or an input has another number of axes or channels, or a size that
            is not a multiple of 16.

    Source: Huang et al., UNet 3+: A Full-Scale Connected UNet for Medical Image Segmentation, ICASSP 2020,
    https://arxiv.org/abs/2004.08790. The original code has no licence; this is code of its own.
    """

    divisor = 2 ** (LEVELS - 1)

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        deep_supervision: bool = False,
        class_guided: bool = False,
        logits: bool = True,
    ):
        super().__init__()
        if spatial_dims not in CONVOLUTIONS:
            raise ConfigError(f"UNet3Plus: spatial_dims must be 2 or 3, found {spatial_dims!r}.")
        widths = list(widths)
        if len(widths) != LEVELS or min(widths) < 1:
            raise ConfigError(f"UNet3Plus: widths needs five positive numbers, finest level first, found {widths}.")
        if min(in_channels, num_classes) < 1:
            raise ConfigError(
                f"UNet3Plus: in_channels and num_classes must be at least 1, found {in_channels} and {num_classes}."
            )
        if class_guided and not deep_supervision:
            raise ConfigError("UNet3Plus: class_guided=True is published with deep_supervision=True; set both.")
        conv, norm = CONVOLUTIONS[spatial_dims], NORMS[spatial_dims]
        self.spatial_dims, self.in_channels, self.num_classes = spatial_dims, in_channels, num_classes
        self.deep_supervision, self.class_guided, self.logits = deep_supervision, class_guided, logits
        cat, joined = widths[0], LEVELS * widths[0]
        for level, (before, width) in enumerate(zip([in_channels, *widths], widths, strict=False), 1):
            self.add_module(f"conv{level}", ConvolutionPair(spatial_dims, before, width))
        for target in range(LEVELS - 1, 0, -1):
            for source in range(1, LEVELS + 1):
                width = joined if target < source < LEVELS else widths[source - 1]
                name = _name_of(source, target)
                self.add_module(f"{name}_conv", conv(width, cat, 3, padding=1))
                self.add_module(f"{name}_bn", norm(cat))
            self.add_module(f"conv{target}d_1", conv(joined, joined, 3, padding=1))
            self.add_module(f"bn{target}d_1", norm(joined))
        for level in range(1, LEVELS + 1 if deep_supervision else 2):
            width = widths[-1] if level == LEVELS else joined
            self.add_module(f"outconv{level}", conv(width, num_classes, 3, padding=1))
        if class_guided:
            # Dropout, then whether there is nothing (0) or something (1) to segment.
            self.cls = nn.Sequential(
                nn.Dropout(0.5), conv(widths[-1], 2, 1), GLOBAL_POOLS[spatial_dims](1), nn.Sigmoid(), nn.Flatten()
            )
        for module in self.modules():
            if isinstance(module, conv):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, K, ...) of the size of `inputs`; with deep supervision a list of five, the finest level first.

        Args:
            inputs: (N, C, Y, X), or (N, C, Z, Y, X) for ``spatial_dims=3``.
        """
        encoded = self._encode(inputs)
        decoded = {LEVELS: encoded[LEVELS]}
        for target in range(LEVELS - 1, 0, -1):
            scales = [
                self._skip(encoded[source] if source <= target else decoded[source], source, target)
                for source in range(1, LEVELS + 1)
            ]
            x = self.get_submodule(f"conv{target}d_1")(torch.cat(scales, 1))
            decoded[target] = F.relu(self.get_submodule(f"bn{target}d_1")(x))
        outputs = [self.outconv1(decoded[1])]
        if self.deep_supervision:
            for level in range(2, LEVELS + 1):
                outputs.append(self._enlarge(self.get_submodule(f"outconv{level}")(decoded[level]), 2 ** (level - 1)))
        if self.class_guided:
            present = self.cls(encoded[LEVELS]).argmax(1).to(inputs.dtype)
            outputs = [output * present.view(-1, *[1] * (inputs.ndim - 1)) for output in outputs]
        if not self.logits:
            outputs = [output.sigmoid() for output in outputs]
        return outputs if self.deep_supervision else outputs[0]

    def classify(self, inputs: Tensor) -> Tensor:
        """Return what the classifier of ``class_guided=True`` says of each image, with gradients.

        Args:
            inputs: As in `forward`.

        Returns:
            (N, 2), each between 0 and 1: for nothing and for something to segment.

        Raises:
            ConfigError: If the network has no classifier.
        """
        if not self.class_guided:
            raise ConfigError("UNet3Plus: only a network with class_guided=True has a classifier.")
        return self.cls(self._encode(inputs)[LEVELS])

    def _encode(self, inputs: Tensor) -> dict[int, Tensor]:
        """Return the encoder's features by level, 1 the finest."""
        self._check(inputs)
        encoded = {1: self.conv1(inputs)}
        for level in range(2, LEVELS + 1):
            pooled = POOLS[self.spatial_dims](encoded[level - 1], 2)
            encoded[level] = self.get_submodule(f"conv{level}")(pooled)
        return encoded

    def _skip(self, x: Tensor, source: int, target: int) -> Tensor:
        """Return the features `x` of level `source` as one fifth of what level `target` sees, at its size."""
        if source < target:
            x = POOLS[self.spatial_dims](x, 2 ** (target - source))
        elif source > target:
            x = self._enlarge(x, 2 ** (source - target))
        name = _name_of(source, target)
        return F.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(f"{name}_conv")(x)))

    def _enlarge(self, x: Tensor, factor: int) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode=LINEAR[self.spatial_dims], align_corners=False)

    def _check(self, inputs: Tensor) -> None:
        size = tuple(inputs.shape[2:])
        if inputs.ndim != self.spatial_dims + 2 or inputs.shape[1] != self.in_channels:
            raise ConfigError(
                f"UNet3Plus takes (N, {self.in_channels}, {'Z, ' * (self.spatial_dims == 3)}Y, X), found "
                f"{tuple(inputs.shape)}. Check spatial_dims, in_channels and the pipeline."
            )
        if any(n % self.divisor for n in size):
            raise ConfigError(
                f"UNet3Plus: every size must be a multiple of {self.divisor}, found {size}. Choose such a patch size."
            )
        if self.training and inputs.shape[0] == 1 and max(size) == self.divisor:
            raise ConfigError(
                f"UNet3Plus: size {size} leaves one cell at the bottleneck, which batch normalisation cannot train on in a "
                f"batch of one. Make one axis at least {2 * self.divisor}, or the batch larger."
            )


def _name_of(source: int, target: int) -> str:
    """Return the original's name of the way from level `source` to decoder level `target`."""
    if source < target:
        return f"h{source}_PT_hd{target}"
    return f"h{source}_Cat_hd{target}" if source == target else f"hd{source}_UT_hd{target}"


PUBLISHED = {"in_channels": 3, "num_classes": 1, "logits": False}
SUPERVISED = {**PUBLISHED, "deep_supervision": True}
CARD = NetworkCard(
    name="UNet3Plus",
    factory="itkit.models.unet3plus:UNet3Plus",
    title="UNet 3+",
    paper="Huang et al., ICASSP 2020, https://arxiv.org/abs/2004.08790",
    licence="original: no licence file; ours is code of its own",
    dims=(2, 3),
    configurations={
        "UNet_3Plus": Configuration(PUBLISHED, 26_971_777, (3, 320, 320), 308.832),
        "UNet_3Plus_DeepSup": Configuration(SUPERVISED, 26_989_637, (3, 320, 320), 308.932),
        "UNet_3Plus_DeepSup_CGM": Configuration(
            {**SUPERVISED, "class_guided": True}, 26_991_687, (3, 320, 320), 308.933
        ),
    },
    small={"in_channels": 1, "num_classes": 2, "widths": (4, 8, 8, 12, 16), "deep_supervision": True},
    small_size=(32, 48),
    divisor=UNet3Plus.divisor,
    outputs=LEVELS,
    sigmoid=True,
    notes=(
        "With deep supervision the list comes in evaluation too, and all five outputs have the full size.",
        "`class_guided`: the classifier's verdict, 0 or 1, multiplies the logits, so an image taken for empty has "
        "probability 0.5 everywhere; it gets no gradient from the segmentation.",
    ),
)
