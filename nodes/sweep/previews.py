"""The player's video in ComfyUI's temp folder, and the place of each clip in its frames."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import uuid
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
from ...difflora.sentence import Sentence
from ...difflora.storage.writer import make_folder, said_as_output_error

T = TypeVar("T")

SUBFOLDER = "differential-lora"


class Previews:
    """The players' videos in ComfyUI's temp folder, within a budget.

    ComfyUI empties that folder only when it starts. A cached node's message may name a video that has been deleted: `losses`
    then increases, and the node runs again.

    budget      bytes
    """

    def __init__(self, budget: int = 2 << 30):
        self.budget = budget
        self._named: set[Path] = set()
        self._losses = 0

    def path(self, name: str) -> Path:
        folder = Path(folder_paths.get_temp_directory()) / SUBFOLDER
        make_folder(folder)
        return folder / name

    @contextlib.contextmanager
    def making(self, path: Path) -> Iterator[Path]:
        """A temporary file that is renamed to `path` when it is complete."""
        making = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            with said_as_output_error(path):
                yield making
                making.replace(path)
        finally:  # after a Cancel
            making.unlink(missing_ok=True)

    def use(self, paths: Iterable[Path]) -> None:
        """Mark these videos as shown. If all exceed the budget, the longest unused others are deleted."""
        shown = set(paths)
        for path in shown:
            with contextlib.suppress(OSError):
                os.utime(path)
        self._named |= shown
        files = {}
        for entry in os.scandir(self.path("x").parent):
            if entry.name.startswith(("clip-", "clips-")) and entry.name.endswith(".mp4"):
                with contextlib.suppress(OSError):
                    files[Path(entry.path)] = entry.stat()
        total = sum(status.st_size for status in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            if total <= self.budget:
                break
            if path not in shown:
                with contextlib.suppress(OSError):  # Windows: a page is reading it
                    path.unlink()
                    total -= files[path].st_size

    @property
    def losses(self) -> int:
        """How often a video was missing that a message had named."""
        gone = {path for path in self._named if not path.exists()}
        self._named -= gone
        self._losses += len(gone)
        return self._losses


PREVIEWS = Previews()


def embedded(hidden: Any) -> dict[str, Any]:
    """The prompt and the workflow, as ComfyUI's own nodes embed them in saved files."""
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
    stored: Sequence[str] = (),
) -> dict[str, Any]:
    """All clips in one video, so that they play in sync.

    key     identifies the clips: a video of the same clips and metadata is not encoded again
    stored  the clips' keys in the store, where they are kept at full size
    """
    height, width = np.shape(clips[0][0])[:2]
    cells = sheet_of(len(clips), width, height)
    count = max(len(clip) for clip in clips)
    name = hashlib.sha256(json.dumps([key, fps, metadata], default=repr).encode()).hexdigest()[:24]
    path = PREVIEWS.path(f"clips-{name}.mp4")
    if not path.exists():
        with PREVIEWS.making(path) as making:
            write_video(making, reporting(sheet_frames(cells, clips), count, progress), fps, metadata, **PREVIEW)
    PREVIEWS.use([path])
    boxes = [[*cells.corner(index), cells.width, cells.height] for index in range(len(clips))]
    return _player([path], [(0, box) for box in boxes], labels, fps, count, stored)


def player_of_clips(
    clips: Sequence[StoredClip], labels: Sequence[Label], keys: Sequence[str], fps: float
) -> dict[str, Any]:
    """A player for clips with a video each: those that exist while others are still being rendered."""
    paths = []
    for clip, key in zip(clips, keys, strict=True):
        path = PREVIEWS.path(f"clip-{key}-{fps:g}.mp4")
        if not path.exists():
            with PREVIEWS.making(path) as making:
                at_rate(clip.video, making, fps)
        paths.append(path)
    PREVIEWS.use(paths)
    boxes = [(index, [0, 0, clip.about.width, clip.about.height]) for index, clip in enumerate(clips)]
    return _player(paths, boxes, labels, fps, max(clip.about.frames for clip in clips), keys)


def _player(
    paths: Sequence[Path],
    places: Sequence[tuple[int, list[int]]],
    labels: Sequence[Label],
    fps: float,
    frames: int,
    keys: Sequence[str],
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
                    "key": key,
                }
                for (video, box), label, key in itertools.zip_longest(places, labels, keys)
            ],
            "fps": fps,
            "frames": frames,
        }
    }


def pixels_of(image: torch.Tensor) -> Frame:
    """One picture of an IMAGE in 0…1 as (height, width, 3) uint8. Grey is used for all three colours.

    image   (height, width) or (height, width, channels)
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] < 3:
        image = image[..., :1].expand(*image.shape[:2], 3)
    return image[..., :3].float().nan_to_num(0.0).mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()


def is_finite(image: torch.Tensor) -> bool:
    return bool(torch.isfinite(image).all())


def dropped(images: torch.Tensor) -> list[Sentence]:
    """A warning for what pixels_of drops."""
    channels = images.shape[-1] if images.ndim == 4 else 1
    if channels in (2, 4):
        return [Sentence("the pictures have a transparency, which is dropped")]
    return (
        [Sentence("the pictures have {0} channels, of which the first three are taken", channels)]
        if channels > 4
        else []
    )


def reporting(frames: Iterable[T], count: int, progress: Progress) -> Iterator[T]:
    """The same frames; each moves ComfyUI's progress bar and checks for Cancel."""
    for number, frame in enumerate(frames):
        progress(number, count)
        yield frame
