"""Recipes: plain data there and back, contradictions refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.deploy import Recipe
from itkit.errors import ConfigError

PLAIN = {"channels": 2, "classes": ("background", "liver", "tumour")}


@settings(max_examples=50, deadline=None)
@given(
    patch=st.none() | st.tuples(*[st.integers(1, 200)] * 3),
    flips=st.sampled_from([(), (0, 1), ((2,), (1, 2))]),
    steps=st.lists(st.fixed_dictionaries({"type": st.text(max_size=8), "n": st.floats(-5, 5) | st.none()}), max_size=3),
    spacing=st.none() | st.tuples(*[st.none() | st.floats(0.1, 5)] * 3),
    facts=st.dictionaries(st.text(max_size=6), st.integers() | st.text(max_size=6), max_size=3),
)
def test_json_there_and_back_is_the_same_recipe(patch, flips, steps, spacing, facts):
    recipe = Recipe(
        **PLAIN, patch_size_zyx=patch, flip_axes=flips, preprocessing=steps, postprocessing=steps, spacing_zyx=spacing,
        provenance=facts,
    )  # fmt: skip
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert json.loads(recipe.to_json())["format"] == 1


def test_triples_in_steps_compare_after_the_way_through_json():
    recipe = Recipe(**PLAIN, preprocessing=[{"type": "ResampleToSpacing", "spacing_zyx": (1.0, None, 2.0)}])
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"activation": "softplus"}, "activation must be softmax or sigmoid; found 'softplus'"),
        ({"channels": 0}, "channels must be a whole number of at least 1; found 0"),
        ({"classes": ("one",)}, "must name the background and at least one more"),
        ({"activation": "sigmoid"}, "a sigmoid tells two classes apart; found 3"),
        ({"threshold": 0.4}, "threshold needs the activation sigmoid"),
        (
            {"classes": ("a", "b"), "activation": "sigmoid", "threshold": 1.0},
            "a probability between 0 and 1; found 1.0",
        ),
        ({"patch_stride_zyx": (1, 1, 1)}, "patch_stride_zyx has no effect without patch_size_zyx"),
        ({"slice_neighbours": 1, "patch_size_zyx": (2, 8, 8)}, r"windows of one slice; found \(2, 8, 8\)"),
        ({"slice_neighbours": -1}, "slice_neighbours must be at least 0"),
        ({"patch_size_zyx": (4, 4)}, "patch_size_zyx"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**{**PLAIN, **changes})


def test_what_is_no_recipe_is_said():
    with pytest.raises(ConfigError, match="is not valid JSON"):
        Recipe.from_json("{")
    with pytest.raises(ConfigError, match="has no format version; it was not written by itkit"):
        Recipe.from_json("[]")
    with pytest.raises(ConfigError, match=r"has the format 2, this itkit reads up to 1\. Install a newer itkit"):
        Recipe.from_json('{"format": 2}')
    with pytest.raises(ConfigError, match=r"has no field 'chanels'\. Did you mean channels"):
        Recipe.from_json('{"format": 1, "chanels": 1}')
    with pytest.raises(ConfigError, match="lacks classes"):
        Recipe.from_json('{"format": 1, "channels": 1}')


def test_channels_of_the_network_are_told():
    assert Recipe(**PLAIN).num_logits == 3
    recipe = Recipe(channels=2, classes=("a", "b"), activation="sigmoid", slice_neighbours=1)
    assert (recipe.num_logits, recipe.network_channels, recipe.threshold) == (1, 6, 0.5)
