"""Load LoRA (Differential) and Subtract LoRAs: from two files to their exact difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ...difflora import Lora, load, subtract
from ...difflora.lora.file import FileLora
from ...difflora.rank.analysis import training_warnings
from ...difflora.sentence import Sentence
from ..common.fingerprints import fingerprint_of_files
from ..common.inputs import listed_file, lora_files, one_of
from ..common.messages import lora_modules, merged, report, ui
from ..common.search import found_by
from ..common.strength import strength_range
from ..common.types import LoraDelta
from ..common.widgets import ignore_unknown_input


class LoadLora(io.ComfyNode):
    """Opens a file; its tensors are read when something needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraLoad",
            display_name="Load LoRA (Differential)",
            category="Differential LoRA",
            **found_by("open lora", "difference", "subtract", "lora loader", "info"),
            description="Opens a LoRA of any trainer for Wan (musubi/kohya, diffusion-pipe, ai-toolkit, diffusers, PEFT, "
            "DiffSynth, LyCORIS names …) and shows what is in it. Its alpha is taken into account.",
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A .safetensors file in a loras folder. A file that is replaced is read again automatically.",
                ),
                ignore_unknown_input(),
            ],
            outputs=[
                LoraDelta.Output("lora", display_name="lora", tooltip="The LoRA, for Subtract, Analyze or a slider."),
            ],
        )

    @classmethod
    def files_read(cls, lora_name: str, **_: Any) -> list[Path]:
        """For Sweep Grid, which names clips by what these files hold."""
        return lora_files(lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: Any) -> object:
        return fingerprint_of_files(cls.files_read, lora_name)

    @classmethod
    def execute(cls, lora_name: str, ignore_unknown: bool = False) -> io.NodeOutput:
        lora = load(listed_file("loras", lora_name), ignore_unknown)
        return io.NodeOutput(lora, ui=ui(_described(lora)))


def describe(name: str, ignore_unknown: bool) -> dict[str, Any]:
    """Load LoRA's report on a file, without a run."""
    return _described(load(listed_file("loras", name), ignore_unknown))


def _described(lora: FileLora) -> dict[str, Any]:
    return merged(_file_report(lora), lora_modules(lora), strength_range(lora))


def _file_report(lora: FileLora) -> dict[str, Any]:
    alphas = sorted(set(lora.alphas.values()))
    ends = [f"{value:g}" for value in alphas[:1] + alphas[-1:]]
    alpha = Sentence("{0} to {1}", *ends) if len(alphas) > 1 else ends[0] if ends else Sentence("none stored (scale 1)")
    matrices, vectors = len(lora.matrices), len(lora) - len(lora.matrices)
    lines = [
        Sentence("{0}, {1} names", lora.base_model or Sentence("Base model not recognised"), lora.dialect),
        *([Sentence("trained with {0}", lora.trainer)] if lora.trainer else []),
        Sentence("rank {0}, alpha {1}", lora.rank_text, alpha),
        Sentence("{0} modules and {1} biases, norms or modulations", matrices, vectors)
        if vectors
        else Sentence("{0} modules", matrices),
    ]
    return report(lora.name, lines, lora.warnings)


_UNMATCHED = {
    "keep": Sentence("kept, as zero on the other side"),
    "drop": Sentence("left out"),
    "error": "",  # never shown: it is an error instead
}


class SubtractLoras(io.ComfyNode):
    """A minus B, without loss. Checks headers only; the arithmetic runs when something reads the result."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSubtract",
            display_name="Subtract LoRAs",
            category="Differential LoRA",
            **found_by("difference", "merge lora", "lora minus lora", "lora math", "negative lora", "combine lora"),
            description="The exact difference of two LoRAs: what they share cancels, the property they differ in is left. "
            "They may come from different trainers and have different ranks and alphas.",
            inputs=[
                LoraDelta.Input("a", tooltip="The LoRA that has more of the property."),
                LoraDelta.Input("b", tooltip="The LoRA that has less of it."),
                io.Float.Input(
                    "weight_a",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much of A goes in. Usually 1.",
                ),
                io.Float.Input(
                    "weight_b",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much of B is taken away. Usually 1; below 1 keeps some of what A and B share.",
                ),
                io.Combo.Input(
                    "unmatched",
                    options=list(_UNMATCHED),
                    default="keep",
                    tooltip="Modules that only one LoRA has: keep counts them as zero on the other side, drop leaves them "
                    "out, error stops.",
                ),
            ],
            outputs=[
                LoraDelta.Output(
                    "lora", display_name="lora", tooltip="A − B, exactly. Its rank is the sum of both ranks."
                ),
            ],
        )

    @classmethod
    def execute(cls, a: Lora, b: Lora, weight_a: float, weight_b: float, unmatched: str) -> io.NodeOutput:
        one_of("unmatched", unmatched, _UNMATCHED)
        lora = subtract(a, b, weight_a, weight_b, unmatched)
        one_sided = len(lora.one_sided)
        lines = [Sentence("{0} modules, rank {1}", len(lora.matrices), lora.rank_text)]
        warnings = training_warnings(a, b)
        warnings += [line for line in lora.warnings if line not in (*a.warnings, *b.warnings)]
        if one_sided:
            warnings.append(Sentence("{0} modules are in one LoRA only: {1}.", one_sided, _UNMATCHED[unmatched]))
        return io.NodeOutput(lora, ui=ui(report("A − B", lines, warnings), lora_modules(lora)))


NODES = [LoadLora, SubtractLoras]
