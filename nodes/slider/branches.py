"""A small branch beside a linear layer: ``y = W x + up (down x)``. Plain torch, without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...difflora.lora.deltas import LowRank


def factors(delta: LowRank, strength: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """up (out, k) with the strength in it, and down (k, in), ready for a layer."""
    # In float32 first, so that a strength of 2.9 is not rounded to bf16's 2.906.
    up = torch.cat([term.up.to(device, torch.float32) * (term.scale * strength) for term in delta.terms], dim=1)
    down = torch.cat([term.down.to(device, torch.float32) for term in delta.terms])
    return up.to(dtype), down.to(dtype)


class AdjustableBranch:
    """A branch whose strength changes in place: torch.compile sees the same tensors and does not recompile.

    up    (out, k) in the layer's dtype, with the strength in it, rounded once as in `factors`
    down  (k, in)
    """

    def __init__(self, delta: LowRank, strength: float, device: torch.device, dtype: torch.dtype) -> None:
        self.up, self.down = factors(delta, strength, device, dtype)
        self._terms = [(term.up.to(device, torch.float32), term.scale) for term in delta.terms]
        self._strength = strength

    def set_strength(self, strength: float) -> None:
        if strength == self._strength:
            return
        start = 0
        for up, scale in self._terms:
            end = start + up.shape[1]
            self.up[:, start:end].copy_(up * (scale * strength))
            start = end
        self._strength = strength


def attach(layer: nn.Module, up: Tensor, down: Tensor) -> Callable[[], None]:
    """Add a branch to a layer; returns a function that removes it. Any number can be added and removed, in any order.

    Replaces `forward` instead of adding a forward hook: torch.compile does not notice changed hooks, and would keep the
    first strength.
    """
    forward: Any = vars(layer).get("forward")
    if not hasattr(forward, "branches"):
        forward = layer.forward = _with_branches(layer.forward)
    branch = (up, down)
    forward.branches.append(branch)

    def detach() -> None:
        forward.branches[:] = [other for other in forward.branches if other is not branch]
        # If another pack has wrapped our forward, ours stays inside and adds nothing.
        if not forward.branches and vars(layer).get("forward") is forward:
            del layer.forward

    return detach


def has_branches(layer: nn.Module) -> bool:
    """Whether the layer has branches: then its `forward` must be called."""
    return bool(getattr(vars(layer).get("forward"), "branches", None))


def _with_branches(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    branches: list[tuple[Tensor, Tensor]] = []

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = plain(x, *args, **kwargs)
        for up, down in branches:
            inner = nn.functional.linear(x, down.to(x.device, x.dtype)).to(output.dtype)
            # One operation and one rounding; a separate sum would hold a second tensor of the output's size.
            total = torch.addmm(
                output.reshape(-1, len(up)), inner.reshape(-1, up.shape[1]), up.to(output.device, output.dtype).T
            )
            output = total.view(output.shape)
        return output

    forward.branches = branches  # type: ignore[attr-defined]
    return forward
