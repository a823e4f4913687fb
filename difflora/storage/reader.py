"""Reading safetensors files that may be damaged or hostile.

Tensors are read with plain reads, not through a memory map: a map of a file that another program shortens
ends the whole process with SIGBUS, an open map keeps Windows users from replacing their LoRA, and page-cached
reads cost a few per cent of the time that the algebra takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import FileError, TensorError, UnsupportedError
from ..sentence import printable
from .dtypes import DTYPES, MAX_HEADER, METADATA_KEY, is_finite

MAX_TENSORS = 100_000  # in one file; models have some thousands
MAX_DIMENSIONS = 32  # the product of a hundred thousand sides takes minutes


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
        """If an open `file` is given, use that: by now there may be another file at its path."""
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
        if prefix == bytes(8) and not any(file.read(2000)):
            raise FileError(
                f"{path.name}: the file begins with nothing but zeros: the download did not finish. Download it again."
            )
        if len(prefix) < 8 or length > MAX_HEADER or 8 + length > identity.size:
            # Only now: the length of a sound header may begin with the same bytes as a pickle.
            if error := _what_else(path, prefix + file.read(2000), identity.size):
                raise error
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


_OTHER_FILES = (
    (b"GGUF", "a GGUF file, which holds quantised weights of a model", "Use a .safetensors file."),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", 'Fetch it with "git lfs pull".'),
    (b"version https://hawser", "a Git LFS pointer, not the file it stands for", 'Fetch it with "git lfs pull".'),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"BZh", "a bzip2 archive", "Unpack it first."),
    (b"\xfd7zXZ", "an xz archive", "Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "Unpack it first."),
    (b"PK\x05\x06", "an empty zip archive", "Download the LoRA again."),
    (b"%PDF", "a PDF document", "Download the LoRA again."),
    (b"\x89PNG", "a picture", "Download the LoRA again."),
    (b"\xff\xd8\xff", "a picture", "Download the LoRA again."),
    (b"GIF8", "a picture", "Download the LoRA again."),
    (b"\x1aE\xdf\xa3", "a video", "Download the LoRA again."),
    (b"\x93NUMPY", "an array of NumPy", "Use a .safetensors file."),
    (b"\x89HDF", "an HDF5 file", "Use a .safetensors file."),
    (b"MZ", "a program for Windows", "Do not run it. Download the LoRA from another place."),
    (b"[InternetShortcut]", "a link to a web page", "Download the file that it leads to."),
)
# The same, by bytes that stand further on.
_OTHER_INSIDE = (
    (257, b"ustar", "a tar archive", "Unpack it first."),
    (8, b"WEBP", "a picture", "Download the LoRA again."),
    (4, b"ftyp", "a video or a picture", "Download the LoRA again."),
)
_JSON = re.compile(r'\{\s*["}]|\[\s*["{\[\]\d-]|\[\s*(?:true|false|null)')
# The first entry of the zip archive in which torch keeps a pickle.
_TORCH_ENTRY = re.compile(rb"[^/]*/?(?:data\.pkl|version|byteorder|constants\.pkl|\.\w+|data/.*)|")


def _what_else(path: Path, head: bytes, size: int) -> FileError | UnsupportedError | None:
    """What a file that is not safetensors may be, by its first bytes; None if they do not tell."""
    name = path.name
    is_zip = head.startswith(b"PK\x03\x04")
    entry = head[30 : 30 + int.from_bytes(head[26:28], "little")] if is_zip else b""
    if is_zip and path.suffix not in _PICKLES and not _TORCH_ENTRY.fullmatch(entry):
        return FileError(f"{name}: this is a zip archive, not a LoRA. Unpack it first.")
    if is_zip or head.startswith(b"\x80") or path.suffix in _PICKLES:
        return UnsupportedError(
            f"{name}: this is a pickled file, and reading one can run any code that its maker put in. "
            "Convert it to .safetensors with a tool you trust."
        )
    for magic, what, advice in _OTHER_FILES:
        if head.startswith(magic):
            return FileError(f"{name}: this is {what}, not a LoRA. {advice}")
    for place, magic, what, advice in _OTHER_INSIDE:
        if head.startswith(magic, place):
            return FileError(f"{name}: this is {what}, not a LoRA. {advice}")
    if size < 8:
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="ignore").strip()
    if text.startswith("<"):
        return FileError(f"{name}: this is a web page, not a LoRA: the download failed. Download it again.")
    is_text = all(char.isprintable() or char.isspace() for char in text) and len(text.encode()) >= len(head.strip()) - 8
    if text and is_text:
        what = "JSON" if _JSON.match(text) else "text"
        return FileError(
            f"{name}: this is {what}, not a LoRA. It begins with {printable(' '.join(text.split()), 80)}. If that is an "
            "error message, the download failed: download it again."
        )
    return None


_PICKLES = {".pt", ".pth", ".ckpt", ".bin"}


def _check_structure(name: str, raw: bytes) -> None:
    """Refuse a header with more parts than any model has, before spending time and memory on it."""
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left of quotes stands around texts
    many_texts = plain.count(b'"') > 12 * MAX_TENSORS
    outside = b"" if many_texts else b"".join(plain.split(b'"')[::2])
    if many_texts or max(outside.count(b"{"), outside.count(b"[") // 2, outside.count(b",") // 40) > MAX_TENSORS:
        raise FileError(
            f"{name}: the header lists more than {MAX_TENSORS:,} parts, which no model has: the file is damaged."
        )


def _parse_header(name: str, raw: bytes, data_size: int, data_start: int) -> tuple[dict[str, Entry], dict[str, str]]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FileError(f"{name}: the header has the key {printable(twice)} twice, so the file is damaged.")
        return table

    _check_structure(name, raw)
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FileError(f"{name}: not a safetensors file: the header is not JSON ({printable(error)}).") from error
    if not isinstance(table, dict):
        raise FileError(f"{name}: not a safetensors file: the header is not a JSON object.")
    metadata = table.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(f"{name}: the file's metadata are damaged: every value must be a string.")
    entries: dict[str, Entry] = {}
    for key, value in table.items():
        try:
            code, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
            numbers = (*shape, begin, end)
            if set(map(type, numbers)) != {int} or min(numbers) < 0:
                raise ValueError
            if code not in DTYPES:
                raise UnsupportedError(
                    f"{name}: {printable(key)} has the dtype {printable(code)}, which cannot be read."
                )
            dtype = DTYPES[code]
            if len(shape) > MAX_DIMENSIONS:
                raise FileError(
                    f"{name}: {printable(key)} has {len(shape):,} dimensions, which no weight has: the file is damaged."
                )
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(
                f"{name}: the header's entry for {printable(key)} is damaged: {printable(value)}."
            ) from error
        if end > data_size or end - begin != math.prod(shape) * dtype.itemsize:
            raise FileError(
                f"{name}: {printable(key)} claims bytes {begin:,} to {end:,} of {data_size:,} for a {code} tensor "
                f"of shape {shape}: the file is cut off or damaged."
            )
        entries[key] = Entry(dtype, shape, data_start + begin, end - begin)
    last = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start - data_start < last:
            raise FileError(f"{name}: {printable(key)} overlaps the tensor before it, so the file is damaged.")
        last = entry.start - data_start + entry.size
    if last < data_size:
        raise FileError(f"{name}: {data_size - last:,} bytes at the end belong to no tensor, so the file is damaged.")
    return entries, metadata


def read_tensors(header: Header, keys: Sequence[str]) -> dict[str, Tensor]:
    """Read tensors in their stored dtype, in one pass through the file. Neighbours share the memory they were read into.

    raises  FileError if the file is gone, truncated, or no longer the one whose header was read
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
                tensors[key] = (
                    torch.frombuffer(buffer, dtype=entry.dtype, count=count, offset=offset).view(entry.shape)
                    if count
                    else torch.empty(entry.shape, dtype=entry.dtype)
                )
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
        # As typed on the command line; a node's paths are absolute, and its user need not see them.
        raise FileError(f"{path.name if path.is_absolute() else path}: no such file.") from error
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


def check_finite(name: str, key: str, tensor: Tensor) -> None:
    """Raise TensorError, naming the key, if a tensor holds NaN or Inf."""
    if not is_finite(tensor):
        what = "NaN" if bool(torch.isnan(tensor.float()).any()) else "infinite"
        raise TensorError(
            f"{name}: {printable(key)} holds {what} values: the training broke down, or the file is damaged."
        )
