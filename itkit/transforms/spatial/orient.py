"""Turn all volumes to one orientation, so that left is left for a network."""

from __future__ import annotations

from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError, UsageError
from itkit.io.geometry import Geometry
from itkit.io.orientation import reoriented_geometry, require_code, turning
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, label_keys, put_image, spatial_shape


@TRANSFORMS.register_module()
class Orient(BaseTransform):
    """Permute and flip the axes of a volume and its label maps (`itkit.io.orientation.reorient`); nothing is interpolated.

    Sets ``img_shape``, ``spacing_zyx``, ``origin_xyz`` and ``direction_xyz``. A model whose test pipeline holds it predicts
    images of any orientation, each on its own grid.

    Args:
        orientation: One of the 48 codes, e.g. ``"LPS"``: the sides towards which the X, Y and Z index grow.

    Raises:
        ConfigError: If `orientation` is no code.
        DataError: If the sample is a slice, or does not tell its direction.
    """

    def __init__(self, orientation: str):
        try:
            require_code(orientation)
        except UsageError as error:
            raise ConfigError(f"Orient: {error}") from error
        self.orientation = orientation

    def transform(self, results: Sample) -> Sample:
        """Turn the image and every label map."""
        shape = spatial_shape(results)
        if len(shape) != 3:
            raise DataError("Orient needs a volume; put it before slices are taken.", results.get("img_path"))
        if "direction_xyz" not in results:
            raise DataError("the sample does not tell its direction; load it with LoadVolume.", results.get("img_path"))
        old = Geometry(
            shape,
            tuple(float(value) for value in results["spacing_zyx"]),
            tuple(results.get("origin_xyz", (0.0, 0.0, 0.0))),
            tuple(results["direction_xyz"]),
        )
        turn, new = turning(old, self.orientation), reoriented_geometry(old, self.orientation)
        put_image(results, turn.turned(results["img"]))
        for key in label_keys(results):
            results[key] = turn.turned(results[key]).copy(order="C")
        results["spacing_zyx"] = new.spacing_zyx
        results["origin_xyz"], results["direction_xyz"] = new.origin_xyz, new.direction_xyz
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"Orient(orientation={self.orientation!r})"
