"""Networks and the step in front of them: what a task model needs from the MODELS registry besides losses."""

from __future__ import annotations

from itkit.models.data_preprocessor import VolumeDataPreprocessor
from itkit.models.mmseg_adapter import MMSegBackboneHead
from itkit.models.unet import SubvoxelUNet

__all__ = ["MMSegBackboneHead", "SubvoxelUNet", "VolumeDataPreprocessor"]
