"""A U-Net over any encoder: what turns a classifier's maps of features into a segmentation of the image's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.building import argument_names, build_module, factory_of
from itkit.ops.image_size import check_image
from itkit.registry import MODELS

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}
NORM_NAMES = (*NORMS, "group")
GROUPS = 8
MODES = {2: "bilinear", 3: "trilinear"}
MOST_CHANNELS = 256
"""A decoder level is as wide as its skip, up to this."""
PROBE_VOX = 64
"""Edge of the image on which an encoder that does not state its channels is tried."""


class DoubleConvolution(nn.Sequential):
    """Twice: 3-wide convolution, norm, ReLU; any size, kept.

    Args:
        dims: 2 or 3.
        in_channels: Channels of the input.
        width: Channels of the output.
        norm: ``"batch"``, ``"instance"`` or ``"group"``.
    """

    def __init__(self, dims: int, in_channels: int, width: int, norm: str):
        layers: list[nn.Module] = []
        for channels in (in_channels, width):
            layers += [CONVOLUTIONS[dims](channels, width, 3, padding=1, bias=False), _norm(norm, dims, width)]
            layers += [nn.ReLU()]
        super().__init__(*layers)


class PyramidDecoder(nn.Module):
    """From maps of features, the finest first, to decoded maps on the same grids but the coarsest.

    At each level the coarser map is enlarged linearly to the grid of the next finer one, joined to it (concatenation)
    and convolved twice. Grids of any ratio fit, also odd ones.

    Args:
        channels: Channels of the encoder's maps, the finest first, two maps or more.
        widths: Channels of the decoded maps, the finest first; one less than `channels`.
        spatial_dims: 2 or 3.
        norm: ``"batch"``, ``"instance"`` or ``"group"``.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int], spatial_dims: int = 2, norm: str = "batch"):
        super().__init__()
        self.mode = MODES[spatial_dims]
        coarser = [*widths[1:], channels[-1]]
        self.levels = nn.ModuleList(
            DoubleConvolution(spatial_dims, below + skip, width, norm)
            for below, skip, width in zip(coarser, channels[:-1], widths, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the decoded maps (N, widths[i], ...), the finest first, for `maps` (N, channels[i], ...)."""
        x, decoded = maps[-1], []
        for level, skip in zip(reversed(self.levels), reversed(maps[:-1]), strict=True):
            x = level(torch.cat([skip, enlarged(x, skip.shape[2:], self.mode)], 1))
            decoded.insert(0, x)
        return decoded


@MODELS.register_module()
class EncoderUNet(nn.Module):
    """A U-Net whose way down is an encoder of your choice: (N, C, ...) to logits (N, K, ...) of the same size.

    An encoder is any module that maps an image to a list of maps of features, the finest first: the zoo's classifiers
    with ``out_indices``, ``"timm.resnet18"`` and the like, backbones of MMSegmentation, or a class of your own. In a config::

        backbone=dict(type=EncoderUNet, in_channels=1, num_classes=3, encoder=dict(type="mmseg.ResNet", depth=18))

    or ``encoder=dict(type=EfficientNet, variant="B0", out_indices=(0, 1, 2, 3, 4))``.

    Its maps need no fixed ratio of sizes. The numbers of their channels are, in this order: `channels`; the encoder's
    attribute ``feature_channels``; or counted once, on an image of zeros. From the finest map the decoder goes to full
    size in one step, in which a small convolution on the image itself is the skip.

    Shape:
        - Input: (N, in_channels, Y, X), or (N, in_channels, Z, Y, X) with ``spatial_dims=3``, of the sizes that the
          encoder takes.
        - Output: (N, num_classes, ...) of that size. In training with deep supervision a list: the full size first,
          then the decoder's coarser levels, each on its own grid.

    Args:
        encoder: A module, or its config; names are those of itkit, ``"mmseg.<name>"`` and ``"timm.<name>"``.
            `in_channels` and `spatial_dims` are passed on to it where it has such arguments.
        in_channels: C.
        num_classes: K.
        spatial_dims: 2 or 3.
        channels: Channels of the encoder's maps, the finest first. None: asked of the encoder.
        widths: Channels of the decoder's levels, the finest first, one less than maps. None: those of the skips, at
            most 256.
        image_width: Channels of the level at full size. 0: there is none, and the logits of the finest map are
            enlarged.
        norm: ``"batch"``, ``"instance"`` or ``"group"`` (groups of 8) in the decoder.
        dropout: Probability of dropping a channel in front of the head.
        deep_supervision: Number of extra heads, on the finest decoder levels below full size. True means one.

    Raises:
        ConfigError: If arguments do not fit together, the encoder does not return maps, or an input does not fit.

    Source: Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015, for the
    skips; Lee et al., Deeply-Supervised Nets, AISTATS 2015.
    """

    def __init__(
        self,
        encoder: Mapping | nn.Module,
        in_channels: int = 1,
        num_classes: int = 2,
        spatial_dims: int = 2,
        channels: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        image_width: int = 16,
        norm: str = "batch",
        dropout: float = 0.0,
        deep_supervision: int = 0,
    ):
        super().__init__()
        _choice("spatial_dims", spatial_dims, CONVOLUTIONS)
        _choice("norm", norm, NORM_NAMES)
        if in_channels < 1 or num_classes < 1 or image_width < 0:
            raise ConfigError(
                "EncoderUNet: in_channels and num_classes must be at least 1, image_width at least 0, found "
                f"{in_channels}, {num_classes} and {image_width}."
            )
        self.spatial_dims, self.in_channels, self.num_classes = spatial_dims, in_channels, num_classes
        self.encoder = _encoder(encoder, in_channels=in_channels, spatial_dims=spatial_dims)
        if channels is None:
            channels = feature_channels(self.encoder, in_channels, spatial_dims)
        self.channels = _numbers("channels", channels)
        steps = len(self.channels) - 1
        if steps < 1:
            raise ConfigError(
                f"EncoderUNet needs an encoder with two maps of features or more, found {len(self.channels)}. Ask it "
                "for more stages, e.g. by out_indices."
            )
        if widths is None:
            widths = [min(count, MOST_CHANNELS) for count in self.channels[:-1]]
        widths = _numbers("widths", widths)
        if len(widths) != steps:
            raise ConfigError(
                f"EncoderUNet: {steps + 1} maps of features need {steps} widths, one a skip, found {list(widths)}."
            )
        if norm == "group" and any(width % GROUPS for width in (*widths, image_width)):
            raise ConfigError(
                f"EncoderUNet: norm='group' needs widths and image_width in multiples of {GROUPS}, found {list(widths)} "
                f"and {image_width}."
            )
        levels = steps if image_width else steps - 1
        if not 0 <= deep_supervision <= levels:
            raise ConfigError(
                f"EncoderUNet has room for 0 to {levels} deep-supervision heads with these maps, found "
                f"{int(deep_supervision)}."
            )
        self.decoder = PyramidDecoder(self.channels, widths, spatial_dims, norm)
        outputs = list(widths)
        if image_width:
            self.image_skip = nn.Sequential(
                CONVOLUTIONS[spatial_dims](in_channels, image_width, 3, padding=1, bias=False),
                _norm(norm, spatial_dims, image_width),
                nn.ReLU(),
            )
            self.image_level = DoubleConvolution(spatial_dims, image_width + widths[0], image_width, norm)
            outputs.insert(0, image_width)
        self.has_image_level = bool(image_width)
        convolution = CONVOLUTIONS[spatial_dims]
        self.dropout = {2: nn.Dropout2d, 3: nn.Dropout3d}[spatial_dims](dropout)
        self.head = convolution(outputs[0], num_classes, 1)
        self.aux_heads = nn.ModuleList(
            convolution(width, num_classes, 1) for width in outputs[1 : 1 + int(deep_supervision)]
        )

    def init_weights(self) -> None:
        """Let the encoder initialise itself as its config says (pretrained weights of MMSegmentation's are loaded here)."""
        if hasattr(self.encoder, "init_weights"):
            self.encoder.init_weights()

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, K, ...) of the size of `inputs`; in training with deep supervision a list of them.

        Args:
            inputs: (N, C, Y, X), or (N, C, Z, Y, X) with ``spatial_dims=3``.
        """
        check_image("EncoderUNet", inputs, self.in_channels, dims=self.spatial_dims)
        size, mode = inputs.shape[2:], MODES[self.spatial_dims]
        maps = list(self.encoder(inputs))
        if [x.shape[1] for x in maps] != list(self.channels):
            raise ConfigError(
                f"EncoderUNet was made for maps of {list(self.channels)} channels; {type(self.encoder).__name__} returned "
                f"{[x.shape[1] for x in maps]}. Set channels to these."
            )
        levels = self.decoder(maps)
        if self.has_image_level:
            wide = torch.cat([self.image_skip(inputs), enlarged(levels[0], size, mode)], 1)
            levels.insert(0, self.image_level(wide))
        logits = enlarged(self.head(self.dropout(levels[0])), size, mode)
        if not self.training or not len(self.aux_heads):
            return logits
        return [logits, *(head(level) for head, level in zip(self.aux_heads, levels[1:], strict=False))]


def feature_channels(encoder: nn.Module, in_channels: int, dims: int) -> tuple[int, ...]:
    """Return the channels of the maps that `encoder` gives, the finest first.

    Args:
        encoder: Says it by its attribute ``feature_channels``, or is tried on an image of zeros; its state stays.
        in_channels: Channels of that image.
        dims: 2 or 3.

    Raises:
        ConfigError: If it fails on that image, or returns something else than a list of maps.
    """
    stated = getattr(encoder, "feature_channels", None)
    if stated is not None:
        return tuple(stated)
    name, shape = type(encoder).__name__, (1, in_channels, *(PROBE_VOX,) * dims)
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    trained = [module for module in encoder.modules() if module.training]
    encoder.eval()
    try:
        with torch.no_grad():
            maps = encoder(torch.zeros(shape, device=device))
    except (RuntimeError, ValueError, ConfigError) as error:
        raise ConfigError(
            f"EncoderUNet: {name} could not be tried on zeros {shape}: {error} State the channels of its maps: "
            "channels=(...), the finest first."
        ) from error
    finally:
        for module in trained:
            module.training = True
    if not isinstance(maps, Sequence) or not all(isinstance(x, Tensor) and x.ndim == dims + 2 for x in maps):
        found = (
            [tuple(x.shape) for x in maps if isinstance(x, Tensor)]
            if isinstance(maps, Sequence)
            else type(maps).__name__
        )
        raise ConfigError(
            f"EncoderUNet: {name} does not return a list of maps (N, C_i, {'Z, ' * (dims == 3)}Y, X) but {found}. A "
            "classifier must be told to, e.g. by out_indices."
        )
    return tuple(x.shape[1] for x in maps)


def enlarged(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """Return `x` (N, C, ...) interpolated linearly to `size`; itself if it has that size."""
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, size, mode=mode, align_corners=False)


def _encoder(encoder: Mapping | nn.Module, **stated: int) -> nn.Module:
    """Return the encoder; a config need not repeat what `stated` says, and must not say otherwise."""
    if isinstance(encoder, Mapping):
        factory = factory_of(encoder.get("type"))
        taken = argument_names(factory) if callable(factory) else ()
        for name, value in stated.items():
            if encoder.get(name, value) != value:
                raise ConfigError(
                    f"EncoderUNet: {name}={value}, but its encoder has {name}={encoder[name]}. Give the number once, to "
                    "EncoderUNet."
                )
        encoder = {**{name: value for name, value in stated.items() if name in taken}, **encoder}
    return build_module(encoder, "EncoderUNet: encoder")


def _norm(norm: str, dims: int, width: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(GROUPS, width)
    return NORMS[norm][dims](width, affine=True)


def _choice(name: str, value: object, allowed: Sequence | dict) -> None:
    if value not in allowed:
        hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise ConfigError(f"EncoderUNet: {name} must be one of {', '.join(map(str, allowed))}, found {value!r}.{hint}")


def _numbers(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if any(not isinstance(value, int) or value < 1 for value in values):
        raise ConfigError(f"EncoderUNet: {name} must be positive numbers, found {list(values)}.")
    return tuple(values)
