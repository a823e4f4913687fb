"""LTX-Video and LTX-2, which adds a stream of audio with attention between the two."""

from __future__ import annotations

from .family import DIFFUSERS, Family, Link, fused, renamed

_ATTENTION = "{to_q,to_k,to_v,to_out.0,q_norm,k_norm,to_gate_logits}"
_ADALN = "{emb.timestep_embedder.linear_1,emb.timestep_embedder.linear_2,linear}"
_BLOCK = (
    (f"transformer_blocks.#.attn1.{_ATTENTION}", "attn self_attn"),
    (f"transformer_blocks.#.attn2.{_ATTENTION}", "attn cross_attn"),
    ("transformer_blocks.#.ff.net.{0.proj,2}", "ffn"),
    ("transformer_blocks.#.scale_shift_table", ""),
)
_NORMS = ("transformer_blocks.#.{attn1,attn2}.norm_{q,k}", "transformer_blocks.#.{attn1,attn2}.{q,k}_norm")
_BARE = ("scale_shift_table", "transformer_blocks.#.scale_shift_table")


def _trained_fused(*attentions: str) -> tuple[Link, ...]:
    """Trained with diffusers' fuse_qkv_projections: q, k and v in one matrix, or k and v where q comes from elsewhere."""
    return tuple(
        link
        for name in attentions
        for whole in (("to_q", "to_k", "to_v"), ("to_k", "to_v"))
        for link in fused(
            f"transformer_blocks.#.{name}.{{{','.join(whole)}}}",
            f"transformer_blocks.#.{name}.{'to_qkv' if len(whole) == 3 else 'to_kv'}",
        )
    )


LTX_VIDEO = Family(
    name="LTX-Video",
    modules=(
        ("patchify_proj", ""),
        (f"adaln_single.{_ADALN}", ""),
        ("caption_projection.linear_{1,2}", ""),
        *_BLOCK,
        ("proj_out", ""),
        ("scale_shift_table", ""),
    ),
    implementation="https://github.com/Lightricks/LTX-Video",
    codes={
        DIFFUSERS: renamed(("proj_in", "patchify_proj"), (f"time_embed.{_ADALN}", f"adaln_single.{_ADALN}"), _NORMS),
        "fused": _trained_fused("attn1", "attn2"),
    },
    read=(("", "own"),),
    # The model with 13 billion parameters has 48 blocks.
    depths={"transformer_blocks": (28, 48)},
    widths={"transformer_blocks.#.attn1.to_q": ((2048, 2048), (4096, 4096))},
    bare=_BARE,
    words=("ltx-video", "ltxv", "ltx_video"),
    latents={"LTXV": 8},
)

_AUDIO = "audio_attn{1,2}"
_BETWEEN = "{audio_to_video,video_to_audio}_attn"
_ADAPTIVE = (
    "{audio_adaln_single,av_ca_video_scale_shift_adaln_single,av_ca_a2v_gate_adaln_single,"
    "av_ca_audio_scale_shift_adaln_single,av_ca_v2a_gate_adaln_single}"
)
_CONNECTOR = "{audio,video}_embeddings_connector.transformer_1d_blocks.#"
_TABLES = "{audio_scale_shift_table,scale_shift_table_a2v_ca_audio,scale_shift_table_a2v_ca_video}"

LTX2 = Family(
    name="LTX-2",
    modules=(
        ("{patchify_proj,audio_patchify_proj}", ""),
        (f"adaln_single.{_ADALN}", ""),
        (f"{_ADAPTIVE}.{_ADALN}", ""),
        ("{caption_projection,audio_caption_projection}.linear_{1,2}", ""),
        (f"{_CONNECTOR}.attn1.{_ATTENTION}", "attn self_attn text"),
        (f"{_CONNECTOR}.ff.net.{{0.proj,2}}", "ffn text"),
        *_BLOCK[:3],
        (f"transformer_blocks.#.audio_attn1.{_ATTENTION}", "attn self_attn audio"),
        (f"transformer_blocks.#.audio_attn2.{_ATTENTION}", "attn cross_attn audio"),
        (f"transformer_blocks.#.{_BETWEEN}.{_ATTENTION}", "attn cross_attn audio"),
        ("transformer_blocks.#.audio_ff.net.{0.proj,2}", "ffn audio"),
        ("transformer_blocks.#.scale_shift_table", ""),
        (f"transformer_blocks.#.{_TABLES}", ""),
        ("{proj_out,audio_proj_out}", ""),
        ("{scale_shift_table,audio_scale_shift_table}", ""),
    ),
    implementation="https://github.com/Lightricks/LTX-2",
    codes={
        DIFFUSERS: renamed(
            ("{proj_in,audio_proj_in}", "{patchify_proj,audio_patchify_proj}"),
            (f"time_embed.{_ADALN}", f"adaln_single.{_ADALN}"),
            (
                "{audio_time_embed,av_cross_attn_video_scale_shift,av_cross_attn_video_a2v_gate,"
                f"av_cross_attn_audio_scale_shift,av_cross_attn_audio_v2a_gate}}.{_ADALN}",
                f"{_ADAPTIVE}.{_ADALN}",
            ),
            _NORMS,
            (f"transformer_blocks.#.{_AUDIO}.norm_{{q,k}}", f"transformer_blocks.#.{_AUDIO}.{{q,k}}_norm"),
            (f"transformer_blocks.#.{_BETWEEN}.norm_{{q,k}}", f"transformer_blocks.#.{_BETWEEN}.{{q,k}}_norm"),
            (
                "transformer_blocks.#.{audio,video}_a2v_cross_attn_scale_shift_table",
                "transformer_blocks.#.scale_shift_table_a2v_ca_{audio,video}",
            ),
        ),
        "fused": _trained_fused(
            "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"
        ),
    },
    read=(("", "own"),),
    depths={"transformer_blocks": (48,)},
    widths={"transformer_blocks.#.attn1.to_q": ((4096, 4096),)},
    bare=(
        *_BARE,
        "audio_scale_shift_table",
        "transformer_blocks.#.audio_scale_shift_table",
        "transformer_blocks.#.scale_shift_table_a2v_ca_audio",
        "transformer_blocks.#.scale_shift_table_a2v_ca_video",
    ),
    words=("ltx-2", "ltx2", "ltxav"),
)
