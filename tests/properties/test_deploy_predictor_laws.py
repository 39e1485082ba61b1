"""Laws of the predictor: the way of an image through it and back changes nothing that the network has not said."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from tiny_model import CLASSES, NumpyBackend

from itkit.deploy import Predictor, Recipe
from itkit.deploy.torch_backend import TorchBackend
from itkit.io.interpolation import linear_taps
from itkit.io.orientation import ORIENTATIONS, reorient
from itkit.io.volumes import Volume, from_image, to_image
from itkit.mm.task_models import SemSeg2D, SemSeg3D

OBLIQUE = np.array([[0.9553, -0.2555, 0.1489], [0.2955, 0.8262, -0.4797], [-0.0004, 0.5023, 0.8647]])
OBLIQUE = np.linalg.svd(OBLIQUE)[0] @ np.linalg.svd(OBLIQUE)[2]


def volume(shape=(9, 8, 7), seed=0, spacing=(2.0, 0.7, 1.1), direction=None, dtype=np.float32) -> Volume:
    array = (np.random.default_rng(seed).normal(size=shape) * 50).astype(dtype)
    turn = np.eye(3) if direction is None else direction
    return Volume(array, spacing, (-11.3, 4.7, 100.1), tuple(turn.ravel().tolist()))


def plain_conv(channels: int, classes: int, axes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    conv = nn.Conv3d if axes == 3 else nn.Conv2d
    return nn.Sequential(conv(channels, 4, 3, padding=1), nn.ReLU(), conv(4, classes, 3, padding=1))


# ------------------------------------------------------------------- the network's own word


def recipe_of(model, **changes) -> Recipe:
    settings_ = model.inference_config
    single, flat = model.num_classes == 1, isinstance(model, SemSeg2D)
    patch = settings_.patch_size
    return Recipe(
        **{
            "channels": 1,
            "classes": ("no", "yes") if single else CLASSES,
            "activation": "sigmoid" if single else "softmax",
            "threshold": model.binary_segment_threshold if single else None,
            "patch_size_zyx": None if patch is None else (1, *patch) if flat else patch,
            "blending": settings_.blending,
            "padding": settings_.padding,
            "flip_axes": [tuple(a + 1 for a in g) for g in settings_.flip_axes] if flat else settings_.flip_axes,
            "average": "probabilities" if settings_.averages_probabilities else "logits",
            "slice_neighbours": model.neighbours if flat else None,
            **changes,
        }
    )


MODELS = {
    "whole": dict(),
    "windows": dict(inference_config=dict(patch_size=(4, 5, 4), blending="gaussian", forward_batch_windows=3)),
    "mirrored": dict(inference_config=dict(patch_size=(4, 5, 4), flip_axes=[[2], [0, 1]])),
    "logits": dict(inference_config=dict(patch_size=(6, 4, 4), average="logits")),
    "larger than the volume": dict(inference_config=dict(patch_size=(12, 6, 16), padding="constant")),
    "edges continued": dict(inference_config=dict(patch_size=(12, 6, 16), padding="edge", blending="gaussian")),
    "sigmoid": dict(classes=1, inference_config=dict(patch_size=(4, 5, 4)), binary_segment_threshold=0.45),
    "sigmoid, whole": dict(classes=1),
    "slices": dict(axes=2),
    "slices with neighbours": dict(axes=2, neighbours=2, inference_config=dict(patch_size=(5, 4), flip_axes=[[1]])),
}


@pytest.mark.parametrize("name", MODELS)
def test_labels_are_those_of_the_task_models_own_predict(name):
    options = dict(MODELS[name])
    axes, classes, neighbours = options.pop("axes", 3), options.pop("classes", 3), options.get("neighbours", 0)
    kind = SemSeg3D if axes == 3 else SemSeg2D
    network = plain_conv(2 * neighbours + 1, classes, axes)
    model = kind(network, nn.CrossEntropyLoss(), classes, **options).eval()
    predictor = Predictor(TorchBackend(model, recipe_of(model), device="cpu"))
    for seed in range(3):
        image = volume(seed=seed)
        expected = model.predict(torch.from_numpy(image.array)[None, None])[0].pred_sem_seg.data[0].numpy()
        found = predictor(image, probabilities=True)
        assert len(np.unique(expected)) > 1, "a test that could not fail"
        assert np.array_equal(found.labels.array, expected)
        assert found.labels.array.dtype == expected.dtype
        if classes > 1:
            assert np.array_equal(found.probabilities.argmax(0), expected)
            np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
        else:
            assert np.array_equal(found.probabilities[0] > 0.45, expected) or name == "sigmoid, whole"


# ------------------------------------------------------------------- space


@pytest.mark.parametrize("direction", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize(
    "steps",
    [[], [{"type": "ResampleToSpacing", "spacing_zyx": [1.3, 1.3, 0.9]}]],
    ids=["own spacing", "resampled"],
)
def test_prediction_commutes_with_reorientation(direction, steps):
    recipe = {
        "preprocessing": [{"type": "Orient", "orientation": "LPS"}, *steps, {"type": "ZScore"}],
        "patch_size_zyx": (5, 4, 6),
    }
    predictor = Predictor(NumpyBackend(**recipe))
    image = volume(direction=direction)
    first = predictor(image, probabilities=True, confidence_map=True)
    assert len(np.unique(first.labels.array)) == 3
    for code in ORIENTATIONS:
        turned = reorient(image, code)
        found = predictor(turned, probabilities=True, confidence_map=True)
        assert found.labels.geometry == turned.geometry, "the input's to the bit"
        assert np.array_equal(found.labels.array, reorient(first.labels, code).array)
        assert np.array_equal(found.confidence_map.array, reorient(first.confidence_map, code).array)
        back = reorient(Volume(first.probabilities, *_place(first.labels)), code).array
        assert np.array_equal(found.probabilities, back)
        assert found.confidence.voxels == first.confidence.voxels


def _place(grid: Volume):
    return grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 9)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.6, 1.0, 1.7, 3.0])] * 3),
    new=st.tuples(*[st.sampled_from([None, 0.8, 1.0, 2.2])] * 3),
    average=st.sampled_from(["logits", "probabilities"]),
    seed=st.integers(0, 9),
)
def test_scores_are_interpolated_linearly_back_to_the_own_grid(shape, spacing, new, average, seed):
    """Held against the whole array of scores, resampled in one piece in float64."""
    steps = [{"type": "ResampleToSpacing", "spacing_zyx": list(new)}, {"type": "ZScore"}]
    backend = NumpyBackend(preprocessing=steps, average=average, patch_size_zyx=(3, 4, 3), blending="gaussian")
    predictor = Predictor(backend)
    image = volume(shape, seed, spacing)
    prepared = predictor.prepare(image).prepared
    inside = Volume(prepared.image[0], prepared.geometry.spacing_zyx)
    same_grid = Predictor(NumpyBackend(average=average, patch_size_zyx=(3, 4, 3), blending="gaussian"))
    whole = same_grid(inside, probabilities=True)
    found = predictor(image, probabilities=True)
    assert found.labels.geometry == image.geometry
    assert found.probabilities.shape[1:] == image.size_zyx
    if average == "logits":
        return  # probabilities are not linear in logits: labels are held against those elsewhere
    scores = whole.probabilities.astype(np.float64)
    for axis, (old, now, count) in enumerate(zip(spacing, prepared.geometry.spacing_zyx, image.size_zyx, strict=True)):
        taps = linear_taps(np.arange(count) * (old / now), scores.shape[axis + 1])
        taken = np.moveaxis(scores, axis + 1, -1)[..., taps.indices]
        weights = np.ones(taps.indices.shape) if taps.weights is None else taps.weights
        scores = np.moveaxis((taken * weights).sum(-2), -1, axis + 1)
    np.testing.assert_allclose(found.probabilities, scores, atol=2e-6)
    clear = np.sort(scores, axis=0)
    clear = clear[-1] - clear[-2] > 1e-5
    assert np.array_equal(found.labels.array[clear], scores.argmax(0)[clear])


def test_padding_in_the_pipeline_comes_off_again():
    backend = NumpyBackend(preprocessing=[{"type": "PadToSize", "size": [12, 12, 12], "mode": "edge"}])
    image = volume()
    padded = np.pad(image.array, [(1, 2), (2, 2), (2, 3)], mode="edge")
    expected = Predictor(NumpyBackend())(Volume(padded)).labels.array[1:10, 2:10, 2:9]
    assert np.array_equal(Predictor(backend)(image).labels.array, expected)


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 11)] * 3), patch=st.tuples(*[st.integers(1, 12)] * 3), seed=st.integers(0, 5))
def test_a_pointwise_network_is_itself_whatever_the_windows(shape, patch, seed):
    class Pointwise(NumpyBackend):
        def forward(self, windows):
            value = windows[:, 0]
            return np.stack([value * 0, value, 25 - value], axis=1)

    image = volume(shape, seed)
    expected = np.argmax([image.array * 0, image.array, 25 - image.array], axis=0)
    for average in ("logits", "probabilities"):
        found = Predictor(Pointwise(patch_size_zyx=patch, average=average, blending="gaussian"))(image)
        assert np.array_equal(found.labels.array, expected)


def test_all_ways_to_name_a_volume_are_one(tmp_path):
    from itkit.io.volumes import write_volume

    image = volume(direction=OBLIQUE)
    write_volume(tmp_path / "a.mha", image)
    predictor = Predictor(NumpyBackend())
    expected = predictor(image)
    for source in (tmp_path / "a.mha", str(tmp_path / "a.mha"), to_image(image)):
        found = predictor(source)
        assert np.array_equal(found.labels.array, expected.labels.array)
    assert from_image(to_image(image)).geometry == predictor(to_image(image)).labels.geometry
