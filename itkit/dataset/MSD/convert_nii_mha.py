"""Convert any task of the Medical Segmentation Decathlon: ``python -m itkit.dataset.MSD.convert_nii_mha SRC DST``."""

from __future__ import annotations

import sys

from itkit.dataset.converter import Converter, SourceCase
from itkit.dataset.MSD.meta import SOURCE, TaskDescription, read_description
from itkit.io.headers import volume_stem
from itkit.process.cases import list_volumes


class MSDConverter(Converter):
    """``dataset.json``, ``imagesTr/``, ``labelsTr/`` (.nii.gz) become ``image/``, ``label/`` (.mha).

    Cases are those of ``dataset.json`` and those in ``imagesTr/`` that it forgot. The modalities of a four-dimensional
    image become its channels.
    """

    description = "Convert a task of the Medical Segmentation Decathlon to image/, label/ (.mha) and meta.json."

    def cases(self) -> list[SourceCase]:
        """Return the training cases, ordered by name."""
        found = {
            volume_stem(image): SourceCase(volume_stem(image), self.source / image, self.source / label)
            for image, label in self._task().training
        }
        folder = self.source / "imagesTr"
        for case_id, (image, *_) in (list_volumes(folder) if folder.is_dir() else {}).items():
            found.setdefault(case_id, SourceCase(case_id, image, self.source / "labelsTr" / image.name))
        return [found[case_id] for case_id in sorted(found)]

    def meta(self) -> dict:
        """Return what ``dataset.json`` says of the task."""
        return self._task().document() | {"source": SOURCE}

    def _task(self) -> TaskDescription:
        return read_description(self.source)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return MSDConverter.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
