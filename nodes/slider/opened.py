"""LoRAs that a rack has opened, kept for its next run: a sweep runs the rack once for each strength."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from ...difflora import load
from ...difflora.lora.file import FileLora
from ..common.fingerprints import files_fingerprint


class OpenedLoras:
    """Opened LoRAs, by what their files are now. What the library has read of a LoRA lives as long as it.

    When all files together exceed the budget, the longest unused are dropped.

    budget      bytes
    """

    def __init__(self, budget: int = 2 << 30) -> None:
        self.budget = budget
        self._loras: OrderedDict[tuple[Path, bool, str | None], tuple[str, FileLora, int]] = OrderedDict()

    def open(self, files: Sequence[Path], ignore_unknown: bool, noise: str | None) -> FileLora:
        """The LoRA in the first of these files; the others are read with it. For the rest, see `load`."""
        key, now = (files[0], ignore_unknown, noise), files_fingerprint(files)
        known = self._loras.pop(key, None)
        if known is None or known[0] != now:
            known = now, load(files[0], ignore_unknown, noise=noise), files[0].stat().st_size
        self._loras[key] = known
        total = sum(size for *_, size in self._loras.values())
        while total > self.budget and len(self._loras) > 1:
            total -= self._loras.popitem(last=False)[1][2]
        return known[1]
