"""MoCo v1 and v2: an encoder learns to recognise an image among many from another view of it, without labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.contrast import (
    begin_as,
    follow,
    gather_batch,
    info_nce,
    process_count,
    process_rank,
    shared_permutation,
)
from itkit.ops.image_size import check_image
from itkit.ops.residual_encoder import feature_count, residual_encoder
from itkit.registry import MODELS


@MODELS.register_module()
class MoCo(nn.Module):
    """Momentum contrast with a queue of keys (MoCo v1; v2 with `mlp_head`): it pre-trains `encoder_q`.

    A query, the encoded first view of an image, is to be nearer to the key of the second view than to the keys of earlier
    images, which a queue holds. Keys come from `encoder_k`, whose weights follow those of `encoder_q` slowly. Queue,
    pointer and both encoders are in the state dict, so a training resumes exactly, and checkpoints of the authors load
    strictly once ``module.`` is taken off their names.

    On several processes the keys' images are shuffled over the processes before they are encoded and put back afterwards, so
    that batch statistics do not tell which key belongs to a query; the queue takes the keys of all. On one process all keys
    of a batch share their statistics whatever their order, so nothing is shuffled, as in the original on one GPU.

    Shape:
        - Input: (N, in_channels, Y, X), or (N, in_channels, Z, Y, X) with ``dims=3``; any size.
        - Output: [queries, normalised queries, keys], each (N, dim); keys without gradient.

    Args:
        in_channels: C.
        encoder: ``"resnet18"``, ``"resnet34"``, ``"resnet50"``, ``"resnet101"`` or ``"resnet152"``.
        dims: Spatial axes, 2 or 3.
        dim: Length of queries and keys.
        queue_size: Keys that are remembered; at least the batch of all processes.
        momentum: Share of its old weights that `encoder_k` keeps in a step.
        temperature: The similarities are divided by it: 0.07 in v1, 0.2 in v2.
        mlp_head: Project with a hidden layer (v2), not with a linear one (v1).
        width: Channels of the encoder's first stage; 64 as published.

    Raises:
        ConfigError: If an argument is impossible, or inputs have other axes or channels.

    Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020, arXiv 1911.05722;
    Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020, arXiv 2003.04297.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        encoder: str = "resnet50",
        dims: int = 2,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.07,
        mlp_head: bool = False,
        width: int = 64,
    ):
        super().__init__()
        if min(in_channels, dim, queue_size, width) < 1:
            raise ConfigError(
                f"MoCo: in_channels, dim, queue_size and width must be at least 1, found {in_channels}, {dim}, "
                f"{queue_size} and {width}."
            )
        if not 0 <= momentum < 1 or not temperature > 0:
            raise ConfigError(
                f"MoCo: momentum lies in [0, 1) and temperature above 0, found {momentum} and {temperature}."
            )
        self.in_channels, self.dims = in_channels, dims
        self.momentum, self.temperature = momentum, temperature
        self.encoder_q, self.encoder_k = (residual_encoder(encoder, in_channels, dims, dim, width) for _ in range(2))
        if mlp_head:
            features = feature_count(self.encoder_q)
            for net in (self.encoder_q, self.encoder_k):
                net.fc = nn.Sequential(nn.Linear(features, features), nn.ReLU(), net.fc)
        begin_as(self.encoder_k, self.encoder_q)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @property
    def encoder(self) -> nn.Module:
        """The encoder that is trained."""
        return self.encoder_q

    def begin(self) -> None:
        """Let the keys' encoder be the queries', after weights have been loaded into that alone."""
        begin_as(self.encoder_k, self.encoder_q)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return queries, normalised queries and keys (N, dim) of `images`."""
        check_image("MoCo", images, self.in_channels, dims=self.dims)
        queries = self.encoder_q(images)
        with torch.no_grad():
            keys = self.encoder_k(images)
        return [queries, F.normalize(queries, dim=1), keys]

    def contrast(self, first: Tensor, second: Tensor, progress: float = 0.0) -> dict[str, Tensor]:
        """Return the loss of a batch of pairs, after moving `encoder_k`; then remember the keys.

        Args:
            first: (N, C, ...), one view of each image: the queries.
            second: The same of another view: the keys.
            progress: Not used; the momentum is constant.

        Returns:
            ``loss_contrast``, and the share of pairs that are recognised, ``top1`` in percent.

        Raises:
            ConfigError: If the queue is smaller than the batch of all processes.
        """
        check_image("MoCo", first, self.in_channels, dims=self.dims)
        count, size = len(first) * process_count(), self.queue.shape[1]
        if count > size:
            raise ConfigError(
                f"MoCo: {count} pairs of all processes do not fit into a queue of {size}. Set queue_size to {count} or "
                "more, or lower batch_size."
            )
        queries = F.normalize(self.encoder_q(first), dim=1)
        with torch.no_grad():
            follow(self.encoder_k, self.encoder_q, self.momentum)
            keys = F.normalize(self._keys(second), dim=1)
        positive = (queries * keys).sum(1, keepdim=True)
        similarities = torch.cat([positive, queries @ self.queue.clone()], 1)
        targets = torch.zeros(len(first), dtype=torch.long, device=first.device)
        loss = info_nce(similarities, targets, self.temperature)
        self._remember(gather_batch(keys))
        return {"loss_contrast": loss, "top1": 100 * (similarities.detach().argmax(1) == 0).float().mean()}

    def _keys(self, images: Tensor) -> Tensor:
        """Return the keys of this process's images, encoded somewhere among all processes."""
        if process_count() == 1 or not self.training:
            return self.encoder_k(images)
        everything = gather_batch(images)
        order = shared_permutation(len(everything), images.device)
        here = slice(process_rank() * len(images), (process_rank() + 1) * len(images))
        keys = gather_batch(self.encoder_k(everything[order[here]]))
        return keys[order.argsort()[here]]

    @torch.no_grad()
    def _remember(self, keys: Tensor) -> None:
        """Put `keys` in the place of the oldest ones."""
        places = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.queue.shape[1]
        self.queue[:, places] = keys.T.to(self.queue.dtype)
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.queue.shape[1])


CARD = NetworkCard(
    name="MoCo",
    factory="itkit.models.moco:MoCo",
    title="MoCo v1, v2",
    paper="He et al., CVPR 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297",
    licence="original: CC-BY-NC 4.0, its weights too; this is written from the papers",
    dims=(2, 3),
    configurations={
        "MoCo_v1_r50": Configuration(dict(encoder="resnet50"), 47_540_608, (3, 224, 224)),
        "MoCo_v2_r50": Configuration(
            dict(encoder="resnet50", temperature=0.2, mlp_head=True), 55_933_312, (3, 224, 224)
        ),
        "MoCo_v2_small_r18": Configuration(
            dict(encoder="resnet18", dim=16, queue_size=64, temperature=0.2, mlp_head=True), 22_894_752
        ),
    },
    small=dict(in_channels=1, encoder="resnet18", dim=8, queue_size=32, temperature=0.2, mlp_head=True, width=4),
    small_size=(45, 38),
    outputs=3,
    segments=False,
    notes=(
        "Pre-training: `contrast` of two views gives the loss, `ContrastivePretraining` is the task model.",
        "encoder_k gets no gradient; it follows encoder_q.",
    ),
)
