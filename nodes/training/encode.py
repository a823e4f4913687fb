"""Encode Pairs: two folders of paired images or clips as latents, for Train Slider."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.v0_0_2 import io
from PIL import Image, ImageOps
from torch import Tensor

from ...difflora.clips.video import read_video
from ...difflora.errors import PairError
from ...difflora.sentence import Sentence, printable
from ...difflora.training import pairs
from ...difflora.training.latents import ENOUGH, SliderPairs
from ..common.fingerprints import fingerprint_of_files
from ..common.inputs import within
from ..common.messages import report, ui
from ..common.progress import interruptible, progress_bar
from ..common.search import found_by
from ..common.types import SliderPairsWire
from .pairs import CATEGORY
from .pairs import frames as named
from .wire import digest_of

STEP = 16  # pixels: eight for the VAE, and patches of two
MOST_FRAMES = 257
CACHED = 256_000_000  # bytes

_encoded: OrderedDict[str, Tensor] = OrderedDict()
"""Latents by what the picture, its size and the VAE are."""


class EncodePairs(io.ComfyNode):
    """Pictures or clips by pairs through the VAE, one at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraEncodePairs",
            display_name="Encode Pairs",
            category=CATEGORY,
            **found_by("train", "dataset", "vae encode", "latents", "image pairs"),
            description="Encodes the pictures or clips of the same name in two folders with the VAE, for Train Slider. "
            "Nothing is encoded twice.",
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
                    tooltip="Pictures are scaled to an area of size × size pixels and keep their aspect ratio. Small is "
                    "enough for composition: the first sliders of this kind were trained at 192.",
                ),
                io.Int.Input(
                    "frames",
                    default=1,
                    min=1,
                    max=MOST_FRAMES,
                    step=4,
                    optional=True,
                    tooltip="1: still pictures. More: clips, and this many frames from the beginning of each. Videos, "
                    "animated webp and gif, or folders of frames. For VAEs of video models.",
                ),
                io.String.Input(
                    "tint",
                    default="",
                    optional=True,
                    tooltip="Empty: the two folders. A colour such as #00c800: folder_b alone, each picture with a fifth "
                    "of this colour mixed in, paired with itself. Trains the tint that Purify LoRA removes.",
                ),
            ],
            outputs=[
                SliderPairsWire.Output("pairs", display_name="pairs", tooltip="The latents by pair, for Train Slider.")
            ],
        )

    @classmethod
    def files_read(cls, folder_a: str, folder_b: str, frames: int = 1, tint: str = "", **_: Any) -> list[Path]:
        """For Sweep Grid, which names clips by what these files hold."""
        folders = [folder_b] if tint.strip() else [folder_a, folder_b]
        files = [file for folder in folders for found in named(folder, frames > 1).values() for file in found]
        return [one for file in files for one in (sorted(file.iterdir()) if file.is_dir() else [file])]

    @classmethod
    def fingerprint_inputs(
        cls,
        folder_a: str | None = None,
        folder_b: str | None = None,
        size: int | None = None,
        vae: Any = None,
        frames: int | None = 1,
        tint: str | None = "",
    ) -> object:
        return fingerprint_of_files(cls.files_read, folder_a, folder_b, frames, tint)

    @classmethod
    def execute(
        cls, vae: Any, folder_a: str, folder_b: str, size: int, frames: int = 1, tint: str = ""
    ) -> io.NodeOutput:
        within(32, 2048, size=size)
        within(1, MOST_FRAMES, frames=frames)
        if frames > 1 and not _takes_clips(vae):
            raise PairError(
                f"frames is {frames}, but this VAE encodes still pictures. Set frames to 1, or use a video VAE."
            )
        colour = colour_of(tint)
        sides = [named(folder, frames > 1) for folder in ([folder_b] if colour else [folder_a, folder_b])]
        names = sorted(sides[0].keys() & sides[-1].keys())
        if not names:
            raise PairError(
                f"{folder_a} and {folder_b} have no picture of the same name. Twins need the same name, as Save Pair gives "
                "them."
            )
        progress, who = progress_bar(), digest_of(vae.first_stage_model)
        latents: list[list[Tensor]] = [[], []]
        shapes: dict[tuple[int, int], int] = {}
        for place, name in enumerate(names):
            clips = [read_frames(side[name][0], frames) for side in sides]
            first, second = clips if not colour else ([pairs.tinted(image, colour) for image in clips[0]], clips[0])
            second = [pairs.same_size(one, other) for one, other in zip(first, second, strict=True)]
            target = bucket(first[0].size, size)
            shapes[target] = shapes.get(target, 0) + 1
            for side, clip in enumerate((first, second)):
                progress(2 * place + side, 2 * len(names))
                fitted = [ImageOps.fit(image, target, Image.Resampling.LANCZOS) for image in clip]
                latents[side].append(_encode(vae, who, fitted))
        progress(2 * len(names), 2 * len(names))
        found = SliderPairs(tuple(names), tuple(latents[0]), tuple(latents[1]))
        lines = [Sentence("{0} pairs", len(found))]
        lines += [Sentence("{0} at {1} × {2} pixels", count, *shape) for shape, count in sorted(shapes.items())]
        if frames > 1:
            lines.append(Sentence("{0} frames each", frames))
        warnings = []
        if alone := sorted(sides[0].keys() ^ sides[-1].keys()):
            warnings.append(
                Sentence("{0} pictures have no twin and were left out: {1}", len(alone), ", ".join(alone[:5]))
            )
        if len(found) < ENOUGH:
            warnings.append(Sentence("{0} pairs are few: sliders become reliable from about {1}.", len(found), ENOUGH))
        return io.NodeOutput(found, ui=ui(report(Sentence("Pairs"), lines, warnings)))


def _takes_clips(vae: Any) -> bool:
    return getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False)


def colour_of(text: str) -> tuple[int, int, int] | None:
    """Red, green and blue of a text such as #00c800; None of an empty one."""
    digits = text.strip().removeprefix("#")
    if not digits:
        return None
    if len(digits) != 6 or set(digits.lower()) - set("0123456789abcdef"):
        raise PairError(f"tint is {printable(text, 20)!r}: write a colour as # and six digits, such as #00c800.")
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def read_frames(path: Path, count: int) -> list[Image.Image]:
    """A picture, or the first `count` frames of a clip: a video, an animated picture, or a folder of frames.

    raises  PairError if the clip is shorter
    """
    if count == 1:
        return [pairs.read_image(path)]
    read: list[Image.Image] = []
    if path.is_dir():
        files = [file for files in pairs.find_images(path).values() for file in files]
        read = [pairs.read_image(file) for file in sorted(files)[:count]]
    elif path.suffix.lower() in (".webp", ".gif"):
        read = pairs.read_animation(path, count)
    else:
        read = [Image.fromarray(frame) for frame in itertools.islice(read_video(path), count)]
    if len(read) < count:
        raise PairError(
            f"{path.name} has {len(read)} frames, and {count} of each clip are wanted. Lower frames, or leave it out."
        )
    return read


def bucket(pixels: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height for a picture of `pixels`: about size × size in area, in steps of 16, of the nearest aspect."""
    aspect = math.sqrt(pixels[0] / pixels[1])
    return tuple(max(STEP, round(size * factor / STEP) * STEP) for factor in (aspect, 1 / aspect))  # type: ignore[return-value]


def _encode(vae: Any, who: str, clip: Sequence[Image.Image]) -> Tensor:
    """A latent (channels, …), float32 on the CPU, as an ordinary tensor."""
    digest = hashlib.sha256(f"{who} {len(clip)} {clip[0].size}".encode())
    for image in clip:
        digest.update(image.tobytes())
    key = digest.hexdigest()
    if key not in _encoded:
        with interruptible(vae.first_stage_model, throw_exception_if_processing_interrupted):
            latent = vae.encode(torch.stack([pairs.to_tensor(image) for image in clip]))[0]
        with torch.inference_mode(False):
            _encoded[key] = latent.detach().to("cpu", torch.float32, copy=True)
        while len(_encoded) > 1 and sum(kept.nbytes for kept in _encoded.values()) > CACHED:
            _encoded.popitem(last=False)
    _encoded.move_to_end(key)
    return _encoded[key]


NODES = [EncodePairs]
