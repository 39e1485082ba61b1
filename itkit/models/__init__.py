"""Networks and the step in front of them: what a task model needs from the MODELS registry besides losses."""

from __future__ import annotations

from itkit.models.da_transunet import DATransUNet
from itkit.models.data_preprocessor import VolumeDataPreprocessor
from itkit.models.dconnnet import DconnNet
from itkit.models.dsnet import DSNet
from itkit.models.efficientformer import EfficientFormer
from itkit.models.efficientformer_v2 import EfficientFormerV2
from itkit.models.efficientnet import EfficientNet
from itkit.models.ege_unet import EGEUNet
from itkit.models.encoder_decoder import EncoderUNet
from itkit.models.lm_net import LMNet
from itkit.models.mednext import MedNeXt
from itkit.models.mmseg_adapter import MMSegBackboneHead
from itkit.models.moco import MoCo
from itkit.models.moco_v3 import MoCoV3
from itkit.models.residual import ResidualEncoder
from itkit.models.segformer import SegFormer
from itkit.models.segformer3d import SegFormer3D
from itkit.models.segmamba import SegMamba
from itkit.models.swin_umamba import SwinUMamba
from itkit.models.swin_umamba_d import SwinUMambaD
from itkit.models.timm_encoder import TimmEncoder
from itkit.models.unet import SubvoxelUNet
from itkit.models.unet3plus import UNet3Plus
from itkit.models.unetr import UNETR
from itkit.models.vmamba import VMamba
from itkit.models.zoo import reference

__all__ = [
    "DATransUNet",
    "DSNet",
    "DconnNet",
    "EGEUNet",
    "EfficientFormer",
    "EfficientFormerV2",
    "EfficientNet",
    "EncoderUNet",
    "LMNet",
    "MMSegBackboneHead",
    "MedNeXt",
    "MoCo",
    "MoCoV3",
    "ResidualEncoder",
    "SegFormer",
    "SegFormer3D",
    "SegMamba",
    "SubvoxelUNet",
    "TimmEncoder",
    "SwinUMamba",
    "SwinUMambaD",
    "UNETR",
    "UNet3Plus",
    "VMamba",
    "VolumeDataPreprocessor",
    "reference",
]
