"""Draws the pairs in demo/pairs: the same scenes with many things and with few, the first that the demo's LoRAs saw.

python demo/draw_pairs.py --pairs 126 --output demo/pairs
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from scenes import MOST, draw, random_scene

FIRST = 500_000


def counts(number: int) -> dict[str, int]:
    """How many things each side of a pair shows."""
    return {"dense": MOST - number % 3, "sparse": 1 + number % 3}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo's pairs.")
    parser.add_argument("--pairs", type=int, default=126)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "pairs")
    options = parser.parse_args()
    for number in range(options.pairs):
        scene = random_scene(FIRST + number, MOST)
        for side, count in counts(number).items():
            folder = options.output / side
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(scene.with_first(count))[0]).save(folder / f"{number:03}.png", optimize=True)


if __name__ == "__main__":
    main()
