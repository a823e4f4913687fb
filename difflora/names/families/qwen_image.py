"""Qwen-Image and Qwen-Image-Edit, which use diffusers' names everywhere."""

from __future__ import annotations

from .family import OWN, Family, fused

QWEN_IMAGE = Family(
    name="Qwen-Image",
    modules=(
        ("{img_in,txt_in,txt_norm}", ""),
        ("time_text_embed.timestep_embedder.linear_{1,2}", ""),
        ("transformer_blocks.#.attn.{to_q,to_k,to_v,to_out.0,norm_q,norm_k}", "attn image"),
        (
            "transformer_blocks.#.attn.{add_q_proj,add_k_proj,add_v_proj,to_add_out,norm_added_q,norm_added_k}",
            "attn text",
        ),
        ("transformer_blocks.#.img_mlp.net.{0.proj,2}", "ffn image"),
        ("transformer_blocks.#.txt_mlp.net.{0.proj,2}", "ffn text"),
        ("transformer_blocks.#.{img,txt}_mod.1", ""),
        ("norm_out.linear", ""),
        ("proj_out", ""),
    ),
    implementation="https://github.com/QwenLM/Qwen-Image",
    # Trained fused: by SimpleTuner, and with DiffSynth's merged attention.
    codes={
        "fused": (
            *fused("transformer_blocks.#.attn.{to_q,to_k,to_v}", "transformer_blocks.#.attn.to_qkv"),
            *(
                link
                for name in ("to_added_qkv", "add_qkv_proj")
                for link in fused(
                    "transformer_blocks.#.attn.{add_q_proj,add_k_proj,add_v_proj}", f"transformer_blocks.#.attn.{name}"
                )
            ),
        ),
    },
    read=(("transformer.", OWN), ("lycoris_", OWN), ("", OWN)),
    depths={"transformer_blocks": (60,)},
    widths={"transformer_blocks.#.attn.to_q": ((3072, 3072),)},
    words=("qwen-image", "qwen_image", "qwenimage", "qwen"),
)
