"""Slider Map: where and when a slider acts, as one value for the sliders."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ...difflora.errors import InputError
from ...difflora.sentence import Sentence, printable
from ...difflora.steering.curve import Curve
from ...difflora.steering.slider_map import MOST_FEATHER, SliderMap
from ..common.inputs import within
from ..common.messages import report, ui
from ..common.search import found_by
from ..common.types import SliderMapType
from .map_preview import preview


class MakeSliderMap(io.ComfyNode):
    """Reads two curves and a mask. They are applied to a clip when a sampler gives its size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSliderMap",
            display_name="Slider Map",
            category="Differential LoRA",
            **found_by("schedule", "curve", "mask", "keyframes", "regional", "prompt travel"),
            description="Where and when a slider acts: over the steps of the sampling, over the frames of the clip, and "
            "under a mask. Weight 1 is the slider's strength, weight 0 its strength_outside.",
            inputs=[
                io.String.Input(
                    "steps",
                    default="",
                    tooltip="Weights over the schedule in per cent: 0:0, 40:1 rises until 40 %. Empty is 1 everywhere. "
                    "This alone costs no extra pass.",
                ),
                io.String.Input(
                    "frames",
                    default="",
                    tooltip="Weights over the clip in per cent: 0:0, 100:1 rises from the first frame to the last. Empty is "
                    "1 everywhere.",
                ),
                io.Int.Input(
                    "feather",
                    default=1,
                    min=0,
                    max=MOST_FEATHER,
                    tooltip="How far the mask's edge fades to either side, in latent pixels (8 pixels each on Wan). 1 hides "
                    "most of the seam; more gains little.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White: weight 1, black: weight 0. One picture for the whole clip, or one for each frame.",
                ),
            ],
            outputs=[SliderMapType.Output("map", display_name="map", tooltip="For the map of a LoRA Slider.")],
        )

    @classmethod
    def execute(cls, steps: str, frames: str, feather: int, mask: Any = None) -> io.NodeOutput:
        for name, text in (("steps", steps), ("frames", frames)):
            if not isinstance(text, str):
                raise InputError(
                    f"{name} is {printable(text, 60)}; write a curve such as 0:0, 40:1, or leave it empty."
                )
        within(0, MOST_FEATHER, feather=feather)
        curves = Curve.parse(steps, "steps"), Curve.parse(frames, "frames")
        slider_map = SliderMap(*curves, None if mask is None else mask.float(), int(feather))
        lines = [Sentence("steps only: 1 pass a step") if slider_map.is_level else Sentence("2 or 3 passes a step")]
        return io.NodeOutput(slider_map, ui=ui(report(Sentence("Slider Map"), lines), preview(slider_map)))


NODES = [MakeSliderMap]
