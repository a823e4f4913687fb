"""The strengths of a sweep: evenly spaced, or typed."""

from __future__ import annotations

import math
import re

from ..errors import UnsupportedError
from ..sentence import printable

LIMIT = 10.0
MOST = 64


def sweep_strengths(start: float, stop: float, count: int, typed: str = "", include_zero: bool = True) -> list[float]:
    """The strengths in the order in which they are shown.

    typed           numbers with commas, spaces or line breaks between them. They stand in for the even spacing, in the
                    order typed, repeated ones too
    include_zero    insert 0 if it is missing: at its place in sorted strengths, otherwise first
    """
    if typed.strip():
        strengths = [_number(word) for word in re.split(r"[\s,;]+", typed.strip()) if word]
    elif count == 1:
        strengths = [start]
    else:
        # Rounded, so that no label and no clip name reads 0.30000000000000004.
        strengths = [round(start + (stop - start) * index / (count - 1), 6) for index in range(count)]
    for strength in strengths:
        if not abs(strength) <= LIMIT:
            raise UnsupportedError(f"{strength:g} is beyond the sliders' range. Keep the strengths from -10 to 10.")
    strengths = [strength + 0.0 for strength in strengths]  # -0.0 would be another clip than 0
    if include_zero and 0.0 not in strengths:
        strengths.insert(_place_of_zero(strengths), 0.0)
    if len(strengths) > MOST:
        raise UnsupportedError(
            f"{len(strengths)} strengths are more than the {MOST} that one sweep may have. Take fewer."
        )
    return strengths


def _place_of_zero(strengths: list[float]) -> int:
    if strengths == sorted(strengths):
        return sum(strength < 0 for strength in strengths)
    if strengths == sorted(strengths, reverse=True):
        return sum(strength > 0 for strength in strengths)
    return 0


def _number(word: str) -> float:
    try:
        number = float(word.replace("−", "-"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UnsupportedError(
            f"strengths: {printable(word, 60)!r} is no number. Type numbers with commas between, such as -3, 0, 1.5."
        )
    return number
