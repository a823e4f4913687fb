"""Processes that save LoRAs and clips, for tests to kill and to set against each other."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import difflora
from difflora.errors import ExistsError
from difflora.saving import save

PAUSE = 0.001  # seconds after each module, so that a save has a middle to be killed in


def processes() -> Any:
    """Start in milliseconds: all come from one process that has imported torch already. (On Windows they take seconds.)"""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.savers"])
    return context


def same_bytes_every_time() -> None:
    save.now = lambda: "2026-01-01T00:00:00+00:00"


def save_for_ever(inputs: Sequence[Path], out: Path, begun: Connection) -> None:
    """One after the other over the same file, slowly. Tells when the first two are on their way."""
    same_bytes_every_time()
    fsync, replace = os.fsync, os.replace

    def slow_fsync(file: int) -> None:
        time.sleep(5 * PAUSE)
        fsync(file)

    def slow_replace(*paths: Path) -> None:
        time.sleep(5 * PAUSE)
        replace(*paths)

    os.fsync, os.replace = slow_fsync, slow_replace
    loras = [difflora.load(path) for path in inputs]
    for number in itertools.count():

        def wait(done: int, total: int, number: int = number) -> None:
            if done == 1 and number < 2:
                begun.send(number)
            time.sleep(PAUSE)

        difflora.save(loras[number % len(loras)], out, overwrite=True, progress=wait)


def save_when_told(source: Path, out: Path, tests: Connection) -> None:
    """Stops in the middle of the save, and goes on when told to."""

    def wait(done: int, total: int) -> None:
        if done == 1:
            tests.send("in the middle")
            tests.recv()

    difflora.save(difflora.load(source), out, overwrite=True, progress=wait)


def contest(source: Path, outs: Sequence[Path], overwrite: bool, barrier: Any) -> list[bool]:
    """Save over all names one after the other, each at the same moment as others do; whether it worked."""
    same_bytes_every_time()

    def meet(done: int, total: int) -> None:
        if done == total:  # all have seen that there is no such file, and nobody has made it
            barrier.wait(60)

    lora, won = difflora.load(source), []
    for out in outs:
        try:
            difflora.save(lora, out, overwrite=overwrite, progress=meet)
            won.append(True)
        except ExistsError:
            won.append(False)
    return won


def contest_and_tell(tests: Connection, *arguments: Any) -> None:
    tests.send(contest(*arguments))


def save_as_nobody(source: Path, out: Path, tests: Connection) -> None:
    """As a user who may not write everywhere, which root may."""
    lora = difflora.load(source)
    difflora.save(lora, source, overwrite=True)  # all is imported
    lora = difflora.load(source)
    os.setuid(65534)
    try:
        difflora.save(lora, out, overwrite=True)
        tests.send("it was written")
    except difflora.DiffLoraError as error:
        tests.send(str(error))


def add_the_same_clips(folder: Path) -> None:
    """Three clips, three times each, as if this process did not know that they are there."""
    import numpy as np

    from difflora.clips.store import About, ClipStore

    store = ClipStore(folder)
    for _ in range(3):
        for key in "abc":
            store.add(key, [np.full((64, 96, 3), 90, np.uint8)] * 3, About(3, 96, 64), 16, 48).cells(48)
