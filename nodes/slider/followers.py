"""Which nodes of a prompt come after a node. Needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# ComfyUI nodes that use a model's weights, without what is computed beside them.
TAKE_WEIGHTS = ("ModelSave", "CheckpointSave", "ModelMerge")


def takers_of_weights(prompt: Mapping[str, Mapping[str, Any]], node: str) -> list[str]:
    """The kinds of nodes after `node` that save or merge a model's weights, each once.

    prompt  id -> {"class_type", "inputs"}, as it was queued
    """
    behind: dict[str, list[str]] = {}
    for name, one in prompt.items():
        for value in one.get("inputs", {}).values():
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
                behind.setdefault(value[0], []).append(name)
    found: set[str] = set()
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found.add(here)
            waiting.extend(behind.get(here, []))
    kinds = {str(prompt[name].get("class_type", "")) for name in found - {node} if name in prompt}
    return sorted(kind for kind in kinds if kind.startswith(TAKE_WEIGHTS))
