"""The text syntax that selects modules and gives them weights: ``attn, !blocks 39, ffn=0.5``.

The whole grammar, in prose and with worked cases, is in `tests/data/selection.json`; both the Python and the JavaScript
tests read it, so the server and the block grid agree.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import SelectionError
from ..names import families
from .patterns import Pattern, PatternError, Work, WorkError

MAX_TEXT = 100_000
MAX_PATTERNS = 20
MAX_WORK = 5_000_000  # terms times names, and equally many pattern states: a few seconds
LONG_NAME = 200  # characters; a longer name counts as several

_SPACE = re.compile(r"[ \t\r\n\u00a0\u3000]*")
# As typed on Chinese and Japanese keyboards: signs, digits and letters of full width, and the dashes beside the digits.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("、"): ord(",")}
_PLAIN |= dict.fromkeys(map(ord, "‐–—−ー"), ord("-"))
_WORD = re.compile(r"[A-Za-z_*?][A-Za-z0-9_.*?\-]*")
_RANGE = re.compile(r"([0-9]+)(?:(-)([0-9]+)?)?(?![A-Za-z0-9_.*?\-])")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.*?])")
_PATTERN = re.compile(r"/((?:[^/\\]|\\.)*)/")
_EXACT = re.compile(r'"((?:[^"]|"")*)"')

# For models of unknown families: names before a block number, and names of parts of a block that look like them.
_STACKS = ("blocks", "layers", "attentions", "resnets", "samplers", "middle_block")
_LAYERS = ("in_layers", "out_layers", "emb_layers")
_FEED_FORWARD = ("ffn", "ff", "ff_context", "feed_forward")

_Test = Callable[[str], bool]
_Ranges = list[tuple[int, float]]


@dataclass(frozen=True)
class _Item:
    """One entry between commas: a set of modules that is added with a weight, or removed."""

    text: str
    removes: bool
    weight: float
    holds: _Test
    is_none: bool


@dataclass(frozen=True)
class Selection:
    """A parsed selection. Two selections are equal if their texts are."""

    text: str
    _items: tuple[_Item, ...] = field(compare=False, repr=False)
    _terms: int = field(compare=False, repr=False)
    _work: Work = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Parse a selection; raises SelectionError that points at the first thing it cannot read."""
        parser = _Parser(text)
        return cls(text, tuple(parser.items()), parser.terms, parser.work)

    def weights(self, names: Iterable[str]) -> dict[str, float]:
        """Selected module -> weight, in the order of `names`. Raises SelectionError if nothing is selected."""
        names = list(names)
        with self._bounded(names):
            chosen = {name: weight for name in names if (weight := self._weight(name)) != 0}
        if not chosen:
            raise SelectionError(f"Selection {_quoted(self.text)} selects nothing. There is: {summary(names)}.")
        return chosen

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """The entries of the text that match no name, as they were written: most likely typos."""
        names = list(names)
        with self._bounded(names):
            return [item.text for item in self._items if not item.is_none and not any(map(item.holds, names))]

    @contextlib.contextmanager
    def _bounded(self, names: list[str]) -> Iterator[None]:
        """Raise SelectionError if evaluating all `names` would take too long."""
        self._work.left = MAX_WORK
        try:
            self._work.spend(self._terms * sum(1 if len(name) <= LONG_NAME else len(name) // 4 for name in names))
            self._work.left = MAX_WORK
            yield
        except WorkError:
            raise SelectionError(
                f"Selection {_quoted(self.text)}: {self._terms} terms on {len(names)} modules take too long. Use ranges, "
                "and fewer or simpler patterns."
            ) from None

    def _weight(self, name: str) -> float:
        weight = 1.0 if self._items and self._items[0].removes else 0.0
        for item in self._items:
            if item.holds(name):
                weight = 0.0 if item.removes else item.weight
        return weight


def summary(names: Iterable[str]) -> str:
    """What can be selected, in one line: ``blocks 0-39: self_attn q k v o, ffn 0 2; head.head``."""
    stacks: dict[str, tuple[set[int], dict[str, dict[str, None]]]] = {}
    outside: list[str] = []
    for name in names:
        segments = name.split(".")
        numbered = _numbered(name, segments)
        if not numbered:
            outside.append(name)
            continue
        for at in numbered:
            blocks, components = stacks.setdefault(segments[at - 1], (set(), {}))
            blocks.add(int(segments[at]))
        component, rest = segments[numbered[-1] + 1], segments[numbered[-1] + 2 :]
        components.setdefault(component, {})[".".join(rest)] = None
    parts = []
    for stack_name, (blocks, components) in stacks.items():
        inside = [" ".join([name, *(rest for rest in rests if rest)]) for name, rests in components.items()]
        parts.append(f"{stack_name} {_as_ranges(blocks)}" + (f": {_listed(inside, ', ', 12)}" if inside else ""))
    if outside:
        parts.append(_listed(outside, ", ", 8))
    return "; ".join(parts) or "nothing at all"


def leaving_out(names: Iterable[str], most: int = 5) -> str | None:
    """What to add to a selection to leave these modules out: their names, or those of all blocks; None if many are needed."""
    names = list(names)
    if len(names) > most:
        stacks = {name: stack_of(name) for name in names}
        names = list(dict.fromkeys(f"{found[0]}.*.{found[2]}" if found else name for name, found in stacks.items()))
    quoted = [name if "*" in name else '"' + name.replace('"', '""') + '"' for name in names]
    return ", ".join(f"!{one}" for one in quoted) if len(names) <= most else None


def stack_of(name: str) -> tuple[str, int, str] | None:
    """The innermost numbered stack in a name: ``blocks.7.ffn.0`` is ("blocks", 7, "ffn.0").

    A stack inside another is named in full: ("input_blocks.4.1.transformer_blocks", 0, "attn1.to_q").
    """
    segments = name.split(".")
    numbered = _numbered(name, segments)
    if not numbered:
        return None
    at = numbered[-1]
    # The blocks of the first U-Nets hold numbered parts: input_blocks.4.1 is part 1 of block 4.
    at += at + 2 < len(segments) and _is_index(segments[at + 1])
    return ".".join(segments[:at]), int(segments[at]), ".".join(segments[at + 1 :])


def _numbered(name: str, segments: list[str]) -> list[int]:
    """The positions of block numbers in a name."""
    if known := families.own(name):
        return known[0].numbered
    return [
        at
        for at in range(1, len(segments) - 1)
        if _is_index(segments[at]) and segments[at - 1].endswith(_STACKS) and segments[at - 1] not in _LAYERS
    ]


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.plain = text.translate(_PLAIN)  # of the same length; names in quotes and patterns are read from `text`
        self.at = 0
        self.patterns = 0
        self.terms = 0  # ranges of numbers counted each
        self.work = Work()
        if len(text) > MAX_TEXT:
            raise SelectionError(f"Selection: the text is longer than {MAX_TEXT} characters. Use ranges or a pattern.")

    def error(self, message: str, at: int | None = None) -> SelectionError:
        at = self.at if at is None else at
        return SelectionError(f"Selection {_quoted(self.text)}, character {at + 1}: {message}.")

    def skip(self, sign: str = "") -> bool:
        """Skip white space, then `sign` if it is next; tell whether it was."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at
        if sign and self.plain.startswith(sign, self.at):
            self.at += 1
            return True
        return False

    def read(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        self.skip()
        found = expression.match(self.text if expression in (_PATTERN, _EXACT) else self.plain, self.at)
        if found:
            self.at = found.end()
        return found

    def items(self) -> Iterable[_Item]:
        while True:
            while self.skip(","):
                pass
            if self.at >= len(self.text):
                return
            yield self.item()
            self.skip()
            if self.at < len(self.text) and self.plain[self.at] != ",":
                raise self.error(
                    f'found {self.found()} where "," (and also), "&" (only where) or "=" (weight) can stand'
                )

    def item(self) -> _Item:
        start = self.at
        removes = self.skip("!")
        factors = [self.factor()]
        while self.skip("&"):
            inverted = self.skip("!")
            factors.append(_inverse(self.factor()) if inverted else self.factor())
        weight = 1.0
        if self.skip("="):
            if removes:
                raise self.error('"!" removes, so there is no weight to set', self.at - 1)
            weight = self.number()
        text = self.text[start : self.at].strip()
        # One test runs in a plain loop: all() over a generator costs more than the tests themselves.
        holds = factors[0] if len(factors) == 1 else _every(factors)
        is_none = self.plain[start : self.at].strip().lstrip("! \u3000").lower() == "none"
        return _Item(text, removes, weight, holds, is_none)

    def factor(self) -> _Test:
        terms = [self.term()]
        while self.skip("|"):
            terms.append(self.term())
        return _some_of(terms)

    def number(self) -> float:
        self.skip()
        start = self.at
        found = self.read(_NUMBER)
        weight = float(found[0]) if found else math.nan
        if not math.isfinite(weight):
            self.at = start
            raise self.error(f'found {self.found()} where a weight such as 0.5 or -1 belongs after "="')
        return weight

    def term(self) -> _Test:
        self.skip()
        self.terms += 1
        start = self.at
        if self.text.startswith("/", start):
            found = self.read(_PATTERN)
            if not found:
                raise self.error('the pattern that starts here has no closing "/"')
            return self.pattern(found[1], start + 1)
        if self.text.startswith('"', start):
            exact = self.read(_EXACT)
            if not exact:
                raise self.error("the name that starts here has no closing quote")
            return exact[1].replace('""', '"').__eq__
        word = self.read(_WORD)
        if not word:
            if self.plain[start : start + 1].isdigit():
                raise self.error('a number needs its blocks in front, as in "blocks 0-10,20-29"')
            if self.plain.startswith("!", start):
                raise self.error('one "!" is enough, and it stands before the first term or after "&"')
            raise self.error(
                f'found {self.found()} where a term belongs, such as attn, ffn.0, "blocks 0-10" or /pattern/'
            )
        ranges = self.ranges()
        if ranges:
            return self.in_stack(word[0], ranges, start)
        return _KEYWORDS.get(word[0].lower()) or self.word(word[0], start)

    def word(self, word: str, at: int) -> _Test:
        if "*" in word or "?" in word:
            glob = re.sub(r"[.\-]", r"\\\g<0>", word).replace("?", ".").replace("*", ".*")
            return self.pattern(f"^{glob}$", at)
        return _some_of([_has_segments(f".{spelling}.") for spelling in _spellings(word)])

    def in_stack(self, word: str, ranges: _Ranges, at: int) -> _Test:
        if "*" in word or "?" in word:
            return _after_glob(self.word(word, at), ranges)
        return _some_of([_after_segments(f".{spelling}.", ranges) for spelling in _spellings(word)])

    def ranges(self) -> _Ranges:
        """Numbers after a word: ``0-10,20-29`` or ``0 1 2``. A comma followed by a number belongs to them."""
        ranges: _Ranges = []
        while True:
            before = self.at
            if ranges:
                self.skip(",")
            found = self.read(_RANGE)
            if not found:
                self.at = before
                return ranges
            start = int(found[1][:9])
            end = math.inf if found[2] and not found[3] else int((found[3] or found[1])[:9])
            if end < start:
                raise self.error(f"the range {found[0]} runs backwards; write {found[3]}-{found[1]}", found.start())
            ranges.append((start, end))
            self.terms += 1

    def pattern(self, source: str, at: int) -> _Test:
        self.patterns += 1
        if self.patterns > MAX_PATTERNS:
            raise self.error(f"more than {MAX_PATTERNS} patterns and globs; join them with | inside one pattern", at)
        try:
            pattern = Pattern(source)
            return lambda name: pattern.found_in(name, self.work)
        except PatternError as error:
            raise self.error(str(error), at + error.at) from None

    def found(self) -> str:
        rest = self.text[self.at :].split()
        return f'"{_printable(rest[0][:20])}"' if rest else "the end"


def _all(name: str) -> bool:
    return True


def _none(name: str) -> bool:
    return False


def _has_role(role: str) -> _Test:
    """From the family's table; for a name that no family has, from its parts."""
    guess = _GUESSES.get(role) or _has_segments(f".{role}.")

    def holds(name: str) -> bool:
        known = families.own(name.removesuffix(".bias"))
        return role in known[0].roles if known else guess(name)

    return holds


def _looks_like_attention(name: str) -> bool:
    # A U-Net's "attentions" are whole transformers.
    return "attn" in name or "attention" in name.replace("attentions", "")


def _looks_like_feed_forward(name: str) -> bool:
    return any(segment in _FEED_FORWARD or "mlp" in segment for segment in name.split("."))


_GUESSES: dict[str, _Test] = {"attn": _looks_like_attention, "ffn": _looks_like_feed_forward}


def _has_segments(run: str) -> _Test:
    return lambda name: run in f".{name}."


def _inverse(test: _Test) -> _Test:
    return lambda name: not test(name)


def _every(tests: list[_Test]) -> _Test:
    return lambda name: all(test(name) for test in tests)


def _some_of(tests: list[_Test]) -> _Test:
    return tests[0] if len(tests) == 1 else lambda name: any(test(name) for test in tests)


def _spellings(word: str) -> list[str]:
    """A typed word in the spelling of names: ``Self-Attn`` is ``self_attn``, and ``block`` is ``blocks``."""
    plain = word.lower().replace("-", "_")
    return ["blocks"] if plain == "block" else list(dict.fromkeys((word, plain)))


_KEYWORDS: dict[str, _Test] = {"all": _all, "none": _none} | {role: _has_role(role) for role in families.ROLES}


def _after_segments(run: str, ranges: _Ranges) -> _Test:
    is_one_word = run.count(".") == 2

    def holds(name: str) -> bool:
        # "blocks 3" is block 3 of the stack that is called blocks, not of token_refiner.blocks as well.
        if is_one_word and (known := families.own(name)) and known[0].is_inner and known[0].stack.endswith(run[:-1]):
            return False
        name = f".{name}."
        at = name.find(run)
        while at >= 0:
            number = at + len(run)
            if _in_ranges(name[number : name.find(".", number)], ranges):
                return True
            at = name.find(run, at + 1)
        return False

    return holds


def _after_glob(glob: _Test, ranges: _Ranges) -> _Test:
    def holds(name: str) -> bool:
        segments = name.split(".")
        return any(
            _in_ranges(number, ranges) and glob(word) for word, number in zip(segments, segments[1:], strict=False)
        )

    return holds


def _in_ranges(segment: str, ranges: _Ranges) -> bool:
    return _is_index(segment) and any(low <= int(segment) <= high for low, high in ranges)


def _is_index(segment: str) -> bool:
    return segment.isascii() and segment.isdigit() and len(segment) <= 9


def _as_ranges(numbers: set[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _listed(parts: list[str], separator: str, most: int) -> str:
    return separator.join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def _quoted(text: str) -> str:
    shown = _printable(text[:80])
    return f'"{shown}…"' if len(text) > 80 else f'"{shown}"'


def _printable(text: str) -> str:
    """On one line, without characters that move the cursor or reverse the text; character positions stay the same."""
    return "".join(character if character.isprintable() else " " for character in text)
