"""Any backbone and decode head of MMSegmentation, as one network from images to logits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.building import argument_names, factory_of
from itkit.registry import MODELS

Part = dict | nn.Module


@MODELS.register_module()
class MMSegBackboneHead(nn.Module):
    """A 2D network put together from MMSegmentation's parts: (N, C, Y, X) to logits (N, K, Y, X).

    The heads' own losses, samplers and resizing are not used: the task model's criterion sees the logits. Heads that do
    not return logits per pixel (mask classification) do not fit.

    Args:
        backbone: Config of a backbone, e.g. ``dict(type="ResNet", depth=18, in_channels=1)``; names are
            MMSegmentation's, with or without ``mmseg.`` in front; encoders of itkit and timm are ``"itkit.<name>"``
            and ``"timm.<name>"``, or the class itself. Or a module that returns feature maps (N, C_i, Y_i, X_i).
        decode_head: Config of (or module that is) a decode head. Its ``num_classes`` is the task model's.
        neck: Config of (or module that is) what lies between both. None: nothing.
        auxiliary_head: One or several further heads, used in training only: their logits, at full size, follow the main
            ones.
        norm_cfg: Normalisation put into every part that is given as a config, accepts a ``norm_cfg`` and does not name
            its own, e.g. ``dict(type="BN")``. None: the defaults of MMSegmentation.

    Raises:
        ConfigError: If a part cannot be found, is neither a config nor a module, or a head returns no logits.
    """

    def __init__(
        self,
        backbone: Part,
        decode_head: Part,
        neck: Part | None = None,
        auxiliary_head: Part | Sequence[Part] | None = None,
        norm_cfg: dict | None = None,
    ):
        super().__init__()
        self.backbone = _build(backbone, "backbone", norm_cfg)
        self.neck = None if neck is None else _build(neck, "neck", norm_cfg)
        self.decode_head = _build(decode_head, "decode_head", norm_cfg)
        if auxiliary_head is None:
            auxiliary_head = []
        elif isinstance(auxiliary_head, (dict, nn.Module)):
            auxiliary_head = [auxiliary_head]
        self.auxiliary_heads = nn.ModuleList(_build(head, "auxiliary_head", norm_cfg) for head in auxiliary_head)

    def init_weights(self) -> None:
        """Initialise the parts as their configs say (pretrained backbones are loaded here)."""
        for part in (self.backbone, self.neck, self.decode_head, *self.auxiliary_heads):
            if hasattr(part, "init_weights"):
                part.init_weights()

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, K, Y, X) of the input's size.

        In training with auxiliary heads: a list, the main logits first.

        Args:
            inputs: Images (N, C, Y, X).
        """
        features = self.backbone(inputs)
        if self.neck is not None:
            features = self.neck(features)
        outputs = self._logits(self.decode_head, features, inputs.shape[2:])
        if self.training:
            for head in self.auxiliary_heads:
                outputs += self._logits(head, features, inputs.shape[2:])
        return outputs if self.training and len(outputs) > 1 else outputs[0]

    @staticmethod
    def _logits(head: nn.Module, features: Any, size: Sequence[int]) -> list[Tensor]:
        outputs = head(features)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        if not isinstance(outputs, (list, tuple)) or not all(isinstance(x, Tensor) and x.ndim == 4 for x in outputs):
            raise ConfigError(
                f"{type(head).__name__} does not return logits (N, K, Y, X) per pixel; choose a per-pixel decode head, "
                "e.g. FCNHead, UPerHead or ASPPHead."
            )
        align = bool(getattr(head, "align_corners", False))
        return [
            x if x.shape[2:] == tuple(size) else F.interpolate(x, size, mode="bilinear", align_corners=align)
            for x in outputs
        ]


def _build(part: Part, role: str, norm_cfg: dict | None) -> nn.Module:
    """Return the module that `part` describes; names are looked up in MMSegmentation's registry."""
    if isinstance(part, nn.Module):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind is None:
        raise ConfigError(
            f"{role} of MMSegBackboneHead must be a module or a config with a 'type', found {type(part).__name__}: "
            f"{part!r}."
        )
    with warnings.catch_warnings():  # on optional operators of mmcv and on losses of heads, neither of which is used
        warnings.simplefilter("ignore", UserWarning)
        return _build_from_names(part, kind, role, norm_cfg)


def _build_from_names(part: dict, kind: Any, role: str, norm_cfg: dict | None) -> nn.Module:
    import mmseg.models  # noqa: F401  (seconds to import, so only when such a network is built; registers the parts)
    from mmseg.registry import MODELS as registry

    if isinstance(kind, str):
        name = kind.removeprefix("mmseg.")
        factory = registry.module_dict.get(name) if "." not in name else factory_of(name)
        if factory is None:
            raise ConfigError(
                f"{role} of MMSegBackboneHead: MMSegmentation has no {name!r}."
                f"{did_you_mean(name, registry.module_dict)} Encoders of itkit and timm: 'itkit.<name>', 'timm.<name>'."
            )
    else:
        factory = kind
    config = {key: value for key, value in part.items() if key not in ("type", "_scope_")}
    if norm_cfg is not None and "norm_cfg" in argument_names(factory):
        config.setdefault("norm_cfg", dict(norm_cfg))
    return registry.build({"type": factory, "_scope_": "mmseg", **config})
