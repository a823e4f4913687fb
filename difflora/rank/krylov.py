"""The best small rank of a matrix that is stored in full: randomised block Krylov iteration, with a certificate.

Musco & Musco (2015). Factored changes do not need this; their re-rank is exact. The iteration, which takes most of the
time, runs in float32; the basis is orthonormal in float64, and the reported numbers come from a final product in
float64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..lora.deltas import Kronecker, LowRank, Term

OVERSAMPLING = 8  # columns beyond the rank
TOLERANCE = 1e-3  # how far the error may be above the smallest possible one, as a share of it
MAX_STEPS = 24
MOST_EXACT = 8192  # longest smaller side of a matrix that may be decomposed whole if the iteration does not help
# An error below this share of ‖Δ‖, 1.9e-6, is what rounding to float32 does to the weights and to the factors.
ROUNDING = 16 * torch.finfo(torch.float32).eps
EPSILON = torch.finfo(torch.float64).eps
DOUBLE = (
    1e-2  # an error below this share of ‖Δ‖ lies in directions whose squares float32 may not hold beside the largest
)
NORMS = (1e-12, 1e12)  # of matrices whose squares, and what is far below them, float32 holds


@dataclass(frozen=True)
class Approximation:
    """The r largest singular triples of a matrix, as far as the iteration has found them.

    up (out, r), down (r, in)   float32, the singular values split evenly; the largest entry of each row of `down` is positive
    values (r,)                 singular values, from large to small, float64
    energy   ‖Δ‖², the squared Frobenius norm, exactly
    error    ‖Δ − up down‖, apart from the rounding of the two
    excess   by what share `error` can be above the smallest possible one: ``error <= max((1 + excess) smallest,
             ROUNDING ‖Δ‖)``. From the Ritz residuals ``‖(ΔΔᵀ − σ̃²) u‖`` of these and the next few. Assumes that none of
             the largest is missing among them: a random start misses one with probability zero.
    steps    of the iteration
    """

    up: Tensor
    down: Tensor
    values: Tensor
    energy: float
    error: float
    excess: float
    steps: int
    _squares: Tensor
    _residuals: Tensor

    @property
    def complete(self) -> bool:
        """Whether the factors are still kept."""
        return self.up.numel() > 0

    @property
    def bytes(self) -> int:
        return 4 * (self.up.numel() + self.down.numel())

    def without_factors(self) -> Approximation:
        """What reports need: a few hundred numbers."""
        return replace(self, up=torch.empty(0, len(self.values)), down=torch.empty(len(self.values), 0))

    def cut(self, rank: int) -> Approximation:
        """The same at a smaller rank, with the error and the certificate of that one."""
        error, excess = _certified(self._squares, self._residuals, rank, self.energy)
        return replace(
            self, up=self.up[:, :rank], down=self.down[:rank], values=self.values[:rank], error=error, excess=excess
        )

    @property
    def worst_cut(self) -> float:
        """The largest excess of any cut: that of the last one whose error is above ROUNDING."""
        above = self._squares.cumsum(0)[: len(self.values)] < (1 - ROUNDING**2) * self.energy
        return _certified(self._squares, self._residuals, int(above.sum()), self.energy)[1]

    def at(self, rank: int, shape: tuple[int, ...]) -> LowRank:
        """The best `rank` of these, as the change of a weight. Copies, so that the others need not stay in memory."""
        return LowRank((Term(self.up[:, :rank].clone(), self.down[:rank].clone()),), shape)


def approximate(matrix: Tensor, rank: int, tick: Callable[[], None] = lambda: None) -> Approximation:
    """Approximate `matrix` (out, in), float32 or float64, at `rank`.

    tick    called after every product with the matrix, and several times a second while it is decomposed whole; may raise
            to cancel
    """
    matrix = matrix.float() if matrix.dtype.itemsize < 4 else matrix
    rank = min(rank, *matrix.shape)
    energy = _energy(matrix)
    if energy == 0:  # a weight that was not trained
        none = torch.zeros(rank + 1, dtype=torch.float64)
        return Approximation(
            torch.zeros(len(matrix), rank),
            torch.zeros(rank, matrix.shape[1]),
            none[:rank],
            0.0,
            0.0,
            0.0,
            0,
            none,
            none,
        )
    if not NORMS[0] < math.sqrt(energy) < NORMS[1]:
        matrix = matrix.double()
    width = min(rank + OVERSAMPLING, *matrix.shape)
    # A fixed start: the same file gives the same result.
    start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    block = _orthonormal((matrix @ start).double())
    basis = block
    best: Approximation | None = None
    for steps in range(1, MAX_STEPS + 1):
        if basis.shape[1] + width > min(matrix.shape):
            break  # no more directions: another block would not be orthogonal to these
        tick()
        block = (matrix @ (matrix.mT @ block.to(matrix.dtype))).double()
        for _ in range(2):  # twice is enough (Kahan)
            block = block - basis @ (basis.mT @ block)
        block = _orthonormal(block)
        basis = torch.cat([basis, block], dim=1)
        if steps % 2 == 0 or basis.shape[1] + width > min(matrix.shape):
            best = _project(matrix, basis, rank, energy, steps, tick)
            if best.worst_cut <= TOLERANCE:
                return best
            if best.error < DOUBLE * math.sqrt(energy):
                matrix = matrix.double()
    if best is not None and min(matrix.shape) > MOST_EXACT:
        return best
    # Too many values for such a small side, or none that stand out: compute all of them.
    return while_ticking(lambda: _decompose(matrix, rank, energy, best.steps if best else 0), tick)


def approximate_product(product: Kronecker, scale: float, rank: int) -> Approximation:
    """The same for ``scale · left ⊗ right``, exactly: its singular triples are the products of those of the two sides."""
    (left, one, right), (left_2, other, right_2) = (
        torch.linalg.svd(side.double(), full_matrices=False) for side in (product.left, product.right)
    )
    rank = min(rank, len(left) * len(left_2), right.shape[1] * right_2.shape[1])
    found, order = torch.outer(one, other).flatten().mul_(abs(scale)).sort(descending=True, stable=True)
    squares = torch.zeros(rank + OVERSAMPLING, dtype=torch.float64)
    squares[: len(found)] = found[: len(squares)].square()
    first, second = order[:rank] // len(other), order[:rank] % len(other)
    values = squares[:rank].sqrt()
    root = values[: len(first)].sqrt()
    up = torch.zeros(len(left) * len(left_2), rank, dtype=torch.float64)
    down = torch.zeros(rank, right.shape[1] * right_2.shape[1], dtype=torch.float64)
    up[:, : len(first)] = (left[:, None, first] * left_2[None, :, second]).flatten(0, 1) * (
        root * math.copysign(1, scale)
    )
    down[: len(first)] = (right[first][:, :, None] * right_2[second][:, None]).flatten(1) * root[:, None]
    energy = float(scale**2 * one.square().sum() * other.square().sum())
    sign = torch.where(-down.amin(1, keepdim=True) > down.amax(1, keepdim=True), -1.0, 1.0)
    none = torch.zeros_like(squares)
    error, excess = _certified(squares, none, rank, energy)
    return Approximation((up * sign.T).float(), (down * sign).float(), values, energy, error, excess, 0, squares, none)


def _decompose(matrix: Tensor, rank: int, energy: float, steps: int) -> Approximation:
    whole = (
        torch.eye(len(matrix), dtype=torch.float64) if len(matrix) <= matrix.shape[1] else _orthonormal(matrix.double())
    )
    return _project(matrix, whole, rank, energy, steps, lambda: None)


def while_ticking(work: Callable[[], Approximation], tick: Callable[[], None]) -> Approximation:
    """Run ``work()`` and call `tick` several times a second. LAPACK cannot be stopped; after a cancel it runs to its end."""
    future: Future[Approximation] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while wait([future], 0.2).not_done:
        tick()
    return future.result()


def _project(
    matrix: Tensor, basis: Tensor, rank: int, energy: float, steps: int, tick: Callable[[], None]
) -> Approximation:
    """Rayleigh–Ritz on the basis, in float64."""
    exact = matrix.double()
    tick()
    small = basis.mT @ exact
    tick()
    squares, vectors = torch.linalg.eigh(small @ small.mT)
    # A few more than requested: the certificate needs the next values, and how accurate they are.
    kept = rank + OVERSAMPLING
    squares, vectors = squares.flip(0)[:kept].clamp_min(0), vectors.flip(1)[:, :kept]
    unscaled = vectors.mT @ small
    left = basis @ vectors
    residuals = torch.linalg.vector_norm(exact @ unscaled.mT - left * squares, dim=0)
    values = squares[:rank].sqrt()
    root = values.sqrt()
    up = (left[:, :rank] * root).float()
    down = (unscaled[:rank] / torch.where(root > 0, root, torch.inf)[:, None]).float()
    sign = torch.where(-down.amin(1, keepdim=True) > down.amax(1, keepdim=True), -1.0, 1.0)
    error, excess = _certified(squares, residuals, rank, energy)
    return Approximation(up * sign.T, down * sign, values, energy, error, excess, steps, squares, residuals)


def _certified(squares: Tensor, residuals: Tensor, rank: int, energy: float) -> tuple[float, float]:
    """The error at a rank, and its excess as `Approximation` has it: 0 for an error within ROUNDING, which is the other bound."""
    missed = max(0.0, energy - float(squares[:rank].sum()))
    # The squares are right to an EPSILON or two of the energy.
    floor = missed - _may_be_more(squares, residuals, rank) - 8 * EPSILON * energy
    excess = 0.0 if missed <= ROUNDING**2 * energy else math.sqrt(missed / floor) - 1 if floor > 0 else math.inf
    return math.sqrt(missed), excess


def _may_be_more(squares: Tensor, residuals: Tensor, rank: int) -> float:
    """By how much the sum of the `rank` largest eigenvalues of ΔΔᵀ can exceed that of the squares found.

    Each may be larger by its residual; nearly equal ones, whose vectors are still mixed, by up to twice that, and the later
    one may be the larger one. The sum of the largest upper ends is therefore a bound. Values far above the rest, for which
    float32 leaves large residuals, have a better one (Mathias 1998): decoupling k vectors from what ΔΔᵀ is on the others
    moves no eigenvalue by more than ``‖R‖² / gap``, with R their residuals. The smallest bound over k is used.

    squares, residuals    of the values found, from large to small, and of some of the next ones, if there are any
    """
    ends = squares + 2 * residuals
    best = float((ends.sort(descending=True).values - squares)[:rank].sum())
    # Beyond the rank, too, so that the bound of a cut is never above that of the whole.
    for k in range(1, len(squares)):
        others = float(torch.linalg.vector_norm(residuals[k:]))
        gap = float(squares[k - 1]) - float(squares[k]) - others
        if gap > 0:
            left = (ends[k:].sort(descending=True).values - squares[k:])[: max(0, rank - k)]
            best = min(best, rank * float(residuals[:k].square().sum()) / gap + float(left.sum()))
    return best


def _orthonormal(block: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(block).Q
    return basis


def _energy(matrix: Tensor) -> float:
    return math.fsum(float(matrix[row : row + 512].double().square().sum()) for row in range(0, len(matrix), 512))
