"""What WanVideoWrapper expects on its wires, and how to switch off a block of its model. Needs no ComfyUI.

WANVIDLORA          list of dicts, one LoRA each, applied in order; see `lora_entry`
WANVIDEOMODEL       a ComfyUI ModelPatcher whose `model.diffusion_model` is the wrapper's own transformer
WANVIDIMAGE_EMBEDS  dict; says how large the latent is: "target_shape" (channels, frames, height, width), or "num_frames" of
                    the clip
WANVIDEOTEXTEMBEDS  dict; "prompt_embeds" and "negative_prompt_embeds" are lists of (tokens, 4096), one per prompt
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...difflora.errors import PairError, UnsupportedError

BLOCKS_OFF = "difflora_blocks_off"


def lora_entry(
    path: str, strength: float | list[float], name: str, merge_loras: bool, low_mem_load: bool
) -> dict[str, Any]:
    """One LoRA as the wrapper's own LoRA Select writes it; its low-memory loading exists for merging only."""
    return {
        "path": path,
        "strength": strength,
        "name": name,
        "blocks": {},
        "layer_filter": "",
        "low_mem_load": low_mem_load and merge_loras,
        "merge_loras": merge_loras,
    }


def chained(before: list[dict[str, Any]] | None, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """`entry` after the LoRAs `before` it, in a new list: the old list belongs to another node.

    Raises PairError if one is merged and another is not. A model that merged anything never gets the layers for
    unmerged LoRAs, so the unmerged one would silently do nothing.
    """
    chain = list(before or ())
    # A missing field means merged: that is the wrapper's own default.
    others = [lora["name"] for lora in chain if lora.get("merge_loras", True) != entry["merge_loras"]]
    if others:
        ours, theirs = ("merged", "not") if entry["merge_loras"] else ("not merged", "merged")
        raise PairError(
            f"prev_lora: {entry['name']} is {ours}, but {', '.join(others)} {'are' if len(others) > 1 else 'is'} {theirs}. "
            f"WanVideoWrapper applies the one kind or the other: set merge_loras to the same value on every LoRA node "
            f"of the chain (off, to try strengths without loading the model again)."
        )
    return [*chain, entry]


def check_unmerged(transformer_options: dict[str, Any]) -> None:
    """Raise UnsupportedError for the options of a wrapper model that merged LoRAs: it ignores all later ones."""
    if transformer_options.get("merge_loras"):
        raise UnsupportedError(
            "model: WanVideo Model Loader merged its LoRAs into this model, and a slider set on it afterwards would do "
            "nothing. Switch merge_loras off on the LoRA nodes of the loader, or chain them all through prev_lora into "
            "one WanVideo Set LoRAs."
        )


def check_width(width: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise PairError for a LoRA (module -> shape) whose attention is not as wide as the wrapper's transformer."""
    for name, shape in shapes.items():
        if name.endswith("self_attn.q") and shape[0] != width:
            raise PairError(
                f"{name}: the LoRA changes a weight of shape {shape}, but the model is {width} wide: it was trained on "
                "another base model."
            )


def text_embeds(embedding: torch.Tensor) -> dict[str, Any]:
    """(1, tokens, 4096) as the wrapper's text, as prompt and as negative prompt alike."""
    return {"prompt_embeds": [embedding[0]], "negative_prompt_embeds": [embedding[0]], "echoshot": False}


class BlocksOff(frozenset[int]):
    """The blocks that one patcher switches off. While such a set is alive, these blocks have gates."""

    def __deepcopy__(self, memo: dict[int, Any]) -> BlocksOff:
        return self  # The sampler copies its options, and needs the gates as much as their owner does.


class _Gate:
    """Replaces a block's forward and passes a call on unless the call's options say that the block is off."""

    def __init__(self, block: torch.nn.Module, index: int) -> None:
        self.run = block.forward
        self.index = index
        self.users = 0

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.index not in kwargs["transformer_options"].get(BLOCKS_OFF, ()):
            return self.run(x, *args, **kwargs)
        return x, kwargs.get("x_ip"), kwargs.get("lynx_ref_feature"), kwargs.get("x_ovi")

    def leave(self, block: torch.nn.Module) -> None:
        self.users -= 1
        if self.users == 0 and block.__dict__.get("forward") is self:
            del block.forward


def switch_off(transformer: torch.nn.Module, blocks: Iterable[int]) -> BlocksOff:
    """Make `blocks` skippable on the wrapper's transformer; put the result into a patcher's transformer options.

    The wrapper has no hook that can skip a block in the conditional pass, calls no ModelPatcher callback or wrapper
    while it samples, and shares one transformer between all patchers. It does pass the options of the
    patcher being sampled to every block. So each call decides: a gate replaces a block's `forward` and passes the call
    on unless its options name the block.

    Nothing has to be restored after a sampler call, and an error or Cancel (which in newer ComfyUI is not an `Exception`
    and skips torch's forward hooks) leaves nothing behind: a call without the options sees the unchanged model. The
    gates are removed with the last set that needs them, that is, with its patchers. Blocks stay where they are, so
    block swap, offloading, LoRAs and torch.compile work as usual.
    """
    off = BlocksOff(blocks)
    blocks_of_model: Any = transformer.blocks
    for index in off:
        block: Any = blocks_of_model[index]
        block = getattr(block, "_orig_mod", block)  # torch.compile wraps a block and calls this one
        # The whole ancestry: the VACE block takes **kwargs and passes them on to its parent class.
        forwards = [vars(kind)["forward"] for kind in type(block).__mro__ if "forward" in vars(kind)]
        if not any("transformer_options" in inspect.signature(forward).parameters for forward in forwards):
            raise UnsupportedError(
                "model: this version of WanVideoWrapper does not tell its blocks which model they run for, so they "
                "cannot be switched off. Update WanVideoWrapper."
            )
        gate = block.__dict__.get("forward")
        if not isinstance(gate, _Gate):
            gate = block.forward = _Gate(block, index)
        gate.users += 1
        weakref.finalize(off, gate.leave, block)
    return off
