"""Writing safetensors files completely or not at all.

A file is drafted under a temporary name in the same folder, and gets its name when all of it is on disk. Several drafts are
published together or not at all.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import glob
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import struct
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import ExistsError, OutputError
from ..sentence import printable
from .dtypes import CODES, DTYPES, MAX_HEADER, METADATA_KEY, is_finite

if sys.platform != "win32":
    import fcntl
SYNC_AFTER = 24_000_000  # bytes
GATHERED = 1_000_000  # bytes of small tensors that are hashed and written at once
# Windows opens these as devices, whatever their extension and in every folder.
WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"}
WINDOWS_DEVICES |= {f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"}
_LAYOUT_ORDER = {code: place for place, code in enumerate(reversed(DTYPES))}


class NotFiniteError(Exception):
    """A tensor to be written has NaN or infinite values, at least in the file's dtype. The caller turns this into a message.

    key     of the tensor
    """

    def __init__(self, key: str):
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class Layout:
    """The tensors that a file will hold, in the order in which they have to be written."""

    tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]

    @classmethod
    def of(cls, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Layout:
        """In the order of the safetensors library, so that tools which write the file again get the same bytes."""
        order = sorted(tensors, key=lambda key: (_LAYOUT_ORDER[CODES[tensors[key][0]]], key))
        return cls([(key, *tensors[key]) for key in order])

    @property
    def data_size(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.tensors)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        table: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
        end = 0
        for key, dtype, shape in self.tensors:
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            table[key] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8", errors="replace")
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


@dataclass(frozen=True)
class Draft:
    """A complete file that still has a temporary name, beside the one that it is to get."""

    temporary: Path
    path: Path
    overwrite: bool

    @property
    def previous(self) -> Path:
        """Where the existing file of that name is kept while several drafts are published."""
        return self.temporary.with_suffix(".old")


@contextlib.contextmanager
def draft_file(
    path: str | os.PathLike[str],
    plan: Layout,
    produce: Generator[tuple[str, Tensor], None, None],
    placeholder: Mapping[str, str],
    describe: Callable[[], Mapping[str, str]],
    overwrite: bool = False,
) -> Iterator[Draft]:
    """Write a safetensors file under a temporary name. `publish` renames it; otherwise it is deleted on exit.

    produce   yields the planned tensors in the planned order, so that the whole result never has to be in memory
    describe  gives the metadata once everything is written; `placeholder` must have the same keys and lengths.
              `sshs_model_hash`, kohya's hash of the tensors, is added
    raises    OutputError if the folder is missing or read-only, the file exists, or the disk is full; NotFiniteError;
              after any error no partial file is left; the next save removes what a killed process has left
    """
    path = Path(path)
    _remove_abandoned(path)  # before the free space is looked at
    check_target(path, overwrite, plan.data_size)
    head = plan.header({**placeholder, "sshs_model_hash": "0" * 64})
    if len(head) > MAX_HEADER:
        raise OutputError(
            f"{path.name}: names and metadata would take {len(head):,} bytes, and no reader takes more than "
            f"{MAX_HEADER:,}. Shorten the selection, or save fewer modules."
        )
    with said_as_output_error(path):
        temporary, file = _open_temporary(path)
    try:
        with file:
            with said_as_output_error(path):
                try:
                    _write(file, head, plan, produce, describe)
                except BaseException:
                    file.close()  # which may fail as writing does, and is reported the same way
                    raise
            if sys.platform == "win32":
                file.close()  # Windows renames no open file; elsewhere it stays locked until it has its name
            yield Draft(temporary, path, overwrite)
    finally:
        produce.close()
        if temporary.exists():  # a read-only disk refuses even to remove what is not there
            temporary.unlink()


def _write(
    file: BinaryIO,
    head: bytes,
    plan: Layout,
    produce: Iterator[tuple[str, Tensor]],
    describe: Callable[[], Mapping[str, str]],
) -> None:
    """Everything that `draft_file` puts into its file. `head` is the header with placeholders, as long as the final one."""
    # What is written goes to the disk while the rest is worked out.
    with ThreadPoolExecutor(1) as disk:
        syncs: list[Future[None]] = []
        file.write(head)
        digest, unsynced = hashlib.sha256(), 0
        for piece in _pieces(plan, produce):
            digest.update(piece)
            unsynced += file.write(piece)
            if unsynced > SYNC_AFTER and (not syncs or syncs[-1].done()):
                unsynced = 0
                syncs.append(disk.submit(os.fsync, file.fileno()))
        metadata = describe()
        final = plan.header({**metadata, "sshs_model_hash": digest.hexdigest()})
        if len(final) != len(head):
            raise AssertionError("the metadata's length changed while the file was written")
        file.seek(0)
        file.write(final)
        file.flush()
        os.fsync(file.fileno())
        for sync in syncs:
            sync.result()  # the system reports a failed write only once


def _pieces(plan: Layout, produce: Iterator[tuple[str, Tensor]]) -> Iterator[memoryview]:
    """The bytes of the planned tensors. Small ones are gathered, because Python may switch threads at every hash and write."""
    memory = np.empty(GATHERED, dtype=np.uint8)
    gathered: list[tuple[str, Tensor]] = []
    used = 0
    for (key, dtype, shape), (produced, tensor) in zip(plan.tensors, produce, strict=True):
        if produced != key or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise AssertionError(f"planned {key} {dtype} {shape}, got {produced} {tensor.shape}")
        size = tensor.numel() * dtype.itemsize
        if gathered and (used + size > GATHERED or dtype != gathered[-1][1].dtype):
            _check_written(memory[:used], gathered)
            yield memory[:used].data
            gathered, used = [], 0
        # numpy knows no bfloat16 and no float8.
        array = (
            tensor if dtype.itemsize > 2 else tensor.view(torch.int16 if dtype.itemsize == 2 else torch.uint8)
        ).numpy()
        if size > GATHERED:
            whole = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            _check_written(whole, [(key, tensor)])
            yield whole.data
            continue
        np.copyto(memory[used : used + size].view(array.dtype).reshape(shape), array)
        gathered.append((key, tensor))
        used += size
    if gathered:
        _check_written(memory[:used], gathered)
        yield memory[:used].data


def _check_written(data: np.ndarray, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Raise NotFiniteError if one of these tensors of one dtype, which `data` holds one after the other, has NaN or Inf."""
    if data.size and not math.isfinite(torch.from_numpy(data).view(tensors[0][1].dtype).sum(dtype=torch.float32)):
        for key, tensor in tensors:  # it may be the sum alone that is too large
            if not is_finite(tensor):
                raise NotFiniteError(key)


def _prefix(path: Path) -> str:
    """How the temporary files of saves to `path` begin: each machine has its own, and removes only those.

    Locks show what other processes of this machine do; on a network share, not always what other machines do.
    """
    mark = hashlib.sha256(f"{platform.node()}\0{path.name}".encode(errors="replace")).hexdigest()
    return f".{path.stem[:40]}.{mark[:12]}."


def _open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new hidden file beside `path`, open, and locked for as long as it is open."""
    while True:
        temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.tmp")
        file = open(temporary, "x+b")
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # a file system without locks: nobody removes anything there
                fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, file
        file.close()  # another save found it before it was locked


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a small file: there is the old one or the new one, never a part. A link of that name is replaced, not followed.

    raises  OutputError if the folder is read-only or the disk is full
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    with said_as_output_error(path):
        try:
            # Exclusive: a link that somebody has put there is not followed either.
            with open(
                os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), mode), "wb"
            ) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it. raises OutputError, which names no folder above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {printable(folder.name)} cannot be made: {why_not_written(error)}. Choose another name."
        ) from error


def is_same_file(path: Path, content: bytes) -> bool:
    """Whether a plain file, no link, lies there with this content."""
    return (
        not path.is_symlink()
        and path.is_file()
        and path.stat().st_size == len(content)
        and path.read_bytes() == content
    )


def _remove_abandoned(path: Path) -> None:
    """Remove what killed saves to `path` have left. A leftover does no harm, so errors are ignored."""
    with contextlib.suppress(OSError):
        for temporary in path.parent.glob(f"{glob.escape(_prefix(path))}*.tmp"):
            with contextlib.suppress(OSError):
                _remove_unless_in_use(temporary)


if sys.platform == "win32":

    def _remove_unless_in_use(temporary: Path) -> None:
        # One that is open cannot be deleted. Between closing and renaming it is not open, but new.
        if time.time() - temporary.stat().st_mtime > 600:
            temporary.unlink()

else:

    def _remove_unless_in_use(temporary: Path) -> None:
        with open(temporary, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def publish(drafts: Sequence[Draft]) -> None:
    """Give all files their names. If one fails, the files that had these names before get them back.

    raises  ExistsError if somebody made a file of that name meanwhile, OutputError if one cannot be replaced
    """
    *first, last = drafts
    try:
        for draft in first:
            with said_as_output_error(draft.path):
                _keep_previous(draft)
                _publish(draft)
        with said_as_output_error(last.path):
            _publish(last)
    except BaseException:
        if last.temporary.exists():
            for draft in drafts:
                _withdraw(draft)
        else:  # interrupted after the last one got its name
            _forget_previous(first)
        raise
    _forget_previous(first)


def _keep_previous(draft: Draft) -> None:
    if not (draft.overwrite and os.path.lexists(draft.path)):
        return
    try:
        os.link(draft.path, draft.previous)
    except OSError:  # a file system without hard links
        os.rename(draft.path, draft.previous)


def _publish(draft: Draft) -> None:
    temporary, path = draft.temporary, draft.path
    if draft.overwrite:
        os.replace(temporary, path)
        return
    # This must fail if somebody has created the file meanwhile, and outside Windows a rename would replace it.
    if sys.platform == "win32":
        os.rename(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        # If the process is killed between these two, an empty file is left. No reader takes that for a LoRA.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(temporary, path)
        except BaseException:
            if temporary.exists():  # otherwise done
                path.unlink()
            raise
    else:
        temporary.unlink()


def _withdraw(draft: Draft) -> None:
    """Undo `_publish`, wherever it stopped."""
    if os.path.lexists(draft.previous):
        os.replace(draft.previous, draft.path)
        draft.previous.unlink(missing_ok=True)  # where both names are links to one file, nothing was replaced
    elif not draft.temporary.exists() or (draft.path.exists() and os.path.samefile(draft.temporary, draft.path)):
        draft.path.unlink(missing_ok=True)


def _forget_previous(drafts: Sequence[Draft]) -> None:
    for draft in drafts:
        draft.previous.unlink(missing_ok=True)


def check_target(path: Path, overwrite: bool, size: int = 0) -> None:
    """Raise OutputError early if a file cannot be written there; `size` in bytes."""
    with said_as_output_error(path):
        if path.suffix != ".safetensors":
            raise OutputError(f"{path.name}: the name must end in .safetensors.")
        if not path.parent.is_dir():
            folder = path.parent.name if path.is_absolute() else path.parent
            raise OutputError(f"{path.name}: the folder {folder} does not exist. Make it, or choose another.")
        if path.is_dir():
            raise OutputError(f"{path.name}: this is a folder; give the name of a file.")
        if path.exists() and not overwrite:
            raise FileExistsError(errno.EEXIST, "the file exists")
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OutputError(f"{path.name}: the result needs {size:,} bytes, but only {free:,} are free on that disk.")


@contextlib.contextmanager
def said_as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ExistsError(f"{path.name}: the file exists. Choose another name, or allow overwriting.") from error
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written: {why_not_written(error)}. Nothing was changed.") from error


def why_not_written(error: OSError) -> str:
    """Why a file cannot be written, for a sentence."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "your disk quota is used up",
        errno.EFBIG: "the file would be larger than allowed here",
        errno.EACCES: "you may not write into this folder",
        errno.EPERM: "you may not write into this folder",
        errno.EROFS: "the disk is read-only",
        errno.ENAMETOOLONG: "the name is too long",
        errno.EEXIST: "a file of this name is there",
        errno.ENOTDIR: "a file is in the place of a folder",
    }
    if sys.platform == "win32":
        reasons[errno.EACCES] = "you may not write into this folder, or another program has the file open"
    return reasons.get(error.errno or 0, error.strerror or str(error))


def now() -> str:
    """The date for `modelspec.date`: ISO 8601, UTC, seconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
