"""The deltas of LoRAs in use, kept in memory, so that changing the strength reads no file and repeats no SVD.

Filled by re-ranking at a small rank and by the sliders; read by selections, sliders and saving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from ..progress import Progress
from .deltas import Delta, is_finite


class Source(Protocol):
    """Anything whose deltas can be kept: a `Lora`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def stream(self, modules: Sequence[str], tick: Callable[[], None]) -> Iterator[tuple[str, Delta]]: ...

    def check_finite(self, module: str) -> None: ...

    def check_faults(self) -> None: ...


_kept: WeakKeyDictionary[Source, Mapping[str, Delta]] = WeakKeyDictionary()


def kept(lora: Source) -> Mapping[str, Delta] | None:
    """All deltas of a LoRA, if they are in memory."""
    return _kept.get(lora)


def deltas_of(lora: Source, progress: Progress | None = None) -> Mapping[str, Delta]:
    """All deltas of a LoRA, read if necessary, and kept for as long as it lives.

    progress  called with (done, total) modules; may raise to cancel, in which case nothing is kept
    raises    TensorError if a value is NaN or infinite
    """
    if lora not in _kept:
        lora.check_faults()
        deltas: dict[str, Delta] = {}
        total = len(lora.names)

        def tick() -> None:
            if progress:
                progress(len(deltas), total)

        for name, delta in lora.stream(lora.names, tick):
            if not is_finite(delta):
                lora.check_finite(name)
            deltas[name] = delta
            tick()
        _kept[lora] = deltas
    return _kept[lora]


def stream(lora: Source, modules: Sequence[str], tick: Callable[[], None]) -> Iterator[tuple[str, Delta]]:
    """The deltas of these modules in this order: from memory if they are there, otherwise as `Lora.stream` reads them."""
    known = kept(lora)
    return lora.stream(modules, tick) if known is None else ((name, known[name]) for name in modules)


def read(
    lora: Source, modules: Sequence[str], from_files: Callable[[Sequence[str]], dict[str, Delta]]
) -> dict[str, Delta]:
    """The same all at once, with `from_files` for those that are not in memory."""
    known = kept(lora)
    return from_files(modules) if known is None else {name: known[name] for name in modules}
