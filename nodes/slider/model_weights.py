"""Which weight of a loaded ComfyUI model each module of a LoRA changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import comfy.lora
import torch

from ...difflora import Lora
from ...difflora.errors import PairError
from ...difflora.lora.lora import label
from ...difflora.names import families
from ...difflora.names.keys import KOHYA, NATIVE, write_key
from ...difflora.sentence import Sentence


class Targets:
    """The match between a LoRA and a model.

    keys      module name -> parameter name in the model's state dict
    shapes    module name -> shape of that parameter: a LoRA may hold a convolution's kernel flattened, as ComfyUI does
    warnings  what the model cannot take, when that is no fault
    check     False to compare names only
    raises    PairError if nothing fits, an attention or feed-forward module is missing, or a shape differs
    """

    def __init__(self, patcher: Any, lora: Lora, check: bool = True):
        # The parameters themselves: in a state dict, other packs' quantised weights have the shape of their bytes.
        weights = dict(patcher.model.named_parameters(remove_duplicate=False))
        found = {name: _own_key(name, weights) for name in lora}
        if not all(found.values()):
            spellings = comfy.lora.model_lora_keys_unet(patcher.model, {})
            found = {name: key or _spelled_key(name, lora, weights, spellings) for name, key in found.items()}
        self.keys = {name: key for name, key in found.items() if key}
        self.warnings: list[Sentence] = []
        missing = [name for name, key in found.items() if not key]
        self._refuse(lora, missing)
        self.shapes = {name: tuple(weights[key].shape) for name, key in self.keys.items()}
        for name, shape in self.shapes.items():
            if check and not _fits(lora.specs[name].shape, shape):
                raise PairError(
                    f"{name}: {label(lora)} changes a weight of shape {tuple(lora.specs[name].shape)}"
                    f"{_of(lora.base_model)}, but the model's has shape {shape}: it was trained on "
                    "another base model."
                )
        self.is_quantised = any(_is_quantised(weights[self.keys[name]]) for name in lora.matrices if name in self.keys)

    def _refuse(self, lora: Lora, missing: list[str]) -> None:
        if not self.keys:
            raise PairError(
                f"None of the {len(lora)} modules of {label(lora)}{_of(lora.base_model)} is in this model, the first is "
                f"{missing[0]}: they belong to another model."
            )
        images = [name for name in missing if families.is_optional(name)]
        needed = [name for name in missing if _computes(name) and name not in images and not lora.specs[name].is_vector]
        if needed:
            raise PairError(
                f"{len(needed)} attention or feed-forward modules of {label(lora)}{_of(lora.base_model)} are not in this "
                f"model, the first is {needed[0]}: it was trained on another base model."
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
    """Whether a change of this shape is one of a weight, apart from how its columns are laid out."""
    return shape[:1] == weight[:1] and math.prod(shape) == math.prod(weight)


def _own_key(name: str, weights: Mapping[str, torch.Tensor]) -> str | None:
    """The parameter of a module by the model's own names."""
    own = f"diffusion_model.{name}"
    return next((key for key in (own, f"{own}.weight") if key in weights), None)


def _spelled_key(
    name: str, lora: Lora, weights: Mapping[str, torch.Tensor], spellings: Mapping[str, str]
) -> str | None:
    """The same by every other name that ComfyUI knows for it."""
    for dialect in (NATIVE, KOHYA):
        written = write_key(name, "up", dialect, lora.family, lora.prefix)
        key = spellings.get(written.removesuffix(".lora_up.weight"))
        if isinstance(key, str) and key in weights:
            return key
    return None


def _is_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is too coarse for a small change: fp8, or one of ComfyUI's quantised tensors."""
    return weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) or hasattr(weight, "_qdata")


def _of(base_model: str | None) -> str:
    return f" (for {base_model})" if base_model else ""
