"""The factors of the LoRAs on the wires, read once: another strength reads no file and repeats no SVD."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from ...difflora import Lora
from ...difflora.lora.deltas import Delta, is_finite
from .progress import progress_bar

_read: WeakKeyDictionary[Lora, dict[str, Delta]] = WeakKeyDictionary()


def factors_of(lora: Lora) -> dict[str, Delta]:
    """All deltas of a LoRA, kept for as long as it lives. Raises TensorError where one is NaN or infinite."""
    if lora not in _read:
        report_progress = progress_bar()
        deltas: dict[str, Delta] = {}
        for name, delta in lora.stream(lora.names, lambda: report_progress(len(deltas), len(lora))):
            if not is_finite(delta):
                lora.check_finite(name)
            deltas[name] = delta
            report_progress(len(deltas), len(lora))
        _read[lora] = deltas
    return _read[lora]
