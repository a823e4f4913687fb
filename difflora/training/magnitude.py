"""How large a trained slider should be: training finds the direction early, but its size is arbitrary.

Works on plain numbers: losses at multiples of the change, however they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable

SMALLEST, LARGEST = 2.0**-4, 2.0**6
REACH = 3.0
"""The strength at which a slider should show as much of the property as the two sides of the pairs do."""


def best_multiplier(loss: Callable[[float], float], smallest: float = SMALLEST, largest: float = LARGEST) -> float:
    """The multiplier with the lowest loss: the best power of two, refined by a parabola through it and its neighbours.

    loss    called once for each multiplier tried, from 1 in the direction in which it falls
    """
    found: dict[int, float] = {}

    def at(power: int) -> float:
        if power not in found:
            found[power] = loss(2.0**power)
        return found[power]

    low, high = round(math.log2(smallest)), round(math.log2(largest))
    best = min((0, -1, 1), key=at)
    step = 1 if best > 0 else -1
    while best != 0 and low <= best + step <= high and at(best + step) < at(best):
        best += step
    if not low < best < high:
        return float(2.0**best)
    # At ½, 1 and 2 times the best: a squared error is a parabola of the multiplier, not of its logarithm.
    before, here, after = at(best - 1), at(best), at(best + 1)
    rise, fall = after - here, before - here
    if not (rise >= 0 and fall >= 0 and rise + fall > 0):
        return float(2.0**best)
    return float(2.0**best * (1 - (rise - 4 * fall) / (4 * (rise + 2 * fall))))


def at_limit(best: float) -> bool:
    """Whether the search for the best multiplier ended at its bounds, so that no size fits the pairs."""
    return not SMALLEST < best < LARGEST


def to_reach(best: float, reach: float = REACH) -> float:
    """The factor to multiply by so that ±`reach` shows what the pairs show.

    With the best multiplier, +½ leads to A and −½ to B; this should happen at ±`reach`.
    """
    return best * 0.5 / reach
