"""How fast, how small and how exact the library is on full-size Wan2.1-14B pairs.

    python -m tests.bench.library [--folder FOLDER] [--runs 5] [--quick]

Makes four pairs of random LoRAs (rank 16 and 128, independent and correlated; 5.2 GB) in FOLDER, measures each figure
against a floor that is run in the same minute, and prints a table. --quick leaves out rank 128, the dense SVD and growth.
Every measured run is a process of its own, so that imports, memory and caches are the user's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import difflora
from difflora.lora.deltas import LowRank
from scripts.full_size import write_pair

ROOT = Path(__file__).resolve().parents[2]


# What is timed, each in a process of its own: `python -m tests.bench.library --task NAME A B`


def floor(a: Path, b: Path) -> float:
    """Read both files to float32, hash them, write and hash an output of the size of the result (rank 4, float32)."""
    result = {}
    with safe_open(str(a), "pt") as file:
        for key in file.keys():
            shape = file.get_slice(key).get_shape()
            if len(shape) == 2:
                result[key] = torch.zeros(
                    min(shape[0], 4) if "down" in key else shape[0], min(shape[1], 4) if "up" in key else shape[1]
                )
    out = a.with_name("floor.safetensors")
    started = time.perf_counter()
    for path in (a, b):
        with safe_open(str(path), "pt") as file:
            for key in file.keys():
                file.get_tensor(key).float()
        _hash(path)
    save_file(result, out)
    _hash(out)
    seconds = time.perf_counter() - started
    out.unlink()
    return seconds


def file_to_file(a: Path, b: Path) -> dict[str, float]:
    """The whole library call: two files in, the rank-4 difference out."""
    started = time.perf_counter()
    difference = difflora.subtract(difflora.load(a), difflora.load(b))
    small = difflora.rerank(difference, difflora.FixedRank(4))
    difflora.save(small, a.with_name("out.safetensors"))
    return {"seconds": time.perf_counter() - started, "slow": small.factorisation.slow}


def its_memory(a: Path, b: Path) -> dict[str, float]:
    """The same in a run of its own: watching the memory takes time from what is watched."""
    with _Memory() as memory:
        file_to_file(a, b)
    return {"memory": memory.peak}


def another_rank(a: Path, b: Path) -> dict[str, float]:
    """Rank 4 of a difference that is factored already, from file to file; then spectrum and energy alone."""
    difference = difflora.subtract(difflora.load(a), difflora.load(b))
    difflora.save(difflora.rerank(difference, difflora.FixedRank(6)), a.with_name("out_6.safetensors"))
    started = time.perf_counter()
    again = difflora.rerank(difference, difflora.FixedRank(4))
    difflora.save(again, a.with_name("out.safetensors"))
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    energy = difflora.rerank(difference, difflora.FixedRank(9)).retained_energy
    return {"seconds": seconds, "energy_seconds": time.perf_counter() - started, "energy": energy}


def purified(a: Path, b: Path) -> dict[str, float]:
    """The difference without the two strongest directions of a third LoRA, at rank 4: three files in, one out."""
    started = time.perf_counter()
    difference = difflora.subtract(difflora.load(a), difflora.load(b))
    pure = difflora.purify(difference, [difflora.load(_third(a))])
    difflora.save(difflora.rerank(pure, difflora.FixedRank(4)), a.with_name("out.safetensors"))
    return {"seconds": time.perf_counter() - started}


def its_memory_purified(a: Path, b: Path) -> dict[str, float]:
    with _Memory() as memory:
        purified(a, b)
    return {"memory": memory.peak}


def _third(a: Path) -> Path:
    return a.parent / "third" / "third.safetensors"


def lossless(a: Path, b: Path) -> dict[str, float]:
    """The stacked difference, written as it is."""
    started = time.perf_counter()
    difference = difflora.subtract(difflora.load(a), difflora.load(b))
    difflora.save(difference, a.with_name("out.safetensors"), dtype="bfloat16")
    return {"seconds": time.perf_counter() - started}


def its_memory_lossless(a: Path, b: Path) -> dict[str, float]:
    with _Memory() as memory:
        lossless(a, b)
    return {"memory": memory.peak}


def gram(a: Path, b: Path) -> dict[str, float]:
    """One float64 Gram pass over the same stacked factors, all threads; `products` is the matrix products alone."""
    difference = difflora.subtract(difflora.load(a), difflora.load(b))
    products, flops = 0.0, 0
    started = time.perf_counter()
    for _, delta in difference.stream(difference.matrices):
        assert isinstance(delta, LowRank)
        up, down = delta.up.double(), delta.down.double()
        before = time.perf_counter()
        up.mT @ up, down @ down.mT
        products += time.perf_counter() - before
        flops += 2 * delta.rank**2 * (up.shape[0] + down.shape[1])
    seconds = time.perf_counter() - started
    square = torch.rand(2048, 2048, dtype=torch.float64)
    square @ square
    before = time.perf_counter()
    for _ in range(5):
        square @ square
    peak = 5 * 2 * 2048**3 / (time.perf_counter() - before)
    # Half of each symmetric product is enough: the least arithmetic that this method can do.
    return {"seconds": seconds, "products": products, "flop_bound": flops / 2 / peak}


def import_torch(a: Path, b: Path) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def whole_process(a: Path, b: Path) -> float:
    """The command line, from start to end."""
    out = a.with_name("out.safetensors")
    started = time.perf_counter()
    command = [sys.executable, "-m", "difflora", "subtract", str(a), str(b), "-o", str(out), "--overwrite", "--json"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def dense_svd(a: Path, b: Path) -> dict[str, float]:
    """A dense SVD of one attention module's difference; its best rank-4 part against ours."""
    name = "blocks.0.self_attn.q"
    difference = difflora.subtract(difflora.load(a), difflora.load(b))
    delta = difference[name]
    assert isinstance(delta, LowRank)
    started = time.perf_counter()
    full = delta.dense()
    values = torch.linalg.svd(full, full_matrices=False).S
    seconds = time.perf_counter() - started
    missed = torch.linalg.matrix_norm(full.double() - difflora.rerank(difference, difflora.FixedRank(4))[name].dense())
    return {"seconds": seconds, "excess": float(missed / values[4:].double().norm()) - 1}


class _Memory:
    """Peak of this process's anonymous memory above what it was at the beginning, in MB."""

    def __enter__(self) -> _Memory:
        self.before, self.peak, self._done = self._now(), 0.0, False
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done = True
        self._thread.join()

    def _watch(self) -> None:
        while not self._done:
            self.peak = max(self.peak, self._now() - self.before)
            time.sleep(0.002)

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TASKS = {
    task.__name__: task
    for task in (
        floor,
        file_to_file,
        its_memory,
        another_rank,
        purified,
        its_memory_purified,
        lossless,
        its_memory_lossless,
        gram,
        import_torch,
        whole_process,
        dense_svd,
    )
}


# The table


class Bench:
    def __init__(self, folder: Path, runs: int):
        self.folder, self.runs = folder, runs
        self.rows: list[tuple[str, str, str]] = []

    def pair(self, rank: int, noise: float | None, **shape: int) -> tuple[Path, Path]:
        folder = self.folder / "_".join(map(str, (rank, noise, *shape.values())))
        folder.mkdir(parents=True, exist_ok=True)
        ready = sorted(file for file in folder.glob("*.safetensors") if not file.stem.startswith("out"))
        return (ready[0], ready[1]) if len(ready) == 2 else write_pair(folder, rank=rank, noise=noise, **shape)

    def task(self, name: str, pair: tuple[Path, Path]) -> dict[str, float]:
        command = [sys.executable, "-m", "tests.bench.library", "--task", name, *map(str, pair)]
        for left in pair[0].parent.glob("out*.safetensors"):  # nothing is replaced, as in the floor
            left.unlink()
        done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
        answer = json.loads(done.stdout)
        return answer if isinstance(answer, dict) else {"seconds": answer}

    def against(self, name: str, base: str, pair: tuple[Path, Path], runs: int | None = None) -> dict[str, float]:
        """Medians over runs in turn, base and task, and the median of the ratios pair by pair."""
        results, ratios, bases = [], [], []
        for _ in range(runs or self.runs):
            bases.append(self.task(base, pair)["seconds"])
            results.append(self.task(name, pair))
            ratios.append(results[-1]["seconds"] / bases[-1])
        medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
        return medians | {"ratio": statistics.median(ratios), "base": statistics.median(bases)}

    def row(self, what: str, measured: str, reach: str = "") -> None:
        self.rows.append((what, measured, reach))
        print(f"  {what}: {measured}" + (f"   (to reach: {reach})" if reach else ""), flush=True)

    def rank_16(self) -> None:
        for kind, noise, most in (("independent", None, 2.0), ("correlated", 0.1, 2.5)):
            pair = self.pair(16, noise)
            found = self.against("file_to_file", "floor", pair)
            self.row(
                f"rank 16 + 16, {kind}, file to file",
                f"{found['seconds']:.2f} s = {found['ratio']:.2f} × floor ({found['base']:.2f} s), "
                f"{found['slow']:.0f} modules by QR",
                f"≤ {most} × floor",
            )
            self.row(f"its peak memory, {kind}", f"{self.task('its_memory', pair)['memory']:.0f} MB", "≤ 300 MB")
        pair = self.pair(16, None)
        again = self.against("another_rank", "floor", pair)
        self.row(
            "another rank of it, file to file",
            f"{again['seconds']:.2f} s = {again['ratio']:.2f} × floor",
            "≤ 1.3 × floor",
        )
        self.row("its energy at a further rank", f"{again['energy_seconds'] * 1000:.0f} ms, no file read")
        _third(pair[0]).parent.mkdir(exist_ok=True)
        shutil.copyfile(self.pair(16, 0.1)[0], _third(pair[0]))
        pure = self.against("purified", "file_to_file", pair)
        self.row(
            "the same without two directions of a third LoRA of rank 16",
            f"{pure['seconds']:.2f} s = {pure['ratio']:.2f} × the subtraction ({pure['base']:.2f} s)",
            "≤ 1.5 × the subtraction",
        )
        self.row("its peak memory", f"{self.task('its_memory_purified', pair)['memory']:.0f} MB", "≤ 300 MB")
        base = statistics.median(self.task("floor", pair)["seconds"] for _ in range(self.runs))
        torch_alone = statistics.median(self.task("import_torch", pair)["seconds"] for _ in range(self.runs))
        whole = statistics.median(self.task("whole_process", pair)["seconds"] for _ in range(self.runs))
        self.row(
            "whole process with imports",
            f"{whole:.2f} s; `import torch` is {torch_alone:.2f} s of it",
            f"≤ {torch_alone + 2.5 * base:.2f} s (import torch + 2.5 × floor)",
        )

    def rank_128(self) -> None:
        for kind, noise in (("independent", None), ("correlated", 0.1)):
            pair = self.pair(128, noise)
            found = self.against("file_to_file", "gram", pair, runs=3)
            gram_pass = self.task("gram", pair)
            self.row(
                f"rank 128 + 128, {kind}, file to file",
                f"{found['seconds']:.1f} s = {found['ratio']:.2f} × one float64 Gram pass ({found['base']:.1f} s, "
                f"products alone {gram_pass['products']:.1f} s) = "
                f"{found['seconds'] / gram_pass['flop_bound']:.1f} × the flop bound, {found['slow']:.0f} by QR",
                "≤ 2 × Gram pass",
            )
            self.row(f"its peak memory, {kind}", f"{self.task('its_memory', pair)['memory']:.0f} MB", "≤ 600 MB")
        seconds = self.task("lossless", self.pair(128, None))["seconds"]
        memory = self.task("its_memory_lossless", self.pair(128, None))["memory"]
        self.row("rank 128 + 128, lossless", f"{seconds:.1f} s, {memory:.0f} MB", "≤ 600 MB")

    def dense(self) -> None:
        pair = self.pair(16, None)
        found, ours = self.task("dense_svd", pair), self.task("file_to_file", pair)["seconds"]
        self.row(
            "dense SVD of one 5120 × 5120 difference",
            f"{found['seconds']:.1f} s; ours misses {found['excess']:+.1e} more than the optimum there",
        )
        self.row(
            "320 of them, extrapolated, against ours for all 400 modules",
            f"{320 * found['seconds'] / 3600:.1f} h against {ours:.2f} s: {320 * found['seconds'] / ours:,.0f} ×",
        )

    def growth(self) -> Path:
        """Time against rank and against the number of modules, as a plot."""
        from matplotlib.figure import Figure

        ranks, blocks = (4, 8, 16, 32, 64, 128), (5, 10, 20, 40)
        by_rank = [self.task("file_to_file", self.pair(r, None, blocks=10))["seconds"] for r in ranks]
        by_size = [self.task("file_to_file", self.pair(16, None, blocks=n))["seconds"] for n in blocks]
        figure = Figure(figsize=(9, 3.6), dpi=100)
        left, right = figure.subplots(1, 2)
        left.loglog(ranks, by_rank, "o-", base=2)
        left.set(xlabel="rank of A and of B, 100 modules", ylabel="seconds")
        right.plot([10 * n for n in blocks], by_size, "o-")
        right.set(xlabel="modules at rank 16 + 16", ylabel="seconds", ylim=(0, None))
        figure.tight_layout()
        path = self.folder / "growth.png"
        figure.savefig(path)
        slope = math.log2(by_rank[-1] / by_rank[-2])
        self.row(
            "growth",
            f"rank 64 to 128: × {2**slope:.1f}; 200 to 400 modules: × {by_size[-1] / by_size[-2]:.1f}; "
            f"plot in {path.name}",
        )
        return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the pairs go, and stay; a temporary folder by default")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        name, a, b = options.task
        print(json.dumps(TASKS[name](Path(a), Path(b))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options.folder or Path(temporary), options.runs)
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, difflora {difflora.__version__}")
        bench.rank_16()
        if not options.quick:
            bench.rank_128()
            bench.dense()
            bench.growth()
        print("\n| what | measured | to reach |\n|---|---|---|")
        for row in bench.rows:
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
