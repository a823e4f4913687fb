"""Memory for work on one batch of modules after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Memory for the stacked factors, reused for every batch: new pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(0, dtype=torch.float64)] * 2

    def take(self, which: int, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        if self._buffers[which].numel() < size:
            self._buffers[which] = torch.empty(size, dtype=torch.float64)
        return self._buffers[which][:size].view(shape)
