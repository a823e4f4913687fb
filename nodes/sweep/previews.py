"""What the player in the page shows: one video in ComfyUI's temp folder, and where each clip is in its pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import folder_paths
import numpy as np
import torch

from ...difflora.clips.mosaic import Label, sheet_frames, sheet_of
from ...difflora.clips.store import StoredClip
from ...difflora.clips.video import PREVIEW, Frame, at_rate, write_video
from ...difflora.progress import Progress

T = TypeVar("T")

SUBFOLDER = "differential-lora"


def embedded(hidden: Any) -> dict[str, Any]:
    """The prompt and the workflow, as ComfyUI's own nodes put them into what they save."""
    prompt = {
        name: {key: value for key, value in node.items() if key != "is_changed"}
        for name, node in (hidden.prompt or {}).items()
    }
    return {"prompt": prompt, **(hidden.extra_pnginfo or {})}


def player_of_sheet(
    clips: Sequence[Sequence[Frame]],
    labels: Sequence[Label],
    fps: float,
    key: str,
    metadata: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """All clips in one video, so that they cannot but play in step.

    key     says what the clips are: a video of the same clips and metadata is not encoded again
    """
    height, width = np.shape(clips[0][0])[:2]
    cells = sheet_of(len(clips), width, height)
    count = max(len(clip) for clip in clips)
    name = hashlib.sha256(json.dumps([key, fps, metadata], default=repr).encode()).hexdigest()[:24]
    path = _folder() / f"clips-{name}.mp4"
    if not path.exists():
        making = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            write_video(making, reporting(sheet_frames(cells, clips), count, progress), fps, metadata, **PREVIEW)
            making.replace(path)
        finally:  # after a Cancel
            making.unlink(missing_ok=True)
    boxes = [[*cells.corner(index), cells.width, cells.height] for index in range(len(clips))]
    return _player([path], [(0, box) for box in boxes], labels, fps, count)


def player_of_clips(
    clips: Sequence[StoredClip], labels: Sequence[Label], keys: Sequence[str], fps: float
) -> dict[str, Any]:
    """Clips that have a video each: those that are there while others are still being made."""
    paths = []
    for clip, key in zip(clips, keys, strict=True):
        paths.append(_folder() / f"clip-{key}-{fps:g}.mp4")
        if not paths[-1].exists():
            making = paths[-1].with_suffix(f".{os.getpid()}.tmp")
            at_rate(clip.video, making, fps)
            making.replace(paths[-1])
    boxes = [(index, [0, 0, clip.about.width, clip.about.height]) for index, clip in enumerate(clips)]
    return _player(paths, boxes, labels, fps, max(clip.about.frames for clip in clips))


def _player(
    paths: Sequence[Path], places: Sequence[tuple[int, list[int]]], labels: Sequence[Label], fps: float, frames: int
) -> dict[str, Any]:
    return {
        "player": {
            "videos": [{"filename": path.name, "subfolder": SUBFOLDER, "type": "temp"} for path in paths],
            "clips": [
                {
                    "video": video,
                    "box": box,
                    "label": label.strength,
                    "text": label.text,
                    "baseline": label.is_baseline,
                }
                for (video, box), label in zip(places, labels, strict=True)
            ],
            "fps": fps,
            "frames": frames,
        }
    }


def pixels_of(image: torch.Tensor) -> Frame:
    """One picture of an IMAGE, (height, width, 3 or more) in 0…1, as (height, width, 3) uint8."""
    return image[..., :3].mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()


def reporting(frames: Iterable[T], count: int, progress: Progress) -> Iterator[T]:
    """The same frames, with ComfyUI's progress bar moving and its Cancel button heard."""
    for number, frame in enumerate(frames):
        progress(number, count)
        yield frame


def _folder() -> Path:
    folder = Path(folder_paths.get_temp_directory()) / SUBFOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder
