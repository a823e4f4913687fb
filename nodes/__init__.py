"""The nodes, one file a family. Each node is a few lines that call the library."""

from comfy_api.v0_0_2 import ComfyExtension, io

from . import (
    analyze,
    block_toggle,
    checkpoints,
    compare,
    empty_text,
    extract,
    pair,
    pairs,
    response,
    save,
    shape,
    slider,
    sweep,
    wanvideo,
)
from .demo import offer_demo_models

FAMILIES: list[list[type[io.ComfyNode]]] = [
    pair.NODES,
    shape.NODES,
    analyze.NODES,
    save.NODES,
    slider.NODES,
    wanvideo.NODES,
    block_toggle.NODES,
    extract.NODES,
    empty_text.NODES,
    sweep.NODES,
    response.NODES,
    compare.NODES,
    checkpoints.NODES,
    pairs.NODES,
]


class DifferentialLora(ComfyExtension):
    """Tells ComfyUI which nodes this pack has."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Not in on_load, which ComfyUI 0.3.75 never calls.
        offer_demo_models()
        sweep.watch_prompts()
        return [node for family in FAMILIES for node in family]
