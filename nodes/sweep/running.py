"""The sweeps of this server: what a running one has to know, and what is kept of those that have ended."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import folder_paths
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...difflora.clips.mosaic import Label, signed
from ...difflora.clips.store import ClipStore, StoredClip
from ...difflora.errors import InputError, UnsupportedError
from ...difflora.sentence import Sentence
from ..common.messages import report
from .between import Between, Link
from .files import WatchedFiles
from .previews import player_of_clips

_RUNS_KEPT = 256  # more than one prompt has grids
_FINISHED_KEPT = 16

_Value = TypeVar("_Value")


class _Latest(OrderedDict[str, _Value]):
    """A dictionary that drops its oldest entries."""

    def __init__(self, most: int):
        super().__init__()
        self._most = most

    def __setitem__(self, key: str, value: _Value) -> None:
        super().__setitem__(key, value)
        while len(self) > self._most:
            self.popitem(last=False)


@dataclass(eq=False)
class PromptCells:
    """What the grids of one running prompt are already going to render: key -> the link of its grid's last cell."""

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    cells: dict[str, Link] = field(default_factory=dict)


class Sweeps:
    """Everything that outlives a node's call."""

    def __init__(self) -> None:
        self.files = WatchedFiles()
        # By their name. Not in the prompt: anybody can put an inner node into one, and a cell deletes what its run calls
        # its own.
        self._runs: _Latest[SweepRun] = _Latest(_RUNS_KEPT)
        # No other sweep pushes the clips of these out of the store, and what becomes of them is watched.
        self._finished: _Latest[SweepRun] = _Latest(_FINISHED_KEPT)
        self._lost = 0
        self._prompts: WeakKeyDictionary[Any, PromptCells] = WeakKeyDictionary()

    @property
    def store(self) -> ClipStore:
        """ComfyUI empties its temp folder when it starts; its folder for what belongs to no user, it keeps."""
        return ClipStore(Path(folder_paths.get_system_user_directory("differential_lora")) / "sweeps")

    def cells_of(self, dynprompt: Any) -> PromptCells:
        """dynprompt: ComfyUI's object for a running prompt."""
        return self._prompts.setdefault(dynprompt, PromptCells())

    def begin(self, run: SweepRun) -> None:
        self._runs[run.name] = run

    def run(self, name: object) -> SweepRun:
        """raises   InputError where no Sweep Grid has begun one of this name."""
        run = self._runs.get(name) if isinstance(name, str) else None
        if run is None:
            raise InputError("run is none that Sweep Grid has begun. It puts this node in by itself.")
        return run

    def others_with(self, key: str, run: SweepRun) -> list[SweepRun]:
        """Runs of the same prompt that show this clip, too."""
        others = [other for other in self._runs.values() if other is not run and other.prompt == run.prompt]
        return [other for other in others if key in other.keys]

    def end(self, run: SweepRun) -> None:
        """Keep a run that is complete, and make room in the store for the next ones."""
        self._finished[run.name] = run
        needed = [*self._finished.values(), *(other for other in self._runs.values() if other.prompt == run.prompt)]
        self.store.prune(keep={key for other in needed for key in other.keys})

    def count_lost(self) -> int:
        """How many finished sweeps have lost clips since: what ComfyUI still holds of them is of no use."""
        for name in [name for name, run in self._finished.items() if not all(map(self.store.has, run.keys))]:
            del self._finished[name]
            self._lost += 1
        return self._lost


SWEEPS = Sweeps()


@dataclass(frozen=True)
class SweepRun:
    """One grid being rendered: all that the nodes of its expansion have to know.

    prompt      the name of its prompt's cells
    message     what the page has been told last. A list of ComfyUI's holds the same object, so that the history has the
                latest, too
    """

    strengths: list[float]
    keys: list[str]
    arrange: str
    cell_size: int
    fps: float
    baseline: float
    text: str
    restless: list[str]
    grid: str
    prompt: str
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    message: dict[str, Any] = field(default_factory=dict)

    def add_cells(self, graph: GraphBuilder, between: Between, ahead: PromptCells) -> dict[str, Any]:
        """Put a gate, a clone and a cell into the graph for each clip that is missing. Returns the last cell's link.

        What another grid of the prompt has begun to render is waited for.
        """
        store = SWEEPS.store
        missing = {key: strength for key, strength in zip(self.keys, self.strengths, strict=True) if not store.get(key)}
        after: Link | None = None
        for last in dict.fromkeys(tuple(ahead.cells[key]) for key in missing if key in ahead.cells):
            # A gate that lets the end of one grid pass when another one has ended, too.
            after = (
                list(last)
                if after is None
                else graph.node("DiffLoraSweepGate", strength=after, run=self.name, after=list(last)).out(0)
            )
        missing = {key: strength for key, strength in missing.items() if key not in ahead.cells}
        fixed = between.clone_fixed(graph) if missing else {}
        for number, (key, strength) in enumerate(missing.items()):
            # The run is among the inputs: what a clone leaves in ComfyUI's cache is never asked for again.
            gate = graph.node(
                "DiffLoraSweepGate", f"{number}.gate", strength=strength, run=self.name, **_waiting(after)
            )
            pictures = between.clone(graph, str(number), fixed, gate.out(0))
            cell = graph.node("DiffLoraSweepCell", f"{number}.cell", images=pictures, key=key, run=self.name)
            for node in (gate, cell):
                node.set_override_display_id(self.grid)
            after = cell.out(0)
        if after:
            ahead.cells |= dict.fromkeys(missing, after)
        return _waiting(after)

    def clips(self) -> list[StoredClip]:
        """All clips, in the order of the strengths."""
        clips = [SWEEPS.store.get(key) for key in self.keys]
        there = [clip for clip in clips if clip is not None]
        if len(there) < len(clips):
            raise UnsupportedError("A finished clip has been deleted while the sweep was running. Run it again.")
        return there

    def labels(self) -> list[Label]:
        lines = self.text.splitlines() or [""]
        if len(lines) not in (1, len(self.strengths)):
            raise UnsupportedError(
                f"text has {len(lines)} lines for {len(self.strengths)} clips. Write one line for all, or one for each."
            )
        return [
            Label(signed(strength), lines[index % len(lines)].strip(), strength == self.baseline)
            for index, strength in enumerate(self.strengths)
        ]

    def message_now(self) -> dict[str, Any]:
        """What is there and what is missing at this moment: a player for the one, a line for the other."""
        found = {key: clip for key in self.keys if (clip := SWEEPS.store.get(key))}
        there = [index for index, key in enumerate(self.keys) if key in found]
        message: dict[str, Any] = {}
        if there:
            labels = self.labels()
            message |= player_of_clips(
                [found[self.keys[index]] for index in there],
                [labels[index] for index in there],
                [self.keys[index] for index in there],
                self.fps,
            )
        return self._say(message | self._state(there))

    def show_now(self) -> None:
        """The same on the page, at once: the cell that has run is another grid's."""
        context = get_executing_context()
        told = {"node": self.grid, "display_node": self.grid, "output": {"difflora": [self.message_now()]}}
        server = PromptServer.instance
        server.send_sync("executed", told | {"prompt_id": context.prompt_id if context else None}, server.client_id)

    def finished(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._say(message | self._state(list(range(len(self.strengths)))))

    def _state(self, there: list[int]) -> dict[str, Any]:
        missing = [signed(strength) for index, strength in enumerate(self.strengths) if index not in there]
        lines = [Sentence("{0} of {1} strengths are there", len(there), len(self.strengths))]
        if missing:
            lines.append(Sentence("missing: {0}. The next run renders only these", ", ".join(missing)))
        warnings = []
        if self.restless:
            restless = ", ".join(self.restless)
            warnings.append(Sentence("{0}: other each time, so no strength can be kept for the next run", restless))
        if self.baseline not in self.strengths:
            warnings.append(Sentence("the baseline {0} is not among the strengths", signed(self.baseline)))
        return report(Sentence("Sweep"), lines, warnings)

    def _say(self, message: dict[str, Any]) -> dict[str, Any]:
        self.message.clear()
        self.message.update(message)
        return self.message


def _waiting(after: Link | None) -> dict[str, Link]:
    return {"after": after} if after else {}
