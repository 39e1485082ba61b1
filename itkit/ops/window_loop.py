"""The loop of a sliding window: batches of windows through a network, added up, and given on as soon as they are final.

What asks for too much memory is tried again with less of it, and said.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from itkit.errors import ConfigError, PredictionError
from itkit.ops.array_library import flip, is_half, library_of
from itkit.ops.memory_errors import give_back_device_memory, is_memory_error
from itkit.ops.window_lattice import Box, WindowLattice
from itkit.ops.window_means import WindowMeans

Window = tuple[int, tuple[int, ...]]
"""Number of the volume, position of the window along each axis."""


def run_windows(
    lattice: WindowLattice,
    means: WindowMeans,
    gather: Callable[[Sequence[Window]], Any],
    forward: Callable[[Any], Any],
    *,
    volumes: int = 1,
    forward_batch_windows: int = 2,
    mirror_groups: Sequence[tuple[int, ...]] = ((),),
    progress: Callable[[int, int], None] | None = None,
    on_memory_error: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, Box, Any]]:
    """Yield the finished cells of volumes of one size, in the order in which they become final.

    Args:
        lattice: Windows and cells of each volume.
        means: What takes the answers.
        gather: Makes the windows (B, C, *patch) of a batch.
        forward: Maps windows to logits (B, K, *patch).
        volumes: Number of volumes; their windows come one volume after the other, batches may span two.
        forward_batch_windows: Most windows in one `forward`. Batches are of nearly equal size: nine windows with a limit of
            four run as 3 + 3 + 3.
        mirror_groups: For each answer that is averaged, the spatial axes along which window and answer are mirrored.
        progress: Called with (windows done, windows in all) after each batch.
        on_memory_error: Told in a sentence what is done about a want of memory: batches are halved, again and again; then
            means on a GPU move to the memory of the CPU. None: `warnings.warn`.

    Yields:
        Number of the volume, place of the cell in it, its scores (K, *spatial), float32.

    Raises:
        ConfigError: If what `forward` returns does not fit.
        PredictionError: If there is not enough memory even so, or a float16 answer is not finite.
    """
    if forward_batch_windows < 1:
        raise ConfigError(f"forward_batch_windows must be at least 1; found {forward_batch_windows}.")
    say = on_memory_error if on_memory_error is not None else lambda text: warnings.warn(text, stacklevel=3)
    corners = list(lattice.windows())
    cells = deque((v * len(corners) + done, v, cell) for v in range(volumes) for done, cell in lattice.cells())
    waiting = _Waiting([(v, window) for v in range(volumes) for window in corners], forward_batch_windows)
    while waiting.batches:
        batch, remedy = waiting.batches[0], None
        try:
            if batch.answers is None:
                batch.answers = _answers(batch.windows, means, gather, forward, lattice.patch, mirror_groups)
            while batch.added < len(batch.windows):
                volume, window = batch.windows[batch.added]
                means.add(volume, window, batch.answers[batch.added], activate=len(mirror_groups) == 1)
                batch.added += 1
        except Exception as error:
            if not is_memory_error(error):
                raise
            reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            remedy = _remedy(waiting, means)
            if remedy is None:
                raise PredictionError(
                    f"not enough memory for one window of {lattice.patch} at a time ({reason}). Take a smaller "
                    "patch_size, or free memory."
                ) from error
        if remedy is not None:  # here nothing of the failed attempt is kept alive by its exception
            give_back_device_memory()
            say(f"not enough memory ({reason}); {remedy}")
            continue
        batch.answers = None
        waiting.batches.popleft()
        waiting.done += len(batch.windows)
        if progress is not None:
            progress(waiting.done, len(corners) * volumes)
        while cells and cells[0][0] <= waiting.done:
            _, volume, cell = cells.popleft()
            yield volume, lattice.box_of(cell), means.take(volume, cell)


class _Batch:
    """Windows that go through the network together, and how many of their answers are in the means."""

    def __init__(self, windows: Sequence[Window]):
        self.windows, self.added = windows, 0
        self.answers: Any = None


class _Waiting:
    """What is still to do; batches can become smaller on the way."""

    def __init__(self, windows: Sequence[Window], most: int):
        self.most, self.done = most, 0
        self.batches = deque(map(_Batch, even_batches(windows, most)))

    def halve(self) -> None:
        """Make the batches that wait half as large as the first of them."""
        self.most = max(1, len(self.batches[0].windows) // 2)
        rest = [window for batch in self.batches for window in batch.windows]
        self.batches = deque(map(_Batch, even_batches(rest, self.most)))


def _answers(windows: Sequence[Window], means: WindowMeans, gather, forward, patch, mirror_groups) -> Any:
    """Return the logits of a batch, or their mean over mirror images, activated."""
    images, mean = gather(windows), None
    for count, axes in enumerate(mirror_groups):
        answers = checked_logits(forward(flip(images, tuple(axis + 2 for axis in axes))), len(windows), patch)
        _require_finite(answers)
        if len(mirror_groups) == 1 and not axes:
            return answers
        mean = means.averaged_mirrors(mean, answers, tuple(axes), count)
    return mean


def _remedy(waiting: _Waiting, means: WindowMeans) -> str | None:
    """Do what can be done to need less memory, and say it; None if nothing can be done."""
    batch = waiting.batches[0]
    if batch.answers is None and len(batch.windows) > 1:
        waiting.halve()
        return f"going on with at most {waiting.most} window{'s' * (waiting.most > 1)} at a time."
    if means.move("cpu"):
        return "the mean over windows is kept in the memory of the CPU from now on."
    return None


def even_batches(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Cut `items` into as few runs as `most` allows, whose lengths differ by one at most."""
    count = math.ceil(len(items) / most)
    edges = [round(i * len(items) / count) for i in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(edges)]


def checked_logits(logits: Any, batch: int, patch: tuple[int, ...]) -> Any:
    """Return `logits` if they are (batch, K, *patch)."""
    shape = getattr(logits, "shape", None)
    if shape is None:
        raise ConfigError(
            f"the network returned a {type(logits).__name__} for a window; a sliding window needs one array of "
            "logits. With deep supervision, pass a forward that returns the full-resolution output."
        )
    if len(shape) != len(patch) + 2 or shape[0] != batch or tuple(shape[2:]) != tuple(patch):
        raise ConfigError(
            f"the network returned shape {tuple(shape)} for windows of shape {(batch, 'C', *patch)}; it must be "
            f"{(batch, 'K', *patch)}, the same size as its input."
        )
    return logits


def _require_finite(answers: Any) -> None:
    """Refuse float16 answers that are not finite: numbers of this type end at 65504, and infinity would spread."""
    if not is_half(answers):
        return
    with np.errstate(all="ignore"):
        total = float(answers.sum(dtype=library_of(answers).float32))
    if not math.isfinite(total):
        raise PredictionError(
            "the network's answer in half precision (float16) is infinite or not a number: a value inside the network went "
            "beyond 65504. Predict in bfloat16 or float32 (use_half='bf16' or False)."
        )
