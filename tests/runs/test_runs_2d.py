"""Slices of volumes from end to end: 2D and 2.5D networks trained on slices, validated and tested on whole volumes."""

from __future__ import annotations

import csv
import json

import pytest
from tiny_experiment import make_experiment

SLICED = """
from itkit.transforms import ExtractSlice, MultiSample, PackSeg2DInputs
train_dataloader["dataset"] = dict(
    **dataset, split="train",
    pipeline=load + [dict(type=MultiSample, num_samples=2, transforms=[
        dict(type=ExtractSlice, index="random", neighbours={neighbours}, foreground_ratio=0.5),
        dict(type=RandomFlip, axes=(1,), prob=0.5),
        dict(type=PackSeg2DInputs),
    ])],
)
"""

EVERY_SLICE = """
from itkit.transforms import ExtractSlices, PackSeg2DInputs
for loader in (val_dataloader, test_dataloader):
    loader["dataset"]["pipeline"] = load + [dict(type=ExtractSlices), dict(type=PackSeg2DInputs)]
"""

MODEL = """
from mmengine.config import read_base
with read_base():
    from .mgam import *
from itkit.mm.task_models import SemSeg2D
from itkit.models import MMSegBackboneHead
from monai.networks.nets import UNet

model = dict(type=SemSeg2D, num_classes=3, criterion=dict(type=DiceCELoss), neighbours={neighbours}, backbone={backbone},
             inference_config=dict({inference}))
"""

MONAI = "dict(type=UNet, spatial_dims=2, in_channels={channels}, out_channels=3, channels=(8, 16), strides=(2,), num_res_units=1)"
MMSEG = """dict(
    type=MMSegBackboneHead, norm_cfg=dict(type="BN"),
    backbone=dict(type="UNet", in_channels={channels}, base_channels=8, num_stages=2, strides=(1, 1), downsamples=(True,),
                  enc_num_convs=(1, 1), dec_num_convs=(1,), enc_dilations=(1, 1), dec_dilations=(1,)),
    decode_head=dict(type="FCNHead", in_channels=8, in_index=1, channels=8, num_convs=1, num_classes=3,
                     init_cfg=dict(type="Xavier", layer="Conv2d")))"""


def write_model(folder, name, backbone, *, neighbours=0, inference=""):
    text = backbone.replace("{channels}", str(2 * neighbours + 1))
    filled = MODEL.replace("{neighbours}", str(neighbours)).replace("{backbone}", text)
    (folder / f"{name}.py").write_text(filled.replace("{inference}", inference))


def sliced_experiment(root, *, neighbours=0, iterations=30, extra="", **kwargs):
    return make_experiment(
        root,
        iterations=iterations,
        models=(),
        extra=SLICED.replace("{neighbours}", str(neighbours))
        + f"train_cfg['val_interval'] = {iterations}\ndefault_hooks['checkpoint']['interval'] = {iterations}\n"
        + extra,
        **kwargs,
    )


def result_of(world, model):
    return json.loads((world.root / "test/0.1.Tiny" / model / "result.json").read_text())


@pytest.mark.parametrize("neighbours", [0, 1], ids=["2D", "2.5D"])
def test_slices_train_a_network_that_segments_volumes(world, neighbours):
    folder = sliced_experiment(world.root, neighbours=neighbours)
    write_model(folder, "monai_unet", MONAI, neighbours=neighbours, inference="patch_size=(8, 8), blending='gaussian'")
    write_model(folder, "mmseg_fcn", MMSEG, neighbours=neighbours, inference="slice_batch=3")
    code, out, err = world.mmrun("0.1", "--all")
    assert code == 0, err
    assert "2 of 2 models succeeded" in err
    for model in ("monai_unet", "mmseg_fcn"):
        assert world.state(model)["state"] == "trained"
        result = result_of(world, model)
        assert result["cases"] == 2, "whole volumes are tested, not slices"
        assert result["metrics"]["Dice"]["mean"] > 0.35, "it has learnt something"
        assert list((world.root / "test/0.1.Tiny" / model / "overlays").glob("case_0?.png"))
        assert model in out


def test_slices_can_be_validated_one_by_one(world):
    folder = sliced_experiment(world.root, iterations=4, extra=EVERY_SLICE)
    write_model(folder, "unet", MONAI)
    code, _, err = world.mmrun("0.1", "--all")
    assert code == 0, err
    with open(world.root / "test/0.1.Tiny/unet/cases.csv") as stream:
        cases = [row["case_id"] for row in csv.DictReader(stream)]
    assert cases == ["case_06", "case_07"], "the slices of a volume are put together before they are measured"
    assert result_of(world, "unet")["cases"] == 2


def test_check_counts_the_plan_of_a_2d_model(world):
    folder = sliced_experiment(world.root, iterations=4)
    write_model(folder, "unet", MONAI, inference="patch_size=(12, 12)")
    code, _, err = world.mmrun("0.1", "--check")
    assert code == 0, err
    assert "multiply-adds for a patch of 12 x 12" in err


def test_channels_that_do_not_fit_are_named(world):
    folder = sliced_experiment(world.root, neighbours=1, iterations=4)
    write_model(folder, "unet", MONAI, neighbours=0)
    code, _, err = world.mmrun("0.1")
    assert code != 0
    assert "3 channels" in err


def test_a_volume_reaching_a_2d_training_is_refused_with_the_remedy(world):
    folder = make_experiment(world.root, iterations=4, models=())
    write_model(folder, "unet", MONAI)
    code, _, err = world.mmrun("0.1")
    assert code == 2
    assert "SemSeg2D takes (N, C, Y, X) for training, found shape (2, 1, 8, 12, 12)" in err
