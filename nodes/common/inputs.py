"""Checks of inputs that ComfyUI does not make before it runs a node. No version checks what comes through a link."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ...difflora.errors import FileError, InputError
from ...difflora.sentence import printable


def one_of(name: str, value: object, options: Iterable[str]) -> None:
    """ComfyUI 0.3.75 does not check values against a node's list of options."""
    if value not in list(options):
        raise InputError(f"{name} is {printable(value, 60)}; choose one of: {', '.join(options)}.")


def within(low: float, high: float, **values: object) -> None:
    """NaN passes ComfyUI's minimum and maximum, and a link may carry a text or a list."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise InputError(f"{name} is {printable(value, 60)}; give a number from {low:g} to {high:g}.")


def listed_file(kind: str, name: object) -> Path:
    """The path of a file from one of ComfyUI's lists. ComfyUI looks only inside its folders, whatever dots and slashes the name has."""
    path = found(kind, name) if isinstance(name, str) else None
    if path is None:
        raise FileError(f"{printable(name)} is not in the {kind} folder. Put it there, press R, and choose it again.")
    return path


def found(kind: str, name: str) -> Path | None:
    """ComfyUI's get_full_path, which on Windows raises for a network path or one on another drive.

    A name that was written on Windows, with backslashes, is found elsewhere too.
    """
    for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
        try:
            path = folder_paths.get_full_path(kind, spelled)
        except (OSError, ValueError):
            return None
        if path:
            return Path(path)
    return None


def lora_files(lora_name: object) -> list[Path]:
    """The files that opening a LoRA reads: itself, and PEFT's configuration beside it."""
    path = listed_file("loras", lora_name)
    return [file for file in (path, path.with_name("adapter_config.json")) if file.is_file()]
