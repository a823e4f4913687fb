"""Measures what the slider does, against the other ways to make one.

    COMFYUI_DIR=/path/to/ComfyUI python demo/evaluate.py --output output

The same seeds for every variant, 13 strengths from -3 to +3, pictures made as ComfyUI makes them. Writes
`evaluation.md`, `evaluation.csv` (every strength of every variant), `sweep.jpg` and `response.png`. What is
already in `parts` for the same models and settings is not computed again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from scenes import MOST, SIZE, THING_COLOURS, background_class, count_things, draw, random_scene, thing_pixels
from scipy.stats import spearmanr
from torch import Tensor
from train import HERE, add_comfyui_arguments, as_input, import_comfyui, model_file, new_vae, new_wan, sample

sys.path.insert(0, str(HERE.parent))
import difflora  # noqa: E402  (found through the line above)

STRENGTHS = [x / 2 for x in range(-6, 7)]
ENOUGH_THINGS = 0.005  # share of all pixels, about one thing a picture: the colours of fewer say nothing
Changes = Mapping[str, Tensor]


@dataclass
class Variant:
    """One way to make a slider: how every weight changes at strength 1."""

    name: str
    changes: Changes
    numbers: list[dict[str, float]] = field(default_factory=list)
    """One row a strength."""
    counts: list[list[int]] = field(default_factory=list)
    """Things counted: one list a strength, one number a seed."""

    @property
    def summary(self) -> dict[str, float]:
        return summarise(self.numbers, np.array(self.counts))


class Demo:
    """The demo's models, ready to sample from."""

    def __init__(self, models: Path, seeds: range, steps: int) -> None:
        from comfy.latent_formats import Wan21

        self.seeds, self.steps, self.latent_format = seeds, steps, Wan21()
        self.wan, self.vae = new_wan(), new_vae()
        for model, name in ((self.wan, "wan"), (self.vae, "vae")):
            model.load_state_dict(load_file(model_file(models, name)))
            model.eval().requires_grad_(False)
        self.weights = {name: tensor.clone() for name, tensor in self.wan.state_dict().items()}

    def pictures(self, changes: Changes, strength: float) -> np.ndarray:
        """Pictures (seeds, SIZE, SIZE, 3) uint8 of the base model changed by `strength * changes`."""
        weights = dict(self.weights)
        for name, change in changes.items():
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + strength * change
        self.wan.load_state_dict(weights)
        return to_pixels(self.decode(sample(self.wan, self.seeds, self.steps)))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decoder(self.vae.conv2(self.latent_format.process_out(latents.unsqueeze(2)))).squeeze(2)

    @torch.no_grad()
    def redraw(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures through the VAE and back."""
        code = self.vae.conv1(self.vae.encoder(as_input(torch.from_numpy(pictures).permute(0, 3, 1, 2))))[:, :16]
        return to_pixels(self.vae.decoder(self.vae.conv2(code)).squeeze(2))


def to_pixels(pictures: Tensor) -> np.ndarray:
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def dense_changes(lora: difflora.Lora) -> Changes:
    return {name: lora[name].dense() for name in lora.matrices}


def factor_wise(a: difflora.Lora, b: difflora.Lora) -> Changes:
    """What subtracting the files' tensors one by one gives: a common mistake."""
    return {name: (a[name].up - b[name].up) @ (a[name].down - b[name].down) for name in a.matrices}


def variants(models: Path) -> list[Variant]:
    a, b = (difflora.load(model_file(models, name)) for name in ("dense", "sparse"))
    difference = difflora.subtract(a, b)
    attention = difference.select("attn")

    def ranked(lora: difflora.Lora, rank: int) -> Changes:
        return dense_changes(difflora.rerank(lora, difflora.FixedRank(rank)))

    return [
        Variant("difference, attn, rank 4", ranked(attention, 4)),
        *(Variant(f"difference, attn, rank {rank}", ranked(attention, rank)) for rank in (1, 2, 8, 16)),
        Variant("difference, attn, lossless", dense_changes(attention)),
        Variant("difference, ffn, rank 4", ranked(difference.select("ffn"), 4)),
        Variant("difference, all, rank 4", ranked(difference, 4)),
        Variant("difference, all, lossless = dense at +s and sparse at −s", dense_changes(difference)),
        Variant("difference, early blocks (0-1), attn, rank 4", ranked(difference.select("blocks 0-1 & attn"), 4)),
        Variant("difference, middle blocks (2-3), attn, rank 4", ranked(difference.select("blocks 2-3 & attn"), 4)),
        Variant("difference, late blocks (4-5), attn, rank 4", ranked(difference.select("blocks 4-5 & attn"), 4)),
        Variant("dense LoRA alone, all", dense_changes(a)),
        Variant("dense LoRA alone, attn", dense_changes(a.select("attn"))),
        Variant("factors subtracted one by one, all", factor_wise(a, b)),
    ]


# --- Measures ------------------------------------------------------------------------------------------------


def measure(pictures: np.ndarray, plain: np.ndarray) -> tuple[dict[str, float], list[int]]:
    """Measures of pictures (seeds, SIZE, SIZE, 3) against those at strength 0, and the count of every seed."""
    masks, plain_masks = thing_pixels(pictures), thing_pixels(plain)
    counts = [count_things(mask) for mask in masks]
    classes = [
        (background_class(p, m), background_class(q, n))
        for p, m, q, n in zip(pictures, masks, plain, plain_masks, strict=True)
    ]
    both = ~masks & ~plain_masks
    drift = np.abs(pictures.astype(np.float32) - plain).mean(-1)
    return {
        "things": float(np.mean(counts)),
        "thing_pixels": float(masks.mean()),
        "other_background": float(np.mean([now != before for now, before in classes])),
        "background_drift": float(
            np.mean([d[b].mean() if b.any() else np.nan for d, b in zip(drift, both, strict=True)])
        ),
        "palette_drift": float(np.abs(palette(pictures, masks) - palette(plain, plain_masks)).sum() / 2),
    }, counts


def palette(pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """How the pixels of all things share the colours that things have: (6,), sums to 1. NaN where there are hardly any things."""
    if masks.mean() < ENOUGH_THINGS:
        return np.full(len(THING_COLOURS), np.nan)
    pixels = pictures[masks].astype(np.float32)
    nearest = np.square(pixels[:, None] - THING_COLOURS).sum(-1).argmin(-1)
    return np.bincount(nearest, minlength=len(THING_COLOURS)) / len(nearest)


def rank_correlation(values: np.ndarray) -> float:
    """Spearman of strength against values (13,); 0 if they never change."""
    return 0.0 if np.ptp(values) == 0 else float(spearmanr(STRENGTHS, values).statistic)


def summarise(rows: list[dict[str, float]], counts: np.ndarray) -> dict[str, float]:
    """counts (strengths, seeds)."""
    means = np.array([row["things"] for row in rows])
    rise = means[-1] - means[0]
    third = [means[i + 4] - means[i] for i in (0, 4, 8)]
    return {
        "low": means[0],
        "middle": means[6],
        "high": means[-1],
        "spearman": rank_correlation(means),
        "seed_spearman": float(np.median([rank_correlation(seed) for seed in counts.T])),
        "pixel_spearman": rank_correlation(np.array([row["thing_pixels"] for row in rows])),
        **{f"third_{i}": t / rise if abs(rise) > 0.5 else math.nan for i, t in enumerate(third, 1)},
        **{
            name: float(np.nanmean([row[name] for row in rows if row["strength"] != 0]))
            for name in ("other_background", "background_drift", "palette_drift")
        },
    }


def check_counting(demo: Demo) -> str:
    """How far the counting can be trusted: on drawn scenes, as drawn and as the VAE shows them."""
    scenes = [random_scene(seed) for seed in range(700_000, 700_128)]
    truth = np.array([len(s.things) for s in scenes])
    drawn = np.stack([draw(s)[0] for s in scenes])
    lines = []
    for name, pictures in (("as drawn", drawn), ("through the VAE", demo.redraw(drawn))):
        masks = thing_pixels(pictures)
        counts = np.array([count_things(mask) for mask in masks])
        right = np.mean(
            [background_class(p, m) == s.background for p, m, s in zip(pictures, masks, scenes, strict=True)]
        )
        lines.append(
            f"{name}: mean error {np.abs(counts - truth).mean():.2f} things, "
            f"correlation {np.corrcoef(counts, truth)[0, 1]:.3f}, background right {right:.0%}"
        )
    return f"Counting, checked on {len(scenes)} drawn scenes of 0 to {MOST} things: " + "; ".join(lines) + "."


# --- Output --------------------------------------------------------------------------------------------------

COLUMNS = {
    "low": "things at −3", "middle": "at 0", "high": "at +3", "spearman": "Spearman, means", "seed_spearman": "median seed",
    "pixel_spearman": "pixel share", "third_1": "−3…−1", "third_2": "−1…+1", "third_3": "+1…+3",
    "other_background": "other background", "background_drift": "background drift", "palette_drift": "palette drift",
}  # fmt: skip
PERCENT = ("third_1", "third_2", "third_3", "other_background")


def cell(name: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    if name in PERCENT:
        return f"{value:.0%}"
    return f"{value:.1f}" if name in ("low", "middle", "high", "background_drift") else f"{value:.2f}"


def write_table(path: Path, done: list[Variant], notes: list[str]) -> None:
    lines = [f"| slider | {' | '.join(COLUMNS.values())} |", "|---" + "|---:" * len(COLUMNS) + "|"]
    lines += [f"| {v.name} | {' | '.join(cell(name, v.summary[name]) for name in COLUMNS)} |" for v in done]
    path.write_text("\n".join([*lines, "", *notes, ""]), encoding="utf-8")


def write_csv(path: Path, done: list[Variant]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["variant", *done[0].numbers[0]])
        writer.writeheader()
        for variant in done:
            writer.writerows(
                {"variant": variant.name, **{k: round(x, 4) for k, x in row.items()}} for row in variant.numbers
            )


def sweep_picture(path: Path, columns: list[tuple[float, np.ndarray]], rows: list[int]) -> None:
    """Strengths from left to right, one seed a row. columns: (strength, pictures)."""
    edge, top, gap = 2 * SIZE, 44, 4
    sheet = Image.new("RGB", (len(columns) * (edge + gap) + gap, top + len(rows) * (edge + gap)), "white")
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    for x, (strength, pictures) in enumerate(columns):
        left = gap + x * (edge + gap)
        brush.text(
            (left + edge / 2, top / 2), f"{strength:+g}" if strength else "0", fill="black", font=font, anchor="mm"
        )
        for y, seed in enumerate(rows):
            tile = Image.fromarray(pictures[seed]).resize((edge, edge), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left, top + y * (edge + gap)))
    sheet.save(path, quality=88)


def response_plot(path: Path, done: list[Variant], wanted: Sequence[str]) -> None:
    """Mean count against strength, one line a variant."""
    scale, width, height, left, bottom, right, top = 2, 720, 400, 60, 60, 20, 20
    image = Image.new("RGB", (width * scale, height * scale), "white")
    brush, font = ImageDraw.Draw(image), ImageFont.load_default(14 * scale)
    shown = [v for v in done if v.name in wanted]
    highest = 1.08 * max((row["things"] for v in shown for row in v.numbers), default=1)

    def at(strength: float, things: float) -> tuple[float, float]:
        x = left + (strength + 3) / 6 * (width - left - right)
        return x * scale, (height - bottom - things / highest * (height - bottom - top)) * scale

    for things in range(0, int(highest) + 1, 2):
        brush.line([at(-3, things), at(3, things)], fill="#dddddd", width=scale)
        x, y = at(-3, things)
        brush.text((x - 8 * scale, y), str(things), fill="black", font=font, anchor="rm")
    for strength in range(-3, 4):
        x, y = at(strength, 0)
        brush.text((x, y + 14 * scale), f"{strength:+d}" if strength else "0", fill="black", font=font, anchor="mm")
    brush.text((width * scale / 2, (height - 18) * scale), "strength", fill="black", font=font, anchor="mm")
    colours = ("#d62f34", "#1f77b4", "#7a52b3", "#2e8b57", "#8a8a8a")
    for number, (variant, colour) in enumerate(zip(shown, colours, strict=False)):
        points = [at(row["strength"], row["things"]) for row in variant.numbers]
        brush.line(points, fill=colour, width=(3 if number == 0 else 2) * scale, joint="curve")
        y = (top + 10 + 20 * number) * scale
        brush.line([(left + 12) * scale, y, (left + 36) * scale, y], fill=colour, width=3 * scale)
        brush.text(((left + 44) * scale, y), variant.name, fill="black", font=font, anchor="lm")
    brush.text(
        ((left + 12) * scale, (top + 10 + 20 * len(shown)) * scale),
        "counted things, mean of all seeds",
        fill="#555555",
        font=font,
        anchor="lm",
    )
    image.save(path, optimize=True)


def run(demo: Demo, variant: Variant, plain: np.ndarray) -> list[np.ndarray]:
    """Fill in a variant's numbers; returns the pictures of every strength."""
    columns = []
    for strength in STRENGTHS:
        pictures = plain if strength == 0 else demo.pictures(variant.changes, strength)
        numbers, counts = measure(pictures, plain)
        variant.numbers.append({"strength": strength, **numbers})
        variant.counts.append(counts)
        columns.append(pictures)
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo's slider.")
    add_comfyui_arguments(parser)
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="+", help="only these variants, by number from 0")
    settings = parser.parse_args()
    import_comfyui(settings.comfyui)
    torch.set_num_threads(settings.threads)
    parts = settings.output / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in settings.models.rglob("*.safetensors"))
    key = {"models": hashes, "seeds": settings.seeds, "steps": settings.steps}
    demo, plain, done, seconds = None, None, [], 0.0
    for number, variant in enumerate(variants(settings.models)):
        part = parts / f"{number}.json"
        kept = json.loads(part.read_text(encoding="utf-8")) if part.is_file() else {}
        if kept.get("key") != key or kept.get("name") != variant.name:
            if settings.only and number not in settings.only:
                continue
            began = time.process_time()
            if demo is None:
                demo = Demo(settings.models, range(settings.seeds), settings.steps)
                plain = demo.pictures({}, 0.0)
            columns = run(demo, variant, plain)
            if number == 0:
                pictures = [
                    (strength, p) for strength, p in zip(STRENGTHS, columns, strict=True) if strength == int(strength)
                ]
                sweep_picture(settings.output / "sweep.jpg", pictures, pick_rows(plain))
                (parts / "counting.txt").write_text(check_counting(demo), encoding="utf-8")
            kept = {"key": key, "name": variant.name, "numbers": variant.numbers, "counts": variant.counts,
                    "seconds": (time.process_time() - began) / 2}  # fmt: skip
            part.write_text(json.dumps(kept), encoding="utf-8")
        variant.numbers, variant.counts = kept["numbers"], kept["counts"]
        seconds += kept["seconds"]
        done.append(variant)
        print(
            f"{number:2} {variant.name}:",
            {name: round(value, 2) for name, value in variant.summary.items()},
            flush=True,
        )
    notes = [(parts / "counting.txt").read_text(encoding="utf-8")] if (parts / "counting.txt").is_file() else []
    notes.append(
        f"{settings.seeds} seeds, {len(STRENGTHS)} strengths, {settings.steps} steps; {seconds / 60:.1f} minutes on two cores."
    )
    write_table(settings.output / "evaluation.md", done, notes)
    write_csv(settings.output / "evaluation.csv", done)
    response_plot(settings.output / "response.png", done, PLOTTED)
    print(f"wrote evaluation.md, evaluation.csv, sweep.jpg, response.png to {settings.output}")


PLOTTED = (
    "difference, attn, rank 4",
    "difference, all, rank 4",
    "dense LoRA alone, all",
    "factors subtracted one by one, all",
)


def pick_rows(plain: np.ndarray) -> list[int]:
    """For the picture: the first seed of each background at strength 0."""
    classes = [background_class(p, m) for p, m in zip(plain, thing_pixels(plain), strict=True)]
    return sorted({name: seed for seed, name in reversed(list(enumerate(classes)))}.values())


if __name__ == "__main__":
    main()
