"""LoRA Slider with Map (WanVideoWrapper): a strength over the steps, over the frames of the clip, and under a mask."""

from __future__ import annotations

import uuid
from typing import Any

from comfy.weight_adapter.lora import LoRAAdapter
from comfy_api.v0_0_2 import io

from ...difflora import Lora
from ...difflora.lora.cache import deltas_of
from ...difflora.lora.deltas import Delta, LowRank
from ...difflora.sentence import Sentence
from ...difflora.steering.passes import second_map
from ...difflora.steering.slider_map import SliderMap
from ..common.inputs import within
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta, SliderMapType, WrapperImages, WrapperModel
from .model_weights import Targets
from .strength import (
    SWITCHED_OFF,
    Notice,
    checked,
    checked_outside,
    outside_input,
    slider_ui,
    strength_input,
    switch_input,
)
from .wanvideo import NOT_ON_THE_FLY, left_out
from .wrapper_map import SLIDER_MAP, MappedForward, latent_frames, put_map
from .wrapper_wires import check_unmerged, check_width


class MappedSliderWanVideo(io.ComfyNode):
    """Adds a LoRA to the patcher as the wrapper's Set LoRAs does, and a map to its transformer options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraMappedSliderWanVideo",
            display_name="LoRA Slider with Map (WanVideoWrapper)",
            category="Differential LoRA",
            **found_by("slider", "concept slider", "mask", "regional", "keyframes", "strength", "wan lora"),
            description="Puts a LoRA on a model of WanVideoWrapper where and when a Slider Map says. A map of frames or a mask "
            "takes two or three passes a step.",
            inputs=[
                WrapperModel.Input(
                    "model",
                    tooltip="A model of WanVideoWrapper that merged no LoRA. Style and step-distill LoRAs come before, through "
                    "WanVideo Set LoRAs.",
                ),
                LoraDelta.Input("lora", tooltip="Any LoRA of this pack, saved or not."),
                SliderMapType.Input("map", tooltip="From Slider Map: where and when the slider acts."),
                strength_input("the model as it is"),
                outside_input(),
                io.Float.Input(
                    "shift",
                    default=5.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="The sampler's shift. Only a curve over the steps needs it.",
                ),
                WrapperImages.Input(
                    "image_embeds",
                    optional=True,
                    tooltip="The sampler's image_embeds. Only a map over the frames needs them, to know how many there are.",
                ),
                switch_input(),
            ],
            outputs=[WrapperModel.Output("changed", display_name="model", tooltip="For the sampler.")],
            hidden=[io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        lora: Lora,
        map: SliderMap,
        strength: float,
        shift: float,
        strength_outside: float = 0.0,
        image_embeds: dict[str, Any] | None = None,
        on: bool = True,
    ) -> io.NodeOutput:
        if not on:
            return io.NodeOutput(model, ui=slider_ui(lora, [SWITCHED_OFF]))
        ends = checked(strength), checked_outside(strength_outside)
        within(0.01, 100, shift=shift)
        frames = latent_frames(image_embeds) if map.varies_over_time else None
        options = model.model_options["transformer_options"]
        check_unmerged(options)
        if SLIDER_MAP in options:
            raise second_map()
        # Not the shapes: after sampling, the wrapper leaves other tensors in place of the weights.
        targets = Targets(model, lora, check=False)
        transformer = model.model.diffusion_model
        check_width(transformer.dim, {name: lora.specs[name].shape for name in lora.matrices})

        mapped = model.clone()
        places = _add_unmerged(mapped, lora, targets, ends[0])
        lines = [Sentence("{0} of {1} modules applied, beside the weights", len(places), len(lora))]
        lines.append(Sentence("steps only: 1 pass a step") if map.is_level else Sentence("2 or 3 passes a step"))
        notice = Notice(lora, lines, [*targets.warnings, *left_out(lora, False)], cls.hidden.dynprompt)
        forward = MappedForward(places, map, *ends, float(shift), frames, notice.add)
        put_map(transformer, mapped.model_options["transformer_options"], forward)
        return io.NodeOutput(mapped, ui=notice.ui)


def _add_unmerged(patcher: Any, lora: Lora, targets: Targets, strength: float) -> dict[str, int]:
    """Add a LoRA to a patcher's own list, for layers that apply it on the fly.

    returns  path of a layer -> index of this LoRA among the layer's LoRAs
    """
    deltas = deltas_of(lora, progress_bar())
    places = {}
    for name, key in targets.keys.items():
        if lora.specs[name].is_vector or any(layer in name for layer in NOT_ON_THE_FLY):
            continue
        # A compiled block has two names, and the wrapper looks for the second only if the first is missing.
        spellings = {key.replace("._orig_mod", ""), key}
        key = next((one for one in sorted(spellings) if one in patcher.patches), key)
        before = patcher.patches.get(key, [])
        patcher.patches[key] = [*before, (strength, _adapter(deltas[name]), 1.0, None, None)]
        path = key.replace("._orig_mod", "").removeprefix("diffusion_model.").removesuffix(".weight")
        places[path] = len(before)
    patcher.patches_uuid = uuid.uuid4()
    return places


def _adapter(delta: Delta) -> Any:
    """A delta as ComfyUI's own loader gives it to the wrapper: alpha is the rank, so the scale is 1."""
    if isinstance(delta, LowRank):
        return LoRAAdapter(set(), (delta.up, delta.down, float(delta.rank), None, None, None))
    return ("diff", (delta.dense(),))


NODES = [MappedSliderWanVideo]
