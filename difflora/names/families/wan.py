"""Wan2.1 and Wan2.2: T2V, I2V, VACE, Animate, S2V, Fun control and camera, 5B."""

from __future__ import annotations

import re
from collections import Counter

from ...sentence import Sentence
from .family import DIFFUSERS, Family, Link, Shapes, fused, renamed, spelled_out

_SELF, _CROSS, _FFN = "attn self_attn", "attn cross_attn", "ffn"
_STACKS = ("blocks", "vace_blocks")


def _block(stack: str) -> tuple[tuple[str, str], ...]:
    return (
        (f"{stack}.#.self_attn.{{q,k,v,o,norm_q,norm_k}}", _SELF),
        (f"{stack}.#.norm3", ""),
        (f"{stack}.#.cross_attn.{{q,k,v,o,norm_q,norm_k,k_img,v_img,norm_k_img}}", _CROSS),
        (f"{stack}.#.ffn.{{0,2}}", _FFN),
        (f"{stack}.#.modulation", ""),
    )


_MODULES = (
    ("patch_embedding", ""),
    ("{text,time}_embedding.{0,2}", ""),
    ("time_projection.1", ""),
    *_block("blocks"),
    ("head.{head,modulation}", ""),
    ("img_emb.{proj.{0,1,3,4},emb_pos}", ""),
    ("ref_conv", ""),
    ("vace_patch_embedding", ""),
    *_block("vace_blocks"),
    ("vace_blocks.#.{before,after}_proj", ""),
    # Animate
    ("pose_patch_embedding", ""),
    ("face_adapter.fuser_blocks.#.{linear1_kv,linear1_q,linear2,q_norm,k_norm}", _CROSS),
    ("face_encoder.{conv1_local.conv,conv2.conv,conv3.conv,out_proj}", ""),
    ("motion_encoder.enc.net_app.convs.{#.{0,conv1.0,conv2.1,skip.1},8}", ""),
    ("motion_encoder.{enc.fc.#,dec.direction}", ""),
    # S2V
    ("audio_injector.injector.#.{q,k,v,o,norm_q,norm_k}", f"{_CROSS} audio"),
    ("audio_injector.injector_adain_layers.#.linear", ""),
    ("casual_audio_encoder.encoder.{conv1_local,conv1_global,conv2,conv3}.conv", ""),
    ("casual_audio_encoder.encoder.final_linear", ""),
    ("cond_encoder", ""),
    ("frame_packer.{proj,proj_2x,proj_4x}", ""),
    ("trainable_cond_mask", ""),
    # Camera
    ("control_adapter.{conv,residual_blocks.#.{conv1,conv2}}", ""),
)

# Diffusers numbers the norms by use, so its affine norm2 is Wan's norm3; norm1 and Wan's norm2 have no weights.
_DIFFUSERS_BLOCK = (
    ("attn1.{to_q,to_k,to_v,to_out.0,norm_q,norm_k}", "self_attn.{q,k,v,o,norm_q,norm_k}"),
    ("norm2", "norm3"),
    ("attn2.{to_q,to_k,to_v,to_out.0,norm_q,norm_k}", "cross_attn.{q,k,v,o,norm_q,norm_k}"),
    ("attn2.{add_k_proj,add_v_proj,norm_added_k}", "cross_attn.{k_img,v_img,norm_k_img}"),
    ("ffn.net.{0.proj,2}", "ffn.{0,2}"),
    ("scale_shift_table", "modulation"),
)
_IMAGE = "condition_embedder.image_embedder"
_DIFFUSERS = (
    *renamed(*((f"{stack}.#.{left}", f"{stack}.#.{right}") for stack in _STACKS for left, right in _DIFFUSERS_BLOCK)),
    *renamed(
        ("vace_blocks.#.proj_{in,out}", "vace_blocks.#.{before,after}_proj"),
        ("condition_embedder.{text,time}_embedder.linear_{1,2}", "{text,time}_embedding.{0,2}"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("{proj_out,scale_shift_table}", "head.{head,modulation}"),
        (f"{_IMAGE}.{{norm1,ff.net.0.proj,ff.net.2,norm2,pos_embed}}", "img_emb.{proj.{0,1,3,4},emb_pos}"),
    ),
)


def _half_converted(of_theirs: bool) -> tuple[Link, ...]:
    """Files that mix the two: self_attn.to_out.0 (LyCORIS), to_out without its 0; in diffusers' components, attn1.q."""
    links = []
    for theirs, ours in _DIFFUSERS_BLOCK:
        for left, right in zip(spelled_out(theirs), spelled_out(ours), strict=True):
            component, dot, projection = right.partition(".")
            their_component, _, their_projection = left.partition(".")
            if not dot or component == "ffn":
                continue
            outer = their_component if of_theirs else component
            links += [
                Link(f"{stack}.#.{right}", f"{stack}.#.{outer}.{inner}")
                for stack in _STACKS
                for inner in dict.fromkeys((projection, their_projection, their_projection.removesuffix(".0")))
            ]
    return tuple(links)


def _trained_fused(*rows: tuple[str, str]) -> tuple[Link, ...]:
    """Trained with q, k and v in one matrix."""
    return tuple(
        link
        for stack in _STACKS
        for theirs, ours in rows
        for name in spelled_out(theirs)
        for link in fused(f"{stack}.#.{ours}", f"{stack}.#.{name}")
    )


_FUSED = _trained_fused(("self_attn.{qkv,to_qkv}", "self_attn.{q,k,v}"), ("cross_attn.{kv,to_kv}", "cross_attn.{k,v}"))
_FUSED_THEIRS = _trained_fused(("attn1.{qkv,to_qkv}", "self_attn.{q,k,v}"), ("attn2.{kv,to_kv}", "cross_attn.{k,v}"))

_AS_WIDE_AS_THE_MODEL = (
    *("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"),
    *("patch_embedding", "vace_patch_embedding", "ref_conv", "img_emb.proj.3", "img_emb.proj.4"),
)
# Width of the model and of its feed-forward layer -> what it is called.
_SIZES = {(5120, 13824): "14B", (1536, 8960): "1.3B", (3072, 14336): "5B"}
_TEN = tuple(f"{attn}.{p}" for attn in ("self_attn", "cross_attn") for p in "qkvo") + ("ffn.0", "ffn.2")
_IN_BLOCK = frozenset(
    name.split("#.", 1)[1] for template, _ in _block("blocks") for name in spelled_out(template)
) | {"before_proj", "after_proj"}  # fmt: skip


def _in_block(module: str) -> tuple[str, int, str] | None:
    stack, _, rest = module.partition(".")
    number, _, rest = rest.partition(".")
    if stack in _STACKS and rest in _IN_BLOCK and number.isdigit():
        return stack, int(number), rest
    return None


def _variant(shapes: Shapes) -> str | None:
    """The two models of Wan2.2-A14B have the shapes of Wan2.1's 14B models and cannot be told from them."""
    widths, feed_forwards, complete = _measured(shapes)
    if len(widths) != 1 or len(feed_forwards) > 1:
        return None
    width = next(iter(widths))
    sizes = [name for (w, f), name in _SIZES.items() if w == width and (not feed_forwards or f in feed_forwards)]
    if not sizes:
        return Sentence("Wan of width {0}", width)
    size = sizes[0]
    if size == "5B":
        return "Wan2.2-5B"
    for start, kind in (("vace_", "VACE"), ("face_adapter.", "Animate"), ("audio_injector.", "S2V")):
        if any(module.startswith(start) for module in shapes):
            return f"Wan2.{'1' if kind == 'VACE' else '2'}-{kind}-{size}"
    if any(module.startswith("img_emb.") or "k_img" in module or "v_img" in module for module in shapes):
        return f"Wan2.1-I2V-{size}"
    if size == "14B":
        return "Wan2.1/2.2 14B" if complete else "Wan2.1/2.2 14B (T2V or I2V)"
    return f"Wan2.1-T2V-{size}" if complete else f"Wan2.1 {size}"


def _measured(shapes: Shapes) -> tuple[set[int], set[int], bool]:
    """All widths of the model and of its feed-forward layers, and whether some block has all matrices of T2V."""
    widths: set[int] = set()
    feed_forwards: set[int] = set()
    projections: Counter[int] = Counter()
    for module, shape in shapes.items():
        if not shape:
            continue
        where = _in_block(module)
        if where is None:
            if module in _AS_WIDE_AS_THE_MODEL:
                widths.add(shape[0])
            elif module in ("head.head", "time_projection.1", "head.modulation"):
                widths.add(shape[-1])
            continue
        stack, block, rest = where
        component = rest.partition(".")[0]
        if len(shape) >= 2 and component == "ffn":
            wide, narrow = (shape[0], shape[1]) if rest == "ffn.0" else (shape[1], shape[0])
            feed_forwards.add(wide)
            widths.add(narrow)
        elif component in ("self_attn", "cross_attn"):
            widths.update(shape)
        else:
            widths.add(shape[-1])
        if stack == "blocks" and rest in _TEN:
            projections[block] += 1
    return widths, feed_forwards, any(count == len(_TEN) for count in projections.values())


_T2V = tuple(f"{attn}.{p}" for attn in ("self_attn", "cross_attn") for p in "qkvo") + ("ffn.0", "ffn.2")
_I2V = (*_T2V[:8], "cross_attn.k_img", "cross_attn.v_img", *_T2V[8:])

WAN = Family(
    name="Wan",
    modules=_MODULES,
    implementation="https://github.com/Wan-Video/Wan2.1",
    codes={
        DIFFUSERS: _DIFFUSERS,
        "own, half converted": (*_half_converted(of_theirs=False), *_FUSED),
        "diffusers, half converted": (*_half_converted(of_theirs=True), *_FUSED_THEIRS),
    },
    depths={"blocks": (30, 40), "vace_blocks": (8, 15)},
    variant=_variant,
    kernels={
        "patch_embedding": (1, 2, 2),
        "vace_patch_embedding": (1, 2, 2),
        "pose_patch_embedding": (1, 2, 2),
        "ref_conv": (2, 2),
    },
    optional=tuple(
        name
        for template in (
            "{blocks,vace_blocks}.#.cross_attn.{k_img,v_img,norm_k_img}",
            "img_emb.{proj.{0,1,3,4},emb_pos}",
        )
        for name in spelled_out(template)
    ),
    norms=("img_emb.proj.0", "img_emb.proj.4"),
    alpha_in_blocks=True,  # diffusers rejects one elsewhere, and without one the scale is also 1
    bare=("blocks.#.modulation", "vace_blocks.#.modulation", "head.modulation", "img_emb.emb_pos"),
    # Animate, S2V, Fun Control, ReCamMaster, …
    built_on=re.compile(
        r"(?:^|_)(?:adapter|audio|face|motion|pose|music|cam|camera|control|controlnet|mask|ref|refimage|global|cond"
        r"|injector|packer|projector|encoder)(?=_|$)"
    ),
    words=("wan",),
    shown=(
        ("Wan 14B T2V", "14B", "blocks", 40, _T2V),
        ("Wan 14B I2V", "14B", "blocks", 40, _I2V),
        ("Wan 1.3B / 5B", "1.3B / 5B", "blocks", 30, _T2V),
    ),
)
