"""Extract LoRA: the difference between a fine-tuned checkpoint and its base, as a LoRA on the wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ...difflora.lora.extract import extract
from ...difflora.sentence import Sentence
from ..common.fingerprints import fingerprint_of_files
from ..common.inputs import listed_file
from ..common.messages import lora_modules, report, ui
from ..common.search import found_by
from ..common.types import LoraDelta


class ExtractLora(io.ComfyNode):
    """Reads headers only; Re-rank then works through the weights, one module in memory at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = folder_paths.get_filename_list("diffusion_models")
        return io.Schema(
            node_id="DiffLoraExtract",
            display_name="Extract LoRA (from two models)",
            category="Differential LoRA",
            **found_by("difference", "subtract models", "checkpoint to lora", "svd"),
            description="The difference of two checkpoints. Follow it with Re-rank (SVD): about two seconds a module, ten to "
            "fifteen minutes for a 14B model.",
            inputs=[
                io.Combo.Input("base", options=models, tooltip="The model that the other one was made from."),
                io.Combo.Input("tuned", options=models, tooltip="The fine-tuned model."),
            ],
            outputs=[
                LoraDelta.Output(
                    "lora", display_name="lora", tooltip="tuned − base, in full. Re-rank it before you use it."
                )
            ],
        )

    @classmethod
    def files_read(cls, base: str, tuned: str, **_: Any) -> list[Path]:
        """For Sweep Grid, which names clips by what these files hold."""
        return [listed_file("diffusion_models", name) for name in (base, tuned)]

    @classmethod
    def fingerprint_inputs(cls, base: str | None = None, tuned: str | None = None, **_: Any) -> object:
        return fingerprint_of_files(cls.files_read, base, tuned)

    @classmethod
    def execute(cls, base: str, tuned: str) -> io.NodeOutput:
        paths = [listed_file("diffusion_models", name) for name in (base, tuned)]
        lora = extract(*paths)
        lines = [
            lora.base_model or Sentence("Base model not recognised"),
            Sentence("{0} matrices, {1} vectors", len(lora.matrices), len(lora) - len(lora.matrices)),
        ]
        return io.NodeOutput(lora, ui=ui(report(f"{tuned} − {base}", lines, lora.warnings), lora_modules(lora)))


NODES = [ExtractLora]
