"""Measures what Purify, Calibrate and Independent Sliders do to sliders of the demo's scenes.

    COMFYUI_DIR=/path/to/ComfyUI python demo/evaluate_purity.py --output output/purity

Writes `purity.md`, and `tint.jpg` with pictures of the first table's sliders. All sliders are trained by the code behind
the node Train Slider (direct, rank 4 on attention, 100 steps) on 126 pairs. What is already in `parts` for the same models and
settings is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate import Changes, Demo, dense_changes, measure
from evaluate_training import Way, demo_pairs, encode_pair, train
from PIL import Image, ImageDraw, ImageFont
from scenes import MOST, draw, random_scene, thing_pixels
from torch import Tensor
from train import CHANNELS, HERE, LATENT_SIZE, add_comfyui_arguments, denoise, import_comfyui

import difflora
from difflora.clips.response import measure_frames
from difflora.lora.lora import CombinedLora
from difflora.rank.calibrate import (
    NOISE,
    SAMPLES,
    SHARE,
    calibrate_norm,
    factor_for_change,
    factor_for_prediction,
    prediction_change,
    way_to,
)
from difflora.training.latents import SliderPairs
from difflora.training.pairs import tinted

GREEN = (0, 200, 0)
STRENGTHS = (-3, -2, -1, 0, 1, 2, 3)
ANOTHER = 100  # is added to the seed of what is taken out
Row = dict[str, float]


def pairs_of(demo: Demo, count: int, sides: Callable[[Any, int], tuple[np.ndarray, np.ndarray]]) -> SliderPairs:
    """Pairs of the scenes that the demo's LoRAs were trained on; `sides` draws a scene and its number as A and B."""
    encoded = [encode_pair(demo, *sides(random_scene(500_000 + i, MOST), i)) for i in range(count)]
    return SliderPairs(tuple(f"{i:04}" for i in range(count)), *zip(*encoded, strict=True))


def many(scene: Any, number: int) -> np.ndarray:
    return draw(scene.with_first(MOST - number % 3))[0]


def few(scene: Any, number: int) -> np.ndarray:
    return draw(scene.with_first(1 + number % 3))[0]


def green(picture: np.ndarray) -> np.ndarray:
    return np.asarray(tinted(Image.fromarray(picture), GREEN))


KINDS: dict[str, Callable[[Any, int], tuple[np.ndarray, np.ndarray]]] = {
    "clean": lambda scene, i: (many(scene, i), few(scene, i)),
    "contaminated": lambda scene, i: (green(many(scene, i)), few(scene, i)),
    "tint": lambda scene, i: (green(few(scene, i)), few(scene, i)),
    # A tint whose pairs have some more things on the green side: a second slider that pulls on the first.
    "green, some things": lambda scene, i: (
        green(draw(scene.with_first(8 + i % 3))[0]),
        draw(scene.with_first(5 + i % 3))[0],
    ),
}


class Lab:
    """The demo, its pairs and its sliders; each is made once."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.demo = Demo(options.models, range(options.seeds), options.steps)
        self._pairs: dict[str, SliderPairs] = {}
        self._plain: dict[range, np.ndarray] = {}

    def slider(self, kind: str, seed: int, way: Way | None = None) -> tuple[difflora.Lora, float]:
        """As trained, and the factor by which Train Slider would scale it."""
        way = way or Way(pairs=self.options.pairs)
        if kind not in self._pairs:
            self._pairs[kind] = pairs_of(self.demo, self.options.pairs, KINDS[kind])
        held = self._pairs[kind]
        some = SliderPairs(held.names[: way.pairs], held.a[: way.pairs], held.b[: way.pairs])
        lora, size, _ = train(self.demo, way, seed, some)
        return lora, size

    def sized(self, kind: str, seed: int) -> difflora.Lora:
        lora, size = self.slider(kind, seed)
        return lora.scaled(size)

    def pictures(self, changes: Changes, strength: float = 1.0, seeds: range | None = None) -> np.ndarray:
        self.demo.seeds = seeds or range(self.options.seeds)
        return self.demo.pictures(changes if strength else {}, strength)

    def row(self, pictures: np.ndarray, seeds: range | None = None) -> Row:
        """The demo's measures, the tint of the background, and Slider Response's measures."""
        seeds = seeds or range(self.options.seeds)
        if seeds not in self._plain:
            self._plain[seeds] = self.pictures({}, 0.0, seeds)
        row, _ = measure(pictures, self._plain[seeds])
        response = measure_frames(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
        return {**row, "tint": tint(pictures), **response.values}

    def sweep(
        self, lora: difflora.Lora, strengths: Sequence[float] = STRENGTHS, seeds: range | None = None
    ) -> list[Row]:
        changes = dense_changes(lora)
        return [self.row(self.pictures(changes, s, seeds), seeds) | {"strength": s} for s in strengths]


def tint(pictures: np.ndarray) -> float:
    """G − (R + B) / 2 of the pixels that show no thing, 0…255: the mean over the pictures."""
    masks = thing_pixels(pictures)
    means = [p[~m].astype(np.float32).mean(0) for p, m in zip(pictures, masks, strict=True) if (~m).any()]
    return float(np.mean([mean[1] - (mean[0] + mean[2]) / 2 for mean in means]))


# --- A tint taken out ----------------------------------------------------------------------------------------


def tint_part(lab: Lab, seed: int) -> dict[str, list[Row]]:
    clean, dirty, same = (lab.sized(kind, seed) for kind in ("clean", "contaminated", "tint"))
    out = lab.sized("tint", seed + ANOTHER)
    ways = {
        "the clean slider": clean,
        "contaminated": dirty,
        **{f"purified, top {j}": difflora.purify(dirty, [out], j) for j in (1, 2, 3, 4)},
        "purified, top 2, the tint from the same seed": difflora.purify(dirty, [same], 2),
        "contaminated, and the tint at −1": CombinedLora([(1.0, dirty), (-1.0, out)]),
        "clean, purified, top 2": difflora.purify(clean, [out], 2),
    }
    found = {}
    strips = {}
    for name, lora in ways.items():
        changes = dense_changes(lora)
        drawn = {s: lab.pictures(changes, s) for s in STRENGTHS}
        found[name] = [lab.row(p) | {"strength": s} for s, p in drawn.items()]
        strips[name] = [drawn[s] for s in (-3, -1, 0, 1, 3)]
    if seed == 0:
        rows = ("the clean slider", "contaminated", "purified, top 2", "contaminated, and the tint at −1")
        sheet(lab.options.output / "tint.jpg", {name: strips[name] for name in rows}, ("-3", "-1", "0", "+1", "+3"))
    return found


def rise(rows: list[Row], name: str, at: float = 3) -> float:
    """From −`at` to +`at`."""
    by = {row["strength"]: row[name] for row in rows}
    return by[at] - by[-at]


def moved(rows: list[Row], name: str) -> float:
    return float(np.nanmean([row[name] for row in rows if row["strength"]]))


def tint_table(parts: list[dict[str, list[Row]]]) -> list[str]:
    lines = [
        "| slider | things at −3 | at +3 | of the clean slider's rise | tint at −3 | at +3 | tint gone | a* gone | other background | "
        "background drift |",
        "|---" + "|---:" * 9 + "|",
    ]  # fmt: skip
    clean, dirty = "the clean slider", "contaminated"

    def gone(part: dict[str, list[Row]], name: str, measured: str) -> float:
        return 1 - (rise(part[name], measured) - rise(part[clean], measured)) / (
            rise(part[dirty], measured) - rise(part[clean], measured)
        )

    def side(part: dict[str, list[Row]], name: str, measured: str, strength: float) -> float:
        return {row["strength"]: row[measured] for row in part[name]}[strength]

    for name in parts[0]:
        numbers = {
            "low": [side(part, name, "things", -3) for part in parts],
            "high": [side(part, name, "things", 3) for part in parts],
            "kept": [rise(part[name], "things") / rise(part[clean], "things") for part in parts],
            "tint low": [side(part, name, "tint", -3) - side(part, name, "tint", 0) for part in parts],
            "tint high": [side(part, name, "tint", 3) - side(part, name, "tint", 0) for part in parts],
            "gone": [gone(part, name, "tint") for part in parts],
            "a": [gone(part, name, "a") for part in parts],
            "other": [moved(part[name], "other_background") for part in parts],
            "drift": [moved(part[name], "background_drift") for part in parts],
        }
        means = {key: float(np.mean(values)) for key, values in numbers.items()}
        shown = {
            key: f"{value:.0%}" if key in ("kept", "gone", "a", "other") else f"{value:.1f}"
            for key, value in means.items()
        }
        for key in ("gone", "other"):
            shown[key] += f" ({', '.join(f'{100 * value:.0f}' for value in numbers[key])})"
        lines.append(f"| {name} | {' | '.join(shown.values())} |")
    return lines


def sheet(
    path: Path, rows: dict[str, list[np.ndarray]], columns: Sequence[str], seeds: Sequence[int] = (0, 1, 2)
) -> None:
    """One line a slider, the same seeds at every strength side by side."""
    edge, left, top = 96, 330, 30
    wide = len(seeds) * (edge + 2) + 12
    image = Image.new("RGB", (left + len(columns) * wide, top + len(rows) * (edge + 6)), "white")
    brush, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for x, text in enumerate(columns):
        brush.text((left + x * wide + wide / 2, top / 2), text, fill="black", font=font, anchor="mm")
    for y, (name, strip) in enumerate(rows.items()):
        brush.text((8, top + y * (edge + 6) + edge / 2), name.replace("−", "-"), fill="black", font=font, anchor="lm")
        for x, pictures in enumerate(strip):
            for z, seed in enumerate(seeds):
                place = (left + x * wide + z * (edge + 2), top + y * (edge + 6))
                image.paste(Image.fromarray(pictures[seed]), place)
    image.save(path, quality=90)


# --- ±1 as a unit --------------------------------------------------------------------------------------------

EIGHT = {
    "126 pairs": Way(pairs=126),
    "20 pairs": Way(pairs=20),
    "30 steps": Way(pairs=126, steps=30),
    "300 steps": Way(pairs=126, steps=300),
    "rate 3e-4": Way(pairs=126, rate=3e-4),
    "rank 8": Way(pairs=126, rank=8),
    "noise 0.5 to 1": Way(pairs=126, noise="0.5-1"),
    "two LoRAs": Way("pair", 126),
}
OTHERS = {
    "60 pairs": Way(pairs=60),
    "20 pairs, 60 steps": Way(pairs=20, steps=60),
    "200 steps": Way(pairs=126, steps=200),
    "rate 2e-3": Way(pairs=126, rate=2e-3),
    "rank 1": Way(pairs=126, rank=1),
    "noise 0.85 to 1": Way(pairs=126, noise="0.85-1"),
    "all layers": Way(pairs=126, layers="all"),
    "two LoRAs, 50 steps": Way("pair", 126, steps=50),
}
CHANGE = {"things": 2.0, "edges": 2.0}
"""What ±1 is to change: things, and percent of the pixels that are edges."""
SHOWN = {"things": "things", "edges": "edge density", "tint": "tint", "a": "a*"}


@dataclass(frozen=True)
class Eight:
    """Sliders for one property, trained in different ways, and what their effect is measured by.

    seed  of the first one's training
    """

    kind: str
    seed: int
    ways: dict[str, Way]
    measures: tuple[str, str]


# By what they are scaled was chosen on the first eight alone.
SETS = {
    "unit": Eight("clean", 0, EIGHT, ("things", "edges")),
    "others": Eight("clean", 20, OTHERS, ("things", "edges")),
    "tints": Eight("tint", 40, EIGHT, ("tint", "a")),
}


def unit_part(lab: Lab, number: int, of: str) -> dict[str, Any]:
    """One of the eight: its effect at ±1, by what its size was set; of the first eight also by response and all norms."""
    eight = SETS[of]
    name, way = list(eight.ways.items())[number]
    lora, size = lab.slider(eight.kind, eight.seed + number, way)
    raw = lora.scaled(1 / 6)  # as if every training had the size that fits its pairs
    first, second = range(lab.options.calibration_seeds), range(1000, 1000 + lab.options.seeds)
    by_norm, by_prediction = calibrate_norm(raw, 0.25), factor_for_prediction(meter(lab, raw), SHARE)
    sizes = {
        "as trained": raw,
        "by the loss (*Train Slider*)": lora.scaled(size),
        "by norm (*Calibrate LoRA*)": by_norm,
        "by prediction (*Calibrate LoRA*)": raw.scaled(by_prediction),
    }
    if of == "unit":
        curve = lab.sweep(raw, (-8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8), first)
        for measured, change in CHANGE.items():
            factor = factor_for_change([row["strength"] for row in curve], [row[measured] for row in curve], change)
            sizes[f"by response, {SHOWN[measured]}"] = raw.scaled(factor)
    effects = {}
    for by, one in sizes.items():
        rows = lab.sweep(one, (-1, 1), second)
        effects[by] = {measured: rise(rows, measured, 1) / 2 for measured in eight.measures}
    factors = [1.0, 6 * size, by_norm.factor, by_prediction]
    return {
        "name": name,
        "factors": dict(zip(effects, factors, strict=False)),
        "effects": effects,
        "norms": norms(lab, raw) if of == "unit" else {},
    }


def noises(count: int) -> Tensor:
    """As *Calibrate LoRA* makes them, of seeds 0, 1, …"""
    made = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return torch.cat([torch.randn(1, CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=one) for one in made])


@torch.no_grad()
def predicted(lab: Lab, changes: Changes, strength: float, noisy: Tensor, sigma: float) -> Tensor:
    weights = lab.demo.weights
    changed = {f"{name}.weight": weights[f"{name}.weight"] + strength * change for name, change in changes.items()}
    lab.demo.wan.load_state_dict({**weights, **changed})
    return denoise(lab.demo.wan, noisy, torch.full((len(noisy),), sigma))


def on_the_way(lab: Lab, noise: float, samples: int) -> Tensor:
    """Where the model is on its own way from noise to a picture."""
    x, way = noises(samples), way_to(noise)
    for now, then in itertools.pairwise(way):
        x = x + (then - now) * predicted(lab, {}, 0.0, x, now)
    return x


def meter(lab: Lab, lora: difflora.Lora, noise: float = NOISE, samples: int = SAMPLES) -> Callable[[float], float]:
    """The change of the prediction at ± a strength, as *Calibrate LoRA* measures it by prediction."""
    changes, start = dense_changes(lora), on_the_way(lab, noise, samples)
    plain = predicted(lab, {}, 0.0, start, noise)
    return lambda strength: prediction_change(
        plain, *(predicted(lab, changes, sign * strength, start, noise) for sign in (1, -1))
    )


def norms(lab: Lab, lora: difflora.Lora) -> dict[str, float]:
    """Sizes of a slider that need no rendering: of its weights, and of what the model makes of them."""
    changes, weights, wan = dense_changes(lora), lab.demo.weights, lab.demo.wan

    def mean(kind: Callable[[Tensor], Tensor], part: str = "") -> float:
        return float(np.mean([float(kind(change)) for name, change in changes.items() if part in name]))

    frobenius = torch.linalg.matrix_norm
    spectral, nuclear = (partial(torch.linalg.matrix_norm, ord=order) for order in (2, "nuc"))
    shares = [float(frobenius(change) / frobenius(weights[f"{name}.weight"])) for name, change in changes.items()]
    pairs = demo_pairs(lab.demo, 16)
    pictures = torch.stack([*pairs.a[:8], *pairs.b[:8]])
    noise = noises(len(pictures))

    def moved(noisy: Tensor, sigma: float) -> float:
        return prediction_change(*(predicted(lab, changes, strength, noisy, sigma) for strength in (0.0, 1.0, -1.0)))

    outputs: dict[str, float] = {}

    def look(module: torch.nn.Module, given: tuple[Tensor, ...], name: str) -> None:
        plain, change = (given[0] @ matrix.T for matrix in (weights[f"{name}.weight"], changes[name]))
        if plain.any():  # the demo's text is all zeros
            outputs[name] = float(change.norm() / plain.norm())

    hooks = [wan.get_submodule(name).register_forward_pre_hook(partial(look, name=name)) for name in changes]
    predicted(lab, {}, 0.0, pictures * 0.05 + noise * 0.95, 0.95)
    for hook in hooks:
        hook.remove()
    return {
        "mean Frobenius norm (*Calibrate LoRA*)": mean(frobenius),
        "mean spectral norm": mean(spectral),
        "mean nuclear norm": mean(nuclear),
        "mean Frobenius norm divided by that of the weight": float(np.mean(shares)),
        "mean Frobenius norm, self-attention only": mean(frobenius, "self_attn"),
        "mean Frobenius norm, cross-attention only": mean(frobenius, "cross_attn"),
        "mean Frobenius norm, `cross_attn.o` only": mean(frobenius, "cross_attn.o"),
        "change of the layers' outputs, relative to the outputs, noise 0.95": float(np.mean(list(outputs.values()))),
        **{
            f"change of the prediction on pictures with noise, noise {sigma:g}": moved(
                pictures * (1 - sigma) + noise * sigma, sigma
            )
            for sigma in (0.9, 0.75)
        },
        **{
            f"change of the prediction on the model's own way, noise {sigma:g}": moved(
                on_the_way(lab, sigma, len(noise)), sigma
            )
            for sigma in (1.0, 0.9, 0.85, 0.75, 0.6)
        },
    }


def unit_table(parts: list[dict[str, Any]]) -> list[str]:
    effects = [part["effects"] for part in parts]
    measures = list(effects[0]["as trained"])
    lines = [
        f"| size | {' | '.join(part['name'] for part in parts)} | "
        f"{' | '.join(f'spread, {SHOWN[measured]}' for measured in measures)} |",
        "|---" + "|---:" * (len(parts) + len(measures)) + "|",
    ]
    for by in effects[0]:
        values = {measured: np.array([effect[by][measured] for effect in effects]) for measured in measures}
        cells = [f"{value:.1f}" for value in values[measures[0]]]
        cells += [f"{float(value.std() / abs(value.mean())):.2f}" for value in values.values()]
        lines.append(f"| {by} | {' | '.join(cells)} |")
    if parts[0]["norms"]:
        lines += ["", "| size | spread, things | spread, edge density |", "|---|---:|---:|"]
    for norm in parts[0]["norms"]:
        lines.append(f"| {norm} | " + " | ".join(f"{norm_spread(parts, norm, of):.2f}" for of in CHANGE) + " |")
    return lines


def norm_spread(parts: list[dict[str, Any]], norm: str, measured: str) -> float:
    """Spread of the effect at ±1 if all sliders had one norm, at which they change it by `CHANGE` on average.

    Nothing is rendered for it: effects are interpolated between those at the sizes that were.
    """
    sizes = np.array([part["norms"][norm] for part in parts])

    def effects(unit: float) -> np.ndarray:
        found = []
        for part, size in zip(parts, sizes, strict=True):
            # By what ±1 of the slider as trained was multiplied.
            seen = {0.0: 0.0} | {factor: part["effects"][by][measured] for by, factor in part["factors"].items()}
            at = sorted(seen)
            slope = (seen[at[-1]] - seen[at[-2]]) / (at[-1] - at[-2])
            factor = unit / size
            inside = float(np.interp(factor, at, [seen[one] for one in at]))
            found.append(inside + slope * max(0.0, factor - at[-1]))
        return np.array(found)

    units = np.geomspace(0.05, 20, 400) * np.exp(np.log(sizes).mean())
    best = min((effects(unit) for unit in units), key=lambda found: abs(found.mean() - CHANGE[measured]))
    return float(best.std() / best.mean())


# --- Two sliders together ------------------------------------------------------------------------------------


def together_part(lab: Lab, seed: int) -> dict[str, list[dict[str, float]]]:
    """Density, and a tint whose pairs also held more things: every combination of −2, 0 and +2 of both."""
    first, second = lab.sized("clean", seed), lab.sized("green, some things", seed + ANOTHER)
    found = {}
    for name, sliders in {
        "as trained": (first, second),
        "independent, top 2": tuple(difflora.independent([first, second], 2)),
        "independent, top 4": tuple(difflora.independent([first, second], 4)),
    }.items():
        found[name] = []
        for one in (-2, 0, 2):
            for other in (-2, 0, 2):
                both = CombinedLora([(float(one), sliders[0]), (float(other), sliders[1])])
                pictures = lab.pictures(dense_changes(both) if one or other else {}, 1.0 if one or other else 0.0)
                found[name].append({"first": one, "second": other, **lab.row(pictures)})
    return found


def together_table(parts: list[dict[str, list[dict[str, float]]]]) -> list[str]:
    lines = [
        "| sliders | density changes things by | tint changes things by | cross-effect | tint changes the tint by | density changes the "
        "tint by | other background |",
        "|---" + "|---:" * 6 + "|",
    ]

    def effect(rows: list[dict[str, float]], slider: str, measured: str) -> float:
        """From −2 to +2 of one slider, averaged over the other's strengths."""
        sides = [np.mean([row[measured] for row in rows if row[slider] == at]) for at in (2, -2)]
        return float(sides[0] - sides[1])

    for name in parts[0]:
        numbers = [
            (
                effect(part[name], "first", "things"), effect(part[name], "second", "things"),
                abs(effect(part[name], "second", "things") / effect(part[name], "first", "things")),
                effect(part[name], "second", "tint"), effect(part[name], "first", "tint"),
                float(np.mean([row["other_background"] for row in part[name] if row["first"] or row["second"]])),
            )
            for part in parts
        ]  # fmt: skip
        own, cross, share, colour, back, other = np.mean(numbers, axis=0)
        single = ", ".join(f"{100 * part[2]:.0f}" for part in numbers)
        lines.append(
            f"| {name} | {own:.1f} | {cross:+.1f} | {share:.0%} ({single}) | {colour:.0f} | {back:+.0f} | {other:.0%} |"
        )
    return lines


# --- All -----------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Lab, int], Any], Callable[[list[Any]], list[str]], str]] = {
    "tint": (tint_part, tint_table, "A tint taken out"),
    "unit": (partial(unit_part, of="unit"), unit_table, "±1 as a unit"),
    "others": (partial(unit_part, of="others"), unit_table, "±1 as a unit, eight others"),
    "tints": (partial(unit_part, of="tints"), unit_table, "±1 as a unit, eight tints"),
    "together": (together_part, together_table, "Two sliders together"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Purify, Calibrate and Independent Sliders on the demo.")
    add_comfyui_arguments(parser)
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--output", type=Path, default=Path("output/purity"))
    parser.add_argument("--tables", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--pairs", type=int, default=126)
    parser.add_argument("--training-seeds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=16, help="pictures for each strength")
    parser.add_argument("--calibration-seeds", type=int, default=32, help="those that ±1 is set on by response")
    parser.add_argument("--steps", type=int, default=6, help="sampling steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import_comfyui(options.comfyui)
    torch.set_num_threads(options.threads)
    parts = options.output / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in options.models.rglob("*.safetensors"))
    common = {"models": hashes, "seeds": options.seeds, "steps": options.steps, "pairs": options.pairs}
    lab: Lab | None = None
    text: list[str] = []
    for table in options.tables:
        part_of, lines_of, title = PARTS[table]
        key: dict[str, Any] = common
        if table in SETS:
            key = common | {"calibration seeds": options.calibration_seeds, "prediction": [SHARE, NOISE, SAMPLES]}
        found = []
        for number in range(len(SETS[table].ways) if table in SETS else options.training_seeds):
            name = hashlib.sha256(json.dumps([table, number, key]).encode()).hexdigest()[:12]
            part = parts / f"{table}_{name}.json"
            if not part.is_file():
                lab = lab or Lab(options)
                part.write_text(json.dumps(part_of(lab, number)), encoding="utf-8")
                print(table, number, flush=True)
            found.append(json.loads(part.read_text(encoding="utf-8")))
        lines = lines_of(found)
        print("\n".join(lines), flush=True)
        text += [f"## {title}", *lines, ""]
    text.append(
        f"{options.seeds} pictures for each strength, {options.steps} sampling steps, {options.pairs} pairs; means over "
        f"{options.training_seeds} training seeds, single ones in brackets."
    )
    (options.output / "purity.md").write_text("\n".join([*text, ""]), encoding="utf-8")
    print(f"wrote purity.md to {options.output}")


if __name__ == "__main__":
    main()
