"""Adding and subtracting LoRAs, exactly: factors are stacked, nothing is multiplied out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import PairError
from .deltas import Delta, LowRank
from .lora import CombinedLora, Lora, label


def subtract(a: Lora, b: Lora, weight_a: float = 1.0, weight_b: float = 1.0, unmatched: str = "keep") -> CombinedLora:
    """``weight_a * a - weight_b * b``, without loss.

    unmatched  what to do with a module that only one side has: "keep" it (zero on the other side), "drop" it, "error"
    raises     PairError if the shapes differ, nothing is in common, or `a` and `b` are the same
    """
    difference = CombinedLora([(weight_a, a), (-weight_b, b)], unmatched)
    if weight_a == weight_b and same_content(a, b):
        raise PairError(
            f"{label(a)} and {label(b)} hold the same weights: their difference is zero. "
            "Choose the two sides of a pair."
        )
    return difference


def combine(parts: Sequence[tuple[float, Lora]], unmatched: str = "keep") -> CombinedLora:
    """The weighted sum of any number of LoRAs, without loss; `parts` are (weight, lora)."""
    return CombinedLora(parts, unmatched)


def same_content(a: Lora, b: Lora) -> bool:
    """Whether two LoRAs change every weight alike. Reads module by module and stops at the first difference."""
    if a is b:
        return True
    if a.specs != b.specs:
        return False
    return all(_same(a.read([name])[name], b.read([name])[name]) for name in a)


def _same(a: Delta, b: Delta) -> bool:
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return torch.equal(a.up, b.up) and torch.equal(a.down, b.down)
    return torch.equal(a.dense(), b.dense())
