"""Writes docs/model-families.md: ``python -m scripts.family_matrix [MODEL …]``, with COMFYUI_DIR naming a ComfyUI.

Runs the models that this ComfyUI has, all or those named, through tests/comfyui_families.py in ComfyUI's own Python, and
keeps what came out by version in tests/data/model_families.json. The page is written from that; a test fails when it is not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from difflora.names.families import FAMILIES
from tests.comfyui_models import FAMILY_OF

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "model-families.md"
RUNS = ROOT / "tests" / "data" / "model_families.json"
SPELLINGS = (
    *("native", "ai-toolkit, diffusion-pipe", "kohya, musubi", "diffusers"),
    *("PEFT", "OneTrainer", "LyCORIS", "DiffSynth"),
)
HEAD = """# Model families

Whichever program trained a LoRA, its names are read as the model's own; this page says for which models and spellings that was
run. Each row is a model built from ComfyUI's own classes at its real sizes, without its weights. The LoRA has random factors for
every matrix of the last block of each stack and of the layers outside of them, spelled as the head of the column says.

"23 of 23" means that of 23 matrices, 23 were

- **read**: their change is the one in the file;
- **selected** by `attn | ffn`, and by the ranges of each stack of blocks, just where they should be;
- on **LoRA Slider**'s model with exactly that change, both patched and beside the weights;
- **saved** after subtracting a LoRA in native names and re-ranking, and **read back** by ComfyUI's own loader with the change
  that the subtraction has.

A cell in which one of these is not so has all four counts.
"""
TAIL = """
Models that are not listed by themselves have the modules of one that is: both models of Wan2.2 A14B those of Wan2.1's, Wan-Fun
those of "wan-fun-control", Qwen-Image-Edit those of Qwen-Image, Z-Image Turbo those of Z-Image. LoRAs of SD 1.5 and 2 are read as
those of SDXL are. Native names are what *Save LoRA* writes unless it is told otherwise.
The page is written by `python -m scripts.family_matrix`; `tests/e2e/test_model_families.py` runs the cells of the models that
its ComfyUI has, and fails if this page says something else.
"""
PICTURE = "![The grid of Select Blocks: 5 double blocks and 20 single blocks, some chosen](pictures/blocks-flux2.jpg)"

Cells = dict[str, Any]


def version() -> str:
    """Of the ComfyUI at hand."""
    text = (Path(os.environ["COMFYUI_DIR"]) / "comfyui_version.py").read_text("utf-8")
    found = re.search(r'"([\d.]+)"', text)
    assert found, text
    return found[1]


def run(folder: str, models: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """What tests/comfyui_families.py finds: by model, each as soon as it is known."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(ROOT / "tests" / "comfyui_families.py"), folder, *models]
    with subprocess.Popen(command, cwd=os.environ["COMFYUI_DIR"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            yield from json.loads(line).items()
    if process.returncode:
        raise RuntimeError(f"comfyui_families.py ended with {process.returncode}")


def text(runs: dict[str, dict[str, Cells]]) -> str:
    """The page. runs: version of ComfyUI -> model -> its cells."""
    order = [family.name for family in FAMILIES]
    where: dict[tuple[str, ...], list[str]] = {}  # versions -> families of which a model was run with them
    for name in order:
        models = [model for model in FAMILY_OF if FAMILY_OF[model] == name]
        if versions := tuple(at for at, found in runs.items() if found.keys() & set(models)):
            where.setdefault(versions, []).append(name)
    said = [f"- with ComfyUI {' and '.join(versions)}: {', '.join(names)}" for versions, names in where.items()]
    lines = [f"| family | model | {' | '.join(SPELLINGS)} | ComfyUI |", "|---" * (3 + len(SPELLINGS)) + "|"]
    for model in sorted(FAMILY_OF, key=lambda model: order.index(FAMILY_OF[model])):
        rows: dict[str, list[str]] = {}  # versions with the same row stand together
        for at, found in runs.items():
            if cells := found.get(model):
                rows.setdefault(" | ".join(_shown(cells[spelling]) for spelling in SPELLINGS), []).append(at)
        start = f"| {FAMILY_OF[model]} | {model} |"
        lines += [f"{start} {row} | {', '.join(versions)} |" for row, versions in rows.items()]
        if not rows:
            lines.append(f"{start} {' | '.join(['not run'] * len(SPELLINGS))} | |")
    stacks = ["| family | stack and number of blocks |", "|---|---|"]
    for family in (family for family in FAMILIES if family.depths):
        deep = (f"`{stack}` {' or '.join(map(str, depth))}" for stack, depth in family.depths.items())
        stacks.append(f"| {family.name} | {', '.join(deep)} |")
    return "\n".join(
        [HEAD, "It was run", "", *said, "", *lines, TAIL, "## Stacks of blocks", ""]
        + [
            "A selection names a block by its stack: `double_blocks 0-5`, `layers 0-9`, `blocks 0-9`. *Select Blocks* draws each stack"
        ]
        + ["by itself: `double_blocks 0-3, single_blocks 10-19=0.5` on FLUX.2 Klein.", "", PICTURE, "", *stacks, ""]
        + [
            "SDXL and SD 1.5 have `input_blocks`, `middle_block` and `output_blocks`; only some of them hold layers that a LoRA changes.",
            "",
        ]
    )


def _shown(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    total, *counts = cell
    if set(counts) == {total}:
        return f"{total} of {total}"
    read, selected, slid, back = counts
    return f"read {read}, selected {selected}, slider {slid}, back {back} of {total}"


def recorded() -> dict[str, dict[str, Cells]]:
    return json.loads(RUNS.read_text("utf-8")) if RUNS.exists() else {}


def record(found: Iterator[tuple[str, Any]], version: str) -> None:
    for model, one in found:
        if model not in FAMILY_OF:
            continue
        runs = recorded()
        runs.setdefault(version, {})[model] = one["cells"]
        ordered = {v: {m: runs[v][m] for m in FAMILY_OF if m in runs[v]} for v in sorted(runs)}
        lines = [
            f'"{at}": {{\n' + ",\n".join(f' "{name}": {json.dumps(cells)}' for name, cells in models.items()) + "\n}"
            for at, models in ordered.items()
        ]
        RUNS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", newline="\n")
        TARGET.write_text(text(ordered), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    if "COMFYUI_DIR" in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            record(run(folder, tuple(sys.argv[1:])), version())
    TARGET.write_text(text(recorded()), encoding="utf-8", newline="\n")
