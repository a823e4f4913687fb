"""Measures what a slider does under a Slider Map: a mask, a ramp over the frames of a clip, and windows of the steps.

    COMFYUI_DIR=/path/to/ComfyUI python demo/evaluate_map.py --output output

The slider is the demo's: difference, attention, rank 4. Strengths, passes and mixtures come from the library that the nodes
use. Every number compares with the same seeds without a map. Writes `map.md`, `mask.jpg` and `ramp.jpg`.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from evaluate import Demo, dense_changes, pick_rows, to_pixels
from PIL import Image, ImageDraw, ImageFont
from scenes import SIZE, background_class, thing_pixels
from scipy import ndimage
from torch import Tensor
from train import (
    CHANNELS,
    HERE,
    LATENT_SIZE,
    SHIFT,
    TEXT_WIDTH,
    add_comfyui_arguments,
    import_comfyui,
    model_file,
    shifted,
)

sys.path.insert(0, str(HERE.parent))
import difflora  # noqa: E402  (found through the line above)
from difflora.steering.curve import Curve  # noqa: E402
from difflora.steering.passes import Passes  # noqa: E402
from difflora.steering.schedule import flow_percent  # noqa: E402
from difflora.steering.slider_map import SliderMap  # noqa: E402

STRIDE = 4
LATENT_FRAMES = 5
SMALLEST = 20  # pixels of a thing
SEAM = SIZE // 2


class Sampler:
    """The demo's model with its slider at any strength, sampled as ComfyUI's KSampler does (euler, simple, cfg 1)."""

    def __init__(self, demo: Demo, slider: dict[str, Tensor], steps: int) -> None:
        self.demo, self.steps = demo, steps
        self.layers = [(dict(demo.wan.named_modules())[name], change) for name, change in slider.items()]
        self.plain = [layer.weight.detach().clone() for layer, _ in self.layers]
        self.passes = 0

    def at(self, strength: float) -> None:
        for (layer, change), weight in zip(self.layers, self.plain, strict=True):
            layer.weight.copy_(weight + strength * change)

    @torch.no_grad()
    def pictures(self, slider_map: SliderMap, strength: float, outside: float, noise: Tensor) -> np.ndarray:
        """Pictures (seeds, frames, SIZE, SIZE, 3) uint8 from noise (seeds, channels, frames, height, width)."""
        x = noise
        field = slider_map.field(*x.shape[2:], STRIDE)
        times = shifted(torch.tensor([(1000 - int(i * 1000 / self.steps)) / 1000 for i in range(self.steps)] + [0.0]))
        self.passes = 0
        context = x.new_zeros(len(x), 1, TEXT_WIDTH)
        for now, then in zip(times[:-1], times[1:], strict=True):
            passes = Passes.of(field, slider_map.steps.at(flow_percent(float(now), SHIFT)), strength, outside)
            predictions = []
            for one in passes.strengths:
                self.at(one)
                predictions.append(self.demo.wan(x, now.expand(len(x)) * 1000, context))
            self.passes += len(predictions)
            x = x + (then - now) * passes.mix(predictions)
        # One latent frame at a time: the demo's VAE has learnt pictures, not clips.
        frames = [to_pixels(self.demo.decode(x[:, :, index])) for index in range(x.shape[2])]
        return np.stack(frames, axis=1)


def noise(seeds: range, frames: int = 1, same: bool = False) -> Tensor:
    """(seeds, channels, frames, height, width). same: every frame has that of the first."""
    drawn = [
        torch.randn(1, CHANNELS, frames, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    if same:
        drawn = [one[:, :, :1].expand_as(one) for one in drawn]
    return torch.cat(drawn)


# --- Measures ------------------------------------------------------------------------------------------------


def things(pictures: np.ndarray, place: np.ndarray | None = None) -> float:
    """Things a picture, of those whose centre lies in `place` (SIZE, SIZE) bool. pictures (..., SIZE, SIZE, 3)."""
    flat = pictures.reshape(-1, SIZE, SIZE, 3)
    total = 0
    for mask in thing_pixels(flat):
        labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
        large = [n for n in range(1, found + 1) if (labels == n).sum() >= SMALLEST]
        centres = ndimage.center_of_mass(mask, labels, large) if large else []
        total += sum(place is None or bool(place[round(y), round(x)]) for y, x in centres)
    return total / len(flat)


def drift(pictures: np.ndarray, plain: np.ndarray, place: np.ndarray) -> float:
    """Mean change (0 to 255) of the pixels in `place` that show no thing in either."""
    changed = np.abs(pictures.astype(np.float32) - plain).mean(-1)
    ground = ~thing_pixels(pictures) & ~thing_pixels(plain) & place
    return float(changed[ground].mean())


def other_background(pictures: np.ndarray, plain: np.ndarray) -> float:
    pairs = zip(pictures.reshape(-1, SIZE, SIZE, 3), plain.reshape(-1, SIZE, SIZE, 3), strict=True)
    kinds = [[background_class(one, thing_pixels(one)) for one in pair] for pair in pairs]
    return float(np.mean([now != before for now, before in kinds]))


def seam(pictures: np.ndarray) -> float:
    """The jump between the two columns at the middle, as a multiple of that between ordinary columns."""
    jumps = np.abs(np.diff(pictures.astype(np.float32), axis=-2)).mean(axis=(0, 1, 2, 4))
    return float(jumps[SEAM - 1] / np.delete(jumps, SEAM - 1).mean())


def share(value: float, start: float, end: float) -> str:
    """How far a value is on the way from one to another; nothing where they are too close to say."""
    return "–" if abs(end - start) < 0.5 else f"{(value - start) / (end - start):.0%}"


# --- Experiments ---------------------------------------------------------------------------------------------


def level(steps: str = "") -> SliderMap:
    return SliderMap(Curve.parse(steps, "steps"), Curve.parse("", "frames"))


def masked(mask: np.ndarray, feather: int, steps: str = "") -> SliderMap:
    tensor = torch.from_numpy(mask.astype(np.float32))[None]
    return SliderMap(Curve.parse(steps, "steps"), Curve.parse("", "frames"), tensor, feather)


LEFT = np.zeros((SIZE, SIZE), bool)
LEFT[:, :SEAM] = True
# All but a square in the middle, which stands for somebody in front.
BACKGROUND = np.ones((SIZE, SIZE), bool)
BACKGROUND[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4] = False


def masks(sampler: Sampler, seeds: range) -> tuple[list[str], dict[str, np.ndarray]]:
    start = noise(seeds)
    plain = {strength: sampler.pictures(level(), strength, 0, start) for strength in (-3.0, 0.0, 3.0)}
    base = plain[0.0]
    lines = [
        "| mask | strength, outside | feather | passes | things inside | outside | effect kept inside | leaked outside | "
        "background drift outside | other background | seam |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    shown = {"base": base, "+3 everywhere": plain[3.0]}

    def row(name: str, mask: np.ndarray, strength: float, outside: float, feather: int | None) -> None:
        if feather is None:
            got, passes = plain[strength], sampler.steps
        else:
            got = sampler.pictures(masked(mask, feather), strength, outside, start)
            passes = sampler.passes
            if feather == 1:
                shown[f"{name}: {strength:+g}, {outside:+g} outside" if outside else f"{name}: {strength:+g}"] = got
        inside, without = things(got, mask), things(got, ~mask)
        kept = share(inside, things(base, mask), things(plain[strength], mask))
        # What reaches the outside of the other strength: all of it would be the plain slider there.
        leaked = share(without, things(plain[outside], ~mask), things(plain[strength], ~mask))
        lines.append(
            f"| {name if feather is not None else 'none'} | {strength:+g}, {outside:g} | "
            f"{'–' if feather is None else feather} | {passes / sampler.steps:g} × | {inside:.1f} | {without:.1f} | "
            f"{kept if strength else '–'} | {leaked if feather is not None else '–'} | "
            f"{drift(got, base, ~mask):.1f} | {other_background(got, base):.0%} | "
            f"{f'{seam(got):.2f}' if mask is LEFT else '–'} |"
        )

    for strength in (0.0, 3.0, -3.0):
        row("left half", LEFT, strength, 0.0, None)
    for feather in (0, 1, 2, 4):
        row("left half", LEFT, 3.0, 0.0, feather)
    for strength, outside in ((-3.0, 0.0), (3.0, -3.0), (-3.0, 3.0)):
        row("left half", LEFT, strength, outside, 1)
    for strength in (3.0, -3.0):
        row("background", BACKGROUND, strength, 0.0, 1)
    return lines, shown


def ramps(sampler: Sampler, seeds: range) -> tuple[list[str], dict[str, np.ndarray]]:
    lines = [
        "| noise | curve over the frames | passes | " + " | ".join(f"frame {n + 1}" for n in range(LATENT_FRAMES)),
        "|---|---|---:|" + "---:|" * (LATENT_FRAMES + 2),
    ]
    lines[0] += " | span kept | background drift, frame to frame |"
    shown = {}
    whole = np.ones((SIZE, SIZE), bool)
    for same in (False, True):
        start = noise(seeds, LATENT_FRAMES, same)

        def row(name: str, got: np.ndarray, kept: str, same: bool = same) -> None:
            counts = [things(got[:, index]) for index in range(LATENT_FRAMES)]
            cells = " | ".join(f"{count:.1f}" for count in counts)
            between = drift(got[:, 1:], got[:, :-1], whole)
            lines.append(
                f"| {'the same' if same else 'its own'} | {name} | {sampler.passes / sampler.steps:g} × | {cells} | {kept} | "
                f"{between:.1f} |"
            )

        for strength in (-3.0, 0.0, 3.0):
            row(f"none: {strength:+g} everywhere", sampler.pictures(level(), strength, 0, start), "–")
        for name, text in (("ramp, 0:0, 100:1", "0:0, 100:1"), ("jump, 50:0, 50:1", "50:0, 50:1")):
            over_frames = SliderMap(Curve.parse("", "steps"), Curve.parse(text, "frames"))
            weights = over_frames.field(LATENT_FRAMES, 1, 1, STRIDE).flatten()
            got = sampler.pictures(over_frames, 3.0, -3.0, start)
            passes = sampler.passes
            ends = [float(-3 + 6 * weights[index]) for index in (0, -1)]
            first, last = (
                things(sampler.pictures(level(), strength, 0, start)[:, index])
                for strength, index in zip(ends, (0, -1), strict=True)
            )
            sampler.passes = passes
            span = things(got[:, -1]) - things(got[:, 0])
            row(f"{name} from −3 to +3", got, f"{span / (last - first):.0%}")
            shown[f"{'same noise' if same else 'own noise'}: {name.split(',')[0]}"] = got
    return lines, shown


WINDOWS = {
    "all steps": "", "10 to 100 %": "10:0, 10:1", "20 to 100 %": "20:0, 20:1", "30 to 100 %": "30:0, 30:1",
    "40 to 100 %": "40:0, 40:1", "50 to 100 %": "50:0, 50:1", "0 to 30 %": "30:1, 30:0", "0 to 60 %": "60:1, 60:0",
}  # fmt: skip


def windows(sampler: Sampler, seeds: range) -> list[str]:
    start = noise(seeds)
    whole = np.ones((SIZE, SIZE), bool)
    base = sampler.pictures(level(), 0.0, 0, start)
    plain = {s: things(sampler.pictures(level(), s, 0, start)) for s in (3.0, -3.0)}
    lines = [
        "| slider acts in | strength | things | effect kept | background drift | other background |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for strength in (3.0, -3.0):
        rows = [(name, strength, text) for name, text in WINDOWS.items()]
        rows += [("all steps", weaker, "") for weaker in (strength * 5 / 6, strength * 2 / 3, strength / 2)]
        for name, used, text in rows:
            got = sampler.pictures(level(text), used, 0, start)
            count = things(got)
            lines.append(
                f"| {name} | {used:+.3g} | {count:.1f} | {share(count, things(base), plain[strength])} | "
                f"{drift(got, base, whole):.1f} | {other_background(got, base):.0%} |"
            )
    return lines


# --- Output --------------------------------------------------------------------------------------------------


def sheet(path: Path, columns: dict[str, np.ndarray], rows: list[int], frames: bool) -> None:
    """One column a variant, one row a seed; with `frames`, one column a frame and one row a variant."""
    edge, top, gap, font = SIZE * 3 // 2, 40, 4, ImageFont.load_default(15)
    if frames:
        tiles = [(name, list(pictures[seed])) for name, pictures in columns.items() for seed in rows]
        width, height = LATENT_FRAMES, len(tiles)
    else:
        tiles = [(name, [pictures[seed, 0] for seed in rows]) for name, pictures in columns.items()]
        width, height = len(tiles), len(rows)
    image = Image.new(
        "RGB", (width * (edge + gap) + gap, (top if not frames else 0) + height * (edge + gap) + gap), "white"
    )
    brush = ImageDraw.Draw(image)
    for index, (name, pictures) in enumerate(tiles):
        for other, picture in enumerate(pictures):
            x, y = (other, index) if frames else (index, other)
            tile = Image.fromarray(picture).resize((edge, edge), Image.Resampling.LANCZOS)
            image.paste(tile, (gap + x * (edge + gap), (0 if frames else top) + gap + y * (edge + gap)))
        if not frames:
            centre = gap + index * (edge + gap) + edge / 2
            for number, part in enumerate(name.split(": ")):
                brush.text((centre, 11 + 18 * number), part, fill="black", font=font, anchor="mm")
    image.save(path, quality=88)


@contextmanager
def timed(notes: list[str], name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    notes.append(f"{name} {(time.process_time() - began) / 60:.1f} minutes")
    print(notes[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo's slider under a Slider Map.")
    add_comfyui_arguments(parser)
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    import_comfyui(settings.comfyui)
    torch.set_num_threads(settings.threads)
    settings.output.mkdir(parents=True, exist_ok=True)
    seeds = range(settings.seeds)
    demo = Demo(settings.models, seeds, settings.steps)
    pair = [difflora.load(model_file(settings.models, name)) for name in ("dense", "sparse")]
    lora = difflora.rerank(difflora.subtract(*pair).select("attn"), difflora.FixedRank(4))
    sampler = Sampler(demo, dict(dense_changes(lora)), settings.steps)
    taken: list[str] = []
    with timed(taken, "masks"):
        over_places, pictures = masks(sampler, seeds)
    rows = pick_rows(pictures["base"][:, 0])
    sheet(settings.output / "mask.jpg", pictures, rows, frames=False)
    with timed(taken, "windows"):
        over_steps = windows(sampler, seeds)
    with timed(taken, "ramps"):
        over_frames, clips = ramps(sampler, seeds)
    sheet(
        settings.output / "ramp.jpg",
        {name: clip for name, clip in clips.items() if name.startswith("same")},
        rows[:2],
        True,
    )
    notes = f"{settings.seeds} seeds, {settings.steps} steps; processor time: {', '.join(taken)}."
    text = "\n\n".join("\n".join(lines) for lines in (over_places, over_frames, over_steps))
    text = re.sub(r"\+0(?=[ ,])", "0", re.sub(r"(?<=[ |])-(?=\d)", "−", text))
    (settings.output / "map.md").write_text(f"{text}\n\n{notes}\n", encoding="utf-8")
    print(f"wrote map.md, mask.jpg and ramp.jpg to {settings.output}")


if __name__ == "__main__":
    main()
