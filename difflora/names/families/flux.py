"""Flux.1 and FLUX.2, which have the same blocks; FLUX.2 has one modulation for all of them, and a gated feed-forward."""

from __future__ import annotations

from .family import DIFFUSERS, Family, Link, Rows, Shapes, renamed, spelled_out, split, swapped

_JOINT = "attn"
_BLOCKS = (
    ("double_blocks.#.img_attn.{qkv,proj,norm.query_norm,norm.key_norm}", f"{_JOINT} image"),
    ("double_blocks.#.img_mlp.{0,2}", "ffn image"),
    ("double_blocks.#.txt_attn.{qkv,proj,norm.query_norm,norm.key_norm}", f"{_JOINT} text"),
    ("double_blocks.#.txt_mlp.{0,2}", "ffn text"),
    # One matrix computes both, so both words mean it.
    ("single_blocks.#.linear{1,2}", f"{_JOINT} ffn"),
    ("single_blocks.#.norm.{query,key}_norm", _JOINT),
)
_FINAL = (("final_layer.{linear,adaLN_modulation.1}", ""),)

_DIFFUSERS_BLOCKS: tuple[Link, ...] = (
    *split("double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn.to_{q,k,v}"),
    *split("double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn.add_{q,k,v}_proj"),
    *renamed(
        ("transformer_blocks.#.attn.{to_out.0,to_add_out}", "double_blocks.#.{img,txt}_attn.proj"),
        ("transformer_blocks.#.attn.norm_{q,k}", "double_blocks.#.img_attn.norm.{query,key}_norm"),
        ("transformer_blocks.#.attn.norm_added_{q,k}", "double_blocks.#.txt_attn.norm.{query,key}_norm"),
        ("single_transformer_blocks.#.attn.norm_{q,k}", "single_blocks.#.norm.{query,key}_norm"),
    ),
)
_DIFFUSERS_OUTSIDE: tuple[Link, ...] = (
    *renamed(("x_embedder", "img_in"), ("context_embedder", "txt_in"), ("proj_out", "final_layer.linear")),
    *swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
)
_LINEAR1 = split(
    "single_blocks.#.linear1",
    "single_transformer_blocks.#.{attn.to_q,attn.to_k,attn.to_v,proj_mlp}",
    (1, 1, 1, 4),
)
# Trained with diffusers' fuse_qkv_projections, as SimpleTuner does.
_TRAINED_FUSED = renamed(("transformer_blocks.#.attn.{to_qkv,to_added_qkv}", "double_blocks.#.{img,txt}_attn.qkv"))
_FEED_FORWARD = ("transformer_blocks.#.{ff,ff_context}.net.{0.proj,2}", "double_blocks.#.{img,txt}_mlp.{0,2}")
_GATED_FEED_FORWARD = ("transformer_blocks.#.{ff,ff_context}.linear_{in,out}", "double_blocks.#.{img,txt}_mlp.{0,2}")

# Prefixes that ComfyUI accepts before diffusers' names; OneTrainer, SimpleTuner and DiffSynth write them.
_READ = (("transformer.", DIFFUSERS), ("lycoris_", DIFFUSERS), ("lora_transformer_", DIFFUSERS), ("", DIFFUSERS))

FLUX = Family(
    name="Flux",
    modules=(
        ("{img_in,txt_in}", ""),
        ("{time,vector,guidance}_in.{in,out}_layer", ""),
        *_BLOCKS,
        ("double_blocks.#.{img,txt}_mod.lin", ""),
        ("single_blocks.#.modulation.lin", ""),
        *_FINAL,
    ),
    implementation="https://github.com/black-forest-labs/flux",
    codes={
        DIFFUSERS: (
            *_DIFFUSERS_BLOCKS,
            *_LINEAR1,
            *renamed(
                _FEED_FORWARD,
                ("single_transformer_blocks.#.proj_out", "single_blocks.#.linear2"),
                ("transformer_blocks.#.{norm1,norm1_context}.linear", "double_blocks.#.{img,txt}_mod.lin"),
                ("single_transformer_blocks.#.norm.linear", "single_blocks.#.modulation.lin"),
                (
                    "time_text_embed.{timestep,text,guidance}_embedder.linear_{1,2}",
                    "{time,vector,guidance}_in.{in,out}_layer",
                ),
            ),
            *_DIFFUSERS_OUTSIDE,
        ),
        "diffusers, fused": (
            *_TRAINED_FUSED,
            Link("single_blocks.#.linear1", "single_transformer_blocks.#.attn.to_qkv", own_rows=Rows(0, 3, 7)),
        ),
        "lycoris": renamed(_GATED_FEED_FORWARD),
    },
    read=_READ,
    depths={"double_blocks": (19,), "single_blocks": (38,)},
    widths={
        "double_blocks.#.img_attn.qkv": ((9216, 3072),),
        "double_blocks.#.txt_attn.qkv": ((9216, 3072),),
        "double_blocks.#.img_attn.proj": ((3072, 3072),),
        "double_blocks.#.txt_attn.proj": ((3072, 3072),),
        "double_blocks.#.img_mlp.0": ((12288, 3072),),
        "double_blocks.#.txt_mlp.0": ((12288, 3072),),
        "double_blocks.#.img_mlp.2": ((3072, 12288),),
        "double_blocks.#.txt_mlp.2": ((3072, 12288),),
        "single_blocks.#.linear1": ((21504, 3072),),
        "single_blocks.#.linear2": ((3072, 15360),),
    },
    words=("flux.1", "flux-1", "flux1", "flux"),
)

_HIDDEN2 = {3072: "Klein 4B", 4096: "Klein 9B", 6144: "dev"}


def _variant2(shapes: Shapes) -> str | None:
    widths = {
        shape[1 if module.endswith((".qkv", ".linear1", "_mlp.0")) else 0]
        for module, shape in shapes.items()
        if len(shape) == 2 and module.endswith((".qkv", ".linear1", "_mlp.0", "_mlp.2", ".linear2", "_attn.proj"))
    }
    kinds = {_HIDDEN2.get(width) for width in widths}
    kind = kinds.pop() if len(kinds) == 1 else None
    return f"FLUX.2 {kind}" if kind else None


FLUX2 = Family(
    name="FLUX.2",
    modules=(
        ("{img_in,txt_in}", ""),
        ("{time,guidance}_in.{in,out}_layer", ""),
        ("{double_stream_modulation_{img,txt},single_stream_modulation}.lin", ""),
        *_BLOCKS,
        *_FINAL,
    ),
    implementation="https://github.com/black-forest-labs/flux2",
    codes={
        DIFFUSERS: (
            *_DIFFUSERS_BLOCKS,
            *renamed(
                _GATED_FEED_FORWARD,
                ("single_transformer_blocks.#.attn.{to_qkv_mlp_proj,to_out}", "single_blocks.#.linear{1,2}"),
                ("{double_stream_modulation_{img,txt},single_stream_modulation}.linear",
                 "{double_stream_modulation_{img,txt},single_stream_modulation}.lin"),
                ("time_guidance_embed.{timestep,guidance}_embedder.linear_{1,2}", "{time,guidance}_in.{in,out}_layer"),
            ),
            *_DIFFUSERS_OUTSIDE,
        ),
        "diffusers, fused": _TRAINED_FUSED,
    },
    read=_READ,
    unread=tuple(
        spelled_out(
            "{{double_stream_modulation_{img,txt},single_stream_modulation}.linear,"
            "time_guidance_embed.{timestep,guidance}_embedder.linear_{1,2}}"
        )
    ),
    depths={"double_blocks": (5, 8), "single_blocks": (20, 24, 48)},
    widths={
        template: tuple((rows * h, columns * h) for h in _HIDDEN2)
        for template, rows, columns in (
            ("double_blocks.#.img_attn.qkv", 3, 1),
            ("double_blocks.#.txt_attn.qkv", 3, 1),
            ("double_blocks.#.img_attn.proj", 1, 1),
            ("double_blocks.#.txt_attn.proj", 1, 1),
            ("double_blocks.#.img_mlp.0", 6, 1),
            ("double_blocks.#.txt_mlp.0", 6, 1),
            ("double_blocks.#.img_mlp.2", 1, 3),
            ("double_blocks.#.txt_mlp.2", 1, 3),
            ("single_blocks.#.linear1", 9, 1),
            ("single_blocks.#.linear2", 1, 4),
        )
    },
    variant=_variant2,
    words=("flux.2", "flux-2", "flux2", "klein"),
)  # fmt: skip
