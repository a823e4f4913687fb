"""A LoRA from the wire for WanVideoWrapper, which reads LoRAs by path: an unsaved one is written to a file first."""

from pathlib import Path
from typing import Any

from comfy_api.v0_0_2 import io

from ...difflora import Lora
from ...difflora.errors import InputError
from ...difflora.lora.lora import label
from ...difflora.sentence import Sentence
from ...difflora.steering.schedule import step_strengths
from ...difflora.steering.slider_map import SliderMap
from ..common.inputs import within
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta, WrapperLora, WrapperModel
from .model_weights import Targets
from .strength import (
    SWITCHED_OFF,
    checked_outside,
    checked_schedule,
    map_input,
    outside_input,
    slider_ui,
    strength_input,
    switch_input,
)
from .temp_files import TempFiles
from .wrapper_steps import steps_of
from .wrapper_wires import chained, check_unmerged, check_width, lora_entry

temp_files = TempFiles()

# WanVideoWrapper applies unmerged LoRAs to linear layers only, not to convolutions or the head.
NOT_ON_THE_FLY = ("head", "patch_embedding", "ref_conv")


def chain_inputs() -> list[io.Input]:
    """The inputs that say how a LoRA joins the wrapper's list."""
    return [
        io.Boolean.Input(
            "merge_loras",
            default=False,
            tooltip="Leave this off for WanVideo Set LoRAs. On: for the lora input of WanVideo Model Loader, which then loads "
            "the whole model again for every strength. All LoRAs of a chain must agree.",
        ),
        io.Boolean.Input(
            "low_mem_load",
            default=False,
            tooltip="Merge with less VRAM, slower. Does nothing while merge_loras is off.",
        ),
        WrapperLora.Input(
            "prev_lora",
            optional=True,
            tooltip="LoRAs to apply before this one, such as a style and a step-distill LoRA.",
        ),
        WrapperModel.Input(
            "model",
            optional=True,
            tooltip="The model that the LoRA will be set on, to check that it was made for it and that its loader merged "
            "no LoRA, since the slider would then silently do nothing.",
        ),
    ]


class SliderWanVideo(io.ComfyNode):
    """Adds an entry to the wrapper's list of LoRAs. Strength 0 adds none, as in the wrapper's own LoRA Select."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSliderWanVideo",
            display_name="LoRA Slider (WanVideoWrapper)",
            category="Differential LoRA",
            **found_by("slider", "concept slider", "strength", "apply lora", "wan lora", "weight"),
            description="A LoRA at any strength for WanVideo Set LoRAs. Another strength saves no file and does not load the "
            "model again.",
            inputs=[
                LoraDelta.Input("lora", tooltip="Any LoRA of this pack, saved or not."),
                strength_input("the model as it is"),
                *chain_inputs(),
                map_input(
                    "From Slider Map, with a curve over the steps only: it becomes one strength a step, for WanVideo Set LoRAs."
                ),
                outside_input(),
                io.AnyType.Input(
                    "scheduler",
                    optional=True,
                    tooltip="For a map: the scheduler of the WanVideo Scheduler that the sampler uses. It knows the steps, their "
                    "noise and the shift.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="For a map, in place of scheduler: the sampler's sigmas, with the three values below as on the "
                    "sampler.",
                ),
                io.Float.Input(
                    "shift",
                    default=5.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    tooltip="For a map with sigmas: the sampler's shift.",
                ),
                io.Int.Input(
                    "start_step",
                    default=0,
                    min=0,
                    max=10_000,
                    optional=True,
                    tooltip="For a map with sigmas: the sampler's start_step, such as that of Wan2.2's second sampler.",
                ),
                io.Int.Input(
                    "end_step",
                    default=-1,
                    min=-1,
                    max=10_000,
                    optional=True,
                    tooltip="For a map with sigmas: the sampler's end_step. -1 is to the end.",
                ),
                switch_input(),
            ],
            outputs=[WrapperLora.Output("wan_lora", display_name="lora", tooltip="For WanVideo Set LoRAs.")],
        )

    @classmethod
    def files_read(cls, **_: Any) -> list[Path]:
        """For Sweep Grid: the output depends on no file except the one that this node writes."""
        return []

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> object:
        return temp_files.losses

    @classmethod
    def execute(
        cls,
        lora: Lora,
        strength: float | list[float],
        merge_loras: bool,
        low_mem_load: bool,
        prev_lora: list[Any] | None = None,
        model: Any = None,
        map: SliderMap | None = None,
        strength_outside: float = 0.0,
        scheduler: Any = None,
        sigmas: Any = None,
        shift: float = 5.0,
        start_step: int = 0,
        end_step: int = -1,
        on: bool = True,
    ) -> io.NodeOutput:
        if not on:
            return io.NodeOutput(list(prev_lora or []), ui=slider_ui(lora, [SWITCHED_OFF]))
        strength = checked_schedule(strength)
        if map is not None:
            within(0.01, 100, shift=shift)
            within(0, 10_000, start_step=start_step)
            within(-1, 10_000, end_step=end_step)
            steps = steps_of(scheduler, sigmas, start_step, end_step, shift) if map.is_level else None
            strength = _strengths(map, strength, checked_outside(strength_outside), steps)
        if not any(strength if isinstance(strength, list) else [strength]):
            return io.NodeOutput(list(prev_lora or []), ui=slider_ui(lora, [Sentence("strength 0: nothing is added")]))
        entry, lines, warnings = entry_of(lora, strength, merge_loras, low_mem_load, model)
        return io.NodeOutput(chained(prev_lora, entry), ui=slider_ui(lora, lines, warnings))


def entry_of(
    lora: Lora, strength: float | list[float], merge_loras: bool, low_mem_load: bool, model: Any
) -> tuple[dict[str, Any], list[Sentence], list[Sentence]]:
    """The LoRA as an entry of the wrapper's list, and the lines and warnings about it. model: to check, or None."""
    if merge_loras and isinstance(strength, list):
        raise InputError(
            f"strength is a list of {len(strength)} values, one a step, which WanVideoWrapper cannot merge into "
            "weights. Switch merge_loras off, and put the LoRA on with WanVideo Set LoRAs."
        )
    warnings = []
    if model is not None:
        check_unmerged(model.model_options["transformer_options"])
        # Not the shapes: after sampling, the wrapper leaves other tensors in place of the weights.
        warnings = Targets(model, lora, check=False).warnings
        check_width(model.model.diffusion_model.dim, {name: lora.specs[name].shape for name in lora.matrices})
    entry = lora_entry(temp_files.path_of(lora, progress_bar), strength, label(lora), merge_loras, low_mem_load)
    lines = [Sentence("{0} modules, rank {1}", len(lora.matrices), lora.rank_text)]
    if isinstance(strength, list):
        lines.append(Sentence("a strength for each of {0} steps, for WanVideo Set LoRAs only", len(strength)))
    return entry, lines, [*warnings, *left_out(lora, merge_loras)]


def _strengths(
    slider_map: SliderMap, strength: float | list[float], outside: float, steps: tuple[list[float], float] | None
) -> float | list[float]:
    """The strengths that a map gives: one for each step, or a single one if all are the same."""
    if isinstance(strength, list):
        raise InputError(
            f"strength is a list of {len(strength)} values, one a step, and map gives one a step as well. Use one of them."
        )
    if steps is None:
        raise InputError(
            "map: WanVideo Set LoRAs takes one strength a step, so only a map of steps works here. For frames or a mask, use LoRA "
            "Slider with Map (WanVideoWrapper)."
        )
    strengths = step_strengths(*steps, slider_map, strength, outside)
    return strengths if len(set(strengths)) > 1 else strengths[0]


def left_out(lora: Lora, merge_loras: bool) -> list[Sentence]:
    """Warnings for what the wrapper does not apply."""
    vectors = [name for name in lora if lora.specs[name].is_vector]
    modulations = [name for name in vectors if name.endswith("modulation")]
    passed_over = [name for name in lora.matrices if any(layer in name for layer in NOT_ON_THE_FLY)]
    warnings = []
    if passed_over and not merge_loras:
        some = ", ".join(passed_over[:3]) + (" …" if len(passed_over) > 3 else "")
        warnings.append(
            Sentence(
                "{0} modules are left out: WanVideoWrapper applies them only when it merges ({1}).",
                len(passed_over),
                some,
            )
        )
    if vectors and not merge_loras:
        warnings.append(
            Sentence(
                "{0} biases, norms or modulations are left out: WanVideoWrapper applies them only when it merges.",
                len(vectors),
            )
        )
    if modulations and merge_loras:
        warnings.append(
            Sentence(
                "{0} modulations are left out: WanVideoWrapper reads them, but never applies them.", len(modulations)
            )
        )
    return warnings


NODES = [SliderWanVideo]
