"""Finished clips on disk, each under a key that says what it was made of. They outlive a failure, a Cancel and a restart.

A clip is a folder: `clip.mp4` at full size, `cells <width>x<height>.npy` with its shrunken frames, and `about.json`. The
folder appears under its key in one step, when everything is in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FileError
from ..progress import Progress
from ..sentence import printable
from .mosaic import fitting
from .video import Frame, read_video, size_of, write_video

# Unfinished folders of a process that was killed are this old, in seconds, when they go.
_ABANDONED = 3600


@dataclass(frozen=True)
class About:
    """What is known of a clip without opening it."""

    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class StoredClip:
    """A clip of the store."""

    folder: Path
    about: About

    @property
    def video(self) -> Path:
        """The clip at full size."""
        return self.folder / "clip.mp4"

    def frames(self, only: Iterable[int] | None = None) -> Iterable[Frame]:
        """The frames at full size, as the encoder has left them."""
        return read_video(self.video, None if only is None else set(only), (self.about.width, self.about.height))

    def cells(self, longest: int, progress: Progress | None = None) -> NDArray[np.uint8]:
        """(frames, height, width, 3): all frames, the longer side at most `longest`. Mapped, not read.

        progress    called for every frame that has to be shrunk first; may raise to cancel
        """
        width, height = fitting(self.about.width, self.about.height, longest)
        path = self.folder / _cells_name(width, height)
        if not path.exists():
            _save(path, read_video(self.video, None, None), width, height, self.about, progress)
        try:
            cells: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as problem:
            raise FileError(f"{path.name}: these frames cannot be read ({problem}). Delete {self.folder}.") from problem
        return cells


class ClipStore:
    """All clips below one folder, the longest unused going first once they are too many.

    budget      bytes that all clips together may take
    """

    def __init__(self, folder: Path, budget: int = 4 << 30):
        self.folder = folder
        self.budget = budget

    def has(self, key: str) -> bool:
        """Whether the clip of this key is there. This is no use of it."""
        return (self._place(key) / "clip.mp4").is_file()

    def get(self, key: str) -> StoredClip | None:
        """The clip of this key, if it is there; this counts as a use of it."""
        folder = self._place(key)
        try:
            about = About(**json.loads((folder / "about.json").read_text("utf-8")))
            os.utime(folder)
        except (OSError, ValueError, TypeError):
            return None
        return StoredClip(folder, about) if (folder / "clip.mp4").is_file() else None

    def add(self, key: str, frames: Iterable[Frame], about: About, fps: float, longest: int) -> StoredClip:
        """Encode a clip and keep it, with its frames shrunk until the longer side is at most `longest`."""
        folder = self._place(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        size = fitting(about.width, about.height, longest)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
        try:
            small = write_video(made / "clip.mp4", frames, fps, scaled=size)
            np.save(made / _cells_name(*size), np.stack(small))
            (made / "about.json").write_text(json.dumps(asdict(about)), "utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
        except BaseException:  # Cancel is no Exception
            shutil.rmtree(made, ignore_errors=True)
            raise
        return StoredClip(folder, about)

    def _place(self, key: str) -> Path:
        if not is_key(key):
            raise FileError(f"{printable(key, 60)} names no clip. Sweep Grid gives the names.")
        return self.folder / key

    def prune(self, keep: Iterable[str]) -> None:
        """Delete the longest unused clips until the rest is within the budget; never those whose keys are given."""
        kept = set(keep)
        folders = [entry for entry in self.folder.iterdir() if entry.is_dir()] if self.folder.is_dir() else []
        used = {folder: folder.stat().st_mtime for folder in folders}
        total = sum(size_of(folder) for folder in folders)
        for folder in sorted(folders, key=used.__getitem__):
            unfinished = folder.name.startswith(".making-")
            if unfinished and time.time() - used[folder] < _ABANDONED or folder.name in kept:
                continue
            if unfinished or total > self.budget:
                total -= size_of(folder)
                shutil.rmtree(folder, ignore_errors=True)


def is_key(key: object) -> bool:
    """A key becomes the name of a folder that is replaced: nothing in it may lead elsewhere."""
    return isinstance(key, str) and bool(re.fullmatch(r"[0-9a-z]{1,64}", key))


def _cells_name(width: int, height: int) -> str:
    return f"cells {width}x{height}.npy"


def _save(
    path: Path, frames: Iterable[Frame], width: int, height: int, about: About, progress: Progress | None
) -> None:
    """Frames at another size than the one kept at first, from the encoded clip."""
    import torch

    small = []
    for number, frame in enumerate(frames):
        if progress:
            progress(number, about.frames)
        picture = torch.from_numpy(frame[: about.height, : about.width].copy()).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(picture, (height, width), mode="area")
        small.append(resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy())
    making = path.with_suffix(f".{os.getpid()}.tmp")
    with making.open("wb") as file:
        np.save(file, np.stack(small))
    making.replace(path)
