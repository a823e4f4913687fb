"""What the pack costs in ComfyUI: its import, a new strength, a step under a map, and the whole chain at full size.

    COMFYUI_DIR=… python -m tests.bench.comfy [--runs 5] [--dim 5120] [--folder FOLDER]

Starts a real server and prints a table. Each figure is a ratio to something that runs in turn with it on the same machine;
the pair is that of a Wan2.1-14B (0.3 GB), and the model of the second figure has two of its blocks (--dim 5120: 8 GB of
memory). Medians, of the time by the clock and of processor time, which is the one to trust on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import difflora
from scripts.full_size import write_pair
from tests import small_models
from tests.comfy_server import PACK_NAME, ComfyServer

Figure = tuple[str, str, str]


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of processor time."""

    wall: float
    cpu: float

    @classmethod
    def median(cls, costs: list[Cost]) -> Cost:
        return cls(statistics.median(cost.wall for cost in costs), statistics.median(cost.cpu for cost in costs))


def run(comfy: ComfyServer, prompt: dict) -> Cost:
    process = psutil.Process(comfy.pid)
    before = process.cpu_times()
    wall = comfy.run(prompt, timeout=1800).seconds
    after = process.cpu_times()
    return Cost(wall, after.user + after.system - before.user - before.system)


def compared(ours: list[Cost], theirs: list[Cost], name: str) -> str:
    a, b = Cost.median(ours), Cost.median(theirs)
    return (
        f"{a.wall / b.wall:.2f}, processor {a.cpu / b.cpu:.2f} "
        f"({a.wall:.2f} s and {a.cpu:.2f} s, {name} {b.wall:.2f} s and {b.cpu:.2f} s)"
    )


def import_share(start, runs: int) -> Figure:
    """The pack's share of the time from the start of the process to its first answer, as ComfyUI itself counts."""
    shares, seconds = [], []
    for _ in range(runs):
        with start(helper_nodes=False) as server:
            took = time.monotonic() - server.started
            line = re.search(rf"([0-9.]+) seconds.*{PACK_NAME}", server.log)
        seconds.append(float(line[1]))
        shares.append(seconds[-1] / took)
    return ("import, of start-up", f"{statistics.median(shares):.1%} ({statistics.median(seconds):.1f} s)", "≤ 5 %")


def new_strength(comfy: ComfyServer, runs: int, label: str, file: str) -> Figure:
    """A prompt that differs in its strength alone, up to and with one small sampler step: our slider against core's loader."""
    text = {
        "text": node("TestConditioning", seed=1, length=16),
        "empty": node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1),
        "model": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "lora": node("DiffLoraLoad", lora_name=file),
    }

    def prompt(ours: bool, strength: float) -> dict:
        slider = (
            node("DiffLoraSliderModel", model=["model", 0], lora=["lora", 0], strength=strength, apply="patch")
            if ours
            else node("LoraLoaderModelOnly", model=["model", 0], lora_name=file, strength_model=strength)
        )
        sample = node(
            "KSampler",
            model=["slider", 0],
            positive=["text", 0],
            negative=["text", 0],
            latent_image=["empty", 0],
            seed=1,
            steps=1,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        )
        return text | {"slider": slider, "sample": sample, "keep": node("TestKeep", value=["sample", 0])}

    costs: dict[bool, list[Cost]] = {True: [], False: []}
    for number in range(runs + 1):
        for ours in (True, False) if number % 2 else (False, True):
            cost = run(comfy, prompt(ours, 0.1 + 0.1 * number))
            if number:  # the first of each reads files
                costs[ours].append(cost)
    return (f"new strength, {label}", compared(costs[True], costs[False], "core"), "≤ 1.1 × + 50 ms")


def mapped_step(comfy: ComfyServer, runs: int, loras: Path) -> Figure:
    """A step of two passes under a half mask, against two steps of the same slider without a map."""
    models = comfy.models("diffusion_models")
    small_models.write_wan(models / "wan_small.safetensors", dim=256, blocks=8)
    small_models.write_lora(
        loras / "wan_small_slider.safetensors", models / "wan_small.safetensors", rank=4, modules=r"blocks\..*attn"
    )

    def prompt(steps: int, mapped: bool, seed: int) -> dict:
        built = {
            "model": node("UNETLoader", unet_name="wan_small.safetensors", weight_dtype="default"),
            "lora": node("DiffLoraLoad", lora_name="wan_small_slider.safetensors"),
            "text": node("TestConditioning", seed=1, length=64),
            "clip": node("EmptyHunyuanLatentVideo", width=192, height=192, length=9, batch_size=1),
            "none": node("SolidMask", value=0.0, width=64, height=64),
            "left": node("SolidMask", value=1.0, width=32, height=64),
            "mask": node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add"),
            "map": node("DiffLoraSliderMap", steps="", frames="", feather=1, mask=["mask", 0]),
            "slider": node("DiffLoraSliderModel", model=["model", 0], lora=["lora", 0], strength=2.0, apply="bypass"),
            "sample": node(
                "KSampler", model=["slider", 0], positive=["text", 0], negative=["text", 0], latent_image=["clip", 0],
                seed=seed, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            ),
            "keep": node("TestKeep", value=["sample", 0]),
        }  # fmt: skip
        if mapped:
            built["slider"]["inputs"]["map"] = ["map", 0]
        return built

    ours, theirs = [], []
    for seed in range(runs + 1):
        mapped, plain = run(comfy, prompt(20, True, seed)), run(comfy, prompt(40, False, seed))
        if seed:  # the first loads the model
            ours.append(mapped)
            theirs.append(plain)
    return ("a step of two passes, of two steps", compared(ours, theirs, "without a map"), "≤ 1.05")


def chain(comfy: ComfyServer, runs: int, loras: Path) -> Figure:
    """Load → Subtract → Select attn → Re-rank 4 → Slider on a 14B model's shapes, against the same calls of the library."""
    prompt = {
        "a": node("DiffLoraLoad", lora_name=os.path.join(loras.name, "dense.safetensors")),
        "b": node("DiffLoraLoad", lora_name=os.path.join(loras.name, "sparse.safetensors")),
        "difference": node("DiffLoraSubtract", a=["a", 0], b=["b", 0], weight_a=1.0, weight_b=1.0, unmatched="keep"),
        "attn": node("DiffLoraSelectBlocks", lora=["difference", 0], selection="attn", rest="leave out"),
        "small": node("DiffLoraRerank", lora=["attn", 0], rule="rank", rank=4, energy=0.9, ratio=10.0, max_rank=64),
        "model": node("TestShapes", dim=5120, ffn=13824, blocks=40),
        "slider": node("DiffLoraSliderModel", model=["model", 0], lora=["small", 0], strength=1.0, apply="patch"),
        "keep": node("TestKeep", value=["slider", 0]),
    }
    empty = {"model": prompt["model"], "keep": node("TestKeep", value=["model", 0])}
    server: list[Cost] = []
    library: list[Cost] = []
    for number in range(runs + 1):
        comfy.forget()
        comfy.run(empty)
        in_server = run(comfy, prompt)
        wall, cpu = time.perf_counter(), time.process_time()
        small = difflora.rerank(
            difflora.subtract(
                difflora.load(loras / "dense.safetensors"), difflora.load(loras / "sparse.safetensors")
            ).select("attn"),
            difflora.FixedRank(4),
        )
        dict(small.stream(small.names))
        if number:
            server.append(in_server)
            library.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))
    return ("Load → … → Slider, rank 16, 14B", compared(server, library, "library"), "≤ 1.3 ×")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the pack costs in ComfyUI.")
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_DIR"), help="default: COMFYUI_DIR")
    parser.add_argument("--python", default=os.environ.get("COMFYUI_PYTHON", sys.executable))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="of the server, for the share of the import")
    parser.add_argument(
        "--dim", type=int, default=5120, help="width of the larger model, 0: none; 3072 where memory is short"
    )
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    if not options.comfyui:
        parser.error("say where ComfyUI is: --comfyui FOLDER, or COMFYUI_DIR")
    base = options.folder or Path(tempfile.mkdtemp(prefix="bench-"))

    def start(**more: object) -> ComfyServer:
        server = ComfyServer(base, Path(options.comfyui).resolve(), python=options.python, **more)
        server.started = time.monotonic()
        return server

    def show(figure: Figure) -> None:
        print(f"{figure[0]:38}  {figure[2]}  {figure[1]}", flush=True)

    try:
        if options.starts:
            show(import_share(start, options.starts))
        models, loras = base / "models/diffusion_models", base / "models/loras"
        small_models.write_wan(models / "small.safetensors")
        small_models.write_lora(loras / "small.safetensors", models / "small.safetensors")
        write_pair(loras / "pair")
        with start() as comfy:
            show(chain(comfy, options.runs, loras / "pair"))
            show(mapped_step(comfy, options.runs, loras))
            show(new_strength(comfy, options.runs, "small Wan", "small.safetensors"))
            if options.dim:
                small_models.write_wan(
                    models / "large.safetensors", options.dim, 2, options.dim * 27 // 10, dtype=torch.bfloat16
                )
                small_models.write_lora(
                    loras / "large.safetensors", models / "large.safetensors", rank=16, dtype=torch.bfloat16
                )
                show(new_strength(comfy, options.runs, f"two blocks of width {options.dim}", "large.safetensors"))
    finally:
        if not options.folder:
            shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
