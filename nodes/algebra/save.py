"""Save LoRA: a finished slider as a file in the loras folder."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ...difflora import Lora, save
from ...difflora.errors import OutputError
from ...difflora.names.keys import OUTPUT_DIALECTS
from ...difflora.saving.save import read_by_comfyui
from ...difflora.sentence import Sentence, printable
from ...difflora.storage.dtypes import OUTPUT_DTYPES
from ...difflora.storage.writer import make_folder
from ..common.inputs import one_of
from ..common.messages import report, ui
from ..common.paths import below, inside
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.strength import strength_entry
from ..common.types import LoraDelta


class SaveLora(io.ComfyNode):
    """Writes into the first loras folder, so that the file shows up in every LoRA list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSave",
            display_name="Save LoRA",
            category="Differential LoRA",
            **found_by("export lora", "write lora", "safetensors", "merge lora"),
            description="Writes a .safetensors file into the loras folder. Other nodes list it after a refresh (R), without "
            "a restart. Its metadata say how it was made.",
            inputs=[
                LoraDelta.Input("lora", tooltip="The LoRA to write."),
                io.String.Input(
                    "filename_prefix",
                    default="slider",
                    tooltip="Name without the extension; folders in it are created. A number is added unless you "
                    "overwrite.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(OUTPUT_DTYPES),
                    default="float32",
                    tooltip="float32 is exact; bfloat16 or float16 halve the file.",
                ),
                io.Combo.Input(
                    "dialect",
                    options=list(OUTPUT_DIALECTS),
                    default="native",
                    tooltip="Key names. native works in ComfyUI, in WanVideoWrapper with its block filter, and in most tools; "
                    "kohya is for musubi-tuner, diffusers and peft for these libraries.",
                ),
                io.Combo.Input(
                    "if_exists",
                    options=["next number", "overwrite"],
                    default="next number",
                    tooltip="next number never touches a file: slider_00001, slider_00002 …",
                ),
                io.String.Input(
                    "recommended_strength",
                    default="",
                    optional=True,
                    tooltip="A range such as -2.5 to 3, written into the file; the slider then shows it. Sweep Response "
                    "measures one.",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="Where the file is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, lora: Lora, filename_prefix: str, dtype: str, dialect: str, if_exists: str, recommended_strength: str = ""
    ) -> io.NodeOutput:
        one_of("dtype", dtype, OUTPUT_DTYPES)
        one_of("dialect", dialect, OUTPUT_DIALECTS)
        one_of("if_exists", if_exists, ["next number", "overwrite"])
        folder = Path(folder_paths.get_folder_paths("loras")[0])
        overwrite = if_exists == "overwrite"
        path = _target(folder, filename_prefix, overwrite)
        metadata = strength_entry(recommended_strength)
        make_folder(path.parent)
        save(lora, path, dtype=dtype, dialect=dialect, overwrite=overwrite, metadata=metadata, progress=progress_bar())
        size = path.stat().st_size / 1e6
        what = Sentence("{0} modules, rank {1}, {2}, {3} MB", len(lora), lora.rank_text, dtype, f"{size:.1f}")
        lines = [below(folder, path), what]
        found = read_by_comfyui(lora, dialect)
        if found is not None:
            lines.append(Sentence("Read by ComfyUI: {0} of {1} modules", found, len(lora)))
        return io.NodeOutput(str(path), ui=ui(report(path.name, lines, lora.warnings)))


def _target(folder: Path, prefix: str, overwrite: bool) -> Path:
    """Where to write: the name itself, or the name with the next unused number."""
    name = prefix.strip().removesuffix(".safetensors")
    if not name or name[-1] in "/\\":
        raise OutputError(
            f"filename_prefix is {printable(prefix, 60)!r}, which names no file. Type a name, such as slider."
        )
    if overwrite:
        return inside(folder, f"{name}.safetensors", OutputError)
    first = inside(folder, f"{name}_00001.safetensors", OutputError)
    stem = re.escape(first.stem.removesuffix("_00001"))
    siblings = first.parent.glob("*.safetensors")
    used = [int(match[1]) for path in siblings if (match := re.fullmatch(rf"{stem}_(\d+)\.safetensors", path.name))]
    return first.with_name(f"{first.stem.removesuffix('_00001')}_{max(used, default=0) + 1:05d}.safetensors")


NODES = [SaveLora]
