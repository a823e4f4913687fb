"""Trains sliders on pairs of the demo's scenes in many ways, and measures each as `evaluate.py` does.

    COMFYUI_DIR=/path/to/ComfyUI python demo/evaluate_training.py --output output/training

Writes `training.md` and `training.csv`. What is already in `parts` for the same models and settings is not done again,
so a stopped run goes on, and another table adds to the first.

Each slider is made by the code behind the node Train Slider, with the demo's Wan as a plain module. Its size is set in
two ways: by the loss (what the node does: ±3 shows what the pairs show), and by the pictures (the smallest power of two
times the training's own size at which −3 leaves at most one thing and +3 shows at least twelve).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import evaluate
import numpy as np
import torch
from evaluate import Demo, dense_changes, measure
from scenes import MOST, draw, random_scene
from scipy.stats import spearmanr
from torch import Tensor
from train import HERE, add_comfyui_arguments, as_input, denoise, import_comfyui, model_file

import difflora
from difflora.lora.trained import TrainedLora
from difflora.training.latents import SliderPairs
from difflora.training.magnitude import REACH, to_reach
from difflora.training.slider import SIGMAS, Settings, SliderTrainer

STRENGTHS = [-3, -2, -1, 0, 1, 2, 3]
EMPTY, FULL = 1.0, 12.0  # things that count as almost none, and as many


@dataclass(frozen=True)
class Way:
    """One way to train a slider; `noise` names a range of `SIGMAS`, or says it as low-high; `layers`: attn, or all."""

    mode: str = "direct"
    pairs: int = 20
    noise: str = "composition"
    steps: int = 100
    rate: float = 1e-3
    rank: int = 4
    average: float = 0.0
    batch: int = 4
    layers: str = "attn"

    def settings(self, seed: int) -> Settings:
        sigma = SIGMAS.get(self.noise) or tuple(float(x) for x in self.noise.split("-"))
        return Settings(
            mode=self.mode, rank=16 if self.mode == "pair" else self.rank, steps=self.steps, batch=self.batch,
            learning_rate=self.rate, sigma=sigma, seed=seed, average=self.average,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """Only what differs from the first row's way, beside the mode, the pairs and the noise."""
        usual = Way(self.mode, self.pairs, self.noise)
        rest = [f"{name} {value}" for name, value in asdict(self).items() if value != getattr(usual, name)]
        return ", ".join([self.mode, f"{self.pairs} pairs", self.noise, *rest])


TABLES = {
    "goal": [Way(pairs=126), Way(pairs=20)],
    "base": [
        Way(mode, pairs, noise)
        for pairs, mode, noise in itertools.product((20, 126, 4, 300), ("direct", "pair"), ("composition", "all"))
    ],
    "average": [Way(pairs=pairs, average=0.95) for pairs in (20, 126)],
    "steps": [Way(pairs=pairs, steps=steps) for pairs in (20, 126) for steps in (50, 200)],
    "rate": [Way(pairs=126, rate=rate, average=average) for rate in (3e-4, 5e-4) for average in (0.0, 0.95)],
    "sigma": [Way(pairs=126, noise=noise) for noise in ("0.5-1", "0.85-1", "0.75-0.95")],
    # What the recipe for musubi-tuner offers: two LoRAs, on which layers, at which noise, for how many steps.
    "recipe": [
        *(Way("pair", 126, noise, layers=layers) for layers in ("all", "attn") for noise in ("all", "composition")),
        *(Way("pair", 126, steps=steps) for steps in (25, 50)),
    ],
}


@torch.no_grad()
def encode_pair(demo: Demo, a: np.ndarray, b: np.ndarray) -> tuple[Tensor, Tensor]:
    """Latents of two pictures (SIZE, SIZE, 3) uint8, as the model sees them."""
    pictures = as_input(torch.from_numpy(np.stack([a, b])).permute(0, 3, 1, 2).contiguous())
    codes = demo.vae.conv1(demo.vae.encoder(pictures))[:, :16]
    latents = demo.latent_format.process_in(codes).squeeze(2)
    return latents[0], latents[1]


_encoded: list[tuple[Tensor, Tensor]] = []  # the longest series of pairs so far: others are its beginning


def demo_pairs(demo: Demo, count: int) -> SliderPairs:
    """The first pairs that the demo's own LoRAs were trained on, as latents of the shipped VAE."""
    for i in range(len(_encoded), count):
        scene = random_scene(500_000 + i, MOST)
        dense, sparse = (draw(scene.with_first(number))[0] for number in (MOST - i % 3, 1 + i % 3))
        _encoded.append(encode_pair(demo, dense, sparse))
    sides = zip(*_encoded[:count], strict=True)
    return SliderPairs(tuple(f"{i:04}" for i in range(count)), *sides)


def train(
    demo: Demo, way: Way, seed: int, pairs: SliderPairs | None = None, reach: float = REACH
) -> tuple[difflora.Lora, float, dict[str, float]]:
    """The slider at the size that training gave it, the factor that the loss asks for, and what it cost.

    pairs   others than the first ones of the demo
    reach   the strength that is to show what the pairs show
    """
    settings = way.settings(seed)
    demo.wan.load_state_dict(demo.weights)
    linears = {
        name: module
        for name, module in demo.wan.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.startswith("blocks.")
        and (way.layers == "all" or "attn" in name)
    }
    shapes = {name: (module.out_features, module.in_features) for name, module in linears.items()}

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        return denoise(demo.wan, noisy, sigma)

    trainer = SliderTrainer(settings, pairs or demo_pairs(demo, way.pairs), velocity, linears, shapes)
    began = time.process_time()
    with trainer.factors.attached():
        for _ in range(settings.steps):
            trainer.step()
        trained = time.process_time() - began
        best = trainer.best_multiplier()
    sides = [TrainedLora(side, way.label, settings.identity()) for side in trainer.result()]
    lora: difflora.Lora = sides[0]
    if len(sides) == 2:
        lora = difflora.rerank(difflora.subtract(*sides).select("attn"), difflora.FixedRank(way.rank))
    cost = {"passes": 2 * settings.batch * settings.steps, "seconds": trained,
            "calibration_seconds": time.process_time() - began - trained, "best": best}  # fmt: skip
    return lora, to_reach(best, reach), cost


class Sweeps:
    """Pictures of a slider at the strengths, measured; of equal changes only once."""

    def __init__(self, demo: Demo):
        self.demo, self.plain = demo, demo.pictures({}, 0.0)
        self.of: evaluate.Changes = {}
        self.seen: dict[float, tuple[dict[str, float], list[int]]] = {}

    def at(self, changes: evaluate.Changes, strength: float) -> tuple[dict[str, float], list[int]]:
        if changes is not self.of:
            self.of, self.seen = changes, {}
        if strength not in self.seen:
            pictures = self.demo.pictures(changes, strength) if strength else self.plain
            self.seen[strength] = measure(pictures, self.plain)
        return self.seen[strength]

    def sweep(self, changes: evaluate.Changes, size: float) -> dict[str, float]:
        measured = [self.at(changes, size * strength) for strength in STRENGTHS]
        rows, counts = [row for row, _ in measured], np.array([counted for _, counted in measured])
        things = [row["things"] for row in rows]
        rise = things[-1] - things[0]
        moved = [row for row, strength in zip(rows, STRENGTHS, strict=True) if strength]
        return {
            "size": size, "low": things[0], "middle": things[3], "high": things[-1],
            "spearman": _spearman(things), "seed_spearman": float(np.median([_spearman(seed) for seed in counts.T])),
            **{f"third_{i}": (things[2 * i] - things[2 * i - 2]) / rise if abs(rise) > 0.5 else np.nan for i in (1, 2, 3)},
            "other_background": float(np.mean([row["other_background"] for row in moved])),
            "background_drift": float(np.nanmean([row["background_drift"] for row in moved])),
        }  # fmt: skip

    def by_pictures(self, changes: evaluate.Changes) -> float | None:
        """The smallest power of two that empties and fills the scene; None if no useful one does."""
        for power in range(-5, 5):
            size = 2.0**power
            if self.at(changes, 3 * size)[0]["things"] >= FULL and self.at(changes, -3 * size)[0]["things"] <= EMPTY:
                return size
        return None


def _spearman(values: object) -> float:
    return 0.0 if np.ptp(values) == 0 else float(spearmanr(STRENGTHS, values).statistic)


def shipped(models: Path) -> difflora.Lora:
    a, b = (difflora.load(model_file(models, name)) for name in ("dense", "sparse"))
    return difflora.rerank(difflora.subtract(a, b).select("attn"), difflora.FixedRank(4))


# --- The table -----------------------------------------------------------------------------------------------

COLUMNS = {
    "low": "things at −3", "middle": "at 0", "high": "at +3", "spearman": "Spearman", "third_1": "−3…−1",
    "third_2": "−1…+1", "third_3": "+1…+3", "other_background": "other background", "background_drift": "drift",
}  # fmt: skip


def rows(parts: Path, key: dict[str, object]) -> Iterator[dict[str, object]]:
    for path in sorted(parts.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["key"] == key:
            yield row


def write(output: Path, found: list[dict[str, object]], note: str) -> None:
    """One line a way and sizing: means over the training seeds, with each seed's changed backgrounds in brackets."""
    lines = [f"| training | size by | runs | passes | CPU s | {' | '.join(COLUMNS.values())} |",
             "|---|---|---:|---:|---:" + "|---:" * len(COLUMNS) + "|"]  # fmt: skip
    flat: list[dict[str, object]] = []
    for label in dict.fromkeys(row["label"] for row in found):
        alike = [row for row in found if row["label"] == label]
        for sizing in ("loss", "pictures"):
            sweeps = [row[sizing] for row in alike if row[sizing]]
            if not sweeps:
                lines.append(f"| {label} | {sizing} | 0 of {len(alike)} |{' – |' * (len(COLUMNS) + 2)}")
                continue
            flat += [{"training": label, "seed": row["seed"], "size_by": sizing, **row["cost"], **row[sizing]}
                     for row in alike if row[sizing]]  # fmt: skip
            cells = []
            for name in COLUMNS:
                values = [sweep[name] for sweep in sweeps]
                cells.append(evaluate.cell({"low": "low"}.get(name, name), float(np.nanmean(values))))
                if name == "other_background" and len(values) > 1:
                    cells[-1] += f" ({', '.join(f'{100 * value:.0f}' for value in values)})"
            cost = [f"{np.mean([row['cost'][name] for row in alike]):,.0f}" if alike[0]["cost"] else "–"
                    for name in ("passes", "seconds")]  # fmt: skip
            count = f"{len(sweeps)} of {len(alike)}"
            lines.append(f"| {label} | {sizing} | {count} | {' | '.join(cost)} | {' | '.join(cells)} |")
    (output / "training.md").write_text("\n".join([*lines, "", note, ""]), encoding="utf-8")
    names = list(dict.fromkeys(name for row in flat for name in row))
    with (output / "training.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(flat)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure ways to train a slider on the demo.")
    add_comfyui_arguments(parser)
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--output", type=Path, default=Path("output/training"))
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=["base"])
    parser.add_argument("--training-seeds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=16, help="pictures for each strength")
    parser.add_argument("--steps", type=int, default=6, help="sampling steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reach", type=float, default=REACH, help="the strength at which the loss is to fit the pairs")
    parser.add_argument("--most", type=int, default=10**9, help="stop after this many new runs")
    options = parser.parse_args()
    import_comfyui(options.comfyui)
    torch.set_num_threads(options.threads)
    parts = options.output / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in options.models.rglob("*.safetensors"))
    key: dict[str, object] = {"models": hashes, "seeds": options.seeds, "steps": options.steps}
    if options.reach != REACH:
        key["reach"] = options.reach
    sweeps: Sweeps | None = None
    jobs: list[tuple[Way | None, int]] = [(None, 0)]
    jobs += [(way, seed) for seed in range(options.training_seeds) for table in options.tables for way in TABLES[table]]
    new = 0
    for place, (way, seed) in enumerate(jobs):
        label = way.label if way else "the shipped pair, attn, rank 4 (16,000 passes)"
        name = hashlib.sha256(json.dumps([label, seed, key]).encode()).hexdigest()[:12]
        part = parts / f"{name}.json"
        if part.is_file() or new >= options.most:
            continue
        new += 1
        if sweeps is None:
            sweeps = Sweeps(Demo(options.models, range(options.seeds), options.steps))
        lora, size, cost = (
            train(sweeps.demo, way, seed, reach=options.reach) if way else (shipped(options.models), 1.0, {})
        )
        changes = dense_changes(lora)
        by_pictures = sweeps.by_pictures(changes) if way else None
        row = {
            "key": key, "place": place, "label": label, "seed": seed, "cost": cost, "loss": sweeps.sweep(changes, size),
            "pictures": sweeps.sweep(changes, by_pictures) if by_pictures else None,
        }  # fmt: skip
        part.write_text(json.dumps(row), encoding="utf-8")
        print(
            label,
            seed,
            {k: {n: round(v, 2) for n, v in (row[k] or {}).items()} for k in ("cost", "loss", "pictures")},
            flush=True,
        )
    found = sorted(rows(parts, key), key=lambda row: (row["label"], row["seed"]))
    note = (
        f"{options.seeds} pictures for each of {len(STRENGTHS)} strengths, {options.steps} sampling steps; means over the "
        "training seeds, single ones in brackets. Passes: pictures that went forward and back through the model in training."
    )
    write(options.output, found, note)
    print(f"wrote training.md and training.csv to {options.output}")


if __name__ == "__main__":
    main()
