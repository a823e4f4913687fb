"""The nodes of the pack: `FAMILIES` lists them, room by room."""

from comfy_api.v0_0_2 import ComfyExtension, io

from .algebra import analyze, extract, load_pair, load_subtract, purify, save, select_rerank
from .common.routes import answer_last_words, answer_lora, answer_pair, answer_rack
from .demo import offer_demo_models
from .slider import block_toggle, calibrate, empty_text, make_map, mapped_wanvideo, native, rack, wanvideo
from .sweep import compare, response, sweep
from .sweep.export import answer_export
from .sweep.news import answer_news
from .training import encode, pairs, runs, train

FAMILIES: list[list[type[io.ComfyNode]]] = [
    load_subtract.NODES,
    load_pair.NODES,
    select_rerank.NODES,
    analyze.NODES,
    purify.NODES,
    calibrate.NODES,
    save.NODES,
    native.NODES,
    wanvideo.NODES,
    mapped_wanvideo.NODES,
    rack.NODES,
    make_map.NODES,
    block_toggle.NODES,
    extract.NODES,
    empty_text.NODES,
    sweep.NODES,
    response.NODES,
    compare.NODES,
    runs.NODES,
    pairs.NODES,
    encode.NODES,
    train.NODES,
]


class DifferentialLora(ComfyExtension):
    """Tells ComfyUI which nodes this pack has."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Not in on_load, which ComfyUI 0.3.75 never calls.
        offer_demo_models()
        sweep.watch_prompts()
        answer_last_words()
        answer_export()
        answer_news()
        answer_lora(load_subtract.describe)
        answer_pair(load_pair.describe_pair)
        answer_rack(rack.describe)
        return [node for family in FAMILIES for node in family]
