"""What a sweep costs beside its sampling: cells, grid and response against encoding the same clips once, and the memory.

    COMFYUI_DIR=… python -m tests.bench.sweep [--frames 81] [--width 640] [--height 480] [--clips 7]

Noise that moves over a soft picture stands in for sampled clips. Ratios are to two floors measured in the same minute: what
this pack's own encoder takes for the clips, and what ComfyUI's Save Video takes for them. The library runs in this process,
the whole nodes in a ComfyUI of their own. How fast the player switches is printed by
tests/browser/test_player.py -s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from difflora.clips.mosaic import Label, grid_images, grid_of, sheet_frames, sheet_of, signed
from difflora.clips.response import Sweep, measure_sweeps
from difflora.clips.store import About, ClipStore
from difflora.clips.video import PREVIEW, Frame, write_video
from tests.pack_modules import pack_module

ROOT = Path(__file__).resolve().parents[2]


def clip(frames: int, width: int, height: int, seed: int) -> list[Frame]:
    """A soft picture that moves by a pixel a frame, with a grain of its own in every frame."""
    random = np.random.default_rng(seed)
    small = random.integers(20, 235, (12, 16, 3), dtype=np.uint8)
    whole = Image.fromarray(small).resize((width + frames, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(whole).astype(np.int16)
    grain = random.integers(-6, 7, (height, width, 3))
    return [
        np.clip(pixels[:, i : i + width] + np.roll(grain, 7 * i, 1), 0, 255).astype(np.uint8) for i in range(frames)
    ]


def seconds(task: Callable[[], Any]) -> NDArray[np.float64]:
    """By the clock, and of the processors: on a machine that does other work beside, the second is steadier."""
    start = np.array([time.perf_counter(), time.process_time()])
    task()
    return np.array([time.perf_counter(), time.process_time()]) - start


SaveVideo = Callable[[NDArray[np.float32], Path], None]


def costs(
    folder: Path, clips: list[list[Frame]], longest: int, round_number: int, save_video: SaveVideo | None
) -> dict[str, NDArray[np.float64]]:
    """Seconds of one round of everything. Each clip is encoded and added in turn, so that both meet the same machine."""
    height, width = clips[0][0].shape[:2]
    strengths = [float(index - len(clips) // 2) for index in range(len(clips))]
    store = ClipStore(folder / f"store {round_number}")

    def sheet_and_grid() -> None:
        cells = [store.get(str(key)).cells(longest) for key in range(len(clips))]  # type: ignore[union-attr]
        cell_height, cell_width = cells[0].shape[1:3]
        sheet = sheet_of(len(clips), cell_width, cell_height)
        write_video(folder / "sheet.mp4", sheet_frames(sheet, cells), 16, **PREVIEW)  # type: ignore[arg-type]
        labels = [Label(signed(strength), "", strength == 0) for strength in strengths]
        grid_images(grid_of(len(clips), cell_width, cell_height, "grid"), cells, labels, None)  # type: ignore[arg-type]

    def response() -> None:
        stored = tuple(store.get(str(key)) for key in range(len(clips)))
        measure_sweeps([Sweep(tuple(strengths), stored, 16, 0.0)])  # type: ignore[arg-type]

    about = About(len(clips[0]), width, height)
    once, saved, own = np.zeros(2), np.zeros(2), np.zeros(2)
    for key, frames in enumerate(clips):
        once += seconds(partial(write_video, folder / "floor.mp4", frames, 16))
        if save_video:
            images = np.stack(frames) / np.float32(255)  # as nodes hand pictures on
            saved += seconds(partial(save_video, images, folder / "saved.mp4"))
        own += seconds(partial(store.add, str(key), frames, about, 16, longest))
    own += seconds(sheet_and_grid)
    return {"encoding once": once, "Save Video": saved, "cells and grid": own, "response": seconds(response)}


def into_comfyui() -> None:
    """Let this process import ComfyUI's own modules."""
    sys.path.insert(0, os.environ["COMFYUI_DIR"])  # before this folder, which has `nodes`, too
    sys.argv = sys.argv[:1]  # ComfyUI reads it
    from comfy.cli_args import args

    args.cpu = True


def comfyuis_save_video() -> SaveVideo:
    """What ComfyUI's Save Video does with the pictures of a clip."""
    import torch
    from comfy_api.latest import InputImpl, Types

    def save(images: NDArray[np.float32], path: Path) -> None:
        components = Types.VideoComponents(images=torch.from_numpy(images), frame_rate=Fraction(16), audio=None)
        InputImpl.VideoFromComponents(components).save_to(str(path))

    return save


def expansion(nodes: int, strengths: int) -> float:
    """Seconds to find, name and clone a chain of nodes, one in ten naming a file, in ComfyUI's own modules."""
    from comfy_execution.graph_utils import GraphBuilder

    hashes = pack_module("difflora.storage.hashes").ContentHashes
    between_nodes, watched_files = (
        pack_module("nodes.sweep.between").Between,
        pack_module("nodes.sweep.files").WatchedFiles,
    )

    prompt: dict[str, Any] = {"sweep": {"class_type": "DiffLoraStrengthSweep", "inputs": {}}}
    previous = "sweep"
    for number in range(nodes):
        inputs = {
            "a": [previous, 0],
            "b": [str(max(0, number - 7)), 0] if number > 7 else 1,
            "text": "words",
            "n": number,
        }
        if number % 10 == 0:
            inputs["file"] = f"model_{number}.safetensors"
        prompt[str(number)] = {"class_type": "Some", "inputs": inputs}
        previous = str(number)

    def expand() -> None:
        between = between_nodes.find([previous, 0], prompt.__getitem__, watched_files())
        wanted = between.wanted([index / 2 for index in range(strengths)], hashes(), lambda *_: None)
        graph = GraphBuilder("grid.0.0.")
        between.clone_fixed(graph, {}, wanted[0].digests)
        for index, each in enumerate(wanted):
            gate = graph.node("Gate", f"{index}.gate")
            between.clone(graph, str(index), {}, gate.id, {}, each)
        assert len(graph.finalize()) == strengths * (nodes + 1)

    return statistics.median(seconds(expand)[0] for _ in range(5))


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Resident bytes of a process, sampled every 20 ms."""
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.02):
            samples.append(psutil.Process(pid).memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def memory(folder: Path, frames: int, width: int, height: int, clips: int, flags: list[str]) -> tuple[float, float]:
    """Bytes by which a ComfyUI grows during a sweep over ready-made clips, at most: for one clip, and for all."""
    from tests.comfy_server import ComfyServer

    def prompt(count: int) -> dict[str, Any]:
        inputs = {"start": 1.0, "stop": float(count), "count": count, "include_zero": False, "strengths": ""}
        return {
            "sweep": {"class_type": "DiffLoraStrengthSweep", "inputs": inputs},
            "clip": {
                "class_type": "TestClip",
                "inputs": {"strength": ["sweep", 0], "frames": frames, "width": width, "height": height},
            },
            "grid": {
                "class_type": "DiffLoraSweepGrid",
                "inputs": {"images": ["clip", 0], "arrange": "grid", "cell_size": 384, "fps": 16.0, "baseline": 1.0},
            },
        }

    grown = []
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    for count in (1, clips):
        base = folder / f"comfyui {count}"
        with ComfyServer(base, Path(os.environ["COMFYUI_DIR"]).resolve(), flags, python=python) as comfy:
            warm = prompt(1)
            warm["clip"]["inputs"] |= {"frames": 2, "width": 64, "height": 48}
            comfy.run(warm)
            before = psutil.Process(comfy.pid).memory_info().rss
            with watched(comfy.pid) as samples:
                comfy.run(prompt(count))
            grown.append(max(samples) - before)
    return grown[0], grown[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("frames", 81),
        ("width", 640),
        ("height", 480),
        ("clips", 7),
        ("rounds", 3),
        ("longest", 384),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    shape = (options.frames, options.width, options.height)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = [clip(*shape, seed) for seed in range(options.clips)]
        print(
            f"{options.clips} clips of {options.frames} frames, {options.width}×{options.height}; cells of {options.longest}"
        )
        save_video = None
        if "COMFYUI_DIR" in os.environ:
            into_comfyui()
            save_video = comfyuis_save_video()
        rounds = [costs(folder, clips, options.longest, number, save_video) for number in range(options.rounds)]
        for task, limit in (("cells and grid", 1.2), ("response", 3)):
            middle = statistics.median(times[task][0] for times in rounds)
            print(f"{task:16} {middle:.2f} s")
            for floor, at_most in (("encoding once", f" (at most {limit})"), ("Save Video", "")):
                if floor == "encoding once" or save_video:
                    ratio, of_processors = np.median([times[task] / times[floor] for times in rounds], axis=0)
                    print(f"  {ratio:5.2f} × {floor}{at_most}, {of_processors:.2f} × its processor time")
        del clips
        if "COMFYUI_DIR" not in os.environ:
            print("COMFYUI_DIR does not say where a ComfyUI is: no expansion, no memory")
            return
        one_clip = options.frames * options.width * options.height * 12
        for flags in ([], ["--cache-none"]):
            one, all_clips = memory(folder / ("none" if flags else "default"), *shape, options.clips, flags)
            print(
                f"memory {' '.join(flags) or '(default cache)':16} {one / one_clip:.2f} clips for 1, {all_clips / one_clip:.2f} for {options.clips}"
            )
        print(f"expansion of 100 nodes over 13 strengths: {expansion(100, 13):.3f} s (at most 0.2)")


if __name__ == "__main__":
    main()
