"""The English texts of all nodes, in the shape of `locales/en/nodeDefs.json`, from what ComfyUI says about them.

python -m scripts.locale_texts URL     writes that file from a running ComfyUI (`python -m tests.comfy_server`)
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).parents[1] / "locales"


def own_nodes(object_info: dict[str, Any]) -> dict[str, Any]:
    return {node_id: node for node_id, node in object_info.items() if node_id.startswith("DiffLora")}


def inputs_of(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> options of every input that a person sees."""
    groups = (node["input"].get(group, {}) for group in ("required", "optional"))
    return {name: (spec[1] if len(spec) > 1 else {}) for group in groups for name, spec in group.items()}


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's own shape: inputs keep their ids as names, outputs have a name where it is not just their type."""
    texts = {}
    for node_id, node in sorted(own_nodes(object_info).items()):
        inputs = {
            name: {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
            for name, options in inputs_of(node).items()
        }
        outputs = {
            str(index): ({"name": name} if name != type else {}) | {"tooltip": tooltip}
            for index, (name, type, tooltip) in enumerate(
                zip(node["output_name"], node["output"], node["output_tooltips"], strict=True)
            )
        }
        texts[node_id] = {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": inputs,
            "outputs": outputs,
        }
    return texts


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/object_info") as answer:
        text = json.dumps(english(json.load(answer)), ensure_ascii=False, indent=2)
    (LOCALES / "en" / "nodeDefs.json").write_text(text + "\n", "utf-8")
