"""Task models: the three modes, shapes and types of predictions, and how losses are called."""

from __future__ import annotations

import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from monai.losses import DiceCELoss
from torch import nn

from itkit.mm.task_models import SemanticSegment, SemSeg2D, SemSeg3D, label_type, slices_with_neighbours
from itkit.models import SubvoxelUNet, VolumeDataPreprocessor
from itkit.registry import MODELS
from itkit.structures import Seg3DDataSample, VolumeData
from itkit.transforms.spatial.slices import ExtractSlice

CE = {"type": nn.CrossEntropyLoss}
MONAI_LOSS = DiceCELoss(softmax=True, to_onehot_y=True)
UNET = {"type": "SubvoxelUNet", "widths": (8, 16), "groups": 4}


def sample(label: torch.Tensor, case: str = "case") -> Seg3DDataSample:
    """Return a data sample with the label map `label` (Z, Y, X) or (Y, X)."""
    return Seg3DDataSample(metainfo={"case_id": case}, gt_sem_seg=VolumeData(data=label[None]))


class Levels(nn.Module):
    """A network that gives logits at full and half size, as a list or stacked as some networks of MONAI do."""

    def __init__(self, stacked: bool = False):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)
        self.stacked = stacked

    def forward(self, x):
        y = self.conv(x)
        return torch.stack([y, 2 * y], 1) if self.stacked else [y, nn.functional.avg_pool3d(y, 2)]


class SumOverLevels(nn.Module):
    """A loss that accepts one tensor or a list."""

    def forward(self, logits, labels):
        assert labels.dtype == torch.int64
        assert labels.ndim == 4
        return sum(y.mean() for y in logits) if isinstance(logits, list) else logits.mean()


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("model, size", [(SemSeg3D, (8, 8, 8)), (SemSeg2D, (16, 16)), (SemanticSegment, (8, 8, 8))])
def test_thirty_steps_of_the_engine_learn_one_sample_by_heart(model, size):
    torch.manual_seed(1)
    net = model({**UNET, "spatial_dims": len(size)}, CE, 2)
    coarse = torch.randn(1, 1, *(n // 4 for n in size))
    image = nn.functional.interpolate(coarse, size, mode="bilinear" if len(size) == 2 else "trilinear")[0]
    label = (image[0] > 0).byte()
    data = {"inputs": [image, image], "data_samples": [sample(label), sample(label)]}
    optimiser = OptimWrapper(torch.optim.Adam(net.parameters(), 3e-2))
    first = net.train_step(data, optimiser)["loss"].item()
    for _ in range(29):
        log = net.train_step(data, optimiser)
    assert set(log) == {"loss", "loss_CrossEntropyLoss"}
    assert log["loss"].item() < 0.3 * first
    for step in (net.eval().val_step, net.test_step):
        found = step({"inputs": [image], "data_samples": [sample(label)]})[0]
        assert (found.pred_sem_seg.data[0] == label).float().mean() > 0.95
        assert found.pred_sem_seg.data.shape == (1, *size)


def test_prediction_is_the_argmax_of_the_logits():
    net = SemSeg3D(nn.Conv3d(2, 4, 1), CE, 4, inference_config={"return_logits": True}).eval()
    x = torch.randn(3, 2, 5, 6, 7)
    logits = net(x)
    samples = [Seg3DDataSample(metainfo={"case_id": str(i)}) for i in range(3)]
    predicted = net(x, samples, mode="predict")
    assert predicted[1] is samples[1]
    for i, found in enumerate(predicted):
        assert torch.equal(found.pred_sem_seg.data, logits[i].argmax(0, keepdim=True).byte())
        assert found.pred_sem_seg.data.dtype == torch.uint8
        assert torch.allclose(found.seg_logits.data, logits[i], atol=1e-6)


def test_logits_are_kept_only_when_asked_for():
    assert "seg_logits" not in SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2).predict(torch.zeros(1, 1, 2, 2, 2))[0]


@pytest.mark.parametrize(
    "config",
    [
        {"patch_size": (4, 5, 3)},
        {"patch_size": 4, "patch_stride": 3, "blending": "gaussian", "forward_batch_windows": 3},
        {"patch_size": 16},
        {"argmax_batchsize": 2},
        {"flip_axes": [0, 2]},
        {"flip_axes": [[1], [0, 2]], "average": "logits", "patch_size": 4},
        {"accumulate_device": "cpu", "forward_device": "cpu", "patch_size": 4},
    ],
    ids=str,
)
def test_a_pointwise_network_predicts_the_same_under_every_inference_config(config):
    backbone = nn.Conv3d(1, 3, 1)
    x = torch.randn(2, 1, 9, 8, 7)
    plain = SemSeg3D(backbone, CE, 3).predict(x)
    other = SemSeg3D(backbone, CE, 3, inference_config=config).predict(x)
    for a, b in zip(plain, other, strict=True):
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("small", [True, False])
def test_mirror_images_are_averaged(small, average, monkeypatch):
    if not small:  # large images go through the network one after the other
        monkeypatch.setattr("itkit.mm.task_models.STACKED_MIRRORS_VOX", 1)
    backbone = nn.Conv3d(1, 2, 3, padding=1)
    x = torch.randn(2, 1, 6, 5, 4)
    net = SemSeg3D(
        backbone, CE, 2, inference_config={"flip_axes": [[2], [0, 1]], "return_logits": True, "average": average}
    )
    found = torch.stack([s.seg_logits.data for s in net.predict(x)])
    answers = [backbone(x.flip(axes)).flip(axes) for axes in ([], [4], [2, 3])]
    if average == "logits":
        assert torch.allclose(found, sum(answers) / 3, atol=1e-6)
    else:
        assert torch.allclose(found.softmax(1), sum(y.softmax(1) for y in answers) / 3, atol=1e-6)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_windows_are_averaged(average):
    class Parity(nn.Module):
        """Answers by where the window lies, which its first value tells."""

        def forward(self, x):
            return torch.cat([x * 0, x * 0 + x[:, :, :1, :1, :1]], 1)

    x = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(1, 1, 6, 2, 2)
    config = {"patch_size": (4, 2, 2), "patch_stride": (2, 2, 2), "average": average, "return_logits": True}
    found = SemSeg3D(Parity(), CE, 2, inference_config=config).predict(x)[0].seg_logits.data[:, :, 0, 0]
    probability = found.softmax(0)[1]
    starts = [(0,), (0,), (0, 2), (0, 2), (2,), (2,)]
    for z, windows in enumerate(starts):
        values = torch.tensor([float(w) for w in windows])
        expected = values.sigmoid().mean() if average == "probabilities" else values.mean().sigmoid()
        assert probability[z].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("padding, mode", [("edge", "replicate"), ("constant", "constant")])
def test_an_image_smaller_than_the_window_is_padded_on_both_sides(padding, mode):
    config = {"patch_size": (6, 4, 4), "padding": padding, "return_logits": True}
    net = SemSeg3D(nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular"), CE, 2, inference_config=config)
    x = torch.randn(1, 1, 3, 4, 3)
    padded = nn.functional.pad(x, (0, 1, 0, 0, 1, 2), mode=mode)
    found = net.predict(x)[0].seg_logits.data
    assert found.shape == (2, 3, 4, 3)
    assert torch.allclose(found.softmax(0), net(padded)[0, :, 1:4, :, :3].softmax(0), atol=1e-6)


def test_the_threshold_of_averaged_windows_is_a_probability():
    x = torch.logit(torch.tensor([0.75, 0.85])).reshape(1, 1, 1, 1, 2)
    config = {"patch_size": 1, "return_logits": True}
    net = SemSeg3D(
        nn.Identity(), {"type": nn.BCEWithLogitsLoss}, 1, binary_segment_threshold=0.8, inference_config=config
    )
    found = net.predict(x)[0]
    assert found.pred_sem_seg.data.flatten().tolist() == [0, 1]
    assert torch.allclose(found.seg_logits.data, x[0], atol=1e-5)


def test_a_single_small_volume_gives_what_a_batch_gives():
    net = SemSeg3D({**UNET, "num_classes": 3}, CE, 3, inference_config={"return_logits": True}).eval()
    x = torch.randn(2, 1, 8, 12, 8)
    both = torch.stack([s.seg_logits.data for s in net.predict(x)])
    for i in range(2):
        alone = net.predict(x[i : i + 1])
        assert len(alone) == 1
        assert torch.allclose(alone[0].seg_logits.data, both[i], atol=1e-5)


def test_volumes_of_unequal_size_are_predicted_one_after_the_other():
    net = SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2).eval()
    volumes = [torch.randn(1, 4, 5, 6), torch.randn(1, 3, 3, 3)]
    found = net.val_step({"inputs": volumes, "data_samples": [Seg3DDataSample(), Seg3DDataSample()]})
    for volume, s in zip(volumes, found, strict=True):
        assert torch.equal(s.pred_sem_seg.data[0], net.predict(volume[None])[0].pred_sem_seg.data[0])


def test_binary_segmentation_compares_the_probability_with_the_threshold():
    x = torch.logit(torch.tensor([0.1, 0.45, 0.55, 0.75, 0.85, 0.99])).reshape(1, 1, 1, 2, 3)
    for threshold, foreground in ((None, 4), (0.8, 2), (0.2, 5)):
        net = SemSeg3D(nn.Identity(), {"type": nn.BCEWithLogitsLoss}, 1, binary_segment_threshold=threshold)
        labels = net.predict(x)[0].pred_sem_seg.data
        assert (labels.sum().item(), labels.dtype, labels.max().item()) == (foreground, torch.uint8, 1)


def test_binary_losses_of_torch_get_float_labels_with_a_channel():
    net = SemSeg3D(nn.Conv3d(1, 1, 1), {"type": nn.BCEWithLogitsLoss}, 1)
    x, label = torch.randn(2, 1, 3, 4, 5), torch.randint(0, 2, (2, 3, 4, 5))
    loss = net(x, [sample(y) for y in label], mode="loss")["loss_BCEWithLogitsLoss"]
    by_hand = nn.functional.binary_cross_entropy_with_logits(net(x), label[:, None].float())
    assert torch.equal(loss, by_hand)


def test_several_losses_are_named_apart_and_summed():
    monai = {"type": "monai.DiceLoss", "softmax": True, "to_onehot_y": True}
    net = SemSeg3D(nn.Conv3d(1, 2, 1), [CE, {**CE, "label_smoothing": 0.1}, monai], 2)
    losses = net(torch.randn(1, 1, 4, 4, 4), [sample(torch.ones(4, 4, 4).byte())], mode="loss")
    assert list(losses) == ["loss_CrossEntropyLoss", "loss_CrossEntropyLoss_2", "loss_DiceLoss"]
    total, log = net.parse_losses(losses)
    assert total.item() == pytest.approx(sum(loss.item() for loss in losses.values()))
    assert log["loss"] is total


def test_soft_labels_are_passed_as_they_are():
    net = SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2)
    x, soft = torch.randn(1, 1, 4, 4, 4), torch.rand(2, 4, 4, 4)
    loss = net(x, [Seg3DDataSample(gt_sem_seg=VolumeData(data=soft))], mode="loss")["loss_CrossEntropyLoss"]
    assert torch.equal(loss, nn.functional.cross_entropy(net(x), soft[None]))


def test_another_key_may_hold_the_labels():
    net = SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2, gt_sem_seg_key="tumour")
    s = Seg3DDataSample()
    s.tumour = VolumeData(data=torch.zeros(1, 4, 4, 4).long())
    assert "loss_CrossEntropyLoss" in net(torch.randn(1, 1, 4, 4, 4), [s], mode="loss")


@pytest.mark.parametrize("stacked", [False, True])
def test_deep_supervision_reaches_the_loss_and_only_the_first_output_predicts(stacked):
    net = SemSeg3D(Levels(stacked), SumOverLevels(), 2)
    x = torch.randn(1, 1, 4, 4, 4)
    loss = net(x, [sample(torch.zeros(4, 4, 4).byte())], mode="loss")["loss_SumOverLevels"]
    levels = net.backbone(x).unbind(1) if stacked else net.backbone(x)
    assert loss.item() == pytest.approx(sum(y.mean().item() for y in levels))
    assert torch.equal(net(x), net.backbone.conv(x))
    assert torch.equal(net.predict(x)[0].pred_sem_seg.data[0], net.backbone.conv(x)[0].argmax(0).byte())


@pytest.mark.parametrize(
    "criterion",
    [
        {"type": "DeepSupervisionLoss", "loss": {"type": "DiceCELoss"}},
        {"type": "monai.DeepSupervisionLoss", "loss": MONAI_LOSS},
    ],
    ids=["itkit", "monai"],
)
def test_deep_supervision_trains_end_to_end(criterion):
    net = SemSeg3D({"type": "SubvoxelUNet", "widths": (8, 16), "groups": 4, "deep_supervision": 1}, criterion, 2)
    s = [sample(torch.randint(0, 2, (8, 8, 8))) for _ in range(2)]
    net(torch.randn(2, 1, 8, 8, 8), s, mode="loss")["loss_DeepSupervisionLoss"].backward()
    assert all(p.grad is not None for p in net.parameters())


# ---------------------------------------------------------------- 2D and 2.5D


@pytest.mark.parametrize("neighbours", [0, 1, 2])
@pytest.mark.parametrize("config", [{}, {"patch_size": (6, 4), "flip_axes": [0, 1]}, {"return_logits": True}], ids=str)
def test_a_volume_is_predicted_like_a_loop_over_its_slices(neighbours, config):
    channels = 2 * (2 * neighbours + 1)
    net = SemSeg2D(
        nn.Conv2d(channels, 3, 3, padding=1),
        CE,
        3,
        neighbours=neighbours,
        inference_config={"slice_batch": 3, **config},
    )
    volumes = torch.randn(2, 2, 7, 8, 9)
    found = net.predict(volumes)
    for volume, s in zip(volumes, found, strict=True):
        for z in range(7):
            around = [volume[:, min(max(z + o, 0), 6)] for o in range(-neighbours, neighbours + 1)]
            alone = net.predict(torch.cat(around)[None])[0]
            assert torch.equal(s.pred_sem_seg.data[:, z], alone.pred_sem_seg.data)
            if "return_logits" in config:
                assert torch.allclose(s.seg_logits.data[:, z], alone.seg_logits.data, atol=1e-5)
        assert s.pred_sem_seg.data.shape == (1, 7, 8, 9)


def test_slices_agree_with_those_of_the_pipeline():
    volume = torch.randn(2, 5, 3, 4)
    here = slices_with_neighbours(volume, torch.arange(5), 2)
    for z in range(5):
        there = ExtractSlice(index=z, neighbours=2)({"img": volume.numpy(), "seg_fields": []})["img"]
        assert torch.equal(here[z], torch.from_numpy(there))


def test_neighbours_stand_in_order_and_the_edge_repeats():
    volume = torch.arange(4.0).reshape(1, 4, 1, 1) + torch.tensor([0.0, 100.0]).reshape(2, 1, 1, 1)
    images = slices_with_neighbours(volume, torch.tensor([0, 2, 3]), 1).flatten(1)
    assert images.tolist() == [[0, 100, 0, 100, 1, 101], [1, 101, 2, 102, 3, 103], [2, 102, 3, 103, 3, 103]]


# ---------------------------------------------------- building, types, devices


def test_parts_by_name_by_class_and_as_modules_are_the_same_model():
    def first_weights(**part):
        torch.manual_seed(5)
        return next(SemSeg3D(criterion=CE, num_classes=2, **part).backbone.parameters())

    arguments = {"widths": (8, 16), "groups": 4}
    by_name = first_weights(backbone={"type": "SubvoxelUNet", **arguments})
    by_class = first_weights(backbone={"type": SubvoxelUNet, **arguments})
    torch.manual_seed(5)
    by_module = next(SemSeg3D(SubvoxelUNet(**arguments), CE, 2).backbone.parameters())
    assert torch.equal(by_name, by_class)
    assert torch.equal(by_name, by_module)


def test_monai_networks_build_by_name_and_by_class_in_a_lazy_config(tmp_path):
    net = MODELS.build(
        {
            "type": "monai.UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "channels": (4, 8),
            "strides": (2,),
        }
    )
    assert type(net).__module__ == "monai.networks.nets.unet"
    (tmp_path / "model.py").write_text(
        "from mmengine.config import read_base\n"
        "from monai.networks.nets import UNet\n"
        "from torch.nn import CrossEntropyLoss\n"
        "from itkit.mm.task_models import SemSeg3D\n"
        "model = dict(type=SemSeg3D, num_classes=2, criterion=[dict(type=CrossEntropyLoss)],\n"
        "             inference_config=dict(patch_size=(8, 8, 8)),\n"
        "             backbone=dict(type=UNet, spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,)))\n"
    )
    built = MODELS.build(Config.fromfile(tmp_path / "model.py", lazy_import=True).model)
    assert type(built.backbone) is type(net)
    assert built.predict(torch.zeros(1, 1, 8, 8, 10))[0].pred_sem_seg.data.shape == (1, 8, 8, 10)


def test_a_network_of_mmseg_is_a_task_model_in_one_config():
    backbone = {"type": "ResNet", "depth": 18, "in_channels": 3, "base_channels": 8, "stem_channels": 8}
    head = {"type": "FCNHead", "in_channels": 64, "channels": 8, "num_classes": 3, "num_convs": 1}
    net = MODELS.build(
        {
            "type": "SemSeg2D",
            "num_classes": 3,
            "criterion": CE,
            "neighbours": 1,
            "backbone": {"type": "MMSegBackboneHead", "backbone": backbone, "decode_head": head},
        }
    ).eval()
    assert net.predict(torch.randn(1, 1, 3, 64, 64))[0].pred_sem_seg.data.shape == (1, 3, 64, 64)
    whole = SemSeg2D({"type": "mmseg.ResNet", **{k: v for k, v in backbone.items() if k != "type"}}, CE, 3).backbone
    assert type(whole).__module__.startswith("mmseg.")


@pytest.mark.parametrize("model, dims", [(SemSeg2D, 2), (SemSeg3D, 3), (SemanticSegment, 3)])
def test_task_models_build_and_check_on_the_meta_device(model, dims):
    with torch.device("meta"):
        net = model({**UNET, "spatial_dims": dims}, CE, 2)
    size = (16,) * dims
    assert {p.device.type for p in net.parameters()} == {"meta"}
    assert net.check_output((2, 1, *size)) == (2, 2, *size)


def test_check_output_of_a_real_model_leaves_it_alone():
    net = SemSeg3D({**UNET, "norm": "batch"}, CE, 2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert net.check_output((2, 1, 128, 128, 128)) == (2, 2, 128, 128, 128)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_parameters_are_registered_once_and_the_state_travels():
    one, other = SemSeg3D(UNET, CE, 2).eval(), SemSeg3D(UNET, CE, 2).eval()
    assert len(list(one.parameters())) == len(list(one.backbone.parameters())) == len(one.state_dict())
    assert all(name.startswith("backbone.") for name in one.state_dict())
    other.load_state_dict(one.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(one(x), other(x))


def test_the_default_preprocessor_and_one_given_as_a_config():
    assert isinstance(SemSeg3D(UNET, CE, 2).data_preprocessor, VolumeDataPreprocessor)
    given = SemSeg3D(UNET, CE, 2, data_preprocessor={"type": "VolumeDataPreprocessor", "non_blocking": False})
    assert given.data_preprocessor._non_blocking is False


@pytest.mark.parametrize(
    "classes, dtype",
    [(1, torch.uint8), (255, torch.uint8), (256, torch.int16), (32767, torch.int16), (32768, torch.int32)],
)
def test_label_type(classes, dtype):
    assert label_type(classes) == dtype


def test_many_classes_do_not_overflow():
    net = SemSeg2D(nn.Conv2d(1, 300, 1), CE, 300)
    with torch.no_grad():
        net.backbone.bias[299] = 100
    labels = net.predict(torch.zeros(1, 1, 2, 2))[0].pred_sem_seg.data
    assert labels.dtype == torch.int16
    assert labels.unique().tolist() == [299]


def test_use_half_on_a_cpu_warns_once_and_stays_float32():
    net = SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2, use_half=True, inference_config={"return_logits": True})
    x = torch.randn(1, 1, 4, 4, 4)
    with pytest.warns(UserWarning, match="use_half has no effect on a CPU; predicting in float32"):
        found = net.predict(x)
    assert torch.allclose(found[0].seg_logits.data, net(x)[0], atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.predict(x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="half precision is for CUDA devices")
@pytest.mark.parametrize("half", [True, "bf16"])
def test_use_half_on_a_gpu_is_near_float32_and_keeps_the_weights(half):
    net = SemSeg3D(UNET, CE, 2, use_half=half, inference_config={"return_logits": True}).cuda().eval()
    x = torch.randn(2, 1, 16, 16, 16, device="cuda")
    found = torch.stack([s.seg_logits.data for s in net.predict(x)])
    assert found.dtype == torch.float32
    assert not torch.equal(found, net(x))
    assert torch.allclose(found, net(x), atol=0.1)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_the_progress_bar_goes_to_stderr(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    net = SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2, allow_pbar=True, inference_config={"patch_size": 4})
    net.predict(torch.zeros(1, 1, 8, 8, 8))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "windows" in captured.err


def test_tensor_mode_compiles():
    net = SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2)
    x = torch.randn(1, 1, 4, 4, 4)
    assert torch.allclose(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_init_weights_leaves_networks_alone_that_have_none_and_calls_those_that_do():
    class Own(nn.Conv3d):
        def init_weights(self):
            nn.init.constant_(self.weight, 7)

    plain, own = SemSeg3D(nn.Conv3d(1, 2, 1), CE, 2), SemSeg3D(Own(1, 2, 1), CE, 2)
    before = plain.backbone.weight.clone()
    plain.init_weights()
    own.init_weights()
    assert torch.equal(plain.backbone.weight, before)
    assert (own.backbone.weight == 7).all()
