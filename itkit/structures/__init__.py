"""What a sample carries beside its image: label maps, predictions, logits and where they come from."""

from itkit.structures.seg3d_data_sample import Seg3DDataSample
from itkit.structures.volume_data import VolumeData

__all__ = ["Seg3DDataSample", "VolumeData"]
