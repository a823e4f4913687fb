"""Curves as text that both users and a widget can write: ``0:0, 40:1, 80:1``."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass

from ..errors import InputError
from ..sentence import printable

MOST_POINTS = 100
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_POINT = re.compile(rf"({_NUMBER})\s*%?\s*:\s*({_NUMBER})")
_WIDE = str.maketrans("，；：％", ",;:%")  # as typed on Japanese and Chinese keyboards


@dataclass(frozen=True)
class Curve:
    """A weight for every position: linear between points, constant before the first and after the last.

    points  (position, weight) in ascending order; position in percent, weight from 0 to 1. Two points at one
            position are a jump, and the later one applies there.
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def parse(cls, text: str, name: str) -> Curve:
        """Parse a curve. Empty text is 1 everywhere, a single number is that number everywhere.

        name    of the input, for errors
        raises  InputError if the text is not a curve
        """
        words = [word.strip() for word in re.split(r"[,;\n]", text.translate(_WIDE)) if word.strip()]
        if not words:
            return cls(((0.0, 1.0),))
        if len(words) > MOST_POINTS:
            raise InputError(f"{name} has {len(words)} points; draw it with at most {MOST_POINTS}.")
        if len(words) == 1 and re.fullmatch(_NUMBER, words[0]):
            words = [f"0:{words[0]}"]
        points = tuple(_point(word, name) for word in words)
        for (before, _), (after, _) in zip(points, points[1:], strict=False):
            if after < before:
                raise InputError(f"{name} goes back from {before:g} to {after:g}; write the points in ascending order.")
        return cls(points)

    def at(self, position: float) -> float:
        """The weight at a position in percent."""
        after = bisect.bisect_right(self.points, position, key=lambda point: point[0])
        if after == 0:
            return self.points[0][1]
        if after == len(self.points):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = self.points[after - 1], self.points[after]
        return lerp(y0, y1, (position - x0) / (x1 - x0))

    @property
    def is_level(self) -> bool:
        """Whether the weight is the same everywhere."""
        return len({weight for _, weight in self.points}) == 1


def lerp(start: float, end: float, weight: float) -> float:
    """Interpolate from `start` to `end`, exact at 0 and 1 like torch.lerp."""
    return start + weight * (end - start) if weight < 0.5 else end - (end - start) * (1 - weight)


def _point(word: str, name: str) -> tuple[float, float]:
    match = _POINT.fullmatch(word)
    if not match:
        raise InputError(
            f"{name}: {printable(word, 40)!r} is not a point; write position:weight, such as 0:0, 40:1, 100:1, or leave it "
            "empty."
        )
    position, weight = float(match[1]), float(match[2])
    if not (0 <= position <= 100 and 0 <= weight <= 1):
        raise InputError(f"{name}: {word} is out of range; positions go from 0 to 100 per cent, weights from 0 to 1.")
    return position, weight
