"""Any encoder of timm (PyTorch Image Models) as maps of features, in the form that decoders here take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from itkit._support.optional import require
from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.ops.image_size import check_image
from itkit.registry import MODELS


@MODELS.register_module()
class TimmEncoder(nn.Module):
    """An encoder of timm: (N, C, Y, X) to a list of maps of features, the finest first.

    In a config ``dict(type="timm.resnet18", in_channels=1)`` is the same as ``dict(type=TimmEncoder, name="resnet18",
    in_channels=1)``. timm comes with the extra ``timm``.

    Shape:
        - Input: (N, in_channels, Y, X), of the sizes that the encoder takes.
        - Output: a list of maps (N, feature_channels[i], Y_i, X_i), about ``feature_strides[i]`` times coarser than the
          image.

    Args:
        name: What timm calls it, see ``timm.list_models()``; a tag may follow, ``"resnet18.a1_in1k"``.
        in_channels: C. timm adapts pre-trained weights of the first layer to it.
        out_indices: Numbers of the maps to give, 0 the finest. None: all, or timm's choice.
        pretrained: Start from timm's published weights, which it fetches or finds in its cache.
        options: Passed on to ``timm.create_model``, e.g. ``drop_path_rate=0.1``, ``img_size=256``.

    Raises:
        MissingDependency: If timm is not installed.
        ConfigError: If timm has no such model or cannot make maps of features of it, or an input has another number of
            axes or channels.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        pretrained: bool = False,
        **options: Any,
    ):
        super().__init__()
        timm = require("timm", extra="timm", purpose=f"the encoder {name!r}")
        known = timm.list_models()
        if ":" not in name and name.partition(".")[0] not in known:  # a colon: an address of a model elsewhere
            raise ConfigError(f"timm has no model {name!r}.{did_you_mean(name, known)} See timm.list_models().")
        if out_indices is not None:
            options["out_indices"] = tuple(out_indices)
        try:
            self.net = timm.create_model(
                name, pretrained=pretrained, features_only=True, in_chans=in_channels, **options
            )
        except (RuntimeError, TypeError, IndexError, AssertionError) as error:
            raise ConfigError(
                f"timm makes no encoder of {name!r} with in_chans={in_channels} and {options or 'no options'}: {error}"
            ) from error
        self.name, self.in_channels = name, in_channels
        self.feature_channels = tuple(self.net.feature_info.channels())
        self.feature_strides = tuple(self.net.feature_info.reduction())
        self.channels_come_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return the maps (N, feature_channels[i], Y_i, X_i), the finest first, for `inputs` (N, C, Y, X)."""
        check_image(f"timm.{self.name}", inputs, self.in_channels)
        maps = self.net(inputs)
        return [x.permute(0, 3, 1, 2) if self.channels_come_last else x for x in maps]
