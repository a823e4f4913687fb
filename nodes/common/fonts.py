"""Fonts for text in pictures, whatever language it is in."""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

# Font families for Chinese, Japanese and Korean that systems come with. They are tried first: other fonts have only some of the characters.
CJK = ("Noto Sans CJK", "Source Han Sans", "Yu Gothic", "Meiryo", "Microsoft YaHei", "Malgun Gothic", "PingFang", "Hiragino Sans",
       "WenQuanYi")  # fmt: skip
# Fonts with a glyph for every character, which only says that it is missing. matplotlib ships the first.
PLACEHOLDERS = ("Last Resort", "Adobe Blank", "Unicode BMP Fallback")
ALWAYS = frozenset(map(ord, string.ascii_letters + string.digits + "−·…"))


def font_for(*texts: str) -> Path:
    """A font that has the characters of these texts: matplotlib's own if it has them, otherwise the system's best."""
    return _font_with(ALWAYS | {ord(character) for text in texts for character in text if character.isprintable()})


@lru_cache(maxsize=64)
def _font_with(characters: frozenset[int]) -> Path:
    from matplotlib import get_data_path  # imported when first needed: see plots.new_figure

    own = Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    if characters <= _characters(own):
        return own
    best, most = own, len(characters & _characters(own))
    for path in _candidates():
        count = len(characters & _characters(path))
        if count > most:
            best, most = path, count
        if most == len(characters):
            break
    return best


def _candidates() -> Iterator[Path]:
    """Every font of the system, the likeliest first."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    seen: set[Path] = set()
    for font in sorted(fontManager.ttflist, key=_order):
        path = Path(font.fname)
        if path not in seen and not font.name.startswith(PLACEHOLDERS):
            yield path
        seen.add(path)
    # matplotlib made its list when it was first used; fonts may have been installed since.
    yield from (path for path in map(Path, sorted(findSystemFonts())) if path not in seen)


def _order(font: Any) -> tuple[bool, bool, bool, str]:
    family = any(font.name.startswith(name) for name in CJK)
    return not family, font.style != "normal", font.weight not in (400, "normal", "regular"), font.fname


@lru_cache(maxsize=1024)
def _characters(path: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):  # a damaged font, or one removed since it was listed
        return frozenset()
