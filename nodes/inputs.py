"""What ComfyUI does not check before it runs a node."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..difflora.errors import InputError
from ..difflora.storage import shown


def one_of(name: str, value: object, options: Iterable[str]) -> None:
    """ComfyUI 0.3.75 compares no value with a node's list of options; links are compared by no version."""
    if value not in list(options):
        raise InputError(f"{name} is {shown(value, 60)}; choose one of: {', '.join(options)}.")


def check_strength(strength: float) -> None:
    """NaN is neither below a minimum nor above a maximum."""
    if not math.isfinite(strength):
        raise InputError(f"strength is {strength}; give a number from -10 to 10.")
