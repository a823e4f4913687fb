"""Exact re-ranking: the best approximation of a difference at a small rank, without ever forming the full matrix.

With the stacked factors U (out × k) and D (k × in), everything about ΔW = U D lives in k × k matrices:

    G_U = UᵀU = RᵀR,   G_D = D Dᵀ,   S = R G_D Rᵀ = W Σ² Wᵀ

Σ are the singular values of ΔW. The rank-r result needs only a mix of the stored factors,

    up = U · (G_D Rᵀ W_r Σ_r^-3/2),   down = (Σ_r^-1/2 W_rᵀ R) · D

which by Eckart & Young (1936) is the best possible. A and B are meant to be nearly collinear, so their Gram
matrices are nearly singular: they are accumulated in float64, a bound on their error is computed for every module,
and a module whose bound is too large is computed again by Householder QR of both factors, whose error is not
squared.
"""

from __future__ import annotations

import itertools
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

from ..errors import TensorError
from ..lora import cache
from ..lora.deltas import Dense, Kronecker, LowRank, Spec, Term
from ..lora.lora import Lora, batches
from ..lora.workspace import Workspace
from ..progress import Progress
from .krylov import Approximation, approximate, approximate_product, while_ticking
from .rules import RankRule

EPSILON = torch.finfo(torch.float64).eps
GRAM_TOLERANCE = 4e-7  # largest allowed error of a singular value on the fast path, as a share of the largest one
MAX_WORKERS = 8
LEAST_OF_DENSE = 16
MOST_OF_A_SIDE = 1024  # of a side of a Kronecker product that is decomposed by itself; takes a second or two
MIX_BUDGET = 192_000_000  # bytes of mixing columns kept between runs
DENSE_BUDGET = 640_000_000  # bytes of factors of modules stored in full, also kept: those of a 14B model at rank 32
LARGEST = 1e100  # a larger singular value means a damaged file, and its square would overflow


Result = TypeVar("Result")


@dataclass(frozen=True)
class Stack:
    """The factors of modules of one shape, side by side as stored: ``up · diag(scales) · down``, all float64.

    up (n, out, k), down (n, k, in), scales (n, k)
    gram_up, gram_down  (n, k, k): upᵀ up and down downᵀ, without the scales; None if nobody wants them
    basis               (n, out, j): columns, orthonormal or zero, whose span a projection takes out of `up`; None without one
    inside              (n, j, k): basisᵀ up. The large factor stays as it is: products of this with small matrices are
                        subtracted from what is made of it
    """

    up: Tensor
    down: Tensor
    scales: Tensor
    gram_up: Tensor | None = None
    gram_down: Tensor | None = None
    basis: Tensor | None = None
    inside: Tensor | None = None

    def projected_up(self, i: int) -> Tensor:
        """One module's `up` without the span of `basis`."""
        if self.basis is None or self.inside is None:
            return self.up[i]
        return torch.addmm(self.up[i], self.basis[i], self.inside[i], alpha=-1)


@dataclass(frozen=True)
class Factored:
    """One module's spectrum, and the columns that mix its stored factors into singular vectors.

    singular_values  (min(k, out, in),) float64, from large to small; values within rounding error of zero are zero
    mix_up           (k, kept): up = stacked up @ mix_up; the stacked factors are as stored, mix_up includes the scales
    mix_down         (kept, k): down = mix_down @ stacked down
    products         (terms, terms): inner products of the stacked terms, ⟨ΔW_s, ΔW_t⟩
    by_qr            whether the slow path was taken
    gone             squared norm of what a projection has removed
    """

    singular_values: Tensor
    mix_up: Tensor
    mix_down: Tensor
    products: Tensor
    by_qr: bool
    gone: float = 0.0

    @property
    def energy(self) -> float:
        """‖ΔW‖², the squared Frobenius norm."""
        return float(self.singular_values.square().sum())


@dataclass(frozen=True)
class _Spectra:
    """What `factor` and `left_directions` have in common, of modules of one shape.

    values      (n, min(k, out, in)) singular values; values that count as zero are zero, NaN where a factor is not finite
    vectors     (n, k, min(k, out, in)): the columns of W
    root        (n, k, k): R with RᵀR = gram_up
    gram_up     (n, k, k) with the scales and behind the projection
    gram_down   (n, k, k), zero where a factor is not finite
    gone        (n,) squared norms of what a projection has removed; None without one
    exact       of each module, whether the Gram matrices are exact enough
    """

    values: Tensor
    vectors: Tensor
    root: Tensor
    gram_up: Tensor
    gram_down: Tensor
    gone: Tensor | None
    exact: list[bool]


def _spectra(stack: Stack) -> _Spectra:
    up, down, scales = stack.up, stack.down, stack.scales
    most = min(up.shape[1], up.shape[2], down.shape[2])
    assert stack.gram_up is not None and stack.gram_down is not None
    gram_up, gram_down = stack.gram_up * scales[:, :, None] * scales[:, None, :], stack.gram_down
    largest = torch.linalg.vector_norm(gram_up, dim=(1, 2)) * torch.linalg.vector_norm(gram_down, dim=(1, 2))
    bound = 4 * EPSILON * largest
    gone = None
    if stack.inside is not None:  # ‖Q Qᵀ U V‖², and the Gram matrix of U − Q Qᵀ U
        inside = stack.inside * scales[:, None, :]
        gone = ((inside @ gram_down) * inside).sum(dim=(1, 2))
        gram_up -= inside.mT @ inside
    usable = torch.isfinite(largest)
    safe_up, safe_down = gram_up, gram_down
    if not usable.all():  # LAPACK would refuse
        safe_up, safe_down = (torch.where(usable[:, None, None], gram, 0.0) for gram in (gram_up, gram_down))
    root = _root(safe_up)
    core = root @ safe_down @ root.mT
    squares, vectors = _decomposed(torch.linalg.eigh, (core + core.mT) / 2)
    squares, vectors = squares.flip(-1)[:, :most], vectors.flip(-1)[:, :, :most]
    # A value whose square is within the error of the Gram matrices cannot be told from zero.
    squares = torch.where(squares > 4 * bound[:, None], squares, 0.0)
    values = squares.sqrt()
    # A square that counts as zero may have been as large as the limit plus its own error.
    error = torch.where(squares[:, -1] > 0, bound / squares[:, -1].sqrt(), (5 * bound).sqrt())
    exact = (error <= GRAM_TOLERANCE * values[:, 0]) | (bound == 0) | ~usable
    values[~usable] = torch.nan
    return _Spectra(values, vectors, root, gram_up, safe_down, gone, exact.tolist())


def factor(stack: Stack, ranks: Sequence[int]) -> list[Factored]:
    """Factor a batch of modules of one shape.

    ranks: how the k columns divide into terms. A NaN or Inf in a factor, or a square too large for float64, gives a NaN
    spectrum.
    """
    found, scales = _spectra(stack), stack.scales
    assert stack.gram_down is not None
    products = _block_sums(found.gram_up * stack.gram_down, ranks)
    inverse = torch.where(found.values > 0, found.values, torch.inf).rsqrt()
    mix_down = (inverse[:, :, None] * found.vectors.mT) @ found.root
    mix_up = scales[:, :, None] * (found.gram_down @ (mix_down.mT * inverse[:, None, :] ** 2))
    gone = [0.0] * len(scales) if found.gone is None else found.gone.tolist()
    parts = zip(found.values.unbind(), mix_up.unbind(), mix_down.unbind(), products.unbind(), strict=True)
    return [
        Factored(*each, by_qr=False, gone=gone[i])
        if found.exact[i]
        else _factor_by_qr(stack.projected_up(i), stack.down[i], scales[i], products[i], gone[i])
        for i, each in enumerate(parts)
    ]


def left_directions(stack: Stack, most: int) -> tuple[Tensor, Tensor]:
    """The first left singular vectors of modules of one shape, and nothing else of what `factor` finds.

    returns  (n, j, out), one vector a row, since matrix libraries are quicker with a few long rows; and their values
             (n, j), j ≤ most. The vector of a value that counts as zero is zero
    """
    found, scales = _spectra(stack), stack.scales
    values, vectors = found.values[:, :most].clone(), found.vectors[:, :, :most]
    inverse = torch.where(values > 0, values, torch.inf).reciprocal()
    mix = (vectors.mT @ found.root @ found.gram_down) * (inverse**2)[:, :, None] * scales[:, None, :]
    for i in (i for i, exact in enumerate(found.exact) if not exact):
        one = _factor_by_qr(stack.projected_up(i), stack.down[i], scales[i], scales.new_empty(0), 0.0)
        values[i] = one.singular_values[:most]
        mix[i] = (one.mix_up[:, :most] * values[i].clamp_min(0).rsqrt().nan_to_num(posinf=0.0)).mT
    return mix @ stack.up.mT, values


def _decomposed(decompose: Callable[[Tensor], Any], matrix: Tensor) -> Any:
    """The eigh or svd of a matrix. LAPACK fails on some whose entries are a hundred orders of magnitude apart."""
    try:
        return decompose(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        size = matrix.abs()
        return decompose(torch.where(size > EPSILON**2 * size.amax((-2, -1), keepdim=True), matrix, 0.0))


def _gram(factor: Tensor) -> Tensor:
    """factorᵀ factor, (k, k), from the panels on and below the diagonal; the others are their mirror images.

    The panels are as wide as the tiles of matrix libraries, 24 or twice that in float64. At k = 32 this
    takes 0.6 of the time of one product of 32 × 32, most of which is spent on the eight columns that do not fill a tile.
    """
    k = factor.shape[-1]
    width = 24 if k < 64 else 48
    if k <= width:
        return factor.mT @ factor
    gram = factor.new_empty(k, k)
    for start in range(0, k, width):
        panel = slice(start, start + width)
        gram[start:, panel] = factor[:, start:].mT @ factor[:, panel]
        gram[panel, start + width :] = gram[start + width :, panel].mT
    return gram


def _root(gram: Tensor) -> Tensor:
    """R with RᵀR = gram: Cholesky, or eigenvalues where the factor is rank-deficient."""
    lower, failed = torch.linalg.cholesky_ex(gram)
    root: Tensor = lower.mT
    if bool(failed.any()):
        squares, vectors = _decomposed(torch.linalg.eigh, gram[failed != 0])
        root[failed != 0] = squares.clamp_min(0).sqrt()[:, :, None] * vectors.mT
    return root


def _factor_by_qr(up: Tensor, down: Tensor, scales: Tensor, products: Tensor, gone: float) -> Factored:
    most = min(up.shape[0], up.shape[1], down.shape[1])
    root_up, root_down = torch.linalg.qr(up, mode="r").R * scales, torch.linalg.qr(down.mT, mode="r").R
    left, values, right = _decomposed(_thin_svd, root_up @ root_down.mT)
    # Householder's backward error. Equal factors with opposite signs leave this much, which is only rounding.
    floor = 64 * EPSILON * torch.linalg.matrix_norm(root_up) * torch.linalg.matrix_norm(root_down)
    values = torch.where(values > floor, values, 0.0)[:most]
    inverse = torch.where(values > 0, values, torch.inf).rsqrt()
    mix_down = inverse[:, None] * (left[:, :most].mT @ root_up)
    mix_up = scales[:, None] * (root_down.mT @ right[:most].mT) * inverse
    return Factored(values, mix_up, mix_down, products, True, gone)


def _thin_svd(matrix: Tensor) -> Any:
    return torch.linalg.svd(matrix, full_matrices=False)


def _block_sums(matrix: Tensor, ranks: Sequence[int]) -> Tensor:
    terms = torch.repeat_interleave(torch.eye(len(ranks), dtype=matrix.dtype), torch.tensor(ranks), dim=1)
    return terms @ matrix @ terms.mT


class Factorisation:
    """Everything known about the spectra of one LoRA's modules, kept between re-ranks.

    Singular values and certificates are always kept, so that energy and spectrum need no file again. Mixing columns are
    kept while they fit into MIX_BUDGET, the factors of modules stored in full while they fit into DENSE_BUDGET; the rest
    is computed again when a larger rank, or the factors, are needed.
    """

    def __init__(self, lora: Lora):
        # The LoRA owns this object. A weak reference, because a cycle would keep both in memory until the garbage collector runs.
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
        """A module that is stored in full, approximated as far as the rule needs, at most at rank `most`.

        The approximation is made at 16, 32, 64 … and cut, regardless of earlier calls: a result depends only on its own
        settings, and a smaller rank is the beginning of a larger one.

        factors  whether they are needed; without them, no module is computed twice
        """
        least = rule.least(most)
        rank = max(LEAST_OF_DENSE, 1 << (least - 1).bit_length())
        found = self._approximated(module, rank, tick)
        while rank < most and rule.needs_more(found.values, found.energy):
            rank *= 2
            found = self._approximated(module, rank, tick)
        return found if found.complete or not factors else self._approximated(module, rank, tick, factors)

    def _approximated(self, module: str, rank: int, tick: Callable[[], None], factors: bool = False) -> Approximation:
        known = self._approximations.setdefault(module, {})
        if rank not in known or (factors and not known[rank].complete):
            delta = self.lora[module]
            assert isinstance(delta, Dense)
            found = self._of_product(module, delta, rank, tick) or self._of_matrix(module, delta, rank, tick)
            known.update({other: one.without_factors() for other, one in known.items()})
            held = sum(one.bytes for ranks in self._approximations.values() for one in ranks.values())
            known[rank] = found if held + found.bytes <= DENSE_BUDGET else found.without_factors()
            return found
        return known[rank]

    def _of_matrix(self, module: str, delta: Dense, rank: int, tick: Callable[[], None]) -> Approximation:
        matrix = delta.dense().flatten(1)
        self._check_size(module, torch.linalg.vector_norm(matrix, float("inf")))
        return approximate(matrix, rank, tick)

    def _of_product(self, module: str, delta: Dense, rank: int, tick: Callable[[], None]) -> Approximation | None:
        """The approximation of a change that is one Kronecker product of small matrices; None for any other."""
        if delta.terms or len(delta.fulls) != 1 or not isinstance(product := delta.fulls[0][0], Kronecker):
            return None
        if max(min(product.left.shape), min(product.right.shape)) > MOST_OF_A_SIDE:
            return None
        scale = delta.fulls[0][1]
        sizes = [torch.linalg.vector_norm(side.double(), float("inf")) for side in (product.left, product.right)]
        self._check_size(module, sizes[0] * sizes[1] * abs(scale))
        return while_ticking(lambda: approximate_product(product, scale, rank), tick)

    @property
    def complete(self) -> bool:
        """Whether every matrix is factored, so that spectra and energy are known."""
        return all(name in self._known for name in self.lora.factored)

    @property
    def slow(self) -> int:
        """How many modules took the slow path so far."""
        return sum(factored.by_qr for factored in self._known.values())

    def run(self, modules: Sequence[str] | None = None, progress: Progress | None = None) -> None:
        """Factor these modules (all by default), unless that is done already."""
        modules = self.lora.factored if modules is None else modules
        todo = [name for name in modules if name not in self._known]
        done = len(modules) - len(todo)
        with closing(in_parallel(self._factor, self._groups(todo))) as results:
            for group, factored in results:
                self._keep(group, factored)
                done += len(group)
                if progress:
                    progress(done, len(modules))

    def mixed(self, modules: Sequence[str], specs: Mapping[str, Spec]) -> Iterator[tuple[str, LowRank]]:
        """The modules at their new ranks, factored on the way if necessary: one pass through the files."""

        def work(group: Sequence[str], workspace: Workspace) -> tuple[list[Factored] | None, list[LowRank]]:
            known = [
                one for name in group if (one := self._known.get(name)) and one.mix_up.shape[1] >= specs[name].rank
            ]
            is_known = len(known) == len(group)
            stack = self._stack(group, workspace, grams=not is_known)
            factored = None if is_known else factor(stack, self.lora.specs[group[0]].ranks)
            return factored, _mix(stack, factored or known, [specs[name] for name in group])

        with closing(in_parallel(work, self._groups(modules))) as results:
            for group, (factored, deltas) in results:
                if factored:
                    self._keep(group, factored)
                yield from zip(group, deltas, strict=True)

    def _groups(self, modules: Sequence[str]) -> Iterator[list[str]]:
        """Runs of modules of one shape, within the budget."""
        specs = self.lora.specs
        for _, run in itertools.groupby(modules, key=lambda name: (specs[name].shape, specs[name].ranks)):
            yield from batches(specs, list(run))

    def _factor(self, group: Sequence[str], workspace: Workspace) -> list[Factored]:
        return factor(self._stack(group, workspace), self.lora.specs[group[0]].ranks)

    def _stack(self, group: Sequence[str], workspace: Workspace, grams: bool = True) -> Stack:
        lora = self.lora
        basis = lora.projected_out(group, workspace)
        return stacked(lora.before_projection, group, workspace, grams, basis)

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
            raise TensorError(
                f"{module}: its values reach {float(value):.1g}, which no training makes: a file is damaged."
            )


def stacked(
    lora: Lora, group: Sequence[str], workspace: Workspace, grams: bool = True, basis: Tensor | None = None
) -> Stack:
    """Read modules of one shape and stack their factors, with what `Stack` says of them."""
    spec = lora.specs[group[0]]
    deltas = cache.read(lora, group, lora.read)
    up = workspace.take(0, (len(group), spec.out_features, spec.rank))
    down = workspace.take(1, (len(group), spec.rank, spec.in_features))
    scales, grams_up, grams_down, insides = [], [], [], []
    # One module after the other: what was just converted is in the fast part of the processor's cache.
    for i, name in enumerate(group):
        terms = deltas.pop(name).terms  # type: ignore[union-attr]
        # Side by side first, in the dtype of the file: rows of a few numbers are slow to convert.
        up[i].copy_(torch.cat([_addable(term.up) for term in terms], dim=1) if len(terms) > 1 else terms[0].up)
        if grams:
            grams_up.append(_gram(up[i]))
        if basis is not None:
            insides.append(basis[i].mT @ up[i])
        for rows, term in zip(torch.split(down[i], [term.rank for term in terms]), terms, strict=True):
            rows.copy_(term.down)
        if grams:
            grams_down.append(_gram(down[i].mT))
        scales.append([term.scale for term in terms for _ in range(term.rank)])
    return Stack(
        up,
        down,
        torch.tensor(scales, dtype=torch.float64),
        torch.stack(grams_up) if grams else None,
        torch.stack(grams_down) if grams else None,
        basis,
        torch.stack(insides) if basis is not None else None,
    )


def _addable(factor: Tensor) -> Tensor:
    """A dtype that torch can promote; it promotes none of the one-byte dtypes."""
    return factor.float() if factor.dtype.itemsize == 1 else factor


def in_parallel(
    work: Callable[[Sequence[str], Workspace], Result], groups: Iterator[list[str]]
) -> Generator[tuple[list[str], Result], None, None]:
    """Run ``work`` on every group, several at once; results in order.

    One torch thread per group instead of all threads for one group: the matrices are small, so this is nearly
    twice as fast, overlaps with reading files, and the bits do not depend on the number of cores. torch's own number of
    threads is restored at the end.
    """
    threads = torch.get_num_threads()
    workers = min(threads, MAX_WORKERS)
    workspaces: SimpleQueue[Workspace] = SimpleQueue()
    for _ in range(workers):
        workspaces.put(Workspace())

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


def _mix(stack: Stack, factored: Sequence[Factored], specs: Sequence[Spec]) -> list[LowRank]:
    """Modules of one shape at their new ranks, which may differ."""
    rank = max(spec.rank for spec in specs)
    # Both as a few long rows: matrix libraries take three times as long for a few long columns.
    downs = (torch.stack([one.mix_down[:rank] for one in factored]) @ stack.down).float()
    # A singular vector's sign is arbitrary: the largest entry of each row of `down` is positive.
    least, largest = torch.aminmax(downs, dim=2, keepdim=True)
    sign = torch.where(-least > largest, -1.0, 1.0)
    mix = torch.stack([one.mix_up[:, :rank].mT for one in factored]).mul_(sign)
    ups = mix @ stack.up.mT
    if stack.basis is not None and stack.inside is not None:
        ups.baddbmm_(mix @ stack.inside.mT, stack.basis.mT, alpha=-1)
    ups = ups.float()
    downs.mul_(sign)
    return [LowRank((Term(ups[i, : spec.rank].mT, downs[i, : spec.rank]),), spec.shape) for i, spec in enumerate(specs)]


def factorisation_of(lora: Lora) -> Factorisation:
    """The one factorisation that all re-ranks of a LoRA share; it lives as long as the LoRA."""
    found: Factorisation | None = lora.__dict__.get("_factorisation")
    if found is None:
        found = lora.__dict__["_factorisation"] = Factorisation(lora)
    return found
