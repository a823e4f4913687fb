"""LoRA Slider (model): a LoRA at any strength on a ComfyUI model, saved or not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import comfy.utils
from comfy.weight_adapter.lora import LoRAAdapter
from comfy_api.v0_0_2 import io
from comfy_execution.utils import get_executing_context
from torch import nn

from ...difflora import Lora
from ...difflora.errors import InputError, UnsupportedError
from ...difflora.lora.cache import deltas_of
from ...difflora.lora.deltas import Delta, LowRank
from ...difflora.lora.lora import label
from ...difflora.sentence import Sentence
from ...difflora.steering.slider_map import SliderMap
from ..common.inputs import one_of
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta
from .bypass import put_beside
from .followers import takers_of_weights
from .mapped import check_no_map, put_map, refuse_step_caches
from .model_weights import Targets
from .strength import (
    STRENGTH_0,
    SWITCHED_OFF,
    Notice,
    checked,
    checked_outside,
    map_input,
    outside_input,
    slider_ui,
    strength_input,
    switch_input,
)

APPLY = ["auto", "patch", "bypass"]
NOT_SAVED = Sentence("not in the weights: saving or merging the model leaves the slider out")


def apply_input() -> io.Input:
    """The choice of where a LoRA is put on a model."""
    return io.Combo.Input(
        "apply",
        options=APPLY,
        default=APPLY[0],
        tooltip="patch: into the weights, as ComfyUI's own loader does. bypass: beside the weights, exact on fp8 models, no "
        "copies. auto: bypass on fp8 models, patch otherwise.",
    )


class SliderModel(io.ComfyNode):
    """Patches a clone of the model, or hooks the LoRA in beside its weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSliderModel",
            display_name="LoRA Slider (model)",
            category="Differential LoRA",
            **found_by("slider", "concept slider", "strength", "apply lora", "lora loader", "weight"),
            description="Puts a LoRA on a model at any strength, without saving it first. Strength 0 is exactly the base "
            "model.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change. Several sliders can follow one another."),
                LoraDelta.Input("lora", tooltip="Any LoRA of this pack, saved or not."),
                strength_input("the base model"),
                apply_input(),
                map_input(
                    "From Slider Map: where and when the slider acts. Computed beside the weights; a map of frames or a mask "
                    "takes two or three passes a step."
                ),
                outside_input(),
                switch_input(),
            ],
            outputs=[io.Model.Output("changed", display_name="model", tooltip="The model with the slider on.")],
            hidden=[io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        lora: Lora,
        strength: float,
        apply: str,
        map: SliderMap | None = None,
        strength_outside: float = 0.0,
        on: bool = True,
    ) -> io.NodeOutput:
        if not on:
            return io.NodeOutput(model, ui=slider_ui(lora, [SWITCHED_OFF]))
        strength = checked(strength)
        one_of("apply", apply, APPLY)
        targets = Targets(model, lora)
        if map is not None:
            return _with_map(
                model, lora, targets, apply, (strength, checked_outside(strength_outside)), map, cls.hidden
            )
        if strength == 0:
            return io.NodeOutput(model, ui=slider_ui(lora, [STRENGTH_0], targets.warnings))
        put = put_on(model, lora, targets, strength, apply)
        lines, warnings = [put.line], [*targets.warnings, *put.warnings]
        if put.beside:
            lines.append(NOT_SAVED)
            warnings += lost_behind(cls.hidden.dynprompt)
        return io.NodeOutput(put.model, ui=slider_ui(lora, lines, warnings))


class Put(NamedTuple):
    """A LoRA on a clone of a model, and what to say of it.

    beside  whether it is computed beside the weights
    """

    model: Any
    beside: bool
    line: Sentence
    warnings: list[Sentence]


def put_on(model: Any, lora: Lora, targets: Targets, strength: float, apply: str) -> Put:
    """Put a LoRA on a clone of the model. apply: auto, patch or bypass, as on the node."""
    bypass = apply == "bypass" or (apply == "auto" and targets.is_quantised)
    counts = len(targets.keys), len(lora)
    line = (
        Sentence("{0} of {1} modules applied, beside the weights", *counts)
        if bypass
        else Sentence("{0} of {1} modules applied", *counts)
    )
    warnings = []
    if bypass and targets.is_quantised:
        patched = sum(not _is_linear(model, lora, targets, name) for name in targets.keys)
        if patched:
            warnings.append(
                Sentence("{0} of them are not small factors and were put into the weights, which round them.", patched)
            )
    return Put(applied(model, lora, targets, strength, bypass), bypass, line, warnings)


def _with_map(
    model: Any,
    lora: Lora,
    targets: Targets,
    apply: str,
    ends: tuple[float, float],
    slider_map: SliderMap,
    hidden: Any,
) -> io.NodeOutput:
    """The same with a map: always beside the weights. `ends` are the strengths at weight 1 and 0."""
    if apply == "patch":
        raise InputError(
            "apply is patch, which writes one strength into the weights, but a map needs several. Set apply to auto or bypass."
        )
    check_no_map(model)
    if not slider_map.is_level:
        refuse_step_caches(model.model_options)
    others = [name for name in targets.keys if not _is_linear(model, lora, targets, name)]
    if others:
        raise UnsupportedError(
            f"map: {len(others)} modules of {label(lora)} cannot be computed beside the weights, the first is {others[0]}. "
            "Leave biases, norms and convolutions out with Select Blocks (attn, ffn), and put Re-rank behind full "
            "differences."
        )
    lines = [Sentence("{0} of {1} modules applied, beside the weights", len(targets.keys), len(lora)), NOT_SAVED]
    notice = Notice(lora, lines, [*targets.warnings, *lost_behind(hidden.dynprompt)], hidden.dynprompt)
    mapped = model.clone()
    key = _free_key(mapped)
    beside = put_beside(mapped, key, _low_rank(lora, targets), ends[0], adjustable=True)
    put_map(mapped, key, beside, slider_map, *ends, notice.add)
    return io.NodeOutput(mapped, ui=notice.ui)


def lost_behind(dynprompt: Any) -> list[Sentence]:
    """A warning if a node after this one saves or merges the model's weights."""
    context = get_executing_context()
    if dynprompt is None or context is None:
        return []
    kinds = takers_of_weights(dynprompt.get_original_prompt(), dynprompt.get_display_node_id(context.node_id))
    return [
        Sentence("{0} behind this slider gets the model without it: set apply to patch, or use Save LoRA.", kind)
        for kind in kinds
    ]


def _low_rank(lora: Lora, targets: Targets) -> dict[str, LowRank]:
    """The small factors of the modules that a model has, by the path of their layer; those of one fused weight together."""
    return {
        key.removesuffix(".weight"): delta
        for key, _, delta in targets.changes(deltas_of(lora, progress_bar()))
        if isinstance(delta, LowRank)
    }


def applied(model: Any, lora: Lora, targets: Targets, strength: float, bypass: bool) -> Any:
    """A clone of the model with the LoRA on it: beside the weights, as an object of its own, or patched in."""
    model = model.clone()
    deltas = deltas_of(lora, progress_bar())
    beside: dict[str, LowRank] = {}
    patches: list[dict[str, Any]] = []
    for key, names, delta in targets.changes(deltas):
        if bypass and all(_is_linear(model, lora, targets, name) for name in names):
            assert isinstance(delta, LowRank)
            beside[key.removesuffix(".weight")] = delta
        elif _is_passed_over(model, key):
            old = model.get_model_object(key)
            new = old.float() + strength * delta.dense().view(old.shape).to(old.device)
            model.add_object_patch(key, nn.Parameter(new, requires_grad=False))
        else:
            for at, term in enumerate(_patches(delta, targets.shapes[names[0]])):
                if at == len(patches):
                    patches.append({})
                patches[at][key] = term
    for patch in patches:
        if patch:
            model.add_patches(patch, strength)
    if beside:
        put_beside(model, _free_key(model), beside, strength)
    return model


def _is_passed_over(model: Any, key: str) -> bool:
    """ComfyUI silently loads no patch on parameters of modules that contain others, such as Wan's modulation tables."""
    owner = comfy.utils.get_attr(model.model, key.rpartition(".")[0])
    return any("." in name for name, _ in owner.named_parameters())


def _patches(delta: Delta, shape: tuple[int, ...]) -> Iterator[Any]:
    """ComfyUI's own patches for a delta, one per term. Its adapters keep other packs' patchers working.

    shape  of the weight; ComfyUI reshapes the product of factors, and leaves out a full change of another shape
    """
    if isinstance(delta, LowRank):
        for term in delta.terms:
            yield LoRAAdapter(set(), (term.up, term.down, term.scale * term.rank, None, None, None))
    else:
        yield ("diff", (delta.dense().view(shape),))


def _is_linear(model: Any, lora: Lora, targets: Targets, name: str) -> bool:
    """By the weight's shape: the layers of quantised models are not `nn.Linear`."""
    key, spec = targets.keys[name], lora.specs[name]
    if spec.is_vector or spec.dense or len(targets.shapes[name]) != 2 or not key.endswith(".weight"):
        return False
    return not isinstance(comfy.utils.get_attr(model.model, key.removesuffix(".weight")), nn.Embedding)


def _free_key(model: Any) -> str:
    """A key for one slider of a chain, the same in every run."""
    return next(key for i in itertools.count(1) if (key := f"difflora_slider_{i}") not in model.injections)


NODES = [SliderModel]
