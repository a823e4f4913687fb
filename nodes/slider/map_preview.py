"""The map's preview on the page: a strip of small pictures, one per latent frame. Needs no ComfyUI."""

from __future__ import annotations

from typing import Any

from ...difflora.steering.slider_map import SliderMap

LONGER_SIDE = 24  # values in a small picture
MOST_FRAMES = 21  # of Wan's 81 frames
STRIDE = 4
LEVELS = "0123456789abcdef"


def preview(slider_map: SliderMap) -> dict[str, Any]:
    """Rows of hexadecimal digits, one per value: 0 is weight 0, f is weight 1. Empty if all values are the same.

    The clip's size is not known before sampling: the picture has the mask's shape, and 81 frames unless the mask has
    several.
    """
    if slider_map.is_level:
        return {}
    pictures, height, width = (1, 9, 16) if slider_map.mask is None else slider_map.mask.shape
    scale = LONGER_SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if pictures == 1:
        frames = MOST_FRAMES
    else:
        frames = pictures if pictures <= STRIDE else 1 + (pictures - 1) // STRIDE
    field = slider_map.field(frames, *size, STRIDE)
    shown = sorted({round(index * (frames - 1) / (MOST_FRAMES - 1)) for index in range(MOST_FRAMES)})
    strip = ["".join(LEVELS[round(15 * value)] for value in field[index].flatten().tolist()) for index in shown]
    return {"map": {"width": size[1], "height": size[0], "frames": strip}}
