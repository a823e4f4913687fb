"""What ComfyUI does not check before it runs a node. What comes by a link, no version checks at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ...difflora.errors import FileError, InputError
from ...difflora.sentence import printable


def one_of(name: str, value: object, options: Iterable[str]) -> None:
    """ComfyUI 0.3.75 compares no value with a node's list of options."""
    if value not in list(options):
        raise InputError(f"{name} is {printable(value, 60)}; choose one of: {', '.join(options)}.")


def within(low: float, high: float, **values: object) -> None:
    """NaN is neither below a minimum nor above a maximum, and a link may bring a text or a list."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise InputError(f"{name} is {printable(value, 60)}; give a number from {low:g} to {high:g}.")


def listed_file(kind: str, name: object) -> Path:
    """The file of one of ComfyUI's lists. It looks names up inside its folders only, whatever dots and slashes are in them."""
    path = found(kind, name) if isinstance(name, str) else None
    if path is None:
        raise FileError(f"{printable(name)} is not in the {kind} folder. Put it there, press R, and choose it again.")
    return path


def found(kind: str, name: str) -> Path | None:
    """ComfyUI's get_full_path, for which a network path or one on another drive is an exception on Windows."""
    try:
        path = folder_paths.get_full_path(kind, name)
    except (OSError, ValueError):
        return None
    return Path(path) if path else None
