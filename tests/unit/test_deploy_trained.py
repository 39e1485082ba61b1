"""From an experiment or a config to a predictor: the recipe, the weights, and every way in which they do not fit."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from tiny_model import CLASSES, make_trained, write_post

from itkit.deploy import Predictor
from itkit.deploy.torch_backend import TorchBackend
from itkit.errors import CheckpointError, ConfigError, ExperimentNotFound, UntrustedCheckpoint, UsageError
from itkit.experiment.names import find_experiment
from itkit.io.orientation import reorient
from itkit.io.volumes import read_volume, write_volume
from itkit.mm import checkpoints


@pytest.fixture
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("ITKIT_DATA", str(tmp_path))
    return make_trained(tmp_path)


def run_dir(roots, model="unet") -> Path:
    return roots.work / "0.1.Tiny" / model


def checkpoint(roots) -> Path:
    return next((run_dir(roots) / "checkpoints").iterdir())


def test_the_recipe_is_the_experiments_own(roots):
    predictor = Predictor.from_experiment("0.1", model="unet", roots=roots, device="cpu")
    recipe = predictor.recipe
    assert recipe.classes == CLASSES
    assert recipe.preprocessing == (
        {"type": "LoadVolume"},
        {"type": "Orient", "orientation": "LPS"},
        {"type": "ZScore"},
    )
    assert (recipe.channels, recipe.patch_size_zyx, recipe.average) == (1, None, "logits")
    facts = recipe.provenance
    assert (facts["experiment"], facts["model"], facts["step"]) == ("0.1.Tiny", "unet", 8)
    assert facts["checkpoint_sha256"] == checkpoints.sha256(checkpoint(roots))
    assert len(facts["config_sha256"]) == 64
    assert type(recipe).from_json(recipe.to_json()) == recipe
    assert predictor.backend.name == "mmengine"
    alone = Predictor.from_experiment("0.1", roots=roots, device="cpu")
    assert alone.recipe == recipe, "its only model"


def test_images_of_another_orientation_are_predicted_as_the_training_data_lay(roots, tmp_path):
    predictor = Predictor.from_experiment("0.1", roots=roots, device="cpu")
    image = read_volume(tmp_path / "Tiny" / "image" / "case_00.mha")
    expected = predictor(image).labels
    assert len(np.unique(expected.array)) > 1
    for code in ("RAS", "SLP"):
        found = predictor(reorient(image, code)).labels
        assert np.array_equal(found.array, reorient(expected, code).array)
    from itkit.artifacts.config import load_config
    from itkit.deploy.trained import orientations_of_data

    config = load_config(find_experiment("0.1", roots.configs), "unet")
    assert orientations_of_data(config) == {"LPS"}
    path = tmp_path / "Tiny" / "image" / "case_01.mha"
    label = tmp_path / "Tiny" / "label" / "case_01.mha"
    for file in (path, label):
        write_volume(file, reorient(read_volume(file), "RAS"))
    assert orientations_of_data(config) == {"LPS", "RAS"}
    mixed = Predictor.from_experiment("0.1", roots=roots, device="cpu").recipe
    assert mixed.orientation is None


def test_without_the_training_data_the_orientation_is_not_known_and_that_is_said(roots, monkeypatch):
    monkeypatch.delenv("ITKIT_DATA")
    with pytest.warns(
        UserWarning, match="orientation of the training data is not known .* images are taken as they lie"
    ):
        found = Predictor.from_experiment("0.1", roots=roots, device="cpu")
    assert found.recipe.orientation is None
    assert found.recipe.preprocessing == ({"type": "LoadVolume"}, {"type": "ZScore"})


def test_config_and_checkpoint_are_the_same_model(roots, tmp_path):
    image = tmp_path / "Tiny" / "image" / "case_00.mha"
    config = roots.configs / "0.1.Tiny" / "unet.py"
    found = Predictor.from_config(config, checkpoint(roots), device="cpu")(image)
    expected = Predictor.from_experiment("0.1", roots=roots, device="cpu")(image)
    assert np.array_equal(found.labels.array, expected.labels.array)


def test_the_post_processing_of_the_run_is_taken_up_if_it_is_for_this_checkpoint(roots):
    steps = [{"type": "largest", "classes": [2]}]
    write_post(run_dir(roots), steps, checkpoints.sha256(checkpoint(roots)))
    assert Predictor.from_experiment("0.1", roots=roots, device="cpu").recipe.postprocessing == tuple(steps)
    write_post(run_dir(roots), steps, "0" * 64)
    with pytest.warns(
        UserWarning, match="was tuned for another checkpoint and is not used; run itk_infer tune-post again"
    ):
        assert Predictor.from_experiment("0.1", roots=roots, device="cpu").recipe.postprocessing == ()
    (run_dir(roots) / "post.json").write_text("{")
    with pytest.raises(ConfigError, match=r"post\.json: cannot be read .*Remove it, or run itk_infer tune-post again"):
        Predictor.from_experiment("0.1", roots=roots, device="cpu")
    (run_dir(roots) / "post.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"post\.json: holds no list of steps"):
        Predictor.from_experiment("0.1", roots=roots, device="cpu")
    write_post(run_dir(roots), [{"type": "largest", "classes": [9]}], checkpoints.sha256(checkpoint(roots)))
    with pytest.raises(UsageError, match="there is no class 9"):
        Predictor.from_experiment("0.1", roots=roots, device="cpu")


def test_checkpoints_that_do_not_fit(roots, tmp_path):
    config = roots.configs / "0.1.Tiny" / "unet.py"
    good = checkpoint(roots)
    with pytest.raises(CheckpointError, match=r"none\.pth: there is no such checkpoint"):
        Predictor.from_config(config, tmp_path / "none.pth")
    state = checkpoints.load(good)["state_dict"]
    first, *rest = list(state)
    other = {**{key: state[key] for key in rest[1:]}, "backbone.wrong": state[first], rest[0]: torch.zeros(7)}
    checkpoints.save({"state_dict": other}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as error:
        Predictor.from_config(config, tmp_path / "other.pth", device="cpu")
    for word in (f"missing 1 ({first})", "unexpected 1 (backbone.wrong)", f"{rest[0]} has shape (7,), the model wants"):
        assert word in str(error.value)
    torch.save({"state_dict": state, "who": Path("x")}, tmp_path / "objects.pth")
    with pytest.raises(UntrustedCheckpoint, match=r"holds Python objects .*--trust-checkpoint"):
        Predictor.from_config(config, tmp_path / "objects.pth", device="cpu")
    trusted = Predictor.from_config(config, tmp_path / "objects.pth", device="cpu", trust_checkpoint=True)
    assert trusted.recipe.classes == CLASSES
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(CheckpointError):
        Predictor.from_config(config, tmp_path / "evil.pth", device="cpu")
    assert not Evil.ran
    good.write_bytes(good.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="is damaged"):
        Predictor.from_experiment("0.1", roots=roots, device="cpu")


class Evil:
    """Sets a flag when it is unpickled."""

    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


def test_names_that_mean_nothing(roots, tmp_path):
    with pytest.raises(ExperimentNotFound, match='no experiment matches "0.7"'):
        Predictor.from_experiment("0.7", roots=roots)
    with pytest.raises(UsageError, match='no model "unnet"; found unet. Did you mean unet'):
        Predictor.from_experiment("0.1", "unnet", roots=roots)
    make_trained(tmp_path, model="second", seed=1)
    with pytest.raises(ConfigError, match=r"0\.1\.Tiny has 2 models; name one: second, unet"):
        Predictor.from_experiment("0.1", roots=roots)
    with pytest.raises(ConfigError, match=r"none\.py: there is no such config"):
        Predictor.from_config(tmp_path / "none.py", checkpoint(roots))
    with pytest.raises(UsageError, match=r"device 'cuda:99' is not here; found cpu"):
        Predictor.from_experiment("0.1", "unet", roots=roots, device="cuda:99")
    (run_dir(roots, "second") / "run.json").unlink()
    with pytest.raises(CheckpointError, match="no best checkpoint is recorded"):
        Predictor.from_experiment("0.1", "second", roots=roots)


@pytest.mark.parametrize(
    "extra,message",
    [
        (
            "from itkit.transforms import RandomGamma\n"
            'test_dataloader["dataset"]["pipeline"] = load + [dict(type=RandomGamma)] + pack',
            r"unet\.py: the test pipeline holds RandomGamma, which cannot be done outside of it",
        ),
        (
            "del test_dataloader, val_dataloader",
            "neither test_dataloader nor val_dataloader has a dataset with a pipeline",
        ),
        (
            'classes = ("background", "small")\ntest_dataloader["dataset"]["classes"] = classes',
            "the model tells 3 classes apart",
        ),
    ],
)
def test_configs_that_tell_no_recipe(tmp_path, monkeypatch, extra, message):
    monkeypatch.setenv("ITKIT_DATA", str(tmp_path))
    roots = make_trained(tmp_path, extra=extra)
    with pytest.raises(ConfigError, match=message):
        Predictor.from_experiment("0.1", roots=roots, device="cpu")


def test_networks_that_are_no_task_models(roots, tmp_path):
    text = (roots.configs / "0.1.Tiny" / "unet.py").read_text()
    bare = roots.configs / "0.1.Tiny" / "bare.py"
    network = "dict(type=UNet, spatial_dims=3, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,))"
    bare.write_text(f"{text}\nmodel = {network}\n")
    with pytest.raises(
        ConfigError, match="model is a UNet, which is no task model of itkit; wrap the network in SemSeg3D"
    ):
        Predictor.from_config(bare, checkpoint(roots), device="cpu")
    bare.write_text(text + "\ndel model\n")
    with pytest.raises(ConfigError, match="defines no model"):
        Predictor.from_config(bare, checkpoint(roots), device="cpu")


def test_half_precision_on_a_cpu_is_said(roots):
    with pytest.warns(UserWarning, match="half precision has no effect on a CPU; predicting in float32"):
        found = Predictor.from_experiment("0.1", roots=roots, device="cpu", half=True)
    assert isinstance(found.backend, TorchBackend)


def test_the_digest_of_a_config_follows_its_content_not_its_place(roots, tmp_path):
    from itkit.artifacts.config import load_config
    from itkit.deploy.trained import config_digest

    experiment = find_experiment("0.1", roots.configs)
    first = config_digest(load_config(experiment, "unet"))
    assert first == config_digest(load_config(experiment, "unet"))
    shared = roots.configs / "0.1.Tiny" / "mgam.py"
    shared.write_text(shared.read_text() + "\n# a word\n")
    assert config_digest(load_config(find_experiment("0.1", roots.configs), "unet")) == first
    shared.write_text(shared.read_text().replace("lr=0.02", "lr=0.03"))
    assert config_digest(load_config(find_experiment("0.1", roots.configs), "unet")) != first
    assert json.dumps(first)
