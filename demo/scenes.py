"""Small drawn scenes, and how to count what is in a picture.

A scene is a background (meadow, sea, night, dusk) and a list of things on it. Drawing only the first
few things of the list gives the same scene with less in it: that is how pairs are made.

The colours are the measuring device. Things are painted in colours that no background uses, so a pixel
belongs to a thing when its nearest palette colour is a thing's colour, and a connected patch of such
pixels is one thing. Things keep a gap between them, and `tests/core/test_demo_scenes.py` holds the count
against the truth on drawn scenes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SIZE = 96
"""Width and height of a scene in pixels."""

MOST = 16
"""The most things that a scene holds."""

_SUPERSAMPLING = 4

RED, ORANGE, YELLOW, PINK = (222, 48, 52), (246, 132, 36), (255, 206, 50), (236, 84, 160)
CREAM, PINE, DARK = (255, 226, 170), (12, 92, 66), (84, 44, 40)
THING_COLOURS = np.array([RED, ORANGE, YELLOW, PINK, CREAM, PINE], dtype=np.float32)


@dataclass(frozen=True)
class Background:
    """Flat colours of one kind of place, and what is found there."""

    sky: tuple[int, int, int]
    low_sky: tuple[int, int, int]
    far: tuple[int, int, int]
    near: tuple[int, int, int]
    above: tuple[str, ...]
    below: tuple[str, ...]


BACKGROUNDS = {
    "meadow": Background(
        (126, 196, 238), (176, 222, 244), (128, 190, 112), (160, 212, 128), ("balloon",), ("house", "pine")
    ),
    "sea": Background((186, 214, 226), (214, 230, 234), (52, 140, 178), (74, 164, 196), ("balloon",), ("boat", "fish")),
    "night": Background((30, 32, 82), (48, 46, 108), (64, 60, 124), (82, 74, 140), ("star",), ("house", "pine")),
    "dusk": Background(
        (150, 124, 190), (192, 154, 204), (130, 108, 142), (158, 134, 164), ("kite",), ("house", "pine")
    ),
}
BACKGROUND_COLOURS = {
    name: np.array([b.sky, b.low_sky, b.far, b.near], dtype=np.float32) for name, b in BACKGROUNDS.items()
}


@dataclass(frozen=True)
class Thing:
    """One thing: what, where its middle is and its radius, in pixels; and its two colours."""

    kind: str
    x: float
    y: float
    radius: float
    colour: tuple[int, int, int]
    second: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A background with a horizon and hills, and its things."""

    background: str
    horizon: float
    phase: float
    things: tuple[Thing, ...]

    def with_first(self, count: int) -> Scene:
        """The same scene with only its first `count` things."""
        return replace(self, things=self.things[:count])


def random_scene(seed: int, count: int | None = None) -> Scene:
    """A scene that depends on `seed` alone, with `count` things, or a random number of them."""
    rng = random.Random(seed)
    background = rng.choice(sorted(BACKGROUNDS))
    horizon = SIZE * rng.uniform(0.46, 0.56)
    phase = rng.uniform(0, 2 * math.pi)
    # Few and many are both common, so that no density is strange to the base model.
    wanted = round(MOST * rng.betavariate(1.2, 1.4))
    if count is not None:
        wanted = count
    things: list[Thing] = []
    for _ in range(4000):
        if len(things) == wanted:
            break
        thing = _random_thing(rng, background, horizon)
        if all(math.hypot(thing.x - t.x, thing.y - t.y) > thing.radius + t.radius + 3 for t in things):
            things.append(thing)
    return Scene(background, horizon, phase, tuple(things))


def _random_thing(rng: random.Random, background: str, horizon: float) -> Thing:
    place = BACKGROUNDS[background]
    above = rng.random() < 0.5
    kind = rng.choice(place.above if above else place.below)
    radius = rng.uniform(6.5, 8.0)
    x = rng.uniform(radius + 1, SIZE - radius - 1)
    y = rng.uniform(radius + 1, horizon - radius - 1) if above else rng.uniform(horizon + 5, SIZE - radius - 1)
    pairs = {
        "balloon": [(RED, YELLOW), (ORANGE, CREAM), (PINK, YELLOW)],
        "kite": [(RED, YELLOW), (YELLOW, ORANGE), (PINK, CREAM)],
        "star": [(YELLOW, YELLOW)],
        "house": [(CREAM, RED), (YELLOW, RED), (CREAM, ORANGE)],
        "pine": [(PINE, PINE)],
        "boat": [(RED, CREAM), (ORANGE, CREAM), (PINK, CREAM)],
        "fish": [(ORANGE, ORANGE), (YELLOW, YELLOW)],
    }
    colour, second = rng.choice(pairs[kind])
    return Thing(kind, x, y, radius, colour, second)


def draw(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Paint a scene: picture (SIZE, SIZE, 3) uint8, and (SIZE, SIZE) bool, true where a thing is."""
    big = SIZE * _SUPERSAMPLING
    picture = Image.new("RGB", (big, big))
    mask = Image.new("L", (big, big))
    _draw_background(ImageDraw.Draw(picture), scene, big)
    brushes = ImageDraw.Draw(picture), ImageDraw.Draw(mask)
    for thing in sorted(scene.things, key=lambda t: t.y):
        for shape, points, colour in _shapes(thing):
            corners = [(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in points]
            for brush, fill in zip(brushes, (colour, 255), strict=True):
                getattr(brush, shape)(corners, fill=fill)
    small = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small), np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX)) > 127


def _draw_background(brush: ImageDraw.ImageDraw, scene: Scene, big: int) -> None:
    place, scale = BACKGROUNDS[scene.background], _SUPERSAMPLING
    horizon = scene.horizon * scale
    brush.rectangle((0, 0, big, big), fill=place.sky)
    brush.rectangle((0, horizon * 0.6, big, big), fill=place.low_sky)
    # The sea lies flat; land has hills.
    height = 0.6 if scene.background == "sea" else 3.0
    for level, colour, waves in ((horizon, place.far, 1.0), (horizon + 0.45 * (big - horizon), place.near, 1.5)):
        ridge = [
            (x, level + height * scale * math.sin(scene.phase * waves + waves * 2 * math.pi * x / big))
            for x in range(0, big + 8, 8)
        ]
        brush.polygon([*ridge, (big, big), (0, big)], fill=colour)


def _shapes(thing: Thing) -> list[tuple[str, list[tuple[float, float]], tuple[int, int, int]]]:
    """The flat shapes of a thing, back to front: a method of ImageDraw, its points, a colour."""
    r, one, two = thing.radius, thing.colour, thing.second

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(thing.x + px * r, thing.y + py * r) for px, py in points]

    if thing.kind == "balloon":
        return [
            ("polygon", at((-0.6, 0.3), (0.6, 0.3), (0.25, 0.8), (-0.25, 0.8)), one),
            ("ellipse", at((-0.85, -1), (0.85, 0.6)), one),
            ("ellipse", at((-0.35, -1), (0.35, 0.6)), two),
            ("rectangle", at((-0.25, 0.72), (0.25, 1.0)), DARK),
        ]
    if thing.kind == "kite":
        return [
            ("polygon", at((0, -1), (0.8, -0.1), (0, 1), (-0.8, -0.1)), one),
            ("polygon", at((0, -1), (0.8, -0.1), (0, -0.1)), two),
            ("polygon", at((0, 1), (-0.8, -0.1), (0, -0.1)), two),
        ]
    if thing.kind == "star":
        points = [
            (
                (1.0 if i % 2 == 0 else 0.5) * math.sin(i * math.pi / 5),
                -(1.0 if i % 2 == 0 else 0.5) * math.cos(i * math.pi / 5),
            )
            for i in range(10)
        ]
        return [("polygon", at(*points), one)]
    if thing.kind == "house":
        return [
            ("rectangle", at((-0.75, -0.1), (0.75, 0.9)), one),
            ("polygon", at((-1, 0), (0, -1), (1, 0)), two),
            ("rectangle", at((-0.2, 0.35), (0.2, 0.9)), DARK),
        ]
    if thing.kind == "pine":
        return [
            ("rectangle", at((-0.15, 0.5), (0.15, 1)), DARK),
            ("polygon", at((-0.8, 0.65), (0, -0.5), (0.8, 0.65)), one),
            ("polygon", at((-0.6, 0.05), (0, -1), (0.6, 0.05)), one),
        ]
    if thing.kind == "boat":
        return [
            ("polygon", at((-0.05, -1), (-0.05, 0.3), (-0.8, 0.3)), two),
            ("polygon", at((0.1, -0.7), (0.1, 0.3), (0.7, 0.3)), two),
            ("polygon", at((-1, 0.3), (1, 0.3), (0.6, 0.85), (-0.6, 0.85)), one),
        ]
    if thing.kind == "fish":
        return [
            ("ellipse", at((-1, -0.55), (0.5, 0.55)), one),
            ("polygon", at((0.2, 0), (1, -0.6), (1, 0.6)), two),
            ("ellipse", at((-0.7, -0.25), (-0.45, 0)), DARK),
        ]
    raise ValueError(f"no such thing to draw: {thing.kind!r}")


def thing_pixels(pictures: np.ndarray) -> np.ndarray:
    """Which pixels show a thing. pictures (..., 3) in 0…255; returns bool (...)."""
    palette = np.concatenate([THING_COLOURS, *BACKGROUND_COLOURS.values()])
    distance = np.square(pictures[..., None, :].astype(np.float32) - palette).sum(-1)
    return distance.argmin(-1) < len(THING_COLOURS)


def count_things(mask: np.ndarray, smallest: int = 20) -> int:
    """Connected patches of at least `smallest` pixels in a mask (SIZE, SIZE)."""
    from scipy import ndimage

    labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
    return int((np.bincount(labels.ravel(), minlength=found + 1)[1:] >= smallest).sum())


def background_class(picture: np.ndarray, mask: np.ndarray) -> str:
    """The background whose colours lie closest to the pixels (SIZE, SIZE, 3) that show no thing."""
    ground = picture[~mask].astype(np.float32)
    if not len(ground):
        return "none"
    distances = {
        name: np.sqrt(np.square(ground[:, None] - colours).sum(-1).min(1)).mean()
        for name, colours in BACKGROUND_COLOURS.items()
    }
    return min(distances, key=distances.__getitem__)
