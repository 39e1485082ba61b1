"""Volumes that go into the results as they are: checked, then copied or linked with all of their files."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from itkit.errors import DataError
from itkit.io.headers import volume_files
from itkit.process.operation import Stage

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def carry_volume(path: Path, final: Path, stage: Stage, *, link: bool = False) -> None:
    """Put the volume at `path` in the place of `final`, byte for byte, with the file of its voxels if that is another.

    Args:
        path: The volume. Whether it is sound is for the caller to know.
        final: Where it will lie, under the same name.
        stage: Of the case.
        link: Make symbolic links instead of copies.

    Raises:
        DataError: If its voxels lie in a file outside of its folder, which its header would not find any more.
    """
    for part in volume_files(path):
        if not part.is_relative_to(path.parent):
            raise DataError(
                f"keeps its voxels in {part}, outside of its folder. Make it one file with itk_convert format.", path
            )
        staged = stage.path(final.parent / part.relative_to(path.parent))
        if link:
            staged.symlink_to(part.resolve())
            continue
        try:
            shutil.copy2(part, staged)
        except OSError as error:
            if error.errno in _NO_ROOM:  # Python would name the file that is read
                error.filename = str(staged)
            raise
