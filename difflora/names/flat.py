"""Flat module names of models other than Wan, as kohya's trainers write them, read back into the models' own.

``double_blocks_0_img_attn_qkv`` is ``double_blocks.0.img_attn.qkv``: each ``_`` may have been a dot or not, so only names
of a known model are read, by a list of its modules. Read this way or not, written flat again a name is what it was.
"""

from __future__ import annotations

import re

# A number is "#", and words in braces stand for one name each.
_ATTENTION = "to_{q,k,v,out.#},norm_{q,k}"
_JOINT_ATTENTION = f"{_ATTENTION},to_add_out,add_{{q,k,v}}_proj,norm_added_{{q,k}}"
_TRANSFORMER = f"transformer_blocks.#.{{attn{{1,2}}.{{{_ATTENTION}}},ff.net.{{#.proj,#}}}}"
_MODULES = (
    # Flux and HunyuanVideo by their own names; ComfyUI's for HunyuanVideo are Flux's. fc1, fc2 and linear are its own.
    "double_blocks.#.{img,txt}_{attn.{qkv,q,k,v,proj,norm.{query,key}_norm},mlp.{#,fc1,fc2},mod.{lin,linear}}",
    "single_blocks.#.{linear1,linear2,modulation.{lin,linear},norm.{query,key}_norm}",
    "{time,vector,guidance}_in.{in_layer,out_layer,mlp.#}",
    "final_layer.{linear,adaLN_modulation.#}",
    "{img_in{,.proj},txt_in}",
    "txt_in.{input_embedder,{t,c}_embedder.{in_layer,out_layer,mlp.#,linear_#}}",
    "txt_in.individual_token_refiner.blocks.#.{self_attn.{qkv,proj},mlp.{#,fc1,fc2},adaLN_modulation.#}",
    # Flux, HunyuanVideo, Qwen-Image and SD3 by diffusers' names, LTX-Video by ComfyUI's as well
    _TRANSFORMER,
    f"transformer_blocks.#.attn.{{{_JOINT_ATTENTION}}}",
    "transformer_blocks.#.{ff_context,img_mlp,txt_mlp}.net.{#.proj,#}",
    "transformer_blocks.#.{norm1,norm1_context}.linear",
    "transformer_blocks.#.{img,txt}_mod.#",
    f"single_transformer_blocks.#.{{attn.{{{_ATTENTION}}},norm.linear,proj_mlp,proj_out}}",
    "{,context_embedder.}time_text_embed.{timestep,guidance,text}_embedder.linear_#",
    f"context_embedder.{{proj_in,token_refiner.refiner_blocks.#.{{attn.{{{_ATTENTION}}},ff.net.{{#.proj,#}},norm_out.linear}}}}",
    "{x_embedder{,.proj},context_embedder}",
    "norm_out.linear",
    "{proj_in,patchify_proj}",
    "{adaln_single,time_embed}.{linear,emb.timestep_embedder.linear_#}",
    "caption_projection.linear_#",
    # Stable Diffusion's U-Net by its own names and by diffusers'
    f"{{input_blocks.#.#,middle_block.#,output_blocks.#.#}}.{{proj_in,proj_out,{_TRANSFORMER}}}",
    "{input_blocks.#.#,middle_block.#,output_blocks.#.#}.{in_layers.#,emb_layers.#,out_layers.#,skip_connection,op,conv}",
    "input_blocks.#.#",
    "{time_embed,label_emb.#,out}.#",
    f"{{down_blocks.#,mid_block,up_blocks.#}}.attentions.#.{{proj_in,proj_out,{_TRANSFORMER}}}",
    "{down_blocks.#,mid_block,up_blocks.#}.resnets.#.{conv1,conv2,conv_shortcut,time_emb_proj}",
    "{down_blocks,up_blocks}.#.{downsamplers,upsamplers}.#.conv",
    "{conv_in,conv_out,{time,add}_embedding.linear_#}",
)
_NUMBER = re.compile(r"(?<![^_])[0-9]+(?![^_])")


def _spelled_out(template: str) -> list[str]:
    """``a{b,c{d,e}}`` is ab, acd and ace, as in a shell."""
    names: list[str] = []  # the words before a comma
    ends = [""]
    outer: list[tuple[list[str], list[str]]] = []
    for piece in re.split(r"([{},])", template):
        if piece == "{":
            outer.append((names, ends))
            names, ends = [], [""]
        elif piece == ",":
            names, ends = names + ends, [""]
        elif piece == "}":
            inside = names + ends
            names, ends = outer.pop()
            ends = [before + word for before in ends for word in inside]
        else:
            ends = [before + piece for before in ends]
    return ends


# Flat name -> the pieces of the dotted name between its numbers.
_DOTTED = {
    template.replace(".", "_"): template.split("#") for templates in _MODULES for template in _spelled_out(templates)
}


def dotted(flat: str) -> str | None:
    """The module that a flat name means; None if it is not one of the models known here."""
    pieces = _DOTTED.get(_NUMBER.sub("#", flat))
    numbers = _NUMBER.findall(flat)
    if pieces is None or len(numbers) != len(pieces) - 1:
        return None
    return "".join(piece + number for piece, number in zip(pieces, [*numbers, ""], strict=True))
