"""Preprocessing as data: the same numbers as the transforms, the way back to the grid as read, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itkit.errors import ConfigError, DataError
from itkit.io.geometry import Geometry
from itkit.io.orientation import ORIENTATIONS, Turning, orientation, reorient, turning
from itkit.io.preprocessing import STEPS, check_steps, prepare, steps_of_pipeline
from itkit.io.volumes import Volume, write_volume
from itkit.transforms import (
    ClipPercentiles,
    Compose,
    ExtractSlices,
    LoadVolume,
    MapLabels,
    Orient,
    PackSeg3DInputs,
    PadToSize,
    PercentileScale,
    RandomFlip,
    ResampleToSpacing,
    TypeConvert,
    Window,
    ZScore,
)

PIPELINES = {
    "hippocampus": [dict(type=ClipPercentiles, lower=0.5, upper=99.5), dict(type=ZScore)],
    "ct": [dict(type=ResampleToSpacing, spacing_zyx=(1.5, None, 0.8)), dict(type=Window, level=40, width=400)],
    "turned": [dict(type=Orient, orientation="PIR"), dict(type=PercentileScale, mask="positive", clip=False)],
    "all": [
        dict(type=Orient, orientation="RAS"),
        dict(type=ResampleToSpacing, spacing_zyx=(1.1, 1.3, 1.7)),
        dict(type=PadToSize, size=(12, None, 9), divisor=4, mode="edge"),
        dict(type=TypeConvert, image="float32", label="uint8"),
        dict(type=ZScore, mask="nonzero"),
    ],
    "odd order": [
        dict(type=PadToSize, size=15, value="min", position="start"),
        dict(type=ResampleToSpacing, spacing_zyx=(2.0, 0.7, 1.0)),
        dict(type=Orient, orientation="SLA"),
    ],
}


def volume(channels: int | None = None, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    shape = ((channels,) if channels else ()) + (7, 10, 8)
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
    return Volume(
        rng.integers(-200, 300, shape).astype(np.int16),
        (2.0, 0.9, 1.0),
        (10.5, -3.25, 7.0),
        tuple(turn.ravel().tolist()),
    )


@pytest.mark.parametrize("channels", [None, 2])
@pytest.mark.parametrize("name", PIPELINES)
def test_steps_give_what_the_transforms_of_the_pipeline_give(tmp_path, name, channels):
    image = volume(channels)
    write_volume(tmp_path / "a.mha", image)
    pipeline = [dict(type=LoadVolume), *PIPELINES[name], dict(type=PackSeg3DInputs)]
    packed = Compose(pipeline)({"case_id": "a", "img_path": str(tmp_path / "a.mha")})
    steps, neighbours = steps_of_pipeline(pipeline)
    prepared = prepare(image, steps)
    assert neighbours is None
    assert prepared.image.dtype == np.float32
    assert np.array_equal(prepared.image, packed["inputs"].numpy())
    meta = packed["data_samples"].metainfo
    assert prepared.geometry.spacing_zyx == meta["spacing_zyx"]
    np.testing.assert_allclose(prepared.geometry.direction_xyz, meta["direction_xyz"], atol=1e-12)
    np.testing.assert_allclose(prepared.geometry.origin_xyz, meta["origin_xyz"], atol=1e-9)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_way_back_is_known(name):
    """A volume whose voxels hold their own index keeps telling where they came from."""
    image = volume()
    places = np.stack(np.meshgrid(*map(np.arange, image.size_zyx), indexing="ij")).astype(np.float64) + 100
    spatial = ("Orient", "ResampleToSpacing", "PadToSize")
    steps = [step for step in steps_of_pipeline(PIPELINES[name])[0] if step["type"] in spatial]
    prepared = prepare(Volume(places, image.spacing_zyx, image.origin_xyz, image.direction_xyz), steps)
    turned = [prepared.turning.turned(channel) for channel in places]
    places_of_axes = prepared.native_positions()
    for axis, (old, positions) in enumerate(zip(prepared.turning.axes_zyx, places_of_axes, strict=True)):
        middle = tuple(round(p[len(p) // 2]) for k, p in enumerate(places_of_axes) if k != axis)
        line = np.moveaxis(prepared.image[old], axis, 0)[(slice(None), *middle)]
        true = np.moveaxis(turned[old], axis, 0)[:, 0, 0]
        found = np.interp(positions, np.arange(len(line)), line)
        # Beyond the outermost centres the outermost voxel is continued, so the last ones say nothing.
        np.testing.assert_allclose(found[1:-1], true[1:-1], atol=1e-3)


def test_turning_is_reorienting_and_undone_by_back():
    image = volume()
    for code in ORIENTATIONS:
        turn = turning(image, code)
        assert np.array_equal(turn.turned(image.array), reorient(image, code).array)
        assert np.array_equal(turn.back(turn.turned(image.array)), image.array)
        again = turning(reorient(image, code), "LPS")
        assert turn.followed_by(again) == turning(image, "LPS")
    view = turning(image, "ASL").turned(image.array)
    view[...] = 7
    assert (image.array == 7).all(), "a view, so that results can be written through it"


def test_orient_moves_labels_along_and_refuses_slices():
    image = volume()
    results = {
        "img": image.array[None], "gt_sem_seg": image.array.copy(), "spacing_zyx": image.spacing_zyx,
        "origin_xyz": image.origin_xyz, "direction_xyz": image.direction_xyz,
    }  # fmt: skip
    expected = reorient(image, "RIP")
    found = Orient("RIP")(dict(results))
    assert np.array_equal(found["img"][0], expected.array)
    assert np.array_equal(found["gt_sem_seg"], expected.array)
    grid = Geometry(found["img_shape"], found["spacing_zyx"], found["origin_xyz"], found["direction_xyz"])
    assert grid == expected.geometry
    assert orientation(grid) == "RIP"
    with pytest.raises(DataError, match="Orient needs a volume; put it before slices"):
        Orient("LPS")({**results, "img": image.array[None, 0]})
    with pytest.raises(DataError, match="does not tell its direction; load it with LoadVolume"):
        Orient("LPS")({"img": image.array[None]})
    with pytest.raises(ConfigError, match="Orient: orientation 'LLS' is none of the 48"):
        Orient("LLS")


def test_a_step_that_cannot_be_expressed_is_named_with_what_can():
    with pytest.raises(
        ConfigError, match=r"holds RandomFlip, which cannot be done outside .* made of LoadVolume, Orient,"
    ):
        steps_of_pipeline([dict(type=LoadVolume), dict(type=RandomFlip, axes=(0,))])
    with pytest.raises(ConfigError, match=r"holds monai\.NormalizeIntensityd, which"):
        steps_of_pipeline([dict(type="monai.NormalizeIntensityd", keys=["img"])])
    with pytest.raises(ConfigError, match=r"holds torch\.ReLU, which"):
        steps_of_pipeline([torch.nn.ReLU()])
    with pytest.raises(ConfigError, match=r"has no step 'Zscore'\. Did you mean ZScore\? It can do LoadVolume"):
        check_steps([{"type": "Zscore"}])
    with pytest.raises(ConfigError, match="step Window takes no 'centre'; it takes level, width"):
        check_steps([{"type": "Window", "centre": 3}])
    with pytest.raises(ConfigError, match="gives ZScore a mask of type ReLU, which is no plain data"):
        steps_of_pipeline([dict(type=ZScore, mask=torch.nn.ReLU())])


def test_slices_come_last_and_labels_do_not_matter():
    pipeline = [
        dict(type=LoadVolume, nonfinite="zero", check_labels=False),
        dict(type=MapLabels, mapping={3: 1}),
        dict(type=ZScore),
        dict(type=ExtractSlices, neighbours=2),
        dict(type="PackSeg2DInputs"),
    ]
    assert steps_of_pipeline(pipeline) == ([{"type": "LoadVolume", "nonfinite": "zero"}, {"type": "ZScore"}], 2)
    with pytest.raises(ConfigError, match="does ZScore after it has taken slices"):
        steps_of_pipeline([dict(type=ExtractSlices), dict(type=ZScore)])
    with pytest.raises(ConfigError, match="slices along another axis than Z"):
        steps_of_pipeline([dict(type=ExtractSlices, axis=1)])


def test_nan_is_refused_with_its_number_and_file_or_replaced():
    image = volume()
    array = image.array.astype(np.float32)
    array[0, 0, :3] = np.nan
    array[1, 1, 1] = np.inf
    broken = Volume(array)
    for steps in ([], [{"type": "LoadVolume"}], [{"type": "ZScore"}]):
        with pytest.raises(DataError, match=r"case\.mha: 4 voxels are NaN or infinite"):
            prepare(broken, steps, name="case.mha")
    mended = prepare(broken, [{"type": "LoadVolume", "nonfinite": "zero"}]).image
    assert np.array_equal(mended[0], np.where(np.isfinite(array), array, 0))


def test_every_step_is_a_transform_of_that_name():
    from itkit.registry import TRANSFORMS

    assert all(TRANSFORMS.get(name) is not None for name in STEPS)
    assert Turning().turned(volume().array).shape == (7, 10, 8)
