"""Which weight of a loaded ComfyUI model each module of a LoRA changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.lora
import torch

from ...difflora import Lora
from ...difflora.errors import PairError
from ...difflora.lora.deltas import Delta, add
from ...difflora.lora.lora import label
from ...difflora.lora.pieces import widened
from ...difflora.names import families
from ...difflora.names.keys import KOHYA, NATIVE, written
from ...difflora.sentence import Sentence


class Targets:
    """How a LoRA fits a model.

    keys      module name -> parameter name in the model's state dict
    rows      module name -> (first row, number of rows), of modules that are a part of that parameter
    shapes    module name -> shape of that parameter: a LoRA may hold a convolution's kernel flattened, as ComfyUI does
    warnings  what the model does not have, where that is not an error
    check     False to compare names only
    raises    PairError if nothing fits, an attention or feed-forward module is missing, or a shape differs
    """

    def __init__(self, patcher: Any, lora: Lora, check: bool = True):
        self.rows: dict[str, tuple[int, int]] = {}
        # The parameters themselves: in a state dict, quantised weights of other packs have the shape of their bytes.
        weights = dict(patcher.model.named_parameters(remove_duplicate=False))
        plain = {key.replace("._orig_mod", ""): key for key in weights}  # torch.compile inserts a name
        found = {name: _own_key(name, plain) for name in lora}
        if not all(found.values()):
            spellings = comfy.lora.model_lora_keys_unet(patcher.model, {})
            for name in [name for name, key in found.items() if not key]:
                found[name], rows = _spelled_key(name, lora, weights, spellings)
                if rows:
                    self.rows[name] = rows
        self.keys = {name: key for name, key in found.items() if key}
        self.warnings: list[Sentence] = []
        missing = [name for name, key in found.items() if not key]
        self._refuse(lora, missing)
        self.shapes = {name: tuple(weights[key].shape) for name, key in self.keys.items()}
        for name, shape in self.shapes.items():
            own = (self.rows[name][1], *shape[1:]) if name in self.rows else shape
            if check and not _fits(lora.specs[name].shape, own):
                raise PairError(
                    f"{name}: the weight has shape {tuple(lora.specs[name].shape)} in {label(lora)}{_of(lora.base_model)}, but "
                    f"{shape} in the model: the LoRA is for another base model."
                )
        self.is_quantised = any(_is_quantised(weights[self.keys[name]]) for name in lora.matrices if name in self.keys)

    def changes(self, deltas: Mapping[str, Delta]) -> Iterator[tuple[str, list[str], Delta]]:
        """Parameter name, the modules that change it, and their exact sum: parts of a fused weight come together."""
        names: dict[str, list[str]] = {}
        for name, key in self.keys.items():
            names.setdefault(key, []).append(name)
        for key, group in names.items():
            parts = [
                widened(deltas[name], self.rows[name][0], self.shapes[name][0]) if name in self.rows else deltas[name]
                for name in group
            ]
            yield key, group, add(parts)

    def _refuse(self, lora: Lora, missing: list[str]) -> None:
        if not self.keys:
            raise PairError(
                f"None of the {len(lora)} modules of {label(lora)}{_of(lora.base_model)} are in this model, the first is "
                f"{missing[0]}: they belong to another model."
            )
        images = [name for name in missing if families.is_optional(name)]
        needed = [name for name in missing if _computes(name) and name not in images and not lora.specs[name].is_vector]
        if needed:
            raise PairError(
                f"{len(needed)} attention or feed-forward modules of {label(lora)}{_of(lora.base_model)} are not in this "
                f"model, the first is {needed[0]}: they belong to another base model."
            )
        if images:
            self.warnings.append(
                Sentence(
                    "{0} image modules were left out: this is a text-to-video model ({1} …).", len(images), images[0]
                )
            )
        others = [name for name in missing if name not in images]
        if others:
            some = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
            self.warnings.append(
                Sentence("{0} modules were left out, this model does not have them: {1}.", len(others), some)
            )


def _computes(name: str) -> bool:
    """Whether a module is attention or feed-forward."""
    found = families.own(name)
    return found is not None and bool(found[0].roles & {"attn", "ffn"})


def _fits(shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a change of this shape fits a weight, apart from the layout of its columns."""
    return shape[:1] == weight[:1] and math.prod(shape) == math.prod(weight)


def _own_key(name: str, parameters: Mapping[str, str]) -> str | None:
    """The parameter of a module by the model's own names. parameters: name without torch.compile's part -> name."""
    own = f"diffusion_model.{name}"
    return next((parameters[key] for key in (own, f"{own}.weight") if key in parameters), None)


def _spelled_key(
    name: str, lora: Lora, weights: Mapping[str, torch.Tensor], spellings: Mapping[str, Any]
) -> tuple[str | None, tuple[int, int] | None]:
    """The same by every other name that ComfyUI knows for it, and which rows of it, if not all."""
    for dialect in (NATIVE, KOHYA):
        target = spellings.get(written(name, dialect, lora.family, lora.prefix)[0].name)
        if isinstance(target, str) and target in weights:
            return target, None
        # (weight, (dimension, first row, rows)); with a function behind it, its rows are turned around as well
        if isinstance(target, tuple) and len(target) == 2 and target[0] in weights and target[1][0] == 0:
            return target[0], (target[1][1], target[1][2])
    return None, None


def _is_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is too coarse to hold a small change: fp8, or one of ComfyUI's quantised tensors."""
    return weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) or hasattr(weight, "_qdata")


def _of(base_model: str | None) -> str:
    return f" (for {base_model})" if base_model else ""
