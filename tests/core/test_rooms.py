"""The rooms of the code: each imports from rooms below it only, and nothing imports in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the bottom up. What stands on one line stands side by side: none of it imports from another.
ROOMS = (
    ("difflora.errors", "difflora.sentence", "difflora.progress", "difflora.fonts", "difflora.version"),
    ("difflora.storage",),
    ("difflora.names",),
    ("difflora.lora",),
    ("difflora.rank",),
    ("difflora.saving",),
    ("difflora.training", "difflora.clips", "difflora.steering"),
    ("difflora",),  # its __init__: the public names
    ("difflora.cli",),
    ("difflora.__main__",),
    ("nodes.common",),
    ("nodes.algebra", "nodes.slider", "nodes.sweep", "nodes.training", "nodes.demo"),
    ("nodes",),  # its __init__: the list of nodes
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def sources() -> dict[str, str]:
    """Module name -> source, of everything that ships; a package's __init__ goes by the name of the package."""
    paths = [path for top in ("difflora", "nodes") for path in sorted((ROOT / top).rglob("*.py"))]
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
    return {".".join(parts[path]).removesuffix(".__init__"): path.read_text("utf-8") for path in paths}


def room_of(module: str) -> str:
    """`difflora.rank.rules` is in `difflora.rank`; what stands for itself is a room of its own."""
    if module in LEVELS:
        return module
    package = ".".join(module.split(".")[:2])
    return package if package in LEVELS else ""


def imports(module: str, source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules of ours that a module imports, wherever in it the statement stands."""
    is_package = any(other.startswith(module + ".") for other in modules)
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names if name.name in modules)
        elif isinstance(statement, ast.ImportFrom):
            start = statement.module or ""
            if statement.level:
                parts = module.split(".")
                above = parts[: len(parts) - statement.level + is_package]
                # The repository is a package too, ComfyUI's: `...difflora` from a node starts there.
                start = ".".join([*above, *([start] if start else [])])
            for name in statement.names:
                inner = f"{start}.{name.name}"
                if inner in modules or start in modules:
                    yield inner if inner in modules else start


def breaches(modules: Mapping[str, str]) -> list[str]:
    """What is wrong with the imports of these modules, a line each."""
    found = []
    edges: dict[str, list[str]] = {}
    for module, source in modules.items():
        here = room_of(module)
        if not here:
            found.append(f"{module} is in no room: add it to ROOMS, or move it into one")
            continue
        edges[module] = sorted({other for other in imports(module, source, modules) if other != module})
        for other in edges[module]:
            there = room_of(other)
            if there and there != here and LEVELS[there] >= LEVELS[here]:
                way = "sideways" if LEVELS[there] == LEVELS[here] else "upward"
                found.append(f"{module} imports {other}, {way}: {here} may not import from {there}")
    return found + [f"a circle of imports: {' -> '.join(circle)}" for circle in circles(edges)]


def circles(edges: Mapping[str, list[str]]) -> list[list[str]]:
    """Circles of imports, each from where it is first met; none is left out unless it shares a step with another."""
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(path: list[str]) -> None:
        for other in edges.get(path[-1], ()):
            if other in path:
                found.append([*path[path.index(other) :], other])
            elif other not in done:
                follow([*path, other])
        done.add(path[-1])

    for module in edges:
        if module not in done:
            follow([module])
    return found


def test_imports_go_downward_and_in_no_circle():
    assert not breaches(sources())


def test_all_imports_are_read():
    modules = sources()
    edges = {(module, other) for module, source in modules.items() for other in imports(module, source, modules)}
    assert ("difflora.rank.rerank", "difflora.lora.lora") in edges
    assert ("nodes.slider.native", "difflora.lora.deltas") in edges
    assert ("nodes", "nodes.sweep.sweep") in edges
    assert ("difflora", "difflora.lora.lora") in edges
    assert all(room_of(module) for module in modules)


def test_every_package_says_what_it_is_for():
    silent = [module for module, source in sources().items() if not ast.get_docstring(ast.parse(source))]
    assert not silent


PLAIN = {"difflora": "", "difflora.storage": "", "difflora.lora": "", "difflora.storage.reader": "", "nodes": ""}


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("difflora.storage.writer", "from ..lora import lora", "difflora.storage.writer imports difflora.lora.lora, upward"),
        ("difflora.storage.writer", "def f():\n from ..lora.lora import Lora", "imports difflora.lora.lora, upward"),
        ("difflora.storage.writer", "if TYPE_CHECKING:\n import difflora.lora.lora", "imports difflora.lora.lora, upward"),
        ("difflora.lora.lora", "from .. import load", "difflora.lora.lora imports difflora, upward"),
        ("nodes.slider.native", "from ..sweep.plan import Plan", "nodes.slider.native imports nodes.sweep.plan, sideways"),
        ("difflora.storage.writer", "from ...nodes import x", "difflora.storage.writer imports nodes, upward"),
        ("difflora.helpers", "", "difflora.helpers is in no room"),
    ],
)  # fmt: skip
def test_an_import_that_goes_upward_is_named(module, source, said):
    lines = breaches(
        {**PLAIN, "difflora.lora.lora": "", "nodes.sweep.plan": "", "nodes.slider.other": "", module: source}
    )
    assert len(lines) == 1 and said in lines[0]


def test_a_circle_inside_a_room_is_named():
    modules = {
        **PLAIN,
        "difflora.lora.a": "from . import b",
        "difflora.lora.b": "def f():\n from .c import g",
        "difflora.lora.c": "from .a import h",
        "difflora.lora.d": "from . import a",
    }
    assert breaches(modules) == [
        "a circle of imports: difflora.lora.a -> difflora.lora.b -> difflora.lora.c -> difflora.lora.a"
    ]
