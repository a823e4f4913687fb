"""Strength Sweep and Sweep Grid: one queue renders every strength, one after the other, with one model load.

The grid takes its pictures as a raw link, which ComfyUI does not follow, and expands into the work itself: a clone of
everything between the sweep and the grid for each strength that is not yet on disk. The gate before each clone waits for
the cell after the previous one, which has encoded and shrunk its clip by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker, GraphBuilder, is_link
from comfy_execution.utils import get_executing_context
from execution import IsChangedCache
from server import PromptServer

from ...difflora.clips.mosaic import ARRANGEMENTS, grid_images, grid_of
from ...difflora.clips.response import Sweep
from ...difflora.clips.store import About, StoredClip
from ...difflora.clips.strengths import MOST, Share, sweep_strengths
from ...difflora.clips.video import Frame
from ...difflora.errors import UnsupportedError
from ...difflora.lora.rack import LIMIT
from ..common.fonts import font_for
from ..common.inputs import one_of, within
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import SweepClips
from .between import Between
from .previews import dropped, embedded, is_finite, pixels_of, player_of_sheet, reporting
from .running import NOT_FINITE, SWEEPS, SweepRun

After = io.Custom("DIFFLORA_CELL")
MOST_TIMES = 1_000_000


class StrengthSweep(io.ComfyNode):
    """Its widgets set the strengths, which Sweep Grid reads. Without a grid it outputs the first one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraStrengthSweep",
            display_name="Strength Sweep",
            category="Differential LoRA",
            **found_by("xy plot", "strengths", "batch strength", "compare strengths", "slider"),
            description="Renders many strengths in one run: wire it into a slider's strength, and the decoded pictures into "
            "Sweep Grid. It works with any number input of any node.",
            inputs=[
                io.Float.Input(
                    "start",
                    default=-3.0,
                    min=-LIMIT,
                    max=LIMIT,
                    step=0.1,
                    socketless=True,
                    tooltip="The first strength.",
                ),
                io.Float.Input(
                    "stop", default=3.0, min=-LIMIT, max=LIMIT, step=0.1, socketless=True, tooltip="The last strength."
                ),
                io.Int.Input(
                    "count",
                    default=7,
                    min=1,
                    max=MOST,
                    socketless=True,
                    tooltip="How many, evenly spaced, both ends included.",
                ),
                io.Boolean.Input(
                    "include_zero",
                    default=True,
                    socketless=True,
                    tooltip="Add 0, the base model, if it is not among them: without it there is nothing to compare with.",
                ),
                io.String.Input(
                    "strengths",
                    default="",
                    socketless=True,
                    optional=True,
                    placeholder="or type them: -3, -1.5, 0, 2",
                    tooltip="Typed strengths take the place of start, stop and count. They are shown in this order.",
                ),
                io.String.Input(
                    "share",
                    default="all",
                    socketless=True,
                    optional=True,
                    tooltip="all, or the part that this server renders: 1 of 3, 2 of 3, 3 of 3. Sweep Grid shows the clips "
                    "of all servers that keep them in one folder. The help page says how.",
                ),
            ],
            outputs=[io.Float.Output("strength", display_name="strength", tooltip="For a slider's strength.")],
        )

    @classmethod
    def execute(
        cls, start: float, stop: float, count: int, include_zero: bool, strengths: str = "", share: str = "all"
    ) -> io.NodeOutput:
        Share.read(share)
        return io.NodeOutput(sweep_strengths(start, stop, count, strengths, include_zero)[0])


class SweepGrid(io.ComfyNode):
    """Ends a sweep: renders the missing clips and lays out all of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSweepGrid",
            display_name="Sweep Grid",
            category="Differential LoRA",
            **found_by("xy plot", "compare strengths", "contact sheet", "side by side", "player"),
            description="Renders every strength of a Strength Sweep and shows the clips side by side, labelled and in sync. "
            "Finished strengths are kept: after an error, a Cancel or a restart only the missing ones are "
            "rendered.",
            inputs=[
                io.Image.Input(
                    "images",
                    lazy=True,
                    extra_dict={"rawLink": True},
                    tooltip="The decoded pictures that a Strength Sweep leads to.",
                ),
                io.Combo.Input(
                    "arrange", options=list(ARRANGEMENTS), default="grid", tooltip="How the clips are arranged."
                ),
                io.Int.Input(
                    "cell_size",
                    default=384,
                    min=64,
                    max=2048,
                    step=16,
                    tooltip="The longer side of a clip in the grid and in the player, in pixels. Clips are never enlarged.",
                ),
                io.Float.Input(
                    "fps", default=16.0, min=1.0, max=120.0, step=1.0, tooltip="Frames per second. Wan makes 16."
                ),
                io.Float.Input(
                    "baseline",
                    default=0.0,
                    min=-LIMIT,
                    max=LIMIT,
                    step=0.1,
                    tooltip="The strength that is marked, and that all others are compared with.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A text on the labels: one line for all of them, or one line for each.",
                ),
                io.Int.Input(
                    "render_again",
                    default=0,
                    min=0,
                    max=MOST_TIMES,
                    optional=True,
                    tooltip="Another number renders every strength again. The clips of each number are kept.",
                ),
                io.Boolean.Input(
                    "any_machine",
                    default=False,
                    optional=True,
                    tooltip="Share clips with servers that have other GPUs, versions or flags, too. Pictures may then "
                    "differ in more than the strength.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "grid",
                    display_name="grid",
                    tooltip="All clips in one picture, frame by frame: for any video saver.",
                ),
                SweepClips.Output("sweep", display_name="sweep", tooltip="The clips at full size, for Sweep Response."),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            is_output_node=True,
            enable_expand=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> object:
        return SWEEPS.files.state, SWEEPS.count_lost()

    @classmethod
    async def execute(
        cls,
        images: list[Any],
        arrange: str,
        cell_size: int,
        fps: float,
        baseline: float,
        text: str = "",
        render_again: int = 0,
        any_machine: bool = False,
    ) -> io.NodeOutput:
        one_of("arrange", arrange, ARRANGEMENTS)
        within(64, 2048, cell_size=cell_size)
        within(1, 120, fps=fps)
        within(-LIMIT, LIMIT, baseline=baseline)
        within(0, MOST_TIMES, render_again=render_again)
        dynprompt = cls.hidden.dynprompt
        graph = GraphBuilder()  # before any await: its names come from what ComfyUI is running now
        between = Between.find(images, dynprompt.get_node, SWEEPS.files)
        await _fingerprint(between, dynprompt)
        strengths, share = _strengths(between)
        prompt = SWEEPS.cells_of(dynprompt)
        wanted = between.wanted(strengths, SWEEPS.hashes, progress_bar(), render_again, any_machine)
        run = SweepRun(
            between.sweep,
            strengths,
            [each.key for each in wanted],
            between.kinds,
            arrange,
            cell_size,
            fps,
            baseline,
            text,
            between.restless,
            cls.hidden.unique_id,
            prompt,
            share,
        )
        # Report problems with the text or the disk now, not after the first clip.
        run.labels()
        SWEEPS.store.check_writable()
        SWEEPS.begin(run)
        after = run.add_cells(graph, between, wanted)
        prompt.watch_end()
        layout = graph.node("DiffLoraSweepLayout", "layout", run=run.name, **after)
        layout.set_override_display_id(cls.hidden.unique_id)
        return io.NodeOutput(
            layout.out(0), layout.out(1), expand=graph.finalize(), ui={"difflora": [run.message_now()]}
        )


async def _fingerprint(between: Between, dynprompt: Any) -> None:
    """Compute every node's fingerprint. With --cache-none, ComfyUI has not done it."""
    context = get_executing_context()
    fingerprints = IsChangedCache(context.prompt_id if context else "", dynprompt, None)
    for name in between.nodes:
        await fingerprints.get(name)


def _strengths(between: Between) -> tuple[list[float], Share]:
    inputs = between.nodes[between.sweep]["inputs"]
    wired = [name for name, value in inputs.items() if is_link(value)]
    if wired:
        raise UnsupportedError(
            f"Strength Sweep: {wired[0]} comes from a wire, but has to be known before anything runs. Type it."
        )
    share = Share.read(inputs.get("share", "all"))
    if not share.is_all and between.restless:
        raise UnsupportedError(
            "share: no server could use another's clips, because the output is different each time: "
            f"{', '.join(between.restless)}. Do without it, or set share to all."
        )
    strengths = sweep_strengths(
        inputs["start"], inputs["stop"], inputs["count"], inputs.get("strengths", ""), inputs["include_zero"]
    )
    return strengths, share


class SweepGate(io.ComfyNode):
    """Lets a strength pass when the clip before it is done and out of memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSweepGate",
            display_name="Sweep Gate (inner)",
            category="Differential LoRA/inner",
            description="A part of Sweep Grid, which adds it automatically.",
            is_deprecated=True,  # Hides it from the search.
            inputs=[
                io.Float.Input("strength", min=-LIMIT, max=LIMIT, tooltip="The strength."),
                io.String.Input("run", tooltip="Which run of the sweep this is."),
                After.Input("after", optional=True, tooltip="The cell to wait for."),
            ],
            outputs=[io.Float.Output("passed", display_name="strength", tooltip="The strength.")],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, strength: float, run: str, after: Any = None) -> io.NodeOutput:
        of = SWEEPS.run(run)
        step = of.prompt.step_of(of.sweep, strength)
        if step is None:
            return io.NodeOutput(strength)
        # A later grid may still need the previous strength.
        if earlier := of.prompt.waited_for(step):
            graph = GraphBuilder()
            gate = graph.node("DiffLoraSweepGate", "gate", strength=strength, run=run, after=earlier)
            gate.set_override_display_id(of.grid)
            return io.NodeOutput(gate.out(0), expand=graph.finalize())
        of.prompt.rendering = step
        for other in SWEEPS.of_prompt(of.prompt):
            if other is not of and not other.is_over and other.sweep == of.sweep:
                other.show_now()
        return io.NodeOutput(strength, ui={"difflora": [of.message_now()]})


class SweepCell(io.ComfyNode):
    """Encodes and shrinks one clip, and keeps it on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSweepCell",
            display_name="Sweep Cell (inner)",
            category="Differential LoRA/inner",
            description="A part of Sweep Grid, which adds it automatically.",
            is_deprecated=True,
            is_input_list=True,  # Otherwise ComfyUI would call it once per batch and keep only the last.
            inputs=[
                io.Image.Input("images", tooltip="The clip, in one batch or in several."),
                io.String.Input("key", tooltip="The name of the clip in the store."),
                io.String.Input("run", tooltip="Which run of the sweep this is."),
            ],
            outputs=[After.Output("done", display_name="done", tooltip="For the gate of the next strength.")],
        )

    @classmethod
    def execute(cls, images: list[torch.Tensor], key: list[str], run: list[str]) -> io.NodeOutput:
        of = SWEEPS.run(run[0])
        one_of("key", key[0], of.keys)
        about = _about(images)
        of.check_shape(key[0], about)
        notes = [note for batch in images for note in dropped(batch)]
        of.notes += [note for note in dict.fromkeys(notes) if note not in of.notes]
        try:
            clip = SWEEPS.store.add(
                key[0], reporting(_frames(images), about.frames, progress_bar()), about, of.fps, of.cell_size
            )
            of.prompt.broken.pop(key[0], None)
            for each in SWEEPS.of_prompt(of.prompt):
                if key[0] in each.keys:
                    with each.lock:
                        each.arrivals.add(key[0], clip)
        except _NotFinite:
            of.prompt.broken[key[0]] = NOT_FINITE
        of.prompt.finish(key[0], of.sources[key[0]], images[0] if len(images) == 1 else None)
        for other in SWEEPS.of_prompt(of.prompt):
            if other is not of and key[0] in other.keys:
                other.show_now()
        return io.NodeOutput(key[0], ui={"difflora": [of.message_now()]})


class _NotFinite(Exception):
    """A picture holds NaN or infinite values."""


def _frames(images: list[torch.Tensor]) -> Iterator[Frame]:
    for batch in images:
        for image in batch:
            if not is_finite(image):
                raise _NotFinite
            yield pixels_of(image)


def _about(images: list[torch.Tensor]) -> About:
    """raises   UnsupportedError if the pictures are not a clip."""
    for batch in images:
        if batch.ndim not in (3, 4) or not batch.numel():
            raise UnsupportedError(
                f"images: a tensor of shape {tuple(batch.shape)} is not a batch of pictures. Wire in decoded pictures."
            )
    sizes = sorted({(batch.shape[2], batch.shape[1]) for batch in images})
    if len(sizes) > 1:
        raise UnsupportedError(
            f"images: pictures of {' and '.join(f'{width}×{height}' for width, height in sizes)} cannot be one clip. "
            "Give them one size first."
        )
    return About(sum(map(len, images)), *sizes[0])


class SweepLayout(io.ComfyNode):
    """All clips of a sweep in one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSweepLayout",
            display_name="Sweep Layout (inner)",
            category="Differential LoRA/inner",
            description="A part of Sweep Grid, which adds it automatically.",
            is_deprecated=True,
            inputs=[
                io.String.Input("run", tooltip="Which run of the sweep this is."),
                After.Input("after", optional=True, tooltip="The last cell."),
            ],
            outputs=[
                io.Image.Output("grid", display_name="grid", tooltip="The labelled grid."),
                SweepClips.Output("sweep", display_name="sweep", tooltip="The clips."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, run: str, after: Any = None) -> io.NodeOutput:
        of = SWEEPS.run(run)
        for key in of.keys:
            if key not in of.prompt.done and (cell := of.prompt.cell_of(key)):
                graph = GraphBuilder()
                layout = graph.node("DiffLoraSweepLayout", "layout", run=run, after=cell)
                layout.set_override_display_id(of.grid)
                return io.NodeOutput(layout.out(0), layout.out(1), expand=graph.finalize())
        there, clips, faults = _complete(of)
        if not there:
            SWEEPS.end(of)
            return io.NodeOutput(ExecutionBlocker(None), ExecutionBlocker(None), ui={"difflora": [of.message_now()]})
        labels, strengths = of.labels(), [of.strengths[index] for index in there]
        labels = [labels[index] for index in there]
        cells = [clip.cells(of.cell_size, progress_bar()) for clip in clips]
        frames = [list(cell) for cell in cells]
        player = {}
        if not of.is_partial:
            stored = [of.keys[index] for index in there]
            key = json.dumps([stored, cells[0].shape])
            player = player_of_sheet(frames, labels, of.fps, key, embedded(cls.hidden), progress_bar(), stored)
        height, width = cells[0].shape[1:3]
        font = font_for(*(label.text for label in labels))
        picture = grid_images(grid_of(len(cells), width, height, of.arrange), frames, labels, font)
        SWEEPS.end(of)
        if of.is_partial:
            # Otherwise only a part of the sweep would be measured.
            return io.NodeOutput(picture, ExecutionBlocker(None), ui={"difflora": [of.message_now()]})
        left_out = tuple(strength for strength, key in zip(of.strengths, of.keys, strict=True) if key in faults)
        result = Sweep(tuple(strengths), tuple(clips), of.fps, of.baseline, left_out)
        return io.NodeOutput(picture, result, ui={"difflora": [of.finished(player, there, faults)]})


def _complete(of: SweepRun) -> tuple[list[int], list[StoredClip], dict[str, str]]:
    """The good clips with their places, and what is wrong with the others, which are not kept."""
    with of.lock:
        of.arrivals.look_for_all()
    clips = of.clips()
    faults = of.faults(clips)
    of.prompt.broken |= faults  # for another grid of the same clips
    for key in of.own.intersection(faults):
        of.remove(key)
    there = [index for index, key in enumerate(of.keys) if key in clips and key not in faults]
    absent = {key for key in of.keys if key not in clips and key not in faults}
    if absent & of.own:
        raise UnsupportedError("A finished clip has been deleted while the sweep was running. Run it again.")
    of.is_partial = bool(absent)
    if not there and not of.is_partial:
        raise UnsupportedError(
            f"images: the pictures are {' or '.join(sorted(set(faults.values())))} at every strength. Look for the cause in "
            f"the nodes in between: {', '.join(of.kinds)}."
        )
    return there, [clips[of.keys[index]] for index in there], faults


def watch_prompts() -> None:
    """Record the state of the files that every queued prompt names."""

    def look(request: dict[str, Any]) -> dict[str, Any]:
        SWEEPS.files.look_soon(request.get("prompt"))
        return request

    PromptServer.instance.add_on_prompt_handler(look)


NODES = [StrengthSweep, SweepGrid, SweepGate, SweepCell, SweepLayout]
