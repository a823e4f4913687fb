"""LoRAs as files for packs that read them by path."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import folder_paths

from ...difflora import Lora, save
from ...difflora.progress import Progress
from ...difflora.saving.save import lossless_dtype
from ...difflora.storage.writer import make_folder


class HandedOut(str):
    """A file's path on a wire. The file stays as long as ComfyUI's cache or a node holds this object."""


class TempFiles:
    """LoRAs in ComfyUI's temp folder, named by their content, so that none is written twice.

    ComfyUI empties that folder only when it starts, and every changed weight makes a new file. When all files together
    exceed the budget, those that nothing holds are deleted, the longest unused first. If a deleted file is needed again,
    `losses` increases, and everything that depends on it is made again.

    budget      bytes
    """

    def __init__(self, budget: int = 4 << 30) -> None:
        self.budget = budget
        self._held: WeakValueDictionary[Path, HandedOut] = WeakValueDictionary()
        self._handed_out: set[Path] = set()
        self._losses = 0

    def path_of(self, lora: Lora, progress: Callable[[], Progress]) -> HandedOut:
        """The file of a LoRA, written if it is missing. progress: returns a progress for each pass over the modules."""
        path = Path(folder_paths.get_temp_directory()) / "differential-lora" / f"{lora.fingerprint[:32]}.safetensors"
        if path.exists():
            with contextlib.suppress(OSError):
                os.utime(path)
        else:
            make_folder(path.parent)
            save(lora, path, dtype=lossless_dtype(lora, progress()), progress=progress())
        self._handed_out.add(path)
        held = self._held.get(path)
        if held is None:
            held = self._held[path] = HandedOut(path)
        self._make_room(path)
        return held

    @property
    def losses(self) -> int:
        gone = {path for path in self._handed_out if not path.exists()}
        self._handed_out -= gone
        self._losses += bool(gone)
        return self._losses

    def _make_room(self, new: Path) -> None:
        files = {}
        for path in new.parent.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                files[path] = path.stat()
        total = sum(status.st_size for status in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            if total <= self.budget:
                break
            if path not in self._held:
                with contextlib.suppress(OSError):  # Windows: somebody is reading it
                    path.unlink()
                    total -= files[path].st_size
