"""Two clips in one picture: side by side, divided by a moving line, or as their difference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from ..sentence import Sentence
from .mosaic import Label, fitted, grid_frames, grid_of
from .video import Frame

MODES = ("side by side", "wipe", "difference")
Clip = NDArray[np.uint8]


def in_step(a: Clip, b: Clip) -> tuple[Clip, Clip, list[Sentence]]:
    """Both clips as (frames, height, width, 3), in A's size and of equal length, and notes on what was changed."""
    notes = []
    if not len(a) or not len(b):
        raise UnsupportedError(f"{'a' if not len(a) else 'b'}: there are no pictures in this batch.")
    if a.shape[1:3] != b.shape[1:3]:
        notes.append(Sentence("B is {0} and A {1}: B was fitted into A's size", _size(b), _size(a)))
        b = np.stack([fitted(frame, a.shape[2], a.shape[1]) for frame in b])
    if len(a) != len(b):
        shorter = "A" if len(a) < len(b) else "B"
        notes.append(Sentence("A has {0} frames and B {1}: {2} holds its last frame", len(a), len(b), shorter))
        a, b = _held(a, len(b)), _held(b, len(a))
    return a, b, notes


def compared(a: Clip, b: Clip, mode: str, amplify: float, names: tuple[str, str], font: Path | None) -> Iterator[Frame]:
    """The frames of a comparison. Both clips are of one size and length."""
    if mode == "difference":
        return (difference(one, other, amplify) for one, other in zip(a, b, strict=True))
    if mode == "wipe":
        return (wiped(a[i], b[i], wipe_position(i, len(a))) for i in range(len(a)))
    layout = grid_of(2, a.shape[2], a.shape[1], "row")
    return grid_frames(layout, [list(a), list(b)], [Label(names[0]), Label(names[1])], font)


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8], amplify: float) -> NDArray[np.uint8]:
    """B − A around middle grey, amplified: grey where both are equal, brighter where B is."""
    change = (b.astype(np.float32) - a) * amplify
    whole: NDArray[np.uint8] = np.clip(128 + change, 0, 255).round().astype(np.uint8)
    return whole


def wiped(a: NDArray[np.uint8], b: NDArray[np.uint8], position: float) -> NDArray[np.uint8]:
    """A left of a white line at `position` (0…1 of the width), B right of it."""
    column = round(position * a.shape[1])
    picture: Clip = b.copy()
    picture[:, :column] = a[:, :column]
    picture[:, max(0, column - 1) : column + 1] = 255
    return picture


def wipe_position(number: int, frames: int) -> float:
    """The line is in the middle of a single picture. In a clip it moves across and back once."""
    return 0.5 if frames == 1 else 0.5 + 0.4 * float(np.sin(2 * np.pi * number / (frames - 1)))


def _held(clip: Clip, frames: int) -> Clip:
    held: Clip = clip[np.minimum(np.arange(max(frames, len(clip))), len(clip) - 1)]
    return held


def _size(clip: Clip) -> str:
    return f"{clip.shape[2]}×{clip.shape[1]}"
