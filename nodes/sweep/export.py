"""Export from the player: the page asks for a frame, a clip or a comparison and gets an encoded file."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer

from ...difflora.clips.export import FORMATS, VIEWS, view_of, write_view
from ...difflora.clips.mosaic import Label
from ...difflora.clips.video import Frame, read_metadata, read_video
from ...difflora.errors import DiffLoraError, FileError, InputError
from ..common.fonts import font_for
from ..common.inputs import one_of, within
from ..common.paths import inside
from .previews import SUBFOLDER
from .running import SWEEPS

PROGRESS = "difflora.export"


class _Stopped(Exception):
    """The page has gone, or no longer wants the file."""


def answer_export() -> None:
    """Register the route. Called while ComfyUI loads the pack."""
    PromptServer.instance.routes.post("/differential_lora/export")(_answer)


async def _answer(request: web.Request) -> web.Response:
    def gone() -> bool:  # aiohttp keeps a handler running after the page has disconnected
        return request.transport is None or request.transport.is_closing()

    try:
        asked = await request.json()
        data, kind = await asyncio.to_thread(_encoded, asked, gone)
    except DiffLoraError as error:
        return web.json_response({"error": str(error)}, status=422)
    except (ValueError, TypeError, KeyError):
        return web.json_response({"error": "The request is not one of this pack's player."}, status=400)
    except _Stopped:
        return web.Response(status=400)  # nobody reads it
    return web.Response(body=data, content_type=kind)


def _encoded(asked: Mapping[str, Any], gone: Callable[[], bool]) -> tuple[bytes, str]:
    kind, view, fps = asked["format"], asked["view"], float(asked["fps"])
    one_of("format", kind, FORMATS)
    one_of("view", view, VIEWS)
    wipe, gain = float(asked.get("wipe", 0.5)), float(asked.get("gain", 1))
    within(1, 120, fps=fps)
    within(0, 1, wipe=wipe)
    within(1, 64, gain=gain)
    wanted = asked["clips"]
    count = {"one": 1, "wipe": 2, "difference": 2}.get(view, len(wanted))
    if len(wanted) != count or not wanted:
        raise InputError(f"clips: {len(wanted)} clips cannot be shown as {view}.")
    frame = int(asked["frame"]) if kind == "png" else None
    clips = [_frames(clip, frame, view == "all") for clip in wanted]
    labels = [Label(str(clip["label"]), str(clip.get("text", "")), bool(clip.get("baseline"))) for clip in wanted]
    shown = view_of(clips, view, labels, wipe, gain, font_for(*(f"{one.strength}{one.text}" for one in labels)))
    done, frames, client = 0, int(asked.get("frames", 1)), asked.get("client_id")

    def tick() -> None:
        nonlocal done
        if gone():
            raise _Stopped
        done += 1
        if client and frames > 1:
            told = {"id": str(asked.get("id")), "value": done, "max": frames}
            PromptServer.instance.send_sync(PROGRESS, told, str(client))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{kind}"
        write_view(path, shown, kind, fps, _metadata(wanted), tick)
        return path.read_bytes(), FORMATS[kind]


def _frames(clip: Mapping[str, Any], frame: int | None, small: bool) -> Iterator[Frame]:
    """A clip's frames, at full size from the store or as in the player's video."""
    left, top, width, height = (int(value) for value in clip["box"])
    kept = SWEEPS.store.get(str(clip["key"])) if clip.get("key") else None
    only = None if frame is None else {frame if kept is None else min(frame, kept.about.frames - 1)}
    if kept is not None and small:
        cells = kept.cells(max(width, height))
        yield from cells if frame is None else cells[min(frame, len(cells) - 1)][None]
    elif kept is not None:
        yield from kept.frames(only)
    else:
        for picture in read_video(_video(clip["video"]), only):
            yield picture[top : top + height, left : left + width]


def _video(name: object) -> Path:
    """A video of the player, by its name in ComfyUI's temp folder."""
    path = inside(Path(folder_paths.get_temp_directory()) / SUBFOLDER, str(name))
    if not path.is_file():
        raise FileError("The video is gone. Run the workflow again.")
    return path


def _metadata(clips: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The prompt and workflow that the player's video was saved with."""
    try:
        return {key: json.loads(text) for key, text in read_metadata(_video(clips[0]["video"])).items()}
    except FileError:
        return {}  # a clip of the store outlives the player's video
