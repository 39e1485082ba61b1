"""How fast the commands answer: start-up of `mmrun` side by side with an empty Python, alternating runs, median wall seconds."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MMRUN = str(Path(sys.executable).parent / "mmrun")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "mmrun --help": [MMRUN, "--help"],
    "mmrun --list": [MMRUN, "--list"],
    "mmrun --list --json": [MMRUN, "--list", "--json"],
}


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11, help="runs of each command (default 11)")
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):  # the first round warms the file cache and is dropped
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - begin)
    print("| command | median s | slowest s |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| `{name}` | {statistics.median(values[1:]):.3f} | {max(values[1:]):.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
