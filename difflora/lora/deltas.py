"""What one module's change can be.

A delta is the change of a weight at strength 1: the trainer's scale (alpha / rank) is already part of it.
Adapters that are exactly low-rank in another form (Hadamard, Kronecker; see `lycoris`) become a `LowRank` when
they are read. What is stored in full, and has no small side, is `Dense`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """What is known of a delta from file headers alone.

    shape   the changed weight's shape: (out, in), (out, in, *kernel), or a vector's own
    ranks   the rank of each stacked term; empty for a vector
    dense   whether a part of it is stored in full
    """

    shape: tuple[int, ...]
    ranks: tuple[int, ...] = ()
    dense: bool = False

    @property
    def is_vector(self) -> bool:
        return not self.ranks and not self.dense

    @property
    def rank(self) -> int:
        """Columns of the stacked factors: an upper bound of the delta's true rank."""
        return min(self.out_features, self.in_features) if self.dense else sum(self.ranks)

    @property
    def out_features(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def in_features(self) -> int:
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class Term:
    """One product of factors as a file stores them: ``scale * up @ down``.

    up (out, rank) and down (rank, in), any float dtype; a convolution's kernel is flattened into `in`.
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class LowRank:
    """A sum of low-rank terms. Adding, subtracting and scaling only rearrange terms, so nothing is lost.

    shape   the changed weight's shape, (out, in) or (out, in, *kernel)
    """

    terms: tuple[Term, ...]
    shape: tuple[int, ...]

    @property
    def spec(self) -> Spec:
        return Spec(self.shape, tuple(term.rank for term in self.terms))

    @property
    def rank(self) -> int:
        return self.spec.rank

    @property
    def up(self) -> Tensor:
        """All terms side by side, their scales included: (out, rank) float32."""
        if len(self.terms) == 1 and self.terms[0].scale == 1.0:
            return self.terms[0].up.float()
        up = torch.empty(self.shape[0], self.rank)
        for columns, term in zip(torch.split(up, list(self.spec.ranks), dim=1), self.terms, strict=True):
            columns.copy_(term.up).mul_(term.scale)
        return up

    @property
    def down(self) -> Tensor:
        """All terms one below the other: (rank, in) float32."""
        if len(self.terms) == 1:
            return self.terms[0].down.float()
        down = torch.empty(self.rank, math.prod(self.shape[1:]))
        for rows, term in zip(torch.split(down, list(self.spec.ranks)), self.terms, strict=True):
            rows.copy_(term.down)
        return down

    def scaled(self, factor: float) -> LowRank:
        return LowRank(tuple(replace(term, scale=term.scale * factor) for term in self.terms), self.shape)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The full change of the weight, in the weight's own shape. For small models and for checks."""
        full = torch.zeros(self.shape[0], math.prod(self.shape[1:]), dtype=dtype)
        for term in self.terms:
            full.addmm_(term.up.to(dtype), term.down.to(dtype), alpha=term.scale)
        return full.view(self.shape)


@dataclass(frozen=True)
class Kronecker:
    """``left ⊗ right``, kept as the two small matrices that it is made of.

    left (p, q), right (m, n·kernel), any float dtype; the product is (p·m, q·n·kernel)
    """

    left: Tensor
    right: Tensor

    def product(self) -> Tensor:
        """Multiplied out: each value is one product, rounded once."""
        dtype = torch.float64 if torch.float64 in (self.left.dtype, self.right.dtype) else torch.float32
        left, right = self.left.to(dtype), self.right.to(dtype)
        rows, columns = (one * other for one, other in zip(left.shape, right.shape, strict=True))
        return (left[:, None, :, None] * right[None, :, None]).reshape(rows, columns)


@dataclass(frozen=True)
class Dense:
    """A change with parts that are stored in full, beside any low-rank terms: ``Σ scale · full + Σ terms``.

    fulls   (full (out, in), scale), any float dtype
    """

    fulls: tuple[tuple[Tensor | Kronecker, float], ...]
    terms: tuple[Term, ...]
    shape: tuple[int, ...]

    @property
    def spec(self) -> Spec:
        return Spec(self.shape, tuple(term.rank for term in self.terms), dense=True)

    def scaled(self, factor: float) -> Dense:
        fulls = tuple((full, scale * factor) for full, scale in self.fulls)
        return Dense(fulls, tuple(replace(term, scale=term.scale * factor) for term in self.terms), self.shape)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The full change of the weight, in the weight's own shape."""
        total = LowRank(self.terms, self.shape).dense(dtype)
        for full, scale in self.fulls:
            total.add_(multiplied_out(full).to(dtype).view(self.shape), alpha=scale)
        return total


@dataclass(frozen=True)
class Vector:
    """The change of a bias, a norm's weight or a modulation table, stored as it is. Any shape, float32."""

    value: Tensor

    @property
    def spec(self) -> Spec:
        return Spec(tuple(self.value.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def scaled(self, factor: float) -> Vector:
        return Vector(self.value * factor)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.value.to(dtype)


Delta = LowRank | Dense | Vector


def multiplied_out(full: Tensor | Kronecker) -> Tensor:
    return full.product() if isinstance(full, Kronecker) else full


def zero(spec: Spec) -> Delta:
    """No change at all, with the shape and rank of `spec`. Takes no memory."""
    if spec.is_vector:
        return Vector(torch.zeros(1).expand(spec.shape))
    blank = torch.zeros(1, 1)
    if spec.dense:
        return Dense(((blank.expand(spec.out_features, spec.in_features), 1.0),), (), spec.shape)
    up, down = blank.expand(spec.out_features, spec.rank), blank.expand(spec.rank, spec.in_features)
    return LowRank((Term(up, down),), spec.shape)


def sum_shape(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a sum whose parts flatten a convolution's kernel differently: the most detailed one."""
    return max(shapes, key=len)


def add(deltas: list[Delta]) -> Delta:
    """Their exact sum: terms are stacked, vectors added (in float64, rounded once). All must have the same values."""
    first = deltas[0]
    if len(deltas) == 1:
        return first
    shape = sum_shape(delta.shape for delta in deltas)
    if isinstance(first, Vector):
        total = torch.zeros(shape, dtype=torch.float64)
        for delta in deltas:
            total += delta.dense(torch.float64).view(shape)
        return Vector(total.float())
    matrices = [delta for delta in deltas if not isinstance(delta, Vector)]
    terms = tuple(term for delta in matrices for term in delta.terms)
    fulls = tuple(full for delta in matrices if isinstance(delta, Dense) for full in delta.fulls)
    return Dense(fulls, terms, shape) if fulls else LowRank(terms, shape)


def tensors_of(delta: Delta) -> list[Tensor]:
    """All tensors of a delta, as they are stored."""
    if isinstance(delta, Vector):
        return [delta.value]
    fulls: list[Tensor] = []
    for full, _ in delta.fulls if isinstance(delta, Dense) else ():
        fulls += [full.left, full.right] if isinstance(full, Kronecker) else [full]
    return fulls + [tensor for term in delta.terms for tensor in (term.up, term.down)]


def is_finite(delta: Delta) -> bool:
    """Whether no factor holds NaN or Inf: a sum cannot lose one on the way."""
    numbers = (tensor.float() if tensor.dtype.itemsize == 1 else tensor for tensor in tensors_of(delta))
    return all(bool(torch.isfinite(tensor.sum(dtype=torch.float64))) for tensor in numbers)
