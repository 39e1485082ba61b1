"""What every network of the zoo promises: shapes, sizes, gradients, determinism, state dicts, small batches, export, silence."""

from __future__ import annotations

import fnmatch
import inspect
import random
import warnings

import numpy as np
import pytest
import torch

from itkit.errors import ConfigError
from itkit.models.zoo import cards, configurations, reference
from itkit.registry import MODELS

CARDS = list(cards().values())
every_network = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
SEGMENTING = [card for card in CARDS if card.segments]
every_segmenter = pytest.mark.parametrize("card", SEGMENTING, ids=lambda card: card.name)
ENCODERS = [card for card in CARDS if not card.segments]
every_encoder = pytest.mark.parametrize("card", ENCODERS, ids=lambda card: card.name)


def build(card, **changes):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return card.build({**card.small, **changes})


def picture(card, batch=None, channels=None, size=None, seed=1):
    channels = card.small.get("in_channels", 1) if channels is None else channels
    batch = max(2, card.least_batch) if batch is None else batch
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *(size or card.small_size), generator=generator)


def outputs_of(answer):
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)


@every_network
def test_the_card_is_complete(card):
    assert MODELS.get(card.name) is not None
    assert card.name == card.factory.rpartition(":")[2] or card.configurations
    for text in (card.title, card.paper, card.licence):
        assert text.strip() == text
        assert text
    assert card.configurations
    assert set(card.dims) <= {2, 3}
    assert len(card.small_size) in card.dims


@every_segmenter
def test_an_image_becomes_logits_of_its_size(card):
    net, x = build(card).eval(), picture(card)
    with torch.no_grad():
        first = outputs_of(net(x))[0]
    assert first.shape == (x.shape[0], card.small["num_classes"], *card.small_size)
    assert torch.isfinite(first).all()


@every_segmenter
@pytest.mark.parametrize("channels, classes", [(1, 2), (2, 3), (4, 5)])
def test_any_number_of_channels_and_classes(card, channels, classes):
    net = build(card, in_channels=channels, num_classes=classes).eval()
    with torch.no_grad():
        first = outputs_of(net(picture(card, 1, channels)))[0]
    assert first.shape[1] == classes


@pytest.mark.parametrize("card", [card for card in SEGMENTING if card.divisor > 1], ids=lambda card: card.name)
def test_a_size_that_does_not_fit_is_refused_with_the_divisor(card):
    size = tuple(count + 1 for count in card.small_size)
    with pytest.raises(ConfigError, match=str(card.divisor)):
        build(card).eval()(picture(card, size=size))


@every_network
def test_training_reaches_every_parameter_but_the_listed_ones(card):
    net = build(card).train()
    answers = outputs_of(net(picture(card)))
    assert len(answers) == card.outputs
    sum((answer.float() ** 2).mean() for answer in answers).backward()
    without = {name for name, p in net.named_parameters() if p.requires_grad and p.grad is None}
    listed = {name for name in without if any(fnmatch.fnmatch(name, pattern) for pattern in card.unused)}
    assert without == listed
    for pattern in card.unused:
        assert any(fnmatch.fnmatch(name, pattern) for name in without), f"{pattern} does get a gradient"


@every_segmenter
def test_other_sizes_go_too(card):
    size = tuple(count + card.divisor for count in card.small_size)
    if "image_size" in inspect.signature(MODELS.get(card.name)).parameters:
        with pytest.raises(ConfigError, match="image_size"):
            build(card).eval()(picture(card, size=size))
        net = build(card, image_size=size)
    else:
        net = build(card)
    with torch.no_grad():
        first = outputs_of(net.eval()(picture(card, size=size)))[0]
    assert first.shape[2:] == size
    assert torch.isfinite(first).all()


@every_network
def test_the_smallest_batch_trains(card):
    answers = outputs_of(build(card).train()(picture(card, card.least_batch)))
    assert all(torch.isfinite(answer).all() for answer in answers)


@every_network
def test_a_batch_of_one_trains_or_the_card_says_why_not(card):
    net, x = build(card).train(), picture(card, 1)
    if card.least_batch == 1:
        assert all(torch.isfinite(answer).all() for answer in outputs_of(net(x)))
        return
    with pytest.raises((ConfigError, ValueError), match="more than 1 value per channel|at least 2|two"):
        net(x)
    with torch.no_grad():
        assert all(torch.isfinite(answer).all() for answer in outputs_of(net.eval()(x)))


@every_encoder
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_an_encoder_takes_any_number_of_channels(card, channels):
    with torch.no_grad():
        answers = outputs_of(build(card, in_channels=channels).eval()(picture(card, 1, channels)))
    assert all(torch.isfinite(answer).all() for answer in answers)


@every_network
def test_another_number_of_channels_than_it_was_built_for_is_refused(card):
    net = build(card, in_channels=2).eval()
    with pytest.raises(ConfigError, match="2, .*found"):
        net(picture(card, 1, 3))


@every_network
def test_the_same_seed_gives_the_same_network_and_the_same_answer(card):
    one, two, x = build(card).eval(), build(card).eval(), picture(card)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    with torch.no_grad():
        for a, b, c in zip(outputs_of(one(x)), outputs_of(two(x)), outputs_of(one(x)), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@every_network
def test_the_state_comes_back(card):
    one, x = build(card).eval(), picture(card)
    torch.manual_seed(99)
    two = card.build(dict(card.small)).eval()
    two.load_state_dict(one.state_dict(), strict=True)
    with torch.no_grad():
        for a, b in zip(outputs_of(one(x)), outputs_of(two(x)), strict=True):
            assert torch.equal(a, b)


@every_network
def test_nothing_is_printed(card, capfd):
    build(card).eval()(picture(card))
    assert capfd.readouterr() == ("", "")


@every_network
def test_it_can_be_exported_as_stated(card, tmp_path):
    """``torch.export``, and from its program ONNX, which ONNX Runtime computes."""
    if not card.exports:
        pytest.skip("the card says that it cannot")
    net, x = build(card).eval(), picture(card, 1)
    program = torch.export.export(net, (x,))
    with torch.no_grad():
        expected = outputs_of(net(x))
        for a, b in zip(outputs_of(program.module()(x)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    if not card.onnx:
        return
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, (x,), str(path), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for a, b in zip(answers, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-3, atol=1e-3 * b.std().item())


@every_network
def test_it_can_be_traced_by_the_compiler_as_stated(card):
    if not card.compiles:
        pytest.skip("the card says that it cannot")
    net, x = build(card).eval(), picture(card)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        for a, b in zip(outputs_of(compiled(x)), outputs_of(net(x)), strict=True):
            torch.testing.assert_close(a, b)


def test_an_unknown_configuration_is_refused_with_the_nearest():
    name = next(iter(configurations()), None)
    if name is None:
        pytest.skip("the zoo is empty")
    with pytest.raises(ConfigError, match=f"Did you mean {name}"):
        reference(name + "x")
