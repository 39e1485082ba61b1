"""EfficientNet B0-B7: inverted residual blocks scaled in width, depth and image size at once; MONAI's, in the usual keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.feature_maps import checked_indices, leave_out_on_load
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.image_size import check_image
from itkit.registry import MODELS

VARIANTS: dict[str, tuple[float, float, int, float]] = {
    "B0": (1.0, 1.0, 224, 0.2),
    "B1": (1.0, 1.1, 240, 0.2),
    "B2": (1.1, 1.2, 260, 0.3),
    "B3": (1.2, 1.4, 300, 0.3),
    "B4": (1.4, 1.8, 380, 0.4),
    "B5": (1.6, 2.2, 456, 0.4),
    "B6": (1.8, 2.6, 528, 0.5),
    "B7": (2.0, 3.1, 600, 0.5),
}
"""Factors of width and depth, edge of the image, dropout."""
STAGES: tuple[tuple[int, int, int, int, int, int], ...] = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
"""B0's stages: blocks, kernel, stride of the first block, expansion, channels in and out (table 1 of the paper)."""
LEVELS = 5
"""Grids, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""


@MODELS.register_module()
class EfficientNet(nn.Module):
    """EfficientNet as a classifier, or as an encoder that gives maps of features; any size from about 32 voxels on.

    Put together from MONAI's network. The keys are those of the common port to PyTorch (``_blocks.<n>.``), whose
    checkpoints load without renaming; into an encoder too, which leaves out their head.

    Shape:
        - Input: (N, in_channels, Y, X), or (N, in_channels, Z, Y, X) with ``spatial_dims=3``.
        - Output: (N, num_classes). With `out_indices`: a list of maps (N, feature_channels[i], ...); map 0 is at 1/2
          of the size, each further one at half of that, rounded up or down by `image_size`.

    Args:
        in_channels: C.
        num_classes: Classes of the classifier; of no effect in an encoder.
        variant: ``"B0"`` to ``"B7"``.
        out_indices: Maps to give, rising numbers from 0 (1/2) to 4 (1/32), each the last on its grid. None: a
            classifier.
        spatial_dims: 2 or 3.
        width: Factor of the numbers of channels. None: the variant's.
        depth: Factor of the numbers of blocks. None: the variant's.
        image_size: Edge of the image for which convolutions of stride 2 are padded so that sizes are halved and rounded
            up; checkpoints depend on it. Other sizes go through the same padding. None: the variant's.
        drop_connect: Probability that the last block's residual branch is skipped in training; it grows evenly from 0 in
            the first.
        dropout: Probability of dropping a feature in front of the classifier. None: the variant's.

    Raises:
        ConfigError: If arguments do not fit together; or an input has another number of axes or channels, or is too
            small.

    Source: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, arXiv
    1905.11946.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1000,
        variant: str = "B0",
        out_indices: Sequence[int] | None = None,
        spatial_dims: int = 2,
        width: float | None = None,
        depth: float | None = None,
        image_size: int | None = None,
        drop_connect: float = 0.2,
        dropout: float | None = None,
    ):
        super().__init__()
        if variant not in VARIANTS:
            hint = did_you_mean(str(variant), VARIANTS)
            raise ConfigError(f"EfficientNet: variant must be one of {', '.join(VARIANTS)}, found {variant!r}.{hint}")
        if spatial_dims not in (2, 3):
            raise ConfigError(f"EfficientNet: spatial_dims must be 2 or 3, found {spatial_dims!r}.")
        given = (width, depth, image_size, dropout)
        usual = VARIANTS[variant]
        width, depth, image_size, dropout = (
            standard if value is None else value for value, standard in zip(given, usual, strict=True)
        )
        if in_channels < 1 or num_classes < 1:
            raise ConfigError(
                f"EfficientNet: in_channels and num_classes must be at least 1, found {in_channels} and {num_classes}."
            )
        if min(width, depth, image_size) <= 0:
            raise ConfigError(
                f"EfficientNet: width, depth and image_size must be positive, found {width}, {depth} and {image_size}."
            )
        if not (0 <= drop_connect < 1 and 0 <= dropout < 1):
            raise ConfigError(
                "EfficientNet: drop_connect and dropout are probabilities from 0 to below 1, found "
                f"{drop_connect} and {dropout}."
            )
        self.out_indices = checked_indices("EfficientNet", out_indices, LEVELS)
        self.in_channels, self.num_classes, self.spatial_dims = in_channels, num_classes, spatial_dims
        self._take_the_parts_of_monai_s(
            in_channels=in_channels,
            num_classes=num_classes,
            spatial_dims=spatial_dims,
            width_coefficient=width,
            depth_coefficient=depth,
            image_size=image_size,
            dropout_rate=dropout,
            drop_connect_rate=drop_connect,
        )

    def _take_the_parts_of_monai_s(self, **arguments: Any) -> None:
        from monai.networks.nets.efficientnet import EfficientNet as MonaiEfficientNet

        stages = [f"r{r}_k{k}_s{s}{s}_e{e}_i{i}_o{o}_se0.25" for r, k, s, e, i, o in STAGES]
        parts = dict(MonaiEfficientNet(stages, **arguments).named_children())
        blocks = [block for stage in parts["_blocks"] for block in stage]
        for block in blocks:
            block._swish = nn.SiLU()  # equal to MONAI's own, and known to exporters
        strided = [i for i, block in enumerate(blocks) if block._depthwise_conv.stride[0] > 1]
        self.level_ends = [*(i - 1 for i in strided), len(blocks) - 1]
        self._conv_stem_padding, self._conv_stem, self._bn0 = (
            parts[name] for name in ("_conv_stem_padding", "_conv_stem", "_bn0")
        )
        self._swish = nn.SiLU()
        if self.out_indices is None:
            self._blocks = nn.ModuleList(blocks)
            for name in ("_conv_head", "_bn1", "_avg_pooling", "_dropout", "_fc"):
                self.add_module(name, parts[name])
        else:
            kept = self.level_ends[self.out_indices[-1]] + 1
            self._blocks = nn.ModuleList(blocks[:kept])
            self.feature_channels = tuple(
                blocks[self.level_ends[i]]._project_conv.out_channels for i in self.out_indices
            )
            unused = (f"_blocks.{i}." for i in range(kept, len(blocks)))
            leave_out_on_load(self, "_conv_head.", "_bn1.", "_fc.", *unused)

    @property
    def least_size(self) -> int:
        """Smallest size along an axis: one cell is left at the end."""
        convolutions = [(self._conv_stem, self._conv_stem_padding)]
        convolutions += [(block._depthwise_conv, block._depthwise_conv_padding) for block in self._blocks]
        least = 1
        for convolution, padding in reversed(convolutions):
            if convolution.stride[0] > 1:
                added = sum(padding.padding[:2]) if hasattr(padding, "padding") else 0
                least = max(1, convolution.stride[0] * (least - 1) + convolution.kernel_size[0] - added)
        return least

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return scores of the classes (N, num_classes), or the maps that `out_indices` asks for, the finest first.

        Args:
            inputs: (N, C, Y, X), or (N, C, Z, Y, X) with ``spatial_dims=3``.
        """
        check_image("EfficientNet", inputs, self.in_channels, dims=self.spatial_dims)
        if min(inputs.shape[2:]) < self.least_size:
            raise ConfigError(
                f"EfficientNet needs images of at least {self.least_size} voxels along each axis, found "
                f"{tuple(inputs.shape[2:])}. Pad them, or leave out the coarsest maps of out_indices."
            )
        x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(inputs))))
        maps: dict[int, Tensor] = {}
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.level_ends:
                maps[self.level_ends.index(i)] = x
        if self.out_indices is not None:
            return [maps[i] for i in self.out_indices]
        x = self._avg_pooling(self._swish(self._bn1(self._conv_head(x))))
        return self._fc(self._dropout(x.flatten(1)))


def _published(variant: str, parameters: int, gmacs: float) -> Configuration:
    size = VARIANTS[variant][2]
    return Configuration(dict(variant=variant), parameters, (3, size, size), gmacs)


CARD = NetworkCard(
    name="EfficientNet",
    factory="itkit.models.efficientnet:EfficientNet",
    title="EfficientNet B0-B7",
    paper="Tan and Le, ICML 2019, arXiv 1905.11946",
    licence="port to PyTorch and MONAI's network: Apache-2.0",
    dims=(2, 3),
    configurations={
        "EfficientNet_B0": _published("B0", 5_288_548, 0.385815),
        "EfficientNet_B1": _published("B1", 7_794_184, 0.686803),
        "EfficientNet_B2": _published("B2", 9_109_994, 0.993562),
        "EfficientNet_B3": _published("B3", 12_233_232, 1.82714),
        "EfficientNet_B4": _published("B4", 19_341_616, 4.39377),
        "EfficientNet_B5": _published("B5", 30_389_784, 10.2664),
        "EfficientNet_B6": _published("B6", 43_040_704, 19.0676),
        "EfficientNet_B7": _published("B7", 66_347_960, 37.7459),
    },
    small=dict(in_channels=1, num_classes=2, width=0.25, depth=0.3, drop_connect=0.0, dropout=0.0),
    small_size=(65, 70),
    segments=False,
    notes=(
        "Weights depend on the padding of the variant's own image size; other sizes go through the same padding.",
        "With out_indices it is an encoder, and checkpoints of the classifier load into it strictly.",
    ),
)
