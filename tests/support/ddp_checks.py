"""What several processes check together in tests of DDP; each function runs on all ranks of a task of `parallel_runs`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import parallel_runs as runs
import torch
import torch.distributed as dist
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from itkit.experiment.names import find_experiment
from itkit.mm.config import load_config
from itkit.mm.model_state import full_model_state
from itkit.mm.optim import OptimWrapper
from itkit.mm.preparation import prepare
from itkit.mm.runner import ExperimentRunner
from itkit.mm.strategies.ddp import RemasteredDDP
from itkit.mm.strategies.log_means import LogMeans
from itkit.mm.strategies.sync_batch_norm import GlobalBatchNorm, synchronise_batch_norms
from itkit.registry import METRICS, MODELS


class NaiveDDP(DistributedDataParallel):
    """The wrapper that one writes first: it hands the step to the model, past the reduction."""

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> Any:
        return self.module.train_step(data, optim_wrapper)


def apart(folder: str, wrapper: str) -> list[dict[str, float]]:
    """Train five steps with `NaiveDDP` or `RemasteredDDP`; return the weights of all ranks by name."""
    torch.manual_seed(0)
    model = runs.SeveralForwards()
    wrapped = {"naive": NaiveDDP, "remastered": RemasteredDDP}[wrapper](model)
    optim_wrapper = OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    dataset = runs.DrawnVolumes()
    for step in range(5):
        first = 4 * step + 2 * dist.get_rank()
        batch = runs.stack_volumes([dataset[index % 24] for index in (first, first + 1)])
        wrapped.train_step(batch, optim_wrapper=optim_wrapper)
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@MODELS.register_module(force=True)
class MovesByRank(runs.SmallSegmenter):
    """Changes a weight by hand, differently on each process, beside a proper loss."""

    def train_step(self, data, optim_wrapper):
        with torch.no_grad():
            self.net[-1].bias.add_(1e-3 * dist.get_rank())
        return super().train_step(data, optim_wrapper)


@MODELS.register_module(force=True)
class BackwardItself(runs.SmallSegmenter):
    """Trains past the reduction."""

    def train_step(self, data, optim_wrapper):
        loss = self(**data, mode="loss")["loss_ce"]
        loss.backward()
        optim_wrapper.optimizer.step()
        return {"loss": loss}


@MODELS.register_module(force=True)
class UsesByNumber(runs.SmallSegmenter):
    """Sends odd samples through a spare head, so that a process may lack one of the heads in a step."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Conv3d(1, 3, 1)

    def forward(self, inputs, labels=None, numbers=None, mode="tensor"):
        if mode != "loss":
            return super().forward(inputs, labels, numbers, mode)
        losses = []
        for image, label, number in zip(inputs, labels, numbers, strict=True):
            head = self.spare if number % 2 else self.net
            losses.append(nn.functional.cross_entropy(head(image[None]), label[None]))
        return {"loss_ce": torch.stack(losses).mean()}


@MODELS.register_module(force=True)
class BadOnOneRank(runs.SmallSegmenter):
    """Its loss is NaN from the third step on, on the last process only."""

    steps = 0

    def forward(self, inputs, labels=None, numbers=None, mode="tensor"):
        answer = super().forward(inputs, labels, numbers, mode)
        if mode == "loss":
            self.steps += 1
            if self.steps >= 3 and dist.get_rank() == dist.get_world_size() - 1:
                answer["loss_ce"] = answer["loss_ce"] * float("nan")
        return answer


@METRICS.register_module(force=True)
class DiffersByRank(BaseMetric):
    """A metric that gets better on the first process and worse on all others."""

    def process(self, data_batch, data_samples):
        self.seen = [*getattr(self, "seen", []), *(sample["number"] for sample in data_samples)]

    def evaluate(self, size):
        self.calls = getattr(self, "calls", 0) + 1
        self.results = []
        return {"score": 0.1 * self.calls if dist.get_rank() == 0 else -0.1 * self.calls}

    def compute_metrics(self, results):
        return {}


@MODELS.register_module(force=True)
class UsesNothing(runs.SmallSegmenter):
    """Has a layer that takes part in nothing."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Conv3d(1, 3, 1)


def fails(folder: str, model: str, patience: int = 1) -> dict[str, Any]:
    """Train until an error comes; return its kind and message, and whether the weights were still those of the start."""
    hooks = [{"type": "NonFiniteLossHook", "patience": patience}]
    runner = runs.build(folder, parallel="ddp", model={"type": model}, iterations=9, config={"custom_hooks": hooks})
    before = {name: weight.clone() for name, weight in runner.model.module.state_dict().items()}
    try:
        runner.train()
    except Exception as error:
        after = runner.model.module.state_dict()
        unchanged = all(torch.equal(before[name], after[name]) for name in before)
        return {"kind": type(error).__name__, "message": str(error), "unchanged": unchanged}
    finally:
        runner.close()
    return {"kind": "none", "message": "it trained", "unchanged": False}


def trained(folder: str, **settings: Any) -> dict[str, torch.Tensor]:
    """Return the weights after a training; this file's models are known here."""
    return runs.train(folder, iterations=5, **settings)["weights"]


def early_stop(folder: str) -> dict[str, Any]:
    """Train with early stopping on `DiffersByRank`; return after how many steps each rank ended, and what it has seen."""
    loader = runs.case_loader(3)
    config = {
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 6, "val_interval": 1},
        "val_dataloader": loader,
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": [{"type": "DiffersByRank"}],
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": -1, "save_best": None}},
        "custom_hooks": [{"type": "KeepLosses"}, {"type": "EarlyStoppingHook", "monitor": "score", "patience": 2}],
    }
    runner = runs.build(folder, parallel="ddp", config=config)
    runner.train()
    metric = runner.val_loop.evaluator.metrics[0]
    runner.close()
    return {"steps": runner.iter, "seen": metric.seen, "validations": metric.calls}


def statistics(folder: str, dtype: str, shape: list[int], sizes: list[int], **options: Any) -> dict[str, float]:
    """Compare `GlobalBatchNorm` over processes that hold `sizes` samples with ``BatchNorm`` over all of them.

    Returns:
        The largest differences of outputs, gradients (of the input, weight and bias) and running statistics, each as a
        share of the largest value.
    """
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    rank, count, channels = dist.get_rank(), sum(sizes), shape[0]
    dims = len(shape)
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[dims](channels, **options).to(
        kind
    )
    if norm.affine:
        nn.init.normal_(norm.weight, generator=generator)
        nn.init.normal_(norm.bias, generator=generator)
    ours = GlobalBatchNorm(channels, **options).to(kind)
    ours.load_state_dict(norm.state_dict())
    found: dict[str, float] = {}

    def compare(name: str, a: torch.Tensor, b: torch.Tensor) -> None:
        if a.numel():
            share = float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
            found[name] = max(found.get(name, 0.0), share)

    begin = sum(sizes[:rank])
    own = slice(begin, begin + sizes[rank])
    for _ in range(3):
        x = (3 * torch.randn(count, *shape, generator=generator, dtype=torch.float64) + 5).to(kind)
        weight_of_loss = torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(kind)
        whole = x.clone().requires_grad_()
        part = x[own].clone().requires_grad_()
        expected, out = norm(whole), ours(part)
        compare("output", expected[own].detach(), out.detach())
        norm.zero_grad(), ours.zero_grad()
        (expected * weight_of_loss).sum().backward()
        (out * weight_of_loss[own]).sum().backward()
        compare("input gradient", whole.grad[own], part.grad)
        for name, parameter in ours.named_parameters():
            total = parameter.grad.clone()
            dist.all_reduce(total)
            compare(f"{name} gradient", dict(norm.named_parameters())[name].grad, total)
    for name, buffer in ours.named_buffers():
        compare(name, dict(norm.named_buffers())[name].double(), buffer.double())
    norm.eval(), ours.eval()
    compare("evaluation", norm(x[own]).detach(), ours(x[own]).detach())
    return found


def exchanged(folder: str) -> dict[str, Any]:
    """Exchange the batch normalisations of a model, also one of PyTorch's that refuses CPUs; return what came of it."""
    shared = nn.BatchNorm2d(3, momentum=0.3)
    model = nn.Sequential(shared, nn.InstanceNorm2d(3), nn.ModuleDict({"again": shared}), nn.SyncBatchNorm(3))
    parameters, names = [id(p) for p in model.parameters()], list(model.state_dict())
    half = synchronise_batch_norms(model, None)
    kinds_before = [type(module).__name__ for module in half.modules()]
    full = synchronise_batch_norms(half, True)
    full[0](torch.randn(2, 3, 4, 4))
    return {
        "kinds_before": kinds_before,
        "kinds": [type(module).__name__ for module in full.modules()],
        "same": [id(p) for p in full.parameters()] == parameters and list(full.state_dict()) == names,
        "shared": full[0] is full[2]["again"],
        "momentum": full[0].momentum,
    }


def too_few(folder: str) -> None:
    """Normalise one value per channel over all processes."""
    GlobalBatchNorm(2)(torch.zeros(1 if dist.get_rank() == 0 else 0, 2))


def means(folder: str) -> list[dict[str, Any]]:
    """Average numbers that partly have other names on the second process, or are missing in a step."""
    rank = dist.get_rank()
    mean = LogMeans()
    first = mean({"loss": torch.tensor(float(rank)), "rate": 0.5, f"own_{rank}": rank + 0.25})
    second = mean({"loss": torch.tensor(float("nan") if rank else 1.0)})
    third = mean({"rate": 2.0 * rank} if rank else {})
    return [first, second, third]


def buffers(folder: str) -> dict[str, Any]:
    """Train a batch norm that is not synchronised; return its running statistics after each step."""
    torch.set_default_dtype(torch.float64)
    runner = runs.build(folder, parallel="ddp", model={"type": "SmallSegmenter", "norm": "batch"}, iterations=3)
    runner.train()
    runner.close()
    return {name: buffer.clone() for name, buffer in runner.model.module.named_buffers()}


# ---- validation and test of an experiment ----


def experiment_runner(folder: str, root: str, parallel: str, changes: dict[str, Any]) -> ExperimentRunner:
    """Return a runner of the tiny experiment below `root`, on global batches of six, with `changes` (dotted keys) to it."""
    os.environ["ITKIT_DATA"] = str(Path(root) / "data")
    several = dist.is_initialized()
    cfg = load_config(find_experiment("0.1", Path(root) / "configs"), "unet", changes)
    cfg.parallel = parallel if several else "none"
    cfg.train_dataloader.batch_size = 6 // (dist.get_world_size() if several else 1)
    cfg.log_level = "ERROR"
    cfg = prepare(cfg, work_dir=Path(folder) / "work" / "unet", launcher="pytorch" if several else "none")
    cfg.experiment_name = f"{Path(folder).name}_{next(runs._numbers)}"
    return ExperimentRunner.from_cfg(cfg, test_dir=Path(folder) / "test" / "unet")


def train_experiment(folder: str, root: str, parallel: str = "ddp") -> dict[str, torch.Tensor]:
    """Train five steps as the experiment says, but with SGD and without dropout; return the weights."""
    changes = {
        "optim_wrapper.optimizer": {"_delete_": True, "type": "SGD", "lr": 0.05, "momentum": 0.9},
        "model.backbone.dropout": 0.0,
        "train_cfg.max_iters": 5,
        "train_cfg.val_begin": 9,
        "custom_hooks": [],
    }
    runner = experiment_runner(folder, root, parallel, changes)
    runner.train()
    runner.close()
    return full_model_state(runner.model, on_all_ranks=True)


def evaluate(
    folder: str, root: str, cases: int, parallel: str = "ddp", inference: dict | None = None
) -> dict[str, Any]:
    """Test and validate the tiny experiment below `root` on its first `cases` cases.

    Returns:
        Metrics of the test and the validation, rows of their cases, and how many cases this process predicted.
    """
    changes = {f"{part}_dataloader.dataset.indices": cases for part in ("val", "test")}
    runner = experiment_runner(folder, root, parallel, {**changes, "model.inference_config": inference})
    count = _Counter()
    runner.register_hook(count)
    try:
        metrics = runner.test()
        rows = runner.test_loop.evaluator.metrics[0].case_rows
        validated = runner.val()
        return {
            "metrics": metrics,
            "rows": rows,
            "validated": validated,
            "val_rows": runner.val_loop.evaluator.metrics[0].case_rows,
            "predicted": count.cases,
        }
    finally:
        runner.close()


class _Counter(Hook):
    cases = 0

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.cases += len(outputs)
