"""Residual networks as encoders: maps of features at four scales, with weights that a pre-training left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.pretrained import load_part
from itkit.ops.image_size import check_image
from itkit.ops.residual_encoder import residual_encoder
from itkit.registry import MODELS


@MODELS.register_module()
class ResidualEncoder(nn.Module):
    """ResNet without its classifier: (N, C, ...) to maps at 1/4, 1/8, 1/16 and 1/32 of the size (1/2 on request).

    Names of weights are those of the encoders in `MoCo` and `MoCoV3`, and in the common 2D files (ImageNet). As the encoder
    of a segmentation network, with the weights of a pre-training::

        backbone=dict(type=EncoderUNet, in_channels=1, num_classes=5, encoder=dict(
            type=ResidualEncoder, name="resnet18", checkpoint="work_dirs/0.4.MoCo/moco_v2/checkpoints/iter_120.pth",
            prefix="backbone.encoder_q."))

    Shape:
        - Input: (N, in_channels, Y, X), or (N, in_channels, Z, Y, X) with ``spatial_dims=3``; any size.
        - Output: one map (N, C_i, ...) for each of `out_indices`.

    Args:
        name: ``"resnet18"``, ``"resnet34"``, ``"resnet50"``, ``"resnet101"`` or ``"resnet152"``.
        in_channels: C.
        spatial_dims: 2 or 3.
        width: Channels of the first stage; 64 as published.
        out_indices: Which maps: 0 is the stem's at 1/2, 1 to 4 the stages', the finest first.
        checkpoint: File of weights that a training begins with. None: random weights.
        prefix: What stands before the names in it: ``"backbone.encoder_q."`` for `MoCo` and ``"backbone.base_encoder."`` for
            `MoCoV3` trained by `mmrun`, ``"encoder_q."`` and ``"base_encoder."`` in files of their authors.

    Raises:
        ConfigError: If an argument is impossible, or an input does not fit.
        CheckpointError: When a training begins: if the file lacks a weight or has others.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.
    """

    def __init__(
        self,
        name: str = "resnet50",
        in_channels: int = 1,
        spatial_dims: int = 2,
        width: int = 64,
        out_indices: Sequence[int] = (0, 1, 2, 3, 4),
        checkpoint: str | Path | None = None,
        prefix: str = "",
    ):
        super().__init__()
        indices = tuple(out_indices)
        if not indices or list(indices) != sorted(set(indices)) or not set(indices) <= set(range(5)):
            raise ConfigError(
                f"ResidualEncoder: out_indices must be growing numbers out of 0 to 4, found {list(out_indices)}."
            )
        net = residual_encoder(name, in_channels, spatial_dims, 1, width)
        self.in_channels, self.spatial_dims, self.out_indices = in_channels, spatial_dims, indices
        self.checkpoint, self.prefix = checkpoint, prefix
        self.conv1, self.bn1, self.act, self.maxpool = net.conv1, net.bn1, net.act, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        growth = net.fc.in_features // (8 * width)
        every = (width, *(growth * width * 2**i for i in range(4)))
        self.feature_channels = tuple(every[i] for i in indices)
        if indices[-1] < 4:  # stages that nothing asks for would have weights without gradient
            for i in range(indices[-1] + 1, 5):
                self.add_module(f"layer{i}", nn.Identity())

    def init_weights(self) -> None:
        """Load the weights of `checkpoint`, if there is one; a training calls this once, before its first step."""
        if self.checkpoint is not None:
            dropped = tuple(f"layer{i}." for i in range(self.out_indices[-1] + 1, 5))
            load_part(self, self.checkpoint, self.prefix, left_out=("fc.", "head.", *dropped))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of `images`, the finest first."""
        check_image("ResidualEncoder", images, self.in_channels, dims=self.spatial_dims)
        x = self.act(self.bn1(self.conv1(images)))
        maps = [x]
        x = self.maxpool(x)
        for i in range(1, self.out_indices[-1] + 1):
            x = getattr(self, f"layer{i}")(x)
            maps.append(x)
        return [maps[i] for i in self.out_indices]
