"""HunyuanVideo 1.0 and 1.5, by ComfyUI's names; their own code and musubi-tuner have fewer dots, 1.5 splits q, k and v."""

from __future__ import annotations

from .family import DIFFUSERS, Family, Link, Rows, renamed, split, swapped

_REFINER = "txt_in.individual_token_refiner.blocks.#"
_DOUBLE = (
    ("double_blocks.#.img_attn.{qkv,proj,norm.query_norm,norm.key_norm}", "attn image"),
    ("double_blocks.#.img_mlp.{0,2}", "ffn image"),
    ("double_blocks.#.txt_attn.{qkv,proj,norm.query_norm,norm.key_norm}", "attn text"),
    ("double_blocks.#.txt_mlp.{0,2}", "ffn text"),
    ("double_blocks.#.{img,txt}_mod.lin", ""),
)
_TEXT = (
    ("txt_in.{input_embedder,{t,c}_embedder.{in,out}_layer}", ""),
    (f"{_REFINER}.self_attn.{{qkv,proj}}", "attn self_attn text"),
    (f"{_REFINER}.mlp.{{0,2}}", "ffn text"),
    (f"{_REFINER}.{{norm1,norm2,adaLN_modulation.1}}", ""),
)
_FINAL = (("final_layer.{linear,adaLN_modulation.1}", ""),)

# HunyuanVideo's own code: img_attn_qkv where ComfyUI has img_attn.qkv, which is the same written flat.
_SOURCE: tuple[Link, ...] = renamed(
    ("double_blocks.#.{img,txt}_attn_{qkv,proj}", "double_blocks.#.{img,txt}_attn.{qkv,proj}"),
    ("double_blocks.#.{img,txt}_mlp.fc{1,2}", "double_blocks.#.{img,txt}_mlp.{0,2}"),
    ("double_blocks.#.{img,txt}_mod.linear", "double_blocks.#.{img,txt}_mod.lin"),
    ("{time,guidance}_in.mlp.{0,2}", "{time,guidance}_in.{in,out}_layer"),
    ("txt_in.t_embedder.mlp.{0,2}", "txt_in.t_embedder.{in,out}_layer"),
    ("txt_in.c_embedder.linear_{1,2}", "txt_in.c_embedder.{in,out}_layer"),
    (f"{_REFINER}.self_attn_{{qkv,proj}}", f"{_REFINER}.self_attn.{{qkv,proj}}"),
    (f"{_REFINER}.mlp.fc{{1,2}}", f"{_REFINER}.mlp.{{0,2}}"),
)
_SOURCE_SINGLE = renamed(("single_blocks.#.modulation.linear", "single_blocks.#.modulation.lin"))
_SOURCE_SPLIT = (
    *split("double_blocks.#.img_attn.qkv", "double_blocks.#.img_attn_{q,k,v}"),
    *split("double_blocks.#.txt_attn.qkv", "double_blocks.#.txt_attn_{q,k,v}"),
    *split(f"{_REFINER}.self_attn.qkv", f"{_REFINER}.self_attn_{{q,k,v}}"),
)

_CONTEXT = "context_embedder.token_refiner.refiner_blocks.#"
_DIFFUSERS: tuple[Link, ...] = (
    *split("double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn.to_{q,k,v}"),
    *split("double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn.add_{q,k,v}_proj"),
    *split(f"{_REFINER}.self_attn.qkv", f"{_CONTEXT}.attn.to_{{q,k,v}}"),
    *renamed(
        ("transformer_blocks.#.attn.{to_out.0,to_add_out}", "double_blocks.#.{img,txt}_attn.proj"),
        ("transformer_blocks.#.attn.norm_{q,k}", "double_blocks.#.img_attn.norm.{query,key}_norm"),
        ("transformer_blocks.#.attn.norm_added_{q,k}", "double_blocks.#.txt_attn.norm.{query,key}_norm"),
        ("transformer_blocks.#.{ff,ff_context}.net.{0.proj,2}", "double_blocks.#.{img,txt}_mlp.{0,2}"),
        ("transformer_blocks.#.{norm1,norm1_context}.linear", "double_blocks.#.{img,txt}_mod.lin"),
        ("x_embedder.proj", "img_in.proj"),
        ("proj_out", "final_layer.linear"),
        ("context_embedder.proj_in", "txt_in.input_embedder"),
        ("context_embedder.time_text_embed.{timestep,text}_embedder.linear_{1,2}", "txt_in.{t,c}_embedder.{in,out}_layer"),
        (f"{_CONTEXT}.{{attn.to_out.0,ff.net.0.proj,ff.net.2,norm_out.linear,norm1,norm2}}",
         f"{_REFINER}.{{self_attn.proj,mlp.0,mlp.2,adaLN_modulation.1,norm1,norm2}}"),
    ),
    *swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
)  # fmt: skip
# Trained with diffusers' fuse_qkv_projections.
_TRAINED_FUSED = renamed(
    ("transformer_blocks.#.attn.{to_qkv,to_added_qkv}", "double_blocks.#.{img,txt}_attn.qkv"),
    (f"{_CONTEXT}.attn.to_qkv", f"{_REFINER}.self_attn.qkv"),
)
_KERNEL = {"img_in.proj": (1, 2, 2)}


def _sizes(width: int) -> dict[str, tuple[tuple[int, int], ...]]:
    return {
        f"double_blocks.#.{side}_{rest}": ((rows * width, columns * width),)
        for side in ("img", "txt")
        for rest, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.0", 4, 1), ("mlp.2", 1, 4))
    }


HUNYUAN_VIDEO = Family(
    name="HunyuanVideo",
    modules=(
        ("img_in.proj", ""),
        ("{time,vector,guidance}_in.{in,out}_layer", ""),
        *_TEXT,
        *_DOUBLE,
        ("single_blocks.#.linear{1,2}", "attn ffn"),
        ("single_blocks.#.norm.{query,key}_norm", "attn"),
        ("single_blocks.#.modulation.lin", ""),
        *_FINAL,
    ),
    implementation="https://github.com/Tencent/HunyuanVideo",
    codes={
        "source": (*_SOURCE, *_SOURCE_SINGLE),
        "diffusers, fused": (
            *_TRAINED_FUSED,
            Link("single_blocks.#.linear1", "single_transformer_blocks.#.attn.to_qkv", own_rows=Rows(0, 3, 7)),
        ),
        DIFFUSERS: (
            *_DIFFUSERS,
            *split(
                "single_blocks.#.linear1",
                "single_transformer_blocks.#.{attn.to_q,attn.to_k,attn.to_v,proj_mlp}",
                (1, 1, 1, 4),
            ),
            *renamed(
                ("single_transformer_blocks.#.{proj_out,norm.linear}", "single_blocks.#.{linear2,modulation.lin}"),
                ("single_transformer_blocks.#.attn.norm_{q,k}", "single_blocks.#.norm.{query,key}_norm"),
                (
                    "time_text_embed.{timestep,text,guidance}_embedder.linear_{1,2}",
                    "{time,vector,guidance}_in.{in,out}_layer",
                ),
            ),
        ),
    },
    kohya="source",
    depths={"double_blocks": (20,), "single_blocks": (40,)},
    widths=_sizes(3072) | {"single_blocks.#.linear1": ((21504, 3072),), "single_blocks.#.linear2": ((3072, 15360),)},
    kernels=_KERNEL,
    words=("hunyuan-video", "hunyuanvideo", "hunyuan_video", "hunyuan"),
)

HUNYUAN_VIDEO_15 = Family(
    name="HunyuanVideo-1.5",
    modules=(
        ("img_in.proj", ""),
        ("time_in.{in,out}_layer", ""),
        ("time_r_in.{in,out}_layer", ""),
        *_TEXT,
        *_DOUBLE,
        ("byt5_in.{layernorm,fc1,fc2,fc3}", ""),
        ("vision_in.proj.{0,1,3,4}", ""),
        ("cond_type_embedding", ""),
        *_FINAL,
    ),
    implementation="https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5",
    codes={
        "source": (*_SOURCE_SPLIT, *(link for link in _SOURCE if not link.own.endswith(".qkv") and "guidance" not in link.own)),
        "source, fused": tuple(link for link in _SOURCE if link.own.endswith(".qkv")),
        "diffusers, fused": _TRAINED_FUSED,
        DIFFUSERS: (
            *_DIFFUSERS,
            *renamed(
                ("time_embed.timestep_embedder.linear_{1,2}", "time_in.{in,out}_layer"),
                ("image_embedder.{norm_in,linear_1,linear_2,norm_out}", "vision_in.proj.{0,1,3,4}"),
                ("context_embedder_2.{norm,linear_1,linear_2,linear_3}", "byt5_in.{layernorm,fc1,fc2,fc3}"),
                ("cond_type_embed", "cond_type_embedding"),
            ),
        ),
    },
    kohya="source",
    depths={"double_blocks": (54,)},
    widths=_sizes(2048),
    words=("hunyuan-video-1.5", "hunyuanvideo-1.5", "hunyuan_video_1.5", "hv15", "hunyuanvideo 1.5"),
)  # fmt: skip
