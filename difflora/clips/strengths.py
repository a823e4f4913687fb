"""The strengths of a sweep: evenly spaced, or typed; and which of them are one machine's share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UnsupportedError
from ..lora.rack import LIMIT
from ..sentence import printable

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


@dataclass(frozen=True)
class Share:
    """The part of a sweep that one machine renders: every so many strengths, so that each share reaches from end to end.

    number      from 1 on
    """

    number: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: object) -> Share:
        """What a person writes: all, or 2 of 3.

        raises      UnsupportedError for anything else
        """
        found = re.fullmatch(r"\s*(\d{1,3})\s*(?:of|/)\s*(\d{1,3})\s*", str(text), re.IGNORECASE)
        share = cls(int(found[1]), int(found[2])) if found else cls()
        if not (found or str(text).strip().lower() == "all") or not 1 <= share.number <= share.of <= MOST:
            raise UnsupportedError(
                f"share is {printable(text, 60)}. Write all, or this server's share: 1 of 3, 2 of 3, 3 of 3."
            )
        return share

    @property
    def is_all(self) -> bool:
        return self.of == 1

    def lanes(self, keys: Iterable[str]) -> list[list[str]]:
        """The keys of every share, in the order in which they are rendered. A repeated key is rendered once."""
        distinct = list(dict.fromkeys(keys))
        return [distinct[number :: self.of] for number in range(self.of)]


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
            f"strengths: {printable(word, 60)!r} is not a number. Type numbers with commas between, such as -3, 0, 1.5."
        )
    return number
