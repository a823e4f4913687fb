"""LoRA Slider Rack: several LoRA files in one node, each with a switch and a strength, for both kinds of model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ...difflora import load
from ...difflora.errors import DiffLoraError, FileError
from ...difflora.lora.file import FileLora
from ...difflora.lora.rack import MOST, Row, multiplied, rows_of
from ...difflora.sentence import Sentence, printable, with_minus
from ...difflora.training.partners import Half, half_of
from ..common.fingerprints import fingerprint, fingerprint_of_files
from ..common.inputs import found, listed_file, lora_files, one_of
from ..common.messages import report, ui
from ..common.search import found_by
from ..common.strength import strength_range
from ..common.types import WrapperLora
from ..common.widgets import ignore_unknown_input
from .model_weights import Targets
from .native import APPLY, NOT_SAVED, apply_input, lost_behind, put_on
from .opened import OpenedLoras
from .strength import checked, checked_schedule, factor_input
from .wanvideo import chain_inputs, entry_of, temp_files
from .wrapper_wires import chained

TWINS = ["as named", "high", "low"]
NOTHING = Sentence("nothing is added")
NOTHING_ON = Sentence("no LoRA is on: nothing is changed")

_opened = OpenedLoras()


def rows_input() -> io.Input:
    return io.String.Input(
        "rows",
        default="",
        multiline=True,
        tooltip="One LoRA per line: its strength and its file, such as 1.5 folder/name.safetensors; off before it "
        "switches it off. The rack writes this text.",
    )


def twin_input() -> io.Input:
    return io.Combo.Input(
        "twin",
        options=TWINS,
        default=TWINS[0],
        optional=True,
        tooltip="For Wan2.2: high takes the high-noise file of every row, low its low-noise twin, whichever the row "
        "names. The same rows then serve both models.",
    )


@dataclass(frozen=True)
class Pick:
    """A row that is on, and the file that it means.

    name    of the file: the row's own, or its twin
    files   that opening it reads
    """

    row: Row
    name: str
    files: tuple[Path, ...]

    @property
    def stem(self) -> str:
        return printable(self.name.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors"))


def picks_of(rows: Sequence[Row], twin: str) -> list[Pick]:
    """The rows that are on, with their files. Nothing is opened.

    raises  FileError, with the row's number, for a file that is not there, or whose twin is not
    """
    one_of("twin", twin, TWINS)
    picks = []
    for row in rows:
        if row.on:
            with _in_row(row):
                name = _for_model(row.name, twin)
                picks.append(Pick(row, name, tuple(lora_files(name))))
    return picks


def _for_model(name: str, twin: str) -> str:
    """The file for one of the two models of Wan2.2. A name that says neither high nor low is meant for both."""
    if twin == TWINS[0]:
        return name
    half = _half_of(name)
    if half is None or half.noise == twin:
        return name
    if half.twin is None:
        raise FileError(
            f"{printable(name)} is for {half.noise} noise, and its twin for {twin} noise is not in the loras folder. Put it there "
            "under the same name with the other word, or set twin to as named."
        )
    return half.twin


def _half_of(name: str) -> Half | None:
    return half_of(name, folder_paths.get_filename_list("loras"))


def _rows_and_twins(rows: str) -> list[Path]:
    """The files of the rows that are on, and their twins, as far as they are there."""
    names = [row.name for row in rows_of(rows) if row.on]
    twins = [half.twin for name in names if (half := _half_of(name)) and half.twin]
    return [file for name in [*names, *twins] if found("loras", name) for file in lora_files(name)]


@contextmanager
def _in_row(row: Row) -> Iterator[None]:
    """Says in which row an error was."""
    try:
        yield
    except DiffLoraError as problem:
        error = type(problem)
        raise error(f"row {row.number}: {problem}") from problem


class Told:
    """What a rack says: a line a row, and what is wrong with it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._title = Sentence("{0} of {1} LoRAs are on", sum(row.on for row in rows), len(rows))
        self.lines: list[Sentence] = []
        self.warnings: list[Sentence] = []

    def add(
        self, pick: Pick, strength: float | list[float], line: Sentence, warnings: Sequence[Sentence | str] = ()
    ) -> None:
        shown = Sentence("by step") if isinstance(strength, list) else with_minus(f"{strength:+g}")
        self.lines.append(Sentence("{0}, {1}: {2}", pick.stem, shown, line))
        self.warnings += [Sentence("{0}: {1}", pick.stem, warning) for warning in warnings]

    @property
    def ui(self) -> dict[str, Any]:
        return ui(report(self._title, self.lines or [NOTHING_ON], self.warnings))


def _open(pick: Pick, ignore_unknown: bool, twin: str) -> FileLora:
    return _opened.open(pick.files, ignore_unknown, _noise(twin))


def _noise(twin: str) -> str | None:
    """Which part to take of a file that holds the LoRAs of both models."""
    return twin if twin in ("high", "low") else None


def describe(names: Sequence[str], twin: str, ignore_unknown: bool) -> dict[str, dict[str, Any]]:
    """What the page shows of the files of a rack without a run, by name. Reads their headers."""
    return {name: _facts(name, twin, ignore_unknown) for name in names[:MOST]}


def _facts(name: str, twin: str, ignore_unknown: bool) -> dict[str, Any]:
    half = _half_of(name)
    facts: dict[str, Any] = {"noise": half.noise, "twin": half.twin} if half else {}
    if not found("loras", name):
        return facts | {"missing": True}
    try:
        lora = load(listed_file("loras", name), ignore_unknown, noise=_noise(twin))
    except DiffLoraError as problem:
        return facts | {"error": str(problem)}
    return facts | {"base": str(lora.base_model or ""), "rank": str(lora.rank_text)} | strength_range(lora)


class _Rack(io.ComfyNode):
    """What the racks for both kinds of model have in common: the files of their rows."""

    @classmethod
    def files_read(cls, rows: str, twin: str = TWINS[0], **_: Any) -> list[Path]:
        """For Sweep Grid, which names clips by what these files hold."""
        return [file for pick in picks_of(rows_of(rows), twin) for file in pick.files]

    @classmethod
    def fingerprint_inputs(cls, rows: str | None = None, **_: Any) -> object:
        # The twin of a row counts too: which of the two is used may come from another node.
        return fingerprint_of_files(_rows_and_twins, rows)


class SliderRack(_Rack):
    """The same as one LoRA Slider after another, from the first row to the last."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSliderRack",
            display_name="LoRA Slider Rack (model)",
            category="Differential LoRA",
            **found_by(
                "slider", "power lora loader", "lora stack", "multi lora", "several loras", "lora loader", "wan2.2"
            ),
            description="Several LoRA files on a model, each with a switch, a strength and its recommended range. The same as LoRA "
            "Sliders one after another.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change. Racks and sliders can follow one another."),
                rows_input(),
                factor_input("the base model"),
                apply_input(),
                twin_input(),
                ignore_unknown_input(),
            ],
            outputs=[io.Model.Output("changed", display_name="model", tooltip="The model with all LoRAs that are on.")],
            hidden=[io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        rows: str,
        strength: float = 1.0,
        apply: str = APPLY[0],
        twin: str = TWINS[0],
        ignore_unknown: bool = False,
    ) -> io.NodeOutput:
        strength = checked(strength)
        one_of("apply", apply, APPLY)
        listed = rows_of(rows)
        picks = [(pick, multiplied(pick.row, strength)) for pick in picks_of(listed, twin)]
        told = Told(listed)
        fitting = {}
        # All are opened and checked before the first is put on.
        for pick, own in picks:
            if own:
                with _in_row(pick.row):
                    lora = _open(pick, ignore_unknown, twin)
                    fitting[pick] = lora, Targets(model, lora)
        beside = False
        for pick, own in picks:
            if not own:
                told.add(pick, own, NOTHING)
                continue
            lora, targets = fitting[pick]
            with _in_row(pick.row):
                put = put_on(model, lora, targets, own, apply)
            model, beside = put.model, beside or put.beside
            told.add(pick, own, put.line, [*lora.warnings, *targets.warnings, *put.warnings])
        if beside:
            told.lines.append(NOT_SAVED)
            told.warnings += lost_behind(cls.hidden.dynprompt)
        return io.NodeOutput(model, ui=told.ui)


class SliderRackWanVideo(_Rack):
    """The same as one LoRA Slider (WanVideoWrapper) after another, from the first row to the last."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSliderRackWanVideo",
            display_name="LoRA Slider Rack (WanVideoWrapper)",
            category="Differential LoRA",
            **found_by(
                "slider", "power lora loader", "lora stack", "multi lora", "several loras", "wan lora", "wan2.2"
            ),
            description="Several LoRA files for WanVideo Set LoRAs, each with a switch, a strength and its recommended range. The "
            "same as LoRA Sliders one after another.",
            inputs=[
                rows_input(),
                factor_input("the model as it is"),
                *chain_inputs(),
                twin_input(),
                ignore_unknown_input(),
            ],
            outputs=[WrapperLora.Output("wan_lora", display_name="lora", tooltip="For WanVideo Set LoRAs.")],
        )

    @classmethod
    def fingerprint_inputs(cls, rows: str | None = None, **_: Any) -> object:
        known = super().fingerprint_inputs(rows)
        return known if known is math.nan else fingerprint([known, temp_files.losses])

    @classmethod
    def execute(
        cls,
        rows: str,
        merge_loras: bool,
        low_mem_load: bool,
        strength: float | list[float] = 1.0,
        prev_lora: list[Any] | None = None,
        model: Any = None,
        twin: str = TWINS[0],
        ignore_unknown: bool = False,
    ) -> io.NodeOutput:
        schedule = checked_schedule(strength)
        listed = rows_of(rows)
        told, chain = Told(listed), list(prev_lora or [])
        for pick in picks_of(listed, twin):
            own = (
                [multiplied(pick.row, each) for each in schedule]
                if isinstance(schedule, list)
                else multiplied(pick.row, schedule)
            )
            if not any(own if isinstance(own, list) else [own]):
                told.add(pick, 0.0, NOTHING)
                continue
            with _in_row(pick.row):
                lora = _open(pick, ignore_unknown, twin)
                entry, lines, warnings = entry_of(lora, own, merge_loras, low_mem_load, model)
                chain = chained(chain, entry)
            told.add(pick, own, lines[0], [*lora.warnings, *warnings])
        return io.NodeOutput(chain, ui=told.ui)


NODES = [SliderRack, SliderRackWanVideo]
