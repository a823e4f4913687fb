"""A slider's weight over the schedule, over the frames of a clip, and over the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from .curve import Curve

MOST_FEATHER = 32


@dataclass(frozen=True, eq=False)
class SliderMap:
    """The product of a curve over the steps, a curve over the frames, and a mask.

    steps    over the schedule in percent
    frames   over the clip in percent: 0 is the first frame, 100 the last
    mask     (pictures, height, width) float32 from 0 to 1, one picture or one per frame; None is 1 everywhere
    feather  the mask's edge becomes a ramp of this many latent pixels to either side
    raises   InputError for an invalid mask or a feather out of range
    """

    steps: Curve
    frames: Curve
    mask: Tensor | None = None
    feather: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.feather <= MOST_FEATHER:
            raise InputError(f"feather is {self.feather}; give a number from 0 to {MOST_FEATHER}.")
        if self.mask is not None:
            if self.mask.ndim != 3 or not self.mask.numel():
                raise InputError(f"mask has shape {tuple(self.mask.shape)}; connect a MASK (pictures, height, width).")
            if not self.mask.isfinite().all():
                raise InputError("mask has values that are not numbers; check the node that it comes from.")

    @property
    def is_level(self) -> bool:
        """Whether every place in the clip has the same weight: such a map needs one pass per step."""
        return self.frames.is_level and self.mask is None

    @property
    def varies_over_time(self) -> bool:
        """Whether the weight of a place depends on the frame, so that one has to know which frame of the clip it is."""
        return not self.frames.is_level or (self.mask is not None and len(self.mask) > 1)

    def weight_at(self, percent: float) -> float:
        """The weight at a step, for a map with the same weight everywhere."""
        assert self.is_level
        return self.steps.at(percent) * self.frames.points[0][1]

    def field(self, frames: int, height: int, width: int, stride: int) -> Tensor:
        """The weight of every place in a clip, without that of the step.

        frames, height, width  of the latent
        stride   frames of the clip in a latent frame; the first latent frame holds one
        returns  (frames, height, width) float64 on the CPU, from 0 to 1
        raises   InputError if the number of pictures in the mask does not match the frames of the clip
        """
        clip = clip_frames(frames, stride)
        curve = torch.tensor([self.frames.at(100 * i / max(1, clip - 1)) for i in range(clip)], dtype=torch.float64)
        over_frames = latent_means(curve, stride)[:, None, None]
        if self.mask is None:
            return over_frames.expand(frames, height, width)
        return over_frames * self._over_places(frames, height, width, stride)

    def _over_places(self, frames: int, height: int, width: int, stride: int) -> Tensor:
        assert self.mask is not None
        pictures = len(self.mask)
        mask = self.mask.detach().cpu().double().clamp(0, 1)
        mask = nn.functional.interpolate(mask[:, None], (height, width), mode="area")
        if self.feather:
            padded = nn.functional.pad(mask, [self.feather] * 4, mode="replicate")
            mask = nn.functional.avg_pool2d(padded, 2 * self.feather + 1, stride=1)
        mask = mask[:, 0]
        if pictures in (1, frames):
            return mask.expand(frames, height, width)
        clip = clip_frames(frames, stride)
        # A length that is not a multiple of the stride is rounded down when the latent is made.
        if frames == 1 or not clip <= pictures < clip + stride:
            raise InputError(
                f"mask has {pictures} pictures, but the clip has {clip} frames ({frames} in the latent). Give one picture, "
                "or one for each frame."
            )
        return latent_means(mask[:clip], stride)


def clip_frames(latent_frames: int, stride: int) -> int:
    """Frames of the clip that a latent holds: the first latent frame is one, every other is `stride`."""
    return 1 + (latent_frames - 1) * stride


def latent_means(values: Tensor, stride: int) -> Tensor:
    """Means over the frames of each latent frame: (frames, ...) to (latent frames, ...)."""
    rest = values[1:].reshape(-1, stride, *values.shape[1:])
    return torch.cat([values[:1], rest.mean(1)])
