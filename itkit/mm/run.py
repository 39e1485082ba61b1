"""`mmrun`: find experiments, train, resume, test and report their models.

This file is the shell command and the script that ``torchrun`` starts, by hand or by ``--nproc``. It imports torch only when
there is work to do.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # as a script: the package's parent, not this folder

import argparse
import atexit
import contextlib
import json
import os
import textwrap
from typing import NoReturn

from itkit import __version__
from itkit.errors import ConfigError, ExperimentNotFound, ItkitError, LostContact, UsageError
from itkit.experiment.names import Experiment, Roots, find_experiment, scan, select_models
from itkit.mm import launch
from itkit.mm.agenda import Agenda, exit_code
from itkit.mm.stopping import StopControl, Stopped

DESCRIPTION = "Train, resume, test and report the models of versioned experiments."
EPILOG = """
An experiment is a folder  <config root>/<version>.<Name>/  with mgam.py (everything but the model) and one file per
model. EXP is its version ("0.3" means exactly 0.3.*, never 0.3.1.*), its full name, or the path of one config file.

examples
  mmrun --list                        what there is, and how far it is
  mmrun --list-models                 the networks that can be named in a config, with size and cost
  mmrun 1.0 --check                   build everything, print the plan, parameters and FLOPs, stop
  mmrun 1.0 --smoke                   three iterations of everything (or smoke_iterations of the config)
  mmrun 1.0                           train all models of 1.0.*; begun ones go on where they stopped
  mmrun 1.0 --models unet_small --all train, test and report one of them
  mmrun 1.0 --test                    test the best checkpoint of each trained model
  mmrun 1.0 --export onnx             write it as an ONNX file into its run folder, verified against PyTorch
  mmrun 1.0 --cfg-options train_cfg.max_iters=4000 optim_wrapper.optimizer.lr=1e-3
  mmrun 1.0 --nproc 4 --max-restarts 3   four processes on this machine; after a death all go on from the last checkpoint
  torchrun --nproc_per_node 4 .../itkit/mm/run.py 1.0   the same by hand

environment
  mm_configdir, mm_workdir, mm_testdir   the roots, where the flags are not given
  supported_models                       comma separated; limits the models
  ITKIT_DATA                             folder of the datasets that configs name

exit codes
  0 all succeeded   1 a model failed   2 usage or config
  75 SIGTERM or SIGUSR1: the step was finished and saved; start again to go on (batch systems: requeue)
  130 Ctrl-C, likewise   143 a second SIGTERM: ended at once; a later start resumes from the last checkpoint
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
    what.add_argument(
        "--list-models", action="store_true", help="show the model zoo: size, cost, memory and licence of each network"
    )
    what.add_argument("--check", action="store_true", help="validate and build everything, print the plan, stop")
    what.add_argument(
        "--smoke",
        action="store_true",
        help="three iterations (smoke_iterations of the config), two cases: does it run at all?",
    )
    what.add_argument("--test", action="store_true", help="test the best checkpoint instead of training")
    what.add_argument(
        "--test-use-last-ckpt", action="store_true", help="test the last checkpoint instead (implies --test)"
    )
    what.add_argument(
        "--export",
        choices=("onnx",),
        help="write the best checkpoint of each trained model as an ONNX file into its run folder (needs itkit[export])",
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
    how.add_argument(
        "--resume-changed",
        action="store_true",
        help="go on with a run whose config or data are others than when it began",
    )
    how.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load checkpoints that hold Python objects, which can run code",
    )
    how.add_argument(
        "--nproc",
        type=launch.nproc,
        metavar="N",
        help="train and test in N processes of this machine (gpu: one per GPU), started by torchrun",
    )
    how.add_argument(
        "--max-restarts",
        type=_count,
        default=0,
        metavar="N",
        help="with --nproc: after one process died, start all again up to N times (at least as often as --auto-retry)",
    )
    how.add_argument(
        "--nnodes", type=_positive, default=1, metavar="N", help="with --nproc: machines that run this command"
    )
    how.add_argument(
        "--rdzv-endpoint", metavar="HOST:PORT", help="with --nnodes: where they meet, a free port of one of them"
    )
    how.add_argument(
        "--dist-timeout",
        type=_positive,
        metavar="S",
        help="seconds after which a process that the others wait for counts as hung (default 1800)",
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


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def say(text: str) -> None:
    """Write one message to the terminal (stderr, so that stdout stays free for results)."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(argv: list[str] | None = None) -> int:
    """Run `mmrun` and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(words)
    code = launch.decided_exit_code()
    if code is not None:
        return launch.leave(code)
    control = StopControl(launch.leave)
    try:
        with control.listening(for_good=argv is None):
            return launch.leave(_run(arguments, words, control))
    except LostContact as error:  # said already; the launcher may start all processes again
        control.end_process(error.exit_code, final=False)
    except ItkitError as error:
        say(f"mmrun: {error}")
        return launch.leave(error.exit_code, together=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has read enough
        return launch.leave(0)
    except OSError as error:
        say(f"mmrun: {error.filename or 'a file'}: {error.strerror or error}")
        return launch.leave(1, together=False)
    except Stopped as stop:
        code = stop.request.exit_code
        if launch.rank() == 0:
            how = "interrupted" if code == 130 else f"asked to end by {stop.request.reason}"
            say(f"mmrun: {how}; a later start resumes from the last checkpoint (exit code {code})")
        if not stop.told and launch.world_size() > 1:
            control.end_process(code, final=False)
        return launch.leave(code)
    except KeyboardInterrupt:
        say("mmrun: interrupted; a later start resumes from the last checkpoint (exit code 130)")
        return launch.leave(130)


def _run(arguments: argparse.Namespace, words: list[str], control: StopControl) -> int:
    if arguments.list_models:
        if arguments.experiments:
            raise UsageError("--list-models: shows the whole zoo; name no experiment with it.")
        from itkit.models import listing  # torch and all networks come in here

        sys.stdout.write(listing.zoo_document() if arguments.json else listing.zoo_table())
        return 0
    roots = Roots.resolve(arguments.config_root, arguments.work_dir_root, arguments.test_work_dir_root)
    asks_for_work = (
        arguments.all
        or arguments.test
        or arguments.test_use_last_ckpt
        or arguments.export
        or arguments.check
        or arguments.smoke
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
    if trains_or_tests and _is_to_launch(arguments):
        retries = max(arguments.max_restarts, arguments.auto_retry)
        return launch.start(
            words,
            arguments.nproc,
            max_restarts=retries,
            nodes=arguments.nnodes,
            endpoint=arguments.rdzv_endpoint,
            say=say,
        )
    if trains_or_tests:
        code = _work(arguments, roots, chosen, control)
    if arguments.list:
        _show(arguments, roots, chosen)
    elif arguments.report or arguments.all:
        code = max(code, _report(arguments, roots, chosen))
    elif arguments.json:
        _show(arguments, roots, chosen)
    return code


def _is_to_launch(arguments: argparse.Namespace) -> bool:
    """Whether this process is to start others that do the work.

    Raises:
        UsageError: If flags for several machines do not fit together.
    """
    if arguments.nnodes > 1 and not (arguments.nproc and arguments.rdzv_endpoint):
        raise UsageError("--nnodes: needs --nproc and --rdzv-endpoint HOST:PORT too, the same on every machine.")
    if arguments.rdzv_endpoint and arguments.nnodes == 1:
        raise UsageError("--rdzv-endpoint: is for several machines; give --nnodes too.")
    if arguments.nproc is None and arguments.max_restarts:
        raise UsageError("--max-restarts: is for several processes; give --nproc too, or use --auto-retry.")
    several = arguments.nproc not in (None, 1) or arguments.nnodes > 1
    return several and not arguments.check and not launch.is_one_of_several()


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


def _work(
    arguments: argparse.Namespace, roots: Roots, chosen: list[tuple[Experiment, list[str]]], control: StopControl
) -> int:
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # configs may import a project's own modules (custom_imports)
    todo = [(experiment, model) for experiment, models in chosen for model in models]
    agenda = Agenda.resume()
    if all(agenda.outcome_of(experiment.name, model) for experiment, model in todo):
        return _summary(agenda)
    if launch.is_one_of_several():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each broken connection is a page of C++ frames
    from itkit.mm import jobs  # torch comes in here, when there is work to do
    from itkit.mm.config import parse_overrides

    trains = arguments.all or arguments.smoke
    trains = trains or not (arguments.test or arguments.test_use_last_ckpt or arguments.export)
    request = jobs.Request(
        train=trains,
        test=arguments.test or arguments.test_use_last_ckpt or arguments.all or arguments.smoke,
        export=arguments.export,
        check=arguments.check,
        smoke=arguments.smoke,
        use_last=arguments.test_use_last_ckpt,
        auto_retry=arguments.auto_retry,
        detect_anomaly=arguments.detect_anomaly,
        overrides=parse_overrides(arguments.cfg_options),
        launcher="pytorch" if launch.is_one_of_several() else "none",
        choose_parallel=launch.world_size() > 1 or arguments.nproc not in (None, 1) or arguments.nnodes > 1,
        dist_timeout_s=arguments.dist_timeout,
        resume_changed=arguments.resume_changed,
        trust_checkpoint=arguments.trust_checkpoint,
    )
    jobs.run_all(todo, roots, request, say, control, agenda)
    return _summary(agenda)


def _summary(agenda: Agenda) -> int:
    """Say what came of several models, and return the exit code."""
    failed = [outcome for outcome in agenda.outcomes if outcome.exit_code]
    if len(agenda.outcomes) > 1 and launch.rank() == 0:
        say(f"\n{len(agenda.outcomes) - len(failed)} of {len(agenda.outcomes)} models succeeded")
        for outcome in agenda.outcomes:
            mark = "FAILED" if outcome.exit_code else "ok"
            say(f"  {mark:6} {outcome.title}: {textwrap.shorten(outcome.message, 300)}")
            if outcome.traceback_file:
                say(f"         traceback: {outcome.traceback_file}")
    return exit_code(agenda.outcomes)


def _show(arguments: argparse.Namespace, roots: Roots, chosen: list[tuple[Experiment, list[str]]]) -> None:
    if launch.rank() > 0:
        return
    from itkit.experiment import comparison, listing

    entries = [comparison.experiment_entry(_runs(roots, experiment, models)) for experiment, models in chosen]
    document = {"experiments": entries}
    sys.stdout.write(json.dumps(document, indent=1) + "\n" if arguments.json else listing.state_table(document))


def _report(arguments: argparse.Namespace, roots: Roots, chosen: list[tuple[Experiment, list[str]]]) -> int:
    if launch.rank() > 0:
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


def _end(code: int) -> NoReturn:
    """End the program. A process of a group leaves without taking the interpreter apart.

    Threads of the store and of gloo may still run then, and one that is cut off within C++ aborts a process that has done all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _end(main())
