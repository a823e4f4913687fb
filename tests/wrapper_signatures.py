"""What WanVideoWrapper's nodes look like from outside: recorded, so that workflows can be checked without the wrapper.

`python -m tests.wrapper_signatures` records them anew from WANVIDEO_WRAPPER_DIR, with ComfyUI from COMFYUI_DIR.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from tests.comfy_server import ComfyServer

RECORDED = Path(__file__).parent / "data/wanvideo_wrapper_signatures.json"

# The author's two set-ups, and what a user of them is likely to add.
NODES = (
    "LoadWanVideoT5TextEncoder",
    "WanVideoApplyNAG",
    "WanVideoBlockSwap",
    "WanVideoDecode",
    "WanVideoEasyCache",
    "WanVideoEmptyEmbeds",
    "WanVideoEncode",
    "WanVideoEnhanceAVideo",
    "WanVideoExperimentalArgs",
    "WanVideoLoraBlockEdit",
    "WanVideoLoraSelect",
    "WanVideoLoraSelectMulti",
    "WanVideoMagCache",
    "WanVideoModelLoader",
    "WanVideoSampler",
    "WanVideoSamplerExtraArgs",
    "WanVideoSamplerv2",
    "WanVideoSchedulerv2",
    "WanVideoSetBlockSwap",
    "WanVideoSetLoRAs",
    "WanVideoSLG",
    "WanVideoTeaCache",
    "WanVideoTextEmbedBridge",
    "WanVideoTextEncode",
    "WanVideoTextEncodeCached",
    "WanVideoTinyVAELoader",
    "WanVideoTorchCompileSettings",
    "WanVideoVAELoader",
    "WanVideoVRAMManagement",
)
# Combos that list the files of the machine at hand.
_FILES = {"model", "model_name", "lora", *(f"lora_{index}" for index in range(5))}


def signature(info: dict[str, Any]) -> dict[str, Any]:
    """The parts of one node's `/object_info` that a workflow depends on."""
    inputs = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = rest[0] if rest and isinstance(rest[0], dict) else {}
            described: dict[str, Any] = {"type": "COMBO" if isinstance(kind, list) else kind}
            if group == "optional":
                described["optional"] = True
            if isinstance(kind, list) and name not in _FILES:
                described["options"] = kind
            described |= {key: options[key] for key in ("default", "min", "max", "forceInput") if key in options}
            inputs[name] = described
    outputs = [
        {"name": name, "type": "COMBO" if isinstance(kind, list) else kind}
        for name, kind in zip(info["output_name"], info["output"], strict=True)
    ]
    return {"inputs": inputs, "outputs": outputs}


def recorded() -> dict[str, Any]:
    """{"version": …, "nodes": {type: signature}} as it is in the repository."""
    return json.loads(RECORDED.read_text("utf-8"))


def of_checkout(wrapper: Path, object_info: dict[str, Any]) -> dict[str, Any]:
    """The same from a checkout whose nodes a running ComfyUI has described."""
    found = re.search(r'^version = "(.+)"$', (wrapper / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert found, f"{wrapper}/pyproject.toml has no version"
    return {"version": found[1], "nodes": {name: signature(object_info[name]) for name in NODES}}


def main() -> None:
    wrapper = Path(os.environ["WANVIDEO_WRAPPER_DIR"])
    with tempfile.TemporaryDirectory() as folder:
        with ComfyServer(Path(folder), Path(os.environ["COMFYUI_DIR"]), wrapper=wrapper, pack=None) as comfy:
            found = of_checkout(wrapper, comfy.object_info())
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"{RECORDED.name}: {len(found['nodes'])} nodes of version {found['version']}")


if __name__ == "__main__":
    main()
