"""What every registered component promises: documented, found by its registry, checked; and the pages keep their word."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from mmengine.config import Config
from mmengine.registry import Registry

from itkit import registry
from itkit.errors import ConfigError
from itkit.mm import run
from itkit.mm.config_check import check_config

ROOT = Path(registry.__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}


def registered():
    for role, found in vars(registry).items():
        if isinstance(found, Registry) and found.scope == registry.SCOPE:
            found.import_from_location()
            yield from ((role, name, part) for name, part in sorted(found.module_dict.items()))


PARTS = list(registered())
EACH = pytest.mark.parametrize("role,name,part", PARTS, ids=[f"{role}-{name}" for role, name, _ in PARTS])

CONFIGS = {
    "MODELS": lambda part: {"model": part},
    "DATASETS": lambda part: {"train_dataloader": {"dataset": part}},
    "TRANSFORMS": lambda part: {"train_dataloader": {"dataset": {"type": "SeriesVolumeDataset", "pipeline": [part]}}},
    "DATA_SAMPLERS": lambda part: {"train_dataloader": {"sampler": part}},
    "FUNCTIONS": lambda part: {"train_dataloader": {"collate_fn": part}},
    "HOOKS": lambda part: {"custom_hooks": [part]},
    "LOOPS": lambda part: {"train_cfg": part},
    "METRICS": lambda part: {"val_evaluator": [part]},
    "OPTIM_WRAPPERS": lambda part: {"optim_wrapper": part},
    "OPTIMIZERS": lambda part: {"optim_wrapper": {"type": "OptimWrapper", "optimizer": part}},
    "VISBACKENDS": lambda part: {"visualizer": {"type": "Visualizer", "vis_backends": [part]}},
}
"""How a config names a component of each kind. Those of the other kinds are named by a word alone."""
NAMED_ALONE = ("RUNNERS", "OPTIM_WRAPPER_CONSTRUCTORS", "MODEL_WRAPPERS", "STRATEGIES", "EXPORTERS")
IN_CONFIGS = [entry for entry in PARTS if entry[0] in CONFIGS]
EACH_IN_CONFIGS = pytest.mark.parametrize(
    "role,name,part", IN_CONFIGS, ids=[f"{role}-{name}" for role, name, _ in IN_CONFIGS]
)


def arguments_of(part) -> list[str]:
    call = part.__init__ if inspect.isclass(part) else part
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(call).parameters.values() if p.kind in named and p.name != "self"]


def test_something_of_every_kind_is_registered():
    assert {role for role, _, _ in PARTS} == {*CONFIGS, *NAMED_ALONE}
    assert len(PARTS) > 60


@EACH
def test_documented_with_every_argument(role, name, part):
    first = (part.__doc__ or "").strip().partition("\n")[0]
    assert len(first.split()) >= 4, "a sentence of its own that says what it is for"
    assert first.rstrip(")`").endswith((".", ";", ":")) or "\n" in part.__doc__, first
    family = inspect.getmro(part) if inspect.isclass(part) else (part,)
    text = " ".join(one.__doc__ or "" for one in family)
    assert [a for a in arguments_of(part) if not re.search(rf"\b{a}\b", text)] == []


@EACH
def test_registered_under_its_name_and_found_where_the_registry_looks(role, name, part):
    assert part.__name__ == name
    home = getattr(registry, role)
    assert home.get(name) is part
    assert home.get(f"itkit.{name}") is part
    places = [importlib.import_module(place) for place in home._locations]
    assert any(getattr(place, name, None) is part for place in places), "importable from the room that registers it"
    for place in places:
        listed = getattr(place, "__all__", None)
        assert listed is None or name in listed or getattr(place, name, None) is None


@EACH_IN_CONFIGS
@pytest.mark.parametrize("by", ["name", "class"])
def test_config_check_knows_every_argument(role, name, part, by):
    kind = name if by == "name" else part
    check_config(Config(CONFIGS[role]({"type": kind, **dict.fromkeys(arguments_of(part))})))


@EACH_IN_CONFIGS
def test_config_check_names_the_misspelt_argument_and_the_misspelt_name(role, name, part):
    for argument in arguments_of(part)[-1:]:
        with pytest.raises(ConfigError, match=rf'has no argument "{argument}_x"'):
            check_config(Config(CONFIGS[role]({"type": name, f"{argument}_x": None})))
    wrong = f"{name}x"
    with pytest.raises(ConfigError, match=rf'no component is called "{wrong}"\. Did you mean') as caught:
        check_config(Config(CONFIGS[role]({"type": wrong})))
    assert name in str(caught.value)


# ---------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", PAGES)
def test_components_in_the_examples_of_a_page_exist(page):
    blocks = re.findall(r"```(?:python|yaml)[^\n]*\n(.*?)```", PAGES[page], re.DOTALL)
    named = {name for block in blocks for name in re.findall(r"\btype(?:=|: )[\"']?([A-Za-z_][\w.]*)", block)}
    own = {name for block in blocks for name in re.findall(r"^class (\w+)", block, re.MULTILINE)}
    known = [found for found in vars(registry).values() if isinstance(found, Registry)]
    lost = []
    for name in named - own:
        spaces = [vars(torch.optim), vars(torch.nn), vars(torch.optim.lr_scheduler)]
        imported = any(re.search(rf"import [^\n]*\b{name}\b", block) for block in blocks)
        if not imported and not any(name in space for space in spaces) and not any(_found(r, name) for r in known):
            lost.append(name)
    assert lost == []


def _found(home, name):
    try:
        return home.get(name) is not None
    except (ImportError, KeyError, RuntimeError):
        return False


@pytest.mark.parametrize("page", PAGES)
def test_flags_links_and_modules_of_a_page_exist(page):
    text = PAGES[page]
    flags = {flag for action in run.build_parser()._actions for flag in action.option_strings}
    lines = re.findall(r"^\s*(?:\w+=\S+ )*(?:srun )?mmrun .*", text, re.MULTILINE) + re.findall(
        r"`mmrun ([^`]*)`", text
    )
    used = {word.partition("=")[0] for line in lines for word in line.split("#")[0].split() if word.startswith("--")}
    assert used - flags == set()
    home = ROOT if page == "README.md" else ROOT / "docs"
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (home / link).exists()] == []
    modules = re.findall(r"python -m (itkit[\w.]*)", text)
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    files = re.findall(r"`((?:tools|tests|configs|docs|itkit)/[\w./-]+\.(?:py|md|json))`", text)
    invented = ("configs/2.0.", "configs/0.3.")  # experiments that the reader writes
    assert [name for name in files if not name.startswith(invented) and not (ROOT / name).exists()] == []


def test_targets_of_make_that_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (\w+)", README)) - {"one", "a", "the"}
    assert {"demo", "test"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_first_experiment_of_readme_passes_its_own_commands(tmp_path, monkeypatch, capsys):
    """What the reader copies, word for word, on smaller patches."""
    shared = re.search(r"```python[^\n]*\n(from mmengine.config import read_base.*?)```", README, re.DOTALL).group(1)
    model = re.search(r"```yaml\n(model:.*?)```", README, re.DOTALL).group(1)
    folder = tmp_path / "configs/2.0.Mine"
    folder.mkdir(parents=True)
    base = tmp_path / "configs/_base_"
    base.mkdir()
    (base / "runtime.py").write_text((ROOT / "configs/_base_/runtime.py").read_text())
    assert "(32, 96, 96)" in shared
    (folder / "mgam.py").write_text(shared.replace("(32, 96, 96)", "(8, 16, 16)"))
    assert "[32, 96, 96]" in model
    (folder / "unet.yaml").write_text(model.replace("[32, 96, 96]", "[8, 16, 16]"))
    for i in range(10):
        label = np.zeros((10, 18, 18), np.uint8)
        label[2:7, 3 : 9 + i % 3, 4:12] = 1
        label[3:5, 4:7, 5:8] = 2
        noise = np.random.default_rng(i).normal(0, 30, label.shape)
        for kind, array in (("image", (label * 60 + noise).astype(np.int16)), ("label", label)):
            path = tmp_path / "datasets/Mine" / kind / f"patient_{i:03d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    monkeypatch.setenv("ITKIT_DATA", str(tmp_path / "datasets"))
    for variable in ("mm_configdir", "mm_workdir", "mm_testdir", "supported_models"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line, comments=True)[1:]
        for line in README.splitlines()
        if re.match(r"mmrun 2\.0 --(check|smoke)", line)
    ]
    assert len(commands) == 2
    for words in commands:
        assert run.main(words) == 0, capsys.readouterr().err
    _, err = capsys.readouterr()
    assert "cases      8 train, 1 val, 1 test" in err
    assert "smoke test passed" in err
