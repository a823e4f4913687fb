"""The range of strengths that a LoRA file recommends: written by Save, shown by Load and by the sliders."""

from __future__ import annotations

import re
from typing import Any

from ...difflora import Lora
from ...difflora.errors import OutputError
from ...difflora.lora.rack import LIMIT
from ...difflora.saving.save import STRENGTH_KEY
from ...difflora.sentence import printable


def strength_range(lora: Lora) -> dict[str, Any]:
    """The range that a file recommends in its metadata, as a slider's message; empty if there is none."""
    low, _, high = lora.metadata.get(STRENGTH_KEY, "").partition(" to ")
    try:
        ends = [float(low), float(high)]
    except ValueError:
        return {}
    return {"strength_range": ends} if -LIMIT <= ends[0] < ends[1] <= LIMIT else {}


def strength_entry(text: str) -> dict[str, str]:
    """The metadata entry of a range as a user writes it, such as ``-2.5 to 3``; empty for an empty text.

    raises  OutputError if it is not a range
    """
    if not text.strip():
        return {}
    number = r"([+-]?\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"\s*{number}\s*(?:to|…|\.\.)\s*{number}\s*", text.replace("−", "-"))
    if not match or not -LIMIT <= float(match[1]) < float(match[2]) <= LIMIT:
        raise OutputError(
            f"recommended_strength is {printable(text, 60)!r}; write a range such as -2.5 to 3, within -10 to 10."
        )
    return {STRENGTH_KEY: f"{float(match[1]):g} to {float(match[2]):g}"}
