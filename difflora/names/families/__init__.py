"""Model families: everything that depends on which model a LoRA is for, and the look-ups that other code uses.

A family is one entry in `FAMILIES`; nothing about it is kept anywhere else. Canonical names are the model's own, as in
ComfyUI.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .cosmos import ANIMA
from .family import DIFFSYNTH, DIFFUSERS, OWN, Family, Link, Rows, Shapes, Templates, filled, first_word
from .flux import FLUX, FLUX2
from .hunyuan_video import HUNYUAN_VIDEO, HUNYUAN_VIDEO_15
from .krea2 import KREA2
from .ltx import LTX2, LTX_VIDEO
from .lumina import LUMINA2, Z_IMAGE
from .minimax import MINIMAX_H3
from .qwen_image import QWEN_IMAGE
from .stable_diffusion import SD, SDXL
from .wan import WAN

__all__ = [
    "DIFFSYNTH",
    "DIFFUSERS",
    "FAMILIES",
    "OWN",
    "WAN",
    "WHOLE",
    "Family",
    "Link",
    "Own",
    "Rows",
    "Sample",
    "Shapes",
    "Spelling",
    "Target",
    "Written",
    "base_model",
    "comfyui_reads",
    "family_of",
    "filled",
    "frames_per_latent",
    "has_alpha",
    "in_code",
    "is_bare",
    "is_norm",
    "is_optional",
    "kernel",
    "layout",
    "named",
    "own",
    "recognised",
    "spelling",
]

# If names and shapes leave several, the first one counts.
FAMILIES: tuple[Family, ...] = (
    WAN,
    FLUX,
    FLUX2,
    KREA2,
    Z_IMAGE,
    LUMINA2,
    QWEN_IMAGE,
    LTX2,
    LTX_VIDEO,
    ANIMA,
    MINIMAX_H3,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_15,
    SDXL,
    SD,
)
WHOLE: tuple[tuple[Rows | None, Rows | None], ...] = ((None, None),)
ROLES = ("attn", "self_attn", "cross_attn", "ffn", "audio", "text", "image")


@dataclass(frozen=True)
class Target:
    """What a spelling means in one family."""

    code: str
    links: tuple[Link, ...]


@dataclass(frozen=True, eq=False)
class Spelling:
    """What a name in a file means in each family that knows it. `template` is the name, written flat."""

    template: str
    targets: dict[str, Target] = field(default_factory=dict)


@dataclass(frozen=True)
class Own:
    """What is known about a module from its canonical name.

    roles     the words by which selections pick it
    stack     the part before the number of its innermost block; "" outside the blocks
    rest      the part after that number
    numbered  which of its parts are block numbers
    is_inner  whether a top-level stack of the family has the same name as its stack; then "blocks 3" means that one
    order     its position in the model
    families  names of the families that have it
    """

    template: str
    roles: frozenset[str]
    stack: str
    rest: str
    numbered: list[int]
    is_inner: bool
    order: tuple[int, int, int]
    families: frozenset[str]


# The tables are built for one first word of the names at a time: nobody reads LoRAs of all families.


@functools.cache
def _first_words() -> frozenset[str]:
    return frozenset().union(*(family.first_words for family in FAMILIES))


@functools.cache
def _spellings(word: str) -> Templates[Spelling]:
    """The spellings of all names that begin with this word."""
    table: Templates[Spelling] = Templates("_")
    for family in FAMILIES:
        if word not in family.first_words:
            continue
        for code, links in _codes(family, word):
            for theirs, group in links.items():
                flat = theirs.replace(".", "_")
                table.setdefault(flat, Spelling(flat)).targets.setdefault(family.name, Target(code, tuple(group)))
    return table


def _codes(family: Family, word: str) -> Iterator[tuple[str, Mapping[str, list[Link]]]]:
    own_names = (name for name, _ in family.own if name.startswith(word) and first_word(name) == word)
    yield OWN, {name: [Link(name, name)] for name in own_names}
    for code, links in family.codes.items():
        grouped: dict[str, list[Link]] = {}
        for link in links:
            if link.theirs.startswith(word) and first_word(link.theirs) == word:
                grouped.setdefault(link.theirs, []).append(link)
        yield code, grouped


@functools.cache
def _own(word: str) -> Templates[Own]:
    """The modules whose canonical names begin with this word."""
    having = [(index, family) for index, family in enumerate(FAMILIES) if word in family.first_words]
    families: dict[str, set[str]] = {}
    for _, family in having:
        for name, _ in family.own:
            families.setdefault(name, set()).add(family.name)
    table: Templates[Own] = Templates(".")
    for index, family in having:
        stacks = [_stack(name) for name, _ in family.own]
        outer = {stack for stack, _ in stacks if stack and "." not in stack}
        sections: dict[object, int] = {}  # a stack, or a run of modules outside stacks, in order
        before = None
        for at, ((name, roles), (stack, rest)) in enumerate(zip(family.own, stacks, strict=True)):
            run = stack or (before if isinstance(before, int) else at)
            before = run
            section = sections.setdefault(run, len(sections))
            if first_word(name) != word:
                continue
            own = Own(
                name,
                frozenset(roles.split()),
                stack,
                rest,
                _numbered(name),
                "." in stack and stack.rpartition(".")[2] in outer,
                (index, section, at),
                frozenset(families[name]),
            )
            table.setdefault(name, own)
    return table


def _stack(template: str) -> tuple[str, str]:
    """``blocks.#.ffn.0`` -> blocks, ffn.0. A number at the end is a part, not a block."""
    inner = template.removesuffix("#")
    stack, sign, rest = inner.rpartition(".#.")
    return (stack, rest + template[len(inner) :]) if sign else ("", template)


def _numbered(template: str) -> list[int]:
    segments = template.split(".")
    inside = [at for at, segment in enumerate(segments[:-1]) if segment == "#"]
    # Of two numbers in a row, the second is a part of the block: input_blocks.4.1.
    return [at for at in inside if at - 1 not in inside]


def spelling(flat: str) -> tuple[Spelling, tuple[str, ...]] | None:
    """What a name means, written flat and without a prefix, and the numbers in it; None if no family knows it."""
    word = first_word(flat)
    return _spellings(word).find(flat) if word in _first_words() else None


@functools.lru_cache(maxsize=1 << 16)
def own(module: str) -> tuple[Own, tuple[str, ...]] | None:
    """What is known about a canonical name, and the numbers in it; None if no family has it."""
    word = first_word(module)
    return _own(word).find(module) if word in _first_words() else None


@functools.cache
def layout(family: Family, trainer: str) -> Mapping[str, Target]:
    """Template -> what its rows mean in the files of a trainer who has them in another order than the model."""
    grouped: dict[str, list[Link]] = {}
    for link in family.layouts.get(trainer, ()):
        grouped.setdefault(link.own, []).append(link)
    return {template: Target(OWN, tuple(links)) for template, links in grouped.items()}


def named(name: str | None) -> Family | None:
    """The family of this name."""
    return next((family for family in FAMILIES if family.name == name), None)


# Models whose LoRAs have no family here.
_OTHER_LATENTS = {"Mochi": 6, "Cosmos1CV8x8x8": 8}


def frames_per_latent(latent_format: str) -> int:
    """Clip frames per latent frame, after the first, by the name of ComfyUI's class for the latent: 4 for most models."""
    known = (family.latents[latent_format] for family in FAMILIES if latent_format in family.latents)
    return next(known, _OTHER_LATENTS.get(latent_format, 4))


# --- Which family ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One name of a file: what it may mean, the numbers in it, and the shape (out, in) of its change, if needed."""

    spelling: Spelling
    numbers: tuple[str, ...]
    shape: Callable[[], tuple[int, ...]] = tuple


def recognised(samples: Sequence[Sample], metadata: Mapping[str, str]) -> tuple[Family, ...]:
    """The families that a file may belong to, best first: those that know most of its names and fit it best.

    Several remain only if nothing tells them apart. `metadata` may do so, by its architecture or base model.
    """
    counts: Counter[str] = Counter()
    for spelled, count in Counter(sample.spelling for sample in samples).items():
        for name in spelled.targets:
            counts[name] += count
    most = max(counts.values(), default=0)
    left = [family for family in FAMILIES if most and counts[family.name] == most]
    if len(left) > 1:
        left = [family for family in left if _fits(family, samples)] or left
    if len(left) > 1:
        said = f"{metadata.get('modelspec.architecture', '')} {metadata.get('ss_base_model_version', '')}".lower()
        # The longest word wins: "hunyuan-video-1.5" is not "hunyuan-video".
        lengths = {family.name: max((len(word) for word in family.words if word in said), default=0) for family in left}
        longest = max(lengths.values())
        left = [family for family in left if lengths[family.name] == longest]
        if not longest and WAN in left:  # unless something says otherwise, a name that Wan has is Wan's
            left = [family for family in left if (family is WAN) != bool(said.strip())]
    if len(left) > 1:
        left = [family for family in left if _is_complete(family, samples)] or left
    return tuple(left)


def _fits(family: Family, samples: Sequence[Sample]) -> bool:
    """Whether every block number exists in the family, and every change has a shape that its modules have."""
    for sample in samples:
        target = sample.spelling.targets.get(family.name)
        for link in target.links if target else ():
            depths = family.depths.get(_stack(link.own)[0])
            if depths and sample.numbers and int(sample.numbers[-1]) >= max(depths):
                return False
            allowed = family.widths.get(_template(link.own))
            if allowed and (shape := sample.shape()) and not any(_matches(link, one, shape) for one in allowed):
                return False
    return True


@functools.cache
def _template(own_name: str) -> str:
    """The template of a link's own module, which may have some numbers filled in."""
    found = own(own_name.replace("#", "0"))
    return found[0].template if found else own_name


def _matches(link: Link, shape: tuple[int, int], found: tuple[int, ...]) -> bool:
    if len(found) != 2:
        return True
    rows, columns = shape
    if link.their_rows:
        return columns == found[1]
    if link.own_rows:
        rows = rows * link.own_rows.size // link.own_rows.of
    return (rows, columns) == found


def _is_complete(family: Family, samples: Sequence[Sample]) -> bool:
    """Whether the file reaches exactly the last block of some stack of the family's deepest model."""
    last: dict[str, int] = {}
    for sample in samples:
        target = sample.spelling.targets.get(family.name)
        if target and sample.numbers:
            stack, _ = _stack(target.links[0].own)
            last[stack] = max(last.get(stack, 0), int(sample.numbers[-1]))
    return any(last.get(stack, -1) + 1 in depths for stack, depths in family.depths.items())


def family_of(shapes: Shapes) -> tuple[Family, ...]:
    """The families whose own names these are, best first."""
    samples = []
    for module, shape in shapes.items():
        if found := spelling(module.removesuffix(".bias").replace(".", "_")):
            samples.append(Sample(*found, functools.partial(tuple, shape)))
    return tuple(
        family
        for family in recognised(samples, {})
        if all(
            sample.spelling.targets[family.name].code == OWN
            for sample in samples
            if family.name in sample.spelling.targets
        )
    )


def base_model(shapes: Shapes, families: tuple[Family, ...] | None = None) -> str | None:
    """What modules and weight shapes, (out, in, …), say about the base model, as text for the user.

    The models of Wan2.2-A14B have the shapes of Wan2.1's, so one name stands for both. To see whether two LoRAs fit each
    other, compare their shapes, not these names.
    """
    families = family_of(shapes) if families is None else families
    if len(families) != 1:
        return " or ".join(family.name for family in families) if 0 < len(families) < 4 else None
    (family,) = families
    if family.variant is None:
        return family.name
    return family.variant(shapes) or (None if family is WAN else family.name)


# --- Writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A module in another code: its name, and which rows of the module (None: all) are which of its rows."""

    name: str
    rows: tuple[tuple[Rows | None, Rows | None], ...]

    @property
    def is_whole(self) -> bool:
        return self.rows == WHOLE


@functools.cache
def _reverse(family: Family, code: str) -> Templates[tuple[Link, ...]]:
    table: Templates[tuple[Link, ...]] = Templates(".")
    grouped: dict[str, list[Link]] = {}
    for link in family.codes.get(code, ()):
        grouped.setdefault(link.own, []).append(link)
    for template, links in grouped.items():
        table.setdefault(template, tuple(links))
    return table


@functools.lru_cache(maxsize=1 << 16)
def in_code(module: str, family: Family, code: str) -> tuple[Written, ...]:
    """A canonical module in another code; the same name if that code has no other."""
    found = _reverse(family, code).find(module) if code != OWN else None
    if not found:
        return (Written(module, WHOLE),)
    links, numbers = found
    names: dict[str, list[tuple[Rows | None, Rows | None]]] = {}
    for link in links:
        names.setdefault(filled(link.theirs, numbers), []).append((link.own_rows, link.their_rows))
    return tuple(Written(name, tuple(rows)) for name, rows in names.items())


@functools.lru_cache(maxsize=1 << 16)
def is_bare(module: str, family: Family) -> bool:
    """Whether this is a parameter that is not the weight of a layer: ComfyUI finds it by its dotted name only."""
    found = own(module)
    return found is not None and found[0].template in family.bare


def is_norm(module: str) -> bool:
    """Whether a module is a norm, whose weight is a vector."""
    found = own(module)
    by_table = found is not None and any(found[0].template in family.norms for family in FAMILIES)
    return by_table or "norm" in module.rpartition(".")[2]


def is_optional(module: str) -> bool:
    """Whether some models of the family lack this module: the rest of a LoRA that has it still works on them."""
    found = own(module)
    return found is not None and any(found[0].template in family.optional for family in FAMILIES)


def has_alpha(module: str, family: Family | None) -> bool:
    """Whether every reader accepts an alpha for this module."""
    found = own(module)
    return family is None or not family.alpha_in_blocks or found is None or bool(found[0].stack)


def kernel(module: str) -> tuple[int, ...]:
    """The kernel of a convolution of some family; () for other modules."""
    found = own(module)
    if not found:
        return ()
    return next(
        (family.kernels[found[0].template] for family in FAMILIES
         if family.name in found[0].families and found[0].template in family.kernels),
        (),
    )  # fmt: skip


@functools.cache
def _readable(family: Family) -> dict[str, set[str]]:
    """Prefix -> codes whose names ComfyUI accepts after it."""
    table: dict[str, set[str]] = {"diffusion_model.": {OWN}, "lora_unet_": {OWN}}
    for prefix, code in family.read:
        table.setdefault(prefix, set()).add(code)
    return table


def comfyui_reads(name: str, family: Family | None) -> bool:
    """Whether ComfyUI accepts this module name, prefix included, in a LoRA file."""
    if family is None:
        return False
    for prefix, codes in _readable(family).items():
        if not name.startswith(prefix):
            continue
        rest = name[len(prefix) :]
        is_flat = prefix.endswith("_")
        found = spelling(rest if is_flat else rest.replace(".", "_"))
        target = found[0].targets.get(family.name) if found else None
        if found is None or target is None or target.links[0].theirs in family.unread:
            continue
        exact = filled(target.links[0].theirs, found[1])
        if rest != (exact.replace(".", "_") if is_flat else exact):
            continue
        # If a code has no name of its own for a module, it uses the model's.
        by_another = {code for code in codes - {OWN} if in_code(exact, family, code)[0].name == exact}
        if target.code in codes or (target.code == OWN and by_another):
            return True
    return False
