"""Clips and comparisons as files for people: the formats that ComfyUI's own savers write, and an animated GIF."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import OutputError
from .compare import wiped
from .mosaic import Label, grid_frames, grid_of
from .video import Frame, write_video

FORMATS = {"mp4": "video/mp4", "webp": "image/webp", "gif": "image/gif", "png": "image/png"}
VIEWS = ("one", "wipe", "difference", "all")
_WEBP_QUALITY, _WEBP_METHOD = 80, 4  # those of SaveAnimatedWEBP


def view_of(
    clips: Sequence[Iterable[Frame]], view: str, labels: Sequence[Label], wipe: float, gain: float, font: Path | None
) -> Iterator[Frame]:
    """What the player shows: one clip, two with a line between them, how far two differ, or all with their labels.

    clips   one for `one`, two for `wipe` and `difference`; decoded frame by frame, except for `all`
    wipe    where the line is, 0…1 of the width
    gain    how many times a difference is enlarged
    """
    if view == "one":
        return iter(clips[0])
    if view == "wipe":
        return (wiped(a, b, wipe) for a, b in zip(*clips, strict=False))
    if view == "difference":
        return (_apart(a, b, gain) for a, b in zip(*clips, strict=False))
    held = [list(clip) for clip in clips]
    height, width = held[0][0].shape[:2]
    return grid_frames(grid_of(len(held), width, height, "grid"), held, labels, font)


def _apart(a: Frame, b: Frame, gain: float) -> Frame:
    apart: Frame = (np.abs(a.astype(np.int16) - b) * gain).clip(0, 255).astype(np.uint8)
    return apart


def write_view(
    path: Path,
    frames: Iterable[Frame],
    format: str,
    fps: float,
    metadata: Mapping[str, object],
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Write frames as .mp4, .webp or .gif, or the first one as .png.

    metadata    ComfyUI's prompt and workflow, kept as ComfyUI keeps them; a GIF has no place for them
    tick        called for each frame; may raise to cancel
    """

    def ticking() -> Iterator[Frame]:
        for frame in frames:
            tick()
            yield frame

    if format == "mp4":
        write_video(path, ticking(), fps, metadata)
        return
    pictures = map(Image.fromarray, ticking())
    first = next(pictures, None)
    if first is None:
        raise OutputError(f"{path.name}: there are no frames to write.")
    if format == "png":
        entries = PngInfo()
        for key, value in metadata.items():
            entries.add_text(key, json.dumps(value))
        first.save(path, pnginfo=entries, compress_level=4)
    elif format == "webp":
        first.save(
            path, save_all=True, append_images=pictures, duration=round(1000 / fps), loop=0, quality=_WEBP_QUALITY,
            method=_WEBP_METHOD, exif=_exif(first, metadata),
        )  # fmt: skip
    else:
        rest = [first, *pictures]  # Pillow needs every frame's time before the first frame
        first.save(path, save_all=True, append_images=rest[1:], duration=_gif_times(len(rest), fps), loop=0)


def _exif(picture: Image.Image, metadata: Mapping[str, object]) -> Image.Exif:
    """Camera model for the prompt, and the tags below it for the rest: where ComfyUI's page looks."""
    exif = picture.getexif()
    tags = itertools.count(0x010F, -1)
    for key, value in metadata.items():
        exif[0x0110 if key == "prompt" else next(tags)] = f"{key}:{json.dumps(value)}"
    return exif


def _gif_times(frames: int, fps: float) -> list[int]:
    """Milliseconds for each frame. GIF counts in hundredths: the rounding of one frame is made up for by the next."""
    ends = [round(100 * number / fps) for number in range(frames + 1)]
    return [10 * max(1, end - start) for start, end in itertools.pairwise(ends)]
