"""More words by which ComfyUI's search finds a node."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.v0_0_2 import io


def found_by(*words: str) -> dict[str, Any]:
    """`search_aliases` for a Schema; nothing on a ComfyUI that does not know them, where they would keep the whole pack from loading."""
    if "search_aliases" not in {field.name for field in fields(io.Schema)}:
        return {}
    return {"search_aliases": ["differential lora", *words]}
