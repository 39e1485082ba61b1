"""A pre-trained encoder arrives whole in another network, or the reason is told."""

from __future__ import annotations

import pytest
import torch

from itkit.errors import CheckpointError, ConfigError
from itkit.models import EncoderUNet, MMSegBackboneHead, MoCo, MoCoV3, ResidualEncoder
from itkit.models.pretrained import load_part

SMALL = dict(name="resnet18", in_channels=1, width=4)


@pytest.fixture
def pretrained(tmp_path):
    """A MoCo with weights and statistics of its own, and its file as the authors write them."""
    torch.manual_seed(0)
    net = MoCo(1, "resnet18", dim=8, queue_size=16, mlp_head=True, width=4).train()
    for _ in range(3):
        net(3 * torch.randn(2, 1, 40, 40) + 1)
    path = tmp_path / "moco.pth.tar"
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 3, "arch": "resnet18", "state_dict": state}, path)
    return net.eval(), path


def features(encoder, x):
    """Return what is in front of the average of MONAI's network."""
    x = encoder.maxpool(encoder.act(encoder.bn1(encoder.conv1(x))))
    return encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(x))))


def test_the_encoder_answers_as_it_did_in_the_pre_training(pretrained):
    net, path = pretrained
    encoder = ResidualEncoder(**SMALL, checkpoint=path, prefix="encoder_q.").eval()
    x = torch.randn(2, 1, 45, 38)
    with torch.no_grad():
        assert not torch.equal(encoder(x)[-1], features(net.encoder_q, x))
        encoder.init_weights()
        assert torch.equal(encoder(x)[-1], features(net.encoder_q, x))


def test_a_segmentation_network_begins_with_it(pretrained):
    net, path = pretrained
    encoder = dict(type="ResidualEncoder", **SMALL, checkpoint=str(path), prefix="encoder_q.")
    unet = EncoderUNet(encoder, in_channels=1, num_classes=3)
    unet.init_weights()
    for name, value in unet.encoder.state_dict().items():
        assert torch.equal(value, net.encoder_q.state_dict()[name]), name
    assert unet(torch.zeros(2, 1, 45, 38)).shape == (2, 3, 45, 38)


def test_the_backbone_of_mmsegmentation_takes_it_by_init_cfg(pretrained):
    net, path = pretrained
    pretrained_part = dict(type="Pretrained", checkpoint=str(path), prefix="module.encoder_q.")
    backbone = dict(type="ResNet", depth=18, in_channels=1, base_channels=4, stem_channels=4, init_cfg=pretrained_part)
    head = dict(type="FCNHead", in_channels=32, in_index=3, channels=8, num_classes=3)
    network = MMSegBackboneHead(backbone, head, norm_cfg=dict(type="BN")).eval()
    network.init_weights()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.backbone(x)[-1], features(net.encoder_q, x))


def test_v3_and_volumes(tmp_path):
    torch.manual_seed(0)
    net = MoCoV3(1, "resnet50", dims=3, dim=8, hidden=16, width=4)
    torch.save(net.state_dict(), tmp_path / "v3.pth")
    encoder = ResidualEncoder("resnet50", 1, spatial_dims=3, width=4, out_indices=(1, 2, 3))
    left_out = load_part(encoder, tmp_path / "v3.pth", "base_encoder.", left_out=("fc.", "layer4."))
    assert left_out
    assert all(name.startswith(("fc.", "layer4.")) for name in left_out)
    assert torch.equal(encoder.layer3[5].conv3.weight, net.base_encoder.layer3[5].conv3.weight)
    assert (
        [x.shape[1] for x in encoder(torch.zeros(1, 1, 20, 24, 32))] == list(encoder.feature_channels) == [16, 32, 64]
    )
    encoder.checkpoint, encoder.prefix = tmp_path / "v3.pth", "base_encoder."
    encoder.init_weights()


def test_what_does_not_fit_is_refused(pretrained, tmp_path):
    _, path = pretrained
    encoder = ResidualEncoder(**SMALL)
    with pytest.raises(
        CheckpointError,
        match=r"begins with 'encoder_p.'. Did you mean encoder_q.\? There are: encoder_k., encoder_q.\.",
    ):
        load_part(encoder, path, "encoder_p.")
    with pytest.raises(CheckpointError, match="left over: fc.0.weight, fc.0.bias, fc.2.weight, ..."):
        load_part(encoder, path, "encoder_q.", left_out=())
    with pytest.raises(CheckpointError, match="missing: layer1.2.conv1.weight, .*the network that was pre-trained"):
        load_part(ResidualEncoder("resnet34", 1, width=4), path, "encoder_q.")
    with pytest.raises(CheckpointError, match=r"conv1.weight has shape \(4, 1, 7, 7\), here \(8, 1, 7, 7\)"):
        load_part(ResidualEncoder("resnet18", 1, width=8), path, "encoder_q.")
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_part(encoder, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights alone"):
        load_part(encoder, tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, not weights by name"):
        load_part(encoder, tmp_path / "list.pth")
    with pytest.raises(ConfigError, match=r"growing numbers out of 0 to 4, found \[3, 1\]"):
        ResidualEncoder(out_indices=(3, 1))
