"""The single value `precision` made real on the device that is there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from itkit.errors import ConfigError
from itkit.mm.optim import OptimWrapper
from itkit.registry import OPTIM_WRAPPERS

PRECISIONS = ("fp32", "bf16", "fp16")


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """An optimizer wrapper whose forward pass runs under ``torch.autocast`` on CPU or GPU, without loss scaling.

    Args:
        dtype: ``"bfloat16"``.
        kwargs: Those of `itkit.mm.optim.OptimWrapper`.
    """

    def __init__(self, dtype: str = "bfloat16", **kwargs):
        super().__init__(**kwargs)
        if dtype != "bfloat16":
            raise ConfigError(f"AutocastOptimWrapper: dtype {dtype!r} needs loss scaling; only bfloat16 does not.")
        self._dtype = torch.bfloat16

    @contextlib.contextmanager
    def optim_context(self, model) -> Iterator[None]:
        """Run the forward pass in bfloat16."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=self._dtype):
            yield


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX); without, it is 9 to 25 times slower."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def usable_precision(precision: str | None, device: str) -> str:
    """Return `precision` where devices of this type (``"cpu"``, ``"cuda"``) compute it fast, else ``"fp32"``.

    Raises:
        ConfigError: If there is no such precision.
    """
    if precision not in (None, *PRECISIONS):
        raise ConfigError(f"precision: {precision!r} is none of {', '.join(PRECISIONS)}.")
    if device == "cuda" or (precision == "bf16" and cpu_has_bf16()):
        return precision or "fp32"
    return "fp32"


def apply_precision(optim_wrapper: dict, precision: str | None) -> None:
    """Change the config of the optimizer wrapper to train in `precision`; where the device lacks it, warn and keep float32.

    Args:
        optim_wrapper: Config, changed in place.
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"`` or None, which leaves the wrapper as it is.

    Raises:
        ConfigError: If the wrapper already decides on a precision of its own.
    """
    if precision in (None, "fp32"):
        return
    kind = optim_wrapper.get("type", "OptimWrapper")
    name = kind if isinstance(kind, str) else kind.__name__
    if name != "OptimWrapper":
        raise ConfigError(
            f'precision = "{precision}" and optim_wrapper.type = {name} both decide on the precision; keep one.'
        )
    if usable_precision(precision, "cuda" if torch.cuda.is_available() else "cpu") == precision:
        optim_wrapper["type"] = AutocastOptimWrapper if precision == "bf16" else "AmpOptimWrapper"
    else:
        warn_of_float32(precision)


def warn_of_float32(precision: str) -> None:
    """Say that `precision` was asked for and float32 is used."""
    warnings.warn(
        f'precision = "{precision}": this machine computes it slowly or not at all; using float32.', stacklevel=3
    )
