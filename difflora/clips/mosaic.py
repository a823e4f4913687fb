"""Several clips in one picture, frame by frame and in sync: the labelled grid, and the plain sheet for the player."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..fonts import Font, font_of
from .video import Frame

PAPER, INK, DIM, MARK = (18, 20, 25), (240, 242, 246), (150, 158, 172), (245, 166, 35)
ARRANGEMENTS = ("grid", "row", "column")
# What hardware decoders accept: the side lengths and the area of H.264 level 5.1.
SHEET_SIDE, SHEET_AREA = 4096, 4096 * 2304
LONGEST_LABEL = 200  # characters; more than fit on any label


@dataclass(frozen=True)
class Label:
    """The label above a clip: its strength, an optional text, and whether it is the baseline."""

    strength: str
    text: str = ""
    is_baseline: bool = False


@dataclass(frozen=True)
class Cells:
    """Cells of one size in rows. gap: around each cell; head: for its label, above it. All in pixels."""

    count: int
    columns: int
    width: int
    height: int
    gap: int = 0
    head: int = 0

    @property
    def rows(self) -> int:
        return -(-self.count // self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture, both even."""
        width = self.columns * (self.width + self.gap) + self.gap
        height = self.rows * (self.height + self.head + self.gap) + self.gap
        return width + width % 2, height + height % 2

    def corner(self, index: int) -> tuple[int, int]:
        """Left and top of a cell's picture."""
        row, column = divmod(index, self.columns)
        return (
            self.gap + column * (self.width + self.gap),
            self.gap + row * (self.height + self.head + self.gap) + self.head,
        )


def label_text(text: str) -> str:
    """As much of a text as a label can show: what is sent to the page and kept in the history has no use for more."""
    text = text.strip()
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def signed(strength: float) -> str:
    """A strength as labels show it: +2, 0, −1.5."""
    return "0" if strength == 0 else f"{strength:+.6g}".replace("-", "−")


def fitting(width: int, height: int, longest: int) -> tuple[int, int]:
    """A size of the same shape whose longer side is at most `longest`. Never larger than the original."""
    factor = min(1.0, longest / max(width, height))
    return max(2, round(width * factor)), max(2, round(height * factor))


def columns_for(count: int, width: int, height: int, arrangement: str) -> int:
    """The number of clips per row. A grid is close to 16:9 and has few empty places."""
    if arrangement != "grid":
        return count if arrangement == "row" else 1

    def badness(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / (16 / 9))) + (columns * rows - count) / count

    return min(range(1, count + 1), key=badness)


def grid_of(count: int, width: int, height: int, arrangement: str) -> Cells:
    """The labelled grid for clips of one size."""
    font = _font_size(width)
    columns = columns_for(count, width, height, arrangement)
    return Cells(count, columns, width, height, gap=max(4, width // 60), head=font + font // 2 + 4)


def sheet_of(count: int, width: int, height: int) -> Cells:
    """Cells for the player: without gaps, and shrunk only as far as video decoders require."""
    columns = columns_for(count, width, height, "grid")
    rows = -(-count // columns)
    factor = min(
        1.0,
        SHEET_SIDE / (columns * width),
        SHEET_SIDE / (rows * height),
        (SHEET_AREA / (columns * width * rows * height)) ** 0.5,
    )
    return Cells(count, columns, max(2, int(width * factor)), max(2, int(height * factor)))


def grid_frames(
    cells: Cells, clips: Sequence[Sequence[Frame]], labels: Sequence[Label], font: Path | None
) -> Iterator[Frame]:
    """Every frame of the labelled grid. A clip that ends earlier holds its last frame.

    font    a TrueType file; None for Pillow's own, which has few characters
    """
    page = _page(cells, labels, font)
    for number in range(max(len(clip) for clip in clips)):
        yield _frame(page, cells, clips, number)


def grid_images(
    cells: Cells, clips: Sequence[Sequence[Frame]], labels: Sequence[Label], font: Path | None
) -> torch.Tensor:
    """The labelled grid as ComfyUI's IMAGE: (frames, height, width, 3) float32 in 0…1."""
    width, height = cells.size
    # numpy asks the system for large pages: most of the time would go into filling small ones.
    images = np.empty((max(len(clip) for clip in clips), height, width, 3), np.float32)
    page = _page(cells, labels, font)

    def draw(number: int) -> None:
        frame = _frame(page, cells, clips, number)
        np.divide(frame, np.float32(255), out=images[number])  # in one pass, which torch makes slower

    # Most of the time goes into new memory, for which the system's work is shared, too.
    with ThreadPoolExecutor() as pool:
        list(pool.map(draw, range(len(images))))
    return torch.from_numpy(images)


def sheet_frames(cells: Cells, clips: Sequence[Sequence[Frame]]) -> Iterator[Frame]:
    """Every frame of the plain sheet."""
    width, height = cells.size
    for number in range(max(len(clip) for clip in clips)):
        frame = np.zeros((height, width, 3), np.uint8)
        _paste(frame, cells, clips, number)
        yield frame


def _frame(page: Frame, cells: Cells, clips: Sequence[Sequence[Frame]], number: int) -> Frame:
    frame: Frame = page.copy()
    _paste(frame, cells, clips, number)
    return frame


def _paste(frame: Frame, cells: Cells, clips: Sequence[Sequence[Frame]], number: int) -> None:
    for index, clip in enumerate(clips):
        picture = fitted(clip[min(number, len(clip) - 1)], cells.width, cells.height)
        left, top = cells.corner(index)
        frame[top : top + cells.height, left : left + cells.width] = picture


def fitted(picture: Frame, width: int, height: int) -> Frame:
    """The whole picture in a given size, with black bars if its shape differs."""
    if picture.shape[:2] == (height, width):
        return picture
    factor = min(width / picture.shape[1], height / picture.shape[0])
    inner = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    resized = np.asarray(Image.fromarray(picture).resize(inner, Image.Resampling.BICUBIC))
    if inner == (width, height):
        return resized
    whole = np.zeros((height, width, 3), np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    whole[top : top + inner[1], left : left + inner[0]] = resized
    return whole


def _page(cells: Cells, labels: Sequence[Label], font_file: Path | None) -> Frame:
    """Everything but the clips."""
    page = Image.new("RGB", cells.size, PAPER)
    draw = ImageDraw.Draw(page)
    size = _font_size(cells.width)
    font, small = font_of(font_file, size), font_of(font_file, max(9, round(size * 0.72)))
    for index, label in enumerate(labels):
        left, top = cells.corner(index)
        right, line = left + cells.width, top - cells.head // 2
        if label.is_baseline:
            edge = max(2, cells.gap // 2)
            draw.rectangle((left - edge, top - edge, right + edge - 1, top + cells.height + edge - 1), fill=MARK)
        draw.text((left + 2, line), label.strength, MARK if label.is_baseline else INK, font, anchor="lm")
        text = " · ".join(part for part in ("baseline" if label.is_baseline else "", label.text) if part)
        space = cells.width - 2 * size - draw.textlength(label.strength, font)
        if text:
            colour = MARK if label.is_baseline else DIM
            draw.text((right - 2, line), _shortened(draw, text, small, space), colour, small, anchor="rm")
    return np.asarray(page)


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: Font, space: float) -> str:
    text = label_text(text)
    if draw.textlength(text, font) <= space:
        return text
    # Characters differ in width, but a longer text is never narrower.
    text = text[
        : bisect_left(range(1, len(text)), True, key=lambda end: draw.textlength(f"{text[:end]}…", font) > space)
    ]
    return f"{text.rstrip()}…" if text else ""


def _font_size(width: int) -> int:
    return min(34, max(12, width // 15))
