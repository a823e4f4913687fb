"""Switch off whole DiT blocks, to find out what each does. A block that is off passes its input on."""

from typing import Any

from comfy.ldm.wan.model import WanModel
from comfy_api.v0_0_2 import io

from ...difflora.errors import UnsupportedError
from ..common.search import found_by
from ..common.types import WrapperModel
from .whole_blocks import blocks_named, blocks_of
from .wrapper_wires import BLOCKS_OFF, switch_off

_BLOCKS_TOOLTIP = (
    "Blocks to switch off, as in Select Blocks: blocks 7 · blocks 0-5,20 · !blocks 10-19 (all but these). "
    "Only whole blocks; empty or none switches nothing off."
)


def _modules(model: Any) -> list[str]:
    """The projections inside the blocks of a Wan model; raises UnsupportedError if it is not a Wan model."""
    transformer = model.model.diffusion_model
    names = [name.replace("._orig_mod", "") for name, _ in transformer.named_modules()]
    modules = list(blocks_of(names))
    if not modules:
        raise UnsupportedError(f"model: {type(transformer).__name__} has no Wan blocks to switch. Connect a Wan model.")
    return modules


def _pass_on(args: dict[str, Any], extra: object) -> dict[str, Any]:
    return {"img": args["img"]}


class BlockToggle(io.ComfyNode):
    """Uses ComfyUI's own hook: a replacement for block i, in the options of this patcher only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraBlockToggle",
            display_name="Wan Block Toggle",
            category="Differential LoRA",
            **found_by("skip blocks", "disable layers", "ablation", "layer"),
            description="Switches whole blocks of a Wan model off, to find out which block does what.",
            inputs=[
                io.Model.Input("model", tooltip="A Wan model. Other branches that use it keep all their blocks."),
                io.String.Input("blocks", default="", tooltip=_BLOCKS_TOOLTIP),
            ],
            outputs=[io.Model.Output("switched", display_name="model", tooltip="The model without these blocks.")],
        )

    @classmethod
    def execute(cls, model: Any, blocks: str) -> io.NodeOutput:
        if not isinstance(model.model.diffusion_model, WanModel):
            name = type(model.model.diffusion_model).__name__
            raise UnsupportedError(
                f"model: this is a {name}, and only Wan blocks can be switched. Connect a Wan model."
            )
        switched = model.clone()
        for block in blocks_named(blocks, _modules(model)):
            switched.set_model_patch_replace(_pass_on, "dit", "double_block", block)
        return io.NodeOutput(switched)


class BlockToggleWanVideo(io.ComfyNode):
    """The same for WanVideoWrapper, which has no such hook; `switch_off` explains what is done instead."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraBlockToggleWanVideo",
            display_name="Wan Block Toggle (WanVideoWrapper)",
            category="Differential LoRA",
            **found_by("skip blocks", "disable layers", "ablation", "layer"),
            description="Switches whole blocks of a WanVideoWrapper model off, to find out which block does what.",
            inputs=[
                WrapperModel.Input(
                    "model",
                    tooltip="A model of WanVideoWrapper, before or after its Set LoRAs. Other branches that use it keep "
                    "all their blocks.",
                ),
                io.String.Input("blocks", default="", tooltip=_BLOCKS_TOOLTIP),
            ],
            outputs=[WrapperModel.Output("switched", display_name="model", tooltip="The model without these blocks.")],
        )

    @classmethod
    def execute(cls, model: Any, blocks: str) -> io.NodeOutput:
        switched = model.clone()
        options = switched.model_options["transformer_options"]
        off = blocks_named(blocks, _modules(model))
        options[BLOCKS_OFF] = switch_off(model.model.diffusion_model, {*off, *options.get(BLOCKS_OFF, ())})
        return io.NodeOutput(switched)


NODES = [BlockToggle, BlockToggleWanVideo]
