"""Load LoRA Pair: both sides of a difference in one node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ...difflora import Lora, load
from ...difflora.errors import DiffLoraError
from ...difflora.lora.file import FileLora
from ...difflora.rank.analysis import training_warnings
from ...difflora.saving.wan22 import MODEL_KEY, noise_said, other_noise
from ...difflora.sentence import Sentence
from ...difflora.training.partners import half_of, is_more, partners
from ...difflora.training.words import trained_words
from ..common.fingerprints import fingerprint_of_files
from ..common.inputs import listed_file, lora_files
from ..common.messages import merged, report, ui
from ..common.search import found_by
from ..common.types import LoraDelta
from ..common.widgets import ignore_unknown_input

OFFERED = 6  # files that are offered as the other side


class LoadLoraPair(io.ComfyNode):
    """Opens two files; their tensors are read when something needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folder_paths.get_filename_list("loras")
        return io.Schema(
            node_id="DiffLoraLoadPair",
            display_name="Load LoRA Pair",
            category="Differential LoRA",
            **found_by("open lora", "difference", "subtract", "lora loader", "two loras", "pair"),
            description="Opens both LoRAs of a pair. Offers the file that belongs to the first one by its name, swaps the two, "
            "and shows their preview pictures and trigger words.",
            inputs=[
                io.Combo.Input("lora_a", options=files, tooltip="The LoRA that has more of the property."),
                io.Combo.Input(
                    "lora_b",
                    options=files,
                    tooltip="The LoRA that has less of it. The node offers files whose names fit: pos and neg, dense and sparse, the "
                    "same step …",
                ),
                ignore_unknown_input(),
            ],
            outputs=[
                LoraDelta.Output("a", display_name="a", tooltip="The side with more of the property."),
                LoraDelta.Output("b", display_name="b", tooltip="The side with less of it."),
            ],
        )

    @classmethod
    def files_read(cls, lora_a: str, lora_b: str, **_: Any) -> list[Path]:
        """For Sweep Grid, which names clips by what these files hold."""
        return [*lora_files(lora_a), *lora_files(lora_b)]

    @classmethod
    def fingerprint_inputs(cls, lora_a: str | None = None, lora_b: str | None = None, **_: Any) -> object:
        return fingerprint_of_files(cls.files_read, lora_a, lora_b)

    @classmethod
    def execute(cls, lora_a: str, lora_b: str, ignore_unknown: bool = False) -> io.NodeOutput:
        a, b = (load(listed_file("loras", name), ignore_unknown) for name in (lora_a, lora_b))
        return io.NodeOutput(a, b, ui=ui(_described({lora_a: a}, {lora_b: b})))


def describe_pair(lora_a: str, lora_b: str, ignore_unknown: bool) -> dict[str, Any]:
    """What Load LoRA Pair says of two files, without a run; a file that cannot be read is a line of its own."""
    sides: list[dict[str, FileLora | DiffLoraError]] = []
    for name in (lora_a, lora_b):
        try:
            sides.append({name: load(listed_file("loras", name), ignore_unknown)})
        except DiffLoraError as error:
            sides.append({name: error})
    return _described(sides[0], sides[1])


def _described(one: dict[str, FileLora | DiffLoraError], other: dict[str, FileLora | DiffLoraError]) -> dict[str, Any]:
    """one, other: the name of a side, and what it is or why it cannot be read."""
    [(name_a, a)], [(name_b, b)] = one.items(), other.items()
    lines, warnings = [], []
    for side, lora in (("A", a), ("B", b)):
        if isinstance(lora, Lora):
            base = lora.base_model or Sentence("Base model not recognised")
            lines.append(Sentence("{0}: {1}, rank {2}, {3} modules", side, base, lora.rank_text, len(lora)))
            warnings += [Sentence("{0}: {1}", side, warning) for warning in lora.warnings]
    if isinstance(a, Lora) and isinstance(b, Lora):
        if name_a == name_b:
            warnings.append(Sentence("A and B are the same file: their difference is zero"))
        else:
            warnings += training_warnings(a, b)
        noises = [_noise_of(name, lora) for name, lora in ((name_a, a), (name_b, b))]
        if set(noises) == {"high", "low"}:
            warnings.append(
                Sentence("A is for {0} noise and B for {1} noise: take both for the same model of Wan2.2.", *noises)
            )
        elif is_more(name_a, name_b) is False:
            warnings.append(Sentence("By their names, B has more of the property than A: swap the two?"))
    told = report(Sentence("Pair"), lines, warnings)
    told["report"]["lines"] += [{"text": str(lora), "level": "error"} for lora in (a, b) if isinstance(lora, Exception)]
    modules = dict.fromkeys([name for lora in (b, a) if isinstance(lora, Lora) for name in lora])
    files = folder_paths.get_filename_list("loras")
    offers = [name for name in partners(name_a, files) if name != name_b][:OFFERED]
    sides = [_side(name, lora) for name, lora in ((name_a, a), (name_b, b))]
    pair = {"offers": offers, "sides": sides, "twins": _twins(name_a, name_b, files)}
    return merged(told, {"modules": {name: {} for name in modules}, "pair": pair})


def _twins(name_a: str, name_b: str, files: list[str]) -> dict[str, Any] | None:
    """The same pair for Wan2.2's other model, if both of its files are there; None else."""
    a, b = (half_of(name, files) for name in (name_a, name_b))
    if not (a and a.twin and b and b.twin) or a.noise != b.noise:
        return None
    return {"noise": other_noise(a.noise), "files": [a.twin, b.twin]}


def _noise_of(name: str, lora: Lora) -> str | None:
    """Which of Wan2.2's models a file is for: by the model that it was trained on, or by its name where that is clear."""
    by_name = noise_said(name) if "noise" in name.lower() else None
    return noise_said(lora.metadata.get(MODEL_KEY, "")) or by_name


def _side(name: str, lora: FileLora | DiffLoraError) -> dict[str, Any]:
    """A file's name, trigger words, and in which of the loras folders it is: ComfyUI serves previews by that number."""
    words = trained_words(lora.metadata) if isinstance(lora, Lora) else []
    folders = folder_paths.get_folder_paths("loras")
    number = next((at for at, folder in enumerate(folders) if (Path(folder) / name).is_file()), 0)
    return {"name": name, "words": words, "folder": number}


NODES = [LoadLoraPair]
