"""Finished clips on disk, each under a key that says what it was made of. They survive an error, a Cancel and a restart.

A clip is a folder: `clip.mp4` at full size, `cells <width>x<height>.npy` with its shrunken frames, and `about.json`. The
folder gets its name in one step, when it is complete. So several machines can share a store without locks: a lock file
would outlive a crash, and network shares do not agree on what a lock is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
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

# Seconds. Unfinished folders of a killed process are deleted at this age: more than clocks and time zones differ.
_ABANDONED = 24 * 3600
# Another machine may still need what it wrote this recently, although no plan names it.
_LATELY = 3600
# A sweep that nobody has gone on with for so long is given up.
_GIVEN_UP = 14 * 24 * 3600
_UNFINISHED, _PLANS = ".making-", ".plans"
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
    """A clip of the store.

    store_name  what a person calls the store, in errors
    """

    folder: Path
    about: About
    store_name: str = "clips"

    @property
    def video(self) -> Path:
        """The clip at full size."""
        return self.folder / "clip.mp4"

    def frames(self, only: Iterable[int] | None = None) -> Iterable[Frame]:
        """The frames at full size, as decoded from the encoded clip."""
        return read_video(self.video, None if only is None else set(only), (self.about.width, self.about.height))

    def cells(self, longest: int, progress: Progress | None = None) -> NDArray[np.uint8]:
        """(frames, height, width, 3): all frames, the longer side at most `longest`.

        Frames of this size that are not there or damaged are made from the clip. They are read, not mapped: another machine
        may delete the file, and a map of a file that is gone ends the process.

        progress    called for every frame that has to be shrunk first; may raise to cancel
        """
        width, height = fitting(self.about.width, self.about.height, longest)
        path = self.folder / _cells_name(width, height)
        cells = _read_array(path, (self.about.frames, height, width, 3))
        if cells is None:
            cells = _shrunk(read_video(self.video, None, None), width, height, self.about, progress)
            with _said(self.store_name):
                _keep_cells(path, cells)
        return cells


class ClipStore:
    """All clips in one folder. When they exceed the budget, the least recently used are deleted first.

    budget      bytes that all clips together may take
    name        what a person calls the folder: errors do not tell where a server keeps its files
    is_own      the folder is made where it is missing. One that somebody else provides is not: a share that is not connected
                would become a folder of the local disk
    """

    def __init__(self, folder: Path, budget: int = 4 << 30, name: str = "clips", is_own: bool = True):
        self.folder = folder
        self.budget = budget
        self.name = name
        self.is_own = is_own
        # Clips that were found to be sound, and how their files were then: decoding takes a while.
        self._checked: dict[Path, tuple[object, About]] = {}
        self._sizes: dict[str, tuple[float, int]] = {}
        self._written: set[str] = set()

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

        with _said(self.name):
            self._make_folder()
            made = self.folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
            made.mkdir()
            try:
                small = write_video(made / "clip.mp4", watched(), fps, scaled=size)
                _write_frames(made / _cells_name(*size), small)
                kept = asdict(replace(about, brightest=brightest))
                (made / "about.json").write_text(json.dumps(kept), "utf-8")
                parts = list(made.iterdir())
                for part in (*parts, made):
                    _open_as(part, self.folder)
                # After a power cut a folder may otherwise be there, and what is in it not.
                for part in (*parts, made):
                    _sync(part)
                clip = self._publish(made, folder)
                self._written.add(key)
                return clip
            except BaseException:  # Cancel is no Exception
                shutil.rmtree(made, ignore_errors=True)
                raise

    def remove(self, key: str) -> None:
        """Delete a clip, if there is one."""
        self._clear(self._place(key))

    def check_writable(self) -> None:
        """Raise OutputError if no clip could be kept, before anything is rendered for it."""
        with _said(self.name):
            self._make_folder()
            if not self.folder.is_dir():
                raise OutputError(
                    f"The folder of clips ({self.name}) is not there. Connect the disk or the share that it is on, or correct "
                    "the path."
                )
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(4096))

    def plan(self, keys: Iterable[str]) -> None:
        """Say that a sweep needs these clips: until it is complete, no machine deletes those that are there."""
        keys = sorted(set(keys))
        with _said(self.name):
            self._make_folder()
            place = self._plan_of(keys)
            place.parent.mkdir(exist_ok=True)
            _open_as(place.parent, self.folder)
            making = place.parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
            try:
                making.write_text(json.dumps(keys), "utf-8")
                _open_as(making, self.folder)
                try:
                    making.replace(place)
                except PermissionError:
                    if not place.exists():  # on Windows, while another machine reads the same plan
                        raise
            finally:
                making.unlink(missing_ok=True)

    def complete(self, keys: Iterable[str]) -> None:
        """All clips of a planned sweep are there: from now on they count as any others."""
        with contextlib.suppress(OSError):
            self._plan_of(sorted(set(keys))).unlink()

    def planned(self, now: float) -> set[str]:
        """The keys of all plans that are not given up. now: by the store's own clock."""
        keys: set[str] = set()
        folder = self.folder / _PLANS
        for name in os.listdir(folder) if folder.is_dir() else []:
            place = folder / name
            try:
                if now - place.stat().st_mtime > _GIVEN_UP:
                    place.unlink()
                elif not name.startswith("."):
                    keys.update(key for key in json.loads(place.read_text("utf-8")) if isinstance(key, str))
            except (OSError, ValueError, TypeError):
                continue  # somebody else was faster, or it is half of one: it protects nothing
        return keys

    def _plan_of(self, keys: list[str]) -> Path:
        """The same sweep has the same plan on every machine."""
        return self.folder / _PLANS / f"{hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:32]}.json"

    def _make_folder(self) -> None:
        if self.is_own:
            self.folder.mkdir(parents=True, exist_ok=True)

    def _now(self) -> float:
        """The time by the clock that the files in the folder get theirs from, which is not this machine's on a share."""
        try:
            handle, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=self.folder)
            try:
                os.close(handle)
                os.utime(name)
                return os.stat(name).st_mtime
            finally:
                os.unlink(name)
        except OSError:
            return time.time()

    def _sound(self, folder: Path) -> StoredClip | None:
        video = folder / "clip.mp4"
        try:
            if not stat.S_ISDIR(folder.lstat().st_mode):
                return None  # it is not there, or a link to somewhere else
            files = video.stat(), (folder / "about.json").stat()
        except OSError:
            return None
        if not all(stat.S_ISREG(file.st_mode) for file in files):
            return None
        state = _state_of(files)
        checked = self._checked.get(folder)
        if checked is None or checked[0] != state:
            about = About.read(folder / "about.json")
            if about is None or not plays(video, about.frames, about.width, about.height):
                return None
            self._remember(folder, state, about)
            return StoredClip(folder, about, self.name)
        return StoredClip(folder, checked[1], self.name)

    def _remember(self, folder: Path, state: object, about: About) -> None:
        self._checked[folder] = (state, about)
        while len(self._checked) > 4096:
            self._checked.pop(next(iter(self._checked)))

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
        with contextlib.suppress(OSError):  # somebody else may have taken it away already
            self._remember(folder, _state_of((folder / name).stat() for name in ("clip.mp4", "about.json")), about)
        return StoredClip(folder, about, self.name)

    def _clear(self, place: Path) -> None:
        """Take away whatever is there: a clip, half a clip, a file, a link. In one step, so that nobody finds half of it."""
        aside = self.folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
        self._checked.pop(place, None)
        try:
            place.rename(aside)
        except OSError:
            return  # somebody else was faster, or has it open: what is there then is looked at again
        _delete(aside)

    def _place(self, key: str) -> Path:
        if not is_key(key):
            raise FileError(f"{printable(key, 60)} names no clip. Sweep Grid gives the names.")
        return self.folder / key

    def prune(self, keep: Iterable[str] = ()) -> None:
        """Delete the least recently used clips until the rest is within the budget.

        Never those whose keys are given, those of a planned sweep, and what another machine wrote within the last hour: so a
        store may exceed its budget for a while.
        """
        found = self._entries()
        now = self._now()
        kept: set[str] | None = None
        total = sum(size for _, size in found.values())
        for name, (used, size) in sorted(found.items(), key=lambda entry: entry[1][0]):
            age = now - used
            if name.startswith(_UNFINISHED):
                if age > _ABANDONED:
                    _delete(self.folder / name)
                continue
            if total <= self.budget:
                continue
            if kept is None:
                kept = self.planned(now).union(keep)
            if name in kept or (name not in self._written and abs(age) < _LATELY):
                continue
            place = self.folder / name
            self._clear(place)
            if not os.path.lexists(place):  # Windows: somebody is reading it; or it is another user's
                total -= size

    def _entries(self) -> dict[str, tuple[float, int]]:
        """Name -> when it was used last, and bytes, of all clips and all that is unfinished. Only what was used since is looked into."""
        found: dict[str, tuple[float, int]] = {}
        for entry in os.scandir(self.folder) if self.folder.is_dir() else ():
            if entry.name == _PLANS:
                continue
            with contextlib.suppress(OSError):  # another machine has just deleted it
                used = entry.stat(follow_symlinks=False).st_mtime
                known = self._sizes.get(entry.name)
                size = known[1] if known and known[0] == used else size_of(Path(entry.path))
                found[entry.name] = used, size
        self._sizes = found
        return found


def is_black(brightest: int) -> bool:
    """Whether a clip whose brightest pixel has this value, of 255, shows nothing."""
    return brightest <= _BLACK


def _state_of(files: Iterable[os.stat_result]) -> list[tuple[int, int]]:
    """What changes with a file."""
    return [(file.st_size, file.st_mtime_ns) for file in files]


def is_key(key: object) -> bool:
    """A key becomes the name of a folder that may be replaced, so it must not contain a path."""
    return isinstance(key, str) and bool(re.fullmatch(r"[0-9a-z]{1,64}", key))


def _cells_name(width: int, height: int) -> str:
    return f"cells {width}x{height}.npy"


def _shrunk(
    frames: Iterable[Frame], width: int, height: int, about: About, progress: Progress | None
) -> NDArray[np.uint8]:
    """Frames at another size than the stored one, from the encoded clip."""
    import torch

    small = []
    for number, frame in enumerate(frames):
        if progress:
            progress(number, about.frames)
        picture = torch.from_numpy(frame[: about.height, : about.width].copy()).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(picture, (height, width), mode="area")
        small.append(resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy())
    return np.stack(small)


def _keep_cells(path: Path, cells: NDArray[np.uint8]) -> None:
    """For the next time, if this may be written: the clip may be another user's, on a share that is only readable."""
    making = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        _write_frames(making, cells)
        _open_as(making, path.parent)
        _sync(making)
        if path.is_dir():
            _delete(path)
        making.replace(path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ESTALE):
            raise
    finally:
        with contextlib.suppress(OSError):
            making.unlink()


def _read_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array in a file, if it is of this shape. Its header is compared, not parsed: whatever else is there is damaged."""
    head, size = _array_head(shape), math.prod(shape)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != len(head) + size:
            return None
        array = np.empty(shape, np.uint8)
        with path.open("rb") as file:
            whole = file.read(len(head)) == head and file.readinto(array.data) == size
    except OSError:
        return None
    return array if whole else None


def _array_head(shape: tuple[int, ...]) -> bytes:
    """What stands before the values in a .npy file."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return head.getvalue()


def _write_frames(path: Path, frames: Sequence[Frame] | NDArray[np.uint8]) -> None:
    """As numpy.save of their stack, which need not be made. numpy's error on a full disk does not say that it is full."""
    with path.open("wb") as file:
        file.write(_array_head((len(frames), *frames[0].shape)))
        for frame in frames:
            file.write(np.ascontiguousarray(frame).data)


def _open_as(path: Path, model: Path) -> None:
    """Give it the permissions of another folder: on a share, other users' servers then read and write it."""
    if os.name == "nt":
        return  # there, it inherits that
    with contextlib.suppress(OSError):  # some shares have no modes
        mode = model.stat().st_mode & 0o2777
        os.chmod(path, mode | 0o700 if path.is_dir() else (mode & 0o666) | 0o600)


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the system write a file to the disk; a folder, where the system can."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # some network shares know no fsync of a folder
    finally:
        os.close(handle)


@contextlib.contextmanager
def _said(name: str) -> Iterator[None]:
    """What cannot be written, in one line. Not the path: whoever sees the error need not know it."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"A clip cannot be kept in the folder of clips ({name}): {why_not_written(error)}. Make room there; the clips "
            "that are finished stay."
        ) from error
