"""A dataset whose samples are whole volumes: one image, one label, one case."""

from __future__ import annotations

import os

from itkit.dataset.base import ITKITBaseSegDataset
from itkit.registry import DATASETS


@DATASETS.register_module()
class SeriesVolumeDataset(ITKITBaseSegDataset):
    """Volumes of ``<data_root>/image`` with their labels of the same name in ``<data_root>/label``.

    The arguments are those of `ITKITBaseSegDataset`.
    """

    def find_samples(self) -> dict[str, list[dict]]:
        """Return every case of the folder, one sample each."""
        return {
            case.case_id: [
                {
                    "case_id": case.case_id,
                    "img_path": os.fspath(case.image),
                    "seg_map_path": None if case.label is None else os.fspath(case.label),
                }
            ]
            for case in self.find_files().cases
        }
