"""MiniMax H3: one stream of video, audio and text."""

from __future__ import annotations

from .family import DIFFSYNTH, DIFFUSERS, Family, by_head, renamed, split, swapped

_ATTENTION, _FEED_FORWARD = "attn.{qkv_proj,out_proj,q_norm,k_norm}", "mlp.fc{1,2}"

MINIMAX_H3 = Family(
    name="MiniMax H3",
    modules=(
        ("{video_patch_proj,audio_patch_proj,condition_proj}", ""),
        ("time_embedder.proj_{in,out}", ""),
        (f"token_refiner.blocks.#.{_ATTENTION}", "attn text"),
        (f"token_refiner.blocks.#.{_FEED_FORWARD}", "ffn text"),
        ("token_refiner.{blocks.#.{norm1,norm2},final_norm}", ""),
        (f"blocks.#.{_ATTENTION}", "attn"),
        (f"blocks.#.{_FEED_FORWARD}", "ffn"),
        ("blocks.#.{norm1,norm2,adaln_proj.linear}", ""),
        ("final_layer.{norm,adaln_proj.linear,video_out,audio_out}", ""),
    ),
    implementation="https://huggingface.co/MiniMaxAI/MiniMax-H3",
    codes={
        DIFFUSERS: (
            *split("blocks.#.attn.qkv_proj", "transformer_blocks.#.attn.to_{q,k,v}"),
            *split("token_refiner.blocks.#.attn.qkv_proj", "token_refiner.refiner_blocks.#.attn.to_{q,k,v}"),
            # The gate comes first here and last there.
            *swapped("blocks.#.mlp.fc1", "transformer_blocks.#.ff.net.0.proj"),
            *swapped("token_refiner.blocks.#.mlp.fc1", "token_refiner.refiner_blocks.#.ff.net.0.proj"),
            *renamed(
                ("transformer_blocks.#.{attn.to_out.0,attn.norm_q,attn.norm_k,ff.net.2,norm1,norm2,adaln_proj.linear}",
                 "blocks.#.{attn.out_proj,attn.q_norm,attn.k_norm,mlp.fc2,norm1,norm2,adaln_proj.linear}"),
                ("token_refiner.refiner_blocks.#.{attn.to_out.0,attn.norm_q,attn.norm_k,ff.net.2,norm1,norm2}",
                 "token_refiner.blocks.#.{attn.out_proj,attn.q_norm,attn.k_norm,mlp.fc2,norm1,norm2}"),
                ("{proj_in,audio_proj_in,context_embedder}", "{video_patch_proj,audio_patch_proj,condition_proj}"),
                ("time_embedder.linear_{1,2}", "time_embedder.proj_{in,out}"),
                ("norm_out.{norm,linear}", "final_layer.{norm,adaln_proj.linear}"),
                ("{proj_out,audio_proj_out}", "final_layer.{video_out,audio_out}"),
            ),
        ),
    },
    # DiffSynth trains the published checkpoint as it is; all others bring its rows into the order of ComfyUI's first.
    layouts={DIFFSYNTH: by_head("{blocks,token_refiner.blocks}.#.attn.qkv_proj", head=128)},
    depths={"blocks": (50,), "token_refiner.blocks": (2,)},
    widths={
        "blocks.#.attn.qkv_proj": ((21504, 5376),),
        "blocks.#.attn.out_proj": ((5376, 7168),),
        "blocks.#.mlp.fc1": ((28672, 5376),),
        "blocks.#.mlp.fc2": ((5376, 14336),),
    },
    words=("minimax-h3", "minimax_h3", "minimax", "hailuo"),
)  # fmt: skip
