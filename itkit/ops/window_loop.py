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

from itkit._support.large_memory import FreedMemory
from itkit.errors import ConfigError, PredictionError
from itkit.ops.array_library import flip, is_half, library_of
from itkit.ops.memory_errors import give_back_device_memory, is_memory_error
from itkit.ops.window_lattice import Box, WindowLattice
from itkit.ops.window_sums import WindowSums

Window = tuple[int, tuple[int, ...]]
"""Number of the volume, first voxel along each axis."""


def run_windows(
    lattice: WindowLattice,
    sums: WindowSums,
    gather: Callable[[Sequence[Window]], Any],
    forward: Callable[[Any], Any],
    *,
    volumes: int = 1,
    forward_batch_windows: int = 2,
    mirror_groups: Sequence[tuple[int, ...]] = ((),),
    mean: bool = True,
    progress: Callable[[int, int], None] | None = None,
    on_memory_error: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, Box, Any]]:
    """Yield the finished cells of volumes of one size, in the order in which they become final.

    Args:
        lattice: Windows and cells of each volume.
        sums: What the answers are added to.
        gather: Makes the windows (B, C, *patch) of a batch.
        forward: Maps windows to logits (B, K, *patch).
        volumes: Number of volumes; their windows come one volume after the other, batches may span two.
        forward_batch_windows: Most windows in one `forward`.
        mirror_groups: For each answer that is averaged, the spatial axes along which window and answer are mirrored.
        mean: As for `WindowSums.take`.
        progress: Called with (windows done, windows in all) after each batch.
        on_memory_error: Told in a sentence what is done about a want of memory: the batch is halved, again and again; then
            sums on a GPU move to the CPU. None: `warnings.warn`.

    Yields:
        Number of the volume, place of the cell in it, its scores (K, *spatial), float32.

    Raises:
        ConfigError: If what `forward` returns does not fit.
        PredictionError: If there is not enough memory even so, or a float16 answer is not finite.
    """
    if forward_batch_windows < 1:
        raise ConfigError(f"forward_batch_windows must be at least 1; found {forward_batch_windows}.")
    say = on_memory_error if on_memory_error is not None else lambda text: warnings.warn(text, stacklevel=3)
    windows = [(volume, corner) for volume in range(volumes) for corner in lattice.corners()]
    per_volume = len(windows) // volumes
    cells = deque(
        (volume * per_volume + done, volume, cell) for volume in range(volumes) for done, cell in lattice.cells()
    )
    steps = _Steps(windows, forward_batch_windows, len(mirror_groups))
    batch, gathered, done = None, None, 0
    with FreedMemory() as memory:
        while steps.waiting:
            step = steps.waiting[0]
            axes = tuple(mirror_groups[step.group])
            try:
                if batch is not step.windows:
                    batch, gathered = step.windows, None
                    gathered = gather(batch)
                if step.answers is None:
                    with memory.reused():
                        images = flip(gathered, tuple(axis + 2 for axis in axes))
                        step.answers = checked_logits(forward(images), len(batch), lattice.patch)
                    images = None
                    _require_finite(step.answers)
                while step.added < len(batch):
                    volume, corner = batch[step.added]
                    sums.add(volume, corner, step.answers[step.added], axes)
                    step.added += 1
            except Exception as error:
                if not is_memory_error(error):
                    raise
                images, batch, gathered, reason = None, None, None, str(error).strip().split("\n")[0][:200]
                remedy = _remedy(steps, sums)
                if remedy is None:
                    raise PredictionError(
                        f"not enough memory for one window of {lattice.patch} at a time ({reason or 'MemoryError'}). Take a "
                        "smaller patch_size, or free memory."
                    ) from error
                error = None
            else:
                remedy = None
                steps.waiting.popleft()
                step.answers = None
                if step.group == len(mirror_groups) - 1:
                    done += len(batch)
                    if progress is not None:
                        progress(done, len(windows))
                    while cells and cells[0][0] <= done:
                        _, volume, cell = cells.popleft()
                        yield volume, lattice.box_of(cell), sums.take(volume, cell, mean=mean)
            if remedy is not None:
                give_back_device_memory()
                say(f"not enough memory ({reason or 'MemoryError'}); {remedy}")


class _Step:
    """A batch of windows mirrored in one way, and how far it is."""

    def __init__(self, windows: Sequence[Window], group: int):
        self.windows, self.group = windows, group
        self.answers: Any = None
        self.added = 0


class _Steps:
    """What is still to do; batches can be made smaller at any time."""

    def __init__(self, windows: Sequence[Window], most: int, groups: int):
        self.most, self._groups = most, groups
        self.waiting = deque(self._of(windows))

    def halve(self) -> None:
        """Make batches half as large; the first step's, if it has no answers yet, and all later ones."""
        self.most = max(1, min(self.most, len(self.waiting[0].windows)) // 2)
        begun = list(itertools.takewhile(lambda step: step.windows is self.waiting[0].windows, self.waiting))
        later = [window for step in list(self.waiting)[len(begun) :] if step.group == 0 for window in step.windows]
        # Some mirror images of the first batch may be done: the rest is done piecewise, image by image.
        split = [_Step(part, step.group) for step in begun for part in even_batches(step.windows, self.most)]
        self.waiting = deque([*split, *self._of(later)])

    def _of(self, windows: Sequence[Window]) -> list[_Step]:
        return [_Step(batch, g) for batch in even_batches(windows, self.most) for g in range(self._groups)]


def _remedy(steps: _Steps, sums: WindowSums) -> str | None:
    """Do what can be done to need less memory, and say it; None if nothing can be done."""
    step = steps.waiting[0]
    if step.answers is None and len(step.windows) > 1:
        steps.halve()
        return f"going on with batches of at most {steps.most} windows."
    if sums.move("cpu"):
        return "the sum over windows is kept in the memory of the CPU from now on."
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
