"""The data sample of a segmentation task: truth, prediction, logits, and the case they belong to."""

from __future__ import annotations

from typing import Any

from mmengine.structures import BaseDataElement

from itkit.errors import UsageError
from itkit.structures.volume_data import VolumeData

VOLUME_FIELDS = ("gt_sem_seg", "pred_sem_seg", "seg_logits")


class Seg3DDataSample(BaseDataElement):
    """Truth and prediction of one sample, volumes (1, Z, Y, X) or slices (1, Y, X), with the case's metadata.

    Metadata: case_id, img_path, seg_map_path, ori_shape, img_shape, spacing_zyx (mm), origin_xyz (mm), direction_xyz, and
    z_index where the sample is a slice of a volume.

    Attributes:
        gt_sem_seg: True classes; its `data` is (1, *spatial), integer.
        pred_sem_seg: Predicted classes; its `data` is (1, *spatial), integer.
        seg_logits: The network's output before softmax; its `data` is (K, *spatial).

    Raises:
        UsageError: If one of the attributes above is set to anything but a `VolumeData`.
        AttributeError: If one of them is read before it was set.
    """

    gt_sem_seg: VolumeData
    pred_sem_seg: VolumeData
    seg_logits: VolumeData

    def __setattr__(self, name: str, value: Any) -> None:
        """Store a field; the three volume fields accept a `VolumeData` only."""
        if name in VOLUME_FIELDS and not isinstance(value, VolumeData):
            raise UsageError(
                f"{name} must be a VolumeData; found {type(value).__name__}. Wrap the array: "
                "VolumeData(data=array), channel axis first."
            )
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Say what the sample does hold; reached only where the normal look-up finds nothing."""
        if name in VOLUME_FIELDS:
            raise AttributeError(f"this sample has no {name} (yet); it holds {sorted(self.keys())}.")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
