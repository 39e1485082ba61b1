"""Parts as a user of plain MMEngine writes them; they know nothing of itkit."""

from __future__ import annotations

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch.utils.data import Dataset


@DATASETS.register_module(force=True)
class LineDataset(Dataset):
    """Points of a noisy line."""

    def __init__(self, size: int = 32, noise: float = 0.1):
        generator = torch.Generator().manual_seed(size)
        self.x = torch.rand(size, 1, generator=generator)
        self.y = 3 * self.x + 1 + noise * torch.randn(size, 1, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.y[index]}


@MODELS.register_module(force=True)
class LineModel(BaseModel):
    """Fits them."""

    def __init__(self, slope: float = 0.0):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.layer.weight, slope)

    def forward(self, x, y, mode="tensor"):
        x, y = torch.stack(list(x)), torch.stack(list(y))
        if mode == "loss":
            return {"loss": torch.nn.functional.mse_loss(self.layer(x), y)}
        return [self.layer(x), y]


@METRICS.register_module(force=True)
class LineError(BaseMetric):
    """Mean absolute error."""

    def process(self, data_batch, data_samples):
        prediction, truth = data_samples
        self.results.append((float((prediction - truth).abs().sum()), len(truth)))

    def compute_metrics(self, results):
        return {"mae": sum(r[0] for r in results) / sum(r[1] for r in results)}
