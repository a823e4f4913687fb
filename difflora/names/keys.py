"""The names that trainers give a model's modules, and the names used here.

Canonical names are the model's own, without a prefix: ``blocks.7.self_attn.q``. A key in a LoRA file is a prefix, a
module name and a part (``lora_down.weight``, ``alpha``, …), and every trainer spells all three in its own way. The module
names of a family stay distinct when every separator is written as ``_``, so one table of such flat names, in `families`,
finds a module exactly from any spelling. Modules of unknown models keep the name that the file gives them.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import FileError
from . import families
from .families import DIFFSYNTH, DIFFUSERS, Family, Rows

KOHYA, NATIVE, PEFT = "kohya", "native", "peft"
OUTPUT_DIALECTS: tuple[str, ...] = (NATIVE, KOHYA, DIFFUSERS, PEFT)


def _flat(name: str) -> str:
    return name.replace(".", "_")


# torch's wrappers around a module (compiling, sharding, checkpointing) become part of the names inside it.
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
# The same words in a flat name. Some also begin names of other models, so they count only before a known name.
_FLAT_FRONT = re.compile(r"_*(?:(?:base_model_model|diffusion_model|generator(?:_ema)?|model|module|net|dit|pipe)_)+")
_ENCODERS = (
    r"(?:(?:open)?clip(?:_?[lgh])?(?:_model)?|(?:m|um|by)?t5(?:[_-]?(?:xxl|xl|large|base|small))?(?:_(?:encoder|model))?"
    r"|llm|language_model|llama[0-9_]*(?:_?model)?|bert|(?:t5gemma|qwen|gemma|mistral|(?:chat)?glm)\w*"
    r"|siglip\w*|visual|vision_(?:model|tower|encoder)|image_encoder)"  # of images
)
_TEXT_ENCODER = re.compile(
    r"(?:lora_te[0-9]?_|lora_prior_te_|lycoris_te[0-9]?_"
    rf"|(?:lora|lycoris)_(?:text_?encoders?|text_model|(?!llm_adapter){_ENCODERS})_"
    rf"|{_DOTTED}*(?:{_FLAT_PREFIX.pattern})?"
    rf"(?:text[_-]?encoders?(?:_(?:[0-9]|model))?|te[0-9]?|text_model|cond_stage_model|conditioner\.embedders|{_ENCODERS})\."
    rf"|{_DOTTED}*(?:encoder|decoder)\.block\.[0-9]+\.layer\.)",  # T5's layers, without a prefix
    re.IGNORECASE,
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
_FACTOR_SCALES = ("scale_weight", "weight_scale")  # the multiplier of an 8-bit factor
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
# The last word of a key that multiplies something, no matter what.
_NUMBER_WORD = re.compile(
    r"(?:\w+_)?(?:scales?|scaling|scalar|alpha|multiplier|strength|magnitude|zero_points?|qzeros|absmax)"
    r"(?:_(?:weight|factor|inv|[0-9]+))?"
)
_MARKER = re.compile(r"(?:.*\.)?scaled_fp8", re.DOTALL)  # says that a file has scales, which are keys of their own
_OWN_NAMES = re.compile(r"(?:diffusion_model\.|lora_unet_)$")
# Exactly the names by which WanVideoWrapper recognises one; a patch embedding that was merely trained is spelled differently.
_CONTROL_LORA = {
    f"{prefix}patch_embedding.{ending}": "control LoRA: it widens patch_embedding for a second input video"
    for prefix in ("", "diffusion_model.")
    for ending in ("lora_A.weight", "lora_B.weight", "reshape_weight")
}


@dataclass(frozen=True)
class FileKeys:
    """The keys of one file, sorted by meaning."""

    dialect: str
    """The usual name of this naming: kohya, native, diffusers, peft, diffsynth, wan-fun, lycoris, bare, hybrid."""
    families: tuple[Family, ...]
    """The model families that it may be for, most likely first; several only if their modules have the same names."""
    modules: dict[str, dict[str, str]]
    """Module -> part -> key in the file, in the model's order. By canonical name, or the file's if it is in `pieces`."""
    pieces: dict[str, tuple[Piece, ...]]
    """Modules of the file that are part of a module of the model, or several modules of it."""
    prefix: str
    """The prefix of names that no family knows, the most common one if they differ; "" if there are none."""
    text_encoder: list[str]
    """Keys of text encoders, and of encoders of images."""
    unknown: list[str]
    """Keys that are not understood."""
    foreign: dict[str, list[str]]
    """Reason -> keys that are understood, but do not change the base model's weights."""
    changing: list[str]
    """Keys that are not understood and may change the values of those that are: they belong to a module, or are a scale."""
    markers: list[str]
    """Keys that say something about the file and hold no data."""
    flags: dict[str, str]
    """Part -> key, of flags that apply to the whole file."""
    other_noise: list[str]
    """Keys of Wan2.2's other model, in a file that holds LoRAs of both."""
    strangers: list[str]
    """Modules that the family does not have, in a file that otherwise belongs to it."""
    twice: dict[str, list[str]]
    """Module -> its further keys, that hold the same as those that count: the file has it in two spellings."""
    front: str
    """What stands before every name, if no model is known that has it, and the names behind it are those of one; or ""."""


@dataclass(frozen=True)
class Piece:
    """Which rows of a canonical module correspond to which rows of a file's module; None for all of them."""

    module: str
    rows: Rows | None
    their_rows: Rows | None


# Not a dataclass: there is one for each module of a file, and this is made in a fifth of the time.
class _Name(NamedTuple):
    """The name in a key: as written, what it can mean, and how it is spelled."""

    name: str
    spelling: families.Spelling | None
    numbers: tuple[str, ...]
    prefix: str
    """Its prefix; other forms of ``lora_unet_`` count as that."""
    start: str
    is_flat: bool
    noise: str
    """ "high" or "low" if the prefix names one of Wan2.2's two models; otherwise empty."""


def read_keys(
    keys: Iterable[str],
    metadata: Mapping[str, str] = {},  # noqa: B006 (a Mapping, never changed)
    noise: str | None = None,
    shape_of: Callable[[str], tuple[int, ...]] | None = None,
    is_same: Callable[[str, str], bool] = lambda key, other: False,
) -> FileKeys:
    """Sort the keys of a file by module and part. The order of the keys does not matter.

    metadata    of the file; its architecture decides if module names fit several models
    noise       "high" or "low": which of Wan2.2's two models to read, in a file that holds LoRAs of both
    shape_of    the shape of a key's tensor; helps to decide, too
    is_same     whether two keys that mean the same hold the same values, so that one of them counts for both
    raises      FileError if two keys mean the same part of the same module, or the file is of two models and `noise` is None
    """
    text_encoder: list[str] = []
    unknown: list[str] = []
    foreign: defaultdict[str, list[str]] = defaultdict(list)
    markers: list[str] = []
    flags: dict[str, str] = {}
    names: dict[str, _Name | None] = {}  # by a key without its part, which two or three keys share
    found: dict[str, list[tuple[str, str]]] = {}  # the same, for keys that are understood -> (part, key)
    for key in keys:
        plain = unwrapped(key)
        stem, part = _split(plain)
        if stem not in names:
            names[stem] = _name(stem)
        if part and names[stem] and plain not in _CONTROL_LORA:
            found.setdefault(stem, []).append((part, key))
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
    whole = set(foreign.get(WHOLE_WEIGHTS, ()))
    weight_scales = [key for key in unknown if _factor_scale(key) and f"{key.rpartition('.')[0]}.weight" in whole]
    if weight_scales:
        foreign[WHOLE_WEIGHTS] += weight_scales
    changing = set(unknown).difference(weight_scales)
    changing = {key for key in changing if _NUMBER_WORD.fullmatch(key.rpartition(".")[2]) or _beside(key, found)}
    unknown = [key for key in unknown if key not in changing and key not in whole.union(weight_scales)]

    known = {stem: name for stem in found if (name := names[stem])}
    known, other_noise = _of_one_model(known, found, noise)
    likely = _families(known, found, metadata, shape_of)
    modules: dict[str, dict[str, str]] = {}
    pieces: dict[str, tuple[Piece, ...]] = {}
    dialects: Counter[str] = Counter()
    prefixes: Counter[str] = Counter()
    strangers: list[str] = []
    twice: dict[str, list[str]] = {}
    by_diffsynth = _is_diffsynth(known, found)
    for stem, name in known.items():
        target = _target(name, likely[0]) if likely else None
        if by_diffsynth and target and target.code == families.OWN:
            target = families.layout(likely[0], DIFFSYNTH).get(target.links[0].own, target)
        if target is None:
            module = _as_it_stands(name)
            prefixes[name.prefix] += 1
            strangers.append(module)
        elif target.links[0].own_rows or target.links[0].their_rows:
            module = families.filled(target.links[0].theirs, name.numbers)
            pieces[module] = tuple(
                Piece(families.filled(link.own, name.numbers), link.own_rows, link.their_rows) for link in target.links
            )
        else:
            module = families.filled(target.links[0].own, name.numbers)
        dialects[_dialect(name, target.code if target else "")] += len(found[stem])
        parts = modules.setdefault(module, {})
        for part, key in found[stem]:
            if part in parts and is_same(parts[part], key):
                twice.setdefault(module, []).append(key)
                continue
            if part in parts:
                raise FileError(
                    f"{parts[part]} and {key} both are {part!r} of {module}: the file holds two LoRAs at once, "
                    "or was put together wrongly. Split it, or convert it again."
                )
            parts[part] = key
    dialect = min(dialects, key=lambda name: (-dialects[name], name), default="unknown")
    if dialect == "bare" and by_diffsynth:
        dialect = DIFFSYNTH
    return FileKeys(
        dialect=dialect,
        families=likely,
        modules={m: dict(sorted(modules[m].items(), key=_part_order)) for m in sorted(modules, key=model_order)},
        pieces=pieces,
        prefix=min(prefixes, key=lambda prefix: (-prefixes[prefix], prefix), default=""),
        text_encoder=sorted(text_encoder),
        unknown=sorted(unknown),
        foreign={reason: sorted(foreign[reason]) for reason in sorted(foreign)},
        changing=sorted(changing),
        markers=sorted(markers),
        flags=flags,
        other_noise=sorted(other_noise),
        strangers=_strangers(strangers, modules.keys(), likely),
        twice=twice,
        front=_front(known.values()),
    )


def _of_one_model(
    known: dict[str, _Name], found: Mapping[str, list[tuple[str, str]]], noise: str | None
) -> tuple[dict[str, _Name], list[str]]:
    """The names that count in a file, and the keys of Wan2.2's other model."""
    first = {name.noise: found[stem][0][1] for stem, name in reversed(known.items())}
    if not (first.keys() >= {"high", "low"}):
        return known, []
    if noise is None:
        raise FileError(
            f"{first['high']} and {first['low']}: this file holds the LoRAs of Wan2.2's two models, for high and for low "
            "noise. Choose one, and write it to a file of its own: difflora convert FILE --noise high -o OUT"
        )
    other = {"high": "low", "low": "high"}[noise]
    left_out = [key for stem, name in known.items() if name.noise == other for _, key in found[stem]]
    return {stem: name for stem, name in known.items() if name.noise != other}, left_out


def _strangers(names: Sequence[str], modules: Collection[str], likely: tuple[Family, ...]) -> list[str]:
    """Modules that neither the family nor a model built on it has, if some in its blocks are the family's."""
    if len(likely) != 1 or not any((known := families.own(module)) and known[0].stack for module in modules):
        return []
    built_on = likely[0].built_on
    return sorted((name for name in names if not (built_on and built_on.search(_flat(name)))), key=model_order)


def _front(names: Collection[_Name]) -> str:
    """What stands before the names of a known model in nearly all `names`, of which none is known as it stands."""
    fronts: Counter[str] = Counter()
    for name in names:
        if name.spelling:
            return ""
        plain = re.sub("__+", "_", _flat(name.name)).strip("_")
        words = plain.split("_")
        for number in range(1, min(5, len(words))):
            if words[number - 1].isdecimal():
                break
            if (behind := families.spelling("_".join(words[number:]))) and behind[1]:
                fronts[name.start + name.name[: len("_".join(words[:number])) + 1]] += 1
                break
    (front, found), *_ = fronts.most_common(1) or [("", 0)]
    return front if found and 10 * found >= 9 * len(names) else ""


def unwrapped(key: str) -> str:
    """A key without the names of torch's wrappers: ``blocks.0._orig_mod.ffn.0`` is ``blocks.0.ffn.0``."""
    return _WRAPPED.sub(_joint, key) if "orig_mod" in key or "_module" in key else key


def _joint(wrapped: re.Match[str]) -> str:
    """What is left between two words: the separator after the wrapper, but a prefix such as ``lora_unet_`` keeps its own."""
    before, behind = wrapped["before"], wrapped["behind"]
    is_prefix = before and behind and _FLAT_PREFIX.fullmatch(wrapped.string, 0, wrapped.start() + 1)
    return before if is_prefix else behind or ""


def _families(
    known: Mapping[str, _Name],
    found: Mapping[str, list[tuple[str, str]]],
    metadata: Mapping[str, str],
    shape_of: Callable[[str], tuple[int, ...]] | None,
) -> tuple[Family, ...]:
    """The families that the names of a file may belong to. None if several would read them differently."""

    def shape(stem: str) -> tuple[int, ...]:
        parts = dict(found[stem])
        if shape_of is None or not {"up", "down"} <= parts.keys():
            return ()
        up, down = shape_of(parts["up"]), shape_of(parts["down"])
        return (up[0], down[1]) if len(up) == 2 == len(down) else ()

    samples = [
        families.Sample(name.spelling, name.numbers, functools.partial(shape, stem))
        for stem, name in known.items()
        if name.spelling
    ]
    likely = families.recognised(samples, metadata)
    if len(likely) < 2:
        return likely

    def meaning(family: Family) -> list[tuple[families.Link, ...]]:
        targets = (sample.spelling.targets.get(family.name) for sample in samples)
        return [target.links for target in targets if target]

    if any(meaning(family) != meaning(likely[0]) for family in likely):
        # After these, trainers write the names from the model's own code.
        if not all(_OWN_NAMES.search(name.start) for name in known.values()):
            return ()
        likely = tuple(
            family
            for family in likely
            if all(t.code == families.OWN for sample in samples if (t := sample.spelling.targets.get(family.name)))
        )
        if any(meaning(family) != meaning(likely[0]) for family in likely):
            return ()
    return likely


def _is_diffsynth(known: Mapping[str, _Name], found: Mapping[str, list[tuple[str, str]]]) -> bool:
    """Whether PEFT's name for the only adapter is in keys that do not begin as PEFT's do.

    DiffSynth saves PEFT's layers without PEFT's model around them. Diffusers goes by the same sign.
    """
    return any(
        ".default." in key
        for stem, name in known.items()
        if not name.is_flat and "base_model." not in name.start
        for _, key in found[stem]
    ) or any("pipe." in name.start for name in known.values())


def _target(name: _Name, family: Family) -> families.Target | None:
    return name.spelling.targets.get(family.name) if name.spelling else None


def _as_it_stands(name: _Name) -> str:
    """What to call a module that no family knows."""
    if name.is_flat:
        return name.name if name.prefix == "lora_unet_" else name.start + name.name
    module = name.name
    if ".processor." in module:
        module = module.replace(".processor.", ".")
        module += ".0" if module.endswith(".to_out") else ""
    return module


def spelled(key: str) -> str:
    """The module of a key as the file spells it, without its dotted prefix: ``blocks.0.attn1.to_q``."""
    stem = _split(unwrapped(key))[0]
    prefix = _DOTTED_PREFIX.match(stem)
    return stem[prefix.end() :] if prefix else stem


def written(module: str, dialect: str, family: Family | None = None, prefix: str = "") -> tuple[families.Written, ...]:
    """The name of a module in an output dialect, prefix included; several modules if the dialect splits it.

    Flat names that were not understood are kept: no reader accepts another form of them.

    prefix   of names in the file that no family knows, from `read_keys`
    """
    if dialect not in OUTPUT_DIALECTS:
        raise ValueError(f"no dialect {dialect!r}; there are {', '.join(OUTPUT_DIALECTS)}")
    known = families.own(module)
    if family is None or not known or family.name not in known[0].families:
        return (families.Written(_other_name(module, dialect, prefix), families.WHOLE),)
    if dialect == PEFT:
        return (families.Written(f"base_model.model.{module}", families.WHOLE),)
    if dialect == DIFFUSERS:
        return tuple(
            replace(one, name=family.diffusers + one.name) for one in families.in_code(module, family, DIFFUSERS)
        )
    if families.is_bare(module, family):
        return (families.Written(f"diffusion_model.{module}", families.WHOLE),)
    if dialect == NATIVE:
        name = _flat(module) if family.native.endswith("_") else module
        return (families.Written(family.native + name, families.WHOLE),)
    return tuple(
        replace(one, name=f"lora_unet_{_flat(one.name)}") for one in families.in_code(module, family, family.kohya)
    )


def ending(module: str, part: str, dialect: str) -> str:
    """What follows a module's name for one of its parts.

    Diffusers and PEFT have no plain bias difference: "bias" becomes the bias of lora_B, which is equivalent at scale 1
    (`read_keys` then calls it "up_bias"). A norm has no factors to attach it to.
    """
    if part == "bias" and dialect in (DIFFUSERS, PEFT) and not families.is_norm(module):
        part = "up_bias"
    endings = _PEFT_ENDINGS if dialect in (DIFFUSERS, PEFT) else _KOHYA_ENDINGS
    return endings.get(part, part)


_KOHYA_ENDINGS = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    "bias": "diff_b",
    "up_bias": "lora_up.bias",
}
_PEFT_ENDINGS = _KOHYA_ENDINGS | {"down": "lora_A.weight", "up": "lora_B.weight", "up_bias": "lora_B.bias"}

_STAYS_FLAT = re.compile(r"_[0-9]+(?:_|$)")


def _other_name(module: str, dialect: str, prefix: str) -> str:
    """Prefix and name of a module that no family knows: with the prefix of its file, if possible."""
    if _FLAT_PREFIX.match(module):
        return module
    is_flat = prefix.endswith("_")
    if dialect == KOHYA:
        return f"{prefix if is_flat else 'lora_unet_'}{_flat(module)}"
    if "." not in module and _STAYS_FLAT.search(module):
        return f"lora_unet_{module}"
    if dialect == PEFT:
        return f"base_model.model.{module}"
    if dialect == DIFFUSERS:
        return f"transformer.{module}"
    # A name without a dot may be a flat one, and ComfyUI accepts every such name in the flat form.
    if "." not in module:
        return f"lora_unet_{module}"
    return f"{'diffusion_model.' if is_flat or not prefix else prefix}{module}"


def with_kernel(module: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (out, in, *kernel) of a convolution's weight, from that of a change with fewer dimensions.

    Every reader except ComfyUI's needs the layer's own dimensions. Shapes of other modules are not changed.
    """
    kernel = families.kernel(module)
    columns, size = math.prod(shape[1:]), math.prod(kernel)
    if 2 <= len(shape) < 2 + len(kernel) and columns % size == 0:
        return (shape[0], columns // size, *kernel)
    return shape


def _foreign(key: str) -> str | None:
    """Why a key cannot be a change of the base model's weights; empty if it can."""
    reason = _CONTROL_LORA.get(key) or _FOREIGN_ENDINGS.get(key.rpartition(".")[2])
    return reason or next((reason for pattern, reason in _FOREIGN_NAMES if pattern.search(key)), None)


def _split(key: str) -> tuple[str, str]:
    """Split a key into module name and part; the part is empty if it is not a known one."""
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
    """Whether a key that is not understood begins with one of these module names."""
    key = unwrapped(key)
    at = len(key)
    return any((at := key.rfind(".", 0, at)) > 0 and key[:at] in stems for _ in range(8))


def _split_factor(stem: str, last: str) -> tuple[str, str]:
    """Cut off ``lora_A``, ``lora_A.<adapter>``, ``lora.down`` or ``…_lora.down``; "weight" or "bias" followed it."""
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
    is_flat = stem.startswith("lora_unet_") and "." not in stem  # the commonest form, which no encoder's names have
    if not stem or (not is_flat and _TEXT_ENCODER.match(stem)):
        return None
    dotted = _DOTTED_PREFIX.match(stem)
    prefix = dotted[0] if dotted else ""
    body = stem[len(prefix) :]
    begins = _FLAT_PREFIX.match(body)
    start = begins[0] if begins else ""
    name = body[len(start) :]
    if not name or name.startswith("."):
        return None
    plain = _flat(name).replace("_processor_", "_")
    found = families.spelling(plain)
    if found is None and (start or "." not in name):
        shorter = _FLAT_FRONT.sub("", plain, count=1) if _FLAT_FRONT.match(plain) else plain
        found = families.spelling(re.sub("__+", "_", shorter).strip("_"))
    if found is None and plain.endswith("_to_out"):  # the form of the first attention processors
        found = families.spelling(plain + "_0")
    spelling, numbers = found or (None, ())
    noise = next((_EXPERTS[word] for word in prefix.split(".") if word in _EXPERTS), "")
    kept = (
        "lora_unet_" if start.startswith("lora_unet_") else start or ("transformer." if "transformer" in prefix else "")
    )
    return _Name(name, spelling, numbers, kept, prefix + start, bool(start), noise)


def _dialect(name: _Name, code: str) -> str:
    prefix, is_flat = name.start, name.is_flat
    if "lora_unet__" in prefix:
        return "wan-fun"
    if "lycoris_" in prefix:
        return "lycoris"
    if is_flat:
        return "hybrid" if "." in name.name.removesuffix(".modulation") else KOHYA
    if "pipe." in prefix:
        return DIFFSYNTH
    if code.startswith(DIFFUSERS):
        return DIFFUSERS
    if "base_model.model." in prefix:
        return PEFT
    if "diffusion_model." in prefix:
        return NATIVE
    return DIFFUSERS if "transformer" in prefix or "unet" in prefix else "bare"


def _part_order(item: tuple[str, str]) -> tuple[int, str]:
    return _RANK_PART.get(item[0], len(_RANK_PART)), item[0]


def model_order(module: str) -> tuple[object, ...]:
    """Sort key: before the blocks, blocks by number and then as in the model, after the blocks; then unknown names."""
    known = families.own(module.removesuffix(".bias"))
    if known is None:
        return (len(families.FAMILIES), natural_order(module))
    family, section, at = known[0].order
    return (family, (section, *map(int, known[1]), at, module.endswith(".bias")))


def natural_order(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts blocks.9 before blocks.10. Digits are compared by length first: no number is too long."""
    pieces = re.split(r"([0-9]+)", text)
    return tuple((len(piece.lstrip("0")), piece) if i % 2 else (0, piece) for i, piece in enumerate(pieces))
