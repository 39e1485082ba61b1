"""`mmrun`: find experiments, train, resume, test and report their models.

This file is the shell command and the script that ``torchrun`` starts. It imports torch only when there is work to do.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # as a script: the package's parent, not this folder

import argparse
import contextlib
import json
import os
import signal
import textwrap
import threading
from collections.abc import Iterator

from itkit import __version__
from itkit.errors import ConfigError, ExperimentNotFound, ItkitError, UsageError
from itkit.experiment.names import Experiment, Roots, find_experiment, scan, select_models

DESCRIPTION = "Train, resume, test and report the models of versioned experiments."
EPILOG = """
An experiment is a folder  <config root>/<version>.<Name>/  with mgam.py (everything but the model) and one file per
model. EXP is its version ("0.3" means exactly 0.3.*, never 0.3.1.*), its full name, or the path of one config file.

examples
  mmrun --list                        what there is, and how far it is
  mmrun 1.0 --check                   build everything, print the plan, parameters and FLOPs, stop
  mmrun 1.0 --smoke                   three iterations of everything
  mmrun 1.0                           train all models of 1.0.*; begun ones go on where they stopped
  mmrun 1.0 --models unet_small --all train, test and report one of them
  mmrun 1.0 --test                    test the best checkpoint of each trained model
  mmrun 1.0 --cfg-options train_cfg.max_iters=4000 optim_wrapper.optimizer.lr=1e-3
  torchrun --nproc_per_node 4 .../itkit/mm/run.py 1.0

environment
  mm_configdir, mm_workdir, mm_testdir   the roots, where the flags are not given
  supported_models                       comma separated; limits the models
  ITKIT_DATA                             folder of the datasets that configs name

exit codes
  0 all succeeded   1 a model failed   2 usage or config   130 interrupted, 143 terminated (a later start resumes)
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `mmrun`."""
    parser = argparse.ArgumentParser(
        prog="mmrun",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "experiments", nargs="*", metavar="EXP", help="experiment: version, folder name, or a config file"
    )
    parser.add_argument("--models", nargs="+", action="extend", metavar="M", help="only these models")
    parser.add_argument(
        "--cfg-options", nargs="+", action="extend", metavar="K=V", help="change config values, dotted keys"
    )
    parser.add_argument("--version", action="version", version=f"itkit {__version__}")

    what = parser.add_argument_group("what to do (default: train)")
    what.add_argument("--list", action="store_true", help="show experiments, models and their states")
    what.add_argument("--check", action="store_true", help="validate and build everything, print the plan, stop")
    what.add_argument("--smoke", action="store_true", help="three iterations, two cases: does it run at all?")
    what.add_argument("--test", action="store_true", help="test the best checkpoint instead of training")
    what.add_argument(
        "--test-use-last-ckpt", action="store_true", help="test the last checkpoint instead (implies --test)"
    )
    what.add_argument("--report", action="store_true", help="write report.html of each experiment and print its table")
    what.add_argument("--all", action="store_true", help="train, test and report")
    what.add_argument("--json", action="store_true", help="one JSON document on stdout; everything else goes to stderr")

    how = parser.add_argument_group("how")
    how.add_argument(
        "--auto-retry",
        type=_count,
        default=0,
        metavar="N",
        help="retry a failed model N times from its last checkpoint",
    )
    how.add_argument(
        "--detect-anomaly", action="store_true", help="name the operation that makes a gradient NaN (slow)"
    )
    how.add_argument("--local-rank", "--local_rank", type=int, default=None, metavar="N", help="set by launchers")

    where = parser.add_argument_group("where")
    where.add_argument("--config-root", metavar="D", help="folder of experiments (else mm_configdir, else configs)")
    where.add_argument("--work-dir-root", metavar="D", help="folder of runs (else mm_workdir, else work_dirs)")
    where.add_argument(
        "--test-work-dir-root", metavar="D", help="folder of test results (else mm_testdir, else work_dirs/test)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def say(text: str) -> None:
    """Write one message to the terminal (stderr, so that stdout stays free for results)."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(argv: list[str] | None = None) -> int:
    """Run `mmrun` and return its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        with _ending_on_sigterm():
            return _run(arguments)
    except ItkitError as error:
        say(f"mmrun: {error}")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has read enough
        return 0
    except OSError as error:
        say(f"mmrun: {error.filename or 'a file'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated)
        word = "terminated" if terminated else "interrupted"
        say(f"mmrun: {word}; a later start resumes from the last checkpoint")
        return 143 if terminated else 130


class _Terminated(KeyboardInterrupt):
    """Somebody, such as a batch system, asked this process to end."""


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let a SIGTERM end the block as Ctrl-C does: workers stopped, files closed, the work directory released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != process:  # a loader worker inherited this
            os._exit(128 + number)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # workers that end too are no news now, and PyTorch would raise
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace) -> int:
    roots = Roots.resolve(arguments.config_root, arguments.work_dir_root, arguments.test_work_dir_root)
    asks_for_work = (
        arguments.all or arguments.test or arguments.test_use_last_ckpt or arguments.check or arguments.smoke
    )
    trains_or_tests = not (arguments.list or (arguments.report and not asks_for_work))
    if not arguments.experiments and trains_or_tests:
        raise UsageError("name at least one experiment, or see what there is: mmrun --list")
    if arguments.list or arguments.report:
        broken = _broken_folders(roots.configs)
        if broken:
            say(f"{roots.configs}: not experiments (a name is numbers, a dot and a word): {', '.join(broken)}")
    names = arguments.experiments or scan(roots.configs)[0]
    if not arguments.experiments and not names:
        raise ExperimentNotFound(f"{roots.configs}: the folder holds no experiment.")
    chosen = [(e, select_models(e, arguments.models)) for e in _find_all(names, roots, bool(arguments.experiments))]
    code = 0
    if trains_or_tests:
        code = _work(arguments, roots, chosen)
    if arguments.list:
        _show(arguments, roots, chosen)
    elif arguments.report or arguments.all:
        code = max(code, _report(arguments, roots, chosen))
    elif arguments.json:
        _show(arguments, roots, chosen)
    return code


def _find_all(names: list[str], roots: Roots, asked_for: bool) -> list[Experiment]:
    """Return the experiments called `names`; one that is incomplete is an error only if the user asked for it."""
    found: dict[str, Experiment] = {}
    for name in names:
        try:
            experiment = find_experiment(name, roots.configs)
        except ConfigError as error:
            if asked_for:
                raise
            say(f"mmrun: left out: {error}")
            continue
        found.setdefault(experiment.name, experiment)
    return list(found.values())


def _broken_folders(config_root: Path) -> list[str]:
    return scan(config_root)[1] if config_root.is_dir() else []


def _work(arguments: argparse.Namespace, roots: Roots, chosen: list[tuple[Experiment, list[str]]]) -> int:
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # configs may import a project's own modules (custom_imports)
    from itkit.mm import jobs  # torch comes in here, when there is work to do
    from itkit.mm.config import parse_overrides

    test_only = (arguments.test or arguments.test_use_last_ckpt) and not arguments.all and not arguments.smoke
    request = jobs.Request(
        train=not test_only,
        test=arguments.test or arguments.test_use_last_ckpt or arguments.all or arguments.smoke,
        check=arguments.check,
        smoke=arguments.smoke,
        use_last=arguments.test_use_last_ckpt,
        auto_retry=arguments.auto_retry,
        detect_anomaly=arguments.detect_anomaly,
        overrides=parse_overrides(arguments.cfg_options),
        launcher="pytorch" if "RANK" in os.environ and "WORLD_SIZE" in os.environ else "none",
    )
    outcomes = [
        jobs.Job(experiment, model, roots, request, say).run() for experiment, models in chosen for model in models
    ]
    failed = [o for o in outcomes if o.error is not None]
    if len(outcomes) > 1:
        say(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} models succeeded")
        for outcome in outcomes:
            mark = "FAILED" if outcome.error else "ok"
            say(f"  {mark:6} {outcome.experiment}/{outcome.model}: {textwrap.shorten(outcome.message, 300)}")
            if outcome.traceback_file:
                say(f"         traceback: {outcome.traceback_file}")
    if not failed:
        return 0
    nothing_was_possible = len(failed) == len(outcomes) and all(o.exit_code == 2 for o in failed)
    return 2 if nothing_was_possible else 1


def _show(arguments: argparse.Namespace, roots: Roots, chosen: list[tuple[Experiment, list[str]]]) -> None:
    if int(os.environ.get("RANK", "0")) > 0:
        return
    from itkit.experiment import comparison, listing

    entries = [comparison.experiment_entry(_runs(roots, experiment, models)) for experiment, models in chosen]
    document = {"experiments": entries}
    sys.stdout.write(json.dumps(document, indent=1) + "\n" if arguments.json else listing.state_table(document))


def _report(arguments: argparse.Namespace, roots: Roots, chosen: list[tuple[Experiment, list[str]]]) -> int:
    if int(os.environ.get("RANK", "0")) > 0:
        return 0
    from itkit.experiment import comparison, report

    for experiment, models in chosen:
        work, test = roots.work / experiment.name, roots.test / experiment.name
        if not arguments.json:
            sys.stdout.write(comparison.render_table(_runs(roots, experiment, models)))
            sys.stdout.flush()
        page = report.write_report(work, test, models=models)
        say(
            f"{experiment.name}: report   {page}\n{experiment.name}: pictures {test / '<model>' / comparison.OVERLAY_FOLDER}"
        )
    if arguments.json:
        _show(arguments, roots, chosen)
    return 0


def _runs(roots: Roots, experiment: Experiment, models: list[str]):
    from itkit.experiment import comparison

    return comparison.load_experiment(roots.work / experiment.name, roots.test / experiment.name, models=models)


if __name__ == "__main__":
    sys.exit(main())
