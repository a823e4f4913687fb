"""Exact re-ranking: the best approximation of a difference at a small rank, without ever forming the full matrix.

With the stacked factors U (out × k) and D (k × in), everything about ΔW = U D lives in k × k matrices:

    G_U = UᵀU = RᵀR,   G_D = D Dᵀ,   S = R G_D Rᵀ = W Σ² Wᵀ

Σ are the singular values of ΔW. The rank-r result needs only a mix of the stored factors,

    up = U · (G_D Rᵀ W_r Σ_r^-3/2),   down = (Σ_r^-1/2 W_rᵀ R) · D

which by Eckart & Young (1936) is the best there is. A and B are meant to be nearly collinear, so their Gram
matrices are nearly singular: they are accumulated in float64, a bound on their error is computed for every module,
and a module for which that bound is too large is done again by Householder QR of both factors, whose error is not
squared.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor

from .deltas import Delta, LowRank, Spec, Term
from .errors import PairError, RankError, TensorError
from .extract import CheckpointDifference
from .krylov import Approximation, approximate
from .lora import CombinedLora, Lora, Recipe, SelectedLora, batches, label
from .storage import FileIdentity, Progress

EPSILON = torch.finfo(torch.float64).eps
GRAM_TOLERANCE = 4e-7  # largest error of a singular value, as a share of the largest one, that the fast path may make
MAX_WORKERS = 8
MOST_OF_DENSE = 256  # singular values of a module stored in full, for the knee
LEAST_OF_DENSE = 16
MIX_BUDGET = 192_000_000  # bytes of mixing columns kept between runs
DENSE_BUDGET = 640_000_000  # bytes of factors of modules stored in full, kept likewise: a 14B model's at rank 32
# Energy that rounding leaves of equal products of different float32 factors, as a share of what was added up.
ROUNDING = (4 * torch.finfo(torch.float32).eps) ** 2
# Singular values below this share of the largest one are the rounding of float32 factors: measured, 4e-8 where A is as
# large as the difference, and 4e-7 where it is ten times as large.
NOISE = 1e-6
LARGEST = 1e100  # a singular value beyond this is damage, and its square would overflow


Result = TypeVar("Result")


@dataclass(frozen=True)
class FixedRank:
    """Keep this many singular values in every module."""

    rank: int

    def __post_init__(self) -> None:
        _check_count("rank", self.rank)

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


def _check_count(name: str, number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise RankError(f"The {name} is {number}; it must be a whole number of at least 1.")


@dataclass(frozen=True)
class Factored:
    """One module's spectrum, and the columns that mix its stored factors into singular vectors.

    singular_values  (min(k, out, in),) float64, from large to small; what rounding cannot tell from zero is zero
    mix_up           (k, kept): up = stacked up @ mix_up, where the stacked factors are as stored and the scales in here
    mix_down         (kept, k): down = mix_down @ stacked down
    products         (terms, terms): inner products of the stacked terms, ⟨ΔW_s, ΔW_t⟩
    by_qr            whether the slow path was taken
    """

    singular_values: Tensor
    mix_up: Tensor
    mix_down: Tensor
    products: Tensor
    by_qr: bool

    @property
    def energy(self) -> float:
        """‖ΔW‖², the squared Frobenius norm."""
        return float(self.singular_values.square().sum())


def factor(up: Tensor, down: Tensor, scales: Tensor, ranks: Sequence[int]) -> list[Factored]:
    """Factor a batch of modules of one shape: ``up · diag(scales) · down``.

    up (batch, out, k), down (batch, k, in), scales (batch, k), all float64; ranks: how the k columns divide into terms.
    A NaN or Inf in a factor, or a square too large for float64, comes out as a NaN spectrum.
    """
    most = min(up.shape[1], up.shape[2], down.shape[2])
    gram_up, gram_down = _gram(up).mul_(scales[:, :, None]).mul_(scales[:, None, :]), _gram(down.mT)
    products = _block_sums(gram_up * gram_down, ranks)
    largest = torch.linalg.vector_norm(gram_up, dim=(1, 2)) * torch.linalg.vector_norm(gram_down, dim=(1, 2))
    bound = 4 * EPSILON * largest
    usable = torch.isfinite(largest)
    if not usable.all():  # LAPACK would refuse
        gram_up, gram_down = (torch.where(usable[:, None, None], gram, 0.0) for gram in (gram_up, gram_down))
    root = _root(gram_up)
    core = root @ gram_down @ root.mT
    squares, vectors = _decomposed(torch.linalg.eigh, (core + core.mT) / 2)
    squares, vectors = squares.flip(-1)[:, :most], vectors.flip(-1)[:, :, :most]
    # A value whose square is within the error of the Gram matrices is not told from zero.
    squares = torch.where(squares > 4 * bound[:, None], squares, 0.0)
    values = squares.sqrt()
    inverse = torch.where(values > 0, values, torch.inf).rsqrt()
    mix_down = (inverse[:, :, None] * vectors.mT) @ root
    mix_up = scales[:, :, None] * (gram_down @ (mix_down.mT * inverse[:, None, :] ** 2))

    # A square that counts as zero may have been as large as the limit and its own error together.
    error = torch.where(squares[:, -1] > 0, bound / squares[:, -1].sqrt(), (5 * bound).sqrt())
    exact_enough = (error <= GRAM_TOLERANCE * values[:, 0]) | (bound == 0) | ~usable
    values[~usable] = torch.nan
    found = zip(values.unbind(), mix_up.unbind(), mix_down.unbind(), products.unbind(), strict=True)
    return [
        Factored(*parts, by_qr=False) if fast else _factor_by_qr(up[i], down[i], scales[i], products[i])
        for i, (parts, fast) in enumerate(zip(found, exact_enough.tolist(), strict=True))
    ]


def _decomposed(decompose: Callable[[Tensor], Any], matrix: Tensor) -> Any:
    """What eigh or svd makes of a matrix. LAPACK gives up on some whose entries are a hundred orders of magnitude apart."""
    try:
        return decompose(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        size = matrix.abs()
        return decompose(torch.where(size > EPSILON**2 * size.amax((-2, -1), keepdim=True), matrix, 0.0))


def _gram(factor: Tensor) -> Tensor:
    """factorᵀ factor, (batch, k, k), from the panels on and below the diagonal: the others mirror them.

    The panels are as wide as the tiles that matrix libraries compute in, 24 or twice that in float64. At k = 32 this
    takes 0.6 of the time of one product of 32 × 32, most of which is spent on the eight columns that fill no tile.
    """
    k = factor.shape[-1]
    width = 24 if k < 64 else 48
    gram = factor.new_empty(len(factor), k, k)
    for start in range(0, k, width):
        panel = slice(start, start + width)
        gram[:, start:, panel] = factor[..., start:].mT @ factor[..., panel]
        gram[:, panel, start + width :] = gram[:, start + width :, panel].mT
    return gram


def _root(gram: Tensor) -> Tensor:
    """R with RᵀR = gram: Cholesky, or eigenvalues where the factor is rank-deficient."""
    lower, failed = torch.linalg.cholesky_ex(gram)
    root: Tensor = lower.mT
    if bool(failed.any()):
        squares, vectors = _decomposed(torch.linalg.eigh, gram[failed != 0])
        root[failed != 0] = squares.clamp_min(0).sqrt()[:, :, None] * vectors.mT
    return root


def _factor_by_qr(up: Tensor, down: Tensor, scales: Tensor, products: Tensor) -> Factored:
    most = min(up.shape[0], up.shape[1], down.shape[1])
    root_up, root_down = torch.linalg.qr(up, mode="r").R * scales, torch.linalg.qr(down.mT, mode="r").R
    left, values, right = _decomposed(_thin_svd, root_up @ root_down.mT)
    # Householder's backward error. Equal factors with opposite signs leave this much, and it means nothing.
    floor = 64 * EPSILON * torch.linalg.matrix_norm(root_up) * torch.linalg.matrix_norm(root_down)
    values = torch.where(values > floor, values, 0.0)[:most]
    inverse = torch.where(values > 0, values, torch.inf).rsqrt()
    mix_down = inverse[:, None] * (left[:, :most].mT @ root_up)
    mix_up = scales[:, None] * (root_down.mT @ right[:most].mT) * inverse
    return Factored(values, mix_up, mix_down, products, True)


def _thin_svd(matrix: Tensor) -> Any:
    return torch.linalg.svd(matrix, full_matrices=False)


def _block_sums(matrix: Tensor, ranks: Sequence[int]) -> Tensor:
    terms = torch.repeat_interleave(torch.eye(len(ranks), dtype=matrix.dtype), torch.tensor(ranks), dim=1)
    return terms @ matrix @ terms.mT


class Factorisation:
    """All that is known of the spectra of one LoRA's modules, kept between re-ranks of it.

    Singular values are always kept, so that energy and spectrum read no file again, and certificates. Mixing columns are
    kept while they fit into MIX_BUDGET, the factors of modules stored in full while they fit into DENSE_BUDGET; beyond
    it they are worked out again when a larger rank is asked for, or the factors.
    """

    def __init__(self, lora: Lora):
        # The LoRA owns this. Weak, because a circle would keep both in memory until Python looks for circles.
        self._lora = weakref.ref(lora)
        self._known: dict[str, Factored] = {}
        self._approximations: dict[str, dict[int, Approximation]] = {}  # module -> rank it was made at -> approximation
        self._columns = sum(lora.specs[name].rank for name in lora.factored)

    @property
    def lora(self) -> Lora:
        lora = self._lora()
        if lora is None:
            raise ReferenceError("the LoRA of this factorisation is gone")
        return lora

    def __getitem__(self, module: str) -> Factored:
        if module not in self._known:
            self.run([module])
        return self._known[module]

    def approximation(
        self, module: str, rule: RankRule, most: int, tick: Callable[[], None] = lambda: None, factors: bool = False
    ) -> Approximation:
        """A module that is stored in full, approximated as far as the rule needs, which is not above `most`.

        The approximation is made at 16, 32, 64 … and cut, whatever was asked before: a result depends on its own settings
        alone, and a smaller rank is the beginning of a larger one.

        factors  whether they are needed; without them, no module is worked out twice
        """
        least = most if isinstance(rule, Knee) else min(most, rule.rank) if isinstance(rule, FixedRank) else 1
        rank = max(LEAST_OF_DENSE, 1 << (least - 1).bit_length())
        found = self._approximated(module, rank, tick)
        while rank < most and rule.needs_more(found.values, found.energy):
            rank *= 2
            found = self._approximated(module, rank, tick)
        return found if found.complete or not factors else self._approximated(module, rank, tick, factors)

    def _approximated(self, module: str, rank: int, tick: Callable[[], None], factors: bool = False) -> Approximation:
        known = self._approximations.setdefault(module, {})
        if rank not in known or (factors and not known[rank].complete):
            matrix = self.lora[module].dense().flatten(1)
            self._check_size(module, torch.linalg.vector_norm(matrix, float("inf")))
            found = approximate(matrix, rank, tick)
            known.update({other: one.without_factors() for other, one in known.items()})
            held = sum(one.bytes for ranks in self._approximations.values() for one in ranks.values())
            known[rank] = found if held + found.bytes <= DENSE_BUDGET else found.without_factors()
            return found
        return known[rank]

    @property
    def complete(self) -> bool:
        """Whether every matrix is factored, so that spectra and energy are known."""
        return all(name in self._known for name in self.lora.factored)

    @property
    def slow(self) -> int:
        """How many modules took the slow path so far."""
        return sum(factored.by_qr for factored in self._known.values())

    def run(self, modules: Sequence[str] | None = None, progress: Progress | None = None) -> None:
        """Factor these modules (all by default), unless they are known already."""
        modules = self.lora.factored if modules is None else modules
        todo = [name for name in modules if name not in self._known]
        done = len(modules) - len(todo)
        with closing(_in_parallel(self._factor, self._groups(todo))) as results:
            for group, factored in results:
                self._keep(group, factored)
                done += len(group)
                if progress:
                    progress(done, len(modules))

    def mixed(self, modules: Sequence[str], specs: Mapping[str, Spec]) -> Iterator[tuple[str, LowRank]]:
        """The modules at their new ranks, factored on the way if need be: one pass through the files."""

        def work(group: Sequence[str], workspace: _Workspace) -> tuple[list[Factored] | None, list[LowRank]]:
            up, down, scales = self._stack(group, workspace)
            known = [one for name in group if (one := self._known.get(name))
                     and one.mix_up.shape[1] >= specs[name].rank]
            factored = None if len(known) == len(group) else factor(up, down, scales, self.lora.specs[group[0]].ranks)
            return factored, _mix(up, down, factored or known, [specs[name] for name in group])

        with closing(_in_parallel(work, self._groups(modules))) as results:
            for group, (factored, deltas) in results:
                if factored:
                    self._keep(group, factored)
                yield from zip(group, deltas, strict=True)

    def _groups(self, modules: Sequence[str]) -> Iterator[list[str]]:
        """Runs of modules of one shape, within the budget."""
        specs = self.lora.specs
        for _, run in itertools.groupby(modules, key=lambda name: (specs[name].shape, specs[name].ranks)):
            yield from batches(specs, list(run))

    def _factor(self, group: Sequence[str], workspace: _Workspace) -> list[Factored]:
        return factor(*self._stack(group, workspace), self.lora.specs[group[0]].ranks)

    def _stack(self, group: Sequence[str], workspace: _Workspace) -> tuple[Tensor, Tensor, Tensor]:
        """Read modules of one shape and stack their factors as stored: up (n, out, k), down (n, k, in), scales (n, k)."""
        spec = self.lora.specs[group[0]]
        deltas = self.lora.read(group)
        terms = [deltas.pop(name).terms for name in group]  # type: ignore[union-attr]
        up = workspace.take(0, (len(group), spec.out_features, spec.rank))
        down = workspace.take(1, (len(group), spec.rank, spec.in_features))
        # Side by side first, in the dtype of the file: rows of a few numbers are slow to convert.
        up.flatten(0, 1).copy_(torch.cat([torch.cat([_addable(term.up) for term in module], dim=1) for module in terms]))
        down.flatten(0, 1).copy_(torch.cat([_addable(term.down) for module in terms for term in module]))
        scales = [[term.scale for term in module for _ in range(term.rank)] for module in terms]
        return up, down, torch.tensor(scales, dtype=torch.float64)

    def _keep(self, group: Sequence[str], factored: Sequence[Factored]) -> None:
        kept = max(1, MIX_BUDGET // (16 * self._columns))
        for name, one in zip(group, factored, strict=True):
            self._check_size(name, one.singular_values[0])
            if kept < one.mix_up.shape[1]:
                one = replace(one, mix_up=one.mix_up[:, :kept].clone(), mix_down=one.mix_down[:kept].clone())
            self._known[name] = one

    def _check_size(self, module: str, value: Tensor) -> None:
        """`value` is the module's largest, or NaN where a factor is not finite."""
        if not float(value) < LARGEST:
            self.lora.check_finite(module)
            raise TensorError(f"{module}: its values reach {float(value):.1g}, which no training makes: a file is damaged.")


def _addable(factor: Tensor) -> Tensor:
    """A dtype that torch promotes to another; it does not with those of one byte."""
    return factor.float() if factor.dtype.itemsize == 1 else factor


class _Workspace:
    """Memory for the stacked factors, used again for every batch: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(0, dtype=torch.float64)] * 2

    def take(self, which: int, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        if self._buffers[which].numel() < size:
            self._buffers[which] = torch.empty(size, dtype=torch.float64)
        return self._buffers[which][:size].view(shape)


def _in_parallel(
    work: Callable[[Sequence[str], _Workspace], Result], groups: Iterator[list[str]]
) -> Generator[tuple[list[str], Result], None, None]:
    """``work`` on every group, several at once, results in order.

    One thread of torch for each group instead of all threads for one: the matrices are small, so this is nearly
    twice as fast, it reads files meanwhile, and the bits do not depend on the number of cores. torch's own number of
    threads is put back at the end.
    """
    threads = torch.get_num_threads()
    workers = min(threads, MAX_WORKERS)
    workspaces: SimpleQueue[_Workspace] = SimpleQueue()
    for _ in range(workers):
        workspaces.put(_Workspace())

    def run(group: list[str]) -> Result:
        workspace = workspaces.get()
        try:
            return work(group, workspace)
        finally:
            workspaces.put(workspace)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            pending: deque[tuple[list[str], Future[Result]]] = deque()
            for group in groups:
                pending.append((group, pool.submit(run, group)))
                if len(pending) > 2 * workers:  # so that nobody waits while a result is written
                    group, future = pending.popleft()
                    yield group, future.result()
            while pending:
                group, future = pending.popleft()
                yield group, future.result()
    finally:
        torch.set_num_threads(threads)


def _mix(up: Tensor, down: Tensor, factored: Sequence[Factored], specs: Sequence[Spec]) -> list[LowRank]:
    """Modules of one shape at their new ranks, which may differ."""
    rank = max(spec.rank for spec in specs)
    # Both as a few long rows: matrix libraries take three times as long for a few long columns.
    downs = (torch.stack([one.mix_down[:rank] for one in factored]) @ down).float()
    # A singular vector's sign is arbitrary: the largest entry of each row of `down` is positive.
    least, largest = torch.aminmax(downs, dim=2, keepdim=True)
    sign = torch.where(-least > largest, -1.0, 1.0)
    ups = (torch.stack([one.mix_up[:, :rank].mT for one in factored]).mul_(sign) @ up.mT).float()
    downs.mul_(sign)
    return [LowRank((Term(ups[i, : spec.rank].mT, downs[i, : spec.rank]),), spec.shape) for i, spec in enumerate(specs)]


class RerankedLora(Lora):
    """Another LoRA's matrices at the ranks that a rule chooses; vectors stay as they are."""

    def __init__(self, of: Lora, rule: RankRule, max_rank: int | None = None):
        if max_rank is not None:
            _check_count("max rank", max_rank)
        self.of, self.rule, self.max_rank = of, rule, max_rank
        self.metadata, self.warnings = of.metadata, of.warnings
        self.factorisation = factorisation_of(of)
        self._specs: dict[str, Spec] | None = None

    @property
    def specs(self) -> Mapping[str, Spec]:  # type: ignore[override]
        if self._specs is None:
            if not isinstance(self.rule, FixedRank):
                self.factorisation.run()
            self._specs = {name: spec if spec.is_vector else Spec(spec.shape, (self._rank(name, spec),))
                           for name, spec in self.of.specs.items()}
        return self._specs

    def _rank(self, name: str, spec: Spec) -> int:
        most = min(spec.rank, spec.out_features, spec.in_features, self.max_rank or spec.rank)
        if isinstance(self.rule, FixedRank):
            return min(self.rule.rank, most)
        return max(1, min(self.rule.count(self.spectrum(name), self.total_energy(name)), most))

    def _approximation(
        self, name: str, tick: Callable[[], None] = lambda: None, factors: bool = False
    ) -> Approximation:
        spec = self.of.specs[name]
        most = min(spec.rank, self.max_rank or (MOST_OF_DENSE if isinstance(self.rule, Knee) else spec.rank))
        if isinstance(self.rule, FixedRank):
            most = min(most, self.rule.rank)
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

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {"op": "rerank", "rule": self.rule.recipe, "max_rank": self.max_rank, "of": self.of.describe(sha256)}

    @property
    def prepared(self) -> bool:
        return isinstance(self.rule, FixedRank) or self._specs is not None

    def prepare(self, progress: Progress | None = None) -> None:
        """Do now what the ranks depend on.

        raises  PairError if it turns out that nothing is left, see `check_something_left`
        """
        total = len(self.matrices)
        check_models_differ(self, _tick(progress, 0, total))
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

        All of them; of a module that is stored in full, those that have been worked out.
        """
        return self._approximation(module).values if self.of.specs[module].dense else (
            self.factorisation[module].singular_values)

    def module_energy(self, module: str) -> float:
        """Share of the module's energy that its rank retains; 1 for a module that does not change."""
        total = self.total_energy(module)
        return min(1.0, self._kept(module) / total) if total > 0 else 1.0

    def _kept(self, module: str) -> float:
        return float(self.spectrum(module).square()[: self.specs[module].rank].sum())

    @property
    def retained_energy(self) -> float:
        """Share of the whole energy, over all matrices, that is retained: Σ kept σ² / Σ σ²."""
        self.factorisation.run()
        total = math.fsum(self.total_energy(name) for name in self.matrices)
        return min(1.0, math.fsum(self._kept(name) for name in self.matrices) / total) if total > 0 else 1.0


def check_something_left(lora: Lora) -> None:
    """Raise PairError if a sum of LoRAs is zero in every module, but for the rounding of float32 factors.

    Modules are looked at until one is not zero, which as a rule is the first. A LoRA that is no sum may be zero.
    """
    made = _made_of(lora)
    total = made[-1]
    if not isinstance(total, CombinedLora):
        return
    known = [one.factorisation for one in made if isinstance(one, RerankedLora)]
    factorisation = known[-1] if known else factorisation_of(total)
    left = _left(made)
    # Whole matrices last: only they take time.
    if all(_is_nothing(total, name, factorisation) for name in sorted(left, key=lambda name: total.specs[name].dense)):
        raise PairError(f"{label(total)}: the result is zero in every module, but for rounding. Choose the two sides of a "
                        "pair, modules in which they differ, or weights other than zero.")


def check_models_differ(lora: Lora, tick: Callable[[], None] = lambda: None) -> None:
    """Raise PairError if what is left of two checkpoints is alike in both, before minutes are spent on zeros.

    Weights are read until one differs, which as a rule is the first.
    tick    called after each; may raise to cancel
    """
    made = _made_of(lora)
    models = made[-1]
    if not isinstance(models, CheckpointDifference):
        return
    for name in _left(made):
        if models.differ_in(name):
            return
        tick()
    raise PairError(f"{label(models)} hold the same weights, at least where they were chosen: their difference is zero. Choose a "
                    "fine-tuned model and the one that it was made from.")


def _made_of(lora: Lora) -> list[Lora]:
    """What was made of what, up to the first that was made of several, or of none."""
    made = [lora]
    while len(made[-1].parents) == 1:
        made.append(made[-1].parents[0])
    return made


def _left(made: Sequence[Lora]) -> list[str]:
    """The modules of the first that no selection on the way has written as zeros."""
    selected = [one.weights for one in made if isinstance(one, SelectedLora)]
    return [name for name in made[0] if all(name in weights for weights in selected)]


def _is_nothing(total: CombinedLora, name: str, factorisation: Factorisation) -> bool:
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


def factorisation_of(lora: Lora) -> Factorisation:
    """The one factorisation that all re-ranks of a LoRA share; it lives as long as the LoRA."""
    found: Factorisation | None = lora.__dict__.get("_factorisation")
    if found is None:
        found = lora.__dict__["_factorisation"] = Factorisation(lora)
    return found


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
        result.prepare(progress)
    return result
