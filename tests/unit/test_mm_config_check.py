"""Misspelt keys are refused before anything is built, with the nearest valid name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from itkit.errors import ConfigError
from itkit.mm.config_check import accepted_arguments, check_config, edit_distance


def config(**changes):
    base = dict(
        model=dict(type="monai.UNet", spatial_dims=3, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,)),
        train_dataloader=dict(batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True)),
        train_cfg=dict(by_epoch=False, max_iters=5),
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1), clip_grad=dict(max_norm=1.0)),
        param_scheduler=[dict(type="CosineAnnealingLR", T_max=5, by_epoch=False)],
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
        my_own_number=3,
        classes=("background", "liver"),
    )
    return Config({**base, **changes})


def test_right_config_with_free_variables_passes():
    check_config(config())


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(optim_wraper=dict()), 'unknown key "optim_wraper". Did you mean optim_wrapper?'),
        (dict(trian_cfg=dict()), 'unknown key "trian_cfg"'),
        (dict(custom_hook=[]), "Did you mean custom_hooks?"),
        (dict(modle=dict()), "Did you mean model?"),
        (dict(paralel="ddp"), "Did you mean parallel?"),
        (
            dict(model=dict(type="monai.UNet", spatial_dim=3)),
            'UNet has no argument "spatial_dim". Did you mean spatial_dims?',
        ),
        (dict(model=dict(type="monai.UNett")), 'no component is called "monai.UNett". Did you mean monai.UNet?'),
        (
            dict(train_dataloader=dict(batchsize=2)),
            'a data loader has no argument "batchsize". Did you mean batch_size?',
        ),
        (
            dict(train_dataloader=dict(batch_size=2, sampler=dict(type="DefaultSampler", shufle=True))),
            'train_dataloader.sampler: DefaultSampler has no argument "shufle". Did you mean shuffle?',
        ),
        (dict(train_cfg=dict(by_epoch=False, max_iter=5)), "Did you mean max_iters?"),
        (dict(optim_wrapper=dict(optimizer=dict(type="SDG", lr=1))), 'no component is called "SDG". Did you mean'),
        (dict(optim_wrapper=dict(optimizer=dict(type="SGD", learning_rate=1))), 'SGD has no argument "learning_rate"'),
        (dict(optim_wrapper=dict(optimiser=dict(type="SGD", lr=1))), "Did you mean optimizer?"),
        (dict(param_scheduler=[dict(type="CosineAnnealingLR", Tmax=5)]), "Did you mean T_max?"),
        (dict(default_hooks=dict(chekpoint=dict())), 'unknown hook "chekpoint". Did you mean checkpoint?'),
        (dict(default_hooks=dict(logger=dict(type="LoggerHook", intervall=1))), "Did you mean interval?"),
        (dict(randomness=dict(sed=1)), "Did you mean seed?"),
        (dict(parallel="dpp"), "parallel = 'dpp' is not one of none, ddp, fsdp"),
        (dict(precision="half"), "precision = 'half' is not one of fp32, bf16, fp16"),
        (dict(cpu_threads=0), "cpu_threads = 0 is not a positive whole number"),
    ],
)
def test_misspelt_names_are_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        check_config(config(**changes))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_are_shown_at_once():
    with pytest.raises(ConfigError) as caught:
        check_config(config(optim_wraper=1, train_cfg=dict(max_iter=5)))
    assert "optim_wrapper" in str(caught.value)
    assert "max_iters" in str(caught.value)


def test_what_the_builder_of_an_optimizer_wrapper_reads_is_allowed():
    optimizer = dict(type="SGD", lr=0.1)
    check_config(
        config(optim_wrapper=dict(constructor="DefaultOptimWrapperConstructor", paramwise_cfg={}, optimizer=optimizer))
    )


def test_nested_free_dictionaries_and_builder_languages_are_left_alone():
    check_config(config(notes=dict(optim_wraper=1), norm_cfg=dict(type="BN", requires_grad=True)))


class Base:
    def __init__(self, size, colour=None):
        pass


class Child(Base):
    def __init__(self, weight, **kwargs):
        super().__init__(**kwargs)


class Open:
    def __init__(self, interval=1, **kwargs):
        pass


def test_arguments_are_collected_along_the_base_classes():
    assert accepted_arguments(Base) == ({"size", "colour"}, False)
    assert accepted_arguments(Child) == ({"weight", "size", "colour"}, True)
    assert accepted_arguments(lambda batch, pad=0: batch) == ({"batch", "pad"}, False)
    assert accepted_arguments(Open) == ({"interval"}, True)


@pytest.mark.parametrize(
    "a,b,distance",
    [("model", "model", 0), ("modle", "model", 1), ("train", "trains", 1), ("", "ab", 2), ("abcd", "badc", 2)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == distance


@settings(max_examples=50, deadline=None)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_symmetric_and_zero_only_for_equal_words(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a + c, b + c) <= edit_distance(a, b)
