"""Pre-training without labels as a task: pairs of views go to a network that contrasts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.building import build_module
from itkit.models.data_preprocessor import VolumeDataPreprocessor
from itkit.registry import MODELS


@MODELS.register_module()
class ContrastivePretraining(BaseModel):
    """Train the encoder of `MoCo` or `MoCoV3` on pairs of views, without labels.

    A batch holds pairs, (N, 2, C, Y, X) or (N, 2, C, Z, Y, X), as the transform `TwoViews` makes them. The momentum encoder
    moves, and the queue turns, once in every call for a loss. On several processes (``parallel = "ddp"``) the keys are those
    of all of them. Labels are not looked at.

    Modes of a call: ``"loss"`` gives the loss and ``top1``, the percentage of views whose partner is found; ``"tensor"`` what
    the network answers to images. There is no ``"predict"``: leave validation and test out of the config.

    Args:
        backbone: The network, `MoCo` or `MoCoV3`, or its config; any module with ``contrast(first, second, progress)``.
        data_preprocessor: None: `VolumeDataPreprocessor`.
        init_cfg: MMEngine's initialisation of weights. None: as the network initialised itself.

    Raises:
        ConfigError: If the network cannot be built or does not contrast, or a batch does not hold pairs.
    """

    def __init__(
        self,
        backbone: Mapping | nn.Module,
        data_preprocessor: Mapping | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        if data_preprocessor is None:
            data_preprocessor = VolumeDataPreprocessor()
        super().__init__(build_module(data_preprocessor, "ContrastivePretraining: data_preprocessor"), init_cfg)
        self.backbone = build_module(backbone, "ContrastivePretraining: backbone")
        if not callable(getattr(self.backbone, "contrast", None)):
            raise ConfigError(
                f"ContrastivePretraining: backbone {type(self.backbone).__name__} has no method contrast(first, second, "
                "progress). Choose MoCo or MoCoV3, and name the encoder to be trained there."
            )

    def init_weights(self) -> None:
        """Initialise as `init_cfg` says, and let the momentum encoder begin where the encoder does."""
        if self.init_cfg is not None:
            super().init_weights()
            self.backbone.begin()

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor") -> Any:
        """Run one mode.

        Args:
            inputs: Pairs (N, 2, C, ...) for ``"loss"``, images (N, C, ...) for ``"tensor"``.
            data_samples: Not looked at.
            mode: ``"loss"`` or ``"tensor"``.

        Raises:
            ConfigError: If the mode is another one, or inputs are no pairs.
        """
        if mode == "tensor":
            return self.backbone(inputs)
        if mode == "loss":
            return self._loss(inputs)
        raise ConfigError(
            f"ContrastivePretraining has no mode {mode!r}; choose loss or tensor. It predicts nothing: remove val_* and "
            "test_* from the config."
        )

    def _loss(self, inputs: Tensor) -> dict[str, Tensor]:
        axes = getattr(self.backbone, "dims", inputs.ndim - 3) + 3
        if inputs.ndim != axes or inputs.shape[1] != 2:
            raise ConfigError(
                f"ContrastivePretraining takes pairs of views (N, 2, C, ...) with {axes} axes, found shape "
                f"{tuple(inputs.shape)}. End the training pipeline with TwoViews, and let backbone.dims be that of the images."
            )
        return self.backbone.contrast(inputs[:, 0], inputs[:, 1], _progress())


def _progress() -> float:
    """Return the part of the training that is done, 0 to 1; 0 outside of a training."""
    scalars = MessageHub.get_current_instance().runtime_info
    done, whole = scalars.get("iter"), scalars.get("max_iters")
    return done / whole if isinstance(done, int) and isinstance(whole, int) and whole > 0 else 0.0
