"""The command line: ``python -m difflora``, or ``difflora`` where it is installed."""

from .commands import main

__all__ = ["main"]
