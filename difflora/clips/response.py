"""What a slider does to pictures, measured on the clips of a sweep.

Frames go in as (n, 3, height, width) float32, sRGB, 0…1. Luma is Rec. 709 of the sRGB values. kornia and scipy come with
ComfyUI; they are imported when something is measured.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UnsupportedError
from ..progress import Progress
from ..sentence import Sentence
from .store import StoredClip

# A step of a tenth between two pixels is an edge: Sobel's normalised filter gives half of a step on both its sides.
EDGE = 0.05
_LEVELS, _WINDOW = 16, 9  # of the local entropy: grey levels, and pixels
_FLOW_SIDE, _FLOW_LEVELS, _FLOW_WINDOW, _FLOW_STEPS = 320, 4, 11, 3
_SAME_PICTURE = 1e-7


@dataclass(frozen=True)
class Sweep:
    """Clips that differ only in strength.

    broken      strengths whose pictures were not finite, or black alone: they have no clip
    """

    strengths: tuple[float, ...]
    clips: tuple[StoredClip, ...]
    fps: float
    baseline: float
    broken: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measure:
    """How to print a measure: title, unit, and number of decimals."""

    title: str
    unit: str
    digits: int


MEASURES = {
    "edges": Measure(Sentence("edge density"), Sentence("% of pixels"), 2),
    "entropy": Measure(Sentence("local entropy"), Sentence("bits"), 3),
    "sharpness": Measure(Sentence("sharpness"), Sentence("variance of the Laplacian"), 1),
    "motion": Measure(Sentence("motion"), Sentence("pixels a frame"), 2),
    "brightness": Measure(Sentence("brightness"), "L*", 2),
    "saturation": Measure(Sentence("saturation"), "C*", 2),
    "a": Measure("green to red", "a*", 2),
    "b": Measure("blue to yellow", "b*", 2),
    "drift_a": Measure("colour drift, green to red", "a* from the baseline", 2),
    "drift_b": Measure("colour drift, blue to yellow", "b* from the baseline", 2),
    "colour_drift": Measure(Sentence("colour drift"), "ΔE in a*b* from the baseline", 2),
    "distance": Measure("distance", "ΔE from the baseline, pixel by pixel", 2),
}
TARGETS = ("edges", "entropy", "sharpness", "motion", "brightness", "saturation")


# One picture


def luma(frames: Tensor) -> Tensor:
    """(n, 1, height, width), 0…1."""
    weights = frames.new_tensor([0.2126, 0.7152, 0.0722])[None, :, None, None]
    return (frames * weights).sum(1, keepdim=True)


def edge_density(grey: Tensor) -> float:
    """Percent of the pixels at which luma changes by a tenth or more from one pixel to the next (Sobel)."""
    from kornia.filters import spatial_gradient

    slope = spatial_gradient(grey, "sobel", order=1, normalized=True)
    return 100 * float((slope.square().sum(2) >= (EDGE - 1e-6) ** 2).float().mean())


def local_entropy(grey: Tensor) -> float:
    """Shannon entropy of 16 grey levels in windows of 9 × 9 pixels, averaged: 0 bits for a flat picture, 4 at most."""
    level = (grey * _LEVELS).long().clamp_(0, _LEVELS - 1)
    total = torch.zeros(())
    for index in range(_LEVELS):
        share = F.avg_pool2d((level == index).float(), _WINDOW, stride=4)
        total = total - torch.special.xlogy(share, share)
    return float(total.mean()) / math.log(2)


def sharpness(grey: Tensor) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000) of luma in 0…255, averaged over the frames."""
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return float(F.conv2d(grey * 255, kernel).flatten(1).var(1).mean())


def motion(before: Tensor, after: Tensor) -> float:
    """Mean length of the optical flow, in pixels of the given picture, where there is enough texture to track.

    Lucas and Kanade (1981) on an image pyramid, from luma at most 320 pixels wide: right to a few percent up to about 30
    pixels of the original at 640.
    """
    factor = min(1.0, _FLOW_SIDE / max(before.shape[-2:]))
    if factor < 1:
        size = [max(16, round(side * factor)) for side in before.shape[-2:]]
        before, after = (F.interpolate(grey, size, mode="area") for grey in (before, after))
    flow, trust = optical_flow(before, after)
    return float((flow.square().sum(1).sqrt() * trust).sum() / trust.sum().clamp(min=1e-9)) / factor


def optical_flow(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel moves, (n, 2, height, width) as x and y in pixels, and 1 where that can be determined, else 0."""
    pyramid = [(before, after)]
    while len(pyramid) < _FLOW_LEVELS and min(pyramid[-1][0].shape[-2:]) >= 32:
        pyramid.append((F.avg_pool2d(pyramid[-1][0], 2), F.avg_pool2d(pyramid[-1][1], 2)))
    flow = torch.zeros(len(before), 2, *pyramid[-1][0].shape[-2:])
    trust = torch.zeros(())
    for one, other in reversed(pyramid):
        height, width = one.shape[-2:]
        if flow.shape[-2:] != one.shape[-2:]:
            flow = 2 * F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        padded = F.pad(one, (1, 1, 1, 1), mode="replicate")
        dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        xx, yy, xy = _box(dx * dx), _box(dy * dy), _box(dx * dy)
        smaller_eigenvalue = (xx + yy) / 2 - ((xx - yy).square() / 4 + xy.square()).sqrt()
        trust = (smaller_eigenvalue > 1e-5).float()[:, 0]
        determinant = (xx * yy - xy * xy).clamp(min=1e-9)
        for _ in range(_FLOW_STEPS):
            change = _moved(other, flow) - one
            ex, ey = _box(dx * change), _box(dy * change)
            step = torch.cat([xy * ey - yy * ex, xy * ex - xx * ey], 1) / determinant
            flow = flow + step.clamp(-1, 1) * trust[:, None]
    return flow, trust


def _box(picture: Tensor) -> Tensor:
    half = _FLOW_WINDOW // 2
    down = F.avg_pool2d(picture, (_FLOW_WINDOW, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(down, (1, _FLOW_WINDOW), 1, (0, half), count_include_pad=False)


def _moved(picture: Tensor, flow: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([(x + flow[:, 0]) * 2 / (width - 1) - 1, (y + flow[:, 1]) * 2 / (height - 1) - 1], -1)
    return F.grid_sample(picture, at, mode="bilinear", padding_mode="border", align_corners=True)


def cielab(frames: Tensor) -> Tensor:
    """CIELAB (D65) of every second pixel of every second row: L* 0…100, a* and b* in the same unit."""
    from kornia.color import rgb_to_lab

    lab: Tensor = rgb_to_lab(frames[..., ::2, ::2])
    return lab


# One clip


@dataclass(frozen=True)
class ClipNumbers:
    """The measures of one clip that need no other clip, and its colours to compare others with."""

    values: dict[str, float]
    colours: Tensor = field(repr=False)  # (moments, 3, height / 2, width / 2)


def moments_of(frames: int, wanted: int) -> list[int]:
    """Frame numbers spread evenly over a clip, none of them the last frame unless the clip has only one."""
    last = max(0, frames - 2)
    return sorted({round(last * index / max(1, wanted - 1)) for index in range(wanted)})


def measure_clip(clip: StoredClip, moments: int, tick: Callable[[], None] = lambda: None) -> ClipNumbers:
    """Measure a clip at some evenly spread moments. Motion is measured from each frame to the next.

    tick    called between the steps of this; may raise to cancel
    """
    numbers = moments_of(clip.about.frames, moments)
    needed = {number + step for number in numbers for step in (0, 1) if number + step < clip.about.frames}
    read = {}
    for number, frame in zip(sorted(needed), clip.frames(needed), strict=True):
        read[number] = frame
        tick()
    following = [read[number + 1] for number in numbers if number + 1 in read]
    return measure_frames(
        _tensor([read[number] for number in numbers]), _tensor(following) if following else None, tick
    )


def measure_frames(
    frames: Tensor, following: Tensor | None = None, tick: Callable[[], None] = lambda: None
) -> ClipNumbers:
    """All measures of some frames. following: the frame after each; single pictures have none, and no motion."""
    grey = luma(frames)
    colours = cielab(frames)
    mean = colours.mean((0, 2, 3))

    def mean_of(measure: Callable[[Tensor], float]) -> float:
        total = 0.0
        for number in range(len(grey)):
            tick()
            total += measure(grey[number : number + 1])
        return total / len(grey)

    values = {
        "edges": mean_of(edge_density),
        "entropy": mean_of(local_entropy),
        "sharpness": mean_of(sharpness),
        "brightness": float(mean[0]),
        "saturation": float(colours[:, 1:].square().sum(1).sqrt().mean()),
        "a": float(mean[1]),
        "b": float(mean[2]),
    }
    if following is not None:
        values["motion"] = motion(grey, luma(following))
    return ClipNumbers(values, colours)


def _tensor(frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float().div_(255)


# A whole sweep


@dataclass(frozen=True)
class Response:
    """How each measure follows the strength.

    strengths   ascending, each once
    values      measure -> (clips, strengths)
    """

    strengths: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]
    baseline: float
    left_out: tuple[float, ...] = ()
    broken: tuple[float, ...] = ()

    def mean(self, measure: str) -> NDArray[np.float64]:
        """One number for each strength, averaged over the clips."""
        average: NDArray[np.float64] = self.values[measure].mean(0)
        return average

    def change(self, measure: str) -> NDArray[np.float64]:
        """The difference from the baseline's value."""
        mean = self.mean(measure)
        change: NDArray[np.float64] = mean - mean[self._base]
        return change

    def monotonicity(self, measure: str) -> float:
        """Spearman's rank correlation with the strength: 1 always rises, -1 always falls; 0 if nothing changes."""
        from scipy.stats import spearmanr  # type: ignore[import-untyped]

        mean = self.mean(measure)
        if len(mean) < 2 or np.ptp(mean) <= _SAME_PICTURE:
            return 0.0
        return float(spearmanr(self.strengths, mean).statistic)

    def symmetry(self, measure: str) -> float:
        """How well −s undoes what +s does: 1 if the change is equal and opposite, 0 if one side does nothing (or both the same).

        1 − Σ|d(s) + d(−s)| / Σ(|d(s)| + |d(−s)|), with d the change from the baseline, over the strengths that both sides
        reach; between two strengths of the sweep, a straight line.
        """
        change, offsets = self.change(measure), self.strengths - self.baseline
        reach = min(offsets.max(), -offsets.min())
        at = np.unique(np.abs(offsets[(offsets != 0) & (np.abs(offsets) <= reach + 1e-9)]))
        if not len(at):
            return 0.0
        plus, minus = np.interp(at, offsets, change), np.interp(-at, offsets, change)
        whole = float((np.abs(plus) + np.abs(minus)).sum())
        return 1 - float(np.abs(plus + minus).sum()) / whole if whole > _SAME_PICTURE else 0.0

    def reach(self, measure: str, limit: float) -> tuple[float, float]:
        """The strengths below and above the baseline at which a measure has changed by `limit`, or the sweep's ends."""
        change = np.abs(self.change(measure))
        return self._reach(change, limit, -1), self._reach(change, limit, 1)

    def _reach(self, change: NDArray[np.float64], limit: float, step: int) -> float:
        here = self._base
        while 0 <= here + step < len(change):
            there = here + step
            if change[there] > limit:
                part = (limit - change[here]) / (change[there] - change[here])
                return float(self.strengths[here] + part * (self.strengths[there] - self.strengths[here]))
            here = there
        return float(self.strengths[here])

    def recommended(self, limits: Mapping[str, float]) -> tuple[float, float]:
        """The widest range around the baseline in which every measure stays within its limit, to the inner tenth."""
        reaches = [self.reach(measure, limit) for measure, limit in limits.items()]
        low = max([low for low, _ in reaches], default=float(self.strengths[0]))
        high = min([high for _, high in reaches], default=float(self.strengths[-1]))
        # A tiny amount is added, so that 2.5 itself does not become 2.4.
        return math.ceil(round(low * 10, 6)) / 10 + 0.0, math.floor(round(high * 10, 6)) / 10 + 0.0

    def csv(self) -> str:
        """A line for each strength, a column for each measure, averaged over the clips."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["strength", *(f"{name} ({MEASURES[name].unit})" for name in self.values)])
        for index, strength in enumerate(self.strengths):
            lines.writerow([f"{strength:g}", *(f"{self.mean(name)[index]:.6g}" for name in self.values)])
        return text.getvalue()

    @property
    def _base(self) -> int:
        return int(np.flatnonzero(self.strengths == self.baseline)[0])


def measure_sweeps(sweeps: Sequence[Sweep], moments: int = 12, progress: Progress | None = None) -> Response:
    """Measure all clips of one or several sweeps. Strengths that not every sweep has are left out.

    moments     of each clip, spread evenly over it
    raises      UnsupportedError if a sweep lacks the baseline, or the baseline is all they have in common
    """
    baseline = sweeps[0].baseline
    common = sorted(set.intersection(*(set(sweep.strengths) for sweep in sweeps)))
    if any(baseline in sweep.broken for sweep in sweeps):
        raise UnsupportedError(
            f"sweep: the pictures at the baseline {baseline:g} are broken, so there is nothing to compare with. Run the sweep "
            "again when the cause is found."
        )
    if baseline not in common:
        raise UnsupportedError(
            f"sweep: the baseline {baseline:g} is not among the strengths, so there is nothing to compare with. Switch "
            "include_zero on in Strength Sweep, or set baseline in Sweep Grid to a strength of the sweep."
        )
    if len(common) < 2:
        raise UnsupportedError("sweep: there is only one strength in all sweeps. Give Strength Sweep more of them.")
    done = 0

    def tick() -> None:
        if progress:
            progress(done, len(sweeps) * len(common))

    rows = []
    for sweep in sweeps:
        clips = dict(zip(sweep.strengths, sweep.clips, strict=True))
        base = measure_clip(clips[baseline], moments, tick)
        row = []
        for strength in common:
            numbers = base if strength == baseline else measure_clip(clips[strength], moments, tick)
            row.append(numbers.values | compared(numbers, base))
            done += 1
            tick()
        rows.append(row)
    measured = [name for name in MEASURES if all(name in numbers for row in rows for numbers in row)]
    values = {name: np.array([[numbers[name] for numbers in row] for row in rows]) for name in measured}
    everything = set().union(*(sweep.strengths for sweep in sweeps))
    broken = set().union(*(sweep.broken for sweep in sweeps))
    left_out = everything - set(common) - broken
    return Response(np.array(common), values, baseline, tuple(sorted(left_out)), tuple(sorted(broken)))


def compared(numbers: ClipNumbers, base: ClipNumbers) -> dict[str, float]:
    """How far a clip is from the baseline.

    colour_drift    of what stays: the median over all pixels of the change at the same place. Things that a slider adds or
                    takes away have colours of their own; as long as they cover less than half of the picture, they do not
                    count, while a tint that lies over everything does in full.
    distance        of pixels at the same place, averaged
    """
    if numbers.colours.shape != base.colours.shape:
        raise UnsupportedError(
            f"sweep: a clip of {_size(numbers)} cannot be compared with a baseline of {_size(base)}. Keep size and length."
        )
    change = numbers.colours - base.colours
    drift_a, drift_b = (float(change[:, channel].median()) for channel in (1, 2))
    return {
        "drift_a": drift_a,
        "drift_b": drift_b,
        "colour_drift": math.hypot(drift_a, drift_b),
        "distance": float(change.square().sum(1).sqrt().mean()),
    }


def _size(numbers: ClipNumbers) -> str:
    moments, _, height, width = numbers.colours.shape
    return f"{2 * width}×{2 * height} at {moments} moments"


@dataclass(frozen=True)
class Verdict:
    """What a measured response says of a slider.

    target        the measure that the slider is meant to change
    recommended   the strengths within all limits: low, high
    """

    response: Response
    target: str
    recommended: tuple[float, float]


def range_text(low: float, high: float) -> str:
    """A range in the form that Save LoRA takes; empty if there is none."""
    return f"{low:g} to {high:g}" if low < high else ""
