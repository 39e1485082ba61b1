"""A world of its own for each run test: data, configs, work folders, and `mmrun` called in this process."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from tiny_experiment import make_data, make_experiment


@dataclass
class World:
    """Folders of one test and the way to run `mmrun` in them."""

    root: Path
    capture: pytest.CaptureFixture

    def mmrun(self, *words: str) -> tuple[int, str, str]:
        """Run `mmrun`; return exit code, stdout and stderr."""
        from itkit.mm import run

        self.capture.readouterr()
        roots = [
            "--config-root",
            self.root / "configs",
            "--work-dir-root",
            self.root / "work",
            "--test-work-dir-root",
            self.root / "test",
        ]
        try:
            code = run.main([*words, *map(str, roots)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capture.readouterr()
        return code, out, err

    def state(self, model: str = "unet", experiment: str = "0.1.Tiny") -> dict:
        return json.loads((self.root / "work" / experiment / model / "run.json").read_text())

    def folder(self, model: str = "unet", experiment: str = "0.1.Tiny") -> Path:
        return self.root / "work" / experiment / model


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    """An empty world with data; `make_experiment(world.root, ...)` adds experiments."""
    monkeypatch.setenv("ITKIT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("supported_models", raising=False)
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    return World(tmp_path, capsys)


@pytest.fixture
def tiny(world):
    """A world with the experiment 0.1.Tiny."""
    make_experiment(world.root)
    return world
