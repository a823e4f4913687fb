"""Calibrate LoRA: a slider whose ±1 means something."""

from __future__ import annotations

import itertools
from typing import Any

from comfy_api.v0_0_2 import io

from ...difflora import Lora, calibrate, calibrate_norm
from ...difflora.clips.response import MEASURES, Verdict, range_text
from ...difflora.errors import InputError
from ...difflora.lora.lora import label
from ...difflora.rank.calibrate import (
    NOISE,
    REACH,
    SAMPLES,
    SHARE,
    CalibratedLora,
    factor_for_change,
    factor_for_prediction,
    factor_for_range,
    way_to,
)
from ...difflora.sentence import Sentence
from ..common.inputs import one_of, within
from ..common.messages import lora_modules, report, ui
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta, MeasuredResponse
from .prediction import PredictionMeter

BY = ("norm", "change", "safe range", "prediction")


class CalibrateLora(io.ComfyNode):
    """Multiplies the factors; the unit travels with the LoRA and into the saved file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraCalibrate",
            display_name="Calibrate LoRA",
            category="Differential LoRA",
            **found_by("normalize", "scale lora", "strength unit", "slider"),
            description="Scales a slider so that strength 1 means the same for every slider. norm needs nothing else, "
            "prediction needs a model, change and safe range need what Sweep Response has measured.",
            inputs=[
                LoraDelta.Input("lora", tooltip="The slider. For change and safe range: the one that was measured."),
                io.Combo.Input(
                    "by",
                    options=list(BY),
                    default="norm",
                    tooltip="norm: the modules' mean norm becomes the given one. change: ±1 changes the measured target by "
                    "the given amount. safe range: the nearer end of the recommended range becomes 3. prediction: ±1 changes "
                    "what the model predicts by the given percentage.",
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
                    tooltip="For change: how much ±1 should change the target of Sweep Response, in its unit.",
                ),
                MeasuredResponse.Input(
                    "response",
                    optional=True,
                    tooltip="For change and safe range: from Sweep Response, measured with this LoRA from below 0 to above.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="For prediction: the model that you render with, without this slider.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="For prediction: a prompt that the slider is meant for, or Empty Text (Wan).",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="For prediction: an empty latent of the size that you render. One frame of a video is enough.",
                ),
                io.Float.Input(
                    "percent",
                    default=100 * SHARE,
                    min=0.01,
                    max=100.0,
                    step=0.5,
                    optional=True,
                    tooltip="For prediction: by how much ±1 should change what the model predicts. Give all your sliders "
                    "the same.",
                ),
                io.Float.Input(
                    "noise",
                    default=NOISE,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="For prediction: the noise level at which it is measured. 1 is noise alone.",
                ),
                io.Int.Input(
                    "samples",
                    default=SAMPLES,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="For prediction: how many starts from noise are averaged. Each takes about nine passes through the "
                    "model, as many as a render of nine steps at cfg 1.",
                ),
            ],
            outputs=[
                LoraDelta.Output("calibrated", display_name="lora", tooltip="The slider in its new unit."),
                io.Float.Output("factor", display_name="factor", tooltip="What the slider was multiplied by."),
                io.String.Output(
                    "recommended",
                    display_name="recommended",
                    tooltip="The recommended range in the new unit, for Save LoRA's recommended_strength. Empty without a "
                    "response.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        lora: Lora,
        by: str,
        norm: float,
        change: float,
        response: Verdict | None = None,
        model: Any = None,
        conditioning: Any = None,
        latent: dict[str, Any] | None = None,
        percent: float = 100 * SHARE,
        noise: float = NOISE,
        samples: int = SAMPLES,
    ) -> io.NodeOutput:
        one_of("by", by, BY)
        within(0.0001, 10000, norm=norm, change=change)
        told: list[Sentence] = []
        warnings: list[Sentence] = []
        if by == "norm":
            made = calibrate_norm(lora, norm, progress_bar())
        elif by == "prediction":
            within(0.01, 100, percent=percent)
            within(0.05, 1, noise=noise)
            within(1, 64, samples=samples)
            meter = _meter(lora, model, conditioning, latent, noise, int(samples))
            made = _by_prediction(lora, meter, percent, noise)
            told.append(Sentence("before, strength 1 changed it by {0}", f"{100 * meter.change_at(1.0):.3g}%"))
            warnings = meter.targets.warnings
        else:
            made = _by_response(lora, by, change, response)
        recommended = ""
        lines = [
            Sentence("strength 1 is {0}", made.unit),
            Sentence("{0} times {1}", label(lora), f"{made.factor:.4g}"),
            *told,
        ]
        if response is not None:
            low, high = (round(end / made.factor, 2) for end in response.recommended)
            recommended = range_text(low, high)
            lines.append(Sentence("recommended from {0} to {1}", f"{low:g}", f"{high:g}"))
        shown = ui(report(Sentence("Calibrated"), lines, [*made.warnings, *warnings]), lora_modules(made))
        return io.NodeOutput(made, made.factor, recommended, ui=shown)


def _meter(
    lora: Lora, model: Any, conditioning: Any, latent: dict[str, Any] | None, noise: float, samples: int
) -> PredictionMeter:
    wires = {"model": model, "conditioning": conditioning, "latent": latent}
    missing = [name for name, value in wires.items() if value is None]
    if missing or latent is None:
        raise InputError(f"{', '.join(missing)}: not connected, and prediction needs it. Wire it in, or choose norm.")
    bar, done = progress_bar(), itertools.count(1)
    expected = samples * (len(way_to(noise)) + 4)

    def tick() -> None:
        now = next(done)
        bar(now, max(expected, now + 1))

    return PredictionMeter(model, lora, conditioning, latent["samples"], noise, samples, tick)


def _by_prediction(lora: Lora, meter: PredictionMeter, percent: float, noise: float) -> CalibratedLora:
    factor = factor_for_prediction(meter.change_at, percent / 100)
    unit = Sentence("a change of the prediction by {0}% at noise {1}", f"{percent:g}", f"{noise:g}")
    return calibrate(lora, factor, unit)


def _by_response(lora: Lora, by: str, change: float, verdict: Verdict | None) -> CalibratedLora:
    if verdict is None:
        raise InputError(
            f"response is not connected, and {by} needs it. Wire Sweep Response's response in, or choose norm."
        )
    if by == "safe range":
        unit = Sentence("a third of the recommended range, which ends at {0}", f"{REACH:g}")
        return calibrate(lora, factor_for_range(*verdict.recommended), unit)
    response, measure = verdict.response, MEASURES[verdict.target]
    factor = factor_for_change(response.strengths.tolist(), response.mean(verdict.target).tolist(), change)
    unit = Sentence("a change of {0} by {1} {2}", measure.title, f"{change:g}", measure.unit)
    return calibrate(lora, factor, unit)


NODES = [CalibrateLora]
