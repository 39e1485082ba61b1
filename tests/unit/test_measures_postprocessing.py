"""Post-processing: the words, the rules by hand, laws, and the order in which they are done."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from itkit.errors import UsageError
from itkit.measures.components import keep_largest, remove_small
from itkit.measures.postprocessing import as_words, body_mask, check_steps, fill_holes, parse_steps, postprocess

CLASSES = ("background", "liver", "left kidney", "spleen")
MAPS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 3))
SPACING = (2.0, 1.0, 1.5)


def test_words_there_and_back():
    words = ["largest", "largest@liver,spleen", "small=50@left kidney", "holes@3", "box=2:9,:,3:", "body=-300"]
    steps = parse_steps(words, CLASSES)
    assert steps == [
        {"type": "largest"},
        {"type": "largest", "classes": [1, 3]},
        {"type": "small", "min_volume_mm3": 50.0, "classes": [2]},
        {"type": "holes", "classes": [3]},
        {"type": "box", "box": [[2, 9], [None, None], [3, None]]},
        {"type": "body", "level": -300.0},
    ]
    check_steps(steps, 4)
    assert parse_steps(as_words(steps, CLASSES), CLASSES) == steps


@pytest.mark.parametrize(
    "word,message",
    [
        ("bigest", r"--post bigest: there is no step 'bigest'\..*The steps are largest, small, holes, box, body"),
        ("small", "small needs a number, e.g. small=50"),
        ("small=-2", "small needs a number"),
        ("body=nan", "body needs a number, e.g. body=-300"),
        ("largest=3", "largest takes no value"),
        (
            "largest@livr",
            r"there is no class 'livr'\. Did you mean liver\? Classes are 1 liver, 2 left kidney, 3 spleen",
        ),
        ("holes@0", "there is no class '0'"),
        ("holes@4", "there is no class '4'"),
        ("box=1:2,3:4", "a box is three ranges of voxels"),
        ("box=1:2,3:4,a:b", "a box is three ranges of voxels"),
        ("body=3@liver", "body concerns all classes; only largest, small, holes can be limited"),
    ],
)
def test_words_that_make_no_sense(word, message):
    with pytest.raises(UsageError, match=message):
        parse_steps([word], CLASSES)


@pytest.mark.parametrize(
    "step,message",
    [
        ({"type": "erode"}, "no step 'erode'"),
        ({"type": "small"}, "small takes"),
        ({"type": "largest", "level": 3}, "largest takes"),
        ({"type": "holes", "classes": [4]}, "there is no class 4"),
    ],
)
def test_rules_that_cannot_be_followed(step, message):
    with pytest.raises(UsageError, match=message):
        check_steps([step], 4)


@settings(max_examples=60, deadline=None)
@given(labels=MAPS)
def test_rules_are_those_of_the_measures_and_leave_their_input(labels):
    kept = labels.copy()
    assert np.array_equal(postprocess(labels, [{"type": "largest"}], SPACING), keep_largest(labels))
    small = {"type": "small", "min_volume_mm3": 7, "classes": [1]}
    assert np.array_equal(postprocess(labels, [small], SPACING), remove_small(labels, 7, SPACING, [1]))
    both = [{"type": "holes"}, small]
    assert np.array_equal(postprocess(labels, both, SPACING), remove_small(fill_holes(labels), 7, SPACING, [1]))
    assert postprocess(labels, [], SPACING) is labels
    assert np.array_equal(labels, kept)


@settings(max_examples=60, deadline=None)
@given(labels=MAPS)
def test_largest_pieces_one_by_one_as_scipy_sees_them(labels):
    found = keep_largest(labels)
    for number in range(1, 4):
        pieces, count = ndimage.label(labels == number, np.ones((3, 3, 3)))
        sizes = [int((pieces == k).sum()) for k in range(1, count + 1)]
        expected = pieces == 1 + int(np.argmax(sizes)) if sizes else np.zeros(labels.shape, bool)
        assert np.array_equal(found == number, expected)


@settings(max_examples=60, deadline=None)
@given(labels=MAPS)
def test_holes_change_background_only_and_nothing_twice(labels):
    filled = fill_holes(labels)
    assert np.array_equal(filled[labels > 0], labels[labels > 0])
    assert np.array_equal(fill_holes(filled), filled)
    for number in range(1, 4):
        before, after = labels == number, fill_holes(labels, [number]) == number
        assert np.array_equal(after, before | (ndimage.binary_fill_holes(before) & (labels == 0)))


def test_a_hole_keeps_what_lies_in_it():
    labels = np.zeros((7, 7, 7), np.uint8)
    labels[1:6, 1:6, 1:6] = 2
    labels[2:5, 2:5, 2:5] = 0
    labels[3, 3, 3] = 1
    filled = fill_holes(labels, [2])
    assert (filled[1:6, 1:6, 1:6] > 0).all()
    assert (filled == 1).sum() == 1
    assert np.array_equal(fill_holes(labels, [1]), labels)


def test_boxes_and_bodies():
    labels = np.ones((4, 5, 6), np.int16)
    boxed = postprocess(labels, [{"type": "box", "box": [[1, 3], [None, None], [2, None]]}], SPACING)
    assert boxed.sum() == 2 * 5 * 4
    assert boxed.dtype == np.int16
    image = np.full((4, 9, 9), -1000, np.int16)
    image[:, 1:7, 1:7] = 40
    image[1, 3, 3] = -900  # air inside
    image[0, 8, 8] = 500  # a piece of the table
    body = body_mask(image, -300)
    assert body.sum() == 4 * 36
    ones = np.ones(image.shape, np.uint8)
    assert np.array_equal(postprocess(ones, [{"type": "body", "level": -300}], SPACING, image=image), body)
    assert not body_mask(image, 2000).any()
    with pytest.raises(UsageError, match="body needs the image, of one channel"):
        postprocess(ones, [{"type": "body", "level": 0}], SPACING)
