"""Selective scan, the recurrence of Mamba, in plain PyTorch: blocks of steps, and a backward that computes them again."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from itkit.errors import ConfigError

CHUNK = 8
"""Positions that are scanned together where the scan is written as a graph, and then chunks, and so on."""
FEW_STATES = 2**17
"""A graph for no more numbers than these is not divided into chunks: short is better than quick then."""


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the outputs of a linear recurrence whose coefficients depend on the position.

    For every channel, with a state h of N numbers that begins as zero::

        step = softplus(delta + delta_bias)
        h    = exp(step * A) * h + step * u * B
        y    = sum(C * h) + D * u, times silu(z)

    Nothing of size L * D * N is kept: the forward pass works in blocks of positions that fit into a cache and keeps the
    state at the end of each; the backward pass computes the states within a block again. Sums are float32, or float64
    where `u` or `A` is. Where mamba_ssm is installed, tensors on a GPU go through its kernel. While a graph is traced
    (``torch.export``, ONNX, ``torch.jit``) the scan is written as a logarithmic number of tensor operations.

    Args:
        u: Input (N, D, L), in any memory layout; (N, L, D) transposed is as good.
        delta: Step sizes (N, D, L).
        A: (D, states), negative for a recurrence that forgets.
        B: (N, G, states, L), one for each group of D / G successive channels; or (N, states, L) for all.
        C: Like `B`.
        D: Weight (D,) of the input in the output. None: nothing is added.
        z: Gate (N, D, L). None: no gate.
        delta_bias: (D,), added to `delta`. None: nothing.
        delta_softplus: Step sizes pass a softplus.
        return_last_state: Return the states (N, D, states) after the last position, too.

    Returns:
        (N, D, L), of the type of `u`; with `return_last_state` a pair.

    Raises:
        ConfigError: If shapes do not fit together.

    Source: Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, arXiv 2312.00752.
    """
    B, C = (part.unsqueeze(1) if part.ndim == 3 else part for part in (B, C))
    _check(u, delta, A, B, C)
    traced = torch.jit.is_tracing() or _is_exporting()
    if u.is_cuda and u.dtype != torch.float64 and not traced and (kernel := _mamba_kernel()) is not None:
        A, D, delta_bias = (None if part is None else part.float() for part in (A, D, delta_bias))
        return kernel(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    delta = delta.to(_sum_type(u, A))
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    y, last = _scan_as_graph(u, delta, A, B, C) if traced else _scan(u, delta, A, B, C)[:2]
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z)
    y = y.to(u.dtype)
    return (y, last) if return_last_state else y


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if u.ndim != 3 or u.numel() == 0 or delta.shape != u.shape:
        raise ConfigError(
            f"selective_scan: u and delta must both be (N, D, L), found {tuple(u.shape)} and {tuple(delta.shape)}."
        )
    batch, channels, length = u.shape
    if A.ndim != 2 or A.shape[0] != channels:
        raise ConfigError(f"selective_scan: A must be ({channels}, states), found {tuple(A.shape)}.")
    groups = B.shape[1] if B.ndim == 4 else 0
    if groups == 0 or channels % groups or B.shape != (batch, groups, A.shape[1], length) or C.shape != B.shape:
        raise ConfigError(
            f"selective_scan: B and C must be ({batch}, groups, {A.shape[1]}, {length}) with a number of groups that "
            f"divides {channels}, found {tuple(B.shape)} and {tuple(C.shape)}."
        )


def _is_exporting() -> bool:
    """Return whether ``torch.export`` is at work; versions that cannot tell keep the scan as one operation."""
    return getattr(torch.compiler, "is_exporting", bool)()


@functools.cache
def _mamba_kernel():
    """Return mamba_ssm's function, or None where it is not installed."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn


class _Plan(NamedTuple):
    """How the work is divided.

    Attributes:
        tile: Samples, groups and channels of a group that are scanned together; the others come after.
        lanes: Stretches of a block that take their steps side by side, for tiles that are narrow by themselves.
        steps: Positions of a lane. A block has ``lanes * steps`` positions.
    """

    tile: tuple[int, int, int]
    lanes: int
    steps: int

    @property
    def block(self) -> int:
        return self.lanes * self.steps


def _plan(batch: int, groups: int, channels: int, states: int, length: int, device: str) -> _Plan:
    """Return a plan: on a CPU a step costs a microsecond to begin with and buffers should fit into its cache."""
    narrow, wide, elements = (2**11, 2**13, 2**17) if device != "cuda" else (2**20, 2**22, 2**25)
    channels = min(channels, max(1, wide // states))
    groups = min(groups, max(1, wide // (states * channels)))
    batch = min(batch, max(1, wide // (states * channels * groups)))
    width = batch * groups * channels * states
    positions = min(length, max(16, elements // width))
    lanes = max(1, min(narrow // width, positions // 16))
    return _Plan((batch, groups, channels), lanes, -(-positions // lanes))


def _tiles(shape: tuple[int, int, int], tile: tuple[int, int, int]):
    """Yield slices (samples, groups, channels of a group) that cover `shape`."""
    for i in range(0, shape[0], tile[0]):
        for j in range(0, shape[1], tile[1]):
            for k in range(0, shape[2], tile[2]):
                yield slice(i, i + tile[0]), slice(j, j + tile[1]), slice(k, k + tile[2])


class _Block:
    """Buffers for one block of one tile, with the position as the first axis and the channel as the last.

    Args:
        size: Samples, groups, states and channels of a group.
        plan: The plan that the block belongs to.
        like: A tensor with the device; sums have the type `dtype`.
    """

    def __init__(self, size: tuple[int, int, int, int], plan: _Plan, like: Tensor, dtype: torch.dtype):
        batch, groups, states, channels = size
        make = functools.partial(torch.empty, device=like.device, dtype=dtype)
        self.plan, self.positions = plan, plan.block
        self.u, self.delta, self.drive = (make(self.positions, batch, groups, channels) for _ in range(3))
        self.B, self.C = (make(self.positions, batch, groups, states) for _ in range(2))
        # One place more than positions: the state before the first, and a decay of one after the last.
        self.decay, self.state = (make(self.positions + 1, batch, groups, states, channels) for _ in range(2))

    def load(self, target: Tensor, source: Tensor, begin: int) -> Tensor:
        """Copy positions of `source` (position first) from `begin` on into `target`; zeros after the end."""
        part = source[begin : begin + self.positions]
        target[: len(part)].copy_(part)
        target[len(part) :] = 0
        return target

    def advance(self, A: Tensor, before: Tensor) -> None:
        """Compute decays and states from `u`, `delta`, `B` and the state `before` the block."""
        torch.mul(self.delta.unsqueeze(-2), A, out=self.decay[:-1])
        self.decay[:-1].exp_()
        torch.mul(self.delta, self.u, out=self.drive)
        torch.mul(self.B.unsqueeze(-1), self.drive.unsqueeze(-2), out=self.state[1:])
        self.state[0] = before
        _recur(self.decay[:-1], self.state[1:], before, self.plan.lanes)


def _recur(decay: Tensor, drive: Tensor, before: Tensor, lanes: int, backwards: bool = False) -> None:
    """Turn ``drive`` into the states h[t] = drive[t] + decay[t] * h[t - 1], along the first axis (or against it).

    With several lanes every lane runs twice: from zero, to learn what it hands on, and then from what it was handed.

    Args:
        decay: (L, ...).
        drive: The same shape; overwritten.
        before: State (...) in front of the first step.
        lanes: Number of stretches of equal length that run side by side; it divides L.
        backwards: The first step is the last position.
    """
    if lanes == 1:
        decays, drives = decay.unbind(0), drive.unbind(0)
        if backwards:
            decays, drives = decays[::-1], drives[::-1]
        for factor, added in zip(decays, drives, strict=True):
            before = torch.addcmul(added, factor, before, out=added)
        return
    decay, drive = (part.unflatten(0, (lanes, -1)) for part in (decay, drive))
    ends, total = torch.zeros_like(drive[:, 0]), decay.prod(1)
    decays, drives = decay.unbind(1), drive.unbind(1)
    if backwards:
        decays, drives = decays[::-1], drives[::-1]
    for factor, added in zip(decays, drives, strict=True):
        torch.addcmul(added, factor, ends, out=ends)
    if backwards:
        ends, total = ends.flip(0), total.flip(0)
    ends[0].addcmul_(total[0], before)
    _, ends = _prefixes(total, ends)
    state = torch.cat([before.unsqueeze(0), ends[:-1]])
    if backwards:
        state = state.flip(0)
    for factor, added in zip(decays, drives, strict=True):
        state = torch.addcmul(added, factor, state, out=added)


def _prefixes(decay: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
    """Return the products of `decay` and the states of the recurrence from zero, up to each place of the first axis.

    A logarithmic number of operations: each doubles the stretch that a place has seen.
    """
    seen, length = 1, decay.shape[0]
    while seen < length:
        drive = drive + decay * _later(drive, seen, 0.0)
        decay = decay * _later(decay, seen, 1.0)
        seen *= 2
    return decay, drive


def _later(x: Tensor, places: int, value: float) -> Tensor:
    """Return `x` moved on along the first axis by `places`, which are filled with `value`."""
    return F.pad(x[:-places], (0, 0) * (x.ndim - 1) + (places, 0), value=value)


def _over_states(weights: Tensor, x: Tensor) -> Tensor:
    """Return sums (..., channels) of `x` (..., states, channels), weighted by (..., states)."""
    if x.shape[-2] == 1:
        return x.squeeze(-2) * weights
    return torch.bmm(weights.flatten(0, 2).unsqueeze(1), x.flatten(0, 2)).squeeze(1).unflatten(0, weights.shape[:3])


def _over_channels(x: Tensor, weights: Tensor) -> Tensor:
    """Return sums (..., states) of `x` (..., states, channels), weighted by (..., channels)."""
    return torch.bmm(x.flatten(0, 2), weights.flatten(0, 2).unsqueeze(2)).squeeze(2).unflatten(0, weights.shape[:3])


def _sum_type(u: Tensor, A: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (u.dtype, A.dtype) else torch.float32


def _grouped(channelwise: Tensor, groups: int) -> Tensor:
    """Return (N, D, L) as a view (L, N, G, D / G)."""
    return channelwise.unflatten(1, (groups, -1)).permute(3, 0, 1, 2)


def _sizes(u: Tensor, A: Tensor, B: Tensor) -> tuple[int, int, int, int, int]:
    """Return samples, groups, states, channels of a group, positions."""
    return u.shape[0], B.shape[1], A.shape[1], u.shape[1] // B.shape[1], u.shape[2]


def _plan_of(u: Tensor, A: Tensor, B: Tensor) -> _Plan:
    batch, groups, states, channels, length = _sizes(u, A, B)
    return _plan(batch, groups, channels, states, length, u.device.type)


def _without_autocast(operation):
    """Return `operation` for tensors; within it, products are not made in half precision."""

    @functools.wraps(operation)
    def run(u: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(u.device.type, enabled=False):
            return operation(u, *others)

    return run


@torch.library.custom_op("itkit::selective_scan", mutates_args=())
@_without_autocast
def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs (N, D, L), the last state (N, D, states), and the state in front of every block."""
    batch, groups, states, channels, length = _sizes(u, A, B)
    plan, dtype = _plan_of(u, A, B), _sum_type(u, A)
    A = A.to(dtype).unflatten(0, (groups, -1)).transpose(1, 2)
    y = torch.empty_like(u)
    befores = A.new_zeros(-(-length // plan.block) + 1, batch, groups, states, channels)
    sources = _grouped(u, groups), _grouped(delta, groups), B.permute(3, 0, 1, 2), C.permute(3, 0, 1, 2)
    target = _grouped(y, groups)
    block = None
    for samples, some, part in _tiles((batch, groups, channels), plan.tile):
        decay_rate = A[some, :, part].contiguous()
        before = befores[:, samples, some, :, part]
        size = (before.shape[1], *decay_rate.shape)
        if block is None or block.state.shape[1:] != size:
            block = _Block(size, plan, u, dtype)
        for number, begin in enumerate(range(0, length, plan.block)):
            block.load(block.u, sources[0][:, samples, some, part], begin)
            block.load(block.delta, sources[1][:, samples, some, part], begin)
            block.load(block.B, sources[2][:, samples, some], begin)
            block.load(block.C, sources[3][:, samples, some], begin)
            block.advance(decay_rate, before[number])
            before[number + 1] = block.state[-1]
            answer = target[begin : begin + plan.block, samples, some, part]
            answer.copy_(_over_states(block.C, block.state[1:])[: len(answer)])
    return y, befores[-1].transpose(2, 3).flatten(1, 2).clone(memory_format=torch.contiguous_format), befores


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, groups, states, channels, length = _sizes(u, A, B)
    make, blocks = functools.partial(u.new_empty, dtype=_sum_type(u, A)), -(-length // _plan_of(u, A, B).block)
    befores = make(blocks + 1, batch, groups, states, channels)
    return torch.empty_like(u), make(batch, groups * channels, states), befores


@torch.library.custom_op("itkit::selective_scan_backward", mutates_args=())
@_without_autocast
def _scan_backward(
    dy: Tensor, dlast: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, befores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `u`, `delta`, `A`, `B`, `C` from those of the outputs and the last state."""
    batch, groups, states, channels, length = _sizes(u, A, B)
    plan, dtype = _plan_of(u, A, B), _sum_type(u, A)
    rates = A.to(dtype).unflatten(0, (groups, -1)).transpose(1, 2)
    dlast = dlast.to(dtype).unflatten(1, (groups, -1)).transpose(2, 3)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA, (dB, dC) = torch.zeros_like(rates), (torch.zeros_like(part, dtype=dtype) for part in (B, C))
    along = {"u": u, "delta": delta, "dy": dy, "du": du, "ddelta": ddelta}
    along = {name: _grouped(part, groups) for name, part in along.items()}
    beside = {name: part.permute(3, 0, 1, 2) for name, part in {"B": B, "C": C, "dB": dB, "dC": dC}.items()}
    block = None
    for samples, some, part in _tiles((batch, groups, channels), plan.tile):
        rate = rates[some, :, part].contiguous()
        at = {name: value[:, samples, some, part] for name, value in along.items()}
        at.update({name: value[:, samples, some] for name, value in beside.items()})
        later = dlast[samples, some, :, part].contiguous()
        size = (later.shape[0], *rate.shape)
        if block is None or block.state.shape[1:] != size:
            block = _Block(size, plan, u, dtype)
            dstate, dout = torch.empty_like(block.state[1:]), torch.empty_like(block.u)
            block.decay[-1] = 1
        for begin in reversed(range(0, length, plan.block)):
            count = min(plan.block, length - begin)
            here = slice(begin, begin + count)
            for name in ("u", "delta", "B", "C"):
                block.load(getattr(block, name), at[name], begin)
            block.load(dout, at["dy"], begin)
            block.advance(rate, befores[begin // plan.block, samples, some, :, part].contiguous())
            # dstate[t] = C[t] * dy[t] + decay[t + 1] * dstate[t + 1]
            torch.mul(block.C.unsqueeze(-1), dout.unsqueeze(-2), out=dstate)
            _recur(block.decay[1:], dstate, later, plan.lanes, backwards=True)
            later = block.decay[0] * dstate[0]
            at["dC"][here] += _over_channels(block.state[1:], dout)[:count]
            at["dB"][here] += _over_channels(dstate, block.drive)[:count]
            ddrive = _over_states(block.B, dstate)
            exponent = block.decay[:-1].mul_(block.state[:-1]).mul_(dstate)  # the gradient of delta * A
            dA[some, :, part] += torch.mul(exponent, block.delta.unsqueeze(-2), out=dstate).sum((0, 1))
            at["du"][here] = (ddrive * block.delta)[:count]
            at["ddelta"][here] = torch.addcmul(exponent.mul_(rate).sum(-2), ddrive, block.u)[:count]
    return du, ddelta, dA.transpose(1, 2).flatten(0, 1).to(A.dtype), dB.to(B.dtype), dC.to(C.dtype)


@_scan_backward.register_fake
def _(dy, dlast, u, delta, A, B, C, befores):
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(u),
        torch.empty_like(delta),
        torch.empty_like(A, memory_format=contiguous),
        torch.empty_like(B),
        torch.empty_like(C),
    )


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, output[2])


def _differentiate(ctx, dy, dlast, _):
    return _scan_backward(dy, dlast, *ctx.saved_tensors)


_scan.register_autograd(_differentiate, setup_context=_remember)


def _scan_as_graph(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state by operations of PyTorch alone, few of them however long the sequence is."""
    groups = B.shape[1]
    dtype = _sum_type(u, A)
    rate = A.to(dtype).unflatten(0, (groups, -1)).transpose(1, 2)
    u, delta = (_grouped(part.to(dtype), groups).unsqueeze(-2) for part in (u, delta))
    B, C = (part.to(dtype).permute(3, 0, 1, 2).unsqueeze(-1) for part in (B, C))
    state = _states_as_graph((delta * rate).exp(), delta * u * B)
    y = (state * C).sum(-2)
    return y.permute(1, 2, 3, 0).flatten(1, 2), state[-1].transpose(2, 3).flatten(1, 2)


def _states_as_graph(decay: Tensor, drive: Tensor) -> Tensor:
    """Return the states of the recurrence from zero: within chunks by doubling, from chunk to chunk by the same again."""
    length = decay.shape[0]
    if length <= CHUNK or decay.numel() <= FEW_STATES:
        return _prefixes(decay, drive)[1]
    missing = -length % CHUNK

    def cut(x: Tensor) -> Tensor:
        x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x
        return x.unflatten(0, (-1, CHUNK)).transpose(0, 1)

    decay, state = _prefixes(cut(decay), cut(drive))
    ends = _states_as_graph(decay[-1, :-1], state[-1, :-1])
    state = torch.cat([state[:, :1], state[:, 1:] + decay[:, 1:] * ends], 1)
    return state.transpose(0, 1).flatten(0, 1)[:length]
