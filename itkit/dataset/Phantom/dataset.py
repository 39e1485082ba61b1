"""The phantom dataset: generates itself where it is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mmengine.logging import print_log

from itkit._support.environment import DATA_VARIABLE, data_path
from itkit.dataset.Phantom.generate import generate_dataset
from itkit.dataset.Phantom.meta import CLASSES, NAME, VERSION
from itkit.dataset.volumes import SeriesVolumeDataset
from itkit.errors import DataError
from itkit.registry import DATASETS


@DATASETS.register_module()
class PhantomDataset(SeriesVolumeDataset):
    """`SeriesVolumeDataset` over phantoms that are made at the first use, about five seconds once.

    The arguments are those of `ITKITBaseSegDataset`. Without ``data_root`` the phantoms lie in ``$ITKIT_DATA/Phantom``, or
    where ``ITKIT_DATA`` is not set, in ``$XDG_CACHE_HOME/itkit/Phantom`` (``~/.cache/itkit/Phantom``).
    """

    METAINFO = {"classes": CLASSES}

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        if self.data_root is not None:
            return data_path(self.data_root)
        if os.environ.get(DATA_VARIABLE):
            return data_path(NAME)
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return Path(cache) / "itkit" / NAME

    def find_samples(self) -> dict[str, list[dict]]:
        """Return every phantom, one sample each; make them first if they are not there.

        Raises:
            DataError: If the folder holds something else, phantoms of another version, or cannot be written.
        """
        root = self.root
        if not root.exists() or not any(root.iterdir()):
            print_log(f"{root}: generating the phantoms", "current")
            generate_dataset(root)
        try:
            meta = json.loads((root / "meta.json").read_text(encoding="utf-8"))
            found = (meta.get("name"), meta.get("version"))
        except (OSError, ValueError, AttributeError):
            found = (None, None)
        if found != (NAME, VERSION):
            raise DataError(
                f"holds no phantoms of this version (found {found[0]} {found[1]}, need {NAME} {VERSION}). Remove the folder "
                "and they are made again, or give another data_root.",
                root,
            )
        return super().find_samples()
