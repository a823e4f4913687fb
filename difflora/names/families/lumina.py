"""Z-Image and Lumina 2: one stream of layers with q, k and v in one matrix, and four layers that refine noise and text."""

from __future__ import annotations

from .family import DIFFUSERS, Family, Link, renamed, split

_STACKS = ("layers", "noise_refiner", "context_refiner")


def _layer(stack: str, modulation: str) -> tuple[tuple[str, str], ...]:
    text = " text" if stack == "context_refiner" else ""
    return (
        (f"{stack}.#.attention.{{qkv,out,q_norm,k_norm}}", f"attn{text}"),
        (f"{stack}.#.feed_forward.{{w1,w2,w3}}", f"ffn{text}"),
        (f"{stack}.#.{{attention_norm1,attention_norm2,ffn_norm1,ffn_norm2,{modulation}}}", ""),
    )


_OUTSIDE = (
    ("x_embedder", ""),
    ("t_embedder.mlp.{0,2}", ""),
    ("cap_embedder.{0,1}", ""),
)
_FINAL = (("{norm_final,final_layer.{linear,adaLN_modulation.1}}", ""),)


def _each(*pairs: tuple[str, str]) -> tuple[Link, ...]:
    return renamed(*((f"{stack}.#.{left}", f"{stack}.#.{right}") for stack in _STACKS for left, right in pairs))


_Z_IMAGE = (
    *(link for stack in _STACKS for link in split(f"{stack}.#.attention.qkv", f"{stack}.#.attention.to_{{q,k,v}}")),
    *_each(("attention.{to_out.0,norm_q,norm_k}", "attention.{out,q_norm,k_norm}")),
)

Z_IMAGE = Family(
    name="Z-Image",
    modules=(*_OUTSIDE, *(row for stack in _STACKS for row in _layer(stack, "adaLN_modulation.0")), *_FINAL),
    implementation="https://github.com/Tongyi-MAI/Z-Image",
    codes={
        DIFFUSERS: (
            *_Z_IMAGE,
            *renamed(
                ("all_x_embedder.2-1", "x_embedder"),
                ("all_final_layer.2-1.{linear,adaLN_modulation.1}", "final_layer.{linear,adaLN_modulation.1}"),
            ),
        ),
        "no zero": _each(("attention.to_out", "attention.out")),
        "diffusers, fused": _each(("attention.to_qkv", "attention.qkv")),
    },
    read=(("transformer.", DIFFUSERS), ("diffusion_model.", DIFFUSERS), ("lycoris_", DIFFUSERS), ("", DIFFUSERS)),
    # musubi-tuner trains the model with q, k and v apart.
    kohya=DIFFUSERS,
    depths={"layers": (30,), "noise_refiner": (2,), "context_refiner": (2,)},
    widths={f"{stack}.#.{rest}": (shape,) for stack in _STACKS for rest, shape in (
        ("attention.qkv", (11520, 3840)), ("attention.out", (3840, 3840)), ("feed_forward.w1", (10240, 3840)),
        ("feed_forward.w2", (3840, 10240)), ("feed_forward.w3", (10240, 3840)))},
    words=("z-image", "z_image", "zimage"),
)  # fmt: skip

LUMINA2 = Family(
    name="Lumina 2",
    modules=(*_OUTSIDE, *(row for stack in _STACKS for row in _layer(stack, "adaLN_modulation.1")), *_FINAL),
    implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
    codes={
        DIFFUSERS: (
            # 24 heads of q share 8 of k and v.
            *(link for stack in _STACKS
              for link in split(f"{stack}.#.attention.qkv", f"{stack}.#.attn.to_{{q,k,v}}", (3, 1, 1))),
            *_each(
                ("attn.{to_out.0,norm_q,norm_k}", "attention.{out,q_norm,k_norm}"),
                ("feed_forward.linear_{1,2,3}", "feed_forward.w{1,2,3}"),
                ("norm2", "attention_norm2"),
            ),
            *renamed(
                ("{layers,noise_refiner}.#.norm1.{linear,norm}",
                 "{layers,noise_refiner}.#.{adaLN_modulation.1,attention_norm1}"),
                ("context_refiner.#.norm1", "context_refiner.#.attention_norm1"),
                ("time_caption_embed.timestep_embedder.linear_{1,2}", "t_embedder.mlp.{0,2}"),
                ("time_caption_embed.caption_embedder.{0,1}", "cap_embedder.{0,1}"),
                ("norm_out.linear_{1,2}", "final_layer.{adaLN_modulation.1,linear}"),
            ),
        ),
        "diffusers, fused": _each(("attn.to_qkv", "attention.qkv")),
    },
    depths={"layers": (26,), "noise_refiner": (2,), "context_refiner": (2,)},
    widths={f"{stack}.#.{rest}": (shape,) for stack in _STACKS for rest, shape in (
        ("attention.qkv", (3840, 2304)), ("attention.out", (2304, 2304)), ("feed_forward.w1", (9216, 2304)),
        ("feed_forward.w2", (2304, 9216)), ("feed_forward.w3", (9216, 2304)))},
    words=("lumina-image-2", "lumina2", "lumina 2", "lumina"),
)  # fmt: skip
