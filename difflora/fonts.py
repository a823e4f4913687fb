"""The font of labels that are drawn into pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_of(file: Path | None, size: int) -> Font:
    """A TrueType file's font; for None Pillow's own, which has few characters."""
    return ImageFont.truetype(str(file), size) if file else ImageFont.load_default(size)
