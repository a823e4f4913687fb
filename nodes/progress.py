"""The library's progress, as ComfyUI's bar and its Cancel button."""

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar

from ..difflora.storage import Progress


def progress_bar() -> Progress:
    """Moves the running node's bar, and raises when the user has cancelled."""
    bar = ProgressBar(1)

    def report(done: int, total: int) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report
