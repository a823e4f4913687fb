"""Anima: Cosmos-Predict2's blocks, with an adapter for the text encoder."""

from __future__ import annotations

from .family import DIFFUSERS, Family, fused, renamed

_ATTENTION = "{q_proj,k_proj,v_proj,output_proj,q_norm,k_norm}"
_ADAPTER = "{q_proj,k_proj,v_proj,o_proj,q_norm,k_norm}"

ANIMA = Family(
    name="Anima",
    modules=(
        ("x_embedder.proj.1", ""),
        ("t_embedder.1.linear_{1,2}", ""),
        ("t_embedding_norm", ""),
        (f"blocks.#.self_attn.{_ATTENTION}", "attn self_attn"),
        (f"blocks.#.cross_attn.{_ATTENTION}", "attn cross_attn"),
        ("blocks.#.mlp.layer{1,2}", "ffn"),
        ("blocks.#.adaln_modulation_{self_attn,cross_attn,mlp}.{1,2}", ""),
        ("llm_adapter.{embed,in_proj,out_proj,norm}", ""),
        (f"llm_adapter.blocks.#.self_attn.{_ADAPTER}", "attn self_attn text"),
        (f"llm_adapter.blocks.#.cross_attn.{_ADAPTER}", "attn cross_attn text"),
        ("llm_adapter.blocks.#.mlp.{0,2}", "ffn text"),
        ("llm_adapter.blocks.#.{norm_self_attn,norm_cross_attn,norm_mlp}", ""),
        ("final_layer.{linear,adaln_modulation.{1,2}}", ""),
    ),
    implementation="https://huggingface.co/circlestone-labs/Anima",
    codes={
        DIFFUSERS: renamed(
            ("transformer_blocks.#.{attn1,attn2}.{to_q,to_k,to_v,to_out.0,norm_q,norm_k}",
             f"blocks.#.{{self_attn,cross_attn}}.{_ATTENTION}"),
            ("transformer_blocks.#.ff.net.{0.proj,2}", "blocks.#.mlp.layer{1,2}"),
            ("transformer_blocks.#.norm{1,2,3}.linear_{1,2}",
             "blocks.#.adaln_modulation_{self_attn,cross_attn,mlp}.{1,2}"),
            ("norm_out.linear_{1,2}", "final_layer.adaln_modulation.{1,2}"),
            ("{proj_out,patch_embed.proj,time_embed.norm}", "{final_layer.linear,x_embedder.proj.1,t_embedding_norm}"),
            ("time_embed.t_embedder.linear_{1,2}", "t_embedder.1.linear_{1,2}"),
        ),
        "diffusers, fused": (
            *fused("blocks.#.self_attn.{q_proj,k_proj,v_proj}", "transformer_blocks.#.attn1.to_qkv"),
            *fused("blocks.#.cross_attn.{k_proj,v_proj}", "transformer_blocks.#.attn2.to_kv"),
        ),
    },
    depths={"blocks": (28,), "llm_adapter.blocks": (6,)},
    widths={
        "blocks.#.self_attn.q_proj": ((2048, 2048),),
        "blocks.#.cross_attn.k_proj": ((2048, 1024),),
        "blocks.#.mlp.layer1": ((8192, 2048),),
    },
    words=("anima",),
)  # fmt: skip
