"""The sweeps of this server: the state of running ones, and what is kept of finished ones."""

from __future__ import annotations

import asyncio
import statistics
import threading
import uuid
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

import folder_paths
import torch
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...difflora.clips.arrivals import Arrivals
from ...difflora.clips.mosaic import Label, label_text, signed
from ...difflora.clips.place import store_at
from ...difflora.clips.store import About, ClipStore, StoredClip, is_black
from ...difflora.clips.strengths import Share
from ...difflora.errors import InputError, UnsupportedError
from ...difflora.sentence import Sentence
from ...difflora.storage.hashes import ContentHashes
from ..common.messages import report
from .between import Between, Clones, Link, Wanted
from .files import WatchedFiles
from .let_go import let_go
from .previews import PREVIEWS, player_of_clips

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


class Sweeps:
    """All state that outlives a node's call."""

    def __init__(self) -> None:
        self.files = WatchedFiles()
        self.hashes = ContentHashes(self._folder / "hashes.json")
        # By name. Not in the prompt: anyone can put an inner node into a prompt, and a cell deletes the clips of its run.
        self._runs: _Latest[SweepRun] = _Latest(_RUNS_KEPT)
        # No other sweep may push these sweeps' clips out of the store, and their loss is noticed.
        self._finished: _Latest[SweepRun] = _Latest(_FINISHED_KEPT)
        self._lost = 0
        self._prompts: WeakKeyDictionary[Any, PromptCells] = WeakKeyDictionary()

    @cached_property
    def store(self) -> ClipStore:
        """raises   InputError if the file that names the folder is invalid; it is then read again"""
        return store_at(self._folder, f"user/{self._folder.name}")

    @property
    def _folder(self) -> Path:
        """ComfyUI empties its temp folder when it starts, but keeps its folder for data of no user, which no request can
        write to.
        """
        return Path(folder_paths.get_system_user_directory("differential_lora"))

    def cells_of(self, dynprompt: Any) -> PromptCells:
        """dynprompt: ComfyUI's object for a running prompt."""
        return self._prompts.setdefault(dynprompt, PromptCells())

    def begin(self, run: SweepRun) -> None:
        self._runs[run.name] = run

    def run(self, name: object) -> SweepRun:
        """raises   InputError if no Sweep Grid has started a run of this name."""
        run = self._runs.get(name) if isinstance(name, str) else None
        if run is None:
            raise InputError("run is not one that Sweep Grid started. Sweep Grid adds this node itself.")
        return run

    def of_prompt(self, prompt: PromptCells) -> list[SweepRun]:
        return [run for run in self._runs.values() if run.prompt is prompt]

    def end(self, run: SweepRun) -> None:
        """Remember a run that has ended, and make room in the store for the next ones."""
        run.is_over = True
        self._finished[run.name] = run
        if not run.is_partial:
            self.store.complete(run.keys)
        needed = [*self._finished.values(), *self.of_prompt(run.prompt)]
        self.store.prune(keep={key for other in needed for key in other.keys})

    def count_lost(self) -> int:
        """How many finished sweeps have lost clips since, or never had all: results that ComfyUI has cached are then useless."""
        for name, run in list(self._finished.items()):
            if run.is_partial or not all(map(self.store.has, run.keys)):
                del self._finished[name]
                self._lost += 1
        return self._lost + PREVIEWS.losses

    def news(self, token: str, version: str) -> dict[str, Any] | None:
        """What a grid shows now, if that differs from what the page has; empty if not; None for a run of an earlier server.

        version     of the clips that the page knows
        """
        run = next((run for run in list(self._runs.values()) if run.token == token), None)
        if run is None:
            return None
        with run.lock:
            run.arrivals.look()
            return {} if version == str(run.arrivals.version) else dict(run.message_now())


@dataclass(eq=False)
class Step:
    """One strength of a running sweep, for every grid that needs it.

    cells       key -> link of the cell that will keep this clip
    """

    sweep: str
    strength: float
    cells: dict[str, Link] = field(default_factory=dict)


@dataclass(eq=False)
class PromptCells:
    """The work that the grids of one running prompt share: each strength is rendered once, one at a time.

    clones      of the unfinished steps
    users       id of a clone -> keys of the clips that are made from it
    broken      key -> what is wrong with these pictures
    """

    steps: list[Step] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    broken: dict[str, str] = field(default_factory=dict)
    clones: Clones = field(default_factory=dict)
    users: dict[str, set[str]] = field(default_factory=dict)
    rendering: Step | None = None
    _pixels: dict[str, ReferenceType[torch.Tensor]] = field(default_factory=dict)
    _watcher: asyncio.Task[None] | None = None

    def cell_of(self, key: str) -> Link | None:
        return next((step.cells[key] for step in self.steps if key in step.cells), None)

    def step_of(self, sweep: str, strength: float) -> Step | None:
        """The unfinished step of a strength."""
        return next(
            (
                step
                for step in self.steps
                if (step.sweep, step.strength) == (sweep, strength) and not self._is_done(step)
            ),
            None,
        )

    def waited_for(self, step: Step) -> Link | None:
        """A cell of an earlier, unfinished step."""
        for earlier in self.steps[: self.steps.index(step)]:
            for key, link in earlier.cells.items():
                if key not in self.done:
                    return link
        return None

    def finish(self, key: str, source: str, pixels: torch.Tensor | None) -> None:
        """Finish a clip, whether stored or given up. Its pictures are freed when no other clip needs them."""
        self.done.add(key)
        if pixels is not None:
            self._pixels[source] = ref(pixels)
            del pixels  # otherwise this name would count as another user of them
        for clone in [clone for clone in self._pixels if self.users.get(clone, set()) <= self.done]:
            let_go(self._pixels.pop(clone))
        # A later grid makes these again: their output may be gone.
        over = {clone for clone, keys in self.users.items() if keys <= self.done}
        self.clones = {name: clone for name, clone in self.clones.items() if clone not in over}

    def watch_end(self) -> None:
        """Show on the page what is missing if the prompt ends early. ComfyUI has no event for that, but it cancels whatever still
        waits in the prompt's event loop.
        """
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._wait_for_end())

    async def _wait_for_end(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.rendering = None
            for run in SWEEPS.of_prompt(self):
                if not run.is_over:
                    run.is_over = True
                    run.show_now()

    def _is_done(self, step: Step) -> bool:
        return step.cells.keys() <= self.done


@dataclass(eq=False)
class SweepRun:
    """One grid being rendered: the state that the nodes of its expansion share.

    share       the part that this server renders; other clips come from other servers or exist already
    token       with which the page asks for news. It is not told the name, which would allow writing into the run
    sources     key -> the clone that gives its pictures
    kinds       the kinds of nodes between the sweep and the grid
    message     the last message to the page. ComfyUI's history holds the same object, so it has the latest one too
    """

    sweep: str
    strengths: list[float]
    keys: list[str]
    kinds: list[str]
    arrange: str
    cell_size: int
    fps: float
    baseline: float
    text: str
    restless: list[str]
    grid: str
    prompt: PromptCells
    share: Share = Share()
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[Sentence] = field(default_factory=list)
    is_over: bool = False
    is_partial: bool = False
    message: dict[str, Any] = field(default_factory=dict)
    # The page asks while the prompt runs.
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        lanes = self.share.lanes(self.keys)
        self.own = frozenset(lanes[self.share.number - 1])
        self.arrivals = Arrivals(SWEEPS.store, lanes)

    def add_cells(self, graph: GraphBuilder, between: Between, wanted: Sequence[Wanted]) -> dict[str, Any]:
        """Put a gate, a clone and a cell into the graph for each clip that is missing. Returns the last cell's link.

        Clips that another grid of the prompt has started are shared and waited for; those of another server are not.
        """
        SWEEPS.store.plan(self.keys)
        self.arrivals.look_for_all()
        for key in self.own.intersection(self.faults(self.clips())):
            self.remove(key)
        clips = self.clips()
        missing = {each.key: each for each in wanted if each.key in self.own and each.key not in clips}
        prompt, after = self.prompt, None
        fixed = between.clone_fixed(graph, prompt.clones, wanted[0].digests) if missing else {}
        for number, (key, each) in enumerate(missing.items()):
            if theirs := prompt.cell_of(key):
                after = theirs
                continue
            step = prompt.step_of(self.sweep, each.strength)
            if step is None:
                step = Step(self.sweep, each.strength)
                previous = [link for earlier in prompt.steps[-1:] for link in earlier.cells.values()]
                # The run is one of the inputs: nothing asks again for what a clone leaves in ComfyUI's cache.
                gate = graph.node(
                    "DiffLoraSweepGate", f"{number}.gate", strength=each.strength, run=self.name, **waiting(*previous)
                )
                gate.set_override_display_id(self.grid)
                prompt.clones[self.sweep, each.digests[self.sweep]] = gate.id
                prompt.steps.append(step)
            gate_id = prompt.clones[self.sweep, each.digests[self.sweep]]
            pictures = between.clone(graph, str(number), fixed, gate_id, prompt.clones, each)
            cell = graph.node("DiffLoraSweepCell", f"{number}.cell", images=pictures, key=key, run=self.name)
            cell.set_override_display_id(self.grid)
            after = step.cells[key] = cell.out(0)
            self.sources[key] = pictures[0]
            for name in between.varying:
                prompt.users.setdefault(prompt.clones[name, each.digests[name]], set()).add(key)
        return waiting(after)

    def clips(self) -> dict[str, StoredClip]:
        """The clips that have been seen, by key, in the order of the strengths."""
        seen = self.arrivals.seen
        return {key: seen[key] for key in self.keys if key in seen}

    def remove(self, key: str) -> None:
        """Delete a faulty clip. The next run renders it again."""
        SWEEPS.store.remove(key)
        self.arrivals.forget(key)

    def faults(self, clips: Mapping[str, StoredClip]) -> dict[str, str]:
        """key -> what is wrong: pictures that are not finite, or black where the baseline's are not.

        Without the baseline, and for the baseline itself, the median of the others counts.
        """
        faults = {key: fault for key, fault in self.prompt.broken.items() if key in self.keys}
        bright = {key: clip.about.brightest for key, clip in clips.items() if key not in faults}
        base = next((key for key, at in zip(self.keys, self.strengths, strict=True) if at == self.baseline), None)
        for key in bright:
            others = [value for other, value in bright.items() if other != key]
            if clips[key].about.is_black and others:
                middle = round(statistics.median(others))
                reference = bright[base] if base in bright and base != key else middle
                if not is_black(reference):
                    faults[key] = BLACK
        return faults

    def check_shape(self, key: str, about: About) -> None:
        """Raise UnsupportedError if this clip's length or size is not that of the other strengths' clips.

        Clips that differ from the majority are not kept, so the next run renders them again.
        """
        shapes = {other: clip.about.shape for other, clip in self.clips().items()} | {key: about.shape}
        counted = Counter(shapes.values()).most_common()
        if len(counted) == 1:
            return
        usual = counted[0][0] if 2 * counted[0][1] > len(shapes) else None
        for other, shape in shapes.items():
            if shape != usual:
                self.remove(other)
        strengths = dict(zip(self.keys, self.strengths, strict=True))
        each = "; ".join(
            f"{', '.join(signed(strengths[other]) for other in shapes if shapes[other] == shape)}: "
            f"{shape[0]} frames of {shape[1]}×{shape[2]}"
            for shape, _ in counted
        )
        raise UnsupportedError(
            f"images: the clips of this sweep are not alike ({each}), so one of them holds other pictures than its "
            f"strength's. Look at the nodes in between: {', '.join(self.kinds)}."
        )

    def labels(self) -> list[Label]:
        lines = self.text.splitlines() or [""]
        if len(lines) not in (1, len(self.strengths)):
            raise UnsupportedError(
                f"text has {len(lines)} lines for {len(self.strengths)} clips. Write one line for all, or one for each."
            )
        return [
            Label(signed(strength), label_text(lines[index % len(lines)]), strength == self.baseline)
            for index, strength in enumerate(self.strengths)
        ]

    def message_now(self) -> dict[str, Any]:
        """The current state: a player for the clips that exist, a line for those that are missing."""
        with self.lock:
            return self._message_now()

    def _message_now(self) -> dict[str, Any]:
        self.arrivals.look()
        clips = self.clips()
        for key in self.faults(clips):
            clips.pop(key, None)
        there = [index for index, key in enumerate(self.keys) if key in clips]
        message: dict[str, Any] = {}
        if there:
            labels = self.labels()
            message |= player_of_clips(
                [clips[self.keys[index]] for index in there],
                [labels[index] for index in there],
                [self.keys[index] for index in there],
                self.fps,
            )
        return self._say(message | self._state(there))

    def show_now(self) -> None:
        """Send this to the page at once: the node that ran belongs to another grid."""
        context = get_executing_context()
        told = {"node": self.grid, "display_node": self.grid, "output": {"difflora": [self.message_now()]}}
        server = PromptServer.instance
        server.send_sync("executed", told | {"prompt_id": context.prompt_id if context else None}, server.client_id)

    def finished(self, message: dict[str, Any], there: Sequence[int], faults: Mapping[str, str]) -> dict[str, Any]:
        return self._say(message | self._state(there, faults))

    def _state(self, there: Sequence[int], faults: Mapping[str, str] | None = None) -> dict[str, Any]:
        faults = self.faults(self.clips()) if faults is None else faults
        broken = [index for index, key in enumerate(self.keys) if key in faults]
        absent = [index for index in range(len(self.keys)) if index not in there and index not in broken]
        missing = [index for index in absent if self.keys[index] in self.own]
        theirs = [index for index in absent if self.keys[index] not in self.own]
        own = [index for index, key in enumerate(self.keys) if key in self.own]
        count = len(own)
        lines = [Sentence("{0} of {1} strengths are there", len(there), len(self.strengths))]
        if not self.share.is_all:
            what = self._listed(own) or "–"
            lines.append(Sentence("this server renders share {0} of {1}: {2}", self.share.number, self.share.of, what))
        if missing and self.is_over:
            lines.append(Sentence("missing: {0}. The next run renders only these", self._listed(missing)))
        elif missing:
            step = self.prompt.rendering
            now = [
                index
                for index in missing
                if step and (step.sweep, step.strength) == (self.sweep, self.strengths[index])
            ]
            if now:
                number = count - len(missing) + 1
                lines.append(Sentence("rendering {0} ({1} of {2})", signed(self.strengths[now[0]]), number, count))
            if waiting_for := [index for index in missing if index not in now]:
                lines.append(Sentence("still to come: {0}", self._listed(waiting_for)))
        if theirs:
            lines.append(Sentence("from other shares: {0}. They appear here as they arrive", self._listed(theirs)))
        if theirs and self.is_over:
            lines.append(Sentence("the sweep output waits for them: run this again when all are there"))
        if self.is_partial and not absent:
            lines.append(Sentence("all shares are there: run this again for the sweep output"))
        warnings = [
            Sentence("{0}: {1}. It is left out, and the next run renders it again", signed(self.strengths[index]),
                     _FAULTS[faults[self.keys[index]]])
            for index in broken
        ]  # fmt: skip
        warnings += self.notes
        if self.restless:
            restless = ", ".join(self.restless)
            warnings.append(Sentence("{0}: different each time, so no strength can be kept for the next run", restless))
        if self.baseline not in self.strengths:
            warnings.append(Sentence("the baseline {0} is not among the strengths", signed(self.baseline)))
        waiting = {"waiting": f"{self.token} {self.arrivals.version}"} if theirs else {}
        return report(Sentence("Sweep"), lines, warnings) | waiting

    def _listed(self, indices: Sequence[int]) -> str:
        return ", ".join(signed(self.strengths[index]) for index in indices)

    def _say(self, message: dict[str, Any]) -> dict[str, Any]:
        for part in self.message.keys() - message.keys():
            del self.message[part]
        self.message.update(message)
        return self.message


NOT_FINITE, BLACK = "not finite", "black"
_FAULTS = {
    NOT_FINITE: Sentence("the pictures are not finite (NaN or infinite)"),
    BLACK: Sentence("the pictures are black, where others are not"),
}


def waiting(*after: Link | None) -> dict[str, Link]:
    """The inputs of an inner node that is to run after a cell."""
    links = [link for link in after if link]
    return {"after": links[-1]} if links else {}


SWEEPS = Sweeps()
