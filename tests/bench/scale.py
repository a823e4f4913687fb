"""What happens at the edges: many LoRAs, many modules, large ranks, full differences, whole checkpoints.

    python -m tests.bench.scale [--folder FOLDER]

Prints a table. Each time stands beside what the theory, O((out + in) k² + k³) for every module, makes of a smaller case that ran in
the same minute; memory is the peak of anonymous memory above the state after imports. Needs 6 GB on the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import difflora
from difflora.lora.extract import extract
from difflora.rank.krylov import approximate
from scripts.full_size import modules, write_pair
from tests.bench.library import ROOT, _Memory

DIM, FFN = 5120, 13824


def combined(count: int, rank: int, blocks: int, folder: Path) -> dict[str, float]:
    """`count` LoRAs of one rank summed, re-ranked to 4 and written."""
    pairs = [
        write_pair(folder / f"{rank}_{blocks}_{seed}", rank=rank, blocks=blocks, seed=seed)
        for seed in range((count + 1) // 2)
    ]
    files = [file for pair in pairs for file in pair][:count]
    return timed(lambda: difflora.combine([(1.0, difflora.load(file)) for file in files]), folder)


def many_modules(blocks: int, folder: Path) -> dict[str, float]:
    """Ten modules a block, of width 512, rank 16 on both sides."""
    a, b = write_pair(folder / f"many_{blocks}", blocks=blocks, dim=512, ffn=1024)
    return timed(lambda: difflora.subtract(difflora.load(a), difflora.load(b)), folder)


def timed(make, folder: Path) -> dict[str, float]:
    with _Memory() as memory:
        started = time.perf_counter()
        difflora.save(difflora.rerank(make(), difflora.FixedRank(4)), folder / "out.safetensors", overwrite=True)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "memory": memory.peak}


def full_difference(rank: int, folder: Path) -> dict[str, float]:
    """One 5120 × 5120 matrix with a spectrum that falls off as 1/n, at a rank; and its dense SVD."""
    random = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(DIM, DIM, generator=random)).Q for _ in range(2))
    values = 1 / torch.arange(1, DIM + 1)
    matrix = (left * values) @ right.T
    started = time.perf_counter()
    found = approximate(matrix, rank)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    torch.linalg.svd(matrix, full_matrices=False)
    dense = time.perf_counter() - started
    optimum = float(values[rank:].double().norm())
    return {"seconds": seconds, "dense": dense, "error": found.error / optimum, "bound": 1 + found.excess}


def checkpoints(blocks: int, folder: Path) -> dict[str, float]:
    """Two checkpoints with this many blocks of Wan2.1-14B's, bf16: their difference at rank 32."""
    random = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for name, rows, columns in modules(blocks, DIM, FFN):
        name = (
            name.removeprefix("lora_unet_")
            .replace("_attn_", "_attn.")
            .replace("ffn_", "ffn.")
            .replace("blocks_", "blocks.")
        )
        name = name.replace("_self", ".self").replace("_cross", ".cross").replace("_ffn", ".ffn") + ".weight"
        weight = torch.randn(rows, columns, generator=random) / columns**0.5
        change = torch.randn(rows, 24, generator=random) @ torch.randn(24, columns, generator=random)
        base[name], tuned[name] = weight.bfloat16(), (weight + 1e-3 * change).bfloat16()
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    del base, tuned
    with _Memory() as memory:
        started = time.perf_counter()
        difference = difflora.rerank(
            extract(folder / "base.safetensors", folder / "tuned.safetensors"), difflora.FixedRank(32)
        )
        difflora.save(difference, folder / "out.safetensors", overwrite=True)
        seconds = time.perf_counter() - started
    worst = max(found.excess for found in difference.certificates.values())
    return {"seconds": seconds, "memory": memory.peak, "bound": 1 + worst}


TASKS = {task.__name__: task for task in (combined, many_modules, full_difference, checkpoints)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files go, and stay; a temporary folder by default")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.task:
            name, *numbers = options.task
            print(json.dumps(TASKS[name](*map(int, numbers), folder)))
            return
        report(folder)


def report(folder: Path) -> None:
    def task(*words: object) -> dict[str, float]:
        command = [sys.executable, "-m", "tests.bench.scale", "--folder", str(folder), "--task", *map(str, words)]
        return json.loads(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout)

    def theory(columns: int) -> float:
        return sum(columns**2 * (rows + inside) + columns**3 for _, rows, inside in modules(1, DIM, FFN))

    def row(what: str, measured: str) -> None:
        print(f"| {what} | {measured} |", flush=True)

    print("| what | measured |\n|---|---|")
    small = task("combined", 2, 128, 2)
    row("2 LoRAs of rank 128, 20 modules", f"{small['seconds']:.1f} s, {small['memory']:.0f} MB")
    for count, rank, blocks in ((10, 128, 2), (2, 1024, 1)):
        found, columns = task("combined", count, rank, blocks), count * rank
        expected = small["seconds"] * theory(columns) / theory(256) * blocks / 2
        row(
            f"{count} LoRAs of rank {rank}, {10 * blocks} modules",
            f"{found['seconds']:.1f} s = {found['seconds'] / expected:.2f} × the theory's {expected:.1f} s, {found['memory']:.0f} MB",
        )
    few, many = task("many_modules", 40), task("many_modules", 410)
    row(
        "4,100 modules of width 512, rank 16 + 16",
        f"{many['seconds']:.2f} s, {many['memory']:.0f} MB = "
        f"{many['seconds'] / few['seconds'] / 10.25:.2f} × 10.25 times 400 modules ({few['seconds']:.2f} s, {few['memory']:.0f} MB)",
    )
    full = task("full_difference", 64)
    row(
        "a full difference of 5120 × 5120 at rank 64",
        f"{full['seconds']:.1f} s, dense SVD {full['dense']:.1f} s: "
        f"{full['dense'] / full['seconds']:.0f} ×; error {full['error']:.6f} × the optimum, certified ≤ {full['bound']:.6f} ×",
    )
    taken = task("checkpoints", 2)
    row(
        "two blocks of two 14B checkpoints, rank 32",
        f"{taken['seconds']:.0f} s, {taken['memory']:.0f} MB, certified ≤ "
        f"{taken['bound']:.4f} × the optimal error; 40 blocks, extrapolated: {20 * taken['seconds'] / 60:.0f} min, same memory",
    )


if __name__ == "__main__":
    main()
