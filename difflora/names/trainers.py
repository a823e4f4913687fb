"""What a LoRA file's metadata say about where it comes from: the program that trained it, and the version of its model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_MUSUBI = re.compile(r"networks\.lora_(?:wan|framepack|flux_2|qwen_image|z_image|kandinsky|hv_1_5)$")
_ENTRIES = (
    ("difflora.recipe", "Differential LoRA"),
    ("ot_revision", "OneTrainer"),
    ("ot_branch", "OneTrainer"),
    ("ot_config", "OneTrainer"),
)
# Trainers that leave nothing in the metadata, but have names of keys that no other has.
_BY_DIALECT = {"diffsynth": "DiffSynth-Studio", "wan-fun": "VideoX-Fun", "peft": "PEFT"}


def trainer(metadata: Mapping[str, str], dialect: str = "") -> str | None:
    """The program that made the file; None if nothing tells.

    The names are this function's own, never text from the file.

    dialect  of the file's keys
    """
    for key, name in _ENTRIES:
        if key in metadata:
            return name
    if _software(metadata) == "ai-toolkit":
        return "ai-toolkit"
    module = metadata.get("ss_network_module", "")
    lycoris = " with LyCORIS" if module.startswith("lycoris") else ""
    if "ss_sd_scripts_commit_hash" in metadata:
        return f"kohya's sd-scripts{lycoris}"
    if _MUSUBI.match(module):
        return "musubi-tuner"
    # musubi-tuner writes the entries of sd-scripts, except for this hash.
    if "ss_session_id" in metadata and module.startswith(("networks.", "lycoris")):
        return f"musubi-tuner{lycoris}"
    if "lora_adapter_metadata" in metadata:
        return "diffusers"
    if "adapter_config" in metadata or "peft_type" in metadata:
        return "PEFT"
    if lycoris or dialect == "lycoris":
        return "LyCORIS"
    return _BY_DIALECT.get(dialect)


def _software(metadata: Mapping[str, str]) -> str | None:
    try:
        said = json.loads(metadata.get("software", ""))
    except (ValueError, RecursionError):
        return None
    return str(said.get("name")) if isinstance(said, dict) else None


_WAN22 = re.compile(r"wan[ _.-]?(?:video[ _.-]?)?2[._]?2")
_TASK = re.compile(r"(?<![a-z])(?:(t2v)|(i2v))(?![a-z])")


def wan22(base_model: str | None, metadata: Mapping[str, str]) -> str | None:
    """`base_model`, which names and shapes tell, made exact where the metadata know which of Wan's 14B models it is.

    Wan2.2's have the shapes of Wan2.1's. A word for 2.1 proves nothing: musubi-tuner writes it for both.
    """
    if base_model not in ("Wan2.1/2.2 14B", "Wan2.1/2.2 14B (T2V or I2V)"):
        return base_model
    said = f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    if not _WAN22.search(said):
        return base_model
    tasks = {task for found in _TASK.finditer(said) for task in found.groups() if task}
    return f"Wan2.2-{tasks.pop().upper()}-A14B" if len(tasks) == 1 else "Wan2.2-A14B (T2V or I2V)"
