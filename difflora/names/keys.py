"""Where a module sits in a Wan model, and what trainers call it.

Canonical names are the model's own, without a prefix: ``blocks.7.self_attn.q``. A key in a LoRA file is a prefix, a
module name and a part (``lora_down.weight``, ``alpha``, …), and every trainer spells all three in its own way. Wan's
module names stay distinct when every separator is written as ``_``, so one table of such flat names finds a module
from any spelling, exactly. Modules of other models keep the name that the file gives them; where kohya's trainers wrote
it flat, `flat` reads it.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..errors import FileError
from . import flat as flat_names

KOHYA, NATIVE, DIFFUSERS, PEFT = "kohya", "native", "diffusers", "peft"
OUTPUT_DIALECTS: tuple[str, ...] = (NATIVE, KOHYA, DIFFUSERS, PEFT)

_BLOCK = re.compile(r"^(?P<stack>blocks|vace_blocks)\.(?P<block>\d+)\.(?P<rest>.+)$")
_PROJECTION = re.compile(r"^(?P<component>self_attn|cross_attn|ffn)\.(?P<projection>k_img|v_img|[qkvo]|[02])(?:\..+)?$")


@dataclass(frozen=True)
class Place:
    """Where a module sits: ``blocks.7.ffn.0`` is stack "blocks", block 7, component "ffn", projection "0"."""

    stack: str | None
    block: int | None
    component: str | None
    projection: str | None


def place(module: str) -> Place:
    """Read a canonical Wan module name; parts that do not apply are None."""
    in_block = _BLOCK.match(module)
    if not in_block:
        return Place(None, None, None, None)
    projected = _PROJECTION.match(in_block["rest"])
    return Place(
        in_block["stack"],
        int(in_block["block"]),
        projected["component"] if projected else None,
        projected["projection"] if projected else None,
    )


# Wan's modules in the model's order, each with its name in diffusers. Diffusers numbers the norms by use, so its
# affine norm2 is Wan's norm3; the norms that would be norm1 and Wan's norm2 have no weights.
_IN_BLOCK = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "norm3": "norm2",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
    "before_proj": "proj_in",  # VACE only
    "after_proj": "proj_out",
}
_BEFORE_BLOCKS = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
}
_AFTER_BLOCKS = {
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "ref_conv": "ref_conv",
    "vace_patch_embedding": "vace_patch_embedding",
}
_OUTSIDE = _BEFORE_BLOCKS | _AFTER_BLOCKS
_RANK_IN_BLOCK = {name: i for i, name in enumerate(_IN_BLOCK)}
_RANK_OUTSIDE = {name: i for i, name in enumerate(_OUTSIDE)}
# The convolutions among them. Some trainers store a change of these with the kernel flattened, or without its dimension of 1.
_KERNELS = {"patch_embedding": (1, 2, 2), "vace_patch_embedding": (1, 2, 2), "ref_conv": (2, 2)}
# Parameters that are not the weight of a layer: only the dotted name reaches them in ComfyUI.
_BARE_PARAMETERS = ("modulation", "emb_pos")


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _flat_block_names() -> dict[str, tuple[str, bool]]:
    """Flat spelling inside a block -> (canonical name, whether the spelling is diffusers')."""
    table = {_flat(theirs): (ours, True) for ours, theirs in _IN_BLOCK.items()}
    for ours, theirs in _IN_BLOCK.items():
        # Half-converted files mix the two: self_attn.to_out.0 (LyCORIS), attn1.q, to_out without its 0.
        component, dot, projection = ours.partition(".")
        their_component, _, their_projection = theirs.partition(".")
        if dot and component != "ffn":
            for left in (component, their_component):
                for right in (projection, their_projection, their_projection.removesuffix(".0")):
                    table.setdefault(f"{left}_{_flat(right)}", (ours, left == their_component))
        table[_flat(ours)] = (ours, False)
    return table


_FLAT_IN_BLOCK = _flat_block_names()
_FLAT_OUTSIDE = {_flat(theirs): (ours, True) for ours, theirs in _OUTSIDE.items()}
_FLAT_OUTSIDE |= {_flat(ours): (ours, False) for ours in _OUTSIDE}
# Top-level names that other diffusers models have as well: Wan's only if nothing else in the file says otherwise.
_SHARED = ("proj_out", "scale_shift_table")
_FLAT_BLOCK = re.compile(r"(vace_blocks|blocks)_(0|[1-9][0-9]{0,3})_(.+)", re.DOTALL)

# What torch puts around a module (compiling, sharding, checkpointing) becomes a part of the names inside it.
_WRAPPER = "_?(?:orig_mod|fpw_module|forward_module|[a-z]+_wrapped_module)"
_WRAPPED = re.compile(rf"^(?:{_WRAPPER}[._])+|(?P<before>[._])(?:{_WRAPPER}(?P<behind>[._]|$))+")
_DOTTED = (
    r"(?:(?:base_model\.model|diffusion_model|model|transformer_2|transformer|unet|pipe|dit2?|net|_?module"
    r"|(?:high|low)_noise_model"
    r"|generator(?:_ema)?|(?:model_)?ema(?:_model)?)\.)"
)
_DOTTED_PREFIX = re.compile(f"{_DOTTED}+")
# Which of Wan2.2's two models a prefix names, in files that hold LoRAs of both.
_EXPERTS = {"transformer": "high", "dit": "high", "high_noise_model": "high"}
_EXPERTS |= {"transformer_2": "low", "dit2": "low", "low_noise_model": "low"}
_FLAT_PREFIX = re.compile(r"lora_unet__?(?:diffusion_model[._])?|lycoris_|lora_transformer_|lora_prior_unet_")
# The same words in a flat name, where some are the beginning of other models' names: only before a name that is known.
_FLAT_FRONT = re.compile(r"_*(?:(?:base_model_model|diffusion_model|generator(?:_ema)?|model|module|net|dit|pipe)_)+")
# HunyuanVideo's own code has no dot here; Flux has, and so has ComfyUI in both models.
_FUSED = re.compile(r"(^|\.)(img_attn|txt_attn|self_attn)_(qkv|q|k|v|proj)(?=\.|$)")
_FUSED_DOT = re.compile(r"(^|\.)(img_attn|txt_attn|self_attn)\.(qkv|q|k|v|proj)(?=\.|$)")
_ENCODERS = (
    r"(?:clip(?:_[lgh])?|(?:m|um|by)?t5(?:_?(?:xxl|xl|large|base|small))?|llm|language_model|llama[0-9_]*"
    r"|(?:qwen|gemma|mistral|chatglm)\w*)"
)
_TEXT_ENCODER = re.compile(
    r"(?:lora_te[0-9]?_|lora_prior_te_|lycoris_te[0-9]?_"
    rf"|(?:lora|lycoris)_(?:text_encoders?|text_model|(?!llm_adapter){_ENCODERS})_"
    rf"|{_DOTTED}*(?:{_FLAT_PREFIX.pattern})?"
    rf"(?:text_encoders?(?:_[0-9])?|te[0-9]?|text_model|cond_stage_model|conditioner\.embedders|{_ENCODERS})\."
    rf"|{_DOTTED}*(?:encoder|decoder)\.block\.[0-9]+\.layer\.)"  # T5's layers, by themselves
)

# What the last words of a key mean. These come with and without ".weight" behind them:
_FACTORS = {"lora_down": "down", "lora_up": "up", "lora_mid": "mid", "lora_A": "down", "lora_B": "up"}
_FACTORS["lora_magnitude_vector"] = "dora_scale"
_HALVES = ("down", "up", "mid")
_HOLDERS = ("lora", "lora_linear_layer", "lora_layer")
_KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2")
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_SINGLE = {
    name: name for name in (*_HADAMARD, *_KRONECKER, "alpha", "diff", "dora_scale", "reshape_weight", "set_weight")
}
_FLAGS = ("use_rslora_flag", "use_dora_flag")
_SINGLE |= {"diff_b": "bias", "w_norm": "diff", "b_norm": "bias", "lora_alpha": "alpha"}
_SINGLE |= {name: name for name in ("scalar", "scaling", *_FLAGS)}
_FACTOR_SCALES = ("scale_weight", "weight_scale")  # what a factor in 8 bits is multiplied by
_MULTIPLIERS = ("down_scale", "up_scale", "scalar", "scaling")
_PARTS = ("down", "up", "mid", "alpha", "diff", "bias", "up_bias", *_HADAMARD, *_KRONECKER, *_MULTIPLIERS, *_FLAGS)
_RANK_PART = {part: i for i, part in enumerate(_PARTS)}

_TURNED = "OFT turns the weights, it does not add to them"
_FOREIGN_ENDINGS = {
    "oft_blocks": _TURNED,
    "oft_diag": _TURNED,
    "oft_R": _TURNED,
    "boft_R": _TURNED,
    "rescale": _TURNED,
    "on_input": "IA3 rescales weights, it does not add to them",
    "ia3_l": "IA3 rescales weights, it does not add to them",
    "lambda_layer": "T-LoRA changes with the time step",
    "vera_lambda_b": "VeRA: its factors are not in the file",
    "vera_lambda_d": "VeRA: its factors are not in the file",
}
WHOLE_WEIGHTS = "whole weights, not a low-rank change: a checkpoint, or layers that an adapter adds to the model"
_FOREIGN_NAMES = (
    (re.compile(r"_loras\.(?:down|up)\."), "Stand-In: extra branches beside the model, not a change of its weights"),
    (re.compile(r"(?:^|\.)(?:dwpose_embedding|randomref_embedding_pose)\."), "UniAnimate: layers of its own"),
    (re.compile(r"\.(?:a1|a2|b1|b2|bm)\.weight$"), "GLoRA: its change depends on the base model's weights"),
    (re.compile(r"(?:^|\.)lllite_"), "ControlNet-LLLite: layers of its own"),
    (re.compile(r"^(?!.*lora).*\.(?:weight|bias)$", re.IGNORECASE | re.DOTALL), WHOLE_WEIGHTS),
)
# The last word of a key that multiplies something, whatever it is.
_NUMBER_WORD = re.compile(
    r"(?:\w+_)?(?:scales?|scaling|scalar|alpha|multiplier|strength|magnitude|zero_points?|qzeros|absmax)"
    r"(?:_(?:weight|factor|inv|[0-9]+))?"
)
_MARKER = re.compile(r"(?:.*\.)?scaled_fp8", re.DOTALL)  # says that a file has scales, which are keys of their own
# Words in the names of layers that models built on Wan have beside its own: Animate, S2V, Fun Control, ReCamMaster, …
_BUILT_ON_WAN = re.compile(
    r"(?:^|_)(?:adapter|audio|face|motion|pose|music|cam|camera|control|controlnet|mask|ref|refimage|global|cond"
    r"|injector|packer|projector|encoder)(?=_|$)"
)
# Exactly the names by which WanVideoWrapper knows one; a patch embedding that was merely trained is spelled otherwise.
_CONTROL_LORA = {
    f"{prefix}patch_embedding.{ending}": "control LoRA: it widens patch_embedding for a second input video"
    for prefix in ("", "diffusion_model.")
    for ending in ("lora_A.weight", "lora_B.weight", "reshape_weight")
}


@dataclass(frozen=True)
class FileKeys:
    """The keys of one file, sorted out."""

    dialect: str
    """What a person calls the naming: kohya, native, diffusers, peft, diffsynth, wan-fun, lycoris, bare, hybrid."""
    modules: dict[str, dict[str, str]]
    """Canonical module name -> part -> key in the file, in the model's order."""
    flat_prefix: str
    """What flat names of other models start with, most of them if they differ; "" if there are none."""
    text_encoder: list[str]
    """Keys of text encoders."""
    unknown: list[str]
    """Keys that are not understood."""
    foreign: dict[str, list[str]]
    """Reason -> keys that are understood, but are no change of the base model's weights."""
    changing: list[str]
    """Keys that are not understood and may change the numbers of what is: they stand beside a module, or are a scale."""
    markers: list[str]
    """Keys that say something of the file and hold nothing."""
    flags: dict[str, str]
    """Part -> key, of flags that hold for the whole file."""
    other_noise: list[str]
    """Keys of Wan2.2's other model, in a file that holds LoRAs of both."""
    not_wan: list[str]
    """Modules that Wan does not have, in a file that is otherwise Wan's."""


@dataclass(frozen=True)
class _Name:
    module: str
    dialect: str
    wan: bool
    shared: str = ""
    """How the file spells a module that may belong to another model."""
    flat_prefix: str = ""
    """What a flat name starts with, other forms of ``lora_unet_`` counted as that."""
    noise: str = ""
    """ "high" or "low", where the prefix names one of Wan2.2's two models."""


def read_keys(
    keys: Iterable[str],
    metadata: Mapping[str, str] = {},  # noqa: B006 (a Mapping, never changed)
    noise: str | None = None,
) -> FileKeys:
    """Sort the keys of a file by module and part. The order of the keys does not matter.

    metadata    of the file; its architecture decides where module names fit several models
    noise       "high" or "low": which of Wan2.2's two models counts, in a file that holds LoRAs of both
    raises      FileError if two keys mean the same part of the same module, or the file is of two models and `noise` is None
    """
    text_encoder: list[str] = []
    unknown: list[str] = []
    foreign: defaultdict[str, list[str]] = defaultdict(list)
    markers: list[str] = []
    flags: dict[str, str] = {}
    names: dict[str, _Name | None] = {}  # by what is left of a key without its part: shared by two or three keys
    found: list[tuple[_Name, str, str]] = []
    stems: set[str] = set()  # those of what is understood
    for key in keys:
        plain = unwrapped(key)
        stem, part = _split(plain)
        if stem not in names:
            names[stem] = _name(stem)
        name = names[stem]
        if part and name and plain not in _CONTROL_LORA:
            found.append((name, part, key))
            stems.add(stem)
        elif _TEXT_ENCODER.match(plain):
            text_encoder.append(key)
        elif reason := _foreign(plain):
            foreign[reason].append(key)
        elif _MARKER.fullmatch(plain):
            markers.append(key)
        elif part in _FLAGS and not stem:
            flags[part] = key
        else:
            unknown.append(key)
    found, other_noise = _of_one_model(found, noise)
    whole = set(foreign.get(WHOLE_WEIGHTS, ()))
    weight_scales = [key for key in unknown if _factor_scale(key) and f"{key.rpartition('.')[0]}.weight" in whole]
    if weight_scales:
        foreign[WHOLE_WEIGHTS] += weight_scales
    changing = set(unknown).difference(weight_scales)
    changing = {key for key in changing if _NUMBER_WORD.fullmatch(key.rpartition(".")[2]) or _beside(key, stems)}
    unknown = [key for key in unknown if key not in changing and key not in whole.union(weight_scales)]

    dialects = Counter(name.dialect for name, _, _ in found)
    dialect = min(dialects, key=lambda name: (-dialects[name], name), default="unknown")
    if dialect == "bare" and any(".default." in key for _, _, key in found):
        dialect = "diffsynth"
    is_wan = _is_wan([name for name, _, _ in found], metadata)
    prefixes = Counter(name.flat_prefix for name, _, _ in found if name.flat_prefix and not is_wan)
    modules: dict[str, dict[str, str]] = {}
    for name, part, key in found:
        parts = modules.setdefault(name.shared if name.shared and not is_wan else name.module, {})
        if part in parts:
            raise FileError(
                f"{parts[part]} and {key} both are {part!r} of {name.module}: the file holds two LoRAs at once, "
                "or was put together wrongly. Split it, or convert it again."
            )
        parts[part] = key
    return FileKeys(
        dialect=dialect,
        modules={m: dict(sorted(modules[m].items(), key=_part_order)) for m in sorted(modules, key=model_order)},
        flat_prefix=min(prefixes, key=lambda prefix: (-prefixes[prefix], prefix), default=""),
        text_encoder=sorted(text_encoder),
        unknown=sorted(unknown),
        foreign={reason: sorted(foreign[reason]) for reason in sorted(foreign)},
        changing=sorted(changing),
        markers=sorted(markers),
        flags=flags,
        other_noise=sorted(other_noise),
        not_wan=_not_wan([name for name, _, _ in found]) if is_wan else [],
    )


def _of_one_model(
    found: list[tuple[_Name, str, str]], noise: str | None
) -> tuple[list[tuple[_Name, str, str]], list[str]]:
    """What counts of a file's keys, and those of Wan2.2's other model."""
    first = {name.noise: key for name, _, key in reversed(found)}
    if not (first.keys() >= {"high", "low"}):
        return found, []
    if noise is None:
        raise FileError(
            f"{first['high']} and {first['low']}: this file holds the LoRAs of Wan2.2's two models, for high and for low "
            "noise. Choose one, and write it to a file of its own: difflora convert FILE --noise high -o OUT"
        )
    other = {"high": "low", "low": "high"}[noise]
    return [one for one in found if one[0].noise != other], [key for name, _, key in found if name.noise == other]


def unwrapped(key: str) -> str:
    """A key without what torch's wrappers put into it: ``blocks.0._orig_mod.ffn.0`` is ``blocks.0.ffn.0``."""
    return _WRAPPED.sub(_joint, key) if "orig_mod" in key or "_module" in key else key


def _joint(wrapped: re.Match[str]) -> str:
    """What is left between two words: the sign behind the wrapper, but a prefix such as ``lora_unet_`` keeps its own."""
    before, behind = wrapped["before"], wrapped["behind"]
    is_prefix = before and behind and _FLAT_PREFIX.fullmatch(wrapped.string, 0, wrapped.start() + 1)
    return before if is_prefix else behind or ""


def spelled(key: str) -> str:
    """The module of a key as the file spells it, without its dotted prefix: ``blocks.0.attn1.to_q``."""
    stem = _split(unwrapped(key))[0]
    prefix = _DOTTED_PREFIX.match(stem)
    return stem[prefix.end() :] if prefix else stem


def write_key(module: str, part: str, dialect: str, base: str | None = None, flat_prefix: str = "") -> str:
    """The key of a module's part in an output dialect.

    Diffusers and PEFT have no plain bias difference: "bias" becomes the bias of lora_B, the same at scale 1
    (`read_keys` then calls it "up_bias"). Flat names that were not understood stay as they are: no reader takes another
    form of them. Stable Diffusion's names are written flat, as every reader takes them.

    base          what `base_model` says; models share names that ComfyUI wants under different prefixes
    flat_prefix   what flat names of other models than Wan started with in the file, as `read_keys` says
    """
    if dialect not in OUTPUT_DIALECTS:
        raise ValueError(f"no dialect {dialect!r}; there are {', '.join(OUTPUT_DIALECTS)}")
    theirs = _diffusers_name(module)
    if theirs is None:
        name = _other_name(module, dialect, base, flat_prefix)
    elif dialect == DIFFUSERS:
        name = f"transformer.{theirs}"
    elif dialect == PEFT:
        name = f"base_model.model.{module}"
    elif dialect == NATIVE or module.endswith(_BARE_PARAMETERS):
        name = f"diffusion_model.{module}"
    else:
        name = f"lora_unet_{_flat(module)}"
    if part == "bias" and dialect in (DIFFUSERS, PEFT) and not _is_norm(module):
        part = "up_bias"
    endings = _PEFT_ENDINGS if dialect in (DIFFUSERS, PEFT) else _KOHYA_ENDINGS
    return f"{name}.{endings.get(part, part)}"


_KOHYA_ENDINGS = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    "bias": "diff_b",
    "up_bias": "lora_up.bias",
}
_PEFT_ENDINGS = _KOHYA_ENDINGS | {"down": "lora_A.weight", "up": "lora_B.weight", "up_bias": "lora_B.bias"}

# Names of other models, by how ComfyUI takes them: those that were not understood only flat, those of diffusers' Flux and
# SD3 only behind "transformer.", those of the U-Nets in diffusers' words only flat, Flux's own never behind "transformer.".
_ONLY_FLAT = re.compile(r"_[0-9]+(?:_|$)|_in_(?:in|out)_layer$|^(?:final_layer|norm_out|adaln_single)_")
_ONLY_TRANSFORMER = re.compile(
    r"(?:single_transformer_blocks|transformer_blocks\.[0-9]+\.(?:attn|ff|ff_context|norm1|norm1_context)"
    r"|time_text_embed|norm_out)\.|(?:x_embedder|context_embedder|proj_out)$"
)
_UNET = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|(?:time|add|class)_embedding)\.|conv_(?:in|out|norm_out)$"
    r"|(?P<own>(?:input_blocks|middle_block|output_blocks|label_emb|(?:time_embed|out)\.[0-9]))"
)
_FLUX = re.compile(r"(?:(?:double|single)_blocks|(?:time|vector|guidance)_in|final_layer|txt_in)\.")
# Their modules have the same names in ComfyUI as in diffusers.
_SAME_IN_DIFFUSERS = ("LTX-Video", "Qwen-Image")


def _other_name(module: str, dialect: str, base: str | None, flat_prefix: str) -> str:
    """Prefix and module name of another model's module."""
    if _FLAT_PREFIX.match(module):
        return module
    if dialect == KOHYA:
        is_onetrainer = base == "Flux" and _ONLY_TRANSFORMER.match(module)
        return f"{flat_prefix or ('lora_transformer_' if is_onetrainer else 'lora_unet_')}{_flat(module)}"
    if "." not in module and _ONLY_FLAT.search(module):
        return f"lora_unet_{module}"
    if base == "HunyuanVideo":
        module = _FUSED_DOT.sub(r"\1\2_\3", module)
    if dialect == PEFT:
        return f"base_model.model.{module}"
    if unet := _UNET.match(module):
        return f"unet.{module}" if dialect == DIFFUSERS and not unet["own"] else f"lora_unet_{_flat(module)}"
    if dialect == DIFFUSERS:
        is_flux = _FLUX.match(module) and base != "HunyuanVideo"
        return f"diffusion_model.{module}" if is_flux else f"transformer.{module}"
    # Behind lora_unet_, ComfyUI knows a model's own names; behind the other two prefixes, those in diffusers.
    is_own = flat_prefix == "lora_unet_" or base in _SAME_IN_DIFFUSERS
    if (flat_prefix and not is_own) or (not is_own and _ONLY_TRANSFORMER.match(module)):
        return f"transformer.{module}"
    # A name without a dot may be a flat one, and ComfyUI takes every such name in the flat form.
    return f"diffusion_model.{module}" if "." in module else f"lora_unet_{module}"


def with_kernel(module: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (out, in, *kernel) of a Wan convolution's weight, from that of a change with fewer dimensions.

    Every reader but ComfyUI's wants the layer's own dimensions. Shapes of other modules stay as they are.
    """
    kernel = _KERNELS.get(module, ())
    columns, size = math.prod(shape[1:]), math.prod(kernel)
    if 2 <= len(shape) < 2 + len(kernel) and columns % size == 0:
        return (shape[0], columns // size, *kernel)
    return shape


def _is_norm(module: str) -> bool:
    """Whether a Wan module is a norm, which has no factors that a bias could be attached to."""
    return "norm" in module.rpartition(".")[2] or module in ("img_emb.proj.0", "img_emb.proj.4")


def is_outside_blocks(module: str) -> bool:
    """Whether this is one of Wan's modules before or after its blocks, such as ``head.head``."""
    return module in _OUTSIDE


def _diffusers_name(module: str) -> str | None:
    """What diffusers calls a canonical Wan module; None for a module of another model."""
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    in_block = _BLOCK.match(module)
    if in_block and in_block["rest"] in _IN_BLOCK:
        return f"{in_block['stack']}.{in_block['block']}.{_IN_BLOCK[in_block['rest']]}"
    return None


def _foreign(key: str) -> str | None:
    """Why a key cannot be a change of the base model's weights, if so."""
    reason = _CONTROL_LORA.get(key) or _FOREIGN_ENDINGS.get(key.rpartition(".")[2])
    return reason or next((reason for pattern, reason in _FOREIGN_NAMES if pattern.search(key)), None)


def _split(key: str) -> tuple[str, str]:
    """Cut a key into what names the module and the part that it holds; the part is empty if it is not one."""
    stem, _, last = key.rpartition(".")
    if last == "default":  # PEFT's name for the only adapter, at the end of its LoHa and LoKr keys
        stem, _, last = stem.rpartition(".")
    if last == "weight" or last == "bias":
        return _split_factor(stem, last)
    if last == "diff_m":
        return stem if stem.endswith(("modulation", "scale_shift_table")) else f"{stem}.modulation", "diff"
    if last in _FACTOR_SCALES:
        outer, part = _split_factor(stem, "weight")
        return (outer, f"{part}_scale") if part in ("down", "up") else (key, "")
    return stem.removesuffix("_lora"), _FACTORS.get(last) or _SINGLE.get(last, "")


def _factor_scale(key: str) -> bool:
    return key.rpartition(".")[2] in _FACTOR_SCALES


def _beside(key: str, stems: Collection[str]) -> bool:
    """Whether a key that is not understood begins with one of these names of modules."""
    key = unwrapped(key)
    at = len(key)
    return any((at := key.rfind(".", 0, at)) > 0 and key[:at] in stems for _ in range(8))


def _split_factor(stem: str, last: str) -> tuple[str, str]:
    """Cut ``lora_A``, ``lora_A.<adapter>``, ``lora.down`` or ``…_lora.down`` off; "weight" or "bias" came behind it."""
    outer, _, word = stem.rpartition(".")
    if word == "dora_layer":
        return outer, "dora_scale"
    part = _FACTORS.get(word, "")
    if not part:
        outermost, _, second = outer.rpartition(".")
        if second in _FACTORS:
            outer, part = outermost, _FACTORS[second]
        elif word in _HALVES and second in _HOLDERS:
            outer, part = outermost, word
        elif word in _HALVES and second.endswith("_lora"):
            outer, part = outer.removesuffix("_lora"), word
    if last == "bias":
        part = "up_bias" if part == "up" else ""
    return outer, part


def _name(stem: str) -> _Name | None:
    """Find the module that a key without its part names."""
    if not stem or _TEXT_ENCODER.match(stem):
        return None
    dotted = _DOTTED_PREFIX.match(stem)
    prefix = dotted[0] if dotted else ""
    body = stem[len(prefix) :]
    begins = _FLAT_PREFIX.match(body)
    start = begins[0] if begins else ""
    name = body[len(start) :]
    if not name or name.startswith("."):
        return None
    flat = _flat(name).replace("_processor_", "_")
    known = _wan_name(flat)
    if not known and (start or "." not in name):
        plain = _FLAT_FRONT.sub("", flat, count=1) if _FLAT_FRONT.match(flat) else flat
        plain = re.sub("__+", "_", plain).strip("_")
        if known := _wan_name(plain):
            flat = plain
    dialect = _dialect(prefix, start, name, known is not None and known[1])
    flat_prefix = "lora_unet_" if start.startswith("lora_unet_") else start if start != "lora_prior_unet_" else ""
    noise = next((_EXPERTS[word] for word in prefix.split(".") if word in _EXPERTS), "")
    if known:
        return _Name(known[0], dialect, flat not in _SHARED, name if flat in _SHARED else "", flat_prefix, noise)
    if start:
        understood = (flat_names.dotted(flat) or flat_names.dotted(plain)) if flat_prefix else None
        module = understood or (name if flat_prefix == "lora_unet_" else body)
        return _Name(module, dialect, False, "", flat_prefix, noise)
    name = _FUSED.sub(r"\1\2.\3", name)
    if ".processor." in name:
        name = name.replace(".processor.", ".")
        name += ".0" if name.endswith(".to_out") else ""
    return _Name(name, dialect, False, noise=noise)


def _wan_name(flat: str) -> tuple[str, bool] | None:
    """A module of Wan by its flat spelling: its canonical name, and whether the spelling is diffusers'."""
    in_block = _FLAT_BLOCK.fullmatch(flat)
    if not in_block:
        return _FLAT_OUTSIDE.get(flat)
    known = _FLAT_IN_BLOCK.get(in_block[3])
    return (f"{in_block[1]}.{in_block[2]}.{known[0]}", known[1]) if known else None


def _not_wan(names: Iterable[_Name]) -> list[str]:
    """Modules that neither Wan nor a model built on it has, if most of the others in the blocks are Wan's."""
    modules = {name.module: name.wan or bool(name.shared) for name in names}
    strangers = [module for module, wan in modules.items() if not wan]
    if not any(module.startswith(("blocks.", "vace_blocks.")) for module, wan in modules.items() if wan):
        return []
    return sorted((name for name in strangers if not _BUILT_ON_WAN.search(_flat(name))), key=model_order)


def _dialect(prefix: str, start: str, name: str, diffusers: bool) -> str:
    if start.startswith("lora_unet__"):
        return "wan-fun"
    if start.startswith("lycoris_"):
        return "lycoris"
    if start:
        return "hybrid" if "." in name.removesuffix(".modulation") else KOHYA
    if "pipe." in prefix:
        return "diffsynth"
    if diffusers:
        return DIFFUSERS
    if "base_model.model." in prefix:
        return PEFT
    if "diffusion_model." in prefix:
        return NATIVE
    return DIFFUSERS if "transformer" in prefix or "unet" in prefix else "bare"


def _is_wan(names: list[_Name], metadata: Mapping[str, str]) -> bool:
    """Whether the names that Wan shares with other models are Wan's here."""
    if any(name.wan for name in names):
        return True
    if any(not name.shared for name in names):
        return False
    architecture = metadata.get("modelspec.architecture", "") or metadata.get("ss_base_model_version", "")
    return not architecture or "wan" in architecture.lower()


def _part_order(item: tuple[str, str]) -> tuple[int, str]:
    return _RANK_PART.get(item[0], len(_RANK_PART)), item[0]


def model_order(module: str) -> tuple[object, ...]:
    """Sort key: before the blocks, blocks by number and then as in the model, after the blocks, other models' names."""
    if module in _RANK_OUTSIDE:
        return (0 if module in _BEFORE_BLOCKS else 2, _RANK_OUTSIDE[module])
    in_block = _BLOCK.match(module)
    if in_block and in_block["rest"] in _RANK_IN_BLOCK:
        stack = 1 if in_block["stack"] == "blocks" else 3
        return (stack, int(in_block["block"]), _RANK_IN_BLOCK[in_block["rest"]])
    return (4, natural_order(module))


def natural_order(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts blocks.9 before blocks.10. Digits are compared by length first: no number is too long."""
    pieces = re.split(r"([0-9]+)", text)
    return tuple((len(piece.lstrip("0")), piece) if i % 2 else (0, piece) for i, piece in enumerate(pieces))


_AS_WIDE_AS_THE_MODEL = (
    *("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"),
    *("patch_embedding", "vace_patch_embedding", "ref_conv", "img_emb.proj.3", "img_emb.proj.4"),
)
# Width of the model and of its feed-forward layer -> what it is called.
_SIZES = {(5120, 13824): "14B", (1536, 8960): "1.3B", (3072, 14336): "5B"}


def base_model(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What the modules' weight shapes, (out, in, …), say about the base model, for people to read.

    The two models of Wan2.2-A14B have the shapes of Wan2.1-T2V-14B and cannot be told from it, so that name stands for
    all of them. A LoRA of a part of the model says less: "Wan2.1/2.2 14B (T2V or I2V)". To see whether two LoRAs fit
    each other, compare their shapes, not these names.
    """
    widths, feed_forwards = _wan_widths(shapes)
    if not widths:
        return _other_model(shapes)
    if len(widths) > 1 or len(feed_forwards) > 1:
        return None
    width = next(iter(widths))
    sizes = [name for (w, f), name in _SIZES.items() if w == width and (not feed_forwards or f in feed_forwards)]
    if not sizes:
        return f"Wan of width {width}"
    size = sizes[0]
    if size == "5B":
        return "Wan2.2-5B"
    if any(module.startswith("vace_") for module in shapes):
        return f"Wan2.1-VACE-{size}"
    if any(module.startswith("img_emb.") or "k_img" in module or "v_img" in module for module in shapes):
        return f"Wan2.1-I2V-{size}"
    if _has_full_block(shapes):
        return f"Wan2.1-T2V-{size}"
    return "Wan2.1/2.2 14B (T2V or I2V)" if size == "14B" else f"Wan2.1 {size}"


def _wan_widths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[set[int], set[int]]:
    """All widths that Wan's modules have in a file, of the model and of its feed-forward layers."""
    widths: set[int] = set()
    feed_forwards: set[int] = set()
    for module, shape in shapes.items():
        if _diffusers_name(module) is None or not shape:
            continue
        where = place(module)
        if len(shape) >= 2 and where.component == "ffn":
            wide, narrow = (shape[0], shape[1]) if where.projection == "0" else (shape[1], shape[0])
            feed_forwards.add(wide)
            widths.add(narrow)
        elif where.component:
            widths.update(shape)
        elif where.block is not None or module == "head.modulation":
            widths.add(shape[-1])
        elif module in _AS_WIDE_AS_THE_MODEL:
            widths.add(shape[0])
        elif module in ("head.head", "time_projection.1"):
            widths.add(shape[-1])
    return widths, feed_forwards


def _has_full_block(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether some block has all ten matrices of a text-to-video block, so that k_img would be there if it existed."""
    projections: Counter[int] = Counter()
    for module in shapes:
        where = place(module)
        if where.stack == "blocks" and where.block is not None and module.endswith(_TEN):
            projections[where.block] += 1
    return any(count == len(_TEN) for count in projections.values())


_TEN = tuple(f".{attn}.{p}" for attn in ("self_attn", "cross_attn") for p in "qkvo") + (".ffn.0", ".ffn.2")


def _other_model(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """A model that is not Wan, where the modules leave no doubt."""
    flat = {_flat(module): shape for module, shape in shapes.items()}
    # Flux and HunyuanVideo share names and widths; Flux ends at single block 37, HunyuanVideo at 39.
    last = max((int(found[1]) for name in flat if (found := _SINGLE_BLOCK.match(name))), default=None)
    if last == 39:
        return "HunyuanVideo"
    for pattern, model in _OTHER_MODELS:
        if any(pattern.search(name) for name in flat):
            return model
    for name, shape in flat.items():
        if len(shape) >= 2 and _UNET_TEXT.search(name):
            return {2048: "SDXL", 1024: "SD 2", 768: "SD 1.5"}.get(shape[1])
        if len(shape) >= 2 and _LTX.match(name) and shape[1] in (2048, 4096):
            return "LTX-Video"
    return "Flux" if last == 37 else None


_OTHER_MODELS = (
    (re.compile(r"token_refiner|(?:img|txt)_mlp_fc[12]$|(?:img|txt)_mod_linear$"), "HunyuanVideo"),
    (re.compile(r"single_blocks_[0-9]+_modulation_linear$"), "HunyuanVideo"),
    (re.compile(r"transformer_blocks_[0-9]+_(?:img|txt)_(?:mlp|mod)_"), "Qwen-Image"),
    (
        re.compile(r"double_blocks_[0-9]+_(?:img|txt)_(?:mlp_[02]|mod_lin)$|single_blocks_[0-9]+_modulation_lin$"),
        "Flux",
    ),
)
_UNET_TEXT = re.compile(r"(?:^|_)(?:down|up|mid|input|output|middle)_block.*_attn2_to_[kv]$")
_LTX = re.compile(r"transformer_blocks_[0-9]+_attn1_to_[qkv]$")
_SINGLE_BLOCK = re.compile(r"single_(?:transformer_)?blocks_([0-9]{1,3})_")
