"""Tests of the code base itself: import rules, light start-up, one table of commands, names that the documentation promises."""

from __future__ import annotations

import ast
import configparser
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import itkit
from itkit.cli.table import COMMANDS, PLANNED

ROOT = Path(itkit.__file__).resolve().parent
REPOSITORY = ROOT.parent
HEAVY = ("torch", "mmengine", "monai", "numpy", "scipy", "pandas", "matplotlib", "SimpleITK", "rich")


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*(m for m in {HEAVY} if m in sys.modules))"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import itkit",
        "import itkit.errors, itkit.experiment.names, itkit.experiment.state, itkit.cli.table",
        "from itkit.mm.run import build_parser; build_parser().format_help()",
        "from itkit.mm import run; run.main(['--list'])",
    ],
)
def test_light_start(code):
    assert loaded_by(code) == set()


@pytest.mark.parametrize(
    "room", ["io.volumes", "measures.overlap", "process.cases", "experiment.comparison", "experiment.report"]
)
def test_torch_free_rooms_load_no_torch(room):
    assert not loaded_by(f"import itkit.{room}") & {"torch", "mmengine", "monai"}


def test_import_contracts_hold():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout


def test_shell_commands_come_from_the_table():
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    scripts = {k.strip(): v.strip() for k, v in (li.split("=") for li in lines)}
    assert scripts == {c.name: c.target for c in COMMANDS if " " not in c.name}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.name not in PLANNED], ids=lambda c: c.name)
def test_each_command_exists_and_its_help_is_worth_reading(command, capsys):
    module, _, function = command.target.partition(":")
    main = getattr(importlib.import_module(module), function)
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "usage" in text.lower()
    assert len(text.splitlines()) > 10


def modules():
    return sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "itkit."))


@pytest.mark.parametrize("name", modules())
def test_each_module_says_why_it_exists_and_prints_nothing(name):
    path = ROOT.parent / Path(*name.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree) or ""
    assert len(docstring.split()) >= 4, name
    calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert "print" not in calls
    assert path.name not in {"utils", "misc", "common", "helpers"}


@pytest.mark.parametrize("name", [n for n in modules() if not n.endswith("__main__")])
def test_public_functions_and_classes_are_documented(name):
    module = importlib.import_module(name)
    undocumented = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and getattr(value, "__module__", None) == name
        and callable(value)
        and not value.__doc__
    ]
    assert not undocumented


def test_promised_names_exist():
    promised = {
        "itkit.mm.task_models": ["SemanticSegment", "SemSeg2D", "SemSeg3D"],
        "itkit.mm.mmeng_PlugIn": [
            "mgam_OptimWrapperConstructor",
            "IterBasedTrainLoop_SupportProfiler",
            "RuntimeInfoHook",
            "LoggerJSON",
            "multi_sample_collate",
        ],
        "itkit.dataset": ["SeriesVolumeDataset", "PatchedDataset", "ITKITConcatDataset", "ITKITBaseSegDataset"],
        "itkit.io.sitk_toolkit": ["get_spacing"],
    }
    for module, names in promised.items():
        loaded = importlib.import_module(module)
        assert [n for n in names if not hasattr(loaded, n)] == [], module
