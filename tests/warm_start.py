"""Starts ComfyUI in a fork of a process that has imported the large packages already.

The tests start some forty servers. Importing torch, torchvision, transformers and scipy takes each of them about ten seconds
of processor time; a fork has them at once. Everything else is as ComfyUI does it by itself: its own main.py runs as
`__main__`, in a session, a folder and an environment of its own, and imports its own modules and every pack.

`tests/e2e/test_demo.py` starts ComfyUI as users do, without this.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

# What ComfyUI imports at its start and is not its own. One that is not installed is left out.
LARGE = (
    "torch", "torch._dynamo", "torchvision", "transformers", "transformers.modeling_utils", "torchsde", "kornia", "spandrel",
    "scipy.integrate", "scipy.stats", "alembic.context", "sqlalchemy.orm", "pydantic_settings", "aiohttp.web", "av",
    "matplotlib.figure", "matplotlib.backends.backend_agg",  # this pack's own, for plots
)  # fmt: skip

AVAILABLE = "forkserver" in multiprocessing.get_all_start_methods()


class Forked:
    """As much of subprocess.Popen as ComfyServer uses."""

    def __init__(self, process: ForkServerProcess):
        self._process = process
        assert process.pid is not None
        self.pid: int = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("main.py", timeout or 0)
        return self._process.exitcode


def start(script: Path, arguments: list[str], folder: Path, environment: dict[str, str], log: Path) -> Forked:
    """Run a Python script as `python script arguments…` does, with stdout and stderr in `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LARGE))
    task = (str(script), arguments, str(folder), environment, str(log))
    process = context.Process(target=_run, args=task, daemon=True)
    process.start()
    return Forked(process)


def _run(script: str, arguments: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)),
    ):
        os.dup2(file, number)
    os.dup2(1, 2)
    # multiprocessing gives the child its parent's path, on which pytest has put the repository: its `nodes` would hide ComfyUI's.
    installed = [entry for entry in sys.path if entry.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [str(Path(script).parent), *environment.get("PYTHONPATH", "").split(os.pathsep), *installed]
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
