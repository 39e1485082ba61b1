"""What is known of the Medical Segmentation Decathlon; its layout is read by `itkit.process.convert.msd`."""

from __future__ import annotations

from itkit.process.convert.msd import DESCRIPTION_NAME, TaskDescription
from itkit.process.convert.msd import read_task as read_description

SOURCE = "Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13:4128, 2022)"
"""What ``meta.json`` of a converted task names as its source."""

__all__ = ["DESCRIPTION_NAME", "SOURCE", "TaskDescription", "read_description"]
