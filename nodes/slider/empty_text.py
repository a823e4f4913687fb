"""The empty prompt, which sliders are trained with: it shows their effect without any words."""

from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ...difflora.errors import UnsupportedError
from ..common.search import found_by
from ..common.types import WrapperText
from .wrapper_wires import text_embeds


def _outputs(what: str) -> list[io.Output]:
    return [
        io.Conditioning.Output(
            "conditioning", display_name="conditioning", tooltip=f"{what}, for ComfyUI's own samplers."
        ),
        WrapperText.Output(
            "text_embeds",
            display_name="text_embeds",
            tooltip=f"{what}, for WanVideoWrapper, as prompt and as negative prompt.",
        ),
    ]


class EmptyText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraEmptyText",
            display_name="Empty Text (Wan)",
            category="Differential LoRA",
            **found_by("empty prompt", "unconditional", "no prompt"),
            description="The empty prompt through your own text encoder. Sliders are trained on empty captions, so this "
            "shows what a slider does by itself.",
            inputs=[io.Clip.Input("clip", tooltip="Wan's text encoder (UMT5-XXL), from Load CLIP with type wan.")],
            outputs=_outputs("The empty prompt"),
        )

    @classmethod
    def execute(cls, clip: Any) -> io.NodeOutput:
        if clip is None:
            raise UnsupportedError("clip: the loader gave no text encoder. Load UMT5-XXL with Load CLIP, type wan.")
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        return io.NodeOutput(conditioning, text_embeds(conditioning[0][0]))


class ZeroText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraZeroText",
            display_name="Zero Embedding (no encoder)",
            category="Differential LoRA",
            **found_by("zero conditioning", "empty prompt", "no prompt"),
            description="An embedding of zeros, for a quick look without a text encoder. It is not the empty prompt: that "
            "is an end token and padding, so a slider can look different here. Prefer Empty Text (Wan).",
            inputs=[
                io.Int.Input(
                    "tokens", default=512, min=1, max=512, tooltip="Length of the text. Wan always reads 512."
                ),
                io.Int.Input(
                    "width", default=4096, min=1, max=65536, tooltip="Numbers per token. 4096 for Wan's encoder."
                ),
            ],
            outputs=_outputs("Zeros"),
        )

    @classmethod
    def execute(cls, tokens: int, width: int) -> io.NodeOutput:
        zeros = torch.zeros(1, tokens, width)
        return io.NodeOutput([[zeros, {}]], text_embeds(zeros))


NODES = [EmptyText, ZeroText]
