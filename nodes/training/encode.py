"""Encode Pairs: two folders of paired images as latents, for Train Slider."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from PIL import Image, ImageOps
from torch import Tensor

from ...difflora.errors import PairError
from ...difflora.sentence import Sentence
from ...difflora.training import pairs
from ...difflora.training.latents import ENOUGH, SliderPairs
from ..common.fingerprints import files_fingerprint
from ..common.inputs import within
from ..common.messages import report, ui
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import SliderPairsWire
from .pairs import CATEGORY, frames
from .wire import digest_of

STEP = 16  # pixels: eight for the VAE, and patches of two
CACHED = 256_000_000  # bytes

_encoded: OrderedDict[str, Tensor] = OrderedDict()
"""Latents by what the picture, its size and the VAE are."""


class EncodePairs(io.ComfyNode):
    """Encodes pairs of pictures with the VAE, one at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraEncodePairs",
            display_name="Encode Pairs",
            category=CATEGORY,
            **found_by("train", "dataset", "vae encode", "latents", "image pairs"),
            description="Takes the pictures of the same name in two folders through the VAE, for Train Slider. Still pictures; "
            "what was encoded before is not encoded again.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model that the slider is trained on."),
                io.String.Input(
                    "folder_a",
                    default="output/density/detailed",
                    tooltip="The pictures with more of the property: input/…, output/… or demo/pairs/dense.",
                ),
                io.String.Input(
                    "folder_b",
                    default="output/density/sparse",
                    tooltip="Their twins with less of it, under the same names.",
                ),
                io.Int.Input(
                    "size",
                    default=192,
                    min=32,
                    max=2048,
                    step=STEP,
                    tooltip="Pictures become size × size pixels in area and keep their aspect. Small is enough for what is "
                    "where: 192 is what the first sliders of this kind were trained at.",
                ),
            ],
            outputs=[
                SliderPairsWire.Output("pairs", display_name="pairs", tooltip="The latents by pair, for Train Slider.")
            ],
        )

    @classmethod
    def files_read(cls, folder_a: str, folder_b: str, **_: Any) -> list[Path]:
        """For Sweep Grid, which names clips by what these files hold."""
        return [file for folder in (folder_a, folder_b) for found in frames(folder).values() for file in found]

    @classmethod
    def fingerprint_inputs(
        cls, folder_a: str | None = None, folder_b: str | None = None, size: int | None = None, vae: Any = None
    ) -> object:
        if folder_a is None or folder_b is None:
            return math.nan  # a name comes through a link: always run
        return files_fingerprint(cls.files_read(folder_a, folder_b))

    @classmethod
    def execute(cls, vae: Any, folder_a: str, folder_b: str, size: int) -> io.NodeOutput:
        within(32, 2048, size=size)
        sides = [frames(folder) for folder in (folder_a, folder_b)]
        names = sorted(sides[0].keys() & sides[1].keys())
        if not names:
            raise PairError(
                f"{folder_a} and {folder_b} have no picture of the same name. Twins need the same name, as Save Pair gives "
                "them."
            )
        progress, who = progress_bar(), digest_of(vae.first_stage_model)
        latents: list[list[Tensor]] = [[], []]
        shapes: dict[tuple[int, int], int] = {}
        for place, name in enumerate(names):
            first = pairs.read_image(sides[0][name][0])
            second = pairs.same_size(first, pairs.read_image(sides[1][name][0]))
            target = bucket(first.size, size)
            shapes[target] = shapes.get(target, 0) + 1
            for side, image in enumerate((first, second)):
                progress(2 * place + side, 2 * len(names))
                latents[side].append(_encode(vae, who, ImageOps.fit(image, target, Image.Resampling.LANCZOS)))
        progress(2 * len(names), 2 * len(names))
        found = SliderPairs(tuple(names), tuple(latents[0]), tuple(latents[1]))
        lines = [Sentence("{0} pairs", len(found))]
        lines += [Sentence("{0} at {1} × {2} pixels", count, *shape) for shape, count in sorted(shapes.items())]
        warnings = []
        if alone := sorted(sides[0].keys() ^ sides[1].keys()):
            warnings.append(
                Sentence("{0} pictures have no twin and were left out: {1}", len(alone), ", ".join(alone[:5]))
            )
        if len(found) < ENOUGH:
            warnings.append(Sentence("{0} pairs are few: sliders become reliable from about {1}.", len(found), ENOUGH))
        return io.NodeOutput(found, ui=ui(report(Sentence("Pairs"), lines, warnings)))


def bucket(pixels: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height for a picture of `pixels`: about size × size in area, in steps of 16, of the nearest aspect."""
    aspect = math.sqrt(pixels[0] / pixels[1])
    return tuple(max(STEP, round(size * factor / STEP) * STEP) for factor in (aspect, 1 / aspect))  # type: ignore[return-value]


def _encode(vae: Any, who: str, image: Image.Image) -> Tensor:
    """A latent (channels, …), float32 on the CPU, as an ordinary tensor."""
    key = hashlib.sha256(f"{who} {image.size}".encode() + image.tobytes()).hexdigest()
    if key not in _encoded:
        latent = vae.encode(pairs.to_tensor(image)[None])[0]
        with torch.inference_mode(False):
            _encoded[key] = latent.detach().to("cpu", torch.float32, copy=True)
        while len(_encoded) > 1 and sum(kept.nbytes for kept in _encoded.values()) > CACHED:
            _encoded.popitem(last=False)
    _encoded.move_to_end(key)
    return _encoded[key]


NODES = [EncodePairs]
