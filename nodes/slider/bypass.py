"""A LoRA beside a model's weights instead of in them: ``y = W x + s · up (down x)`` in every linear layer.

Patching rounds W + s·ΔW to the dtype of W. On an fp8 model, a small slider is lost in that rounding; here it keeps the
precision of the activations, and no weight is copied when the strength changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.ops
import comfy.utils
from comfy.patcher_extension import CallbacksMP, PatcherInjection

from ...difflora.errors import UnsupportedError
from ...difflora.lora.deltas import LowRank
from .branches import AdjustableBranch, attach, factors, has_branches


def put_beside(
    patcher: Any, key: str, deltas: Mapping[str, LowRank], strength: float, adjustable: bool = False
) -> Beside:
    """Make `patcher` compute these deltas beside its linear layers, given by path, whenever it is loaded.

    adjustable  the strength can change while the patcher samples; costs a second `up` in float32
    """
    beside = Beside(deltas, strength, adjustable)
    patcher.set_injections(key, [PatcherInjection(beside.inject, beside.eject)])
    # ComfyUI marks a clone of a loaded model as injected. Its add_patches() would then inject it into a model that
    # computes for another patcher.
    patcher.is_injected = False
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, key, _not_injected)
    return beside


def _not_injected(_: Any, clone: Any) -> None:
    clone.is_injected = False


class Beside:
    """Deltas beside layers. Clones share this object, so attachments are kept by patcher: a patcher that goes
    detaches only its own.
    """

    def __init__(self, deltas: Mapping[str, LowRank], strength: float, adjustable: bool) -> None:
        self._deltas = deltas
        self._strength = strength
        self._adjustable = adjustable
        self._attached: weakref.WeakKeyDictionary[Any, weakref.finalize[..., Any]] = weakref.WeakKeyDictionary()
        self._branches: weakref.WeakKeyDictionary[Any, list[AdjustableBranch]] = weakref.WeakKeyDictionary()

    def inject(self, patcher: Any) -> None:
        self.eject(patcher)
        _call_forward_of_folded_layers()
        device, dtype = patcher.load_device, patcher.model.manual_cast_dtype or patcher.model.get_dtype()
        detach = []
        branches = []
        for path, delta in self._deltas.items():
            layer = comfy.utils.get_attr(patcher.model, path)
            if self._adjustable:
                branch = AdjustableBranch(delta, self._strength, device, dtype)
                branches.append(branch)
                detach.append(attach(layer, branch.up, branch.down))
            else:
                detach.append(attach(layer, *factors(delta, self._strength, device, dtype)))
        # A finalizer: when a cancelled sampler's leftovers are collected, weak keys go before ComfyUI's own clean-up.
        self._attached[patcher] = weakref.finalize(patcher, _call_all, detach)
        self._attached[patcher].atexit = False
        self._branches[patcher] = branches

    def eject(self, patcher: Any) -> None:
        if patcher in self._attached:
            self._attached.pop(patcher)()
            del self._branches[patcher]

    def set_strength(self, patcher: Any, strength: float) -> None:
        """Change the strength, until the patcher is loaded again.

        Raises UnsupportedError if nothing is attached for this patcher, because something else has loaded the model.
        """
        if patcher not in self._branches:
            raise UnsupportedError(
                "map: the slider is not on the model that is being sampled. Another pack has put a copy of the model in its "
                "place; take that node out, or sample without a map."
            )
        for branch in self._branches[patcher]:
            branch.set_strength(strength)


def _call_forward_of_folded_layers() -> None:
    """From 0.33 on, ComfyUI folds an activation into an INT8 layer and bypasses its `forward`. Prevent that while the layer
    has branches: they would be lost silently.
    """
    folded = getattr(comfy.ops, "linear_input_act", None)
    if folded is None or hasattr(folded, "minds_branches"):
        return

    def linear_input_act(linear: Any, x: Any, input_act: str) -> Any:
        if has_branches(linear):
            return linear(comfy.ops.INPUT_ACT_EAGER[input_act](x))
        return folded(linear, x, input_act)

    linear_input_act.minds_branches = True  # type: ignore[attr-defined]
    comfy.ops.linear_input_act = linear_input_act


def _call_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()
