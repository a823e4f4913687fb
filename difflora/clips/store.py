"""Finished clips on disk, each under a key that says what it was made of. They survive an error, a Cancel and a restart.

A clip is a folder: `clip.mp4` at full size, `cells <width>x<height>.npy` with its shrunken frames, and `about.json`. The
folder gets its name in one step, when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FileError, OutputError
from ..progress import Progress
from ..sentence import printable
from ..storage.writer import why_not_written
from .mosaic import fitting
from .video import Frame, plays, read_video, size_of, write_video

# Age in seconds at which unfinished folders of a killed process are deleted.
_ABANDONED = 3600
# No pixel of a clip that counts as black is brighter, of 255.
_BLACK = 4


@dataclass(frozen=True)
class About:
    """What is known of a clip without opening it.

    brightest   the largest value of any pixel, of 255
    """

    frames: int
    width: int
    height: int
    brightest: int = 255

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.width, self.height

    @property
    def is_black(self) -> bool:
        return is_black(self.brightest)

    @classmethod
    def read(cls, file: Path) -> About | None:
        """What a file says, or None where it says nothing that can be."""
        try:
            table = json.loads(file.read_text("utf-8"))
            known = {field.name: table[field.name] for field in fields(cls) if field.name in table}
            about = cls(**known)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        numbers = [
            (about.frames, 1, 1 << 24),
            (about.width, 1, 1 << 16),
            (about.height, 1, 1 << 16),
            (about.brightest, 0, 255),
        ]
        return about if all(type(number) is int and low <= number <= high for number, low, high in numbers) else None


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
        """The frames at full size, as decoded from the encoded clip."""
        return read_video(self.video, None if only is None else set(only), (self.about.width, self.about.height))

    def cells(self, longest: int, progress: Progress | None = None) -> NDArray[np.uint8]:
        """(frames, height, width, 3): all frames, the longer side at most `longest`. Mapped, not read.

        Frames of this size that are not there or damaged are made from the clip.

        progress    called for every frame that has to be shrunk first; may raise to cancel
        """
        width, height = fitting(self.about.width, self.about.height, longest)
        path = self.folder / _cells_name(width, height)
        cells = _mapped(path, (self.about.frames, height, width, 3))
        if cells is None:
            with _said(self.folder.parent):
                _save(path, read_video(self.video, None, None), width, height, self.about, progress)
            cells = _mapped(path, (self.about.frames, height, width, 3))
        if cells is None:
            raise FileError(
                f"{path.name}: these frames cannot be read. Delete {self.folder.name} in the folder of clips."
            )
        return cells


class ClipStore:
    """All clips in one folder. When they exceed the budget, the least recently used are deleted first.

    budget      bytes that all clips together may take
    """

    def __init__(self, folder: Path, budget: int = 4 << 30):
        self.folder = folder
        self.budget = budget
        # Clips that were found to be sound, and how their files were then: decoding takes a while.
        self._checked: dict[Path, tuple[object, About]] = {}

    def has(self, key: str) -> bool:
        """Whether the clip of this key is there and whole. This is no use of it."""
        return self._sound(self._place(key)) is not None

    def get(self, key: str) -> StoredClip | None:
        """The clip of this key, if it is there and whole; this counts as a use of it.

        A damaged clip counts as missing: who renders it again puts a sound one in its place.
        """
        clip = self._sound(self._place(key))
        if clip:
            with contextlib.suppress(OSError):
                os.utime(clip.folder)
        return clip

    def add(self, key: str, frames: Iterable[Frame], about: About, fps: float, longest: int) -> StoredClip:
        """Encode a clip and keep it, with its frames shrunk until the longer side is at most `longest`.

        Where another process has just kept a clip under this key, that one is taken.

        raises      OutputError if the clip cannot be written
        """
        folder = self._place(key)
        size = fitting(about.width, about.height, longest)
        brightest = 0

        def watched() -> Iterator[Frame]:
            nonlocal brightest
            for frame in frames:
                brightest = max(brightest, int(frame.max()))
                yield frame

        with _said(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
            try:
                small = write_video(made / "clip.mp4", watched(), fps, scaled=size)
                _write_array(made / _cells_name(*size), np.stack(small))
                kept = asdict(replace(about, brightest=brightest))
                (made / "about.json").write_text(json.dumps(kept), "utf-8")
                # After a power cut a folder may otherwise be there, and what is in it not.
                for part in (*made.iterdir(), made):
                    _sync(part)
                return self._publish(made, folder)
            except BaseException:  # Cancel is no Exception
                shutil.rmtree(made, ignore_errors=True)
                raise

    def remove(self, key: str) -> None:
        """Delete a clip, if there is one."""
        self._clear(self._place(key))

    def check_writable(self) -> None:
        """Raise OutputError if no clip could be kept, before anything is rendered for it."""
        with _said(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(4096))

    def _sound(self, folder: Path) -> StoredClip | None:
        video = folder / "clip.mp4"
        try:
            state = [(status.st_size, status.st_mtime_ns) for status in (video.stat(), (folder / "about.json").stat())]
            if folder.is_symlink() or not video.is_file():
                return None
        except OSError:
            return None
        checked = self._checked.get(folder)
        if checked is None or checked[0] != state:
            about = About.read(folder / "about.json")
            if about is None or not plays(video, about.frames, about.width, about.height):
                return None
            checked = self._checked[folder] = (state, about)
            while len(self._checked) > 4096:
                self._checked.pop(next(iter(self._checked)))
        return StoredClip(folder, checked[1])

    def _publish(self, made: Path, folder: Path) -> StoredClip:
        """Give a finished folder its name, unless somebody else has been faster."""
        for _ in range(8):
            try:
                made.rename(folder)
                break
            except OSError:
                if not os.path.lexists(folder):
                    raise
            if winner := self._sound(folder):
                shutil.rmtree(made, ignore_errors=True)
                return winner
            self._clear(folder)
        else:
            raise OutputError(f"{folder.name}: this clip cannot be replaced. Delete it in the folder of clips.")
        about = About.read(folder / "about.json")
        if about is None:
            raise FileError(f"{folder.name}: this clip was changed while it was being kept. Run it again.")
        return StoredClip(folder, about)

    def _clear(self, place: Path) -> None:
        """Take away whatever is there: a clip, half a clip, a file, a link. In one step, so that nobody finds half of it."""
        aside = self.folder / f".making-{uuid.uuid4().hex}"
        self._checked.pop(place, None)
        try:
            place.rename(aside)
        except OSError:
            return  # somebody else was faster, or has it open: what is there then is looked at again
        if aside.is_symlink() or not aside.is_dir():
            aside.unlink(missing_ok=True)
        else:
            shutil.rmtree(aside, ignore_errors=True)

    def _place(self, key: str) -> Path:
        if not is_key(key):
            raise FileError(f"{printable(key, 60)} names no clip. Sweep Grid gives the names.")
        return self.folder / key

    def prune(self, keep: Iterable[str]) -> None:
        """Delete the least recently used clips until the rest is within the budget, but never those whose keys are given."""
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


def is_black(brightest: int) -> bool:
    """Whether a clip whose brightest pixel has this value, of 255, shows nothing."""
    return brightest <= _BLACK


def is_key(key: object) -> bool:
    """A key becomes the name of a folder that may be replaced, so it must not contain a path."""
    return isinstance(key, str) and bool(re.fullmatch(r"[0-9a-z]{1,64}", key))


def _cells_name(width: int, height: int) -> str:
    return f"cells {width}x{height}.npy"


def _save(
    path: Path, frames: Iterable[Frame], width: int, height: int, about: About, progress: Progress | None
) -> None:
    """Frames at another size than the stored one, from the encoded clip."""
    import torch

    small = []
    for number, frame in enumerate(frames):
        if progress:
            progress(number, about.frames)
        picture = torch.from_numpy(frame[: about.height, : about.width].copy()).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(picture, (height, width), mode="area")
        small.append(resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy())
    making = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        _write_array(making, np.stack(small))
        _sync(making)
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array in a file, if it is of this shape."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError):  # numpy reads its header as Python
        return None
    return array if isinstance(array, np.ndarray) and array.shape == shape and array.dtype == np.uint8 else None


def _write_array(path: Path, array: NDArray[np.uint8]) -> None:
    """As numpy.save, whose error on a full disk does not say that it is full."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def _sync(path: Path) -> None:
    """Have the system write a file to the disk; a folder, where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _said(folder: Path) -> Iterator[None]:
    """What cannot be written, in one line. Not the whole path: whoever sees the error need not know it."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"A clip cannot be kept in {folder.parent.name}/{folder.name} of ComfyUI's user folder: "
            f"{why_not_written(error)}. Make room there; the clips that are finished stay."
        ) from error
