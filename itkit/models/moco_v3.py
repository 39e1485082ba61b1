"""MoCo v3: the momentum encoder without a queue, for residual networks and vision transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.attention import attend
from itkit.ops.contrast import begin_as, follow, gather_batch, info_nce, process_rank
from itkit.ops.image_size import check_image
from itkit.ops.residual_encoder import RESIDUAL_DEPTHS, feature_count, residual_encoder
from itkit.registry import MODELS

TRANSFORMERS: dict[str, tuple[int, int, int]] = {"vit_small": (384, 12, 12), "vit_base": (768, 12, 12)}
"""Width, layers and attention heads."""


class PatchProjection(nn.Module):
    """Tokens from patches that do not overlap.

    Args:
        in_channels: Channels of the image.
        width: Channels of a token.
        patch: Edge length of a patch, in pixels.
    """

    def __init__(self, in_channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, patch)
        limit = math.sqrt(6 / (in_channels * patch**2 + width))
        nn.init.uniform_(self.proj.weight, -limit, limit)
        nn.init.zeros_(self.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, Y * X / patch^2, width) for `images` (N, C, Y, X)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Self-attention of all tokens.

    Args:
        width: Channels of a token.
        heads: Attention heads; they divide `width`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        limit = math.sqrt(6 / (2 * width))  # Glorot's for each of the three, not for the stack of them
        nn.init.uniform_(self.qkv.weight, -limit, limit)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape (N, L, width) of `x`."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU in between.

    Args:
        width: Channels of a token.
        hidden: Channels in between.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape (N, L, width) of `x`."""
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """Pre-norm transformer layer.

    Args:
        width: Channels of a token.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape (N, L, width) of `x`."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionEncoder(nn.Module):
    """Vision transformer with fixed positions, from images (N, C, Y, X) to vectors: the class token through `head`.

    Args:
        in_channels: C.
        image_size: (Y, X) of the images.
        width: Channels of a token, a multiple of 4.
        depth: Layers.
        heads: Attention heads.
        patch: Edge length of a patch, in pixels.
        freeze_patches: Keep the projection of patches as it began, which makes the training stable.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: Sequence[int],
        width: int,
        depth: int,
        heads: int,
        patch: int,
        freeze_patches: bool,
    ):
        super().__init__()
        self.image_size, self.width = tuple(image_size), width
        positions = sine_positions(self.image_size[0] // patch, self.image_size[1] // patch, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 1e-6)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.patch_embed = PatchProjection(in_channels, width, patch)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head: nn.Module = nn.Identity()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if not name.endswith("qkv"):
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.patch_embed.requires_grad_(not freeze_patches)

    def forward(self, images: Tensor) -> Tensor:
        """Return one vector an image."""
        if tuple(images.shape[2:]) != self.image_size:
            raise ConfigError(
                f"MoCoV3: the positions of its transformer belong to images of {self.image_size} (Y, X), found "
                f"{tuple(images.shape[2:])}. Set image_size, or crop to it."
            )
        tokens = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return codes (1, 1 + rows * columns, width) of the cells of a grid: zeros for the class token, then sines and cosines.

    A quarter of the channels each is the sine and the cosine of the column, then of the row, at frequencies from 1 down
    to 1 / 10000.
    """
    quarter = width // 4
    frequencies = 10000 ** -(torch.arange(quarter, dtype=torch.float32) / quarter)
    row, column = torch.meshgrid(torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]
    codes = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], 1)
    return torch.cat([torch.zeros(1, width), codes])[None]


def projection(layers: int, in_features: int, hidden: int, features: int, last_norm: bool = True) -> nn.Sequential:
    """Return `layers` linear layers without bias, each but the last followed by batch norm and ReLU.

    Args:
        layers: How many.
        in_features: Length of the vectors that come in.
        hidden: Of those in between.
        features: Of those that go out.
        last_norm: End with a batch norm without weights.
    """
    parts: list[nn.Module] = []
    for i in range(layers):
        last = i == layers - 1
        width = features if last else hidden
        parts.append(nn.Linear(in_features if i == 0 else hidden, width, bias=False))
        if not last:
            parts += [nn.BatchNorm1d(width), nn.ReLU()]
        elif last_norm:
            parts.append(nn.BatchNorm1d(width, affine=False))
    return nn.Sequential(*parts)


@MODELS.register_module()
class MoCoV3(nn.Module):
    """Momentum contrast within the batch (MoCo v3): it pre-trains `base_encoder`.

    Both views are encoded, projected and predicted; each prediction is to be nearest to the momentum encoder's projection of
    the other view among those of all images of all processes. Both encoders are in the state dict, so a training resumes
    exactly, and checkpoints of the authors load strictly once ``module.`` is taken off their names.

    Shape:
        - Input: (N, in_channels, Y, X), or (N, in_channels, Z, Y, X) with ``dims=3``. Residual networks take any size,
          transformers `image_size` alone. Training needs two images or more.
        - Output: [projections, predictions, projections of the momentum encoder], each (N, dim); the last without gradient.

    Args:
        in_channels: C.
        encoder: ``"resnet18"`` to ``"resnet152"``, ``"vit_small"`` or ``"vit_base"``.
        dims: Spatial axes, 2 or 3; transformers have 2.
        dim: Length of projections and predictions.
        hidden: Width of the layers in between.
        momentum: Share of its old weights that the momentum encoder keeps in the first step; it grows to 1 by a cosine over
            the training.
        temperature: The similarities are divided by it: 1.0 for residual networks, 0.2 for transformers. None: that.
        image_size: (Y, X) of the images, multiples of `patch`; transformers only.
        patch: Edge length of a transformer's patches.
        freeze_patches: Do not train the projection of patches.
        width: Channels of a residual network's first stage, or of a transformer's tokens (a multiple of 4). None: as
            published.
        depth: Layers of a transformer. None: as published.
        heads: Attention heads of a transformer; they divide `width`. None: as published.

    Raises:
        ConfigError: If arguments do not fit together, or inputs have other axes, channels or sizes.

    Source: Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021, arXiv 2104.02057.
    """

    def __init__(
        self,
        in_channels: int = 3,
        encoder: str = "resnet50",
        dims: int = 2,
        dim: int = 256,
        hidden: int = 4096,
        momentum: float = 0.99,
        temperature: float | None = None,
        image_size: Sequence[int] = (224, 224),
        patch: int = 16,
        freeze_patches: bool = True,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
    ):
        super().__init__()
        is_residual = encoder in RESIDUAL_DEPTHS
        if not is_residual and encoder not in TRANSFORMERS:
            names = [*RESIDUAL_DEPTHS, *TRANSFORMERS]
            hint = did_you_mean(str(encoder), names)
            raise ConfigError(f"MoCoV3: encoder must be one of {', '.join(names)}, found {encoder!r}.{hint}")
        temperature = (1.0 if is_residual else 0.2) if temperature is None else temperature
        if not 0 <= momentum <= 1 or not temperature > 0:
            raise ConfigError(
                f"MoCoV3: momentum lies between 0 and 1 and temperature above 0, found {momentum} and {temperature}."
            )
        self.in_channels, self.dims = in_channels, dims
        self.momentum, self.temperature = momentum, temperature
        if is_residual:
            usual = 64 if width is None else width
            self.base_encoder, self.momentum_encoder = (
                self._residual(encoder, in_channels, dims, dim, hidden, usual) for _ in range(2)
            )
        else:
            if dims != 2:
                raise ConfigError(
                    f"MoCoV3: {encoder} has 2 spatial axes, found dims={dims!r}. Choose a residual network."
                )
            usual = TRANSFORMERS[encoder]
            shape = tuple(given or published for given, published in zip((width, depth, heads), usual, strict=True))
            self.base_encoder, self.momentum_encoder = (
                self._transformer(in_channels, image_size, shape, patch, freeze_patches, dim, hidden) for _ in range(2)
            )
        self.predictor = projection(2, dim, hidden, dim, last_norm=not is_residual)
        begin_as(self.momentum_encoder, self.base_encoder)

    @staticmethod
    def _residual(name: str, in_channels: int, dims: int, dim: int, hidden: int, width: int) -> nn.Module:
        net = residual_encoder(name, in_channels, dims, dim, width)
        net.fc = projection(2, feature_count(net), hidden, dim)
        return net

    @staticmethod
    def _transformer(
        in_channels: int,
        image_size: Sequence[int],
        shape: Sequence[int],
        patch: int,
        freeze_patches: bool,
        dim: int,
        hidden: int,
    ) -> nn.Module:
        width, depth, heads = shape
        if width % 4 or width % heads:
            raise ConfigError(
                f"MoCoV3: width must be a multiple of 4 and of heads, found width {width} and {heads} heads."
            )
        if len(image_size) != 2 or any(count < patch or count % patch for count in image_size):
            raise ConfigError(
                f"MoCoV3: image_size (Y, X) must be two multiples of patch, {patch}; found {list(image_size)}."
            )
        net = VisionEncoder(in_channels, image_size, width, depth, heads, patch, freeze_patches)
        net.head = projection(3, width, hidden, dim)
        return net

    @property
    def encoder(self) -> nn.Module:
        """The encoder that is trained."""
        return self.base_encoder

    def begin(self) -> None:
        """Let the momentum encoder be the base encoder, after weights have been loaded into that alone."""
        begin_as(self.momentum_encoder, self.base_encoder)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return projections, predictions and the momentum encoder's projections (N, dim) of `images`."""
        check_image("MoCoV3", images, self.in_channels, dims=self.dims)
        projections = self.base_encoder(images)
        with torch.no_grad():
            targets = self.momentum_encoder(images)
        return [projections, self.predictor(projections), targets]

    def contrast(self, first: Tensor, second: Tensor, progress: float = 0.0) -> dict[str, Tensor]:
        """Return the symmetric loss of a batch of pairs, after moving the momentum encoder.

        Args:
            first: (N, C, ...), one view of each image.
            second: The same of another view.
            progress: Part of the training that is done, 0 to 1; the momentum depends on it.

        Returns:
            ``loss_contrast``, and the share of pairs that are recognised, ``top1`` in percent.
        """
        check_image("MoCoV3", first, self.in_channels, dims=self.dims)
        queries = [F.normalize(self.predictor(self.base_encoder(view)), dim=1) for view in (first, second)]
        with torch.no_grad():
            follow(self.momentum_encoder, self.base_encoder, self.momentum_at(progress))
            keys = [gather_batch(F.normalize(self.momentum_encoder(view), dim=1)) for view in (first, second)]
        positives = torch.arange(len(first), device=first.device) + len(first) * process_rank()
        similarities = [queries[0] @ keys[1].T, queries[1] @ keys[0].T]
        loss = sum(2 * self.temperature * info_nce(one, positives, self.temperature) for one in similarities)
        found = torch.cat([one.detach().argmax(1) == positives for one in similarities])
        return {"loss_contrast": loss, "top1": 100 * found.float().mean()}

    def momentum_at(self, progress: float) -> float:
        """Return the momentum at a part of the training: from `momentum` to 1 by a half cosine."""
        return 1 - 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) * (1 - self.momentum)


CARD = NetworkCard(
    name="MoCoV3",
    factory="itkit.models.moco_v3:MoCoV3",
    title="MoCo v3",
    paper="Chen et al., ICCV 2021, arXiv 2104.02057",
    licence="original: CC-BY-NC 4.0, its weights too; this is written from the paper",
    dims=(2, 3),
    configurations={
        "MoCo_v3_r50": Configuration(dict(encoder="resnet50"), 68_012_160, (3, 224, 224)),
        "MoCo_v3_vit_small": Configuration(dict(encoder="vit_small"), 84_266_752, (3, 224, 224)),
        "MoCo_v3_vit_base": Configuration(dict(encoder="vit_base"), 215_678_464, (3, 224, 224)),
    },
    small=dict(in_channels=1, encoder="resnet18", dim=8, hidden=16, width=4),
    small_size=(45, 38),
    outputs=3,
    segments=False,
    least_batch=2,
    notes=(
        "The small transformer has 12 heads; positions are fixed, and the projection of patches is not trained.",
        "The loss is that of both directions, each times 2 * temperature.",
    ),
)
