"""Shared by all sliders: the strength's range, inputs, checks and report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_api.v0_0_2 import io
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...difflora import Lora
from ...difflora.errors import InputError
from ...difflora.lora.lora import label
from ...difflora.lora.rack import LIMIT
from ...difflora.sentence import Sentence, printable
from ..common.inputs import within
from ..common.messages import report, ui
from ..common.strength import strength_range
from ..common.types import SliderMapType

STEP = 0.05
MOST_STEPS = 10_000  # entries in a list of strengths, one per step
SWITCHED_OFF = Sentence("switched off: nothing is changed, and the strength is kept")
STRENGTH_0 = Sentence("strength 0: the base model, unchanged")


def _input(name: str, tooltip: str, default: float = 1.0, optional: bool = False) -> io.Input:
    return io.Float.Input(name, default=default, min=-LIMIT, max=LIMIT, step=STEP, optional=optional, tooltip=tooltip)


def strength_input(zero: str) -> io.Input:
    """The widget of a slider's strength. `zero` says what strength 0 gives."""
    return _input(
        "strength",
        f"More of the property above 0, less below. Most sliders work well from -3 to +3; 0 is {zero}.",
    )


def factor_input(zero: str) -> io.Input:
    """The widget of the strength of a whole rack, which a sweep can feed. `zero` says what strength 0 gives."""
    return _input(
        "strength",
        f"Multiplies the strength of every row, for example by a sweep. Usually 1; 0 is {zero}.",
        optional=True,
    )


def outside_input() -> io.Input:
    """The widget of the strength where a map's weight is 0."""
    return _input(
        "strength_outside",
        "The strength where the map's weight is 0; at weight 1 it is strength. Does nothing without a map.",
        default=0.0,
        optional=True,
    )


def map_input(tooltip: str) -> io.Input:
    """The input for a Slider Map."""
    return SliderMapType.Input("map", optional=True, tooltip=tooltip)


def checked_outside(strength: object) -> float:
    """The strength at weight 0. Raises InputError if it is not a number or out of range."""
    within(-LIMIT, LIMIT, strength_outside=strength)
    return float(strength)  # type: ignore[arg-type]  # within() lets only numbers pass


def switch_input() -> io.Input:
    """The switch of a slider. It is the last input: saved workflows lack it."""
    return io.Boolean.Input(
        "on",
        default=True,
        optional=True,
        tooltip="Off is the same as strength 0. The strength is kept for when you switch it on again.",
    )


def checked(strength: object) -> float:
    """A single strength. Raises InputError if it is not a number, such as a list, or out of range."""
    if isinstance(strength, (list, tuple)):
        raise InputError(
            f"strength is a list of {len(strength)} values, one a step, but this slider takes one number. Wire Slider "
            "Map into map to change the strength from step to step."
        )
    within(-LIMIT, LIMIT, strength=strength)
    return float(strength)  # type: ignore[arg-type]  # within() lets only numbers pass


def checked_schedule(strength: object) -> float | list[float]:
    """A single strength, or a list with one for each step. Raises InputError as `checked` does, and for an empty list."""
    if not isinstance(strength, (list, tuple)):
        return checked(strength)
    if not 1 <= len(strength) <= MOST_STEPS:
        raise InputError(
            f"strength is a list of {len(strength)} values; give one number, or a list with one number for each step."
        )
    return [checked(value) for value in strength]


class Notice:
    """A slider's message. A line can be added while a sampler runs, because ComfyUI's history holds the same object."""

    def __init__(self, lora: Lora, lines: Iterable[Sentence], warnings: Iterable[Sentence], dynprompt: Any) -> None:
        lines = [*lines]
        self._report = label(lora), with_unit(lora, lines), [*warnings]
        self.ui = slider_ui(lora, lines, self._report[2])
        context = get_executing_context()
        self._node = context.node_id if context else None
        self._shown_on = dynprompt.get_display_node_id(self._node) if dynprompt and self._node else self._node

    def add(self, line: Sentence) -> None:
        """Show one more line, in place of the one added last."""
        title, lines, warnings = self._report
        self.ui["difflora"][0] |= report(title, [*lines, line], warnings)
        context = get_executing_context()
        told = {"node": self._node, "display_node": self._shown_on, "output": self.ui}
        server = PromptServer.instance
        server.send_sync("executed", told | {"prompt_id": context.prompt_id if context else None}, server.client_id)


def slider_ui(lora: Lora, lines: Iterable[Sentence], warnings: Iterable[Sentence] = ()) -> dict[str, Any]:
    """The `ui` of a slider: its report, and the range that the file recommends."""
    return ui(report(label(lora), with_unit(lora, lines), warnings), strength_range(lora))


def with_unit(lora: Lora, lines: Iterable[Sentence]) -> list[Sentence]:
    """The lines, with the meaning of strength 1 if the LoRA is calibrated."""
    if not lora.unit:
        return [*lines]
    # A unit from a file is anyone's text.
    return [
        *lines,
        Sentence("strength 1 is {0}", lora.unit if isinstance(lora.unit, Sentence) else printable(lora.unit)),
    ]
