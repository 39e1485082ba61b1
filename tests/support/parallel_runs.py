"""Small trainings and checks on one, two and three processes, in one group of workers that is started once.

Starting torch and MMEngine costs seconds of CPU time a process, so a test module makes one list of tasks and runs it with
`run_tasks`. A task is a function (``"module:function"``, the module lying in tests/support) with arguments that JSON can
hold, called on each of its processes inside a fresh gloo group; what it returns comes back, one result a process.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from itkit.dataset.stream import sample_generator
from itkit.mm.model_state import full_model_state, full_optimizer_state
from itkit.mm.preparation import prepare
from itkit.mm.runner import ExperimentRunner
from itkit.registry import DATASETS, FUNCTIONS, HOOKS, MODELS

SUPPORT = Path(__file__).resolve().parent
ATTEMPTS = 3
"""How often workers are started, should one be ended by a signal: gloo's thread can crash while a group connects."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One call on several processes.

    Attributes:
        name: Key of the results.
        processes: How many take part, at least 1.
        function: ``"module:function"``.
        arguments: Keyword arguments; a folder of its own is passed as ``folder`` too (str, the same on all ranks).
    """

    name: str
    processes: int = 1
    function: str = "parallel_runs:train"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Failed:
    """What a rank returns whose function raised."""

    kind: str
    message: str
    trace: str


def succeeded(answers: list) -> list:
    """Return the answers of all ranks; fail with the first trace if one of them failed."""
    for rank, answer in enumerate(answers):
        assert not isinstance(answer, Failed), f"rank {rank}\n{answer.trace}"
    return answers


def run_tasks(tasks: list[Task], folder: Path, *, timeout_s: float = 900, device: str = "cpu") -> dict[str, list[Any]]:
    """Run `tasks` in their order and return name -> results by rank (`Failed` where the function raised).

    Raises:
        RuntimeError: If a worker died or was not ready in time, with the ends of what all of them said.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise ValueError(f"task names repeat: {sorted(n for n in names if names.count(n) > 1)}")
    world = max(task.processes for task in tasks)
    (folder / "tasks.json").write_text(json.dumps([dataclasses.asdict(task) for task in tasks]))
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")},
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in (str(SUPPORT), os.environ.get("PYTHONPATH")) if p),
        "PYTHONWARNINGS": "ignore",
    }
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # MMEngine takes a GPU that it sees
    for _ in range(ATTEMPTS):
        codes = _start_all(folder, world, environment, device, timeout_s)
        if not any(code < 0 for code in codes):
            break
        warnings.warn(f"a worker was ended by a signal, exit codes {codes}\n{_said(folder)}", stacklevel=2)
        _clear_unfinished(tasks, folder)
    if any(codes):
        raise RuntimeError(f"workers ended with {codes}\n{_said(folder)}")
    return {
        task.name: [torch.load(_answer(folder, i, rank), weights_only=False) for rank in range(task.processes)]
        for i, task in enumerate(tasks)
    }


def _clear_unfinished(tasks: list[Task], folder: Path) -> None:
    """Remove what tasks left that have not given all their answers, so that they begin anew."""
    for number, task in enumerate(tasks):
        if not _is_done(folder, number, task):
            shutil.rmtree(folder / task.name, ignore_errors=True)
            for path in (folder / f"store_{number}", *folder.glob(f"answer_{number}_*.pt")):
                path.unlink(missing_ok=True)


def _is_done(folder: Path, number: int, task: Task) -> bool:
    return all(_answer(folder, number, rank).exists() for rank in range(task.processes))


def _start_all(folder: Path, world: int, environment: dict[str, str], device: str, timeout_s: float) -> list[int]:
    """Start all workers, wait, and return their exit codes."""
    workers = []
    try:
        for rank in range(world):
            with open(folder / f"rank_{rank}.txt", "wb") as said:
                work = f"import parallel_runs; parallel_runs.work({str(folder)!r}, {rank}, {device!r})"
                command = [sys.executable, "-c", work]
                workers.append(
                    subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
                )
        return [worker.wait(timeout=timeout_s) for worker in workers]
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {timeout_s} s\n{_said(folder)}") from error
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()


def _said(folder: Path) -> str:
    return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in sorted(folder.glob("rank_*.txt")))


def _answer(folder: Path, number: int, rank: int) -> Path:
    return folder / f"answer_{number}_{rank}.pt"


def work(folder: str | Path, rank: int, device: str) -> None:
    """Be worker `rank`."""
    folder = Path(folder)
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    tasks = [Task(**entry) for entry in json.loads((folder / "tasks.json").read_text())]
    for number, task in enumerate(tasks):
        if rank >= task.processes or _is_done(folder, number, task):
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(task.processes))
        if task.processes > 1:
            dist.init_process_group(
                "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
                init_method=f"file://{folder}/store_{number}",
                rank=rank,
                world_size=task.processes,
                timeout=timedelta(seconds=180),
            )
            dist.barrier()  # else one that fails at once leaves while the others still connect
        module, _, function = task.function.partition(":")
        try:
            answer = getattr(import_module(module), function)(**task.arguments, folder=str(folder / task.name))
        except Exception as error:  # the border: the test decides what a failure means
            answer = Failed(type(error).__name__, str(error), traceback.format_exc())
        finally:
            torch.set_default_dtype(torch.float32)
        torch.save(answer, _answer(folder, number, rank))
        if dist.is_initialized():
            dist.destroy_process_group()


# ---- what is trained ----


@DATASETS.register_module(force=True)
class DrawnVolumes(Dataset):
    """Volumes (1, 6, 6, 6) whose voxels are drawn for their place in the stream, and three-class labels of them."""

    metainfo = {"classes": ("background", "low", "high")}

    def __init__(self, size: int = 24):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        noise = sample_generator(index).normal(size=(1, 6, 6, 6))
        image = torch.from_numpy(noise + 0.2 * int(index)).to(torch.get_default_dtype())
        return {"inputs": image, "labels": (image[0] > 1).long() + (image[0] > 3).long(), "number": int(index)}


@FUNCTIONS.register_module(force=True)
def stack_volumes(samples: list) -> dict:
    return {
        "inputs": torch.stack([s["inputs"] for s in samples]),
        "labels": torch.stack([s["labels"] for s in samples]),
        "numbers": [s["number"] for s in samples],
    }


def small_net(norm: str) -> nn.Module:
    """Return a network of some hundred weights; no bias stands in front of a normalisation."""
    norms = {"group": lambda: nn.GroupNorm(2, 4), "batch": lambda: nn.BatchNorm3d(4), "none": nn.Identity}
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1, bias=norm == "none"),
        norms[norm](),
        nn.Tanh(),
        nn.Conv3d(4, 4, 3, padding=1, bias=norm == "none"),
        norms[norm](),
        nn.Tanh(),
        nn.Conv3d(4, 3, 1),
    )


@MODELS.register_module(force=True)
class SmallSegmenter(BaseModel):
    """Cross-entropy of `small_net`; trained by MMEngine's own step."""

    def __init__(self, norm: str = "group"):
        super().__init__()
        self.net = small_net(norm)
        self.seen: list[int] = []

    def forward(self, inputs: Tensor, labels: Tensor | None = None, numbers: list | None = None, mode: str = "tensor"):
        if mode == "loss":
            self.seen += numbers
            return {"loss_ce": nn.functional.cross_entropy(self.net(inputs), labels)}
        if mode == "predict":
            return [{"number": n, "sum": float(out.sum())} for n, out in zip(numbers, self.net(inputs), strict=True)]
        return self.net(inputs)


@MODELS.register_module(force=True)
class SeveralForwards(SmallSegmenter):
    """Has a step of its own: two forwards (the image and its mirror), an auxiliary head, a consistency term."""

    def __init__(self, norm: str = "group"):
        super().__init__(norm)
        self.auxiliary = nn.Linear(3, 1)

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            first, second = self.net(data["inputs"]), self.net(data["inputs"].flip(-1)).flip(-1)
            loss_ce = nn.functional.cross_entropy(first, data["labels"])
            loss_same = (first - second).square().mean()
            guess = self.auxiliary(second.mean((2, 3, 4)))[:, 0]
            loss_mean = (guess - data["inputs"].mean((1, 2, 3, 4))).square().mean()
        loss = loss_ce + 0.5 * loss_same + 0.1 * loss_mean
        self.seen += data["numbers"]
        optim_wrapper.update_params(loss)
        return {"loss": loss, "loss_ce": loss_ce, "loss_same": loss_same, "loss_mean": loss_mean}


@HOOKS.register_module(force=True)
class KeepLosses(Hook):
    """Keeps what each step returned."""

    def __init__(self):
        self.values: list[dict[str, float]] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append({key: float(value) for key, value in (outputs or {}).items()})


_numbers = itertools.count()


def build(
    folder: str,
    *,
    parallel: str = "none",
    model: dict | None = None,
    dtype: str = "float64",
    batch: int = 2,
    iterations: int = 5,
    accumulate: int = 1,
    clip: float | None = None,
    optimizer: dict | None = None,
    ema: bool = False,
    config: dict | None = None,
) -> ExperimentRunner:
    """Return a runner over `DrawnVolumes`.

    Args:
        folder: Work directory.
        parallel: As in a config.
        model: Config of the model; None: `SmallSegmenter`.
        dtype: ``"float64"`` or ``"float32"``, of weights and data.
        batch: Samples a process and iteration.
        iterations: Of training.
        accumulate: Iterations whose gradients are added up.
        clip: Largest norm of the gradients.
        optimizer: None: SGD with momentum.
        ema: Average the weights, decay 0.9.
        config: Further top-level keys.
    """
    torch.set_default_dtype(getattr(torch, dtype))
    wrapper: dict[str, Any] = {
        "constructor": "mgam_OptimWrapperConstructor",
        "optimizer": dict(optimizer or {"type": "SGD", "lr": 0.1, "momentum": 0.9}),
        "accumulative_counts": accumulate,
    }
    if clip is not None:
        wrapper["clip_grad"] = {"max_norm": clip}
    hooks: list[dict] = [{"type": "KeepLosses"}]
    if ema:
        hooks.append({"type": "EMAHook", "decay": 0.9})
    cfg = Config(
        {
            "model": dict(model or {"type": "SmallSegmenter"}),
            "parallel": parallel,
            "train_dataloader": {
                "dataset": {"type": "DrawnVolumes"},
                "batch_size": batch,
                "num_workers": 0,
                "sampler": {"type": "StreamSampler"},
                "collate_fn": {"type": "itkit.stack_volumes"},
            },
            "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": iterations},
            "optim_wrapper": wrapper,
            "param_scheduler": [{"type": "LinearLR", "start_factor": 0.5, "end": 20, "by_epoch": False}],
            "custom_hooks": hooks,
            "randomness": {"seed": 3},
            "log_level": "ERROR",
            "log_processor": {"by_epoch": False},
            "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "JSONLinesVisBackend"}]},
            **(config or {}),
        }
    )
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cfg = prepare(cfg, work_dir=Path(folder), launcher="pytorch" if several else "none")
    cfg.experiment_name = f"{Path(folder).name}_{next(_numbers)}"
    return ExperimentRunner.from_cfg(cfg)


def train(folder: str, *, resume: str | None = None, **settings: Any) -> dict[str, Any]:
    """Train and return what came of it; arguments as in `build`.

    Args:
        folder: Work directory.
        resume: Name of an earlier task, whose work directory is copied first and trained on.
        **settings: As in `build`.

    Returns:
        ``weights`` and ``optimizer`` (whole, by bare names), ``losses`` (one dictionary a step), ``seen`` (numbers of
        the samples), and of the last checkpoint ``saved`` (the file as loaded; with EMA its ``state_dict`` is the
        average).
    """
    if resume is not None and int(os.environ["RANK"]) == 0:
        shutil.copytree(Path(folder).parent / resume, folder)
    if dist.is_initialized():
        dist.barrier()
    runner = build(folder, **settings)
    try:
        runner.train()
        bare = runner.model
        answer = {
            "weights": full_model_state(runner.model, on_all_ranks=True),
            "optimizer": full_optimizer_state(runner.model, runner.optim_wrapper),
            "losses": next(h for h in runner.hooks if isinstance(h, KeepLosses)).values,
            "seen": list(getattr(bare, "seen", ())),
            "kind": type(runner.model).__name__,
        }
        last = runner.run_state.last
        if int(os.environ.get("RANK", "0")) == 0 and last:
            answer["saved"] = torch.load(Path(folder) / last["checkpoint"], weights_only=True)
        return answer
    finally:
        runner.close()


def largest_difference(one: dict[str, Any], other: dict[str, Any], *, least_scale: float = 0.1) -> float:
    """Return the largest difference of two states, in each tensor as a share of its largest absolute value.

    Args:
        one: Name -> tensor.
        other: The same names and shapes.
        least_scale: What the largest absolute value counts as where it is less, as in a bias that is still near zero.

    Raises:
        AssertionError: If the names or shapes differ.
    """
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    worst = 0.0
    for name, tensor in one.items():
        assert tensor.shape == other[name].shape, name
        if tensor.numel():
            scale = max(float(tensor.double().abs().max()), least_scale)
            difference = float((tensor.double() - other[name].double()).abs().max())
            worst = max(worst, difference / scale if scale else difference)
    return worst


def case_loader(cases: int) -> dict[str, Any]:
    """Return the config of a loader of `cases` drawn volumes, one after the other, each once over all processes."""
    return {
        "dataset": {"type": "DrawnVolumes", "size": cases},
        "batch_size": 1,
        "num_workers": 0,
        "sampler": {"type": "CaseSampler"},
        "collate_fn": {"type": "itkit.stack_volumes"},
    }
