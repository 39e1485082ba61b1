"""Test-time mirroring: the mean of a network's answers for an input and its mirror images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from itkit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

AVERAGES = ("logits", "probabilities")


def mirrored_inference(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    flip_axes: Sequence[int] | Sequence[Sequence[int]],
    *,
    average: str = "logits",
) -> Tensor:
    """Return the mean over mirror images of `inputs` of what `forward` answers, each mirrored back.

    As `forward` of a sliding window, ``functools.partial(mirrored_inference, network, flip_axes=(0, 1, 2))`` mirrors each
    window. Do not mirror along an axis that tells left from right when the classes do too.

    Args:
        forward: Maps (N, C, *spatial) to logits (N, K, *spatial).
        inputs: (N, C, *spatial). Not modified.
        flip_axes: Spatial axes, 0 is the first after the channel, e.g. Z of (N, C, Z, Y, X). Numbers: all combinations of
            these axes, 2 to the power of their count. Groups, e.g. ``[(2,), (1, 2)]``: the input as it is, and each group
            flipped together. Empty: a single plain `forward`.
        average: ``"logits"``: mean of the logits. ``"probabilities"``: mean of their softmax (sigmoid when K is 1),
            returned as logits again, so that a softmax of the result is the mean probability.

    Returns:
        Logits (N, K, *spatial).

    Raises:
        ConfigError: If an axis does not exist, or `average` is unknown.
    """
    import torch

    if average not in AVERAGES:
        raise ConfigError(f"average {average!r} of mirrored inference is unknown; choose one of {', '.join(AVERAGES)}.")
    groups = mirror_groups(flip_axes, inputs.ndim - 2)
    total = None
    for group in groups:
        dims = [axis + 2 for axis in group]
        answer = forward(torch.flip(inputs, dims) if dims else inputs)
        if average == "probabilities":
            answer = answer.sigmoid() if answer.shape[1] == 1 else answer.softmax(dim=1)
        answer = torch.flip(answer, dims) if dims else answer
        total = answer if total is None else total + answer
    mean = total / len(groups) if len(groups) > 1 else total
    if average == "logits":
        return mean
    tiny = torch.finfo(mean.dtype).tiny
    return torch.logit(mean, eps=1e-7) if mean.shape[1] == 1 else mean.clamp_min(tiny).log()


def mirror_groups(flip_axes: Sequence[int] | Sequence[Sequence[int]], axes: int) -> list[tuple[int, ...]]:
    """Return the sets of axes to flip together, the empty one first, none twice.

    Args:
        flip_axes: Axes (all their combinations are meant) or groups of axes, as in `mirrored_inference`.
        axes: Number of spatial axes.

    Raises:
        ConfigError: If an axis is not one of ``0 .. axes - 1``, or numbers and groups are mixed.
    """
    flip_axes = list(flip_axes)
    numbers = [isinstance(entry, int) for entry in flip_axes]
    if any(numbers) and not all(numbers):
        raise ConfigError(f"flip_axes {flip_axes} mixes axes and groups of axes; give one kind.")
    if all(numbers):
        groups = [c for count in range(len(flip_axes) + 1) for c in itertools.combinations(flip_axes, count)]
    else:
        groups = [(), *(tuple(group) for group in flip_axes)]
    wrong = sorted({axis for group in groups for axis in group if not 0 <= axis < axes})
    if wrong:
        raise ConfigError(
            f"flip_axes {flip_axes} names the spatial axes {wrong}, which do not exist in {axes}D; "
            f"choose from {list(range(axes))}."
        )
    return list(dict.fromkeys(tuple(sorted(set(group))) for group in groups))
