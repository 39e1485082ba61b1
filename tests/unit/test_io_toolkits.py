"""The documented toolkit names: SimpleITK images and volumes give the same, and nothing bypasses the checks."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from itkit.errors import DataError
from itkit.io import orientation, resampling, sitk_toolkit, volumes
from itkit.io.geometry import Geometry
from itkit.io.sitk_toolkit import (
    get_direction,
    get_origin,
    get_size,
    get_spacing,
    read_image,
    resample_to_grid,
    resample_to_size,
    resample_to_spacing,
    to_image,
    write_image,
)
from itkit.io.volumes import Volume

OBLIQUE = (0.0, 1.0, 0.0, 0.6, 0.0, -0.8, -0.8, 0.0, -0.6)
VOLUME = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), (2.5, 0.75, 1.25), (-3.5, 20.25, 7.0), OBLIQUE)


def test_images_in_and_out(tmp_path):
    for thing, name in ((VOLUME, "a.nrrd"), (to_image(VOLUME), "b.nrrd")):
        write_image(thing, tmp_path / name)
        image = read_image(tmp_path / name)
        assert isinstance(image, sitk.Image)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOLUME.array)
        assert image.GetSpacing() == pytest.approx((1.25, 0.75, 2.5))
        assert image.GetDirection() == pytest.approx(OBLIQUE)
        for source in (tmp_path / name, str(tmp_path / name), image, VOLUME, VOLUME.geometry):
            assert get_size(source) == (3, 4, 5)
            assert get_spacing(source) == pytest.approx((2.5, 0.75, 1.25))
            assert get_origin(source) == pytest.approx((-3.5, 20.25, 7.0))
            assert get_direction(source) == pytest.approx(OBLIQUE)
    (tmp_path / "c.nrrd").write_bytes((tmp_path / "b.nrrd").read_bytes()[:-9])
    with pytest.raises(DataError, match="c.nrrd: the compressed data"):
        read_image(tmp_path / "c.nrrd")


@pytest.mark.parametrize(
    "action,done",
    [
        (
            lambda v: resample_to_spacing(v, (2, None, 1), kind="image"),
            resampling.resample_to_spacing(VOLUME, (2, None, 1), kind="image"),
        ),
        (
            lambda v: resample_to_size(v, (4, 4, None), kind="label"),
            resampling.resample_to_size(VOLUME, (4, 4, None), kind="label"),
        ),
        (
            lambda v: resample_to_grid(v, VOLUME.geometry, kind="label_linear"),
            resampling.resample_to_grid(VOLUME, VOLUME, kind="label_linear"),
        ),
        (
            lambda v: resample_to_grid(v, to_image(Volume(np.zeros((2, 2, 2)))), kind="image", fill=-1),
            resampling.resample_to_grid(VOLUME, Geometry((2, 2, 2), (1.0, 1.0, 1.0)), kind="image", fill=-1),
        ),
        (lambda v: sitk_toolkit.reorient(v, "LPS"), orientation.reorient(VOLUME, "LPS")),
    ],
)
def test_a_volume_gives_a_volume_and_an_image_an_image(action, done):
    ours, image = action(VOLUME), action(to_image(VOLUME))
    assert isinstance(ours, Volume)
    assert isinstance(image, sitk.Image)
    for found in (ours, volumes.from_image(image)):
        np.testing.assert_array_equal(found.array, done.array)
        np.testing.assert_allclose(found.origin_xyz, done.origin_xyz)
        np.testing.assert_allclose(found.spacing_zyx, done.spacing_zyx)


def test_every_documented_name_exists():
    assert [name for name in sitk_toolkit.__all__ if not hasattr(sitk_toolkit, name)] == []
