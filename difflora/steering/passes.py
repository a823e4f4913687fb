"""At which strengths a step's predictions are made, and how they are blended.

One prediction for each end of the range of strengths that occur in the step, blended at each place. Between -3 and +3
there is one at 0 as well: where the strength is 0, a blend of the two ends would not be the base model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..sentence import Sentence, joined
from .curve import lerp

SAME = 1e-9  # weights that differ by less count as equal: float64 rounding


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes of one step.

    strengths  ascending, one to three
    shares     one fewer, each (frames, height, width) float64 from 0 to 1: how far a place is on the way from one strength
               to the next
    """

    strengths: tuple[float, ...]
    shares: tuple[Tensor, ...]

    @classmethod
    def of(cls, field: Tensor, step_weight: float, strength: float, outside: float) -> Passes:
        """The passes where a place's strength is `outside` at weight 0 and `strength` at weight 1.

        field        (frames, height, width) float64 from 0 to 1
        step_weight  from 0 to 1, the same for every place
        """
        weights = field * step_weight
        least, greatest = float(weights.min()), float(weights.max())
        ends = sorted([lerp(outside, strength, least), lerp(outside, strength, greatest)])
        if greatest - least < SAME or ends[0] == ends[1]:
            return cls((lerp(outside, strength, greatest),), ())
        places = torch.lerp(torch.tensor(outside, dtype=torch.float64), torch.tensor(strength).double(), weights)
        low, high = ends
        between = (weights > least + SAME) & (weights < greatest - SAME)
        strengths = (low, 0.0, high) if low < 0 < high and bool(between.any()) else (low, high)
        shares = tuple(
            ((places - start) / (end - start)).clamp(0, 1) for start, end in zip(strengths, strengths[1:], strict=False)
        )
        return cls(strengths, shares)

    def mix(self, predictions: Sequence[Tensor]) -> Tensor:
        """The prediction of the step from those of its passes; exactly that of a pass wherever its strength is reached.

        predictions  (batch, channels, frames, height, width), or (batch, channels, height, width) for a picture
        """
        mixed = predictions[0]
        for share, prediction in zip(self.shares, predictions[1:], strict=True):
            place = share if prediction.ndim == 5 else share[0]
            mixed = torch.lerp(mixed, prediction, place.to(prediction.device, prediction.dtype))
        return mixed


def passes_told(counts: Iterable[int]) -> Sentence:
    """The passes of every step, such as "6 steps: 2 × 1 pass, 4 × 2 passes"."""
    of_steps = [*counts]
    parts = [
        Sentence("{0} × 1 pass", times) if count == 1 else Sentence("{0} × {1} passes", times, count)
        for count, times in sorted(Counter(of_steps).items())
    ]
    return Sentence("{0} steps: {1}", len(of_steps), joined(parts, ", "))


def kept_between_passes(cache: str) -> UnsupportedError:
    """The error for a model on which `cache` skips steps: it would give one pass what it kept of another."""
    return UnsupportedError(
        f"map: {cache} is on this model. It keeps results from one pass for the next, and the passes of a map "
        "differ on purpose: the result would be wrong. Take it out, or use a map of steps only."
    )


def second_map() -> UnsupportedError:
    """The error for a model that has a slider with a map already."""
    return UnsupportedError(
        "model: there is a slider with a map on this model already. Two of them would need a pass for every pair of "
        "their strengths; give one of them no map."
    )
