"""Stable Diffusion's U-Nets: SDXL, and SD 1.5 and 2, by their own names and by diffusers'."""

from __future__ import annotations

from collections.abc import Iterator

from .family import DIFFUSERS, Family, Link, Shapes, renamed

_PLACES = "{input_blocks.#.#,middle_block.#,output_blocks.#.#}"
_ATTENTION = "{to_q,to_k,to_v,to_out.0}"
_TRANSFORMER = f"{_PLACES}.transformer_blocks.#"
_MODULES = (
    ("time_embed.{0,2}", ""),
    ("label_emb.0.{0,2}", ""),
    (f"{_TRANSFORMER}.attn1.{_ATTENTION}", "attn self_attn"),
    (f"{_TRANSFORMER}.attn2.{_ATTENTION}", "attn cross_attn"),
    (f"{_TRANSFORMER}.ff.net.{{0.proj,2}}", "ffn"),
    (f"{_TRANSFORMER}.norm{{1,2,3}}", ""),
    (f"{_PLACES}.{{norm,proj_in,proj_out}}", ""),
    (f"{_PLACES}.{{in_layers.{{0,2}},emb_layers.1,out_layers.{{0,3}},skip_connection,op,conv}}", ""),
    ("input_blocks.#.#", ""),
    ("out.{0,2}", ""),
)
_IN_TRANSFORMER = f"{{norm,proj_in,proj_out,transformer_blocks.#.{{attn1.{_ATTENTION},attn2.{_ATTENTION},ff.net.{{0.proj,2}},norm{{1,2,3}}}}}}"
_RESNET = (
    "{norm1,conv1,time_emb_proj,norm2,conv2,conv_shortcut}",
    "{in_layers.{0,2},emb_layers.1,out_layers.{0,3},skip_connection}",
)


def _diffusers(with_attention: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """(theirs, own). Each of diffusers' blocks is three of the model's: two or three layers, then a change of size.

    with_attention  the up blocks that have attention: in these, the change of size comes third
    """
    for block in range(4):
        for layer in range(2):
            theirs, own = f"down_blocks.{block}", f"input_blocks.{3 * block + layer + 1}"
            yield f"{theirs}.resnets.{layer}.{_RESNET[0]}", f"{own}.0.{_RESNET[1]}"
            yield f"{theirs}.attentions.{layer}.{_IN_TRANSFORMER}", f"{own}.1.{_IN_TRANSFORMER}"
        yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{3 * block + 3}.0.op"
        for layer in range(3):
            theirs, own = f"up_blocks.{block}", f"output_blocks.{3 * block + layer}"
            yield f"{theirs}.resnets.{layer}.{_RESNET[0]}", f"{own}.0.{_RESNET[1]}"
            yield f"{theirs}.attentions.{layer}.{_IN_TRANSFORMER}", f"{own}.1.{_IN_TRANSFORMER}"
        third = 2 if block in with_attention else 1
        yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{3 * block + 2}.{third}.conv"
    for layer in range(2):
        yield f"mid_block.resnets.{layer}.{_RESNET[0]}", f"middle_block.{2 * layer}.{_RESNET[1]}"
    yield f"mid_block.attentions.0.{_IN_TRANSFORMER}", f"middle_block.1.{_IN_TRANSFORMER}"
    yield "{conv_in,conv_norm_out,conv_out}", "{input_blocks.0.0,out.0,out.2}"
    yield "time_embedding.linear_{1,2}", "time_embed.{0,2}"
    yield "add_embedding.linear_{1,2}", "label_emb.0.{0,2}"


_TO_TEXT = tuple(
    f"{place}.transformer_blocks.#.attn2.to_{p}"
    for place in ("input_blocks.#.#", "middle_block.#", "output_blocks.#.#")
    for p in "kv"
)


def _links(with_attention: tuple[int, ...]) -> tuple[Link, ...]:
    return renamed(*_diffusers(with_attention))


_CLASSES = {"diffusers, by class": renamed(("class_embedding.linear_{1,2}", "label_emb.0.{0,2}"))}


def _older(shapes: Shapes) -> str | None:
    for module, shape in shapes.items():
        if len(shape) >= 2 and module.endswith((".attn2.to_k", ".attn2.to_v")):
            return {1024: "SD 2", 768: "SD 1.5"}.get(shape[1])
    return None


SDXL = Family(
    name="SDXL",
    modules=_MODULES,
    implementation="https://github.com/Stability-AI/generative-models",
    architecture="stable-diffusion-xl-v1-base",
    codes={DIFFUSERS: _links((0, 1)), **_CLASSES},
    read=(("lora_unet_", DIFFUSERS), ("lycoris_", DIFFUSERS)),
    native="lora_unet_",  # the form that every reader takes
    diffusers="unet.",
    widths={template: ((640, 2048), (1280, 2048)) for template in _TO_TEXT},
    words=("stable-diffusion-xl", "sdxl"),
)
SD = Family(
    name="SD 1.5 or 2",
    modules=_MODULES,
    implementation="https://github.com/Stability-AI/StableDiffusion",
    architecture="stable-diffusion-v1",
    codes={DIFFUSERS: _links((1, 2, 3)), **_CLASSES},
    read=(("lora_unet_", DIFFUSERS), ("lycoris_", DIFFUSERS)),
    native="lora_unet_",  # the form that every reader takes
    diffusers="unet.",
    widths={
        template: tuple((rows, width) for rows in (320, 640, 1280) for width in (768, 1024)) for template in _TO_TEXT
    },
    variant=_older,
    words=("stable-diffusion-v1", "stable-diffusion-v2", "sd_v1", "sd_v2"),
)
