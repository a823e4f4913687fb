"""The pairs as a trainer sees them: two latents with one name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PairError

FEWEST = 2
ENOUGH = 20
"""Pairs. With fewer than `ENOUGH` a slider becomes unreliable; with fewer than `FEWEST` there is nothing to average over."""


@dataclass(frozen=True)
class SliderPairs:
    """Latents by pair, on the CPU.

    names   of the pairs, sorted: the order of training must not depend on the order of files in a folder
    a, b    one latent each, (channels, …), float32; both of a pair have the same shape
    raises  PairError if there are fewer than two pairs, a shape differs, or a latent is not finite
    """

    names: tuple[str, ...]
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if len(self.names) < FEWEST:
            raise PairError(f"There are {len(self.names)} pairs; a slider needs at least {FEWEST}, better {ENOUGH}.")
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            if a.shape != b.shape:
                raise PairError(
                    f"{name}: its sides have latents of shapes {tuple(a.shape)} and {tuple(b.shape)}. Both images of a "
                    "pair need the same size."
                )
            if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise PairError(
                    f"{name}: the VAE gave values that are not finite. Check the image, or use another VAE."
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names and latents."""
        digest = hashlib.sha256()
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            digest.update(f"{name} {tuple(a.shape)}".encode())
            digest.update(a.contiguous().numpy().tobytes() + b.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def mapped(self, change: Callable[[Tensor], Tensor]) -> SliderPairs:
        """The same pairs with a function applied to every latent."""
        return SliderPairs(self.names, tuple(map(change, self.a)), tuple(map(change, self.b)))
