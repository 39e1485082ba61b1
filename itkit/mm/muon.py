"""The Muon optimizer for convolutional networks: orthogonal updates for inner weights, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from itkit.errors import ConfigError
from itkit.mm.model_state import local, part_of, whole
from itkit.mm.optim import mgam_OptimWrapperConstructor
from itkit.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS

COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Quintic polynomials a x + b x^3 + c x^5, one a step, after which all singular values lie near 1 (figures: Jiacheng You)."""


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return nearly U V^T of the singular value decomposition U S V^T of `matrix`, by Newton-Schulz iterations.

    Only products with the small square matrix X X^T are iterated, so the cost is that of min(m, n) for the loop.

    Args:
        matrix: (m, n), float.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    identity = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    product = identity
    for a, b, c in COEFFICIENTS:
        polynomial = a * identity + b * gram + c * (gram @ gram)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    x = product @ x
    return x.T if tall else x


@OPTIMIZERS.register_module()
class Muon(torch.optim.Optimizer):
    """MomentUm Orthogonalised by Newton-Schulz, with AdamW for the parameters that are no inner matrices.

    A weight of shape (out, in, *kernel) is taken as a matrix (out, in * kernel). Its update has all singular values near 1,
    times ``lr * sqrt(max(1, out / (in * kernel)))``; the decay is decoupled. Source: K. Jordan et al., *Muon: An optimizer
    for hidden layers in neural networks*, 2024.

    Use it with `MuonOptimWrapperConstructor`, which decides which parameter goes which way. Given bare parameters, those
    with two or more axes go the Muon way.

    Args:
        params: Parameters, or groups with a ``method`` of ``"muon"`` or ``"adamw"``.
        lr: Learning rate of the Muon way; that of AdamW is ``adamw_lr``.
        momentum: Of the Muon way, Nesterov's form.
        weight_decay: Decoupled decay of both.
        adamw_lr: Learning rate of the AdamW way.
        betas: AdamW's decay rates.
        eps: AdamW's.

    Raises:
        ConfigError: If a rate is negative, a method unknown, or a Muon parameter has fewer than two axes.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adamw_lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ):
        for name, value in {"lr": lr, "adamw_lr": adamw_lr, "weight_decay": weight_decay}.items():
            if value < 0:
                raise ConfigError(f"Muon: {name} = {value} is negative.")
        groups = []
        for item in params:
            if not isinstance(item, dict):
                item = {"params": [item], "method": "muon" if item.ndim >= 2 else "adamw"}
            groups.append(item)
        for group in groups:
            method = group.setdefault("method", "adamw")
            if method not in ("muon", "adamw"):
                raise ConfigError(f'Muon: method {method!r} of a parameter group is neither "muon" nor "adamw".')
            if method == "adamw":
                group.setdefault("lr", adamw_lr)
            elif any(p.ndim < 2 for p in group["params"]):
                raise ConfigError("Muon: a parameter with fewer than two axes is no matrix; let it go the adamw way.")
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, betas=tuple(betas), eps=eps))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                (self._muon if group["method"] == "muon" else self._adamw)(group, trained)
        return loss

    def _muon(self, group: dict[str, Any], trained: list[Tensor]) -> None:
        momentum = group["momentum"]
        for weight in trained:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            average = state["momentum"].lerp_(weight.grad, 1 - momentum)
            update = whole(weight.grad.lerp(average, momentum)).flatten(1)
            rows, columns = update.shape
            update = part_of(orthogonalise(update).view(weight.shape), weight, copy=False)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            local(weight).add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _adamw(self, group: dict[str, Any], trained: list[Tensor]) -> None:
        for weight in trained:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
        states = [self.state[weight] for weight in trained]
        adamw(
            trained,
            [weight.grad for weight in trained],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MuonOptimWrapperConstructor(mgam_OptimWrapperConstructor):
    """Send inner weights the Muon way and first and last layers, biases and norms the AdamW way.

    Args:
        optim_wrapper_cfg: As for `mgam_OptimWrapperConstructor`; the optimizer is `Muon`.
        paramwise_cfg: Its keys, and ``adamw_keys``: parts of names of parameters that go the AdamW way although they are
            matrices; by default ``("stem", "head")``. Parameters with one axis always do, without weight decay.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        paramwise_cfg = dict(paramwise_cfg or {})
        self.adamw_keys = tuple(paramwise_cfg.pop("adamw_keys", ("stem", "head")))
        paramwise_cfg = {"norm_decay_mult": 0, "bias_decay_mult": 0, "flat_decay_mult": 0, **paramwise_cfg}
        optimizer = {"weight_decay": 0.0, **optim_wrapper_cfg.get("optimizer", {})}
        super().__init__({**optim_wrapper_cfg, "optimizer": optimizer}, paramwise_cfg)

    def _options(
        self, full: str, module: nn.Module, name: str, parameter: nn.Parameter, used: set[str]
    ) -> dict[str, Any]:
        options = super()._options(full, module, name, parameter, used)
        inner = parameter.ndim >= 2 and not any(key in full for key in self.adamw_keys)
        return {**options, "method": "muon" if inner else "adamw"}
