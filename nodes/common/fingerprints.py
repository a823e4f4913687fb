"""What tells ComfyUI that a file was replaced. It writes this into every picture that is saved: no path may be in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def fingerprint(value: object) -> str:
    """One short text that stands for any value with a repr of its own."""
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Another text whenever one of these files is replaced, changed or gone. It tells nothing about where they are."""
    return fingerprint([(path.name, *_state(path)) for path in paths])


def _state(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    # The inode, too: a LoRA that was opened refuses to read another file in its place, even one of the same size and time.
    return (status.st_size, status.st_mtime_ns, status.st_ino)
