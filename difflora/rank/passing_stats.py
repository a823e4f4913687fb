"""How similar A and B are, computed from their factors while these are being written to a file.

A result that is written without a re-rank has no factorisation to take this from. This needs no second pass
through the files and no extra memory. Inner products are float32 sums over float32 factors: enough for a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..lora.deltas import Delta, LowRank, Term
from ..lora.lora import CombinedLora, Lora, Recipe
from ..storage.reader import FileIdentity
from .analysis import cancelled_share


class MeasuredLora(Lora):
    """Another LoRA, unchanged, that adds up the inner products of the two sides of `pair` as it is read."""

    def __init__(self, of: Lora, pair: CombinedLora):
        self.of, self.pair = of, pair
        self.specs, self.metadata, self.warnings = of.specs, of.metadata, of.warnings
        self._sums: dict[str, tuple[float, float, float]] = {}

    @property
    def parents(self) -> tuple[Lora, ...]:
        return (self.of,)

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return self.of.describe(sha256)

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        read = self.of.read(modules)
        for name, delta in read.items():
            if isinstance(delta, LowRank) and len(delta.terms) == len(self.pair.specs[name].ranks):
                self._sums[name] = self._products(name, delta.terms)
        return read

    def _products(self, name: str, terms: tuple[Term, ...]) -> tuple[float, float, float]:
        """(‖A‖², ⟨A, B⟩, ‖B‖²) of one module, A and B as they are, without any weight of the difference."""
        (weight_a, a), (weight_b, _) = self.pair.parts
        weight = self.of.weight_of(name)
        count = len(a.specs[name].ranks) if name in a else 0
        one, other = _stacked(terms[:count], weight * weight_a), _stacked(terms[count:], weight * weight_b)
        return _inner(one, one), _inner(one, other), _inner(other, other)

    @property
    def cosine(self) -> float | None:
        """Between A and B, over the modules that were read as factors; None if there were none."""
        a, product, b = self._totals
        return None if not self._sums else max(-1.0, min(1.0, product / math.sqrt(a * b))) if a * b > 0 else 0.0

    @property
    def cancelled(self) -> float | None:
        """Share of both sides' weighted energy that cancelled, over the same modules."""
        (weight_a, _), (weight_b, _) = self.pair.parts
        return cancelled_share(*self._totals, weight_a, -weight_b) if self._sums else None

    @property
    def _totals(self) -> tuple[float, float, float]:
        a, product, b = zip(*self._sums.values(), strict=True) if self._sums else ((), (), ())
        return math.fsum(a), math.fsum(product), math.fsum(b)


_Side = tuple[Tensor, Tensor] | None


def _stacked(terms: Sequence[Term], weight: float) -> _Side:
    """One side's factors without its weight in the difference; None if it has none."""
    if not terms or weight == 0:
        return None
    up = torch.cat([term.up.float() * (term.scale / weight) for term in terms], dim=1)
    return up, torch.cat([term.down.float() for term in terms])


def _inner(one: _Side, other: _Side) -> float:
    if one is None or other is None:
        return 0.0
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum(dtype=torch.float64))
