"""Batch normalisation over the batch of all processes together, also on CPUs, where PyTorch's own refuses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from itkit.errors import ConfigError

SYNC_BN = (True, False, None, "torch")
"""Values of the config's `sync_bn`."""


class _GlobalNormalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) by channel, mean and biased variance over all processes' samples.

    Source of the gradient: S. Ioffe and C. Szegedy, ICML 2015, with the two means taken over all processes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        sums = torch.cat([x.sum(axes).double(), x.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64)])
        dist.all_reduce(sums, group=group)
        count = sums[-1]
        mean = (sums[:-1] / count).to(x.dtype)
        centred = x - mean.reshape(shape)
        squares = centred.square().sum(axes).double()
        dist.all_reduce(squares, group=group)
        variance = (squares / count).to(x.dtype)
        scale = (variance + eps).rsqrt()
        y = centred * scale.reshape(shape)
        ctx.save_for_backward(y, scale, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        y, scale, count = ctx.saved_tensors
        axes = [0, *range(2, y.ndim)]
        shape = [1, -1] + [1] * (y.ndim - 2)
        sums = torch.stack([dy.sum(axes), (dy * y).sum(axes)]).double()
        dist.all_reduce(sums, group=ctx.group)
        mean_dy, mean_dy_y = (sums / count).to(y.dtype).reshape(2, *shape).unbind(0)
        return (dy - mean_dy - y * mean_dy_y) * scale.reshape(shape), None, None


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation of (N, C, ...) whose statistics are those of the samples of all processes.

    Outputs, gradients and running statistics equal those of PyTorch's ``BatchNorm`` over the global batch; the number of
    samples may differ between processes, and be 0. Statistics of float16 and bfloat16 are computed in float32. Without
    training, or on one process, it is PyTorch's. Parameters and buffers have its names. Not differentiable twice.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch normalisation takes (N, C, ...), found shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised `input`, of its shape and type.

        Raises:
            ValueError: If a channel has one value over all processes together.
        """
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        exact = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        with torch.autocast(input.device.type, enabled=False):
            y, mean, variance, count = _GlobalNormalise.apply(exact, self.eps, None)
            if count <= 1:
                raise ValueError("batch normalisation needs more than one value per channel over all processes")
            if self.track_running_stats:
                self._update_statistics(mean, variance, count)
            if self.affine:
                shape = [1, -1] + [1] * (input.ndim - 2)
                y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def synchronise_batch_norms(model: nn.Module, sync_bn: bool | str | None) -> nn.Module:
    """Return `model` with batch normalisation over all processes; parameters and buffers stay the same objects.

    PyTorch's ``SyncBatchNorm`` on GPUs, `GlobalBatchNorm` elsewhere. A ``SyncBatchNorm`` that the model has already is
    exchanged on CPUs, where it cannot train, whatever `sync_bn` says.

    Args:
        model: On its device. Its modules are exchanged in place.
        sync_bn: True or ``"torch"``: all batch normalisations. None or False: none.

    Raises:
        ConfigError: If `sync_bn` is something else.
    """
    if not any(sync_bn is value or (value == sync_bn and isinstance(sync_bn, str)) for value in SYNC_BN):
        raise ConfigError(f'sync_bn = {sync_bn!r} is not one of True, False, "torch".')
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    if on_gpu:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if sync_bn else model
    return _exchange(model, _BatchNorm if sync_bn else nn.SyncBatchNorm, {})


def _exchange(module: nn.Module, kind: type[nn.Module], done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return `module` with every module of `kind` in it exchanged; one that stands in two places stays one."""
    if module in done:
        return done[module]
    done[module] = new = module
    if isinstance(module, kind) and not isinstance(module, GlobalBatchNorm):
        done[module] = new = GlobalBatchNorm(
            module.num_features, module.eps, module.momentum, affine=False, track_running_stats=False
        )
        new.affine, new.track_running_stats = module.affine, module.track_running_stats
        new._parameters, new._buffers, new.training = module._parameters, module._buffers, module.training
    for name, child in module._modules.items():
        if child is not None:
            new._modules[name] = _exchange(child, kind, done)
    return new
