"""Tells ComfyUI that a file was replaced. ComfyUI writes fingerprints into every saved picture, so they contain no path."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path


def fingerprint(value: object) -> str:
    """A short text for any value with a repr of its own."""
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def files_fingerprint(paths: Iterable[Path]) -> str:
    """A text that changes when one of these files is replaced, changed or gone. It does not reveal where they are."""
    return fingerprint([(path.name, *_state(path)) for path in paths])


def fingerprint_of_files(files_read: Callable[..., Iterable[Path]], *inputs: object) -> object:
    """The same for the files that a node reads with these inputs. NaN, which equals nothing, so that the node runs each time
    while an input comes from another node and is not known yet."""
    return math.nan if None in inputs else files_fingerprint(files_read(*inputs))


def _state(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    # The inode too: an opened LoRA refuses to read a replaced file, even one of the same size and time.
    return (status.st_size, status.st_mtime_ns, status.st_ino)
