r"""Regular expressions that cannot hang: all states are stepped at once, without backtracking.

Selections arrive over the network unchecked, and one ``(\w+)+!`` would stop Python's own matcher for hours.
Here the time grows with pattern length times text length for any pattern. The JavaScript version (`js/lib/patterns.js`)
reads the same syntax, so the page and the server always agree on what a pattern matches.

Known: literals, ``.``, ``[a-z]``, ``[^…]``, ``\d \w \s`` and their capitals, ``\b``, ``^ $``, groups, ``|``,
``* + ? {m,n}``. Not known: back references, look-around, flags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_LENGTH = 300
MAX_STATES = 600

_LAST = 0x10FFFF
_Ranges = tuple[tuple[int, int], ...]


def _complement(ranges: _Ranges) -> _Ranges:
    gaps, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            gaps.append((start, low - 1))
        start = max(start, high + 1)
    if start <= _LAST:
        gaps.append((start, _LAST))
    return tuple(gaps)


_ANY: _Ranges = ((0, _LAST),)
_CLASSES: dict[str, _Ranges] = {
    "d": ((48, 57),),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "s": ((9, 13), (32, 32)),
}
_CLASSES |= {name.upper(): _complement(ranges) for name, ranges in list(_CLASSES.items())}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class PatternError(ValueError):
    """The pattern cannot be read. `at` counts characters from 0."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True)
class _Node:
    """kind: "set" (ranges), "at" (sign), "seq" and "or" (parts), "repeat" (parts[0], low, high; high None = no end)."""

    kind: str
    parts: tuple[_Node, ...] = ()
    ranges: _Ranges = ()
    sign: str = ""
    low: int = 0
    high: int | None = None


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0

    def peek(self) -> str:
        return self.source[self.at : self.at + 1]

    def take(self) -> str:
        character = self.peek()
        self.at += 1
        return character

    def either(self, depth: int = 0) -> _Node:
        if depth > 30:
            raise PatternError("groups are nested too deeply", self.at)
        options = [self.sequence(depth)]
        while self.peek() == "|":
            self.take()
            options.append(self.sequence(depth))
        return options[0] if len(options) == 1 else _Node("or", tuple(options))

    def sequence(self, depth: int) -> _Node:
        parts = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.atom(depth)))
        return _Node("seq", tuple(parts))

    def repeated(self, node: _Node) -> _Node:
        sign, start = self.peek(), self.at
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (-1, None))
        if sign == "{":
            low, high = self.counts()
        elif low >= 0:
            self.take()
        else:
            return node
        if node.kind == "at":
            raise PatternError(f'"{sign}" has nothing to repeat', start)
        if self.peek() == "?":  # lazy or greedy makes no difference for a yes-or-no answer
            self.take()
        if self.peek() in ("*", "+", "?", "{") and self.peek():
            raise PatternError(f'"{self.peek()}" repeats what is already repeated', self.at)
        return _Node("repeat", (node,), low=low, high=high)

    def counts(self) -> tuple[int, int | None]:
        start = self.at
        end = self.source.find("}", start)
        low, comma, high = self.source[start + 1 : max(end, start)].partition(",")
        for number in (low, high):
            if len(number) > 3 or any(character not in "0123456789" for character in number):
                raise PatternError('"{" starts a count such as {2} or {2,5}; write \\{ for the character', start)
        if end < 0 or not low:
            raise PatternError('"{" starts a count such as {2} or {2,5}; write \\{ for the character', start)
        self.at = end + 1
        least, most = int(low), int(high) if high else (None if comma else int(low))
        if most is not None and most < least:
            raise PatternError(f"the count {{{low},{high}}} runs backwards", start)
        return least, most

    def atom(self, depth: int) -> _Node:
        start = self.at
        character = self.take()
        if character == "(":
            if self.peek() == "?":
                if self.source[self.at : self.at + 2] != "?:":
                    raise PatternError("(?…) is not known here; for «does not match» use ! in the selection", start)
                self.at += 2
            inside = self.either(depth + 1)
            if self.take() != ")":
                raise PatternError('"(" is never closed', start)
            return inside
        if character in "*+?{":
            raise PatternError(f'"{character}" has nothing to repeat', start)
        if character == ".":
            return _Node("set", ranges=_ANY)
        if character in "^$":
            return _Node("at", sign=character)
        if character == "[":
            return self.bracket(start)
        if character == "\\":
            if self.peek() in ("b", "B") and self.peek():
                return _Node("at", sign=self.take())
            return _Node("set", ranges=self.escape(start))
        return _Node("set", ranges=((ord(character), ord(character)),))

    def escape(self, start: int) -> _Ranges:
        character = self.take()
        if character in _CLASSES:
            return _CLASSES[character]
        character = _CONTROLS.get(character, character)
        if not character or (character.isalnum() and character.isascii()):
            raise PatternError(f'"\\{character}" is not known here', start)
        return ((ord(character), ord(character)),)

    def bracket(self, start: int) -> _Node:
        inverted = self.peek() == "^"
        self.at += inverted
        ranges: list[tuple[int, int]] = []
        first = True
        while self.peek() != "]" or first:
            first = False
            low = self.member(start)
            if self.peek() == "-" and self.source[self.at + 1 : self.at + 2] not in ("]", ""):
                here = self.at
                self.take()
                high = self.member(start)
                if len(low) > 1 or len(high) > 1 or low[0][0] != low[0][1] or high[0][0] < low[0][0]:
                    raise PatternError("this range of characters runs backwards or has no ends", here)
                low = ((low[0][0], high[0][1]),)
            ranges.extend(low)
        self.take()
        return _Node("set", ranges=_complement(tuple(ranges)) if inverted else tuple(ranges))

    def member(self, start: int) -> _Ranges:
        here = self.at
        character = self.take()
        if not character:
            raise PatternError('"[" is never closed', start)
        return self.escape(here) if character == "\\" else ((ord(character), ord(character)),)


class Work:
    """How much work is left for one query: pattern states entered, weighted by their size."""

    def __init__(self) -> None:
        self.left = math.inf

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise WorkError


class WorkError(Exception):
    """The patterns would take too long on these texts."""


# One state of the machine: ("set", ranges, next), ("at", sign, next), ("fork", next, other) or ("end",).
_State = tuple[str, _Ranges, str, int, int]


class Pattern:
    """A compiled pattern. `found_in(text)` tells whether it matches anywhere in the text."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_LENGTH:
            raise PatternError(f"the pattern is longer than {MAX_LENGTH} characters", MAX_LENGTH)
        reader = _Reader(source)
        tree = reader.either()
        if reader.at < len(source):
            raise PatternError('")" closes nothing', reader.at)
        self.source = source
        self._states: list[_State] = [("end", (), "", 0, 0)]
        self._start = self._build(tree, 0)
        self.size = len(self._states)
        # A set with many ranges takes as long as several states.
        self._costs = [1 + len(ranges) // 8 for _, ranges, *_ in self._states]

    def _add(self, kind: str, then: int, other: int = 0, *, ranges: _Ranges = (), sign: str = "") -> int:
        if len(self._states) >= MAX_STATES:
            raise PatternError("the pattern is too large once its counts are written out", 0)
        self._states.append((kind, ranges, sign, then, other))
        return len(self._states) - 1

    def _build(self, node: _Node, then: int) -> int:
        """Build the states of `node` in front of state `then`; return the first of them."""
        if node.kind in ("set", "at"):
            return self._add(node.kind, then, ranges=node.ranges, sign=node.sign)
        if node.kind == "seq":
            for part in reversed(node.parts):
                then = self._build(part, then)
            return then
        if node.kind == "or":
            first = self._build(node.parts[-1], then)
            for part in reversed(node.parts[:-1]):
                first = self._add("fork", self._build(part, then), first)
            return first
        part = node.parts[0]
        if node.high is None:
            loop = self._add("fork", 0, then)
            self._states[loop] = ("fork", (), "", self._build(part, loop), then)
            then = loop
        else:
            end = then
            for _ in range(node.high - node.low):
                then = self._add("fork", self._build(part, then), end)
        for _ in range(node.low):
            first = self._build(part, then)
            if first == then:  # an empty group adds no state, however often it is repeated
                break
            then = first
        return then

    def found_in(self, text: str, work: Work | None = None) -> bool:
        """Tell whether the pattern matches anywhere in `text`; raises WorkError if that takes more than `work` has left."""
        active: set[int] = set()
        for position in range(len(text) + 1):
            active.add(self._start)
            reached = self._reach(active, text, position)
            if work:
                work.spend(sum(self._costs[index] for index in reached))
            if 0 in reached:
                return True
            if position == len(text):
                break
            code = ord(text[position])
            active = {
                self._states[index][3]
                for index in reached
                if any(low <= code <= high for low, high in self._states[index][1])
            }
        return False

    def _reach(self, active: set[int], text: str, position: int) -> set[int]:
        """All states that can be reached from `active` without reading a character."""
        reached: set[int] = set()
        waiting = list(active)
        while waiting:
            index = waiting.pop()
            if index in reached:
                continue
            reached.add(index)
            kind, _, sign, then, other = self._states[index]
            if kind == "fork":
                waiting += (then, other)
            elif kind == "at" and _holds(sign, text, position):
                waiting.append(then)
        return reached


def _holds(sign: str, text: str, position: int) -> bool:
    if sign == "^":
        return position == 0
    if sign == "$":
        return position == len(text)
    before = position > 0 and _is_word(text[position - 1])
    after = position < len(text) and _is_word(text[position])
    return (before != after) == (sign == "b")


def _is_word(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in _CLASSES["w"])
