"""A rack of sliders as text: one LoRA a line. `js/lib/rack.js` reads and writes the same."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

from ..errors import InputError
from ..sentence import printable

LIMIT = 10.0  # strengths of every slider
MOST = 100

# A strength is a plain number; the minus may be the real one. Blanks are spaces and tabs.
_ROW = re.compile(
    r"(?:(off)[ \t]+)?([+−-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)[ \t]+(.+)", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True)
class Row:
    """One LoRA of a rack.

    number  of the row, from 1; empty lines do not count
    name    of the file, as written: relative to a loras folder
    """

    number: int
    strength: float
    name: str
    on: bool = True


def rows_of(text: str) -> list[Row]:
    """The rows of a rack.

    A line is a strength and the name of a file, `-1.5 folder/name.safetensors`; with `off` before it, the row is
    switched off. A name that cannot stand like that (blanks at its ends, a line break) is written as a JSON string.

    raises  InputError for a line that cannot be read, a strength beyond the sliders' range, and too many rows
    """
    lines = [line.strip(" \t") for line in re.split(r"\r?\n", text)]
    lines = [line for line in lines if line]
    if len(lines) > MOST:
        raise InputError(f"rows: {len(lines)} LoRAs are more than the {MOST} that one rack may have. Use two racks.")
    return [_row(number, line) for number, line in enumerate(lines, 1)]


def _row(number: int, line: str) -> Row:
    found = _ROW.fullmatch(line)
    name = _name(found[3]) if found else None
    if not found or not name:
        raise InputError(
            f"row {number}: {printable(line, 60)} cannot be read. Write a strength and a file, such as 1.5 "
            "folder/name.safetensors, with off before it to switch the row off."
        )
    strength = float(found[2].replace("−", "-"))
    if not abs(strength) <= LIMIT:
        raise InputError(f"row {number}: the strength is {strength:g}; give a number from {-LIMIT:g} to {LIMIT:g}.")
    return Row(number, strength + 0.0, name, not found[1])  # -0.0 would be another strength than 0


def _name(text: str) -> str | None:
    if not text.startswith('"'):
        return text
    try:
        name = json.loads(text)
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def multiplied(row: Row, factor: float) -> float:
    """A row's strength times that of the whole rack. Raises InputError if that is beyond the sliders' range."""
    strength = row.strength * factor
    if not math.isfinite(strength) or abs(strength) > LIMIT:
        raise InputError(
            f"row {row.number}: {row.strength:g} times the rack's strength {factor:g} is {strength:g}, beyond the sliders' "
            f"range of {-LIMIT:g} to {LIMIT:g}. Lower one of them."
        )
    return strength + 0.0
