"""Krea 2: one stream of blocks, and four small blocks that blend the text encoder's layers."""

from __future__ import annotations

from .family import DIFFUSERS, Family, fused, renamed

_ATTENTION, _FEED_FORWARD = "attn.{wq,wk,wv,wo,gate}", "mlp.{gate,up,down}"
_THEIRS = "{attn.to_q,attn.to_k,attn.to_v,attn.to_out.0,attn.to_gate,ff.gate,ff.up,ff.down}"
_OURS = "{attn.wq,attn.wk,attn.wv,attn.wo,attn.gate,mlp.gate,mlp.up,mlp.down}"
_TEXT = "{layerwise,refiner}_blocks.#"

KREA2 = Family(
    name="Krea 2",
    modules=(
        ("first", ""),
        ("tmlp.{0,2}", ""),
        ("tproj.1", ""),
        ("txtmlp.{1,3}", ""),
        ("txtfusion.projector", ""),
        (f"blocks.#.{_ATTENTION}", "attn"),
        (f"blocks.#.{_FEED_FORWARD}", "ffn"),
        (f"txtfusion.layerwise_blocks.#.{_ATTENTION}", "attn text"),
        (f"txtfusion.layerwise_blocks.#.{_FEED_FORWARD}", "ffn text"),
        (f"txtfusion.refiner_blocks.#.{_ATTENTION}", "attn text"),
        (f"txtfusion.refiner_blocks.#.{_FEED_FORWARD}", "ffn text"),
        ("last.linear", ""),
    ),
    implementation="https://github.com/krea-ai/krea-2",
    codes={
        DIFFUSERS: renamed(
            (f"transformer_blocks.#.{_THEIRS}", f"blocks.#.{_OURS}"),
            (f"text_fusion.{_TEXT}.{_THEIRS}", f"txtfusion.{_TEXT}.{_OURS}"),
            ("{img_in,time_mod_proj,text_fusion.projector,final_layer.linear}", "{first,tproj.1,txtfusion.projector,last.linear}"),
            ("time_embed.linear_{1,2}", "tmlp.{0,2}"),
            ("txt_in.linear_{1,2}", "txtmlp.{1,3}"),
        ),
        # SimpleTuner's fused_qkv_projections. In the blocks, 48 heads of q share 12 of k and v.
        "diffusers, fused": (
            *fused("blocks.#.attn.{wq,wk,wv}", "transformer_blocks.#.attn.to_qkv", (4, 1, 1)),
            *(
                link
                for stack in ("layerwise_blocks", "refiner_blocks")
                for link in fused(f"txtfusion.{stack}.#.attn.{{wq,wk,wv}}", f"text_fusion.{stack}.#.attn.to_qkv")
            ),
        ),
        # Some tools drop the 0.
        "no zero": renamed(
            ("transformer_blocks.#.attn.to_out", "blocks.#.attn.wo"),
            (f"text_fusion.{_TEXT}.attn.to_out", f"txtfusion.{_TEXT}.attn.wo"),
        ),
    },
    read=(("transformer.", DIFFUSERS), ("diffusion_model.", DIFFUSERS), ("lycoris_", DIFFUSERS), ("", DIFFUSERS)),
    depths={"blocks": (28,), "txtfusion.layerwise_blocks": (2,), "txtfusion.refiner_blocks": (2,)},
    widths={
        "blocks.#.attn.wq": ((6144, 6144),),
        "blocks.#.attn.wk": ((1536, 6144),),
        "blocks.#.attn.wo": ((6144, 6144),),
    },
    words=("krea-2", "krea2", "krea_2", "krea 2"),
)  # fmt: skip
