"""The loops of the engine: endless streams that resume at a position, guarded loading, validation without gradients."""

from __future__ import annotations

import bisect
import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.runner import loops as engine_loops
from torch.profiler import ProfilerActivity, profile, schedule

from itkit._support.files import write_text
from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.mm.loader import GuardedDataLoader, guard_loader
from itkit.mm.memory import keep_freed_memory
from itkit.mm.samplers import PlacedBatches, StreamSampler
from itkit.mm.saving import is_between_steps
from itkit.registry import LOOPS

POSITION_KEY = "stream_position"
"""Where the message hub (and so a checkpoint) keeps the position of the next sample that was not trained on."""

VALIDATED_KEY = "validated_step"
"""Where it keeps the number of iterations after which there was a validation last."""


def _guarded(runner: Any, dataloader: Any) -> GuardedDataLoader:
    return guard_loader(dataloader, seed=getattr(runner, "seed", None) or 0)


@contextlib.contextmanager
def _running(runner: Any, loader: GuardedDataLoader) -> Iterator[None]:
    """Run a loop: freed memory is kept, and hooks clean up (weights back, bar closed) when an exception ends it."""
    keep_freed_memory()
    try:
        with loader.guarding():
            yield
    except BaseException:
        runner.call_hook("run_failed")
        raise


def _must_stop(loop: Any) -> bool:
    """Whether training ends after this iteration: asked for, and no gradients wait for the optimizer's step."""
    asked = loop.stop_training or getattr(loop.runner, "stop_training", False)
    return asked and not is_between_steps(loop.runner.optim_wrapper)


def _validate(loop: Any) -> None:
    """Validate, and note that it is done: a checkpoint of this step then does not ask for it again.

    Where training is asked to stop, it is left out; a resumed run makes up for it.
    """
    if getattr(loop.runner, "stop_training", False) and _must_stop(loop):
        return
    hub = loop.runner.message_hub
    hub.update_info(VALIDATED_KEY, loop._iter)
    try:
        loop.runner.val_loop.run()
    except BaseException:
        hub.update_info(VALIDATED_KEY, None)
        raise
    loop.runner.model.train()


def _is_to_be_made_up(loop: Any) -> bool:
    return loop._iter > 0 and not _must_stop(loop) and loop.runner.message_hub.get_info(VALIDATED_KEY) != loop._iter


class _Epochs:
    """The batches of a finite sampler, epoch by epoch, from any batch on without reading those before.

    Args:
        loader: The training loader.
        seed: Of the samples' generators.
    """

    def __init__(self, loader: GuardedDataLoader, seed: int):
        self._loader = loader
        self._sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        self._placed = None
        if loader.batch_sampler is not None and hasattr(loader.sampler, "__len__"):
            self._placed = PlacedBatches(loader.batch_sampler, len(loader.sampler), seed)
            loader.take_batches_from(self._placed)

    def batches(self, epoch: int, done: int = 0, passed: int = 0) -> Iterator[Any]:
        """Yield the batches of `epoch` after the first `done`; `passed` samples are passed over by the sampler itself."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)
        if self._placed is not None:
            self._placed.begin(epoch, done, passed)
            yield from self._loader
        else:
            yield from itertools.islice(self._loader, done, None)


@LOOPS.register_module()
class IterBasedTrainLoop(engine_loops.IterBasedTrainLoop):
    """Iteration-based training on a stream of samples that resumes at its position, without replaying a batch.

    With a `StreamSampler` the loop starts at ``runner.stream_position`` if the runner has that attribute (an int: global
    number of samples drawn before), else at the position that the resumed checkpoint carries, else at iterations times
    batch size times processes. Finite samplers work too: they are restarted at their end, and on resume set to their
    epoch and advanced without reading a sample. Training stops at `max_iters`, when ``loop.stop_training`` is set (early
    stopping), or when ``runner.stop_training`` is set (a stop request from outside); where gradients of several iterations
    are added up, at the next step of the optimizer.

    Only the hooks that override a stage are called in it; they are looked up once per run.

    Args:
        runner: The runner.
        dataloader: Loader, or its config.
        max_iters: Iterations to train, those before a resume included.
        val_begin: First iteration after which a validation may happen.
        val_interval: Iterations between validations; there is always one after the last iteration.
        dynamic_intervals: Pairs (iteration, interval) from which on another interval holds.

    Raises:
        ConfigError: If `max_iters` or `val_interval` is not a positive whole number, or the stream cannot be resumed
            because the batch sampler does not say its batch size.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ):
        for name, value in (("max_iters", max_iters), ("val_interval", val_interval)):
            if value != int(value) or value < 1:
                raise ConfigError(f"train_cfg: {name} must be a positive whole number, got {value!r}.")
        super().__init__(runner, dataloader, max_iters, val_begin, val_interval, dynamic_intervals)
        self.dataloader = _guarded(runner, self.dataloader)
        self.dataloader_iterator = None
        self._hooks_at: dict[str, list[Callable]] = {}

    def run(self) -> torch.nn.Module:
        """Train, validate on the way, and return the model."""
        with _running(self.runner, self.dataloader):
            self.runner.call_hook("before_train")
            self.runner.call_hook("before_train_epoch")
            self._find_hooks()
            batches = self._batches()
            self._make_up_for_validation()
            self.runner.model.train()
            while self._iter < self._max_iters and not _must_stop(self):
                self.run_iter(next(batches))
                self._decide_current_val_interval()
                self._validate_if_due()
            if self._iter >= self._max_iters or self.stop_training:  # what is asked to stop from outside goes on later
                self.runner.call_hook("after_train_epoch")
            self.runner.call_hook("after_train")
        return self.runner.model

    def run_iter(self, data_batch: Any) -> None:
        """Train on one batch, with the hooks around it."""
        runner, index = self.runner, self._iter
        for call in self._hooks_at["before_train_iter"]:
            call(runner, batch_idx=index, data_batch=data_batch)
        outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        for call in self._hooks_at["after_train_iter"]:
            call(runner, batch_idx=index, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def _find_hooks(self) -> None:
        """Collect the hooks that do something in the two stages of every iteration, in order of priority."""
        self._hooks_at = {
            stage: [getattr(hook, stage) for hook in self.runner.hooks if stage in hook.get_triggered_stages()]
            for stage in ("before_train_iter", "after_train_iter")
        }

    def _make_up_for_validation(self) -> None:
        """Validate a resumed run where it stopped, if that is due: checkpoints are written before the validation."""
        if _is_to_be_made_up(self):
            self._decide_current_val_interval()
            self.runner.message_hub.update_info("iter", self._iter - 1)  # as it was when the validation was due
            self._validate_if_due()

    def _validate_if_due(self) -> None:
        if self.runner.val_loop is None or self._iter < self.val_begin:
            return
        if self._iter % self.val_interval == 0 or self._iter == self._max_iters:
            _validate(self)

    def _decide_current_val_interval(self) -> None:
        if len(self.dynamic_intervals) > 1:
            step = bisect.bisect(self.dynamic_milestones, self._iter + 1)
            self.val_interval = self.dynamic_intervals[step - 1]

    def _batches(self) -> Iterator[Any]:
        """Yield batches for ever, from where the run stands."""
        sampler = getattr(self.dataloader.batch_sampler, "sampler", self.dataloader.sampler)
        if isinstance(sampler, StreamSampler):
            return self._stream(sampler)
        return self._epochs(sampler)

    def _batch_size(self) -> int:
        """Return samples per iteration and process; without automatic batching it is one sample."""
        loader = self.dataloader
        if loader.batch_sampler is None:
            return 1
        size = getattr(loader.batch_sampler, "batch_size", None)
        if not isinstance(size, int):
            raise ConfigError(
                f"{type(loader.batch_sampler).__name__} does not say its batch_size, so a sample stream cannot be "
                "resumed with it; give it an integer attribute `batch_size`."
            )
        return size

    def _stream(self, sampler: StreamSampler) -> Iterator[Any]:
        step = self._batch_size() * get_world_size()
        hub = self.runner.message_hub
        position = getattr(self.runner, POSITION_KEY, None)
        if position is None:
            position = hub.get_info(POSITION_KEY) if self._iter else None
        if position is None:
            position = self._iter * step
        sampler.set_position(position)
        for batch in self.dataloader:
            position += step
            hub.update_info(POSITION_KEY, position)
            yield batch

    def _epochs(self, sampler: Any) -> Iterator[Any]:
        loader, epochs = self.dataloader, _Epochs(self.dataloader, getattr(self.runner, "seed", None) or 0)
        epoch, done = divmod(self._iter, max(len(loader), 1))
        passed = 0
        if hasattr(sampler, "skip"):  # an endless one, whose epochs are only a way to count
            epoch, done, passed = 0, 0, self._iter * self._batch_size()
            if passed:
                sampler.skip(passed)
        while True:
            first = self._iter
            yield from epochs.batches(epoch, done, passed)
            if self._iter == first and not done:
                raise ConfigError(
                    f"the training loader yields no batch: {len(loader.dataset)} samples do not fill one batch of "
                    f"{loader.batch_size}; lower batch_size or use StreamSampler."
                )
            epoch, done, passed = epoch + 1, 0, 0


_SCHEDULE_KEYS = tuple(inspect.signature(schedule).parameters)
_PROFILE_KEYS = ("record_shapes", "profile_memory", "with_stack", "with_flops", "with_modules")
_PROFILER_KEYS = ("activities", "out_dir", "row_limit", *_SCHEDULE_KEYS, *_PROFILE_KEYS)


@LOOPS.register_module()
class IterBasedTrainLoop_SupportProfiler(IterBasedTrainLoop):
    """`IterBasedTrainLoop` that profiles some iterations with `torch.profiler` and then trains on.

    The trace (Chrome and TensorBoard read it) and a table of the costliest operators are written to a folder of the work
    directory. When the schedule is through, the profiler is closed, so the rest of the training runs at full speed.

    Args:
        profiler: None trains without profiling. Else a dictionary with any of: ``skip_first``, ``wait`` (1), ``warmup``
            (1), ``active`` (3), ``repeat`` (1) in iterations of this process; ``activities`` (names, ``["cpu",
            "cuda"]`` as far as present); ``record_shapes``, ``profile_memory``, ``with_stack``, ``with_flops``,
            ``with_modules``; ``out_dir`` (``"profile"``, below the work directory); ``row_limit`` (30) of the table.

    The other arguments are those of `IterBasedTrainLoop`.

    Raises:
        ConfigError: If `profiler` has an unknown key, or an activity that this PyTorch does not know.
    """

    def __init__(self, *args: Any, profiler: dict | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.settings = None if profiler is None else self._check(dict(profiler))
        self._profile: profile | None = None
        self._steps_left = 0

    @staticmethod
    def _check(settings: dict) -> dict:
        for key in settings:
            if key not in _PROFILER_KEYS:
                raise ConfigError(
                    f"profiler: unknown key {key!r}; known are {', '.join(sorted(_PROFILER_KEYS))}."
                    f"{did_you_mean(key, _PROFILER_KEYS)}"
                )
        known = {activity.name.lower(): activity for activity in torch.profiler.supported_activities()}
        names = settings.get("activities", [name for name in ("cpu", "cuda") if name in known])
        for name in names:
            if name not in known:
                raise ConfigError(f"profiler: activity {name!r} is not supported here; supported are {sorted(known)}.")
        settings["activities"] = [known[name] for name in names]
        return {"wait": 1, "warmup": 1, "active": 3, "repeat": 1, **settings}

    def run(self) -> torch.nn.Module:
        """Train with the profiler around the first iterations, and return the model."""
        if self.settings is None:
            return super().run()
        plan = {key: self.settings[key] for key in _SCHEDULE_KEYS if key in self.settings}
        cycle = plan["wait"] + plan["warmup"] + plan["active"]
        self._steps_left = plan.get("skip_first", 0) + cycle * max(plan["repeat"], 1)
        self._profile = profile(
            activities=self.settings["activities"],
            schedule=schedule(**plan),
            on_trace_ready=self._write,
            **{key: self.settings[key] for key in _PROFILE_KEYS if key in self.settings},
        )
        with contextlib.ExitStack() as self._open:
            self._open.enter_context(self._profile)
            return super().run()

    def run_iter(self, data_batch: Any) -> None:
        """Train on one batch and let the profiler count it."""
        super().run_iter(data_batch)
        if self._steps_left > 0:
            self._profile.step()
            self._steps_left -= 1
            if self._steps_left == 0:
                self._open.close()

    def _write(self, finished: profile) -> None:
        folder = Path(self.runner.work_dir) / self.settings.get("out_dir", "profile")
        folder.mkdir(parents=True, exist_ok=True)
        torch.profiler.tensorboard_trace_handler(str(folder))(finished)
        on_device = ProfilerActivity.CUDA in self.settings["activities"]
        order = "self_cuda_time_total" if on_device else "self_cpu_time_total"
        table = finished.key_averages().table(sort_by=order, row_limit=self.settings.get("row_limit", 30))
        write_text(folder / f"operators_iter_{self._iter}.txt", table)
        self.runner.logger.info(f"profile of the last {self.settings['active']} iterations written to {folder}")


@LOOPS.register_module()
class EpochBasedTrainLoop(engine_loops.EpochBasedTrainLoop):
    """Epoch-based training that resumes within an epoch, without reading a batch twice.

    Each epoch the sampler is told its number (``set_epoch``), and the randomness of a sample follows from the seed and the
    number of samples before it. A resumed run goes on with the batch after the last one, and makes up for a validation that
    was due when it stopped. Training stops as in `IterBasedTrainLoop`, in the middle of an epoch if need be.

    Args:
        runner: The runner.
        dataloader: Loader, or its config.
        *args: As in MMEngine: `max_epochs`, `val_begin`, `val_interval`, `dynamic_intervals`.
        **kwargs: The same.

    Raises:
        ConfigError: If the sampler is the endless `StreamSampler`.
    """

    def __init__(self, runner: Any, dataloader: Any, *args: Any, **kwargs: Any):
        super().__init__(runner, dataloader, *args, **kwargs)
        self.dataloader = _guarded(runner, self.dataloader)
        if isinstance(self.dataloader.sampler, StreamSampler):
            raise ConfigError(
                "StreamSampler never ends, and EpochBasedTrainLoop waits for the end of an epoch; use "
                "sampler=dict(type='DefaultSampler', shuffle=True), or IterBasedTrainLoop with max_iters."
            )
        self._epochs = _Epochs(self.dataloader, getattr(runner, "seed", None) or 0)

    def run(self) -> torch.nn.Module:
        """Train, validate on the way, and return the model."""
        with _running(self.runner, self.dataloader):
            self.runner.call_hook("before_train")
            self._make_up_for_validation()
            while self._epoch < self._max_epochs and not _must_stop(self):
                self.run_epoch()
                if self._is_at_an_end():
                    self._decide_current_val_interval()
                    self._validate_if_due()
            self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train on what is left of the present epoch, or until a stop is asked for."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        length = len(self.dataloader)
        done = self._iter - self._epoch * length
        if done < length:
            batches = self._epochs.batches(self._epoch, done)
            for index, batch in enumerate(batches, start=done):
                self.run_iter(index, batch)
                if _must_stop(self) and self._iter < (self._epoch + 1) * length:
                    batches.close()
                    return
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _is_at_an_end(self) -> bool:
        return self._iter == self._epoch * len(self.dataloader)

    def _make_up_for_validation(self) -> None:
        """Validate a resumed run where it stopped, if that is due."""
        if self._epoch and self._is_at_an_end() and _is_to_be_made_up(self):
            self._decide_current_val_interval()
            self.runner.message_hub.update_info("iter", self._iter - 1)  # as it was when the validation was due
            self._validate_if_due()

    def _validate_if_due(self) -> None:
        if self.runner.val_loop is None or self._epoch < self.val_begin:
            return
        if self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs:
            _validate(self)


class _GuardedEvaluation:
    """What validation and test share: a guarded loader, no gradients, and hooks that hear of a failure and clean up."""

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, fp16: bool = False):
        super().__init__(runner, dataloader, evaluator, fp16)
        self.dataloader = _guarded(runner, self.dataloader)

    def run(self) -> dict:
        """Evaluate all cases and return the metrics."""
        with _running(self.runner, self.dataloader):
            return super().run()

    @torch.inference_mode()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Predict one batch and hand it to the evaluator."""
        super().run_iter(idx, data_batch)


@LOOPS.register_module()
class ValLoop(_GuardedEvaluation, engine_loops.ValLoop):
    """MMEngine's validation in inference mode over a guarded loader; hooks hear of a failure and clean up."""


@LOOPS.register_module()
class TestLoop(_GuardedEvaluation, engine_loops.TestLoop):
    """MMEngine's test in inference mode over a guarded loader; hooks hear of a failure and clean up."""

    __test__ = False
