"""The library's progress, as ComfyUI's bar and its Cancel button."""

import time

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar

from ...difflora.progress import Progress

OFTEN = 0.05  # seconds; every update of the bar is a message to the page


def progress_bar() -> Progress:
    """Moves the running node's bar, and raises when the user has cancelled."""
    bar = ProgressBar(1)
    moved = 0.0

    def report(done: int, total: int) -> None:
        nonlocal moved
        throw_exception_if_processing_interrupted()
        now = time.monotonic()
        if done >= total or now - moved >= OFTEN:
            moved = now
            bar.update_absolute(done, total)

    return report
