"""How long a sweep takes on one, two and three servers with a core each that share their clips, and what a killed one costs.

    COMFYUI_DIR=… python -m tests.bench.machines [--most 3] [--strengths 8]

The demo workflow's model and LoRAs. Every server gets one thread and, as long as there are enough of them, a core of its own;
the number of cores is printed. Models are loaded before the clock starts. Linux only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.example_workflows import DEMO, filled
from tests.comfy_server import ComfyServer

Prompt = dict[str, dict[str, Any]]


def of_kind(prompt: Prompt, kind: str) -> str:
    [name] = [name for name, node in prompt.items() if node["class_type"] == kind]
    return name


def queued(demo: Prompt, strengths: str, share: str, seed: int) -> Prompt:
    """The demo up to its grid, with these strengths. Another seed is another sweep."""
    grid, sweep = of_kind(demo, "DiffLoraSweepGrid"), of_kind(demo, "DiffLoraStrengthSweep")
    needed, waiting = set(), [grid]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [
                value[0] for value in demo[name]["inputs"].values() if isinstance(value, list) and len(value) == 2
            ]
    prompt = {name: {**node, "inputs": dict(node["inputs"])} for name, node in demo.items() if name in needed}
    prompt[sweep]["inputs"] |= {"strengths": strengths, "share": share, "include_zero": False}
    for node in prompt.values():
        for key in ("seed", "noise_seed"):
            if key in node["inputs"]:
                node["inputs"][key] = seed
    return prompt


def told(server: ComfyServer, prompt_id: str, grid: str) -> list[str]:
    outputs = server.get(f"/history/{prompt_id}")[prompt_id]["outputs"]
    return [line["text"] for line in outputs[grid]["difflora"][0]["report"]["lines"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=3)
    parser.add_argument("--strengths", type=int, default=8)
    options = parser.parse_args()
    count, cores = options.strengths, sorted(os.sched_getaffinity(0))
    strengths = ", ".join(f"{number - (count - 1) / 2:g}" for number in range(count))
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    print(f"{count} strengths; {len(cores)} cores for up to {options.most} servers", flush=True)
    with tempfile.TemporaryDirectory() as name:
        share, servers = Path(name) / "share", []
        share.mkdir()
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        try:
            for number in range(options.most):
                server = ComfyServer(
                    Path(name) / f"server {number}", Path(os.environ["COMFYUI_DIR"]).resolve(), python=python
                )
                place = server.base / "user/__differential_lora/clips_folder.txt"
                place.parent.mkdir(parents=True)
                place.write_text(str(share))
                servers.append(server)
                server.start()
                for thread in os.listdir(f"/proc/{server.pid}/task"):
                    os.sched_setaffinity(int(thread), {cores[number % len(cores)]})
            demo = filled(DEMO.prompt(), servers[0].object_info())
            grid = of_kind(demo, "DiffLoraSweepGrid")
            for server in servers:
                server.run(queued(demo, "0", "all", 1))  # models, fonts, codecs
            first = None
            for used in range(1, options.most + 1):
                start = time.perf_counter()
                ids = [
                    server.queue(queued(demo, strengths, f"{number} of {used}", 10 + used))
                    for number, server in enumerate(servers[:used], 1)
                ]
                for server, prompt_id in zip(servers, ids, strict=False):
                    server.wait(prompt_id)
                seconds = time.perf_counter() - start
                first = first or seconds
                print(f"{used} servers: {seconds:6.1f} s, {first / seconds:.2f} times as fast as one", flush=True)
            if options.most > 1:
                killed(servers, demo, strengths, grid)
        finally:
            for server in servers:
                server.stop()


def killed(servers: list[ComfyServer], demo: Prompt, strengths: str, grid: str) -> None:
    """The last server is killed when it has kept its first clip; the first one renders the rest."""
    used, victim = len(servers), servers[-1]
    ids = [server.queue(queued(demo, strengths, f"{number} of {used}", 99)) for number, server in enumerate(servers, 1)]
    victim.wait_for_node(ids[-1], f"{grid}.0.0.1.gate", timeout=600)  # its second clip
    os.killpg(victim.pid, signal.SIGKILL)
    for server, prompt_id in zip(servers[:-1], ids, strict=False):
        server.wait(prompt_id)
    print("the others, when their shares were done:", *told(servers[0], ids[0], grid), sep="\n    ")
    start = time.perf_counter()
    rest = servers[0].queue(queued(demo, strengths, "all", 99))
    result = servers[0].wait(rest)
    rendered = sum(name.endswith(".cell") for name in result.executed)
    print(f"then `all` on one of them: {rendered} clips rendered in {time.perf_counter() - start:.1f} s")
    print("   ", *told(servers[0], rest, grid))


if __name__ == "__main__":
    main()
