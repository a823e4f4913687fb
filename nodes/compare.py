"""A/B Compare: two clips or pictures side by side, divided by a wipe, or as what differs."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from comfy_api.v0_0_2 import io

from ..difflora.clip_pair import MODES, compared, in_step
from ..difflora.mosaic import Label
from ..difflora.wording import Sentence
from .fonts import font_for
from .inputs import one_of, within
from .messages import report
from .previews import embedded, player_of_sheet, reporting
from .progress import progress_bar


class ABCompare(io.ComfyNode):
    """B takes A's size; the shorter one holds its last frame. Both is said."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiffLoraABCompare",
            display_name="A/B Compare",
            category="Differential LoRA",
            description="Two clips in step: in the player on the node with wipe, difference, slow motion and a blind test, and "
            "as pictures for a video saver.",
            inputs=[
                io.Image.Input("a", tooltip="A picture or the frames of a clip. It gives the size."),
                io.Image.Input("b", tooltip="What to compare it with. Another size is fitted in whole."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="side by side",
                    tooltip="What the pictures show; the player can always do all of it. wipe: A left of the line, B right of it, "
                    "and the line moves across the clip. difference: what differs, on grey.",
                ),
                io.Float.Input(
                    "amplify", default=4.0, min=1.0, max=64.0, step=0.5, tooltip="How many times a difference is enlarged."
                ),
                io.Float.Input("fps", default=16.0, min=1.0, max=120.0, step=1.0, tooltip="Frames a second, in the player."),
                io.String.Input("label_a", default="A", tooltip="What is written above A."),
                io.String.Input("label_b", default="B", tooltip="What is written above B."),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The comparison, frame by frame."),
                io.String.Output("report", display_name="report", tooltip="Sizes, lengths, and how large the difference is."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, a: torch.Tensor, b: torch.Tensor, mode: str, amplify: float, fps: float, label_a: str, label_b: str
    ) -> io.NodeOutput:
        one_of("mode", mode, MODES)
        within(1, 64, amplify=amplify)
        within(1, 120, fps=fps)
        one, other, notes = in_step(_pixels(a), _pixels(b))
        labels = [Label(label_a), Label(label_b)]
        key = hashlib.sha256(one.tobytes() + other.tobytes()).hexdigest()
        player = player_of_sheet([one, other], labels, fps, key + label_a + label_b, embedded(cls.hidden), progress_bar())
        frames = compared(one, other, mode, amplify, (label_a, label_b), font_for(label_a, label_b))
        images = torch.from_numpy(np.stack(list(reporting(frames, len(one), progress_bar())))).float().div_(255)
        distance = np.abs(one.astype(np.int16) - other)
        lines = [
            Sentence("{0} frames of {1}×{2}", len(one), one.shape[2], one.shape[1]),
            Sentence("difference: {0} of 255 on average, {1} at most", f"{distance.mean():.2f}", distance.max())
            if distance.max()
            else Sentence("no difference at all"),
        ]
        shown = report("A/B", lines, notes) | player
        return io.NodeOutput(images, "\n".join([*lines, *notes]), ui={"difflora": [shown]})


def _pixels(images: torch.Tensor) -> np.ndarray:
    return images[..., :3].mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()


NODES = [ABCompare]
