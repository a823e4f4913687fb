"""Rank rules: how many singular values of a module are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RankError
from ..lora.lora import Recipe

# Singular values below this share of the largest one are the rounding of float32 factors: measured, 4e-8 where A is as
# large as the difference, and 4e-7 where it is ten times as large.
NOISE = 1e-6


@dataclass(frozen=True)
class FixedRank:
    """Keep this many singular values in every module."""

    rank: int

    def __post_init__(self) -> None:
        check_count("rank", self.rank)

    def count(self, values: Tensor, energy: float | None = None) -> int:
        return self.rank

    def needs_more(self, values: Tensor, energy: float) -> bool:
        return len(values) < self.rank

    @property
    def recipe(self) -> Recipe:
        return {"kind": "fixed", "rank": self.rank}


@dataclass(frozen=True)
class Energy:
    """The smallest rank that retains this share of the energy (the sum of squared singular values)."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RankError(f"The energy to retain is {self.share}; it must be above 0 and at most 1, such as 0.95.")

    def count(self, values: Tensor, energy: float | None = None) -> int:
        # What is missing is added up from the small end: taken from the whole, it would be rounding.
        squares = values.square()
        energy = float(squares.sum()) if energy is None else energy
        unseen = energy - float(squares.sum())
        unseen = unseen if unseen > 1e-12 * energy else 0.0
        missing = squares.flip(0).cumsum(0).flip(0)[1:] + unseen
        # At a tie, the last bits of the values, which differ between processors, must not decide.
        enough = torch.cat([missing, missing.new_tensor([unseen])]) <= (1 - self.share) * energy * (1 + 1e-9)
        return int(enough.int().argmax()) + 1 if bool(enough.any()) else len(values)

    def needs_more(self, values: Tensor, energy: float) -> bool:
        return float(values.square().sum()) < self.share * energy * (1 - 1e-12)

    @property
    def recipe(self) -> Recipe:
        return {"kind": "energy", "share": self.share}


@dataclass(frozen=True)
class Ratio:
    """Keep the singular values above the largest one divided by this, and none below NOISE."""

    ratio: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio >= 1):
            raise RankError(f"The ratio is {self.ratio}; it must be a number of at least 1, such as 20.")

    def count(self, values: Tensor, energy: float | None = None) -> int:
        return int((values > self._bound(values)).sum())

    def needs_more(self, values: Tensor, energy: float) -> bool:
        return bool(values[-1] > self._bound(values))

    def _bound(self, values: Tensor) -> Tensor:
        return values[0] * max(1 / self.ratio, NOISE)

    @property
    def recipe(self) -> Recipe:
        return {"kind": "ratio", "ratio": self.ratio}


@dataclass(frozen=True)
class Knee:
    """Keep the singular values before the knee: the one that lies farthest below the chord of the spectrum.

    Of a change that is stored in full, the spectrum is looked at as far as MOST_OF_DENSE.

    The chord joins the first and the last of the values above NOISE. A straight or bulging spectrum has no knee, and
    all of these are kept.
    """

    def needs_more(self, values: Tensor, energy: float) -> bool:
        return True

    def count(self, values: Tensor, energy: float | None = None) -> int:
        spectrum = values[values > NOISE * values[0]]
        if len(spectrum) < 3:
            return len(spectrum)
        chord = torch.linspace(float(spectrum[0]), float(spectrum[-1]), len(spectrum), dtype=spectrum.dtype)
        below = chord - spectrum
        deepest = int(below.argmax())
        return deepest if below[deepest] > NOISE * spectrum[0] else len(spectrum)

    @property
    def recipe(self) -> Recipe:
        return {"kind": "knee"}


RankRule = FixedRank | Energy | Ratio | Knee


def rule_from_recipe(recipe: Mapping[str, Any]) -> RankRule:
    """The rule that `rule.recipe` describes."""
    rules: dict[str, type[Any]] = {"fixed": FixedRank, "energy": Energy, "ratio": Ratio, "knee": Knee}
    values = {key: value for key, value in recipe.items() if key != "kind"}
    if recipe.get("kind") not in rules:
        raise RankError(f"The rank rule {recipe.get('kind')!r} is unknown.")
    rule: RankRule = rules[recipe["kind"]](**values)
    return rule


def check_count(name: str, number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise RankError(f"The {name} is {number}; it must be a whole number of at least 1.")
