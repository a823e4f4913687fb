"""LoRA factors beside linear layers while they are being trained. Plain torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .draws import generator

Factors = dict[str, tuple[Tensor, Tensor]]
"""Module -> up (out, rank), down (rank, in), float32."""


class TrainedFactors:
    """One or two LoRAs on the same layers, added to each layer's output with a multiplier for every row of the batch.

    The multiplier scales the product ``up @ down``: half of it is half of the change, where half of each factor would be
    a quarter.

    layers  module name -> linear layer
    sides   1 or 2 LoRAs. Two start from the same factors.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        shapes: Mapping[str, tuple[int, int]],
        rank: int,
        sides: int,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        self.layers = dict(layers)
        self.sides: list[Factors] = [{} for _ in range(sides)]
        self.multipliers: Tensor | None = None  # (sides, rows)
        for name in self.layers:
            out_features, in_features = shapes[name]
            # As musubi-tuner and PEFT start: `up` is zero, `down` is uniform (Kaiming with a = √5). On the CPU, so that
            # a seed means the same on every device; by name, so that another selection starts a layer alike.
            start = torch.rand(rank, in_features, generator=generator(seed, "factors", name)) * 2 - 1
            for side in self.sides:
                down = (start * in_features**-0.5).to(device).requires_grad_(True)
                side[name] = (torch.zeros(out_features, rank, device=device, requires_grad=True), down)

    def parameters(self, side: int | None = None) -> list[Tensor]:
        """All factors, or those of one side, in a fixed order."""
        sides = self.sides if side is None else [self.sides[side]]
        return [factor for factors in sides for pair in factors.values() for factor in pair]

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Forward hooks on the layers, removed on exit. Without multipliers they change nothing, not even the last bit."""
        handles = []
        try:
            for name, layer in self.layers.items():
                handles.append(layer.register_forward_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.multipliers = None

    def _hook(self, name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.multipliers is None:
                return output
            x = inputs[0]
            rows = self.multipliers.shape[1]
            if x.shape[0] != rows:
                raise UnsupportedError(
                    f"{name}: this layer sees a batch of {x.shape[0]} where {rows} pictures were given, so a slider "
                    "cannot be trained on it. Leave it out of the selection."
                )
            # In float32: early in training, a LoRA's changes are smaller than bf16's rounding.
            x = x.float()
            change: Tensor | None = None
            for multiplier, factors in zip(self.multipliers, self.sides, strict=True):
                up, down = factors[name]
                part = (x @ down.T) @ up.T * multiplier.view(-1, *[1] * (x.ndim - 1))
                change = part if change is None else change + part
            assert change is not None
            return output + change.to(output.dtype)

        return add
