"""Calibrate LoRA: a slider whose ±1 means something."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ...difflora import Lora, calibrate, calibrate_norm
from ...difflora.clips.response import MEASURES, Verdict, range_text
from ...difflora.errors import InputError
from ...difflora.lora.lora import label
from ...difflora.rank.calibrate import REACH, CalibratedLora, factor_for_change, factor_for_range
from ...difflora.sentence import Sentence
from ..common.inputs import one_of, within
from ..common.messages import lora_modules, report, ui
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta, MeasuredResponse

BY = ("norm", "change", "safe range")


class CalibrateLora(io.ComfyNode):
    """Multiplies the factors; the unit travels with the LoRA and into the saved file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraCalibrate",
            display_name="Calibrate LoRA",
            category="Differential LoRA",
            **found_by("normalize", "scale lora", "strength unit", "slider"),
            description="Scales a slider so that strength 1 means the same for every slider. By norm it needs no pictures; by "
            "change or by safe range it takes what Sweep Response has measured.",
            inputs=[
                LoraDelta.Input("lora", tooltip="The slider. For change and safe range: the one that was measured."),
                io.Combo.Input(
                    "by",
                    options=list(BY),
                    default="norm",
                    tooltip="norm: the modules' mean norm becomes the given one. change: ±1 changes the measured target by "
                    "the given amount. safe range: the nearer end of the recommended range becomes 3.",
                ),
                io.Float.Input(
                    "norm",
                    default=1.0,
                    min=0.0001,
                    max=10000.0,
                    step=0.01,
                    tooltip="For norm: the mean Frobenius norm of a module at strength 1. Give all your sliders the same.",
                ),
                io.Float.Input(
                    "change",
                    default=1.0,
                    min=0.0001,
                    max=10000.0,
                    step=0.1,
                    tooltip="For change: how much ±1 is to change the target of Sweep Response, in its unit.",
                ),
                MeasuredResponse.Input(
                    "response",
                    optional=True,
                    tooltip="For change and safe range: from Sweep Response, measured with this LoRA from below 0 to above.",
                ),
            ],
            outputs=[
                LoraDelta.Output("calibrated", display_name="lora", tooltip="The slider in its new unit."),
                io.Float.Output("factor", display_name="factor", tooltip="What the slider was multiplied by."),
                io.String.Output(
                    "recommended",
                    display_name="recommended",
                    tooltip="The recommended range in the new unit, for Save LoRA's recommended_strength. Empty by norm without a "
                    "response.",
                ),
            ],
        )

    @classmethod
    def execute(cls, lora: Lora, by: str, norm: float, change: float, response: Verdict | None = None) -> io.NodeOutput:
        one_of("by", by, BY)
        within(0.0001, 10000, norm=norm, change=change)
        made = calibrate_norm(lora, norm, progress_bar()) if by == "norm" else _by_response(lora, by, change, response)
        recommended = ""
        lines = [
            Sentence("strength 1 is {0}", made.unit),
            Sentence("{0} times {1}", label(lora), f"{made.factor:.4g}"),
        ]
        if response is not None:
            low, high = (round(end / made.factor, 2) for end in response.recommended)
            recommended = range_text(low, high)
            lines.append(Sentence("recommended from {0} to {1}", f"{low:g}", f"{high:g}"))
        told = ui(report(Sentence("Calibrated"), lines, made.warnings), lora_modules(made))
        return io.NodeOutput(made, made.factor, recommended, ui=told)


def _by_response(lora: Lora, by: str, change: float, verdict: Verdict | None) -> CalibratedLora:
    if verdict is None:
        raise InputError(
            f"response is not connected, and {by} needs it. Wire Sweep Response's response in, or choose norm."
        )
    if by == "safe range":
        return calibrate(
            lora, factor_for_range(*verdict.recommended), f"a third of the recommended range, which ends at {REACH:g}"
        )
    response, measure = verdict.response, MEASURES[verdict.target]
    factor = factor_for_change(response.strengths.tolist(), response.mean(verdict.target).tolist(), change)
    return calibrate(lora, factor, f"a change of {measure.title} by {change:g} {measure.unit}")


NODES = [CalibrateLora]
