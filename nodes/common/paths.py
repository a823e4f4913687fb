"""Keeps a name typed into a node inside the folder that it is meant for.

Anyone who can reach a ComfyUI server can fill in a node's text field, so every such name is checked here before
any file is touched. Nothing here needs ComfyUI: the caller passes the folder in.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from ...difflora.errors import DiffLoraError, FileError
from ...difflora.storage.writer import WINDOWS_DEVICES

MAX_PART = 255  # bytes: the limit of ext4, APFS and NTFS
MAX_NAME = 1024

_UNSEEN = {"Cf", "Zl", "Zp"}  # Unicode's formatting characters and line breaks
_JOINERS = "\u200c\u200d"  # which belong to the spelling of some languages, and to emoji
_NOT_ON_WINDOWS = '<>:"|?*'


def inside(folder: str | Path, name: str, error: type[DiffLoraError] = FileError) -> Path:
    """The path that `name` means below `folder`, links followed.

    Windows and POSIX spellings are checked in the same way on both systems, because workflows travel between them. ``/`` and ``\\`` both separate. The path need not exist.

    folder      a folder that ComfyUI trusts, such as its output folder
    name        relative, below `folder`, not `folder` itself
    error       what to raise: FileError to read, OutputError to write
    """
    parts = _parts(name, error)
    try:
        root = Path(folder).resolve()
        path = root.joinpath(*parts).resolve()
    except (OSError, RuntimeError) as problem:  # RuntimeError: Python before 3.13 on a loop of links
        reason = getattr(problem, "strerror", None) or "its links lead in a circle"  # str(problem) would quote the path
        raise error(
            f"{name!r} cannot be looked up in the {_label(folder)} folder: {reason}. Use another name."
        ) from problem
    if path == root or not path.is_relative_to(root):
        raise error(f"{name!r} leads out of the {_label(folder)} folder through a link. Use a name that stays inside.")
    return path


def below(folder: str | Path, path: Path) -> str:
    """How to show a file that `inside` found in `folder`: the folder's name and the path below it."""
    return f"{_label(folder)}/{path.relative_to(Path(folder).resolve()).as_posix()}"


def _parts(name: str, error: type[DiffLoraError]) -> list[str]:
    """Split a name, or say what is wrong with it. Touches no disk."""
    shown = repr(name if len(name) <= 80 else name[:77] + "...")

    def refuse(reason: str) -> DiffLoraError:
        return error(f"{shown} cannot be used as a name: {reason}.")

    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise refuse("it holds a control character; use letters, digits and _ - .")
    if any(unicodedata.category(character) in _UNSEEN and character not in _JOINERS for character in name):
        raise refuse("it holds an invisible character, such as one that reverses the direction of writing; remove it")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in name):
        raise refuse("it is not valid Unicode text; use letters, digits and _ - .")
    if len(name) > MAX_NAME:
        raise refuse(f"it is {len(name)} characters long, the limit is {MAX_NAME}; shorten it")
    spelled = name.replace("\\", "/")
    if spelled.startswith("/"):
        raise refuse("it is an absolute or network path; write it relative to the folder")
    if spelled[1:2] == ":":
        raise refuse("it starts with a drive letter; write it relative to the folder")
    parts = [part for part in spelled.split("/") if part not in ("", ".")]
    if not parts:
        raise refuse("it is empty; type a name")
    for part in parts:
        if part == "..":
            raise refuse("'..' would leave the folder; write the name without it")
        if part[-1] in ". ":
            raise refuse(f"{part!r} ends in a dot or a space, which Windows drops; remove it")
        if part.startswith("."):
            raise refuse(f"{part!r} begins with a dot, which hides it; begin with a letter or digit")
        forbidden = sorted(set(part) & set(_NOT_ON_WINDOWS))
        if forbidden:
            raise refuse(f"{' '.join(forbidden)} cannot be in a file name on Windows; remove it")
        if part.split(".")[0].rstrip(" ").upper() in WINDOWS_DEVICES:
            raise refuse(f"{part!r} is a device on Windows; choose another")
        if len(part.encode()) > MAX_PART:
            raise refuse(f"one part of it is {len(part.encode())} bytes long, the limit is {MAX_PART}; shorten it")
    return parts


def _label(folder: str | Path) -> str:
    """A folder's last part: errors do not show where the server keeps its files."""
    return Path(folder).name or "given"
