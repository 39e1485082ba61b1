"""MLflow without a server: where it writes, and that closing twice begins no second run (MLflow itself is played by a stub)."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest


class Recorder:
    """The calls that the backend makes."""

    MlflowException = RuntimeError

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args))

        return call


@pytest.fixture
def backend(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", recorder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from itkit.mm.visualization import MLflowVisBackend

    made = MLflowVisBackend(str(tmp_path / "mlflow"))
    made.cfg = SimpleNamespace(work_dir=str(tmp_path))
    return made, recorder


def test_without_a_server_a_database_in_the_run_folder(backend, tmp_path):
    made, recorder = backend
    made.add_scalar("loss", 1.0, step=3)
    uris = [args[0] for name, args in recorder.calls if name == "set_tracking_uri"]
    assert uris == [f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"]


def test_pictures_get_a_file_ending(backend):
    made, recorder = backend
    made.add_image("val/case_1", np.zeros((4, 4, 3), np.uint8), step=7)
    assert [args[1] for name, args in recorder.calls if name == "log_image"] == ["val/case_1_7.png"]


def test_closing_twice_ends_one_run(backend):
    made, recorder = backend
    made.add_scalar("loss", 1.0)
    made.close()
    made.close()
    assert [name for name, _ in recorder.calls].count("end_run") == 1


def test_variable_names_the_server(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", recorder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    from itkit.mm.visualization import MLflowVisBackend

    MLflowVisBackend(str(tmp_path)).add_scalar("loss", 1.0)
    assert ("set_tracking_uri", ("http://localhost:5000",)) in recorder.calls
