"""A LoRA out of two checkpoints: what a fine-tuned model changed about its base, at a small rank.

Weight differences are full matrices, so they are approximated with a certificate (see `krylov`), one module in memory
at a time. Checkpoints may be one file or a folder of shards; both may differ in that.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .deltas import Delta, Dense, LowRank, Spec, Term, Vector
from .errors import FileError, PairError
from .forms import thin
from .lora import LARGEST_WEIGHT, SMALL_SIDE, FileLora, Lora, Recipe
from .names import model_order
from .storage import CODES, FLOATS, Header, file_sha256, read_header, read_tensors, shown
from .wording import Sentence

_PREFIX = re.compile(r"^(?:model\.)?diffusion_model\.|^model\.(?=blocks\.|double_blocks\.|transformer_blocks\.)")


class Checkpoint:
    """The weights of a model, by their names without a prefix, in one file or in shards.

    raises  FileError if there is no such file, or two shards have the same weight
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        files = sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else [self.path]
        if not files:
            raise FileError(f"{self.path}: no .safetensors file in this folder.")
        self.headers: list[Header] = [read_header(file) for file in files]
        self._at: dict[str, tuple[Header, str]] = {}
        for header in self.headers:
            for key, entry in header.entries.items():
                name = _PREFIX.sub("", key)
                if CODES[entry.dtype] not in FLOATS:
                    continue
                if name in self._at:
                    raise FileError(f"{self.path.name}: {shown(key)} is in {self._at[name][0].path.name} and in "
                                    f"{header.path.name}. Is this the folder of one model?")
                if math.prod(entry.shape) > LARGEST_WEIGHT:
                    raise FileError(f"{self.path.name}: {shown(key)} has the shape {entry.shape}: no model has such a large "
                                    "weight, so the file is damaged.")
                self._at[name] = header, key

    def __contains__(self, name: str) -> bool:
        return name in self._at

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: header.entries[key].shape for name, (header, key) in self._at.items()}

    def read(self, name: str) -> Tensor:
        """A weight as float32, with the scale of a scaled fp8 checkpoint in it."""
        header, key = self._at[name]
        tensor = read_tensors(header, [key])[key].float()
        for scale in (name.removesuffix(".weight") + ".scale_weight", name + "_scale"):
            if name.endswith(".weight") and scale in self:
                factor = self.read(scale)
                if factor.numel() not in (1, *tensor.shape[:1]):
                    raise FileError(f"{self.path.name}: {shown(name)} of shape {tuple(tensor.shape)} has a scale of shape "
                                    f"{tuple(factor.shape)}: one for all or one for each row was expected.")
                tensor = tensor * factor.reshape(-1, *(1 for _ in tensor.shape[1:]))
        return tensor

    @property
    def sha256(self) -> list[str]:
        return [file_sha256(header.identity) for header in self.headers]


class CheckpointDifference(Lora):
    """``tuned - base``, module by module, read when asked for.

    Weights of the same shape count; what only one of them has is reported.
    raises  PairError if no weight fits, or a shape differs
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint):
        self.base, self.tuned = base, tuned
        before, after = base.shapes, tuned.shapes
        both = [name for name in after if name in before and "scale_weight" not in name
                and not name.endswith((".weight_scale", "scaled_fp8"))]
        for name in both:
            if before[name] != after[name]:
                raise PairError(f"{shown(name)} has shape {before[name]} in {base.path.name} but {after[name]} in "
                                f"{tuned.path.name}: one is not a fine-tune of the other.")
        if not both:
            raise PairError(f"{base.path.name} and {tuned.path.name} have no weight in common: different models.")
        only = [name for name in after if name not in before]
        if only:
            self.warnings = (Sentence("{0} weights are in {1} only and were left out: {2} …", len(only), tuned.path.name,
                                      shown(only[0])),)
        self._weights = {name.removesuffix(".weight"): name for name in both}
        self.specs = {module: _spec(after[self._weights[module]], module)
                      for module in sorted(self._weights, key=model_order)}

    @property
    def parents(self) -> tuple[Lora, ...]:
        return ()

    def describe(self, sha256: Callable[[FileLora], str]) -> Recipe:
        sides = (("base", self.base), ("tuned", self.tuned))
        return {"op": "extract"} | {side: {"file": model.path.name, "sha256": model.sha256} for side, model in sides}

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        return {module: self._read(module) for module in modules}

    def _read(self, module: str) -> Delta:
        name, spec = self._weights[module], self.specs[module]
        change = self.tuned.read(name) - self.base.read(name)
        if spec.is_vector:
            return Vector(change)
        if spec.dense:
            return Dense(((change.flatten(1), 1.0),), (), spec.shape)
        up, down = thin(change)
        return LowRank((Term(up, down),), spec.shape)

    def check_finite(self, module: str) -> None:
        for model in (self.base, self.tuned):
            if not bool(torch.isfinite(model.read(self._weights[module])).all()):
                raise FileError(f"{model.path.name}: {self._weights[module]} holds NaN or infinite values.")


def _spec(shape: tuple[int, ...], module: str) -> Spec:
    size = torch.Size(shape)
    if len(shape) < 2 or module.endswith("modulation"):
        return Spec(shape)
    side = min(shape[0], size.numel() // max(1, shape[0]))
    return Spec(shape, dense=True) if side > SMALL_SIDE else Spec(shape, (side,))


def extract(base: str | os.PathLike[str], tuned: str | os.PathLike[str]) -> CheckpointDifference:
    """The difference of two checkpoints (files, or folders of shards), to be re-ranked and saved like any other.

    raises  FileError or PairError if they cannot be read or do not fit together
    """
    return CheckpointDifference(Checkpoint(base), Checkpoint(tuned))
