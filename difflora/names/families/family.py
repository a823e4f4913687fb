"""The definition of a model family, and how names are looked up by templates.

A template is a module name in which ``#`` stands for a block number and braces for alternatives, as in a shell:
``blocks.#.self_attn.{q,k}``. Two templates with braces are expanded in parallel, so that one line can rename several modules.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Shapes = Mapping[str, tuple[int, ...]]
ValueT = TypeVar("ValueT")

OWN, DIFFUSERS, DIFFSYNTH = "own", "diffusers", "diffsynth"


@dataclass(frozen=True)
class Rows:
    """A run of rows of a weight, in equal units: rows 3 … 7 of 7 are ``Rows(3, 4, 7)``.

    head  rows of a unit in each attention head, if the weight has one head after another: q, k and v of the first head,
          then those of the second
    """

    start: int
    size: int
    of: int
    head: int = 0

    def within(self, rows: int) -> slice | list[int]:
        """The same in a weight with this many rows; raises ValueError if they cannot be divided like this."""
        if rows % (self.of * (self.head or 1)):
            heads = f" heads of {self.head}" if self.head else ""
            raise ValueError(f"{rows} rows cannot be divided by {self.of}{heads}")
        if self.head:
            first, size = self.start * self.head, self.size * self.head
            return [at + row for at in range(first, rows, self.of * self.head) for row in range(size)]
        unit = rows // self.of
        return slice(self.start * unit, (self.start + self.size) * unit)

    def count(self, rows: int) -> int:
        """How many they are in a weight with this many rows; raises ValueError as `within` does."""
        run = self.within(rows)
        return len(run) if isinstance(run, list) else run.stop - run.start


@dataclass(frozen=True)
class Link:
    """One module of another code, and the module of the model, or the rows of it, that it corresponds to.

    own, theirs            templates without braces
    own_rows, their_rows   None for all of them
    """

    own: str
    theirs: str
    own_rows: Rows | None = None
    their_rows: Rows | None = None


def renamed(*pairs: tuple[str, str]) -> tuple[Link, ...]:
    """Modules with a different name in another code: (theirs, own)."""
    return tuple(
        Link(own, theirs)
        for left, right in pairs
        for theirs, own in zip(spelled_out(left), spelled_out(right), strict=True)
    )


def split(own: str, theirs: str, sizes: tuple[int, ...] = (1, 1, 1)) -> tuple[Link, ...]:
    """One module of the model whose rows are several modules in another code, in this order: q, k and v."""
    total = sum(sizes)
    links = []
    for template, names in zip(spelled_out(own), _grouped(theirs, len(sizes)), strict=True):
        start = 0
        for name, size in zip(names, sizes, strict=True):
            links.append(Link(template, name, own_rows=Rows(start, size, total)))
            start += size
    return tuple(links)


def fused(own: str, theirs: str, sizes: tuple[int, ...] = ()) -> tuple[Link, ...]:
    """Several modules of the model that are the rows of one module in another code, in this order.

    sizes  of the modules, in equal units; () if they are all of the same size
    """
    names = spelled_out(own)
    sizes = sizes or (1,) * len(names)
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    return tuple(
        Link(name, theirs, their_rows=Rows(start, size, sum(sizes)))
        for name, start, size in zip(names, starts, sizes, strict=True)
    )


def swapped(own: str, theirs: str) -> tuple[Link, ...]:
    """One module in both, but with its two halves swapped."""
    halves = (Rows(0, 1, 2), Rows(1, 1, 2))
    return tuple(Link(own, theirs, left, right) for left, right in zip(halves, reversed(halves), strict=True))


def by_head(own: str, head: int, parts: int = 3) -> tuple[Link, ...]:
    """One module in both, with q, k and v in one piece each here, and head by head there.

    head  rows of q in one attention head
    """
    return tuple(
        Link(name, name, Rows(at, 1, parts), Rows(at, 1, parts, head))
        for name in spelled_out(own)
        for at in range(parts)
    )


def _grouped(template: str, size: int) -> Iterator[list[str]]:
    names = spelled_out(template)
    for at in range(0, len(names), size):
        yield names[at : at + size]


def spelled_out(template: str) -> list[str]:
    """``a{b,c{d,e}}`` is ab, acd and ace, as in a shell."""
    names: list[str] = []  # the words before a comma
    ends = [""]
    outer: list[tuple[list[str], list[str]]] = []
    for piece in re.split(r"([{},])", template):
        if piece == "{":
            outer.append((names, ends))
            names, ends = [], [""]
        elif piece == ",":
            names, ends = names + ends, [""]
        elif piece == "}":
            inside = names + ends
            names, ends = outer.pop()
            ends = [before + word for before in ends for word in inside]
        else:
            ends = [before + piece for before in ends]
    return ends


def first_word(name: str) -> str:
    """What stands before the first separator; the same in a dotted name and in a flat one."""
    return name.partition(".")[0].partition("_")[0]


_BRACED = re.compile(r"[^._]*\{")  # the first word has alternatives


@dataclass(frozen=True, eq=False)
class Family:
    """Models with the same modules.

    name            its usual name, also used in metadata
    modules         (template, roles), in the model's order. Roles are words for selections: "attn", "self_attn",
                    "cross_attn", "ffn", and the streams "audio", "text" and "image"
    codes           name of another code -> its module names; modules that are not listed have the same name
    layouts         trainer -> modules whose rows are in another order in its files, under the model's own names
    read            prefixes that ComfyUI accepts besides ``diffusion_model.`` and ``lora_unet_``: (prefix, code)
    unread          templates of another code's names that ComfyUI does not accept, although it accepts the others
    kohya           the code whose names trainers with flat names use
    native          prefix of names that ComfyUI and others read; one that ends with "_" is for flat names
    diffusers       prefix of names in diffusers
    depths          numbers of blocks in each stack, for the models that exist; the main stack comes first
    widths          shapes (out, in) that some modules have, by template: tells families with the same names apart
    variant         what the shapes say about the model, as text for the user; None if they say nothing
    architecture    what `modelspec.architecture` starts with
    implementation  where the model comes from
    kernels         convolutions, by template: trainers may store a change of one flattened
    optional        templates of modules that some models of the family lack: image-to-video modules
    norms           templates of norms whose names do not say so
    alpha_in_blocks  whether some reader refuses an alpha outside the blocks
    bare            templates of parameters that are not the weight of a layer
    built_on        words in the flat names of the extra layers in models that are built on this family
    words           words in an architecture's name that identify the family
    latents         clip frames per latent frame, by the name of ComfyUI's class for the latent; only where it is not 4
    shown           (label, size, stack, number of blocks, rests in a block): what a grid shows before it has a LoRA
    """

    name: str
    modules: tuple[tuple[str, str], ...]
    implementation: str
    architecture: str = ""
    codes: Mapping[str, tuple[Link, ...]] = field(default_factory=dict)
    layouts: Mapping[str, tuple[Link, ...]] = field(default_factory=dict)
    read: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
    kohya: str = OWN
    native: str = "diffusion_model."
    diffusers: str = "transformer."
    depths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    widths: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    variant: Callable[[Shapes], str | None] | None = None
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    alpha_in_blocks: bool = False
    bare: tuple[str, ...] = ()
    built_on: re.Pattern[str] | None = None
    words: tuple[str, ...] = ()
    latents: Mapping[str, int] = field(default_factory=dict)
    shown: tuple[tuple[str, str, str, int, tuple[str, ...]], ...] = ()

    @property
    def main_stack(self) -> str:
        """The stack in which most of the model is."""
        return next(iter(self.depths), "")

    @functools.cached_property
    def own(self) -> tuple[tuple[str, str], ...]:
        """(template without braces, roles) of every module, in the model's order."""
        return tuple((name, roles) for template, roles in self.modules for name in spelled_out(template))

    @functools.cached_property
    def first_words(self) -> frozenset[str]:
        """The `first_word` of each of its names in any code."""
        starts = {link.theirs.partition(".")[0] for links in self.codes.values() for link in links}
        for template, _ in self.modules:
            names = spelled_out(template) if _BRACED.match(template) else (template,)
            starts.update(name.partition(".")[0] for name in names)
        return frozenset(start.partition("_")[0] for start in starts)


# Trainers write no leading zeros, and no model has ten thousand blocks.
_NUMBER = "(?:0|[1-9][0-9]{0,3})"
# Separator -> a number that is a part of a name, and the same or a "#".
_NUMBERS = {
    separator: tuple(
        re.compile(rf"(?<![^{separator}]){number}(?![^{separator}])") for number in (_NUMBER, f"(?:#|{_NUMBER})")
    )
    for separator in "._"
}


class Templates(Generic[ValueT]):
    """Looks names up by templates. Most have one number, so one search and one look-up find them.

    separator  between the parts of a name: "." or "_"
    """

    def __init__(self, separator: str):
        self._number, self._mark = _NUMBERS[separator]
        self._one: dict[tuple[str, str], ValueT] = {}
        self._plain: dict[str, ValueT] = {}
        self._many: dict[str, list[tuple[tuple[str, ...], ValueT]]] = {}

    def setdefault(self, template: str, value: ValueT) -> ValueT:
        """The value of the template; sets it to `value` if it has none yet."""
        head, sign, tail = template.partition("#")
        if not sign:
            return self._plain.setdefault(template, value)
        if "#" not in tail and not self._number.search(head):
            return self._one.setdefault((head, tail), value)
        numbers = tuple(self._mark.findall(template))
        entries = self._many.setdefault(self._mark.sub("#", template), [])
        for known, other in entries:
            if known == numbers:
                return other
        entries.append((numbers, value))
        return value

    def find(self, name: str) -> tuple[ValueT, tuple[str, ...]] | None:
        """The value of the template that a name matches, and the numbers for its ``#``."""
        value = self._plain.get(name)
        if value is not None:
            return value, ()
        first = self._number.search(name)
        if not first:
            return None
        value = self._one.get((name[: first.start()], name[first.end() :]))
        if value is not None:
            return value, (first[0],)
        entries = self._many.get(self._number.sub("#", name))
        if entries:
            found = self._number.findall(name)
            for numbers, value in entries:
                if all(mark in ("#", number) for mark, number in zip(numbers, found, strict=True)):
                    return value, tuple(n for mark, n in zip(numbers, found, strict=True) if mark == "#")
        return None


def filled(template: str, numbers: tuple[str, ...]) -> str:
    """A template with numbers in place of its ``#``."""
    if len(numbers) == 1:
        return template.replace("#", numbers[0], 1)
    pieces = template.split("#")
    return "".join(piece + number for piece, number in zip(pieces, (*numbers, ""), strict=True))
