"""A LoRA beside a model's weights instead of in them: ``y = W x + s · up (down x)`` in every linear layer.

Patching rounds W + s·ΔW to the dtype of W. On an fp8 model a small slider drowns in that; here it keeps the
precision of the activations, and no weight is copied when the strength changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.utils
from comfy.patcher_extension import CallbacksMP, PatcherInjection

from ...difflora.lora.deltas import LowRank
from .branches import attach, factors


def put_beside(patcher: Any, key: str, deltas: Mapping[str, LowRank], strength: float) -> None:
    """Let `patcher` compute with these deltas beside its linear layers, given by path, whenever it is loaded."""
    patcher.set_injections(key, [_injection(deltas, strength)])
    # ComfyUI lets a clone of a loaded model believe that it is injected itself. Its add_patches() would then really
    # inject it, into a model that computes for another patcher.
    patcher.is_injected = False
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, key, _not_injected)


def _not_injected(_: Any, clone: Any) -> None:
    clone.is_injected = False


def _injection(deltas: Mapping[str, LowRank], strength: float) -> PatcherInjection:
    """Clones share this object, so what is attached is kept apart by patcher: one that goes detaches only its own."""
    attached: weakref.WeakKeyDictionary[Any, weakref.finalize[..., Any]] = weakref.WeakKeyDictionary()

    def inject(patcher: Any) -> None:
        eject(patcher)
        device, dtype = patcher.load_device, patcher.model.manual_cast_dtype or patcher.model.get_dtype()
        detach = [
            attach(comfy.utils.get_attr(patcher.model, path), *factors(delta, strength, device, dtype))
            for path, delta in deltas.items()
        ]
        # A finalizer: when a cancelled sampler's leftovers are collected, weak keys go before ComfyUI's own clean-up.
        attached[patcher] = weakref.finalize(patcher, _call_all, detach)
        attached[patcher].atexit = False

    def eject(patcher: Any) -> None:
        if patcher in attached:
            attached.pop(patcher)()

    return PatcherInjection(inject, eject)


def _call_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()
