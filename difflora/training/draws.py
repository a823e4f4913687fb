"""What each step draws: pairs, noise levels and noise. A function of seed and step only.

So a resumed training draws what it would have drawn, both sides of a pair draw the same, and other code's
random numbers are not affected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def generator(seed: int, *what: object) -> torch.Generator:
    """A separate generator for each purpose."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Draw:
    """indices of the pairs (n); sigma (n,) in 0…1; noise (n, *latent)."""

    indices: list[int]
    sigma: Tensor
    noise: Tensor


class Draws:
    """The draws of a whole training.

    shapes  of the pairs' latents: a batch holds only equal shapes
    sigma   the lowest and the highest noise level. Levels are uniform between the two, one from each of n equal parts,
            in random order
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch: int, sigma: tuple[float, float], seed: int):
        self.shapes, self.batch, self.sigma, self.seed = list(shapes), batch, sigma, seed
        self._alike: dict[tuple[int, ...], list[int]] = {}
        for index, shape in enumerate(self.shapes):
            self._alike.setdefault(shape, []).append(index)
        self.steps_an_epoch = sum(-(-len(indices) // batch) for indices in self._alike.values())

    def at(self, step: int) -> Draw:
        """The draw of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_an_epoch)
        return self._drawn(self._epoch(epoch)[place], generator(self.seed, "step", step))

    def fixed(self, number: int) -> list[Draw]:
        """Draws over the first `number` pairs of each shape, for losses that can be compared with each other."""
        parts = [
            part[i : i + self.batch] for part in self._alike.values() for i in range(0, len(part[:number]), self.batch)
        ]
        return [self._drawn(part, generator(self.seed, "fixed", place)) for place, part in enumerate(parts)]

    def _drawn(self, indices: list[int], random: torch.Generator) -> Draw:
        count = len(indices)
        low, high = self.sigma
        place = (torch.randperm(count, generator=random) + torch.rand(count, generator=random)) / count
        noise = torch.randn(count, *self.shapes[indices[0]], generator=random)
        return Draw(indices, low + (high - low) * place, noise)

    def _epoch(self, number: int) -> list[list[int]]:
        """Every pair once, in batches of one shape; the last batch of a shape is filled up from its beginning."""
        random = generator(self.seed, "epoch", number)
        batches = []
        for indices in self._alike.values():
            order = [indices[i] for i in torch.randperm(len(indices), generator=random).tolist()]
            for start in range(0, len(order), self.batch):
                part = order[start : start + self.batch]
                spare = order[: self.batch - len(part)] if len(order) >= self.batch else []
                batches.append(part + spare)
        return [batches[i] for i in torch.randperm(len(batches), generator=random).tolist()]
