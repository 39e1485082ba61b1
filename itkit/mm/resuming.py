"""Go on where a run stopped: the state of a checkpoint put back, after config and data were held against it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop

from itkit._support.files import write_json
from itkit.errors import ChangedRun, CheckpointError
from itkit.experiment.state import CASES_OF_TRAINING_FILE
from itkit.mm import checkpoint_folder, checkpoints, schedules
from itkit.mm.changes import Change, config_changes, data_changes
from itkit.mm.group import agree, share
from itkit.mm.model_state import load_optimizer_state
from itkit.mm.saving import hooks_with_state, load_hub_state, wrappers_of


def resume(runner: Any) -> bool:
    """Put back the newest checkpoint of the run that can be read; return whether there was one.

    All processes must call this.

    Raises:
        CheckpointError: If there are checkpoints and none can be read, or the weights are of another model.
        UntrustedCheckpoint: If it holds objects that could run code.
        ChangedRun: If config or data are others than when it was written, and ``runner.resume_changed`` is not set.
    """
    found = _find(runner)
    if found is None:
        return False
    checkpoint, record, damaged = found
    path = runner.checkpoints.file(record)
    changes = agree(lambda: _held_against(runner, checkpoint, path))
    agree(lambda: _put_back(runner, checkpoint, path, {re.match(r"\w*", change.key)[0] for change in changes}))

    def note() -> None:
        if runner.run_state.last is None and runner.run_state.best is None:
            _take_over_lost_state(runner, checkpoint, path)
        runner.checkpoints.resumed_from(record, damaged)
        runner.checkpoints.mend_best(may_forget=True)
        if changes:
            entry = {"step": record["step"], "changes": [str(change) for change in changes]}
            runner.run_state.changes = [*runner.run_state.changes, entry]

    share(note)
    runner.logger.info(f"resumed at step {runner.iter} from {path.name}")
    return True


def note_data(runner: Any) -> None:
    """Write down which cases, with their checksums, the run is trained and validated on from now."""
    if runner.cases:
        document = {"fingerprint": runner.description["dataset"]["fingerprint"], "cases": runner.cases}
        write_json(Path(runner.work_dir) / CASES_OF_TRAINING_FILE, document)


# ---- which checkpoint ----


def _find(runner: Any) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]] | None:
    """Let the first process choose; the others read the same file."""
    found: Any = None

    def choose() -> dict[str, Any] | None:
        nonlocal found
        found = checkpoint_folder.choose(runner.checkpoints, trusted=runner.trust_checkpoint, say=runner.logger.warning)
        return found and found[1]

    record = share(choose)
    return agree(lambda: found or (record and _read_too(runner, record)))


def _read_too(runner: Any, record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    path = runner.checkpoints.file(record)
    try:
        checkpoint = checkpoints.load(path, sha256_expected=record.get("sha256"), trusted=runner.trust_checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"process {get_rank()}: {error} All processes must see the same run folder.") from error
    return checkpoint, record, []


# ---- what has changed ----


def _held_against(runner: Any, checkpoint: dict[str, Any], path: Path) -> list[Change]:
    """Return the changes that needed to be asked for, and were."""
    before = checkpoint["meta"].get("start")
    if not isinstance(before, dict):
        runner.logger.warning(
            f"{path}: does not say with which config and data it was written, so these are not compared."
        )
        return []
    changes = _changes(before, runner.description, runner.cases, Path(runner.work_dir))
    for change in changes:
        if change.is_free:
            runner.logger.info(f"{change} (may change freely)")
    asked = [change for change in changes if not change.is_free]
    if asked and not runner.resume_changed:
        listed = "\n  ".join(map(str, asked))
        raise ChangedRun(
            f"{path}: going on from step {checkpoint['meta']['iter']} would not be the training that began:\n  {listed}\n"
            "Put it back as it was; or go on with what it is now: --resume-changed; or start anew under another name."
        )
    for change in asked:
        runner.logger.warning(f"goes on with a change: {change}")
    written_with = checkpoint["meta"].get("torch")
    if written_with and written_with != torch.__version__:
        runner.logger.warning(
            f"the checkpoint was written with torch {written_with}, this is {torch.__version__}: results can differ in the "
            "last bits."
        )
    return asked


def _changes(
    before: dict[str, Any], now: dict[str, Any], cases: dict[str, dict[str, str]], run_dir: Path
) -> list[Change]:
    prints = [side["dataset"].get("fingerprint") or {} for side in (before, now)]
    known = [part for part in prints[0] if part in prints[1]]
    changes = config_changes(before["config"], now["config"], known_data=known)
    if before["global_batch"] != now["global_batch"]:
        changes.append(
            Change(
                "global batch",
                f"{before['global_batch']} -> {now['global_batch']} samples an iteration (batch_size times processes)",
            )
        )
    try:
        earlier = json.loads((run_dir / CASES_OF_TRAINING_FILE).read_text(encoding="utf-8"))
        parts = earlier["cases"] if earlier["fingerprint"] == before["dataset"].get("fingerprint") else None
    except (OSError, ValueError, KeyError, TypeError):
        parts = None
    return changes + data_changes(before["dataset"], now["dataset"], parts, cases)


# ---- putting back ----


def _take_over_lost_state(runner: Any, checkpoint: dict[str, Any], path: Path) -> None:
    """Fill in what ``run.json`` would say of a run with this checkpoint if it were not lost."""
    known = checkpoint["meta"].get("run")
    if not isinstance(known, dict):
        return
    state = runner.run_state
    for name, value in known.items():
        setattr(state, name, value)
    if state.best and not runner.checkpoints.file(state.best).is_file():
        state.best = None  # a better one came after this checkpoint; its validation is repeated, and finds it again
    runner.count_on_from(state.cpu_minutes, state.wall_minutes)
    best = f", best {state.best['metric']} {state.best['value']:.4f} at {state.best['step']}" if state.best else ""
    runner.logger.warning(
        f"run.json knows no checkpoint, although {path.name} is there; best model and cost so far are taken from it{best}."
    )


def _put_back(runner: Any, checkpoint: dict[str, Any], path: Path, changed: set[str]) -> None:
    meta = checkpoint["meta"]
    runner._resume = True
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    runner.load_weights(checkpoint["state_dict"], str(path), strict=True)
    runner.train_loop._iter, runner.train_loop._epoch = meta["iter"], meta["epoch"]
    load_hub_state(runner.message_hub, checkpoint.get("message_hub", {}))
    _put_back_optimizer(runner, checkpoint, path, changed)
    states = checkpoint.get("hooks", {})
    for name, hook in hooks_with_state(runner.hooks):
        if name in states:
            hook.load_state_dict(states[name])
    _put_back_generators(runner, checkpoint.get("random"), path)


def _put_back_optimizer(runner: Any, checkpoint: dict[str, Any], path: Path, changed: set[str]) -> None:
    """Load optimizer and schedules; where the config of either has changed, the config's values hold from here on."""
    meta, states = checkpoint["meta"], checkpoint.get("param_schedulers")
    followed_anew = runner.param_schedulers is not None and (
        states is None or schedules.differ(runner.param_schedulers, states)
    )
    if followed_anew and not schedules.can_be_replayed(runner.param_schedulers):
        followed_anew = False
        runner.logger.warning("a schedule that follows a metric cannot be followed anew; it goes on as it was.")
    if followed_anew:
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        length = len(runner.train_dataloader) if by_epoch else None
        schedules.replay(runner.param_schedulers, meta["iter"], epochs=meta["epoch"], epoch_length=length)
    wanted = [[dict(group) for group in w.param_groups] for w in wrappers_of(runner.optim_wrapper)]
    if "optimizer" not in checkpoint:
        runner.logger.warning(f"{path}: has no optimizer state; going on with a fresh optimizer.")
    elif not _load_optimizer(runner, checkpoint["optimizer"], path, may_begin_anew="optim_wrapper" in changed):
        runner.logger.warning("the optimizer is another one, so it begins with a fresh state.")
    if not followed_anew and states is not None and runner.param_schedulers is not None:
        schedules.load_schedules(runner.param_schedulers, states)
    if followed_anew or changed & {"optim_wrapper", "param_scheduler", "auto_scale_lr"}:
        _set_rates(runner, wanted, only_rates=not changed & {"optim_wrapper"})


def _load_optimizer(runner: Any, state: dict[str, Any], path: Path, *, may_begin_anew: bool) -> bool:
    """Load the optimizer's state; False if it is of another kind of optimizer, which the user has agreed to."""
    try:
        fits = _same_slots(runner.optim_wrapper, state) or not may_begin_anew
        if fits:
            load_optimizer_state(runner.model, runner.optim_wrapper, state)
        return fits
    except (CheckpointError, ValueError, KeyError) as error:
        if may_begin_anew:
            return False
        raise CheckpointError(f"{path}: the optimizer's state does not fit: {error}") from error


def _same_slots(optim_wrapper: Any, state: dict[str, Any]) -> bool:
    """Whether the parameter groups have the options that the optimizer wants; a plain comparison of its kind."""
    wrappers = wrappers_of(optim_wrapper)
    parts = [state] if len(wrappers) == 1 and "param_groups" in state else [state.get(name, {}) for name in state]
    ignored = {"params", "fused", "foreach"}
    return all(
        {*group} - ignored - {k for k in group if k.startswith("initial_")}
        == {*own} - ignored - {k for k in own if k.startswith("initial_")}
        for wrapper, part in zip(wrappers, parts, strict=False)
        for group, own in zip(part.get("param_groups", []), wrapper.optimizer.param_groups, strict=False)
    )


def _set_rates(runner: Any, wanted: list[list[dict[str, Any]]], *, only_rates: bool) -> None:
    """Give the parameter groups the values that the config has for this step."""
    schedulers = runner.param_schedulers
    flat = [s for group in schedulers.values() for s in group] if isinstance(schedulers, dict) else schedulers or []
    names = {"lr", "initial_lr", *(s.param_name for s in flat), *(f"initial_{s.param_name}" for s in flat)}
    before = [w.param_groups[0].get("lr") for w in wrappers_of(runner.optim_wrapper)]
    for wrapper, groups in zip(wrappers_of(runner.optim_wrapper), wanted, strict=True):
        for group, values in zip(wrapper.param_groups, groups, strict=True):
            group.update({k: v for k, v in values.items() if k != "params" and (not only_rates or k in names)})
    now = [w.param_groups[0].get("lr") for w in wrappers_of(runner.optim_wrapper)]
    if before != now:
        rates = ", ".join(f"{a:.6g} -> {b:.6g}" for a, b in zip(before, now, strict=True))
        runner.logger.warning(f"learning rate at step {runner.iter}: {rates}, as the config has it for this step.")


def _put_back_generators(runner: Any, states: Any, path: Path) -> None:
    if states is None:
        runner.logger.warning(f"{path}: has no states of random generators; what draws from them begins anew.")
        return
    states = [states] if isinstance(states, dict) else states
    if len(states) != runner.world_size:
        runner.logger.info(
            f"written by {len(states)} processes, read by {runner.world_size}: the global random generators (dropout) of "
            "each process go on as one of those before."
        )
    checkpoints.set_random_state(states[get_rank() % len(states)])
