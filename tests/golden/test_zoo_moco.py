"""MoCo's momentum update, queue and losses against the papers' formulas; what is frozen; what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from zoo_figures import card_of

from itkit.errors import ConfigError
from itkit.models import MoCo, MoCoV3
from itkit.models.moco_v3 import sine_positions
from itkit.models.zoo import reference


def small(cls=MoCo, **changes):
    torch.manual_seed(0)
    card = card_of("moco" if cls is MoCo else "moco_v3")
    return cls(**{**card.small, **changes})


def views(count=4, size=(32, 32), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 1, *size, generator=generator) for _ in range(2)]


def test_trained_parameters_are_those_of_the_original():
    trained = {
        "MoCo_v1_r50": 23_770_304,
        "MoCo_v2_r50": 27_966_656,
        "MoCo_v2_small_r18": 11_447_376,
        "MoCo_v3_r50": 35_058_752,
        "MoCo_v3_vit_small": 42_815_104,
        "MoCo_v3_vit_base": 108_150_016,
    }
    for name, count in trained.items():
        with torch.device("meta"):
            net = reference(name)
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == count, name


@pytest.mark.parametrize(
    "cls, query, key", [(MoCo, "encoder_q", "encoder_k"), (MoCoV3, "base_encoder", "momentum_encoder")]
)
def test_both_encoders_begin_equal_and_one_follows_the_other(cls, query, key):
    net = small(cls, momentum=0.75).train()
    q, k = getattr(net, query), getattr(net, key)
    assert all(torch.equal(a, b) for a, b in zip(q.parameters(), k.parameters(), strict=True))
    with torch.no_grad():
        q.conv1.weight.add_(1)
    before = k.conv1.weight.clone()
    net.contrast(*views(), progress=0.0)
    torch.testing.assert_close(k.conv1.weight, 0.75 * before + 0.25 * q.conv1.weight)
    assert not any(p.requires_grad for p in k.parameters())


def test_the_loss_of_v2_is_the_papers_formula():
    net = small(momentum=0.5, temperature=0.2).eval()
    first, second = views()
    queue = net.queue.clone()
    with torch.no_grad():
        q = F.normalize(net.encoder_q(first), dim=1)
        k = F.normalize(net.encoder_k(second), dim=1)  # equal weights, so that the update changes nothing
        expected = torch.stack(
            [
                -torch.log(
                    torch.exp(q[i] @ k[i] / 0.2) / (torch.exp(q[i] @ k[i] / 0.2) + torch.exp(q[i] @ queue / 0.2).sum())
                )
                for i in range(4)
            ]
        ).mean()
    answer = net.contrast(first, second)
    torch.testing.assert_close(answer["loss_contrast"], expected)
    torch.testing.assert_close(net.queue[:, :4], k.T)
    assert torch.equal(net.queue[:, 4:], queue[:, 4:])
    assert net.queue_ptr.item() == 4


def test_the_queue_forgets_the_oldest_keys_first():
    net = small(queue_size=10).eval()
    seen = []
    for step in range(4):
        first, second = views(seed=step)
        net.contrast(first, second)
        with torch.no_grad():
            seen.append(F.normalize(net.encoder_k(second), dim=1).T)
    everything = torch.cat(seen, 1)  # keys 0 to 15; places 0 to 5 hold keys 10 to 15, places 6 to 9 keys 6 to 9
    torch.testing.assert_close(net.queue, torch.cat([everything[:, 10:], everything[:, 6:10]], 1))
    assert net.queue_ptr.item() == 6


def test_the_loss_of_v3_is_the_papers_formula_in_both_directions():
    net = small(MoCoV3, temperature=0.5).eval()
    first, second = views()
    with torch.no_grad():
        q1, q2 = (F.normalize(net.predictor(net.base_encoder(x)), dim=1) for x in (first, second))
        k1, k2 = (F.normalize(net.momentum_encoder(x), dim=1) for x in (first, second))
        one, two = (F.cross_entropy(q @ k.T / 0.5, torch.arange(4)) for q, k in ((q1, k2), (q2, k1)))
    torch.testing.assert_close(net.contrast(first, second)["loss_contrast"], 2 * 0.5 * (one + two))
    torch.testing.assert_close(net.contrast(second, first)["loss_contrast"], 2 * 0.5 * (one + two))


def test_the_momentum_of_v3_grows_to_one():
    net = small(MoCoV3, momentum=0.9)
    assert [net.momentum_at(x) for x in (0, 0.5, 1)] == pytest.approx([0.9, 0.95, 1.0])


def test_gradients_reach_the_trained_encoder_and_nothing_else():
    net = small().train()
    net.contrast(*views())["loss_contrast"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.encoder_q.parameters())
    assert all(p.grad is None for p in net.encoder_k.parameters())


def test_top1_counts_the_pairs_that_are_found():
    net = small(queue_size=8).eval()
    with torch.no_grad():
        first = views()[0]
        net.queue.copy_(-F.normalize(net.encoder_q(first), dim=1)[:1].T.expand(-1, 8))
    assert net.contrast(first, first)["top1"] == 100


def test_positions_of_the_transformer():
    codes = sine_positions(2, 3, 8)[0]
    assert codes.shape == (7, 8)
    assert torch.equal(codes[0], torch.zeros(8))
    assert torch.equal(codes[1], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))  # row 0, column 0
    assert codes[6].tolist() == pytest.approx(
        [
            math.sin(2),
            math.sin(0.02),
            math.cos(2),
            math.cos(0.02),
            math.sin(1),
            math.sin(0.01),
            math.cos(1),
            math.cos(0.01),
        ]
    )


def test_a_small_transformer_and_volumes_contrast_too():
    transformer = small(MoCoV3, encoder="vit_small", image_size=(32, 16), patch=8, width=24, depth=1, heads=3).train()
    loss = transformer.contrast(*views(size=(32, 16)))["loss_contrast"]
    loss.backward()
    assert transformer.base_encoder.patch_embed.proj.weight.grad is None
    assert transformer.base_encoder.blocks[0].attn.qkv.weight.grad is not None
    volumes = [x[:, :, None].expand(-1, -1, 17, -1, -1) for x in views(2, size=(20, 24))]
    for cls in (MoCo, MoCoV3):
        assert torch.isfinite(small(cls, dims=3).train().contrast(*volumes)["loss_contrast"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MoCo(encoder="resnet5"), "no residual encoder is called 'resnet5'.* Did you mean resnet50"),
        (lambda: MoCo(dims=4), "dims must be 2 or 3, found 4"),
        (lambda: MoCo(queue_size=0), "at least 1"),
        (lambda: MoCo(momentum=1.0), r"momentum lies in \[0, 1\)"),
        (lambda: MoCoV3(encoder="vit_large"), "encoder must be one of resnet18, .*vit_base, found 'vit_large'"),
        (lambda: MoCoV3(temperature=0), "temperature above 0"),
        (lambda: MoCoV3(encoder="vit_small", dims=3), "vit_small has 2 spatial axes"),
        (lambda: MoCoV3(encoder="vit_small", width=30), "width must be a multiple of 4 and of heads"),
        (lambda: MoCoV3(encoder="vit_small", image_size=(224, 225)), "two multiples of patch, 16"),
        (lambda: small(queue_size=3).contrast(*views()), "4 pairs of all processes do not fit into a queue of 3"),
        (lambda: small()(torch.zeros(1, 2, 32, 32)), r"MoCo takes \(N, 1, Y, X\), found \(1, 2, 32, 32\)"),
        (
            lambda: small(MoCoV3, encoder="vit_small", image_size=(16, 16), width=24, depth=1, heads=3)(
                torch.zeros(1, 1, 32, 16)
            ),
            r"belong to images of \(16, 16\) \(Y, X\), found \(32, 16\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
