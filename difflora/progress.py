"""Progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total) modules. May raise to cancel: nothing is left behind."""


def part_of(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """The progress of one of several equal parts of the work, as progress of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress(part * total + done, parts * total)
