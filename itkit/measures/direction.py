"""Whether a small value of a metric is a good one, by its name: the one rule of best checkpoints, early stops and reports."""

from __future__ import annotations

_WORDS = ("loss", "hd95", "hausdorff", "assd", "distance", "error", "mae", "mse")
_BEGINNINGS = ("hd", "asd", "msd")


def lower_is_better(metric: str) -> bool:
    """Whether small values of a metric are good (distances, losses, errors); letter case and prefixes do not matter.

    Args:
        metric: Name such as ``"Dice"``, ``"HD95"`` or ``"val/loss"``.
    """
    name = metric.lower()
    return any(word in name for word in _WORDS) or name.rpartition("/")[2].startswith(_BEGINNINGS)
