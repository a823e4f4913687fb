"""Rank rules: how many singular values of each module are kept.

A rule sees all modules at once, so it can weigh them against each other; most look at each module separately. To add one:
write its class here and add its name to RULES, its counterpart to `js/lib/spectrum.js`, its cases to
`tests/data/rank_rules.json` (read by both the Python and the JavaScript tests), and extend the tooltip of Re-rank in `locales`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RankError
from ..lora.lora import Recipe

# Singular values below this share of the largest one are the rounding of float32 factors: measured, 4e-8 where A is as
# large as the difference, and 4e-7 where it is ten times as large.
NOISE = 1e-6
# Numbers that differ by less than this share count as a tie: their last bits, which differ between processors and between
# Python and the page, must not decide.
TIE = 1e-9


@dataclass(frozen=True)
class Spectrum:
    """What a rule is told about one module.

    values  (n,) float64, from large to small; for a module stored in full, those that have been computed
    energy  ‖Δ‖²: more than the sum of the squares of `values` if some values are missing
    shape   (out, in): a rank costs ``out + in`` numbers
    most    the largest rank that the module can get, at least 1
    """

    values: Tensor
    energy: float
    shape: tuple[int, int]
    most: int


class RankRule(ABC):
    """How many singular values of each module are kept.

    kind     its name in recipes
    word     its name in the node's list and on the command line
    setting  the number that it takes, by the name of the node's input; None if it takes none
    whole    whether that is a whole number
    says     what it keeps, in a few words; `example` of its number
    looks_at how many singular values of a module stored in full are computed for it if `max_rank` sets no limit;
             None if the rule decides itself when it has seen enough
    reads_spectra  whether ranks depend on the spectra at all
    """

    kind: ClassVar[str]
    word: ClassVar[str]
    setting: ClassVar[str | None] = None
    whole: ClassVar[bool] = False
    says: ClassVar[str]
    example: ClassVar[str] = ""
    looks_at: ClassVar[int | None] = 256
    reads_spectra: ClassVar[bool] = True

    @abstractmethod
    def ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        """The rank of every module. `ranks_of` makes sure that each is from 1 to `most`.

        A spectrum is computed when it is read from the mapping; a rule that reads none costs nothing.
        """

    def least(self, most: int) -> int:
        """How many values of a module stored in full are needed at first; there are at most `most`."""
        return most

    def needs_more(self, values: Tensor, energy: float) -> bool:
        """Whether a module stored in full needs more values than these."""
        return True

    @property
    def recipe(self) -> Recipe:
        """How to make this again: see `rule_from_recipe`."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


class ModuleRule(RankRule):
    """A rule that looks at each module separately."""

    @abstractmethod
    def count(self, values: Tensor, energy: float | None = None) -> int:
        """How many of these values to keep; `energy` is that of the whole module, by default that of the values."""

    def ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        return {name: self.count(spectrum.values, spectrum.energy) for name, spectrum in spectra.items()}


@dataclass(frozen=True)
class FixedRank(ModuleRule):
    """Keep this many singular values in every module."""

    rank: int

    kind, word, setting, whole = "fixed", "rank", "rank", True
    says, example = "the same rank everywhere", "4"
    looks_at = None
    reads_spectra = False

    def __post_init__(self) -> None:
        check_count("rank", self.rank)

    def count(self, values: Tensor, energy: float | None = None) -> int:
        return self.rank

    def ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        return dict.fromkeys(spectra, self.rank)

    def least(self, most: int) -> int:
        return min(most, self.rank)

    def needs_more(self, values: Tensor, energy: float) -> bool:
        return len(values) < self.rank


@dataclass(frozen=True)
class Energy(ModuleRule):
    """The smallest rank that retains this share of the energy (the sum of squared singular values)."""

    share: float

    kind, word, setting = "energy", "energy", "energy"
    says, example = "per module, the smallest rank that keeps this share", "0.95"
    looks_at = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RankError(f"The energy to retain is {self.share}; it must be above 0 and at most 1, such as 0.95.")

    def count(self, values: Tensor, energy: float | None = None) -> int:
        # What is missing is summed from the small end: subtracted from the whole, it would be lost in rounding.
        squares = values.square()
        energy = float(squares.sum()) if energy is None else energy
        unseen = energy - float(squares.sum())
        unseen = unseen if unseen > 1e-12 * energy else 0.0
        missing = squares.flip(0).cumsum(0).flip(0)[1:] + unseen
        enough = torch.cat([missing, missing.new_tensor([unseen])]) <= (1 - self.share) * energy * (1 + TIE)
        return int(enough.int().argmax()) + 1 if bool(enough.any()) else len(values)

    def least(self, most: int) -> int:
        return 1

    def needs_more(self, values: Tensor, energy: float) -> bool:
        return float(values.square().sum()) < self.share * energy * (1 - 1e-12)


@dataclass(frozen=True)
class Ratio(ModuleRule):
    """Keep the singular values above the largest one divided by this, and none below NOISE."""

    ratio: float

    kind, word, setting = "ratio", "ratio", "ratio"
    says, example = "all singular values above the largest / ratio", "20"
    looks_at = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio >= 1):
            raise RankError(f"The ratio is {self.ratio}; it must be a number of at least 1, such as 20.")

    def count(self, values: Tensor, energy: float | None = None) -> int:
        return int((values > self._bound(values)).sum())

    def least(self, most: int) -> int:
        return 1

    def needs_more(self, values: Tensor, energy: float) -> bool:
        return bool(values[-1] > self._bound(values))

    def _bound(self, values: Tensor) -> Tensor:
        return values[0] * (max(1 / self.ratio, NOISE) * (1 + TIE))


@dataclass(frozen=True)
class Knee(ModuleRule):
    """Keep the singular values before the knee: the first of those that lie farthest below the chord of the spectrum.

    The chord joins the first and the last of the values above NOISE. A straight or bulging spectrum has no knee, and
    all of these are kept.
    """

    kind, word = "knee", "knee"
    says = "up to the bend of the spectrum"

    def count(self, values: Tensor, energy: float | None = None) -> int:
        spectrum = values[values > NOISE * values[0]]
        if len(spectrum) < 3:
            return len(spectrum)
        chord = torch.linspace(float(spectrum[0]), float(spectrum[-1]), len(spectrum), dtype=spectrum.dtype)
        below = chord - spectrum
        if below.max() <= NOISE * spectrum[0]:
            return len(spectrum)
        return int((below >= below.max() - TIE * spectrum[0]).int().argmax())


@dataclass(frozen=True)
class Budget(RankRule):
    """The same total size as this rank in every module, spent where it keeps the most energy.

    One rank of an (out, in) module costs ``out + in`` numbers. Each module keeps one; then the singular values of all
    modules are added in the order of σ² / (out + in), largest first, as long as they fit.
    """

    rank: int

    kind, word, setting, whole = "budget", "budget", "rank", True
    says, example = "the size of this rank everywhere, spent where the energy is", "4"

    def __post_init__(self) -> None:
        check_count("budget", self.rank)

    def ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        modules = dict(spectra)
        left = sum((min(self.rank, one.most) - 1) * sum(one.shape) for one in modules.values())
        ranks = dict.fromkeys(modules, 1)
        offers = [
            (float(value) ** 2 / sum(one.shape), sum(one.shape), name)
            for name, one in modules.items()
            for value in one.values[1 : one.most].tolist()
            if value > NOISE * float(one.values[0])
        ]
        # Ties go to the module that comes first: the sort is stable.
        for _, cost, name in sorted(offers, key=lambda offer: -offer[0]):
            if cost <= left:
                ranks[name], left = ranks[name] + 1, left - cost
        return ranks


RULES: Mapping[str, type[RankRule]] = {rule.word: rule for rule in (FixedRank, Energy, Ratio, Knee, Budget)}
"""Every rule, by its word, in the order in which lists show them."""


def rule_of(word: str, settings: Mapping[str, Any]) -> RankRule:
    """The rule of this word with its number from `settings`, which may hold those of other rules too.

    raises  RankError if the number is not valid for this rule
    """
    rule: Callable[..., RankRule] = RULES[word]
    setting = RULES[word].setting
    return rule() if setting is None else rule(settings[setting])


def rule_from_recipe(recipe: Mapping[str, Any]) -> RankRule:
    """The rule that `rule.recipe` describes."""
    rules: dict[str, Callable[..., RankRule]] = {rule.kind: rule for rule in RULES.values()}
    values = {key: value for key, value in recipe.items() if key != "kind"}
    if recipe.get("kind") not in rules:
        raise RankError(f"The rank rule {recipe.get('kind')!r} is unknown.")
    return rules[recipe["kind"]](**values)


def ranks_of(rule: RankRule, spectra: Mapping[str, Spectrum], most: Mapping[str, int]) -> dict[str, int]:
    """The rank of every module: what the rule says, at least 1 and at most `most`."""
    return {name: max(1, min(rank, most[name])) for name, rank in rule.ranks(spectra).items()}


def check_count(name: str, number: object) -> None:
    """Raise RankError if a count is not a whole number of at least 1."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise RankError(f"The {name} is {number}; it must be a whole number of at least 1.")
