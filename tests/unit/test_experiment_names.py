"""The rules by which "0.3" becomes a folder."""

from __future__ import annotations

import pytest

from itkit.errors import ConfigError, ExperimentNotFound, UsageError
from itkit.experiment.names import Roots, find_experiment, scan, select_models, version_of


def make(root, *names, files=("mgam.py", "unet.py")):
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text("")
    return root


@pytest.mark.parametrize(
    "name,version",
    [
        ("0.3.KiTS", "0.3"),
        ("0.3.1.KiTS", "0.3.1"),
        ("12.KiTS", "12"),
        ("0.3.3D", None),
        ("0.x.KiTS", None),
        ("KiTS", None),
        ("0.3", None),
        ("0.3.", None),
        (".KiTS", None),
        ("0..KiTS", None),
        ("0.3.Ki.TS", None),
    ],
)
def test_version_is_numeric_elements_and_a_word(name, version):
    assert version_of(name) == version


def test_version_means_exactly_that_version(tmp_path):
    make(tmp_path, "0.3.KiTS", "0.3.1.KiTS", "0.30.Other", "10.3.More")
    assert find_experiment("0.3", tmp_path).name == "0.3.KiTS"
    assert find_experiment("0.3.1", tmp_path).name == "0.3.1.KiTS"
    assert find_experiment("0.3.1.KiTS", tmp_path).name == "0.3.1.KiTS"
    assert find_experiment("0.3.KiTS/", tmp_path).name == "0.3.KiTS"


def test_prefix_is_no_match_and_candidates_are_listed_nearest_suggested(tmp_path):
    make(tmp_path, "0.1.AbdomenCT", "0.3.1.KiTS")
    with pytest.raises(
        ExperimentNotFound, match=r'no experiment matches "0\.3"; found 0\.1\.AbdomenCT, 0\.3\.1\.KiTS\.'
    ):
        find_experiment("0.3", tmp_path)
    with pytest.raises(ExperimentNotFound, match=r"Did you mean 0\.3\.1\.KiTS\?") as caught:
        find_experiment("kits", tmp_path)
    assert caught.value.exit_code == 2


def test_two_matches_are_refused(tmp_path):
    make(tmp_path, "0.3.KiTS", "0.3.Liver")
    with pytest.raises(ExperimentNotFound, match=r"more than one experiment: 0\.3\.KiTS, 0\.3\.Liver"):
        find_experiment("0.3", tmp_path)
    assert find_experiment("0.3.Liver", tmp_path).name == "0.3.Liver"


def test_folders_that_break_the_rule_are_named(tmp_path):
    make(tmp_path, "0.1.A", "0.3.3D", "notes", "_base_", ".git")
    assert scan(tmp_path) == (["0.1.A"], ["0.3.3D", "notes"])
    with pytest.raises(ExperimentNotFound, match=r"begin with a digit: 0\.3\.3D, notes"):
        find_experiment("0.3", tmp_path)


def test_experiments_are_sorted_by_number(tmp_path):
    make(tmp_path, "0.10.B", "0.9.A", "0.9.1.C")
    assert scan(tmp_path)[0] == ["0.9.A", "0.9.1.C", "0.10.B"]


def test_missing_parts_are_config_errors(tmp_path):
    make(tmp_path, "0.1.A", files=("unet.py",))
    make(tmp_path, "0.2.B", files=("mgam.py", "_private.py"))
    make(tmp_path, "0.3.C", files=("mgam.py", "unet.py", "unet.yaml"))
    with pytest.raises(ConfigError, match=r"0\.1\.A: mgam\.py is missing"):
        find_experiment("0.1", tmp_path)
    with pytest.raises(ConfigError, match="no model file"):
        find_experiment("0.2", tmp_path)
    with pytest.raises(ConfigError, match=r"two files for the model unet: unet\.py, unet\.yaml"):
        find_experiment("0.3", tmp_path)


def test_missing_root_says_how_to_name_it(tmp_path):
    with pytest.raises(ExperimentNotFound, match="Name it with --config-root or the variable mm_configdir"):
        find_experiment("0.1", tmp_path / "nowhere")


def test_single_file_is_an_experiment_of_one_model(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text("")
    found = find_experiment(str(file), tmp_path)
    assert (found.name, found.shared_config, list(found.models)) == ("plain", None, ["plain"])


def test_models_are_selected_and_limited(tmp_path, monkeypatch):
    make(tmp_path, "0.1.A", files=("mgam.py", "unet.py", "segres.yaml", "notes.txt"))
    experiment = find_experiment("0.1", tmp_path)
    assert select_models(experiment, None) == ["segres", "unet"]
    with pytest.raises(UsageError, match=r'no model "unett"; found segres, unet\. Did you mean unet\?'):
        select_models(experiment, ["unett"])
    monkeypatch.setenv("supported_models", "unet, other")
    assert select_models(experiment, None) == ["unet"]
    with pytest.raises(UsageError, match="leaves none of the models segres"):
        select_models(experiment, ["segres"])


def test_roots_flags_win_over_variables_over_defaults(tmp_path, monkeypatch):
    for name in ("mm_configdir", "mm_workdir", "mm_testdir"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert Roots.resolve() == Roots(tmp_path / "configs", tmp_path / "work_dirs", tmp_path / "work_dirs" / "test")
    monkeypatch.setenv("mm_workdir", str(tmp_path / "w"))
    assert Roots.resolve().work == tmp_path / "w"
    assert Roots.resolve(work=str(tmp_path / "flag")).work == tmp_path / "flag"
