"""Apply a network to a volume window by window, and give the result away slab by slab as soon as it is final.

Neither the volume nor the scores of all its voxels need to exist at once: windows are read by region, and memory is that of
the classes times the planes that two layers of windows share. NumPy and torch alike; torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from itkit.errors import ConfigError
from itkit.ops.mirror import AVERAGES, mirror_groups
from itkit.ops.window_lattice import Box, WindowLattice
from itkit.ops.window_loop import run_windows
from itkit.ops.window_means import WindowMeans

PADDINGS = ("edge", "constant")
ACTIVATIONS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Slab:
    """The scores of some planes, or of some rows of them, that no later window touches.

    Attributes:
        start: First plane along the streaming axis.
        stop: Last plane, exclusive.
        scores: (K, stop - start, *other spatial axes in their order), float32: the mean over windows and mirror images. The
            array is the receiver's own.
        others: Where `scores` lies along the other axes; None: it covers them. ``volume[(slice(None), *slab.place)]`` is
            its place in a volume (K, streaming axis, other axes).
    """

    start: int
    stop: int
    scores: Any
    others: tuple[slice, ...] | None = None

    @property
    def place(self) -> tuple[slice, ...]:
        """Where `scores` lies in the volume, streaming axis first."""
        others = self.others if self.others is not None else (slice(None),) * (self.scores.ndim - 2)
        return (slice(self.start, self.stop), *others)


def stream_windows(
    read: Callable[[Box], np.ndarray],
    size: Sequence[int],
    channels: int | None,
    forward: Callable[[Any], Any],
    *,
    patch_size: int | Sequence[int],
    patch_stride: int | Sequence[int] | None = None,
    blending: str = "constant",
    sigma_scale: float = 0.125,
    padding: str = "edge",
    pad_value: float = 0.0,
    forward_batch_windows: int = 2,
    average: str = "logits",
    activation: str = "softmax",
    flip_axes: Sequence[int] | Sequence[Sequence[int]] = (),
    box: Box | None = None,
    outside: Sequence[float] | None = None,
    axis: int = 0,
    whole_planes: bool = True,
    row_axis: int | None = None,
    accumulate_device: Any = None,
    asarray: Callable[[np.ndarray], Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_memory_error: Callable[[str], None] | None = None,
) -> Iterator[Slab]:
    """Yield the scores of a volume in slabs, in order, each as soon as its last window has been through the network.

    Windows start every `patch_stride` voxels; the last one of an axis is shifted inside. An axis shorter than the patch is
    padded on both sides (the odd voxel at the end), and the scores are those of the volume alone. Answers are added up in
    float32 whatever their type.

    Memory for scores, in planes of K scores a voxel: with `whole_planes` a whole layer of windows (the patch along `axis`);
    without, only what a layer shares with the next (patch - stride), and one row of windows. Beside it there is one batch of
    windows with the network's answer. So take for `axis` the longest one, unless `read` must go forward plane by plane.

    Args:
        read: Returns the voxels (C, *box) of a box of the volume. Boxes come row by row, never twice the same, and lie
            inside the volume.
        size: Voxels of the volume along its two or three axes.
        channels: C, which is checked. None: not checked.
        forward: Maps windows (B, C, *patch), as `asarray` made them, to logits (B, K, *patch).
        patch_size: Voxels of a window, one number or one per axis.
        patch_stride: Voxels between windows, at most the patch. None: half the patch, rounded up.
        blending: ``"constant"``: plain mean. ``"gaussian"``: windows count most in their centre.
        sigma_scale: Standard deviation of the Gaussian as a part of the patch.
        padding: ``"edge"`` repeats the outermost voxels, ``"constant"`` takes `pad_value`.
        pad_value: Intensity of padded voxels.
        forward_batch_windows: Most windows in one `forward`; batches also span rows and layers.
        average: ``"logits"``, or ``"probabilities"``: the mean is over the probabilities that `activation` makes.
        activation: ``"softmax"`` over the classes, or ``"sigmoid"`` of each.
        flip_axes: Axes to mirror windows along, as in `itkit.ops.mirror.mirrored_inference`. Empty: none.
        box: Where the scores matter. Windows that do not touch it are left out. Inside, the scores are to the bit what they
            are without a box (but for other partners in the batches of `forward`); outside, they are `outside`. None: everywhere.
        outside: Scores (K,) of voxels outside of `box`. None: those of the first class (probability 1; logit 0 beside -100);
            of no class where classes are independent (``"sigmoid"``) or there is only one.
        axis: The streaming axis.
        whole_planes: Yield whole planes. False: yield rows of planes, in the order in which they become final; less memory.
        row_axis: The axis along which rows follow each other where they are yielded; best the longer one of the two. None: the
            first of the axes that are not `axis`.
        accumulate_device: Where sums over windows are kept, e.g. ``"cpu"`` for a network on a GPU. None: where the answers
            are. Torch only.
        asarray: Makes of windows (B, C, *patch), NumPy, what `forward` takes. None: they stay as they are.
        progress: Called with (windows done, windows in all) after each batch.
        on_memory_error: Told in a sentence what is done about a want of memory: smaller batches, then sums in the memory of
            the CPU. None: a warning is given.

    Yields:
        Slabs that cover the volume once. Each begins where one before it ended, along the axis and along the rows.

    Raises:
        ConfigError: If numbers, names, or the shapes that `read` and `forward` return make no sense.
        PredictionError: If memory does not suffice even so, or a float16 answer is not finite.
    """
    size = tuple(size)
    axes = len(size)
    if axes not in (2, 3):
        raise ConfigError(f"a stream of windows needs a size of two or three axes; found {size}.")
    for name, value, allowed in (
        ("average", average, AVERAGES),
        ("activation", activation, ACTIVATIONS),
        ("padding", padding, PADDINGS),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} is unknown; choose {' or '.join(allowed)}.")
    if not isinstance(axis, int) or not 0 <= axis < axes:
        raise ConfigError(f"axis {axis!r} does not exist in {axes}D; choose from {list(range(axes))}.")
    if box is not None and len(box) != axes:
        raise ConfigError(f"a box of {len(box)} slices does not fit a volume of {axes} axes.")
    others = [other for other in range(axes) if other != axis]
    if row_axis is None:
        row_axis = others[0]
    if row_axis not in others:
        raise ConfigError(f"row_axis {row_axis!r} must be one of {others}, the axes beside axis {axis}.")
    order = (axis, row_axis, *(other for other in others if other != row_axis))
    lattice = WindowLattice(size, patch_size, patch_stride, order=order, cut=1 if whole_planes else 2, box=box)
    groups = mirror_groups(flip_axes, axes)
    means = WindowMeans(
        lattice,
        blending=blending,
        sigma_scale=sigma_scale,
        activation=activation if average == "probabilities" else None,
        independent=activation == "sigmoid",
        device=accumulate_device,
        outside=outside,
    )
    pad_options = {} if padding == "edge" else {"constant_values": pad_value}

    def window_at(window: tuple[int, ...]) -> np.ndarray:
        inside, margins = lattice.inside(window)
        voxels = read(inside)
        wanted = tuple(part.stop - part.start for part in inside)
        shape = getattr(voxels, "shape", ())
        if len(shape) != axes + 1 or shape[1:] != wanted or channels not in (None, shape[0]):
            raise ConfigError(
                f"read returned {f'shape {tuple(shape)}' if shape else type(voxels).__name__} for a box; it must be "
                f"{('C' if channels is None else channels, *wanted)}."
            )
        if any(map(any, margins)):
            voxels = np.pad(voxels, [(0, 0), *margins], mode=padding, **pad_options)
        return voxels

    def gather(batch: Sequence[tuple[int, tuple[int, ...]]]) -> Any:
        first = window_at(batch[0][1])
        windows = np.empty((len(batch), *first.shape), first.dtype)
        windows[0] = first
        for place, (_, window) in enumerate(batch[1:], 1):
            windows[place] = window_at(window)
        return windows if asarray is None else asarray(windows)

    cells = run_windows(
        lattice,
        means,
        gather,
        forward,
        forward_batch_windows=forward_batch_windows,
        mirror_groups=groups,
        progress=progress,
        on_memory_error=on_memory_error,
    )
    first = (0, axis + 1, *(other + 1 for other in others))

    def slab(cell: tuple[int, Box, Any]) -> Slab:
        _, place, scores = cell
        if axis:
            scores = scores.transpose(first) if isinstance(scores, np.ndarray) else scores.permute(first)
        beside = tuple(place[other] for other in others)
        whole = all(part == slice(0, size[other]) for part, other in zip(beside, others, strict=True))
        return Slab(place[axis].start, place[axis].stop, scores, None if whole else beside)

    yield from map(slab, cells)  # no variable here keeps a slab alive while the next one is made
