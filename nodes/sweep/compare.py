"""A/B Compare: two clips or pictures side by side, as a wipe, or as their difference."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from comfy_api.v0_0_2 import io

from ...difflora.clips.compare import MODES, compared, in_step
from ...difflora.clips.mosaic import Label, label_text
from ...difflora.clips.store import is_black
from ...difflora.progress import Progress
from ...difflora.sentence import Sentence
from ..common.fonts import font_for
from ..common.inputs import one_of, within
from ..common.messages import report
from ..common.progress import progress_bar
from ..common.search import found_by
from .previews import PREVIEWS, dropped, embedded, is_finite, pixels_of, player_of_sheet, reporting


class ABCompare(io.ComfyNode):
    """B is scaled to A's size; the shorter clip holds its last frame. The node says so."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraABCompare",
            display_name="A/B Compare",
            category="Differential LoRA",
            **found_by("compare", "difference", "wipe", "side by side", "video compare", "blind test"),
            description="Compares two clips in sync: in a player on the node, with wipe, difference, slow motion and a blind "
            "test, and as pictures for a video saver.",
            inputs=[
                io.Image.Input("a", tooltip="A picture or the frames of a clip. It gives the size."),
                io.Image.Input("b", tooltip="What to compare it with. A different size is scaled to fit."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="side by side",
                    tooltip="What the pictures show; the player can always do all of it. wipe: A left of the line, B right of it, "
                    "and the line moves across the clip. difference: what differs, on grey.",
                ),
                io.Float.Input(
                    "amplify",
                    default=4.0,
                    min=1.0,
                    max=64.0,
                    step=0.5,
                    tooltip="How many times a difference is enlarged.",
                ),
                io.Float.Input(
                    "fps", default=16.0, min=1.0, max=120.0, step=1.0, tooltip="Frames per second, in the player."
                ),
                io.String.Input("label_a", default="A", tooltip="What is written above A."),
                io.String.Input("label_b", default="B", tooltip="What is written above B."),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The comparison, frame by frame."),
                io.String.Output(
                    "report", display_name="report", tooltip="Sizes, lengths, and how large the difference is."
                ),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> object:
        return PREVIEWS.losses

    @classmethod
    def execute(
        cls, a: torch.Tensor, b: torch.Tensor, mode: str, amplify: float, fps: float, label_a: str, label_b: str
    ) -> io.NodeOutput:
        one_of("mode", mode, MODES)
        within(1, 64, amplify=amplify)
        within(1, 120, fps=fps)
        progress = progress_bar()
        label_a, label_b = label_text(label_a), label_text(label_b)
        pixels = _pixels(a, progress), _pixels(b, progress)
        one, other, notes = in_step(*pixels)
        notes = [*notes, *_faults(a, b, *pixels)]
        labels = [Label(label_a), Label(label_b)]
        content = hashlib.sha256(repr(one.shape).encode())
        for frame in reporting((*one, *other), 2 * len(one), progress):
            content.update(frame)
        key = content.hexdigest() + label_a + label_b
        player = player_of_sheet([list(one), list(other)], labels, fps, key, embedded(cls.hidden), progress)
        frames = compared(one, other, mode, amplify, (label_a, label_b), font_for(label_a, label_b))
        images = torch.from_numpy(np.stack(list(reporting(frames, len(one), progress)))).float().div_(255)
        means, most = [], 0
        for first, second in reporting(zip(one, other, strict=True), len(one), progress):
            distance = np.abs(first.astype(np.int16) - second)
            means.append(distance.mean())
            most = max(most, int(distance.max()))
        lines = [
            Sentence("{0} frames of {1}×{2}", len(one), one.shape[2], one.shape[1]),
            Sentence("difference: {0} of 255 on average, {1} at most", f"{np.mean(means):.2f}", most)
            if most
            else Sentence("no difference at all"),
        ]
        shown = report("A/B", lines, notes) | player
        return io.NodeOutput(images, "\n".join([*lines, *notes]), ui={"difflora": [shown]})


def _pixels(images: torch.Tensor, progress: Progress) -> np.ndarray:
    """(frames, height, width, 3) uint8."""
    pixels = np.empty((*images.shape[:3], 3), np.uint8)
    for number, image in enumerate(reporting(images, len(images), progress)):
        pixels[number] = pixels_of(image)
    return pixels


def _faults(a: torch.Tensor, b: torch.Tensor, one: np.ndarray, other: np.ndarray) -> list[Sentence]:
    """What makes the comparison meaningless."""
    notes = []
    for name, images in (("A", a), ("B", b)):
        broken = sum(not is_finite(image) for image in images)
        if broken:
            notes.append(
                Sentence("{0}: {1} of {2} pictures are not finite (NaN or infinite)", name, broken, len(images))
            )
        notes += [Sentence("{0}: {1}", name, note) for note in dropped(images)]
    black = [is_black(int(pixels.max(initial=0))) for pixels in (one, other)]
    if black[0] != black[1]:
        notes.append(Sentence("{0} is black where {1} is not", *(("A", "B") if black[0] else ("B", "A"))))
    return notes


NODES = [ABCompare]
