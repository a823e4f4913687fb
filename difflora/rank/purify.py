"""Removes the directions of other LoRAs from a slider, using the factors only.

With a slider's module U V and the top j left singular vectors Q of another LoRA's,

    U ← U − Q (Qᵀ U),   V as it is

removes what the two write into the same directions of the layer's output. Only the left side: the rows of V come mostly
from the initial factors and the slider itself depends on them, so a projection on the right would remove the slider.
The rank does not grow, and ‖Δ before‖² = ‖Δ after‖² + ‖Qᵀ U V‖² exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import DiffLoraError, PairError, RankError
from ..lora import cache
from ..lora.algebra import same_content
from ..lora.deltas import Delta, Dense, LowRank, Vector, multiplied_out
from ..lora.lora import Lora, Recipe, StoredLora, batches, label
from ..lora.workspace import Workspace
from ..progress import Progress, part_of
from ..sentence import Sentence
from ..storage.reader import FileIdentity
from .factorisation import factorisation_of, in_parallel, left_directions, stacked
from .rules import NOISE, FixedRank

MOST_AGAINST = 4  # LoRAs whose directions can be removed at once
MUCH = 0.5  # share of the slider's energy removed: above it, the two mean the same
ORTHONORMAL = 1e-12  # largest error of the inner products of columns that are taken as they are
SAME_ROWS = 0.7  # mean cosine of the row spaces above which two LoRAs probably started from the same factors
LOOKED_AT = 12  # modules whose row spaces are compared


@dataclass(frozen=True)
class Removed:
    """What a projection did to one module, as squared Frobenius norms.

    before   of the slider's module
    gone     of the part that was removed
    """

    before: float
    gone: float

    @property
    def share(self) -> float:
        """Share of the module's energy that was removed, 0 to 1."""
        return min(1.0, self.gone / self.before) if self.before > 0 else 0.0


class PurifiedLora(Lora):
    """A LoRA without the `directions` strongest output directions that each LoRA of `against` has in the same module.

    Modules that `of` or all of `against` lack, and vectors (biases, norms), stay as they are.
    """

    def __init__(self, of: Lora, against: Sequence[Lora], directions: int = 2):
        if not 1 <= len(against) <= MOST_AGAINST:
            raise PairError(f"Purify takes 1 to {MOST_AGAINST} LoRAs to remove, and got {len(against)}.")
        if not isinstance(directions, int) or isinstance(directions, bool) or directions < 1:
            raise RankError(f"directions is {directions}; it must be a whole number of at least 1, such as 2.")
        self.of, self.against, self.directions = of, tuple(against), directions
        self.specs, self.metadata = of.specs, of.metadata
        of.check_faults()
        for other in self.against:
            for name, fault in other.faults.items():
                if name in of:
                    raise fault
            _check_fits(of, other)
        self.warnings = tuple(dict.fromkeys([*of.warnings, *(line for other in against for line in other.warnings)]))
        self.touched = tuple(
            name for name in of.matrices if any(name in other and not other.specs[name].is_vector for other in against)
        )
        if not self.touched:
            raise PairError(
                f"{label(of)} and {' and '.join(label(other) for other in against)} change no module in common."
            )
        self._bases: dict[str, Tensor] = {}
        self._removed: dict[str, Removed] = {}  # of modules stored in full

    @property
    def parents(self) -> tuple[Lora, ...]:
        return (self.of, *self.against)

    @property
    def faults(self) -> Mapping[str, DiffLoraError]:
        return self.of.faults

    @property
    def files(self) -> tuple[StoredLora, ...]:
        return self.of.files  # the result is a version of these

    @property
    def made_from(self) -> tuple[str, ...]:
        return self.of.made_from

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {
            "op": "purify",
            "directions": self.directions,
            "of": self.of.describe(sha256),
            "against": [other.describe(sha256) for other in self.against],
        }

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        return self._read(modules, Workspace())

    def _read(self, modules: Sequence[str], workspace: Workspace) -> dict[str, Delta]:
        deltas = cache.read(self.of, modules, self.of.read)
        touched = set(self.touched)
        self._find_bases([name for name in modules if name in touched], workspace)
        return {name: self._purified(name, delta) if name in touched else delta for name, delta in deltas.items()}

    @property
    def before_projection(self) -> Lora:
        return self.of

    def projected_out(self, modules: Sequence[str], workspace: Workspace) -> Tensor | None:
        touched = set(self.touched)
        self._find_bases([name for name in modules if name in touched], workspace)
        none = torch.zeros(self.specs[modules[0]].out_features, 0, dtype=torch.float64)
        bases = [self._bases.get(name, none) for name in modules]
        most = max(basis.shape[1] for basis in bases)
        return torch.stack(
            [pad(basis, (0, most - basis.shape[1])) if basis.shape[1] < most else basis for basis in bases]
        )

    def stream(self, modules: Sequence[str], tick: Callable[[], None] = lambda: None) -> Iterator[tuple[str, Delta]]:
        # In workers of one thread each, so that the bits do not depend on the number of cores.
        with closing(in_parallel(self._read, batches(self.specs, modules))) as results:
            for group, deltas in results:
                tick()
                for name in group:
                    yield name, deltas.pop(name)

    def _purified(self, name: str, delta: Delta) -> Delta:
        if isinstance(delta, Vector):
            return delta
        basis = self._bases[name]
        terms = tuple(replace(term, up=_without(basis, term.up)) for term in delta.terms)
        if not isinstance(delta, Dense):
            return LowRank(terms, delta.shape)
        fulls = tuple((_without(basis, multiplied_out(full)), scale) for full, scale in delta.fulls)
        purified = Dense(fulls, terms, delta.shape)
        before, left = _energy(delta), _energy(purified)
        self._removed[name] = Removed(before, max(0.0, before - left))
        return purified

    def _find_bases(self, modules: Sequence[str], workspace: Workspace) -> None:
        """Orthonormal bases (out, at most j · len(against)) float64 of what is removed, for modules that lack one."""
        modules = [name for name in modules if name not in self._bases]
        found: dict[str, list[Tensor]] = {name: [] for name in modules}
        for other in self.against:
            mine = [name for name in modules if name in other and not other.specs[name].is_vector]
            for name, directions in _left_directions(other, mine, self.directions, workspace):
                found[name].append(directions)
        for name, parts in found.items():
            self._bases[name] = parts[0] if len(parts) == 1 else _orthonormal(torch.cat(parts, dim=1))

    def measure(self, progress: Progress | None = None) -> None:
        """Compute what is removed from each module, with progress, which may cancel. Spectra are kept for a re-rank.

        raises  PairError if nothing is left
        """
        total = len(self.touched)
        factored = [name for name in self.touched if not self.specs[name].dense]
        factorisation_of(self).run(factored, progress and (lambda done, _: progress(done, total)))
        for done, name in enumerate((name for name in self.touched if self.specs[name].dense), len(factored) + 1):
            self.read([name])
            if progress:
                progress(done, total)
        if self.share > 1 - NOISE:
            raise PairError(
                f"{label(self)}: nothing is left. All changes lie in the {self.directions} strongest directions of "
                f"{_listed(self.against)}. Remove fewer directions, or another LoRA."
            )

    @property
    def removed(self) -> Mapping[str, Removed]:
        """What was removed from each module that both sides have. Reads what has not been read yet."""
        return {name: self._removed_from(name) for name in self.touched}

    def _removed_from(self, name: str) -> Removed:
        if self.specs[name].dense:
            if name not in self._removed:
                self.read([name])
            return self._removed[name]
        factored = factorisation_of(self)[name]
        return Removed(factored.energy + factored.gone, factored.gone)

    @property
    def share(self) -> float:
        """Share of the energy that was removed, over all modules that both sides have, 0 to 1."""
        removed = self.removed.values()
        before = math.fsum(one.before for one in removed)
        return math.fsum(one.gone for one in removed) / before if before > 0 else 0.0

    @property
    def conclusions(self) -> list[Sentence]:
        """What a user should know about the result, one line each."""
        lines = []
        if self.share > MUCH:
            lines.append(
                Sentence(
                    "{0} of the slider was removed: it and what was removed mean much the same. Remove fewer directions.",
                    f"{self.share:.0%}",
                )
            )
        for other in self.against:
            if _row_likeness(self.of, other, self.touched) > SAME_ROWS:
                lines.append(
                    Sentence(
                        "The slider and {0} seem to have been trained from the same initial factors, so too much of the slider "
                        "is removed. Train one of them with another seed.",
                        label(other),
                    )
                )
        return lines


def purify(lora: Lora, against: Sequence[Lora], directions: int = 2) -> PurifiedLora:
    """`lora` without the `directions` strongest output directions of each LoRA of `against`, module by module.

    Lazy and exact, see the top of this file; the rank does not grow.

    against     one to four LoRAs of the same model, such as a colour LoRA or another slider
    directions  how many singular vectors of each are removed from a module; 2 to 4 is usual
    raises      PairError if base models or shapes differ, no module is in common, or a LoRA is removed from itself;
                RankError if `directions` is below 1
    """
    return PurifiedLora(lora, against, directions)


def independent(loras: Sequence[Lora], directions: int = 2, progress: Progress | None = None) -> list[Lora]:
    """Sliders that do not act in each other's strongest directions: each is purified of those before it, and scaled back
    to its original norm. The first is not changed.

    raises  PairError and RankError as `purify`, and PairError for fewer than two
    """
    if not 2 <= len(loras) <= MOST_AGAINST:
        raise PairError(
            f"There have to be 2 to {MOST_AGAINST} sliders to make independent, and there are {len(loras)}."
        )
    made: list[Lora] = [loras[0]]
    for place, lora in enumerate(loras[1:]):
        purified = purify(lora, made, directions)
        purified.measure(part_of(progress, place, len(loras) - 1))
        before = math.fsum(one.before for one in purified.removed.values())
        gone = math.fsum(one.gone for one in purified.removed.values())
        made.append(purified.scaled(math.sqrt(before / (before - gone))) if before > gone else purified)
    return made


def _check_fits(of: Lora, other: Lora) -> None:
    if same_content(of, other):
        raise PairError(
            f"{label(of)}: the slider and what is to be removed are the same, so nothing would be left. Choose another LoRA."
        )
    if of.base_model and other.base_model and of.base_model != other.base_model:
        raise PairError(
            f"Different base models: {label(of)} ({of.base_model}) and {label(other)} ({other.base_model}). Their directions "
            "have nothing to do with each other."
        )
    for name in of.matrices:
        if name in other and of.specs[name].out_features != other.specs[name].out_features:
            raise PairError(
                f"{name} has {of.specs[name].out_features} outputs in {label(of)} and {other.specs[name].out_features} in "
                f"{label(other)}: they were trained on different base models."
            )


def _listed(loras: Sequence[Lora]) -> str:
    return " and ".join(label(lora) for lora in loras)


def _left_directions(
    lora: Lora, modules: Sequence[str], most: int, workspace: Workspace
) -> Iterator[tuple[str, Tensor]]:
    """Orthonormal bases of the strongest output directions of modules, (out, at most `most`) float64."""
    specs = lora.specs
    for name in modules:
        if specs[name].dense:
            found = factorisation_of(lora).approximation(name, FixedRank(most), most, factors=True)
            yield name, _orthonormal(found.at(min(most, len(found.values)), specs[name].shape).up.double())
    small = sorted(
        (name for name in modules if not specs[name].dense), key=lambda name: (specs[name].shape, specs[name].ranks)
    )
    for _, run in itertools.groupby(small, key=lambda name: (specs[name].shape, specs[name].ranks)):
        group = list(run)
        stack = stacked(lora, group, workspace)
        rows, values = left_directions(stack, most)
        if not values.isfinite().all():
            for name in group:
                lora.check_finite(name)
        directions = rows.mT
        kept = (values > NOISE * values[:, :1]).sum(dim=1).tolist()
        exact = _are_orthonormal(directions).tolist()
        for i, name in enumerate(group):
            yield name, directions[i] if exact[i] else _orthonormal(directions[i, :, : kept[i]])


def _orthonormal(directions: Tensor) -> Tensor:
    """A basis of the span of unit columns, without directions that others span already: (out, rank) float64."""
    if _are_orthonormal(directions):
        return directions
    left, values, _ = torch.linalg.svd(directions, full_matrices=False)
    spanned: Tensor = left[:, values > NOISE * values.amax()] if values.numel() else left
    return spanned


def _are_orthonormal(columns: Tensor) -> Tensor:
    """Whether the columns of each matrix are; not if one is NaN."""
    products = columns.mT @ columns - torch.eye(columns.shape[-1], dtype=columns.dtype)
    return (products.abs() <= ORTHONORMAL).all(-1).all(-1)


def _without(basis: Tensor, up: Tensor) -> Tensor:
    """`up` (out, k) without its part in the span of `basis` (out, j), float32. Computed in float64 where it is small."""
    exact = up.shape[1] <= up.shape[0]
    left = up.to(torch.float64 if exact else torch.float32, copy=True)
    basis = basis.to(left.dtype)
    return left.addmm_(basis, basis.mT @ left, alpha=-1).float()


def _energy(delta: Delta) -> float:
    return float(torch.linalg.vector_norm(delta.dense(), dtype=torch.float64)) ** 2


def _row_likeness(one: Lora, other: Lora, modules: Sequence[str]) -> float:
    """How similar the row spaces of two LoRAs are: the mean principal cosine, over a few modules. 1 is the same space.

    The rows of a LoRA move little in training, so two that started alike are still alike.
    """
    modules = [name for name in modules if not (one.specs[name].dense or other.specs.get(name, one.specs[name]).dense)]
    chosen = [name for name in modules if name in other][:: max(1, len(modules) // LOOKED_AT)]
    cosines = []
    for name in chosen:
        rows = [torch.linalg.qr(stacked(lora, [name], Workspace()).down[0].mT).Q for lora in (one, other)]
        values = torch.linalg.svdvals(rows[0].mT @ rows[1])
        cosines.append(float(values.mean()))
    return sum(cosines) / len(cosines) if cosines else 0.0
