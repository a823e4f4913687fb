"""Which file is likely to be the other side of a pair, by its name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Words for more of a property and for less of it.
OPPOSITES = (
    ("pos", "neg"),
    ("positive", "negative"),
    ("plus", "minus"),
    ("more", "less"),
    ("many", "few"),
    ("dense", "sparse"),
    ("full", "empty"),
    ("detailed", "plain"),
    ("high", "low"),
    ("big", "small"),
    ("large", "small"),
    ("bright", "dark"),
    ("with", "without"),
    ("on", "off"),
    ("a", "b"),
)

# Words for the two models of Wan2.2, the surest first. A letter alone only counts if the file with the other one is there.
_NOISES: tuple[dict[str, str], ...] = (
    {"high noise": "low noise"},
    {"high": "low"},
    {"hn": "ln", "h": "l"},
)


@dataclass(frozen=True)
class Half:
    """One of the two files of a LoRA for Wan2.2.

    noise   which model it is for, "high" or "low"
    twin    the file for the other model; None if it is not there
    """

    noise: str
    twin: str | None


def half_of(name: str, names: Iterable[str]) -> Half | None:
    r"""Which half of a Wan2.2 LoRA a file is, by its name alone: `cat_high.safetensors` has the twin `cat_low.safetensors`.

    The twin is called the same but for these words, its folders included; at another step, or in another folder, it is none.

    name    relative, as ComfyUI lists files; ``/`` and ``\\`` both separate
    returns None if the name says neither high nor low, or both
    """
    words = _words(name)
    others = [(other, _words(other)) for other in names if other != name]
    alone = None
    table: dict[str, str] = {}
    for level in _NOISES:
        table |= level
        both = table | {low: high for high, low in table.items()}
        said = ["high" if word in table else "low" for word in words if word in both]
        if len(set(said)) != 1:
            continue
        wanted = [both.get(word, word) for word in words]
        if found := [other for other, theirs in others if theirs == wanted]:
            return Half(said[0], min(found, key=lambda other: _unlike(name, other)))
        if alone is None and level is not _NOISES[-1]:
            alone = Half(said[0], None)
    return alone


def _unlike(name: str, other: str) -> tuple[int, str]:
    """How differently two twins are spelled: other separators, other capitals, leading zeros."""
    plain = [re.sub(r"[^\W_]", lambda found: "A" if found[0].isupper() else "a", text) for text in (name, other)]
    return sum(one != another for one, another in zip(*plain, strict=False)), other


def partners(name: str, names: Iterable[str]) -> list[str]:
    r"""The files of `names` that fit `name` as the other side of a pair, the likeliest first.

    They are called the same but for words that are opposites (dense / sparse, pos / neg …), at the same step before other
    steps, and in the same folder before others. "high noise" and "low noise" are the two models of Wan2.2, and no
    opposites.

    name    relative, as ComfyUI lists files; ``/`` and ``\\`` both separate
    """
    words = _words(name)
    names = list(names)
    half = half_of(name, names)
    found = []
    for other in names:
        rank = _distance(words, _words(other)) if other != name else None
        if rank is not None:
            # high and low may be the property, or the models of Wan2.2.
            found.append((half is not None and other == half.twin, rank, other))
    return [other for *_, other in sorted(found)]


def is_more(name: str, other: str) -> bool | None:
    """Whether `name` is the side with more of the property; None if the names do not say."""
    for one, another in zip(_words(name), _words(other), strict=False):
        for more, less in OPPOSITES:
            if (one, another) == (more, less):
                return True
            if (one, another) == (less, more):
                return False
    return None


def _words(name: str) -> list[str]:
    """Words, numbers and folders, in lower case: ``Cat/cat_Dense-step00000500.safetensors`` -> cat / cat dense step 500."""
    stem = re.sub(r"\.safetensors$", "", name.replace("\\", "/"))
    parts = re.findall(r"/|\d+|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+", stem)
    words = [part.lstrip("0") or "0" if part.isdigit() else part.lower() for part in parts]
    return list(_joined(words))


def _joined(words: list[str]) -> Iterator[str]:
    """With "high noise" and "low noise" as one word each."""
    rest = iter(words)
    for word in rest:
        if word in ("highnoise", "lownoise"):
            yield f"{word.removesuffix('noise')} noise"
            continue
        following = next(rest, None) if word in ("high", "low") else None
        if following == "noise":
            yield f"{word} noise"
            continue
        yield word
        if following is not None:
            yield following


def _distance(one: list[str], other: list[str]) -> tuple[int, int, int] | None:
    """How far two files are from a pair: other numbers, other folder, words changed; None if they are none."""
    files = [words[len(words) - words[::-1].index("/") :] if "/" in words else words for words in (one, other)]
    folders = [words[: len(words) - len(file)] for words, file in zip((one, other), files, strict=True)]
    changed = _changes(*files)
    if changed is None:
        return None
    elsewhere = 0
    if folders[0] != folders[1]:
        between = _changes(*folders)
        elsewhere = 1 if between and not between[1] else 2
        changed = (changed[0] + (between[0] if elsewhere == 1 and between else 0), changed[1])
    words, numbers = changed
    return (numbers, elsewhere, words) if words else None


def _changes(one: list[str], other: list[str]) -> tuple[int, int] | None:
    """How many words are each other's opposites, and how many numbers differ; None if anything else differs."""
    # A final file has no step in its name.
    if len(one) != len(other):
        bare = [
            [word for word in words if not word.isdigit() and word not in ("step", "epoch")] for words in (one, other)
        ]
        inner = _changes(*bare) if len(bare[0]) == len(bare[1]) else None
        return (inner[0], inner[1] + 1) if inner else None
    words = numbers = 0
    for left, right in zip(one, other, strict=True):
        if left == right:
            continue
        if left.isdigit() and right.isdigit():
            numbers += 1
        elif (left, right) in OPPOSITES or (right, left) in OPPOSITES:
            words += 1
        else:
            return None
    return words, numbers
