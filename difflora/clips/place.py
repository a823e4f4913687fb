"""Where the clips of sweeps are kept: a folder that the owner of the machine names in a file."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError
from ..sentence import printable
from .store import ClipStore

FILE = "clips_folder.txt"
_LIMIT = re.compile(r"limit\s+(\d+(?:\.\d+)?)\s*GB", re.IGNORECASE)


def store_at(state: Path, shown: str) -> ClipStore:
    """The store of clips: in the folder that `clips_folder.txt` names, or in `sweeps` beside that file.

    The file is for whoever has the machine: no workflow and no request can change where clips are written. It holds a path
    on one line, and perhaps `limit 50 GB` on another; # begins a comment.

    state       the folder of the file
    shown       what a person calls that folder
    raises      InputError where the file does not say where
    """
    file = state / FILE
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        return ClipStore(state / "sweeps", name=f"{shown}/sweeps")
    except (OSError, UnicodeError) as error:
        raise InputError(f"{shown}/{FILE} cannot be read. Save it as a text file in UTF-8.") from error
    lines = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    limits = [found for line in lines if (found := _LIMIT.fullmatch(line))]
    paths = [line.strip("\"'") for line in lines if not _LIMIT.fullmatch(line)]  # Windows copies paths with quotes
    if len(paths) != 1 or len(limits) > 1:
        raise InputError(
            f"{shown}/{FILE} holds {len(paths)} paths and {len(limits)} limits. Write the path of one folder, and on another "
            "line a limit such as limit 50 GB, or none."
        )
    folder = Path(paths[0])
    if not folder.is_absolute():
        raise InputError(
            f"{shown}/{FILE}: {printable(folder.name, 60)} is not a full path. Begin at the root or the drive, such as "
            r"/mnt/clips, D:\clips or \\computer\clips."
        )
    budget = round(float(limits[0][1]) * (1 << 30)) if limits else 4 << 30
    return ClipStore(folder, budget, name=f"{shown}/{FILE}", is_own=False)
