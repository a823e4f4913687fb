"""Writes what the page has to know of the families of models: ``python -m scripts.family_tables``.

The page's copy of `difflora.names.families`, in js/lib/family_tables.js. A test fails when it is not fresh.
"""

import json
from pathlib import Path

from difflora.names.families import FAMILIES, own

TARGET = Path(__file__).parents[1] / "js" / "lib" / "family_tables.js"
HEAD = """// @ts-check
/** Written by `python -m scripts.family_tables` from difflora/names/families. Do not edit. */

/**
 * Modules of every family, in the model's order: name with "#" for the numbers of blocks, and its roles. "inner" marks a
 * stack inside something whose name is also that of a stack of its own.
 * @type {[string, string][]}
 */
"""


def text() -> str:
    rows: dict[str, str] = {}
    for family in FAMILIES:
        for template, _ in family.own:
            found = own(template.replace("#", "0"))
            assert found
            rows.setdefault(template, " ".join([*sorted(found[0].roles), *["inner"] * found[0].is_inner]))
    lines = [f"  {json.dumps(list(row))}," for row in rows.items()]
    shown = [
        "\n".join(
            [
                "  {",
                f"    label: {json.dumps(label)}, size: {json.dumps(size)}, stack: {json.dumps(stack)}, blocks: {blocks},",
                f"    inside: {json.dumps(list(inside))},",
                "  },",
            ]
        )
        for family in FAMILIES
        for label, size, stack, blocks, inside in family.shown
    ]
    return (
        f"{HEAD}export const MODULES = [\n" + "\n".join(lines) + "\n];\n\n"
        "/** What a grid shows that no LoRA has reached yet. */\nexport const SHOWN = [\n" + "\n".join(shown) + "\n];\n"
    )


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8", newline="\n")
