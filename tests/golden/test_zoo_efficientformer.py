"""EfficientFormer and V2 cost what their originals do, take other sizes of images, and serve as encoders."""

from __future__ import annotations

import pytest
import torch
from zoo_figures import card_of, fill, gmacs, network_gmacs

from itkit.errors import ConfigError
from itkit.models import EfficientFormer, EfficientFormerV2, EncoderUNet, MMSegBackboneHead
from itkit.models.zoo import reference
from itkit.ops.offset_bias import resize_offset_biases

CARDS = {module: card_of(module) for module in ("efficientformer", "efficientformer_v2")}
CONFIGURATIONS = [(module, name) for module, card in CARDS.items() for name in card.configurations]
every_module = pytest.mark.parametrize("module", list(CARDS))


def small(module, **changes):
    torch.manual_seed(0)
    return CARDS[module].build({**CARDS[module].small, **changes}).eval()


def attentive(module, **changes):
    """Return a small network whose answer hangs on its biases of attention: every weight is random, no branch is faint."""
    net = fill(small(module, **changes))
    for name, p in net.named_parameters():
        if "layer_scale" in name:
            torch.nn.init.ones_(p)
        if name.endswith("attention_biases"):
            torch.nn.init.normal_(p)
    return net


@pytest.mark.parametrize("module, name", CONFIGURATIONS)
def test_operations_of_every_variant(module, name):
    assert gmacs(module, name) == pytest.approx(CARDS[module].configurations[name].gmacs, rel=1e-5)


@pytest.mark.parametrize("name, expected", [("EfficientFormer_L1", 1.29128), ("EfficientFormerV2_S0", 0.395893)])
def test_operations_as_fvcore_counts_them(name, expected):
    assert network_gmacs(reference(name), torch.zeros(1, 3, 224, 224)) == pytest.approx(expected, rel=1e-3)


@every_module
def test_both_heads_answer_in_training_and_their_mean_in_evaluation(module):
    net, x = small(module), torch.randn(2, 1, 70, 45)
    with torch.no_grad():
        mean = net(x)
        for part in (net.head, net.dist_head):
            part.register_forward_hook(lambda module, given, answer: answers.append(answer))
        answers = []
        torch.testing.assert_close(net(x), (answers[0] + answers[1]) / 2)
        assert not torch.equal(answers[0], answers[1])
        alone = small(module, distillation=False)
        assert not [key for key in alone.state_dict() if key.startswith("dist_head")]
        alone.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("dist_head")})
        torch.testing.assert_close(alone(x), answers[0])
        assert mean.shape == (2, 2)
        assert [tuple(y.shape) for y in net.train()(x)] == [(2, 2), (2, 2)]
        assert alone.train()(x).shape == (2, 2)


@every_module
def test_weights_changed_after_eval_count(module):
    """The original keeps its biases as they were when eval() was called; here there is nothing to go stale."""
    net, x = attentive(module), torch.randn(1, 1, 70, 45)
    with torch.no_grad():
        before = net(x)
        for name, p in net.named_parameters():
            if name.endswith("attention_biases"):
                p.add_(torch.randn_like(p))
        assert (net(x) - before).abs().max() > 1e-3


@every_module
def test_a_smaller_image_uses_a_part_of_the_biases(module):
    """A network made for the small image gets, for each offset, the bias that the large one's table has for it."""
    large, little = attentive(module, image_size=(160, 128)), small(module, image_size=(70, 45))
    state = large.state_dict()
    for name, value in little.state_dict().items():
        if name.endswith("attention_biases"):
            part = little.get_submodule(name.rpartition(".")[0])
            whole = large.get_submodule(name.rpartition(".")[0])
            table = state[name].unflatten(1, whole.grid)[:, : part.grid[0], : part.grid[1]]
            state[name] = table.flatten(1)
        if name.endswith("bias_idxs"):
            state[name] = value
    little.load_state_dict(state)
    x = torch.randn(1, 1, 70, 45)
    with torch.no_grad():
        torch.testing.assert_close(little(x), large(x))


@every_module
def test_published_weights_serve_larger_images(module):
    old, new = small(module, image_size=64), small(module, image_size=(128, 96))
    with pytest.raises(RuntimeError, match="attention_biases"):
        new.load_state_dict(old.state_dict())
    new.load_state_dict(resize_offset_biases(old.state_dict(), new))
    assert new(torch.zeros(1, 1, 128, 96)).shape == (1, 2)


@every_module
def test_it_is_an_encoder_into_which_classifiers_load(module):
    classifier, encoder = small(module), small(module, out_indices=(0, 1, 2, 3))
    encoder.load_state_dict(classifier.state_dict(), strict=True)
    x = torch.randn(1, 1, 70, 45)
    with torch.no_grad():
        maps = encoder(x)
        last = maps[-1]
        assert [tuple(y.shape[2:]) for y in maps] == [(18, 12), (9, 6), (5, 3), (3, 2)]
        assert tuple(y.shape[1] for y in maps) == encoder.feature_channels
        y = (
            classifier.norm(last).mean((2, 3))
            if module.endswith("v2")
            else classifier.norm(last.flatten(2).transpose(1, 2)).mean(1)
        )
        torch.testing.assert_close((classifier.head(y) + classifier.dist_head(y)) / 2, classifier(x))
    part = small(module, out_indices=(1, 2))
    part.load_state_dict(classifier.state_dict(), strict=True)
    assert len(part.network) == 5
    sum(y.mean() for y in part.train()(x.repeat(2, 1, 1, 1))).backward()
    assert all(p.grad is not None for p in part.parameters())


@pytest.mark.parametrize("kind", [EfficientFormer, EfficientFormerV2])
def test_it_is_an_encoder_of_our_decoder_and_a_backbone_of_mmseg_s_heads(kind):
    arguments = {**CARDS["efficientformer_v2" if kind is EfficientFormerV2 else "efficientformer"].small}
    del arguments["in_channels"], arguments["num_classes"]
    encoder = dict(type=kind, out_indices=(0, 1, 2, 3), **arguments)
    assert EncoderUNet(encoder, 2, 3)(torch.randn(2, 2, 70, 45))[0].shape == (3, 70, 45)
    widths = list(arguments["widths"])
    head = dict(type="FPNHead", in_channels=widths, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32])
    head |= dict(channels=8, num_classes=3)
    net = MMSegBackboneHead(dict(encoder, in_channels=1), head).eval()
    assert net(torch.zeros(1, 1, 64, 64)).shape == (1, 3, 64, 64)


def test_the_answer_depends_on_paths_dropped_in_training_alone():
    net = small("efficientformer_v2", drop_path=0.5, layer_scale=1.0)
    rates = [m.rate for m in net.modules() if type(m).__name__ == "SkippedBranch"]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    x = torch.randn(1, 1, 64, 64).repeat(16, 1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(net(x)[0], net(x)[1], atol=1e-6)
        net.train()
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        assert net(x)[0].std(0).max() > 1e-4


def test_impossible_arguments_are_refused():
    with pytest.raises(
        ConfigError, match="EfficientFormer: variant must be one of L1, L3, L7, found 'l3'. Did you mean L3"
    ):
        EfficientFormer(variant="l3")
    with pytest.raises(ConfigError, match="EfficientFormerV2: variant must be one of S0, S1, S2, L, found 'S4'"):
        EfficientFormerV2(variant="S4")
    with pytest.raises(ConfigError, match=r"depths needs 4 positive numbers, found \[3, 2, 6\]"):
        EfficientFormer(depths=(3, 2, 6))
    with pytest.raises(ConfigError, match=r"widths needs 4 positive numbers, found \[8, 0, 8, 8\]"):
        EfficientFormerV2(widths=(8, 0, 8, 8))
    with pytest.raises(ConfigError, match=r"1 to 4 are transformers, found transformers=5"):
        EfficientFormer(transformers=5)
    with pytest.raises(ConfigError, match=r"expansions needs 4 lists, .* found \[\[4\], \[4\], \[\], \[4\]\]"):
        EfficientFormerV2(expansions=((4,), (4,), (), (4,)))
    with pytest.raises(ConfigError, match="0 to 4 can have attention, found attentions=5"):
        EfficientFormerV2(attentions=5)
    for kind in (EfficientFormer, EfficientFormerV2):
        with pytest.raises(ConfigError, match="at least 1, found 3 and 0"):
            kind(num_classes=0)
        with pytest.raises(ConfigError, match=r"image_size must be a positive number or two of them \(Y, X\), found 0"):
            kind(image_size=0)
        with pytest.raises(ConfigError, match=r"out_indices must be rising numbers out of \[0, 1, 2, 3\]"):
            kind(out_indices=(4,))


@pytest.mark.parametrize("kind", [EfficientFormer, EfficientFormerV2])
def test_inputs_that_do_not_fit_are_refused(kind):
    net = kind(image_size=(64, 96))
    with pytest.raises(ConfigError, match=r"takes \(N, 3, Y, X\), found \(1, 1, 64, 64\)"):
        net(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ConfigError, match=r"images up to \(64, 96\) \(Y, X\), found \(65, 64\). Set image_size"):
        net(torch.zeros(1, 3, 65, 64))
