"""Task models: what they refuse, and what the messages say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from itkit.errors import ConfigError
from itkit.mm.task_models import SemanticSegment, SemSeg2D, SemSeg3D
from itkit.structures import Seg3DDataSample, VolumeData

CE = {"type": nn.CrossEntropyLoss}
VOLUME = torch.zeros(1, 1, 4, 4, 4)


def labelled(*shape: int) -> list[Seg3DDataSample]:
    return [Seg3DDataSample(metainfo={"case_id": "case_7"}, gt_sem_seg=VolumeData(data=torch.zeros(1, *shape).byte()))]


def refuses(message: str):
    import re

    return pytest.raises(ConfigError, match=re.escape(message))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes must be at least 1, found 0"),
        ({"num_classes": "3"}, "num_classes must be at least 1, found '3'"),
        ({"binary_segment_threshold": 0.5}, "binary_segment_threshold=0.5 needs num_classes=1"),
        ({"num_classes": 1, "binary_segment_threshold": 1.5}, "between 0 and 1, found 1.5"),
        ({"use_half": "fp8"}, "use_half must be False, True, 'fp16' or 'bf16', found 'fp8'"),
        ({"criterion": []}, "criterion must be a loss or a non-empty list"),
        ({"criterion": "DiceLoss"}, "criterion must be a loss or a non-empty list of losses, found 'DiceLoss'"),
        ({"criterion": [3]}, "criterion must be a module or a config dict(type=..., ...), found 3"),
        ({"criterion": {"type": dict}}, "builds a dict, not a torch module"),
        ({"backbone": {"depth": 3}}, "backbone must be a module or a config dict(type=..., ...)"),
        ({"backbone": {"type": "SubvoxelUnet"}}, "backbone: no model is called 'SubvoxelUnet'. Nearest: SubvoxelUNet"),
        ({"backbone": {"type": "monai.SegResNett"}}, "no model is called 'monai.SegResNett'. Nearest: monai.SegResNet"),
        (
            {"inference_config": {"patchsize": 3}},
            "no key 'patchsize'. Did you mean patch_size? Valid keys: patch_size,",
        ),
        ({"inference_config": {"return_logits": True, "argmax_batchsize": 2}}, "set only one of them"),
        ({"inference_config": {"patch_stride": 2}}, "patch_stride has no effect without patch_size"),
        ({"inference_config": {"average": "logit"}}, "average must be logits or probabilities, found 'logit'. Did you"),
        (
            {"inference_config": {"blending": "gausian"}},
            "blending must be constant or gaussian, found 'gausian'. Did you",
        ),
        ({"inference_config": {"padding": "zero"}}, "padding must be edge or constant, found 'zero'."),
        ({"inference_config": {"slice_batch": 0}}, "slice_batch must be at least 1, found 0"),
        ({"num_classes": 1, "inference_config": {"argmax_batchsize": 2}}, "argmax_batchsize compares classes"),
    ],
)
def test_wrong_arguments(arguments, message):
    with refuses(message):
        SemSeg3D(**{"backbone": nn.Conv3d(1, 2, 1), "criterion": CE, "num_classes": 2, **arguments})


def test_wrong_neighbours():
    with refuses("neighbours is a number of slices, 0 or more, found -1"):
        SemSeg2D(nn.Conv2d(1, 2, 1), CE, 2, neighbours=-1)


@pytest.mark.parametrize("mode", ["tensor", "predict", "loss"])
def test_channels_that_are_not_the_classes(mode):
    net = SemSeg3D(nn.Conv3d(1, 3, 1), CE, 2)
    with refuses(
        "backbone Conv3d returned 3 channels (output 0 of shape (1, 3, 4, 4, 4) for an input of shape "
        "(1, 1, 4, 4, 4)), but num_classes is 2"
    ):
        net(VOLUME, labelled(4, 4, 4), mode=mode)
    with refuses("returned 3 channels"):
        net.check_output(VOLUME.shape)


def test_logits_of_another_size_or_kind():
    with refuses("logits of size (2, 2, 2) for an input of size (4, 4, 4)"):
        SemSeg3D(nn.Conv3d(1, 2, 2, stride=2), CE, 2)(VOLUME)

    class Dictionary(nn.Module):
        def forward(self, x):
            return {"out": x}

    with refuses("backbone Dictionary returned a dict; a network must return logits"):
        SemSeg3D(Dictionary(), CE, 2)(VOLUME)


def test_unknown_mode():
    with refuses("has no mode 'train'; choose loss, predict or tensor"):
        SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2)(VOLUME, mode="train")


def test_inputs_of_the_other_dimension():
    flat = torch.zeros(1, 1, 4, 4)
    for mode, purpose in (("loss", "training"), ("predict", "prediction")):
        with refuses(f"SemSeg3D takes (N, C, Z, Y, X) for {purpose}, found shape (1, 1, 4, 4)"):
            SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2)(flat, labelled(4, 4), mode=mode)
    with refuses("SemSeg2D takes (N, C, Y, X) for training, found shape (1, 1, 4, 4, 4)"):
        SemSeg2D(nn.Conv2d(1, 2, 1), CE, 2)(VOLUME, labelled(4, 4, 4), mode="loss")
    with refuses("SemanticSegment takes (N, C, Y, X) or (N, C, Z, Y, X) for training, found a list"):
        SemanticSegment(nn.Conv2d(1, 2, 1), CE, 2)([flat], labelled(4, 4), mode="loss")


def test_labels_that_do_not_fit():
    net = SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2)
    with refuses("case_7: label map has shape (1, 4, 4, 5), the logits have (2, 4, 4, 4)"):
        net(VOLUME, labelled(4, 4, 5), mode="loss")
    with refuses("case_7: no label map 'gt_sem_seg' to train on"):
        net(VOLUME, [Seg3DDataSample(metainfo={"case_id": "case_7"})], mode="loss")
    with refuses("1 samples came with none data samples"):
        net(VOLUME, mode="loss")
    with refuses("1 samples came with 2 data samples"):
        net(VOLUME, labelled(4, 4, 4) * 2, mode="loss")


def test_a_loss_that_is_not_one_number():
    net = SemSeg3D(nn.Conv3d(1, 2, 1), {**CE, "reduction": "none"}, 2)
    with refuses("criterion CrossEntropyLoss returned shape (1, 4, 4, 4); a loss must be one number"):
        net(VOLUME, labelled(4, 4, 4), mode="loss")

    class Nothing(nn.Module):
        def forward(self, logits, labels):
            return None

    with refuses("criterion Nothing returned a NoneType"):
        SemSeg3D(nn.Conv3d(1, 2, 1), Nothing(), 2)(VOLUME, labelled(4, 4, 4), mode="loss")


def test_a_loss_that_cannot_take_deep_supervision():
    net = SemSeg3D({"type": "SubvoxelUNet", "widths": (8, 16), "deep_supervision": 1}, CE, 2)
    with refuses(
        "criterion CrossEntropyLoss takes one tensor of logits, but the network returned 2 (deep supervision)"
    ):
        net(VOLUME, labelled(4, 4, 4), mode="loss")
