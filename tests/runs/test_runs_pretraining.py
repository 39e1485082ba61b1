"""Contrastive pre-training from end to end: it runs, resumes exactly, shares its keys, and its encoder goes on elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from parallel_runs import Task, run_tasks, succeeded
from tiny_experiment import make_experiment

from itkit.errors import ConfigError
from itkit.mm.pretraining import ContrastivePretraining
from itkit.models import MoCo

PAIRS = """
from itkit.transforms import ExtractSlice, MultiSample, PackSeg2DInputs, RandomBrightness, RandomCrop, TwoViews
view = [dict(type=RandomCrop, size=(10, 10)), dict(type=RandomBrightness), dict(type=PackSeg2DInputs)]
train_dataloader["dataset"]["pipeline"] = load + [dict(type=MultiSample, num_samples=2, transforms=[
    dict(type=ExtractSlice), dict(type=TwoViews, transforms=view)])]
del val_dataloader, test_dataloader, val_cfg, test_cfg, val_evaluator, test_evaluator, param_scheduler
train_cfg = dict(type=IterBasedTrainLoop, max_iters=8)
default_hooks["checkpoint"] = dict(type=CheckpointHook, interval=4, by_epoch=False)
custom_hooks = []
"""

MODEL = """
from mmengine.config import read_base
with read_base():
    from .mgam import *
from itkit.mm.pretraining import ContrastivePretraining
from itkit.models import MoCo, MoCoV3

model = dict(type=ContrastivePretraining, backbone={backbone})
"""

NETWORKS = {
    "v2": 'dict(type=MoCo, in_channels=1, encoder="resnet18", width=4, dim=8, queue_size=16, momentum=0.9, mlp_head=True)',
    "v3": 'dict(type=MoCoV3, in_channels=1, encoder="resnet18", width=4, dim=8, hidden=16)',
}

FINE_TUNING = """
from mmengine.config import read_base
with read_base():
    from .mgam import *
from itkit.mm.task_models import SemSeg2D
from itkit.models import EncoderUNet, ResidualEncoder
from itkit.transforms import ExtractSlice, PackSeg2DInputs

train_dataloader["dataset"]["pipeline"] = load + [dict(type=ExtractSlice), dict(type=PackSeg2DInputs)]
optim_wrapper["optimizer"] = dict(type="SGD", lr=0.0)
model = dict(
    type=SemSeg2D, num_classes=3, criterion=dict(type=DiceCELoss),
    backbone=dict(type=EncoderUNet, in_channels=1, num_classes=3, encoder=dict(
        type=ResidualEncoder, name="resnet18", width=4, checkpoint={checkpoint!r}, prefix="backbone.encoder_q.")),
)
"""


@pytest.fixture
def pretraining(world):
    """A world with an experiment of both networks."""
    folder = make_experiment(world.root, models=(), extra=PAIRS)
    for name, backbone in NETWORKS.items():
        (folder / f"{name}.py").write_text(MODEL.replace("{backbone}", backbone))
    return world


def weights(world, model: str, step: int, experiment: str = "0.1.Tiny") -> dict[str, torch.Tensor]:
    path = world.folder(model, experiment) / "checkpoints" / f"iter_{step}.pth"
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def test_it_runs_and_resumes_exactly(pretraining):
    code, _, err = pretraining.mmrun("0.1", "--all")
    assert code == 0, err
    assert "2 of 2 models succeeded" in err
    assert "defines no test_dataloader, so it is not tested" in err
    rows = [json.loads(line) for line in (pretraining.folder("v2") / "scalars.jsonl").read_text().splitlines()]
    assert all({"loss", "loss_contrast", "top1"} <= row.keys() for row in rows)
    whole = weights(pretraining, "v2", 8)
    assert whole["backbone.queue_ptr"].item() == 8 * 4 % 16

    work = pretraining.folder("v2")
    work.rename(work.with_name("whole"))
    for steps in (4, 8):
        code, _, err = pretraining.mmrun("0.1", "--models", "v2", "--cfg-options", f"train_cfg.max_iters={steps}")
        assert code == 0, err
    assert "resumes after step 4 of 8" in err
    for name, value in weights(pretraining, "v2", 8).items():
        assert torch.equal(value, whole[name]), name


def test_the_encoder_goes_on_in_a_segmentation_network(pretraining):
    assert pretraining.mmrun("0.1", "--models", "v2")[0] == 0
    checkpoint = pretraining.folder("v2") / "checkpoints/iter_8.pth"
    folder = make_experiment(pretraining.root, "0.2.Fine", models=())
    (folder / "unet.py").write_text(FINE_TUNING.replace("{checkpoint!r}", repr(str(checkpoint))))
    code, _, err = pretraining.mmrun("0.2", "--cfg-options", "train_cfg.max_iters=4", "custom_hooks=[]")
    assert code == 0, err
    before = weights(pretraining, "v2", 8)
    after = weights(pretraining, "unet", 4, "0.2.Fine")
    names = [name for name in after if "backbone.encoder." in name and "running" not in name and "tracked" not in name]
    assert len(names) > 50
    for name in names:  # trained with a rate of 0, so that they are still what they began as
        assert torch.equal(after[name], before[name.replace("backbone.encoder.", "backbone.encoder_q.")]), name

    text = (folder / "unet.py").read_text()
    (folder / "unet.py").write_text(text.replace("encoder_q", "encoder_x"))
    code, _, err = pretraining.mmrun("0.2", "--smoke")
    assert code != 0
    assert "begins with 'backbone.encoder_x.'. Did you mean backbone.encoder_" in err


def test_a_batch_without_pairs_is_refused(pretraining):
    path = pretraining.root / "configs/0.1.Tiny/mgam.py"
    path.write_text(path.read_text().replace("dict(type=TwoViews, transforms=view)", "dict(type=PackSeg2DInputs)"))
    code, _, err = pretraining.mmrun("0.1", "--models", "v2")
    assert code == 2
    assert "takes pairs of views (N, 2, C, ...) with 5 axes, found shape (4, 1, 12, 12)" in err


def test_a_network_that_does_not_contrast_is_refused(pretraining):
    (pretraining.root / "configs/0.1.Tiny/v2.py").write_text(
        MODEL.replace(
            "{backbone}",
            'dict(type="monai.UNet", spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))',
        )
    )
    code, _, err = pretraining.mmrun("0.1", "--models", "v2")
    assert code == 2
    assert "backbone UNet has no method contrast(first, second, progress). Choose MoCo or MoCoV3" in err


def test_there_is_nothing_to_predict():
    task = ContrastivePretraining(MoCo(1, "resnet18", dim=8, queue_size=16, width=4))
    images = torch.zeros(2, 1, 32, 32)
    assert [tuple(x.shape) for x in task(images)] == [(2, 8)] * 3
    with pytest.raises(ConfigError, match="has no mode 'predict'; choose loss or tensor. It predicts nothing"):
        task(images, mode="predict")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    tasks = [
        Task(f"{kind}-{count}", count, "contrast_checks:contrasted", {"kind": kind})
        for kind in ("MoCo", "MoCoV3")
        for count in (1, 2)
    ]
    tasks.append(Task("shuffled", 2, "contrast_checks:seen_by_the_keys"))
    return run_tasks(tasks, tmp_path_factory.mktemp("contrast"))


@pytest.mark.parametrize("kind", ["MoCo", "MoCoV3"])
def test_two_processes_contrast_with_the_keys_of_both(results, kind):
    (one,), two = succeeded(results[f"{kind}-1"]), succeeded(results[f"{kind}-2"])
    for answer in two:
        assert answer["losses"] == pytest.approx(one["losses"], rel=1e-5)
        for name, value in answer["state"].items():
            torch.testing.assert_close(value, one["state"][name], rtol=1e-4, atol=1e-5, msg=name)


def test_keys_are_shuffled_over_the_processes(results):
    seen = succeeded(results["shuffled"])
    assert sorted(seen[0] + seen[1]) == [0.0] * 8 + [1.0] * 8
    assert all(0 < sum(part) < 8 for part in seen), "each process encodes images of both"
