"""What several processes check together in tests of FSDP; each function runs on all ranks of a task of `parallel_runs`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import ddp_checks
import parallel_runs as runs
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.distributed.tensor import DTensor

from itkit.mm import model_state, precision
from itkit.mm.precision import AutocastOptimWrapper
from itkit.mm.strategies.ddp import RemasteredDDP
from itkit.mm.strategies.fsdp import RemasteredFSDP
from itkit.registry import HOOKS, METRICS, MODELS


@MODELS.register_module(force=True)
class Mixed(runs.SmallSegmenter):
    """Frozen, tied and one-element weights, a weight used without its module, buffers, and random initial weights."""

    def __init__(self, norm: str = "group"):
        super().__init__(norm)
        self.net[0].requires_grad_(False)
        self.slope = nn.PReLU()
        self.before, self.after = nn.Conv3d(3, 3, 1, bias=False), nn.Conv3d(3, 3, 1, bias=False)
        self.after.weight = self.before.weight
        self.scale = nn.Parameter(torch.ones(3, 1, 1, 1))
        self.register_buffer("seen_batches", torch.zeros((), dtype=torch.int64))

    def init_weights(self):
        nn.init.normal_(self.before.weight, std=0.5)

    def forward(self, inputs, labels=None, numbers=None, mode="tensor"):
        if mode != "loss":
            return super().forward(inputs, labels, numbers, mode)
        self.seen_batches += 1
        out = self.after(self.slope(self.before(self.net(inputs)))) * self.scale
        return {"loss_ce": nn.functional.cross_entropy(out, labels)}


@MODELS.register_module(force=True)
class ReachesInside(runs.SmallSegmenter):
    """Uses a convolution's weight instead of calling the convolution."""

    def forward(self, inputs, labels=None, numbers=None, mode="tensor"):
        features = self.net[:3](inputs)
        out = nn.functional.conv3d(features, self.net[3].weight, padding=1)
        return {"loss_ce": nn.functional.cross_entropy(self.net[6](out), labels)}


@MODELS.register_module(force=True)
class ChoosesAHead(runs.SmallSegmenter):
    """Has two heads alike and takes one by the number of the first sample, from the third step on."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv3d(3, 3, 3, padding=1) for _ in range(2))
        self.steps = 0

    def forward(self, inputs, labels=None, numbers=None, mode="tensor"):
        self.steps += 1
        head = self.heads[numbers[0] % 2 if self.steps >= 3 else 0]
        return {"loss_ce": nn.functional.cross_entropy(head(self.net(inputs)), labels)}


@MODELS.register_module(force=True)
class UpdatesTwice(runs.SmallSegmenter):
    """Steps twice in a step."""

    def train_step(self, data, optim_wrapper):
        for _ in range(2):
            loss = self(**data, mode="loss")["loss_ce"]
            optim_wrapper.update_params(loss)
        return {"loss": loss}


@MODELS.register_module(force=True)
class Windows(runs.SmallSegmenter):
    """Predicts case n by n + 1 calls of the network."""

    def forward(self, inputs, labels=None, numbers=None, mode="tensor"):
        if mode != "predict":
            return super().forward(inputs, labels, numbers, mode)
        outs = [[self.net(image[None] + i) for i in range(n + 1)] for image, n in zip(inputs, numbers, strict=True)]
        return [{"number": n, "sum": float(torch.stack(o).sum())} for n, o in zip(numbers, outs, strict=True)]


@METRICS.register_module(force=True)
class CaseCount(BaseMetric):
    """Counts cases of all processes."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def evaluate(self, size):
        count = torch.tensor([len(self.results)])
        if dist.is_initialized():
            dist.all_reduce(count)
        self.results = []
        return {"cases": int(count)}

    def compute_metrics(self, results):
        return {}


@HOOKS.register_module(force=True)
class KeepPredictions(Hook):
    """Keeps what validation predicted, and whether weights were whole then."""

    def __init__(self):
        self.sums: list[tuple[int, int, float]] = []
        self.kinds: set[str] = set()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.sums += [(runner.iter, out["number"], out["sum"]) for out in outputs]
        self.kinds |= {type(p.data).__name__ for p in runner.model.parameters()}


class TwoForwards(runs.SmallSegmenter):
    """Computes its losses by ``training_loss``, with two forwards."""

    def training_loss(self, inputs, labels, numbers):
        first, second = self.net(inputs), self.net(inputs.flip(-1)).flip(-1)
        return {
            "loss_ce": nn.functional.cross_entropy(first, labels),
            "loss_same": (first - second).square().mean(),
        }


def own_loop(folder: str, parallel: str, batch: int) -> dict[str, Any]:
    """Train five steps in a loop of one's own over the wrapper's ``training_loss``; return the weights of this process."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = TwoForwards()
    wrapped = {"none": lambda m: m, "ddp": RemasteredDDP, "fsdp": RemasteredFSDP}[parallel](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    dataset, rank = runs.DrawnVolumes(), dist.get_rank() if parallel != "none" else 0
    for step in range(5):
        samples = [dataset[(6 * step + batch * rank + i) % 24] for i in range(batch)]
        optimizer.zero_grad()
        sum(wrapped.training_loss(**runs.stack_volumes(samples)).values()).backward()
        optimizer.step()
    return model_state.full_model_state(wrapped, on_all_ranks=True)


def fails(folder: str, **settings: Any) -> None:
    """Train; the test reads what was raised."""
    runner = runs.build(folder, parallel="fsdp", **settings)
    try:
        runner.train()
    finally:
        runner.close()


def trained(folder: str, **settings: Any) -> dict[str, Any]:
    """Train; this file's models are known here."""
    return runs.train(folder, **settings)


def validated(folder: str, cases: int, **settings: Any) -> dict[str, Any]:
    """Train four steps with two validations on `cases` cases; return what each process predicted, and the weights."""
    loader = runs.case_loader(cases)
    config = {
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 4, "val_interval": 2},
        "val_dataloader": loader,
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": [{"type": "CaseCount"}],
        "custom_hooks": [{"type": "EMAHook", "decay": 0.5}, {"type": "KeepPredictions"}],
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": -1, "save_best": "cases"}},
    }
    runner = runs.build(folder, model={"type": "Windows"}, config=config, **settings)
    runner.train()
    kept = next(hook for hook in runner.hooks if isinstance(hook, KeepPredictions))
    weights = model_state.full_model_state(runner.model, on_all_ranks=True)
    runner.close()
    best = runner.run_state.best
    saved = torch.load(Path(folder) / best["checkpoint"], weights_only=True) if best else None
    return {"sums": kept.sums, "kinds": kept.kinds, "weights": weights, "best": saved}


def wrapped(model: nn.Module | None = None, **options: Any) -> RemasteredFSDP:
    torch.manual_seed(dist.get_rank())  # the first process's weights count
    return RemasteredFSDP(runs.SmallSegmenter() if model is None else model, **options)


def batch(first: int, count: int = 2) -> dict[str, Any]:
    dataset = runs.DrawnVolumes()
    return runs.stack_volumes([dataset[index % 24] for index in range(first, first + count)])


def refuses_fp16(folder: str) -> None:
    """Train in fp16 by an optimizer wrapper that does not scale the loss."""
    wrapper = wrapped()
    wrapper.precision = "fp16"
    wrapper.train_step(batch(0), OptimWrapper(torch.optim.SGD(wrapper.parameters(), lr=0.1)))


def refuses_an_optimizer_of_before(folder: str) -> None:
    """Train by an optimizer that was built over the model before it was cut."""
    model = runs.SmallSegmenter()
    optim_wrapper = OptimWrapper(torch.optim.SGD(list(model.parameters()), lr=0.1))
    wrapped(model).train_step(batch(0), optim_wrapper)


def memory(folder: str) -> dict[str, Any]:
    """Train AdamW two steps on a larger network; return the bytes that this process keeps, and those of one alone."""
    torch.manual_seed(0)
    model = runs.SmallSegmenter()
    model.net = nn.Sequential(
        nn.Conv3d(1, 32, 3, padding=1), *(nn.Conv3d(32, 32, 3, padding=1) for _ in range(12)), nn.Conv3d(32, 3, 1)
    )
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    wrapper = RemasteredFSDP(model)
    optim_wrapper = OptimWrapper(torch.optim.AdamW(wrapper.parameters(), lr=1e-3, foreach=True))
    for step in range(2):
        wrapper.train_step(batch(2 * step), optim_wrapper=optim_wrapper)
    weights = [p.to_local() for p in wrapper.parameters()]
    states = [
        v.to_local()
        for entry in optim_wrapper.optimizer.state.values()
        for v in entry.values()
        if isinstance(v, DTensor)
    ]
    return {
        "weights": _bytes(weights),
        "states": _bytes(states),
        "whole": whole,
        "units": wrapper.unit_names,
        "parts": all(isinstance(p, DTensor) for p in wrapper.parameters()),
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def states(folder: str) -> dict[str, Any]:
    """Look at a wrapper's ways between parts and whole weights; return what came of it."""
    wrapper = wrapped()
    module = wrapper.module
    start = model_state.full_model_state(wrapper, on_all_ranks=True)
    torch.manual_seed(0)
    first = runs.SmallSegmenter().state_dict()
    found: dict[str, Any] = {"first": all(torch.equal(first[name], start[name]) for name in first)}
    found |= {"names": list(start), "bare": model_state.unwrap(wrapper) is module, "start": start}
    try:
        wrapper.val_step(batch(0))
    except Exception as error:
        found["not whole"] = f"{type(error).__name__}: {error}"
    found["attributes"] = (wrapper.seen is module.seen, hasattr(wrapper, "nothing"), wrapper.precision)
    wrapper.eval()
    with torch.inference_mode():
        predicted = wrapper.val_step(batch(0, 1 + dist.get_rank()))  # as many calls as this process likes
    found["predicted"] = predicted[0]["sum"]
    found["expected"] = _plain_prediction(start)
    inside = model_state.full_model_state(wrapper, on_all_ranks=True)  # while whole
    found["whole kinds"] = {type(p.data).__name__ for p in module.parameters()}
    found["no gradient"] = not any(p.requires_grad for p in module.parameters())
    wrapper.train()
    found["part kinds"] = {type(p.data).__name__ for p in module.parameters()}
    found["same"] = all(torch.equal(start[name], inside[name]) for name in start)
    with model_state.whole_to_change(wrapper):
        nn.init.constant_(module.net[3].weight, 0.25)
    changed = model_state.full_model_state(wrapper, on_all_ranks=True)
    found["changed"] = [name for name in start if not torch.equal(start[name], changed[name])]
    found["constant"] = bool((changed["net.3.weight"] == 0.25).all())
    model_state.load_model_state(wrapper, start)
    again = model_state.full_model_state(wrapper, on_all_ranks=True)
    found["loaded"] = all(torch.equal(start[name], again[name]) for name in start)
    found["finite"] = [model_state.is_finite(wrapper)]
    if dist.get_rank() == 1:
        with torch.no_grad():
            model_state.local(module.net[3].weight)[0] = float("nan")
    found["finite"].append(model_state.is_finite(wrapper))
    has_bf16, precision.cpu_has_bf16 = precision.cpu_has_bf16, lambda: False
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found["without bf16"] = RemasteredFSDP(runs.SmallSegmenter(), precision="bf16").precision
    precision.cpu_has_bf16 = has_bf16
    found["warned"] = [str(warning.message) for warning in warned]
    return found


def _plain_prediction(state: dict[str, torch.Tensor]) -> float:
    plain = runs.SmallSegmenter()
    plain.load_state_dict(state)
    return plain.eval().val_step(batch(0, 1))[0]["sum"]


def in_eval_mode(folder: str) -> list[float]:
    """Train a wrapper in evaluation mode, as for a frozen normalisation, and one in training mode; return weights."""
    sums = []
    for training in (True, False):
        wrapper = wrapped()
        optim_wrapper = OptimWrapper(torch.optim.SGD(wrapper.parameters(), lr=0.1))
        for step in range(2):
            wrapper.train(training)
            wrapper.train_step(batch(2 * step), optim_wrapper=optim_wrapper)
        state = model_state.full_model_state(wrapper, on_all_ranks=True)
        sums.append(float(sum(v.double().abs().sum() for v in state.values())))
    return sums


def accumulates(folder: str) -> dict[str, Any]:
    """Train two steps whose gradients are added up; return whether gradients and weights were there after each."""
    wrapper = wrapped()
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1)
    optim_wrapper = OptimWrapper(optimizer, accumulative_counts=2)
    reduced: list[bool] = []
    optimizer.register_step_pre_hook(lambda *_: reduced.append(all(p.grad is not None for p in wrapper._trained)))
    start = model_state.full_model_state(wrapper, on_all_ranks=True)
    found: dict[str, Any] = {"reduced": reduced, "early": [], "changed": []}
    for step in range(2):
        wrapper.train_step(batch(2 * step), optim_wrapper=optim_wrapper)
        found["early"].append(any(p.grad is not None for p in wrapper._trained))
        now = model_state.full_model_state(wrapper, on_all_ranks=True)
        found["changed"].append(not torch.equal(start["net.3.weight"], now["net.3.weight"]))
    return found


def half(folder: str, **settings: Any) -> dict[str, Any]:
    """Train in bfloat16, whatever this processor is good at; return the answer and the types that were seen."""
    precision.cpu_has_bf16 = lambda: True
    seen: dict[str, set[str]] = {"convolutions": set(), "norms": set(), "activations": set()}

    def watch(module: nn.Module, inputs: tuple) -> None:
        if module.training:
            seen["convolutions" if isinstance(module, nn.Conv3d) else "norms"].add(str(module.weight.dtype))
            seen["activations"].add(str(inputs[0].dtype))

    config = {"precision": "bf16", "sync_bn": True}
    runner = runs.build(folder, dtype="float32", config=config, **settings)
    for module in runner.model.modules():
        if isinstance(module, (nn.Conv3d, nn.modules.batchnorm._BatchNorm)):
            module.register_forward_pre_hook(watch)
    try:
        runner.train()
        weights = model_state.full_model_state(runner.model, on_all_ranks=True)
        losses = [h.values for h in runner.hooks if isinstance(h, runs.KeepLosses)][0]
        return {"weights": weights, "losses": losses, "seen": seen}
    finally:
        runner.close()


def alone(folder: str, device: str = "cpu", precision: str | None = None) -> dict[str, Any]:
    """Train four steps in a group of one process, cut (into one part), copied, and plain; return weights and losses."""
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    kind = {"bf16": AutocastOptimWrapper, "fp16": AmpOptimWrapper, None: OptimWrapper}[precision]
    torch.set_default_dtype(torch.float64 if precision is None else torch.float32)
    answer: dict[str, Any] = {}
    for way in ("plain", "ddp", "fsdp"):
        torch.manual_seed(0)
        model: nn.Module = runs.SmallSegmenter().to(device)
        if way == "ddp":
            model = RemasteredDDP(model)
        elif way == "fsdp":
            model = RemasteredFSDP(model, precision=precision)
        trained = [p for p in model.parameters() if p.requires_grad]
        options = {"clip_grad": {"max_norm": 0.05}, "accumulative_counts": 2}
        optim_wrapper = kind(optimizer=torch.optim.AdamW(trained, lr=0.01, foreach=True), **options)
        losses = []
        for step in range(4):
            losses.append(float(model.train_step(batch(2 * step), optim_wrapper=optim_wrapper)["loss"]))
        model.eval()
        with torch.inference_mode():
            predicted = model.val_step(batch(0))[0]["sum"]
        model.train()
        weights = model_state.full_model_state(model)
        answer[way] = {"losses": losses, "predicted": predicted, "weights": weights}
    return answer


def muon(folder: str, parallel: str, **settings: Any) -> dict[str, Any]:
    """Train with Muon and its constructor."""
    import itkit.mm.muon  # noqa: F401 - registers

    runner = runs.build(
        folder,
        parallel=parallel,
        config={
            "optim_wrapper": {
                "constructor": "MuonOptimWrapperConstructor",
                "optimizer": {"type": "Muon", "lr": 0.02, "weight_decay": 0.01},
            }
        },
        **settings,
    )
    try:
        runner.train()
        return model_state.full_model_state(runner.model, on_all_ranks=True)
    finally:
        runner.close()


def flexible(
    folder: str, iterations: int, resume_from: str | None = None, strategy: dict | None = None
) -> dict[str, Any]:
    """Train by MMEngine's FlexibleRunner; return whole weights and what was saved."""
    torch.set_default_dtype(torch.float64)
    loader = {
        "dataset": {"type": "itkit.DrawnVolumes"},
        "num_workers": 0,
        "sampler": {"type": "itkit.StreamSampler"},
        "collate_fn": {"type": "itkit.stack_volumes"},
    }
    count = dist.get_world_size() if dist.is_initialized() else 1
    cases = {**loader, "dataset": {"type": "itkit.DrawnVolumes", "size": 3}, "sampler": {"type": "itkit.CaseSampler"}}
    cfg = Config(
        {
            "model": {"type": "SmallSegmenter"},
            "work_dir": folder,
            "strategy": {"type": "RemasteredFSDP_Strategy", **(strategy or {})},
            "train_dataloader": {**loader, "batch_size": 6 // count},
            "train_cfg": {"type": "mmengine.IterBasedTrainLoop", "max_iters": iterations, "val_interval": 3},
            "val_dataloader": {**cases, "batch_size": 1},
            "val_cfg": {"type": "mmengine.ValLoop"},
            "val_evaluator": [{"type": "CaseCount"}],
            "optim_wrapper": {
                "type": "itkit.OptimWrapper",
                "constructor": "itkit.mgam_OptimWrapperConstructor",
                "optimizer": {"type": "AdamW", "lr": 0.01},
                "clip_grad": {"max_norm": 0.05},
            },
            "param_scheduler": [{"type": "LinearLR", "start_factor": 0.5, "end": 20, "by_epoch": False}],
            "custom_hooks": [{"type": "EMAHook", "decay": 0.9}],
            "default_hooks": {
                "checkpoint": {"type": "mmengine.CheckpointHook", "interval": 3, "by_epoch": False},
                "logger": {"type": "mmengine.LoggerHook", "log_metric_by_epoch": False},
            },
            "log_processor": {"by_epoch": False},
            "default_scope": "itkit",
            "randomness": {"seed": 3},
            "env_cfg": {"dist_cfg": {"backend": "gloo"}},
            "launcher": "pytorch" if dist.is_initialized() else "none",
            "experiment_name": f"{Path(folder).name}_{next(runs._numbers)}",
            "log_level": "ERROR",
            **({"resume": True, "load_from": str(Path(folder).parent / resume_from)} if resume_from else {}),
        }
    )
    runner = FlexibleRunner.from_cfg(cfg)
    runner.train()
    state = model_state.full_model_state(runner.model, on_all_ranks=True)
    optimizer = model_state.full_optimizer_state(runner.model, runner.optim_wrapper)
    answer = {"weights": state, "optimizer": optimizer, "kind": type(runner.model).__name__}
    if not dist.is_initialized() or dist.get_rank() == 0:
        answer["saved"] = torch.load(Path(folder) / f"iter_{iterations}.pth", weights_only=True)
    return answer


def evaluate(folder: str, **arguments: Any) -> dict[str, Any]:
    """As in `ddp_checks`."""
    return ddp_checks.evaluate(folder, **arguments)
