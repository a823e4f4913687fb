"""Connects the library's progress to ComfyUI's progress bar and Cancel button."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from torch import nn

from ...difflora.progress import Progress

OFTEN = 0.05  # seconds; every update is a message to the page


def progress_bar() -> Progress:
    """Move the running node's progress bar; raises when the user has cancelled."""
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


@contextlib.contextmanager
def interruptible(model: nn.Module, tick: Callable[[], None]) -> Iterator[None]:
    """Call `tick` before each layer of a model; it may raise to cancel."""

    def look(*_: Any) -> None:
        tick()

    handles = [module.register_forward_pre_hook(look) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
