"""A LoRA at another rank: every matrix at the rank that a rule chooses, and what that keeps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import PairError
from ..lora.deltas import Delta, Spec
from ..lora.lora import CombinedLora, Lora, Recipe, label
from ..progress import Progress
from ..storage.reader import FileIdentity
from .factorisation import Factorisation, factorisation_of
from .krylov import Approximation
from .rules import RankRule, Spectrum, check_count, ranks_of

# Energy that rounding leaves when equal products of different float32 factors cancel, as a share of what was added up.
ROUNDING = (4 * torch.finfo(torch.float32).eps) ** 2


class RerankedLora(Lora):
    """Another LoRA's matrices at the ranks that a rule chooses; vectors stay as they are."""

    def __init__(self, of: Lora, rule: RankRule, max_rank: int | None = None):
        if max_rank is not None:
            check_count("max rank", max_rank)
        of.check_faults()
        self.of, self.rule, self.max_rank = of, rule, max_rank
        self.metadata, self.warnings = of.metadata, of.warnings
        self.factorisation = factorisation_of(of)
        self._specs: dict[str, Spec] | None = None

    @property
    def specs(self) -> Mapping[str, Spec]:  # type: ignore[override]
        if self._specs is None:
            most = {name: self._most(name) for name in self.of.matrices}
            ranks = ranks_of(self.rule, _Spectra(self, most), most)
            self._specs = {
                name: spec if spec.is_vector else Spec(spec.shape, (ranks[name],))
                for name, spec in self.of.specs.items()
            }
        return self._specs

    def _most(self, name: str) -> int:
        """The largest rank that a module can get."""
        spec = self.of.specs[name]
        return min(spec.rank, spec.out_features, spec.in_features, self.max_rank or spec.rank)

    def _approximation(
        self, name: str, tick: Callable[[], None] = lambda: None, factors: bool = False
    ) -> Approximation:
        spec = self.of.specs[name]
        most = min(spec.rank, self.max_rank or self.rule.looks_at or spec.rank)
        return self.factorisation.approximation(name, self.rule, most, tick, factors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.of.specs)

    def __len__(self) -> int:
        return len(self.of.specs)

    def __contains__(self, module: object) -> bool:
        return module in self.of.specs

    @property
    def matrices(self) -> tuple[str, ...]:
        return self.of.matrices

    @property
    def dense(self) -> tuple[str, ...]:
        return self.of.dense

    @property
    def factored(self) -> tuple[str, ...]:
        return self.of.factored

    @property
    def parents(self) -> tuple[Lora, ...]:
        return (self.of,)

    @property
    def difference(self) -> CombinedLora | None:
        return self.of.difference

    @property
    def before_cut(self) -> Lora:
        return self.of

    @property
    def unit(self) -> str | None:
        return self.of.unit

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {"op": "rerank", "rule": self.rule.recipe, "max_rank": self.max_rank, "of": self.of.describe(sha256)}

    @property
    def prepared(self) -> bool:
        return self._specs is not None or not self.rule.reads_spectra

    def prepare(self, progress: Progress | None = None) -> None:
        super().prepare(progress)
        if not self.prepared:
            self.measure(progress)

    def measure(self, progress: Progress | None = None) -> None:
        """Compute all spectra now, and with them ranks and energy.

        raises  PairError if it turns out that nothing is left, see `check_something_left`
        """
        super().prepare(progress)
        total = len(self.matrices)
        self.factorisation.run(progress=progress and (lambda done, _: progress(done, total)))
        for done, name in enumerate(self.dense, total - len(self.dense)):
            self._approximation(name, _tick(progress, done, total))
            if progress:
                progress(done + 1, total)
        check_something_left(self)
        _ = self.specs

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        read = dict(self.stream(modules))
        return {name: read[name] for name in modules}

    def stream(self, modules: Sequence[str], tick: Callable[[], None] = lambda: None) -> Iterator[tuple[str, Delta]]:
        specs = self.of.specs
        for (vectors, dense), run in itertools.groupby(
            modules, key=lambda name: (specs[name].is_vector, specs[name].dense)
        ):
            if vectors:
                yield from self.of.stream(list(run))
            elif dense:
                for name in run:
                    found = self._approximation(name, tick, factors=True)
                    yield name, found.at(self.specs[name].rank, specs[name].shape)
            else:
                yield from self.factorisation.mixed(list(run), self.specs)

    def total_energy(self, module: str) -> float:
        """‖Δ‖² of the module before the cut."""
        return self._approximation(module).energy if self.of.specs[module].dense else self.factorisation[module].energy

    @property
    def certificates(self) -> dict[str, Approximation]:
        """For modules that are stored in full: the error, and how far above the smallest possible it can be."""
        return {name: self._approximation(name).cut(self.specs[name].rank) for name in self.dense}

    def spectrum(self, module: str) -> Tensor:
        """The module's singular values before the cut, from large to small, float64.

        All of them; for a module that is stored in full, those that have been computed.
        """
        return (
            self._approximation(module).values
            if self.of.specs[module].dense
            else (self.factorisation[module].singular_values)
        )

    def module_energy(self, module: str) -> float:
        """Share of the module's energy that its rank retains; 1 for a module that does not change."""
        total = self.total_energy(module)
        return min(1.0, self._kept(module) / total) if total > 0 else 1.0

    def _kept(self, module: str) -> float:
        return float(self.spectrum(module).square()[: self.specs[module].rank].sum())

    is_cut = True

    @property
    def retained_energy(self) -> float:
        """Share of the whole energy, over all matrices, that is retained: Σ kept σ² / Σ σ²."""
        self.factorisation.run()
        total = math.fsum(self.total_energy(name) for name in self.matrices)
        return min(1.0, math.fsum(self._kept(name) for name in self.matrices) / total) if total > 0 else 1.0


class _Spectra(Mapping[str, Spectrum]):
    """What a rule can look at: the spectra of all matrices, factored together when the first one is read."""

    def __init__(self, lora: RerankedLora, most: Mapping[str, int]):
        self._lora, self._most = lora, most
        self._factored = False

    def __getitem__(self, name: str) -> Spectrum:
        lora, spec = self._lora, self._lora.of.specs[name]
        if not self._factored:
            lora.factorisation.run()
            self._factored = True
        shape = spec.out_features, spec.in_features
        return Spectrum(lora.spectrum(name), lora.total_energy(name), shape, self._most[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._most)

    def __len__(self) -> int:
        return len(self._most)


def check_something_left(lora: Lora) -> None:
    """Raise PairError if a sum of LoRAs is zero in every module, apart from the rounding of float32 factors.

    Modules are checked until one is not zero, usually the first. A LoRA that is not a sum may be zero.
    """
    total = lora.origin
    if not total.parts or lora.__dict__.get("_something_left"):
        return
    factorisation = _factorisation(lora)
    # Modules stored in full come last: only they take time.
    for name in sorted(lora.unzeroed, key=lambda name: total.specs[name].dense):
        if not _is_nothing(total, name, factorisation):
            lora.__dict__["_something_left"] = True
            return
    raise PairError(
        f"{label(total)}: the result is zero in every module, apart from rounding. Choose the two sides of a "
        "pair, modules in which they differ, or weights other than zero."
    )


def _factorisation(lora: Lora) -> Factorisation:
    """The existing one nearest to the origin of a LoRA, or else a new one of the origin."""
    one, found = lora, None
    while True:
        found = one.__dict__.get("_factorisation", found)
        if len(one.parents) != 1:
            return found or factorisation_of(one)
        one = one.parents[0]


def _is_nothing(total: Lora, name: str, factorisation: Factorisation) -> bool:
    spec = total.specs[name]
    if not (spec.is_vector or spec.dense):
        known = factorisation[name]
        return known.energy <= ROUNDING * float(known.products.trace())
    added = math.fsum((weight * _norm(part[name])) ** 2 for weight, part in total.parts if name in part)
    return _norm(total[name]) ** 2 <= ROUNDING * added


def _norm(delta: Delta) -> float:
    return float(torch.linalg.vector_norm(delta.dense(), dtype=torch.float64))


def _tick(progress: Progress | None, done: int, total: int) -> Callable[[], None]:
    return lambda: progress(done, total) if progress else None


def rerank(lora: Lora, rule: RankRule, max_rank: int | None = None, progress: Progress | None = None) -> RerankedLora:
    """The best approximation of every matrix at the rank that `rule` chooses.

    Exact, see the top of this file. Lazy: modules are factored when they are first read. With `progress`, they are
    factored now. Another re-rank of the same `lora` object reuses the factorisation.

    raises  RankError if the rule or `max_rank` asks for less than rank 1
    """
    if not lora.matrices:
        raise PairError("There is no weight matrix to re-rank: only biases, norms or modulation change.")
    result = RerankedLora(lora, rule, max_rank)
    if progress:
        result.measure(progress)
    return result
