"""Safetensors files: reading one without trust, writing one that is either whole or not there.

Tensors are read with plain reads, not through a memory map: a map of a file that another program shortens
ends the whole process with SIGBUS, an open map keeps Windows users from replacing their LoRA, and page-cached
reads cost a few per cent of the time that the algebra takes.
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
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .errors import ExistsError, FileError, OutputError, TensorError, UnsupportedError

if sys.platform != "win32":
    import fcntl

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
SYNC_AFTER = 24_000_000  # bytes
GATHERED = 1_000_000  # bytes of small tensors that are hashed and written at once
MAX_DIMENSIONS = 32  # the product of a hundred thousand sides takes minutes
METADATA_KEY = "__metadata__"
# Windows opens these as devices, whatever their extension and in every folder.
WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"}
WINDOWS_DEVICES |= {f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"}

# In the order in which the safetensors library lays tensors out: last first.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
FLOATS = {code for code in DTYPES if "F" in code}
OUTPUT_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_LAYOUT_ORDER = {code: place for place, code in enumerate(reversed(DTYPES))}


class NotFiniteError(Exception):
    """A tensor to be written has NaN or infinite values, in the file's dtype at least. Its maker knows what to say.

    key     of the tensor
    """

    def __init__(self, key: str):
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a file: `start` counts bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class FileIdentity:
    """What tells one state of a file from another without reading it."""

    path: Path
    size: int
    modified: int
    inode: int

    @classmethod
    def of(cls, path: Path, file: BinaryIO | None = None) -> FileIdentity:
        """Of an open `file`, if it is given: under its path there may be another one by now."""
        status = os.fstat(file.fileno()) if file else path.stat()
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True)
class Header:
    """The checked table of contents of a safetensors file."""

    identity: FileIdentity
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.identity.path


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check a file's table of contents; no tensor is touched.

    raises  FileError if the file is missing, damaged or not a safetensors file; UnsupportedError for a pickle
    """
    path = Path(path)
    with _readable(path) as file:
        identity = FileIdentity.of(path, file)
        prefix = file.read(8)
        (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (0,)
        if len(prefix) < 8 or length > MAX_HEADER or 8 + length > identity.size:
            # Only now: the length of a sound header may begin with the same bytes as a pickle.
            if prefix[:4] == b"PK\x03\x04" or prefix[:1] == b"\x80" or path.suffix in {".pt", ".pth", ".ckpt", ".bin"}:
                raise UnsupportedError(
                    f"{path.name}: this is a pickled file, and reading one can run any code that its maker put in. "
                    "Convert it to .safetensors with a tool you trust."
                )
            if len(prefix) < 8:
                raise FileError(f"{path.name}: {identity.size} bytes are too few for a safetensors file.")
            raise FileError(
                f"{path.name}: not a safetensors file, or cut off: it claims a header of {length:,} bytes "
                f"in a file of {identity.size:,} bytes."
            )
        raw = file.read(length)
    if len(raw) != length:
        raise FileError(f"{path.name}: the file got shorter while it was read.")
    return Header(identity, *_parse_header(path.name, raw, identity.size - 8 - length, 8 + length))


def _parse_header(name: str, raw: bytes, data_size: int, data_start: int) -> tuple[dict[str, Entry], dict[str, str]]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FileError(f"{name}: the header has the key {shown(twice)} twice, so the file is damaged.")
        return table

    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FileError(f"{name}: not a safetensors file: the header is no JSON ({shown(error)}).") from error
    if not isinstance(table, dict):
        raise FileError(f"{name}: not a safetensors file: the header is no JSON object.")
    metadata = table.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(f"{name}: the file's metadata are damaged: every value must be a string.")
    entries: dict[str, Entry] = {}
    for key, value in table.items():
        try:
            code, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
                raise ValueError
            if code not in DTYPES:
                raise UnsupportedError(f"{name}: {shown(key)} has the dtype {shown(code)}, which cannot be read.")
            dtype = DTYPES[code]
            if len(shape) > MAX_DIMENSIONS:
                raise FileError(f"{name}: {shown(key)} has {len(shape):,} dimensions, which no weight has: the file is damaged.")
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{name}: the header's entry for {shown(key)} is damaged: {shown(value)}.") from error
        if end > data_size or end - begin != math.prod(shape) * dtype.itemsize:
            raise FileError(
                f"{name}: {shown(key)} claims bytes {begin:,} to {end:,} of {data_size:,} for a {code} tensor "
                f"of shape {shape}: the file is cut off or damaged."
            )
        entries[key] = Entry(dtype, shape, data_start + begin, end - begin)
    last = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start - data_start < last:
            raise FileError(f"{name}: {shown(key)} overlaps the tensor before it, so the file is damaged.")
        last = entry.start - data_start + entry.size
    if last < data_size:
        raise FileError(f"{name}: {data_size - last:,} bytes at the end belong to no tensor, so the file is damaged.")
    return entries, metadata


def read_tensors(header: Header, keys: Sequence[str]) -> dict[str, Tensor]:
    """Read tensors in their stored dtype, in one pass through the file. Neighbours share the memory they were read into.

    raises  FileError if the file is gone, cut off, or no longer the one whose header was read
    """
    tensors: dict[str, Tensor] = {}
    with _readable(header.path) as file:
        _check_unchanged(header.identity)
        for run in _neighbours(header.entries, keys):
            first, last = header.entries[run[0]], header.entries[run[-1]]
            buffer = np.empty(last.start + last.size - first.start, dtype=np.uint8)
            file.seek(first.start)
            if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                raise FileError(f"{header.path.name}: the file got shorter while it was read.")
            for key in run:
                entry = header.entries[key]
                count, offset = entry.size // entry.dtype.itemsize, entry.start - first.start
                tensors[key] = (torch.frombuffer(buffer, dtype=entry.dtype, count=count, offset=offset).view(entry.shape)
                                if count else torch.empty(entry.shape, dtype=entry.dtype))
        _check_unchanged(header.identity)
    return tensors


def _neighbours(entries: Mapping[str, Entry], keys: Sequence[str]) -> Iterator[list[str]]:
    """Cut keys, in the order of the file, into runs of tensors that lie side by side."""
    run: list[str] = []
    end = -1
    for key in sorted(keys, key=lambda key: entries[key].start):
        entry = entries[key]
        if run and entry.start != end:
            yield run
            run = []
        run.append(key)
        end = entry.start + entry.size
    if run:
        yield run


def _check_unchanged(identity: FileIdentity) -> None:
    try:
        unchanged = FileIdentity.of(identity.path) == identity
    except FileNotFoundError as error:
        raise FileError(f"{identity.path.name}: the file was deleted after it was loaded.") from error
    except OSError as error:
        raise FileError(f"{identity.path.name}: cannot be read ({error.strerror or error}).") from error
    if not unchanged:
        raise FileError(f"{identity.path.name}: the file changed after it was loaded. Load it again.")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb", buffering=0) as file:
            yield file
    except FileNotFoundError as error:
        raise FileError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{path.name}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def file_sha256(identity: FileIdentity, stop: threading.Event | None = None) -> str:
    """SHA-256 of a whole file, remembered for as long as the file does not change.

    stop    set by another thread that no longer needs it; CancelledError is raised then
    raises  FileError if the file is gone or changed
    """
    _check_unchanged(identity)
    if identity not in _hashes:
        digest = hashlib.sha256()
        with _readable(identity.path) as file:
            buffer = memoryview(bytearray(1 << 20))  # stays in the processor's cache
            while length := file.readinto(buffer):  # type: ignore[attr-defined]
                if stop and stop.is_set():
                    raise CancelledError
                digest.update(buffer[:length])
            _check_unchanged(identity)
        while len(_hashes) >= 256:
            _hashes.pop(next(iter(_hashes)), None)
        _hashes[identity] = digest.hexdigest()
    return _hashes[identity]


_hashes: dict[FileIdentity, str] = {}


def shown(value: object, limit: int = 120) -> str:
    """A value from a file, safe to put into a message: one line, printable, not too long."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Plan:
    """The tensors that a file will hold, in the order in which they have to be written."""

    tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]

    @classmethod
    def of(cls, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Plan:
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
        """Where the file that has the name so far waits while several drafts are published."""
        return self.temporary.with_suffix(".old")


@contextlib.contextmanager
def draft_file(
    path: str | os.PathLike[str],
    plan: Plan,
    produce: Generator[tuple[str, Tensor], None, None],
    placeholder: Mapping[str, str],
    describe: Callable[[], Mapping[str, str]],
    overwrite: bool = False,
) -> Iterator[Draft]:
    """Write a safetensors file under a temporary name. `publish` gives it its own; without that, it is gone on leaving.

    produce   yields the planned tensors in the planned order, so that the whole result never has to be in memory
    describe  gives the metadata once everything is written; `placeholder` must have the same keys and lengths.
              `sshs_model_hash` and `sshs_legacy_hash` (kohya's) are added for the new content
    raises    OutputError if the folder is missing or read-only, the file exists, or the disk is full; NotFiniteError;
              whatever it raises, no part of a file is left behind; what a killed process has left, the next save removes
    """
    path = Path(path)
    _remove_abandoned(path)  # before the free space is looked at
    check_target(path, overwrite, plan.data_size)
    head = plan.header({**placeholder, "sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8})
    with _said_as_output_error(path):
        temporary, file = _open_temporary(path)
    try:
        with file:
            with _said_as_output_error(path):
                try:
                    _write(file, head, plan, produce, describe)
                except BaseException:
                    file.close()  # which may fail like the writing, and is told like it
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
    plan: Plan,
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
        hashes = {
            "sshs_model_hash": digest.hexdigest(),
            "sshs_legacy_hash": _legacy_hash(file, len(head), plan, metadata),
        }
        final = plan.header({**metadata, **hashes})
        if len(final) != len(head):
            raise AssertionError("the metadata's length changed while the file was written")
        file.seek(0)
        file.write(final)
        file.flush()
        os.fsync(file.fileno())
        for sync in syncs:
            sync.result()  # the system tells of a failed write once


def _pieces(plan: Plan, produce: Iterator[tuple[str, Tensor]]) -> Iterator[memoryview]:
    """The bytes of the planned tensors. Small ones are gathered: at each hash and write, Python may pass to another thread."""
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
        array = (tensor if dtype.itemsize > 2 else tensor.view(torch.int16 if dtype.itemsize == 2 else torch.uint8)).numpy()
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
            if not _is_finite(tensor):
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


def _remove_abandoned(path: Path) -> None:
    """Remove what killed saves to `path` have left. What cannot be removed does no harm, so errors are not told."""
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
    """Give files their names: all of them, or none, and then what had a name before has it again.

    raises  ExistsError if somebody made a file of that name meanwhile, OutputError if one cannot be replaced
    """
    *first, last = drafts
    try:
        for draft in first:
            with _said_as_output_error(draft.path):
                _keep_previous(draft)
                _publish(draft)
        with _said_as_output_error(last.path):
            _publish(last)
    except BaseException:
        if last.temporary.exists():
            for draft in drafts:
                _withdraw(draft)
        else:  # stopped after the last one got its name
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
    # A file that somebody made meanwhile must make this fail, and a rename would replace it, but on Windows.
    if sys.platform == "win32":
        os.rename(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        # Killed between these two, a save leaves an empty file: not torn, and no reader takes it for a LoRA.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(temporary, path)
        except BaseException:
            if temporary.exists():  # else it is done
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


def _legacy_hash(file: BinaryIO, data_start: int, plan: Plan, metadata: Mapping[str, str]) -> str:
    """The old short hash of kohya's tools: of the 64 kB after the first MB of the file, had it only its training metadata."""
    begin, end = 0x100000, 0x110000
    head = plan.header({key: value for key, value in metadata.items() if key.startswith("ss_")})
    window = head[begin:end]
    file.seek(data_start + max(0, begin - len(head)))
    window += file.read(max(0, end - max(begin, len(head))))
    return hashlib.sha256(window).hexdigest()[:8]


def check_target(path: Path, overwrite: bool, size: int = 0) -> None:
    """Raise OutputError early if a file cannot be written there; `size` in bytes."""
    with _said_as_output_error(path):
        if path.suffix != ".safetensors":
            raise OutputError(f"{path.name}: the name must end in .safetensors.")
        if not path.parent.is_dir():
            raise OutputError(f"{path.name}: the folder {path.parent} does not exist. Make it, or choose another.")
        if path.is_dir():
            raise OutputError(f"{path.name}: this is a folder; give the name of a file.")
        if path.exists() and not overwrite:
            raise FileExistsError(errno.EEXIST, "the file exists")
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OutputError(f"{path.name}: the result needs {size:,} bytes, but only {free:,} are free on that disk.")


@contextlib.contextmanager
def _said_as_output_error(path: Path) -> Iterator[None]:
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "your disk quota is used up",
        errno.EFBIG: "the file would be larger than allowed here",
        errno.EACCES: "you may not write into this folder",
        errno.EPERM: "you may not write into this folder",
        errno.EROFS: "the disk is read-only",
        errno.ENAMETOOLONG: "the name is too long",
    }
    if sys.platform == "win32":
        reasons[errno.EACCES] = "you may not write into this folder, or another program has the file open"
    try:
        yield
    except FileExistsError as error:
        raise ExistsError(f"{path.name}: the file exists. Choose another name, or allow overwriting.") from error
    except OSError as error:
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"{path.name}: cannot be written: {reason}. Nothing was changed.") from error


def now() -> str:
    """The date for `modelspec.date`: ISO 8601, UTC, seconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())


def check_finite(name: str, key: str, tensor: Tensor) -> None:
    """Raise TensorError, naming the key, if a tensor holds NaN or Inf."""
    if not _is_finite(tensor):
        what = "NaN" if bool(torch.isnan(tensor.float()).any()) else "infinite"
        raise TensorError(f"{name}: {shown(key)} holds {what} values: the training broke down, or the file is damaged.")


Progress = Callable[[int, int], None]
"""Called with (done, total) modules. May raise to cancel: nothing is left behind."""
