"""The best small rank of a matrix that is stored in full: randomised block Krylov iteration, with a certificate.

Musco & Musco (2015). Factored changes never come here; their re-rank is exact without it. The iteration runs in
float32, where the time goes; the basis is orthonormal in float64, and the numbers that are reported come from one last
product in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .deltas import LowRank, Term

OVERSAMPLING = 8  # columns beyond the rank
TOLERANCE = 1e-3  # how far above the smallest possible error the result may be, as a share of it
MAX_STEPS = 24
MOST_EXACT = 8192  # the smaller side of matrices that may be decomposed whole where the iteration is of no use


@dataclass(frozen=True)
class Approximation:
    """The r largest singular triples of a matrix, as far as the iteration has found them.

    left (out, r), values (r,), right (r, in), float64
    energy   ‖Δ‖², the squared Frobenius norm, exactly
    error    ‖Δ − left values right‖
    excess   by what share `error` can be above the smallest possible one, by the Ritz residuals ``‖(ΔΔᵀ − σ̃²) u‖``. It
             takes the values found for the largest: a random start misses one with probability zero.
    steps    of the iteration
    """

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float
    error: float
    excess: float
    steps: int
    _squares: Tensor
    _residuals: Tensor

    @property
    def complete(self) -> bool:
        """Whether the vectors are still here."""
        return self.left.numel() > 0

    @property
    def bytes(self) -> int:
        return 8 * (self.left.numel() + self.right.numel())

    def without_vectors(self) -> Approximation:
        return replace(self, left=self.left[:0], right=self.right[:, :0])

    def cut(self, rank: int) -> Approximation:
        """The same at a smaller rank, with the error and the certificate of that one."""
        error, excess = _certified(self._squares, self._residuals, rank, self.energy)
        return replace(self, left=self.left[:, :rank], values=self.values[:rank], right=self.right[:rank], error=error,
                       excess=excess)

    def at(self, rank: int, shape: tuple[int, ...]) -> LowRank:
        """The best `rank` of these, the singular values split evenly; the largest entry of each row is positive."""
        root = self.values[:rank].sqrt()
        up, down = (self.left[:, :rank] * root).float(), (self.right[:rank] * root[:, None]).float()
        sign = torch.where(-down.amin(1, keepdim=True) > down.amax(1, keepdim=True), -1.0, 1.0)
        return LowRank((Term(up * sign.T, down * sign),), shape)


def approximate(matrix: Tensor, rank: int, tick: Callable[[], None] = lambda: None) -> Approximation:
    """Approximate `matrix` (out, in), float32 or float64, at `rank`.

    tick    called after every product with the matrix; may raise to cancel
    """
    matrix = matrix.float() if matrix.dtype.itemsize < 4 else matrix
    rank = min(rank, *matrix.shape)
    energy = _energy(matrix)
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
            if best.excess <= TOLERANCE:
                return best
    if best is not None and min(matrix.shape) > MOST_EXACT:
        return best
    # Too many values for so small a side, or none that stand out: all of them, then.
    tick()
    whole = torch.eye(len(matrix), dtype=torch.float64) if len(matrix) <= matrix.shape[1] else _orthonormal(matrix.double())
    return _project(matrix, whole, rank, energy, best.steps if best else 0, tick)


def _project(
    matrix: Tensor, basis: Tensor, rank: int, energy: float, steps: int, tick: Callable[[], None]
) -> Approximation:
    """Rayleigh–Ritz on the basis, in float64."""
    exact = matrix.double()
    tick()
    small = basis.mT @ exact
    tick()
    squares, vectors = torch.linalg.eigh(small @ small.mT)
    # One more than asked for: the certificate needs to know what comes next.
    squares, vectors = squares.flip(0)[: rank + 1].clamp_min(0), vectors.flip(1)[:, : rank + 1]
    unscaled = vectors.mT @ small
    left = basis @ vectors
    residuals = torch.linalg.vector_norm(exact @ unscaled.mT - left * squares, dim=0)
    values = squares[:rank].sqrt()
    left, right = left[:, :rank], unscaled[:rank] / torch.where(values > 0, values, torch.inf)[:, None]
    error, excess = _certified(squares, residuals, rank, energy)
    return Approximation(left, values, right, energy, error, excess, steps, squares, residuals)


def _certified(squares: Tensor, residuals: Tensor, rank: int, energy: float) -> tuple[float, float]:
    """The error at a rank, and by what share it can be above the smallest possible one."""
    missed = max(0.0, energy - float(squares[:rank].sum()))
    floor = max(0.0, missed - _may_be_more(squares, residuals, rank))
    # What is left is the rounding of the float32 weights themselves: there is nothing to gain.
    rounding = (4 * torch.finfo(torch.float32).eps) ** 2 * energy
    excess = 0.0 if missed <= rounding else math.sqrt(missed / floor) - 1 if floor > 0 else math.inf
    return math.sqrt(missed), excess


def _may_be_more(squares: Tensor, residuals: Tensor, rank: int) -> float:
    """By how much the sum of the `rank` largest eigenvalues of ΔΔᵀ can exceed that of the squares found.

    The sum of their residuals is such a bound. Values far above the rest, of which float32 leaves large residuals, have a
    better one (Mathias 1998): splitting k vectors off from what ΔΔᵀ is on the others moves no eigenvalue by more than
    ``‖R‖² / gap``, with R their residuals. The least over k is taken.

    squares, residuals    of the values found, from large to small, and of the next one, where there is one
    """
    best = float(residuals[:rank].sum())
    for k in range(1, min(rank, len(squares) - 1) + 1):
        others = float(torch.linalg.vector_norm(residuals[k:]))
        gap = float(squares[k - 1]) - float(squares[k]) - others
        if gap > 0:
            best = min(best, rank * float(residuals[:k].square().sum()) / gap + float(residuals[k:rank].sum()))
    return best


def _orthonormal(block: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(block).Q
    return basis


def _energy(matrix: Tensor) -> float:
    return math.fsum(float(matrix[row : row + 512].double().square().sum()) for row in range(0, len(matrix), 512))
