"""What several processes log is one number: the mean of what each of them computed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, get_comm_device
from torch import Tensor


class LogMeans:
    """Means over the processes of the numbers that training steps return.

    The loss of N processes that each take B samples then is the loss of the N * B samples, and every process judges the
    same number: one that is NaN on one process is NaN on all. Names are agreed on at the first call; what not every
    process named then stays as it is. All processes call this together.
    """

    def __init__(self) -> None:
        self._names: list[str] | None = None

    def __call__(self, values: Any) -> Any:
        """Return `values` with the mean of each number (tensors of one element, floats, integers) in its own type.

        Args:
            values: Name -> anything; None and other kinds come back as they are. A name that a process lacks in this
                step does not count there.
        """
        if not isinstance(values, dict):
            values, answer = {}, values
        else:
            answer = values = dict(values)
        if self._names is None:
            own = [name for name, value in values.items() if _is_number(value)]
            everyone = all_gather_object(own)
            self._names = [name for name in everyone[0] if all(name in names for names in everyone)]
        if not self._names:
            return answer
        numbers = torch.zeros(2, len(self._names), dtype=torch.float64, device=get_comm_device())
        for i, name in enumerate(self._names):
            if _is_number(values.get(name)):
                value = values[name]
                numbers[0, i] = value.detach().reshape(()) if isinstance(value, Tensor) else value
                numbers[1, i] = 1
        everyone = [torch.empty_like(numbers) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, numbers)  # in a profile, what is reduced is gradients
        sums = torch.stack(everyone).sum(0)
        means = sums[0] / sums[1]
        for i, name in enumerate(self._names):
            value = values.get(name)
            if isinstance(value, Tensor) and _is_number(value):
                values[name] = means[i].to(value.device, value.dtype).reshape(value.shape)
            elif _is_number(value):
                values[name] = float(means[i])
        return answer


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, (int, float)) and not isinstance(value, bool)
