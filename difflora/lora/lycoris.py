"""Adapters that are low-rank in another form, converted exactly to plain factors.

Every function returns (up, down) with ``up @ down`` equal to the change of the weight, kernel flattened, before the
scale. Names of parts are LyCORIS's. All arithmetic is in float64: products of factors are not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Shape = tuple[int, ...]
Factors = tuple[Tensor, Tensor]

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


def hadamard(parts: Mapping[str, Tensor]) -> Factors:
    """LoHa, ``(B1 A1) ∘ (B2 A2)``: rank r1·r2 by row-wise Kronecker products of its factors.

    hada_w1_a (out, r1), hada_w1_b (r1, in), hada_w2_a (out, r2), hada_w2_b (r2, in); with the Tucker cores
    hada_t1, hada_t2 (r, r, *kernel) the b side is (r, in) and the a side (r, out).
    """
    if "hada_t1" in parts:
        full = _tucker(parts["hada_t1"], parts["hada_w1_a"], parts["hada_w1_b"])
        full = full * _tucker(parts["hada_t2"], parts["hada_w2_a"], parts["hada_w2_b"])
        return thin(full)
    up_1, down_1, up_2, down_2 = (parts[name].double() for name in LOHA)
    up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1)
    down = (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1)
    return up, down


def kronecker(parts: Mapping[str, Tensor]) -> Factors:
    """LoKr, ``w1 ⊗ w2``: the rank is the product of both ranks, by ``(ab) ⊗ (cd) = (a ⊗ c)(b ⊗ d)``.

    lokr_w1 (p, q) or lokr_w1_a (p, r), lokr_w1_b (r, q); lokr_w2 (m, n, *kernel), or _a (m, r), _b (r, n·kernel), or
    with the core lokr_t2 (r, r, *kernel) _a (r, m), _b (r, n).
    """
    up_1, down_1 = (
        thin(parts["lokr_w1"]) if "lokr_w1" in parts else (parts["lokr_w1_a"].double(), parts["lokr_w1_b"].double())
    )
    if "lokr_w2" in parts:
        right, kernel = parts["lokr_w2"], parts["lokr_w2"].shape[2:]
    elif "lokr_t2" in parts:
        right = _tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
        kernel = right.shape[2:]
    else:
        return torch.kron(up_1, parts["lokr_w2_a"].double()), torch.kron(down_1, parts["lokr_w2_b"].double().flatten(1))
    up_2, down_2 = thin(right)
    down = torch.einsum("aq,bnk->abqnk", down_1, down_2.view(len(down_2), -1, math.prod(kernel)))
    return torch.kron(up_1, up_2), down.flatten(0, 1).flatten(1)


def kronecker_sides(parts: Mapping[str, Tensor]) -> Factors:
    """The same LoKr as its two sides, (p, q) and (m, n·kernel): the product is `torch.kron` of them.

    As they are stored, or in float64 where a side is itself a product.
    """
    left = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"].double() @ parts["lokr_w1_b"].double()
    if "lokr_w2" in parts:
        right = parts["lokr_w2"]
    elif "lokr_t2" in parts:
        right = _tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    else:
        right = parts["lokr_w2_a"].double() @ parts["lokr_w2_b"].double().flatten(1)
    return left, right.flatten(1)


def hadamard_full(parts: Mapping[str, Tensor]) -> Tensor:
    """The same LoHa multiplied out, (out, in): for ranks whose product is no smaller than the matrix."""
    if "hada_t1" in parts:
        up, down = hadamard(parts)
        return up @ down
    up_1, down_1, up_2, down_2 = (parts[name].double() for name in LOHA)
    return (up_1 @ down_1).mul_(up_2 @ down_2)


def middle(parts: Mapping[str, Tensor]) -> Factors:
    """A convolution with a core between the factors: up (out, r), mid (r, r, *kernel), down (r, in)."""
    up, mid, down = parts["up"].double().flatten(1), parts["mid"].double(), parts["down"].double().flatten(1)
    return up, torch.einsum("ab...,bi->ai...", mid, down).flatten(1)


def thin(full: Tensor) -> Factors:
    """A matrix whose smaller side is its rank: itself times an identity."""
    matrix = full.double().flatten(1)
    rows, columns = matrix.shape
    if rows < columns:
        return torch.eye(rows, dtype=torch.float64), matrix
    return matrix, torch.eye(columns, dtype=torch.float64)


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(out, in, *kernel) from core (i, j, *kernel), a (i, out), b (j, in)."""
    return torch.einsum("ij...,ip,jr->pr...", core.double(), a.double().flatten(1), b.double().flatten(1))


def loha_shape(shapes: Mapping[str, Shape]) -> tuple[Shape, int, int]:
    """(weight shape, columns of the factors, the rank that alpha is divided by) from the parts' shapes.

    raises  ValueError if they do not fit together
    """
    w1a, w1b, w2a, w2b = (shapes[name] for name in LOHA)
    if "hada_t1" in shapes or "hada_t2" in shapes:
        t1, t2 = shapes["hada_t1"], shapes["hada_t2"]
        _need(t1[2:] == t2[2:] and len(t1) > 2)
        for core, a, b in ((t1, w1a, w1b), (t2, w2a, w2b)):
            _need(core[0] == a[0] and core[1] == b[0] and len(a) == len(b) == 2)
        _need(w1a[1] == w2a[1] and w1b[1] == w2b[1])
        shape = (w1a[1], w1b[1], *t1[2:])
        return shape, min(shape[0], math.prod(shape[1:])), w1b[0]
    _need(all(len(part) == 2 for part in (w1a, w1b, w2a, w2b)))
    _need(w1a[1] == w1b[0] and w2a[1] == w2b[0] and w1a[0] == w2a[0] and w1b[1] == w2b[1])
    return (w1a[0], w1b[1]), w1b[0] * w2b[0], w1b[0]


def lokr_shape(shapes: Mapping[str, Shape]) -> tuple[Shape, int, int | None]:
    """As `loha_shape`. If both sides are stored in full, there is no rank to divide alpha by, and alpha is ignored."""
    divisor = None
    if "lokr_w1" in shapes:
        (rows_1, columns_1), rank_1 = shapes["lokr_w1"], min(shapes["lokr_w1"])
    else:
        (rows_1, inner), (divisor, columns_1) = shapes["lokr_w1_a"], shapes["lokr_w1_b"]
        _need(inner == divisor)
        rank_1 = divisor
    if "lokr_w2" in shapes:
        rows_2, columns_2, *kernel = shapes["lokr_w2"]
        rank_2 = min(rows_2, columns_2 * math.prod(kernel))
    elif "lokr_t2" in shapes:
        core, a, b = shapes["lokr_t2"], shapes["lokr_w2_a"], shapes["lokr_w2_b"]
        _need(core[0] == a[0] and core[1] == b[0] and len(a) == len(b) == 2)
        rows_2, columns_2, kernel, divisor = a[1], b[1], list(core[2:]), b[0]
        rank_2 = min(rows_2, columns_2 * math.prod(kernel))
    else:
        (rows_2, inner), (divisor, columns_2, *kernel) = shapes["lokr_w2_a"], shapes["lokr_w2_b"]
        _need(inner == divisor)
        rank_2 = divisor
    return (rows_1 * rows_2, columns_1 * columns_2, *kernel), rank_1 * rank_2, divisor


def middle_shape(shapes: Mapping[str, Shape]) -> tuple[Shape, int, int]:
    up, mid, down = shapes["up"], shapes["mid"], shapes["down"]
    _need(len(mid) > 2 and up[1] == mid[0] and mid[1] == down[0])
    _need(math.prod(up[2:]) == 1 and math.prod(down[2:]) == 1)
    return (up[0], down[1], *mid[2:]), mid[0], down[0]


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError("the parts do not fit together")
