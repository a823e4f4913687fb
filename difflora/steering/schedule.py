"""The position of a noise level in a schedule, and the strength that a map gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import InputError
from .curve import lerp
from .slider_map import SliderMap


def percent_of(sigma: float, percent_to_sigma: Callable[[float], float]) -> float:
    """The position of a noise level in the schedule, in percent: 0 is pure noise, 100 is none.

    percent_to_sigma  of the model's sampling: falls from the largest noise at 0 to the smallest at 1
    """
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return round(50 * (low + high), 3)


def flow_percent(sigma: float, shift: float) -> float:
    """The same in closed form for a flow model, whose sigma is shift · t / (1 + (shift − 1) · t) with t from 1 to 0."""
    return round(100 * (1 - sigma / (shift - (shift - 1) * sigma)), 3)


def sampled(sigmas: Sequence[float], start_step: int, end_step: int) -> list[float]:
    """The noise levels at which the steps of a sampler begin, from a whole schedule.

    sigmas    one more than there are steps: sampling ends at the last one
    end_step  the first step that is no longer sampled; -1 for all of them
    raises    InputError if no step is left
    """
    steps = len(sigmas) - 1
    end = steps if end_step == -1 else min(end_step, steps)
    if not 0 <= start_step < end:
        raise InputError(
            f"start_step {start_step} and end_step {end_step} leave nothing of a schedule of {steps} steps. Set them as on the "
            "sampler."
        )
    return [float(sigma) for sigma in sigmas[start_step:end]]


def step_strengths(
    sigmas: Sequence[float], shift: float, slider_map: SliderMap, strength: float, outside: float
) -> list[float]:
    """The strength of each step of a flow model, for a map with the same weight everywhere."""
    return [lerp(outside, strength, slider_map.weight_at(flow_percent(sigma, shift))) for sigma in sigmas]
