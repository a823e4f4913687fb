"""Every module name of the models in tests/data/selection.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

from difflora.names import families
from difflora.names.families import Family
from difflora.names.keys import ending, written

DATA = json.loads((Path(__file__).parent / "data" / "selection.json").read_text("utf-8"))
# The lists of whole models other than Wan: by name, as their sources have them.
WHOLE = [model for model, rule in DATA["models"].items() if "templates" in rule]


def names_of(model: str) -> list[str]:
    rule = DATA["models"][model]
    if "names" in rule:
        return rule["names"]
    if "templates" in rule:
        return [name for template in rule["templates"] for name in spelled_out(template)]
    stacks = rule["stacks"].items()
    return [f"{s}.{n}.{m}" for s, count in stacks for n in range(count) for m in rule["modules"]] + rule["outside"]


def spelled_out(template: str) -> list[str]:
    """As a shell does: ``a{b,c{0..1}}`` is ab, ac0 and ac1."""
    outer: list[tuple[list[str], list[str]]] = []
    words: list[str] = []
    ends = [""]
    for piece in re.split(r"([{},])", template):
        if piece == "{":
            outer.append((words, ends))
            words, ends = [], [""]
        elif piece == ",":
            words, ends = words + ends, [""]
        else:
            low, _, high = piece.partition("..")
            inside = [str(n) for n in range(int(low), int(high) + 1)] if high else [piece]
            if piece == "}":
                inside = words + ends
                words, ends = outer.pop()
            ends = [start + word for start in ends for word in inside]
    return ends


def write_key(module: str, part: str, dialect: str, family: Family | None = None) -> str:
    """The key of a module's part in an output dialect, for a module that is one module there as well.

    For others, see `written`.
    """
    if family is None and (known := families.own(module)) and len(known[0].families) == 1:
        family = families.named(next(iter(known[0].families)))
    return f"{written(module, dialect, family)[0].name}.{ending(module, part, dialect)}"
