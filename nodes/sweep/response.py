"""Sweep Response: how a sweep's clips change with the strength, as a plot, a table, text and numbers."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.v0_0_2 import io, ui

from ...difflora.clips.mosaic import signed
from ...difflora.clips.response import MEASURES, TARGETS, Response, Sweep, Verdict, measure_sweeps, range_text
from ...difflora.errors import UnsupportedError
from ...difflora.sentence import Sentence, with_minus
from ..common.inputs import one_of, within
from ..common.messages import report
from ..common.messages import ui as messages
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import MeasuredResponse, SweepClips
from .response_plot import response_plot

MORE = ("sweep_2", "sweep_3", "sweep_4")


class SliderResponse(io.ComfyNode):
    """Reads the clips that the sweep has stored, so measuring again renders nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSliderResponse",
            display_name="Sweep Response",
            category="Differential LoRA",
            **found_by("measure", "strength range", "plot", "analyze sweep", "metrics"),
            description="Measures detail, sharpness, motion, brightness, saturation, colour drift and distance over the "
            "strengths of a sweep, and says how far the slider can go.",
            inputs=[
                SweepClips.Input("sweep", tooltip="From Sweep Grid."),
                io.Combo.Input(
                    "target", options=list(TARGETS), default="edges", tooltip="What the slider is meant to change."
                ),
                io.Float.Input(
                    "colour_limit",
                    default=5.0,
                    min=0.0,
                    max=200.0,
                    step=0.5,
                    tooltip="How far the colour of what stays in the picture may drift, in CIELAB a*b*. 2 is just visible side by "
                    "side. 0: any.",
                ),
                io.Float.Input(
                    "brightness_limit",
                    default=10.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How far the mean L* (0 to 100) may move. 0: any.",
                ),
                io.Float.Input(
                    "saturation_limit",
                    default=10.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How far the mean chroma C* may move. 0: any.",
                ),
                io.Int.Input(
                    "moments",
                    default=12,
                    min=1,
                    max=1000,
                    tooltip="How many frames of each clip are measured, spread evenly over it.",
                ),
                *(
                    SweepClips.Input(
                        name, optional=True, tooltip="Another prompt or seed with the same strengths: all are averaged."
                    )
                    for name in MORE
                ),
            ],
            outputs=[
                io.Image.Output("plot", display_name="plot", tooltip="All measures over the strength."),
                io.String.Output("csv", display_name="csv", tooltip="A line for each strength, for a spreadsheet."),
                io.String.Output("report", display_name="text", tooltip="The conclusions, as text."),
                io.Float.Output(
                    "monotonicity",
                    display_name="monotonicity",
                    tooltip="Of the target: 1 always rises with the strength, -1 always falls.",
                ),
                io.Float.Output(
                    "symmetry",
                    display_name="symmetry",
                    tooltip="Of the target: 1 if + and - change it equally, in opposite directions.",
                ),
                io.String.Output(
                    "recommended",
                    display_name="recommended",
                    tooltip="The range within all limits, such as -2.5 to 3, for Save LoRA's recommended_strength.",
                ),
                MeasuredResponse.Output(
                    "response", display_name="response", tooltip="The measured curve, for Calibrate LoRA."
                ),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        sweep: Sweep,
        target: str,
        colour_limit: float,
        brightness_limit: float,
        saturation_limit: float,
        moments: int,
        **more: Sweep | None,
    ) -> io.NodeOutput:
        one_of("target", target, TARGETS)
        within(0, 200, colour_limit=colour_limit)
        within(0, 100, brightness_limit=brightness_limit, saturation_limit=saturation_limit)
        within(1, 1000, moments=moments)
        sweeps = [sweep, *(other for name in MORE if (other := more.get(name)) is not None)]
        response = measure_sweeps(sweeps, moments, progress_bar())
        if target not in response.values:
            raise UnsupportedError("target: single pictures have no motion to measure. Choose another target.")
        watched = {"colour_drift": colour_limit, "brightness": brightness_limit, "saturation": saturation_limit}
        limits = {name: limit for name, limit in watched.items() if limit > 0 and name != target}
        recommended = response.recommended(limits)
        lines, warnings = _conclusions(response, target, limits, recommended)
        plot = response_plot(response, target, limits, recommended)
        preview = ui.PreviewImage(plot, cls=cls).as_dict()
        found = {"strength_range": list(recommended)} if recommended[0] < recommended[1] else {}
        return io.NodeOutput(
            plot,
            response.csv(),
            "\n".join([*lines, *(f"! {line}" for line in warnings)]),
            response.monotonicity(target),
            response.symmetry(target),
            range_text(*recommended),
            Verdict(response, target, recommended),
            ui={**preview, **messages(report(Sentence("Response"), lines, warnings), found)},
        )


def _conclusions(
    response: Response, target: str, limits: Mapping[str, float], recommended: tuple[float, float]
) -> tuple[list[Sentence], list[Sentence]]:
    """The measurement in a few lines, with warnings."""
    strengths = response.strengths
    title, unit = MEASURES[target].title, MEASURES[target].unit
    mean, digits = response.mean(target), MEASURES[target].digits
    base = mean[strengths == response.baseline][0]
    ends = (strengths[0], response.baseline, strengths[-1])
    points = [
        part
        for value, strength in zip((mean[0], base, mean[-1]), ends, strict=True)
        for part in (f"{value:.{digits}f}", signed(strength))
    ]
    monotonicity = with_minus(f"{response.monotonicity(target):+.2f}")
    symmetry = with_minus(f"{response.symmetry(target):.2f}")
    lines = [
        Sentence("{0}: {1} at {2}, {3} at {4}, {5} at {6} ({7})", title, *points, unit),
        Sentence("monotonicity {0}, symmetry of + and − {1}", monotonicity, symmetry),
    ]
    for name, limit in limits.items():
        low, high = response.reach(name, limit)
        is_low, is_high = low > strengths[0], high < strengths[-1]
        low_text, high_text = signed(round(low, 2)), signed(round(high, 2))
        if is_low and is_high:
            where = Sentence("more than {0} below {1} and above {2}", f"{limit:g}", low_text, high_text)
        elif is_low:
            where = Sentence("more than {0} below {1}", f"{limit:g}", low_text)
        elif is_high:
            where = Sentence("more than {0} above {1}", f"{limit:g}", high_text)
        else:
            where = Sentence("within {0} everywhere", f"{limit:g}")
        lines.append(Sentence("{0}: {1}", MEASURES[name].title, where))
    a, b = response.mean("drift_a"), response.mean("drift_b")
    tints = [
        part
        for end in (0, -1)
        for part in (with_minus(f"{a[end]:+.1f}"), with_minus(f"{b[end]:+.1f}"), signed(strengths[end]))
    ]
    lines.append(Sentence("tint: a* {0}, b* {1} at {2}; a* {3}, b* {4} at {5}", *tints))
    warnings = []
    if recommended[0] < recommended[1]:
        lines.append(Sentence("recommended: {0} to {1}", *map(signed, recommended)))
    else:
        warnings.append(Sentence("no strength stays within the limits; nothing is recommended"))
    if response.broken:
        warnings.append(
            Sentence("left out, because the pictures are broken: {0}", ", ".join(map(signed, response.broken)))
        )
    if response.left_out:
        warnings.append(Sentence("not in every sweep, so left out: {0}", ", ".join(map(signed, response.left_out))))
    return lines, warnings


NODES = [SliderResponse]
