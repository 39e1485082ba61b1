"""What every registered transform promises: documented, 2D and 3D, types kept, shared arrays untouched, exactly replayable."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms import Compose, RandomTransform, replay

SPATIAL = {"CropToSize", "ExtractSlice", "ExtractSlices", "Orient", "PadToSize", "RandomCrop", "RandomElastic", "RandomFlip",
           "RandomRotateScale", "RandomWarp", "ResampleToSpacing"}  # fmt: skip
PACKING = {"PackSeg2DInputs", "PackSeg3DInputs", "TwoViews"}
WARP = {"degrees": 20, "scale": 0.2, "translate_mm": 3.0, "elastic_mm": 2.0, "elastic_grid_mm": 8.0}


class NumpyNoise:
    """A foreign transform that draws from a global generator."""

    def __call__(self, results):
        results["img"] = results["img"] + np.random.standard_normal(results["img"].shape).astype(np.float32)
        return results


BOTH, VOLUME, SLICE = (2, 3), (3,), (2,)
CASES = [
    ("BinariseLabel", {}, BOTH),
    ("ClipPercentiles", {}, BOTH),
    ("CropToSize", {"size": 5}, BOTH),
    ("ExtractSlice", {"neighbours": 1, "foreground_ratio": 0.5}, VOLUME),
    ("ExtractSlices", {}, VOLUME),
    ("FromMM", {"transform": NumpyNoise()}, BOTH),
    ("FromMONAI", {"transform": {"type": "monai.RandGaussianNoised", "keys": ["img"], "prob": 1.0}}, BOTH),
    (
        "FromMONAI",
        {
            "transform": {
                "type": "monai.RandAffined",
                "keys": ["img", "gt_sem_seg"],
                "prob": 1.0,
                "rotate_range": 0.5,
                "mode": ("bilinear", "nearest"),
                "padding_mode": "border",
            }  # fmt: skip
        },
        BOTH,
    ),
    ("LoadVolume", None, ()),  # reads files: tests/unit/test_transforms_loading.py
    ("MapLabels", {"mapping": {1: 2, 2: 1}}, BOTH),
    ("MultiSample", {"num_samples": 3, "transforms": [{"type": "RandomCrop", "size": 5}]}, BOTH),
    ("Orient", {"orientation": "RAS"}, VOLUME),
    ("PackSeg2DInputs", {}, SLICE),
    ("PackSeg3DInputs", {}, VOLUME),
    ("PadToSize", {"size": 16}, BOTH),
    ("PercentileScale", {}, BOTH),
    ("RandomBrightness", {}, BOTH),
    ("RandomContrast", {}, BOTH),
    ("RandomCrop", {"size": 6, "foreground_ratio": 0.5}, BOTH),
    ("RandomElastic", {"elastic_mm": (2.0, 3.0), "elastic_grid_mm": 8.0}, BOTH),
    ("RandomFlip", {"swap_labels": [(1, 2)], "swap_axis": 1}, BOTH),
    ("RandomGamma", {"invert_prob": 0.5, "keep_statistics": True}, BOTH),
    ("RandomGaussianBlur", {}, BOTH),
    ("RandomGaussianNoise", {}, BOTH),
    ("RandomLowResolution", {"zoom": (0.3, 0.6), "per_axis": True}, BOTH),
    ("RandomRotateScale", {}, BOTH),
    ("RandomWarp", WARP, BOTH),
    ("RandomWarp", {**WARP, "size": 7, "foreground_ratio": 0.5, "smooth_labels": True, "fill": -1.0}, BOTH),
    ("RandomWarp", {**WARP, "size": 20, "prob": 0.5, "rotate_prob": 0.5}, BOTH),
    ("ResampleToSpacing", {"spacing_zyx": (2.0, 1.5, None)}, VOLUME),
    ("TwoViews", {"transforms": [{"type": "RandomGamma"}, {"type": "PackSeg2DInputs"}]}, SLICE),
    ("TwoViews", {"transforms": [{"type": "RandomFlip"}, {"type": "PackSeg3DInputs"}]}, VOLUME),
    ("TypeConvert", {}, BOTH),
    ("Window", {"level": 0.0, "width": 2.0}, BOTH),
    ("ZScore", {"mask": "positive"}, BOTH),
]
RUNS = [pytest.param(n, a, d, id=f"{i}-{n}-{d}D") for i, (n, a, axes) in enumerate(CASES) for d in axes]
RANDOM_RUNS = [run for run in RUNS if issubclass(TRANSFORMS.get(run.values[0]), RandomTransform)]


def make_sample(axes: int, seed: int = 0, dtype: type = np.float32, label_dtype: type = np.uint8) -> dict:
    """A sample whose arrays cannot be written to, as those of a cache must not be."""
    generator = np.random.default_rng(seed)
    shape = (9, 12, 10)[-axes:]
    image = (generator.standard_normal((2, *shape)) * 3).astype(dtype)
    label = generator.integers(0, 4, shape).astype(label_dtype)
    image.flags.writeable = label.flags.writeable = False
    return {
        "case_id": "a", "img_path": "image/a.mha", "seg_map_path": "label/a.mha", "img": image, "gt_sem_seg": label,
        "seg_fields": ["gt_sem_seg"], "spacing_zyx": (3.0, 1.0, 1.0), "origin_xyz": (0.0, 0.0, 0.0),
        "direction_xyz": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), "ori_shape": shape, "img_shape": shape, "num_classes": 4,
        "rng": np.random.default_rng(seed),
    }  # fmt: skip


def samples_of(outcome) -> list[dict]:
    return outcome if isinstance(outcome, list) else [outcome]


def build(name: str, arguments: dict):
    return TRANSFORMS.get(name)(**arguments)


def assert_same(first, second):
    for a, b in zip(samples_of(first), samples_of(second), strict=True):
        for key in ("img", "gt_sem_seg"):
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def registered() -> list[str]:
    TRANSFORMS.get("Window")  # imports the room
    return sorted(name for name, kind in TRANSFORMS.module_dict.items() if kind.__module__.startswith("itkit."))


def test_every_registered_transform_is_in_the_table():
    assert registered() == sorted({name for name, _, _ in CASES})


@pytest.mark.parametrize("name", registered())
def test_is_documented_and_its_arguments_too(name):
    kind = TRANSFORMS.get(name)
    text = inspect.getdoc(kind)
    assert len(text.splitlines()[0]) > 20
    for argument in inspect.signature(kind.__init__).parameters:
        if argument != "self":
            assert f"{argument}:" in text, f"{name} does not document {argument}"


@pytest.mark.parametrize("name, arguments, axes", RUNS)
def test_types_shapes_and_shared_arrays_are_kept(name, arguments, axes):
    sample = make_sample(axes)
    image, label = sample["img"], sample["gt_sem_seg"]
    image_before, label_before = image.copy(), label.copy()
    outcome = build(name, arguments)(sample)
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(label, label_before)
    for one in samples_of(outcome):
        if "inputs" in one:
            assert one["inputs"].dtype == torch.float32
            assert one["inputs"].is_contiguous()
            continue
        assert one["img"].dtype == np.float32
        assert one["gt_sem_seg"].dtype == np.uint8
        assert one["img"].flags.c_contiguous
        assert one["gt_sem_seg"].flags.c_contiguous
        assert one["img"].shape[1:] == one["gt_sem_seg"].shape == one["img_shape"]
        assert np.isfinite(one["img"]).all()


@pytest.mark.parametrize("name, arguments, axes", [r for r in RUNS if r.values[0] in SPATIAL])
@pytest.mark.parametrize("label_dtype", [np.uint8, np.int16, np.int64])
def test_no_new_label_and_no_other_label_type(name, arguments, axes, label_dtype):
    for seed in range(3):
        for one in samples_of(build(name, arguments)(make_sample(axes, seed, label_dtype=label_dtype))):
            assert set(np.unique(one["gt_sem_seg"])) <= {0, 1, 2, 3}
            assert one["gt_sem_seg"].dtype == label_dtype


@pytest.mark.parametrize("name, arguments, axes", [r for r in RUNS if r.values[0] not in PACKING])
def test_works_on_whole_numbers_and_without_a_label(name, arguments, axes):
    sample = make_sample(axes, dtype=np.int16)
    sample.pop("gt_sem_seg")
    if isinstance(arguments.get("transform"), dict):
        arguments = {"transform": {**arguments["transform"], "allow_missing_keys": True}}
    for one in samples_of(build(name, arguments)(sample)):
        assert one["img"].ndim in (3, 4)
        assert "gt_sem_seg" not in one


@pytest.mark.parametrize("name, arguments, axes", RANDOM_RUNS)
def test_replays_exactly_and_depends_on_the_generator_alone(name, arguments, axes):
    transform = build(name, arguments)
    records = []
    for seed in range(6):
        first, second = make_sample(axes), make_sample(axes)
        first["rng"], second["rng"] = np.random.default_rng(seed), np.random.default_rng(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        once = transform(first)
        again = build(name, arguments)(second)
        assert_same(once, again)
        third = make_sample(axes)
        third.pop("rng")
        assert_same(once, replay(third, once.get("applied", [])))
        records.append(once["img"].tobytes())
    assert len(set(records)) > 1, "six seeds gave one and the same image"


@pytest.mark.parametrize("name, arguments, axes", RANDOM_RUNS)
def test_the_global_generators_are_left_alone(name, arguments, axes):
    np.random.seed(3)
    torch.manual_seed(3)
    build(name, arguments)(make_sample(axes))
    drawn = np.random.random(), torch.rand(1).item()
    np.random.seed(3)
    torch.manual_seed(3)
    assert drawn == (np.random.random(), torch.rand(1).item())


@pytest.mark.parametrize("name, arguments, axes", RANDOM_RUNS)
def test_random_transforms_ask_for_a_generator(name, arguments, axes):
    sample = make_sample(axes)
    sample.pop("rng")
    with pytest.raises(ConfigError, match=f"{name} is random and the sample has no generator"):
        build(name, arguments)(sample)


@pytest.mark.parametrize("name, arguments, axes", RUNS)
def test_survives_pickling_and_says_what_it_is(name, arguments, axes):
    transform = build(name, arguments)
    assert repr(transform).startswith(name)
    copied = pickle.loads(pickle.dumps(transform))
    outcomes = transform(make_sample(axes)), copied(make_sample(axes))
    if name not in PACKING:
        assert_same(*outcomes)


@pytest.mark.parametrize("name, arguments, axes", RUNS)
def test_builds_from_a_config_in_a_pipeline(name, arguments, axes):
    pipeline = Compose([{"type": name, **arguments}])
    assert type(pipeline.transforms[0]).__name__ == name
    assert pipeline(make_sample(axes)) is not None
