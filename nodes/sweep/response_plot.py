"""The curves of Sweep Response, as one picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ...difflora.clips.mosaic import signed
from ...difflora.clips.response import MEASURES, Response
from ...difflora.sentence import with_minus
from ..common.plots import FAINT, INK, new_figure, to_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, VIOLET, RANGE = "#3b6fb6", "#c2571a", "#2f8f5b", "#7a4fb0", "#2f8f5b"
PANELS = ("edges", "entropy", "sharpness", "motion", "brightness", "saturation", "tint", "distance")


def response_plot(
    response: Response, target: str, limits: Mapping[str, float], recommended: tuple[float, float]
) -> Tensor:
    """Small plots against strength. The target has a thicker line; green is the recommended range."""
    panels = [name for name in PANELS if name == "tint" or name in response.values]  # single pictures do not move
    figure = new_figure(13.2, 6.6)
    for panel, axes in itertools.zip_longest(panels, figure.subplots(2, 4).flat):
        if panel is None:
            axes.remove()
            continue
        _ground(axes, response, recommended)
        if panel == "tint":
            _tint(axes, response, limits.get("colour_drift"))
        else:
            _curve(axes, response, panel, target, limits.get(panel))
    for axes in figure.axes[-4:]:
        axes.set_xlabel("strength", color=INK, fontsize=9)
    monotone, symmetric = response.monotonicity(target), response.symmetry(target)
    title = MEASURES[target].title
    figure.suptitle(
        f"How the strength changes the {title}", fontsize=14, color=INK, x=0.012, y=0.985, ha="left", fontweight="bold"
    )
    low, high = (signed(value) for value in recommended)
    clips = len(response.values[target])
    facts = [with_minus(f"monotonicity {monotone:+.2f}"), with_minus(f"symmetry {symmetric:.2f}")]
    facts += [f"recommended {low} to {high}" if recommended[0] < recommended[1] else "no range within the limits"]
    facts += [f"mean and range of {clips} clips"] if clips > 1 else []
    figure.text(0.012, 0.915, "   ·   ".join(facts), color=INK, fontsize=10.5)
    # Fixed, with room for six characters at the left of each: tight_layout() takes as long as all the rest.
    figure.subplots_adjust(left=0.045, right=0.988, top=0.81, bottom=0.075, hspace=0.46, wspace=0.24)
    return to_image(figure)


def _ground(axes: Axes, response: Response, recommended: tuple[float, float]) -> None:
    if recommended[0] < recommended[1]:
        axes.axvspan(*recommended, color=RANGE, alpha=0.09, linewidth=0)
    axes.axvline(response.baseline, color=FAINT, linewidth=1, linestyle=":")
    axes.set_xlim(response.strengths[0], response.strengths[-1])
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color("#c9ced8")
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.grid(color="#e7e9ee", linewidth=0.8)
    axes.set_axisbelow(True)


def _curve(axes: Axes, response: Response, name: str, target: str, limit: float | None) -> None:
    measure, mean = MEASURES[name], response.mean(name)
    colour = ORANGE if name == target else BLUE
    _band(axes, response, name, colour)
    axes.plot(
        response.strengths,
        mean,
        "o-",
        color=colour,
        linewidth=2.4 if name == target else 1.7,
        markersize=4,
        clip_on=False,
    )
    _title(
        axes, measure.title + (" (target)" if name == target else ""), measure.unit, colour if name == target else INK
    )
    if limit is not None:
        base = mean[response.strengths == response.baseline][0]
        for edge in (base - limit, base + limit):
            axes.axhline(edge, color=GREEN, linewidth=1, linestyle="--")
    _room(axes, mean, 0.05 * max(abs(float(mean.max())), 1e-3))


def _tint(axes: Axes, response: Response, limit: float | None) -> None:
    """a* and b* separately, and the length of the two together."""
    for name, label, colour in (("drift_a", "a*  green − red +", GREEN), ("drift_b", "b*  blue − yellow +", VIOLET)):
        axes.plot(
            response.strengths,
            response.mean(name),
            "o-",
            color=colour,
            linewidth=1.7,
            markersize=3.5,
            clip_on=False,
            label=label,
        )
    drift = response.mean("colour_drift")
    axes.plot(response.strengths, drift, "-", color=INK, linewidth=1.4, label="both together")
    if limit is not None:
        axes.axhline(limit, color=GREEN, linewidth=1, linestyle="--")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.legend(frameon=False, fontsize=7.5, handlelength=1.4, labelspacing=0.25)
    _title(axes, "colour drift", "ΔE in a*b* from the baseline, of what stays", INK)
    _room(axes, np.concatenate([drift, response.mean("drift_a"), response.mean("drift_b")]), 0.5)


def _band(axes: Axes, response: Response, name: str, colour: str) -> None:
    values = response.values[name]
    if len(values) > 1:
        axes.fill_between(response.strengths, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _title(axes: Axes, title: str, unit: str, colour: str) -> None:
    axes.set_title(title, loc="left", color=colour, fontsize=11, fontweight="bold", pad=16)
    axes.text(0, 1.025, unit, transform=axes.transAxes, color="#6b7484", fontsize=8.5)


def _room(axes: Axes, values: np.ndarray, least: float) -> None:
    """Axis limits wide enough that rounding does not look like a slope."""
    low, high = axes.get_ylim()
    if high - low < least:
        middle = (float(values.min()) + float(values.max())) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)
