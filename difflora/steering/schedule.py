"""How far into a schedule a noise level is."""

from __future__ import annotations

from collections.abc import Callable


def percent_of(sigma: float, percent_to_sigma: Callable[[float], float]) -> float:
    """The place of a noise level in the schedule, in per cent: 0 is pure noise, 100 is none.

    percent_to_sigma  of the model's sampling: falls from its largest noise at 0 to its smallest at 1
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
