"""What the data tools cost, side by side with another suite of the same commands, on the hippocampus pairs.

    python tools/bench_process.py [--reference VENV/bin] [--data FOLDER] [--runs 3] [--parts tools start workers memory]

Data: a dataset with image/ and label/ (.mha). Without ``--data``, Task04_Hippocampus of ITKIT_SHARED (or of ../shared) is
converted; without that either, 60 random pairs are made. The reference is a virtual environment with ``itkit==4.0.0`` from
PyPI, of which only the commands are run; without it only ours are measured. CPU seconds are user and system time of the whole
command with all its children, the median of alternating runs; wall seconds are only shown where waiting matters.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from itkit.cli.table import TOOL_MODULES
from itkit.io.volumes import Volume, read_volume, write_volume
from itkit.process.cases import find_cases

OURS = [sys.executable, "-m", "itkit.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled modules are kept, in the scratch folder
THEIR_ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
PARTS = ("tools", "workers", "memory", "start")
COMMANDS: dict[str, tuple[list[str], list[str] | None]] = {
    "itk_check": (["check", "{data}", "-o", "{out}"], ["check", "{data}"]),
    "itk_resample": (["dataset", "{data}", "{out}", "--spacing", "1.5", "1.5", "1.5"],) * 2,
    "itk_orient": (["{data}", "{out}", "LPI"], ["{data}", "{out}", "LPI", "--field", "dataset"]),
    "itk_patch": (["{square}", "{out}", "--patch-size", "16", "16", "16", "--patch-stride", "16", "16", "16"],) * 2,
    "itk_aug": (
        ["{data}/image", "{data}/label", "-oimg", "{out}/i", "-olbl", "{out}/l", "-n", "1", "--random-rot", "9", "9", "9"],
    ) * 2,
    "itk_extract": (["{data}/label", "{out}", "1:0", "2:1"],) * 2,
    "itk_combine": (
        ["--source", "A={data}/label", "--source", "B={pred}", "--map", "A:1->1", "--map", "B:2->2", "{out}"],
        ["-i", "A={data}/label", "-i", "B={pred}", "--map", "A:1->1", "--map", "B:2->2", "-o", "{out}"],
    ),
    "itk_convert": (["format", "nii.gz", "{data}", "{out}"],) * 2,
    "itk_evaluate": (
        ["{data}/label", "{pred}", "{out}", "--metrics", "overlap"],
        ["{data}/label", "{pred}", "{out}", "--format", "csv"],
    ),
}  # fmt: skip
"""Tool -> our words and the reference's, for the same work. ``{square}``: the same volumes cropped until Y equals X, since the
reference skips all others."""


def main() -> int:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="bin folder of a virtual environment with itkit==4.0.0")
    parser.add_argument("--data", type=Path, help="dataset with image/ and label/ (.mha)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each command (default 3)")
    parser.add_argument("--tools", nargs="+", default=list(COMMANDS), help="only these tools")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="only these tables")
    parser.add_argument(
        "--copies", type=int, default=10, help="how many times the data for the workers table (default 10)"
    )
    parser.add_argument("--cases", type=int, default=10_000, help="small cases of the memory table (default 10000)")
    options = parser.parse_args()
    tools = [name for name in options.tools if name in TOOL_MODULES]
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="bench_process_") as folder:
        scratch = Path(folder)
        for environment in (ENVIRONMENT, THEIR_ENVIRONMENT):
            environment["PYTHONPYCACHEPREFIX"] = str(scratch / "compiled")
        data = prepare(options.data, scratch)
        if "tools" in options.parts:
            compare_tools(tools, data, scratch, options.reference, options.runs)
        if "start" in options.parts:
            compare_starts(tools, options.reference, options.runs)
        if "workers" in options.parts:
            compare_workers(tools, scratch, options.runs, options.copies)
        if "memory" in options.parts:
            measure_memory(scratch, options.cases)
    return 0


def adopt_orphans() -> None:
    """Become the parent of whatever a command leaves behind, so that its CPU time can be counted (Linux)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def prepare(given: Path | None, scratch: Path) -> Path:
    """Return a dataset of our own copy, with shifted labels beside it as predictions."""
    data = scratch / "data"
    if given is not None:
        for role in ("image", "label"):
            shutil.copytree(given / role, data / role)
    else:
        shared = Path(os.environ.get("ITKIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
        source = shared / "data" / "Task04_Hippocampus"
        if source.is_dir():
            convert = [
                sys.executable,
                "-m",
                "itkit.dataset.MSD.convert_nii_mha",
                str(source),
                str(scratch / "converted"),
            ]
            subprocess.run(convert, check=True, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
            for role in ("image", "label"):
                shutil.copytree(scratch / "converted" / role, data / role)
        else:
            rng = np.random.default_rng(0)
            for number in range(60):
                image = rng.integers(0, 900, (35, 50, 35)).astype(np.int16)
                write_volume(data / "image" / f"case_{number:03}.mha", Volume(image))
                write_volume(data / "label" / f"case_{number:03}.mha", Volume((image % 3).astype(np.uint8)))
    for case in find_cases(data).cases:
        label = read_volume(case.label)
        side = min(label.size_zyx[1:])
        for role, volume in (("image", read_volume(case.image)), ("label", label)):
            cropped = np.ascontiguousarray(volume.array[:, :side, :side])
            place = (volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz)
            write_volume(scratch / "square" / role / f"{case.case_id}.mha", Volume(cropped, *place))
        moved = Volume(np.roll(label.array, 1, axis=1), label.spacing_zyx, label.origin_xyz, label.direction_xyz)
        write_volume(scratch / "pred" / case.label.name, moved)
    return data


def run(
    command: Sequence[str], words: Sequence[str], places: dict[str, str], *, again: bool = False
) -> tuple[float, float, int]:
    """Run a command, `again` where its results are already; return CPU seconds, wall seconds, and how many files are there."""
    out = Path(places["out"])
    if not again:
        shutil.rmtree(out, ignore_errors=True)
    line = [*command, *(word.format(**places) for word in words)]
    environment = ENVIRONMENT if command[0] == sys.executable else THEIR_ENVIRONMENT
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    wall = time.perf_counter() - begin
    with contextlib.suppress(
        ChildProcessError
    ):  # the fork server and its workers, which are ours since `adopt_orphans`
        while True:
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        print(
            f"  {' '.join(line)}: exit code {done.returncode}: {done.stderr.decode()[-300:].strip()}", file=sys.stderr
        )
    written = sum(path.is_file() for path in out.rglob("*")) if out.exists() else 0
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, written


def forget(folder: Path) -> None:
    """Remove what the reference has noted in its source: with it, its checker reads no volume but the notes."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".mha":
            path.unlink()


def compare_tools(tools: list[str], data: Path, scratch: Path, reference: Path | None, runs: int) -> None:
    """Print CPU seconds of each tool on one process."""
    cases = len(find_cases(data).cases)
    print(f"\n{cases} pairs, one process, CPU seconds (median of {runs})\n")
    print("| tool | ours | reference | reference / ours | files ours | reference | second run, ours | reference |")
    print("|---|---|---|---|---|---|---|---|")
    theirs_data = scratch / "reference"
    shutil.copytree(data, theirs_data / "data")  # it writes into its source
    for name in ("pred", "square"):
        shutil.copytree(scratch / name, theirs_data / name)
    few = {name: str(scratch / "few" / name) for name in ("data", "pred", "square", "out")}
    for name in ("data", "pred", "square"):
        for file in sorted((scratch / name).rglob(f"{next(iter(find_cases(data).cases)).case_id}.mha")):
            target = scratch / "few" / file.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    for tool in tools:
        ours, theirs = COMMANDS[tool]
        run([*OURS, tool], ours, few)  # modules are compiled, files are in memory
        if reference is not None and theirs is not None:
            run([str(reference / tool)], theirs, few)
        sides = {"ours": ([*OURS, tool], ours, scratch)}
        if reference is not None and theirs is not None:
            sides["reference"] = ([str(reference / tool)], theirs, theirs_data)
        first: dict[str, list[float]] = {name: [] for name in sides}
        second: dict[str, list[float]] = {name: [] for name in sides}
        files = {}
        for _ in range(runs):
            for side, (command, words, folder) in sides.items():
                places = {name: str(folder / name) for name in ("data", "pred", "square", "out")}
                if side == "reference":
                    forget(folder / "data")
                cpu, _, files[side] = run(command, words, places)
                first[side].append(cpu)
                second[side].append(run(command, words, places, again=True)[0])
        medians = {side: statistics.median(values) for side, values in first.items()}
        cells = [f"{medians[side]:.2f}" if side in medians else "" for side in ("ours", "reference")]
        cells.append(f"{medians['reference'] / medians['ours']:.2f}" if "reference" in medians else "")
        cells += [str(files.get(side, "")) for side in ("ours", "reference")]
        cells += [f"{statistics.median(second[side]):.2f}" if side in second else "" for side in ("ours", "reference")]
        print(f"| `{tool}` | {' | '.join(cells)} |", flush=True)


def compare_starts(tools: list[str], reference: Path | None, runs: int) -> None:
    """Print how long `--help` takes."""
    print(f"\n`--help`, wall seconds (median of {max(runs, 5)})\n\n| tool | ours | reference |\n|---|---|---|")
    for tool in tools:
        cells = []
        for command in ([*OURS, tool], None if reference is None else [str(reference / tool)]):
            values = []
            for _ in range(max(runs, 5) + 1 if command else 0):
                begin = time.perf_counter()
                environment = ENVIRONMENT if command[0] == sys.executable else THEIR_ENVIRONMENT
                subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, check=True, env=environment)
                values.append(time.perf_counter() - begin)
            cells.append(f"{statistics.median(values[1:]):.3f}" if values else "")
        print(f"| `{tool}` | {' | '.join(cells)} |", flush=True)


def compare_workers(tools: list[str], scratch: Path, runs: int, copies: int) -> None:
    """Print wall seconds of one process and of two, on several copies of the data; means something on a quiet machine."""
    many = scratch / "many"
    for name in ("data", "pred", "square"):
        for file in sorted((scratch / name).rglob("*.mha")):
            for copy in range(copies):
                target = many / file.relative_to(scratch).parent / f"{file.stem}_{copy}.mha"
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target)
    cases = len(find_cases(many / "data").cases)
    print(f"\n{cases} pairs, wall seconds (median of {runs}); load of the machine {os.getloadavg()[0]:.1f}\n")
    print("| tool | --workers 1 | --workers 2 | ratio | CPU seconds 1 | 2 |\n|---|---|---|---|---|---|")
    places = {name: str(many / name) for name in ("data", "pred", "square", "out")}
    for tool in tools:
        walls, cpus = {1: [], 2: []}, {1: [], 2: []}
        for _ in range(runs):
            for workers in (1, 2):
                cpu, wall, _ = run([*OURS, tool], [*COMMANDS[tool][0], "--workers", str(workers)], places)
                walls[workers].append(wall)
                cpus[workers].append(cpu)
        one, two = (statistics.median(walls[workers]) for workers in (1, 2))
        cpu_one, cpu_two = (statistics.median(cpus[workers]) for workers in (1, 2))
        print(f"| `{tool}` | {one:.2f} | {two:.2f} | {one / two:.2f} | {cpu_one:.2f} | {cpu_two:.2f} |", flush=True)


def measure_memory(scratch: Path, cases: int) -> None:
    """Print the memory of the main process and of the largest worker early and late in a run over small cases."""
    source = scratch / "tiny"
    write_volume(source / "case_0.mha", Volume(np.arange(64, dtype=np.int16).reshape(4, 4, 4)))
    for number in range(1, cases):
        shutil.copyfile(source / "case_0.mha", source / f"case_{number}.mha")
    print(f"\n{cases} cases of 4 x 4 x 4 voxels, itk_orient, resident MiB\n")
    print(
        "| workers | main after 20 % | main at the end | worker after 20 % | worker at the end | seconds | cases / s |"
    )
    print("|---|---|---|---|---|---|---|")
    for workers in (1, 2):
        out = scratch / "tiny_out"
        shutil.rmtree(out, ignore_errors=True)
        line = [*OURS, "itk_orient", str(source), str(out), "LPI", "--workers", str(workers), "-q"]
        begin = time.perf_counter()
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        early, late = (0, 0), (0, 0)
        while process.poll() is None:
            late = max_memory(process.pid) or late
            done = len(os.listdir(out)) if out.exists() else 0
            if done < 0.2 * cases:
                early = late
            time.sleep(0.25)
        wall = time.perf_counter() - begin
        cells = [early[0], late[0], early[1], late[1]]
        row = " | ".join(f"{value / 2**20:.0f}" if value else "" for value in cells)
        print(f"| {workers} | {row} | {wall:.1f} | {cases / wall:.0f} |", flush=True)


def max_memory(pid: int) -> tuple[int, int] | None:
    """Return resident bytes of a process and of the largest of its children."""
    try:
        main_process = psutil.Process(pid)
        resident = main_process.memory_info().rss
        below = [child.memory_info().rss for child in main_process.children(recursive=True)]
    except psutil.Error:
        return None
    return resident, max(below, default=0)


if __name__ == "__main__":
    sys.exit(main())
