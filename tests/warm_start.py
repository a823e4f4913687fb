"""Starts ComfyUI in a fork of a process that has imported the large packages already.

The tests start some forty servers. Importing torch, torchvision, transformers and scipy takes each of them about ten seconds
of processor time; a fork has them at once. Everything else is as ComfyUI does it by itself: its own main.py runs as
`__main__`, in a session, a folder and an environment of its own, and imports its own modules and every pack.

All workers of one pytest share one such process, the *nursery*: this file, run as a script with the path of a Unix socket.
Whoever needs a server connects and sends one line of JSON; the answers are a line with the process id and, when the server
has ended, a line with its exit code. A server ends when its connection closes, and the nursery with the worker that started it.

`tests/e2e/test_demo.py` starts ComfyUI as users do, without this.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

# What ComfyUI imports at its start and is not its own. One that is not installed is left out.
LARGE = (
    "torch", "torch._dynamo", "torchvision", "transformers", "transformers.modeling_utils", "torchsde", "kornia", "spandrel",
    "scipy.integrate", "scipy.stats", "alembic.context", "sqlalchemy.orm", "pydantic_settings", "aiohttp.web", "av",
    "matplotlib.figure", "matplotlib.backends.backend_agg",  # this pack's own, for plots
)  # fmt: skip

AVAILABLE = hasattr(os, "fork")
FOLDER = "DIFFLORA_NURSERY"  # the environment variable that names the folder of the socket; tests/conftest.py sets it


class Forked:
    """As much of subprocess.Popen as ComfyServer uses."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._lines = connection.makefile("rb", buffering=0)  # of what is not read yet, select has to know
        self._exit_code: int | None = None
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("main.py", timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self._exit_code is None and select.select([self._connection], [], [], timeout)[0]:
            # Without a line the nursery has ended, and every server with it.
            self._exit_code = int(self._lines.readline() or -signal.SIGKILL)
        return self._exit_code


def start(script: Path, arguments: list[str], folder: Path, environment: dict[str, str], log: Path) -> Forked:
    """Run a Python script as `python script arguments…` does, with stdout and stderr in `log`."""
    connection = _connected()
    connection.sendall(json.dumps([str(script), arguments, str(folder), environment, str(log)]).encode() + b"\n")
    return Forked(connection)


def _connected() -> socket.socket:
    from filelock import FileLock  # the nursery itself imports nothing before the large packages

    address = Path(os.environ[FOLDER]) / "socket"
    with FileLock(address.with_suffix(".lock")):
        with contextlib.suppress(OSError):
            return _connection_to(address)
        address.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, __file__, str(address)], stdin=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                return _connection_to(address)
            time.sleep(0.05)
        process.kill()
        raise RuntimeError(f"the process that ComfyUI is forked from has not started: exit code {process.wait()}")


def _connection_to(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        raise
    return connection


# The nursery


def nursery(address: str) -> None:
    starter = os.getppid()
    for name in LARGE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # no collection in a server has to look at all that is imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        listener.settimeout(1)
        while os.getppid() == starter:
            with contextlib.suppress(TimeoutError):
                connection = listener.accept()[0]
                if os.fork() == 0:
                    listener.close()
                    _keep(connection)
                connection.close()


def _keep(connection: socket.socket) -> NoReturn:
    """Fork the server, and stay between it and the test: tell one that the other has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    task = json.loads(connection.makefile("rb").readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        _run(*task)
        os._exit(0)
    connection.sendall(b"%d\n" % pid)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        if select.select([connection], [], [], 0.1)[0]:  # the test is gone
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


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
    # In place of the path of this file's folder.
    sys.path[:1] = [str(Path(script).parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    nursery(sys.argv[1])
