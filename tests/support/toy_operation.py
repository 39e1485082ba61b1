"""An operation over small text files that do what they say: sleep, fail, warn, kill their worker."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from itkit._support.files import write_json
from itkit.errors import DataError, UsageError
from itkit.process.execution import RunOptions, Shard, run_operation
from itkit.process.operation import Operation, Product, Stage, Task, require_apart


@dataclass(frozen=True)
class Toy(Operation):
    """Repeat the text of each file; two outputs a case, so that halves could show."""

    name: ClassVar[str] = "itk_toy"
    places: ClassVar[tuple[str, ...]] = ("source", "destination", "diary", "needs")
    source: str
    destination: str
    factor: int = 2
    diary: str | None = None
    needs: int = 0

    def __post_init__(self):
        require_apart(self.source, self.destination)

    def tasks(self):
        files = sorted(Path(self.source).rglob("*.txt"))
        if not files:
            raise DataError("holds no text.", self.source)
        tasks = []
        for file in files:
            name = file.relative_to(self.source)
            outputs = (Path(self.destination, "image", name), Path(self.destination, "label", name))
            tasks.append(Task(name.with_suffix("").as_posix(), (file,), outputs))
        return tasks

    def process(self, task: Task, stage: Stage) -> Product:
        if self.diary:
            with open(self.diary, "a") as stream:
                stream.write(f"{task.case_id} {os.getpid()}\n")
        text = task.inputs[0].read_text()
        for line in text.splitlines():
            self.obey(line.split(), task)
        stage.path(task.outputs[0]).write_text(text * self.factor)
        stage.path(task.outputs[1]).write_text(text[::-1] * self.factor)
        return Product({"length": len(text)})

    def obey(self, words: list[str], task: Task) -> None:
        match words:
            case ["sleep", seconds]:
                time.sleep(float(seconds))
            case ["until", gate]:  # the test decides how long it takes, however busy the machine is
                while not os.path.exists(gate):
                    time.sleep(0.02)
            case ["fail", *why]:
                raise DataError(" ".join(why), task.inputs[0])
            case ["break"]:
                raise ZeroDivisionError("broken")
            case ["warn", *what]:
                warnings.warn(" ".join(what), UserWarning, stacklevel=1)
            case ["kill"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["kill-once", marker]:
                if not os.path.exists(marker):
                    Path(marker).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case ["memory-once", marker]:
                if not os.path.exists(marker):
                    Path(marker).touch()
                    raise MemoryError
            case ["touch-source"]:
                os.utime(task.inputs[0], ns=(1, 1))
            case ["vanish"]:
                task.inputs[0].unlink()

    def memory_bytes(self, task: Task) -> int:
        return self.needs

    def finish(self, entries: Mapping[str, dict], ask):
        document = {case: entry["record"] for case, entry in sorted(entries.items()) if entry["state"] == "done"}
        write_json(Path(self.destination) / "meta.json", document)
        return [Path(self.destination) / "meta.json"]


def make_source(folder: Path, count: int = 4, text: str = "") -> Path:
    """Write `count` files; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"c{number:03}.txt").write_text(f"{text}\ncase {number}\n")
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a destination but the ledger."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != "ledger.jsonl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def main() -> int:
    """Run the toy: SRC DST DIARY WORKERS [I/N]."""
    source, destination, diary, workers, *shard = sys.argv[1:]
    options = RunOptions(workers=int(workers), shard=Shard.parse(shard[0]) if shard else None)
    summary, _ = run_operation(Toy(source, destination, diary=diary), options)
    sys.stdout.write(f"{len(summary.done)} {len(summary.current)} {len(summary.failed)} {summary.elsewhere}\n")
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main())


def measure(*, text: str, unit: str, overwrite: bool, say) -> tuple[list[str], dict]:
    """An action, which is no run over cases."""
    if not text:
        raise UsageError("there is no text.")
    say("counting")
    warnings.warn("texts are short", stacklevel=2)
    return [f"{len(text)} {unit}"], {"length": len(text), "overwrite": overwrite}
