"""A LoRA that was trained here: its factors are in memory and cannot be restored from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import TensorError
from ..names.keys import model_order
from ..storage.reader import FileIdentity
from .deltas import Delta, LowRank, Term
from .lora import Lora, Recipe


class TrainedLora(Lora):
    """Factors by module, kept in float32 on the CPU.

    factors   module -> up (out, rank) and down (rank, in); copied, with `scale` folded into `up`
    name      what to call it in messages and recipes
    settings  how it was trained, as JSON data: part of the recipe
    raises    TensorError if a factor holds NaN or infinite values
    """

    def __init__(
        self,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        name: str,
        settings: Mapping[str, Any],
        scale: float = 1.0,
        metadata: Mapping[str, str] | None = None,
    ):
        self.name = name
        self.settings = dict(settings)
        self.metadata = dict(metadata or {})
        self._deltas: dict[str, LowRank] = {}
        digest = hashlib.sha256()
        for module in sorted(factors, key=model_order):
            up, down = (factor.detach().to("cpu", torch.float32, copy=True).contiguous() for factor in factors[module])
            up *= scale
            for factor, which in ((up, "up"), (down, "down")):
                if not bool(torch.isfinite(factor).all()):
                    raise TensorError(f"{module}: the trained factor {which} is not finite. Lower the learning rate.")
                digest.update(f"{module} {which} {tuple(factor.shape)}".encode())
                digest.update(factor.numpy().tobytes())
            self._deltas[module] = LowRank((Term(up, down),), (up.shape[0], down.shape[1]))
        self.sha256 = digest.hexdigest()
        self.specs = {module: delta.spec for module, delta in self._deltas.items()}

    @property
    def parents(self) -> tuple[Lora, ...]:
        return ()

    @property
    def made_from(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        return {module: self._deltas[module] for module in modules}

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {
            "op": "trained",
            "name": self.name,
            "sha256": self.sha256,
            "settings": self.settings,
            "note": "Trained, not computed from files: it cannot be rebuilt from this recipe.",
        }
