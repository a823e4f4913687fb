"""Modules that a file splits differently from the model: q, k and v separate, or in one.

Nothing is approximated. Separate modules become one change whose factors are put side by side, each with its own
rows: `up` is block-diagonal, and the ranks add up. A combined module is split by the rows of `up`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TensorError
from ..names.families import Rows
from ..names.keys import Piece
from .deltas import Delta, Dense, LowRank, Spec, Term, Vector, multiplied_out

ROUNDING = 2**-8  # of a bfloat16


@dataclass(frozen=True)
class Part:
    """A module of a file, and which of its rows correspond to which rows of the model's module (None: all)."""

    spec: Spec
    rows: tuple[tuple[Rows | None, Rows | None], ...]

    @classmethod
    def of(cls, spec: Spec, pieces: Sequence[Piece]) -> Part:
        return cls(spec, tuple((piece.rows, piece.their_rows) for piece in pieces))

    def total(self) -> int:
        """The number of rows of the model's module, from this part; raises ValueError if it cannot be split like this."""
        rows, own, theirs = self.spec.shape[0], *self.rows[0]
        if theirs:
            theirs.within(rows)  # checks that it can be split
        if own and theirs:
            return rows
        if own:
            if rows % own.size:
                raise ValueError(f"{rows} rows cannot be divided by {own.size}")
            return rows // own.size * own.of
        assert theirs
        return rows // theirs.of * theirs.size

    def placed(self, values: Tensor, total: int) -> Tensor:
        """The rows of `values` at their place among `total` rows, zeros elsewhere."""
        if len(self.rows) == 1 and self.rows[0][0] is None and (theirs := self.rows[0][1]):
            return values[theirs.within(len(values))]
        out = values.new_zeros(total, *values.shape[1:])
        for own, theirs in self.rows:
            out[own.within(total) if own else slice(None)] = values[theirs.within(len(values))] if theirs else values
        return out


def joined_spec(parts: Sequence[Part], shares_down: bool = False) -> Spec:
    """Shape and ranks of the module that the parts make up; raises ValueError if they do not fit together."""
    totals = {part.total() for part in parts}
    rests = {part.spec.shape[1:] for part in parts}
    kinds = {part.spec.is_vector for part in parts}
    if len(totals) != 1 or len(rests) != 1 or len(kinds) != 1:
        raise ValueError("the parts have different sizes")
    ranks = tuple(rank for part in parts for rank in part.spec.ranks)
    if shares_down:
        ranks = parts[0].spec.ranks
    return Spec((totals.pop(), *rests.pop()), ranks, any(part.spec.dense for part in parts))


def joined(parts: Sequence[Part], deltas: Sequence[Delta], spec: Spec, shares_down: bool = False) -> Delta:
    """One delta from its parts, exactly.

    shares_down  all parts have the same `down` and scale: their `up` are stacked
    """
    total = spec.shape[0]
    pairs = list(zip(parts, deltas, strict=True))
    if spec.is_vector:
        value = torch.zeros(spec.shape)
        for part, delta in pairs:
            assert isinstance(delta, Vector)
            value += part.placed(delta.value, total)
        return Vector(value)
    fulls: list[tuple[Tensor, float]] = []
    terms: list[Term] = []
    for part, delta in pairs:
        assert not isinstance(delta, Vector)
        if isinstance(delta, Dense):
            fulls += [(part.placed(multiplied_out(full), total), scale) for full, scale in delta.fulls]
        terms += [Term(part.placed(term.up, total), term.down, term.scale) for term in delta.terms]
    if shares_down:
        up = terms[0].up
        for term in terms[1:]:
            up = up + term.up  # their rows do not overlap
        return LowRank((Term(up, terms[0].down, terms[0].scale),), spec.shape)
    return Dense(tuple(fulls), tuple(terms), spec.shape) if fulls else LowRank(tuple(terms), spec.shape)


def is_same_change(delta: Delta, other: Delta) -> bool:
    """Whether two changes differ by no more than the rounding of 16-bit factors; False for changes that are no factors."""
    if isinstance(delta, Vector) and isinstance(other, Vector):
        return delta.shape == other.shape and torch.allclose(delta.value, other.value, rtol=ROUNDING, atol=0)
    if not isinstance(delta, LowRank) or not isinstance(other, LowRank) or delta.shape != other.shape:
        return False
    size, missed = (
        _squared(delta.terms),
        _squared((*delta.terms, *(Term(term.up, term.down, -term.scale) for term in other.terms))),
    )
    return missed <= ROUNDING**2 * size


def _squared(terms: Sequence[Term]) -> float:
    """The squared Frobenius norm of a sum of products, in float64."""
    up = torch.cat([term.scale * term.up.double() for term in terms], 1)
    down = torch.cat([term.down.double() for term in terms])
    return float(((up.T @ up) * (down @ down.T)).sum())


def widened(delta: Delta, start: int, total: int) -> Delta:
    """A change of some rows of a weight, from `start` on, as a change of all its `total` rows."""

    def placed(values: Tensor) -> Tensor:
        out = values.new_zeros(total, *values.shape[1:])
        out[start : start + len(values)] = values
        return out

    if isinstance(delta, Vector):
        return Vector(placed(delta.value))
    terms = tuple(Term(placed(term.up), term.down, term.scale) for term in delta.terms)
    shape = (total, *delta.shape[1:])
    if isinstance(delta, Dense):
        return Dense(tuple((placed(multiplied_out(full)), scale) for full, scale in delta.fulls), terms, shape)
    return LowRank(terms, shape)


def cut(values: Tensor, rows: Sequence[tuple[Rows | None, Rows | None]]) -> Tensor:
    """The rows of a model's module as another code has them: the inverse of `Part.placed`."""
    if len(rows) == 1:
        own, theirs = rows[0]
        assert theirs is None
        return values[own.within(len(values))] if own else values
    out = torch.empty_like(values)
    for own, theirs in rows:
        assert own and theirs
        out[theirs.within(len(values))] = values[own.within(len(values))]
    return out


def cut_rows(rows: int, pieces: Sequence[tuple[Rows | None, Rows | None]], module: str) -> int:
    """How many rows of `module`, which has `rows`, go there; raises TensorError if it cannot be split."""
    own = pieces[0][0]
    if len(pieces) > 1 or own is None:
        return rows
    try:
        return own.count(rows)
    except ValueError as error:
        raise TensorError(f"{module}: {error}, so it cannot be split. Write the native dialect.") from error
