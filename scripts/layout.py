"""Where the nodes of a workflow stand: groups in rows, each node with the room it takes when it has run.

Everything is in ComfyUI's pixels at zoom 1. A node's position is that of its body; its title is above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scripts.example_workflows import Group, Workflow

WIDTH = 2900  # of a row, as a rule
TITLE = 30  # of a node, above its body
HEAD = 50  # of a group: its own title
EDGE = 20  # from a group's frame to its nodes
GAP = 40  # between nodes, one below the other
ASIDE = 60  # between nodes side by side, for the wires
BETWEEN = 60  # between groups


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def moved(self, x: float, y: float) -> Box:
        return Box(self.x + x, self.y + y, self.width, self.height)


@dataclass(frozen=True)
class Layout:
    """Boxes of nodes by name (their bodies), of groups in the order of the workflow, and of the note's body."""

    nodes: dict[str, Box]
    groups: list[Box]
    note: Box


def lay_out(workflow: Workflow, sizes: Mapping[str, tuple[float, float]], note: tuple[float, float]) -> Layout:
    """Put stacks of groups side by side as long as there is room, then into the next row.

    sizes       name -> width, height of the node's body, in the renderer and at the time where it is largest
    note        width, height of the note's body; it stands first in the first row
    """
    nodes: dict[str, Box] = {}
    frames: list[Box] = []
    x, y, bottom = note[0] + BETWEEN, 0.0, note[1] + TITLE
    for stack in workflow.stacks:
        placed = list(_stacked(stack, sizes))
        width = max(frame.right for frame, _ in placed)
        if x and x + width > WIDTH:
            x, y = 0.0, bottom + BETWEEN
        for frame, inside in placed:
            frames.append(frame.moved(x, y))
            nodes |= {name: box.moved(x, y) for name, box in inside.items()}
            bottom = max(bottom, frames[-1].bottom)
        x += width + BETWEEN
    return Layout(nodes, frames, Box(0, TITLE, *note))


def _stacked(stack: list[Group], sizes: Mapping[str, tuple[float, float]]) -> Iterator[tuple[Box, dict[str, Box]]]:
    """The frames of groups one below the other, and the nodes in each."""
    y = 0.0
    for group in stack:
        inside: dict[str, Box] = {}
        x = float(EDGE)
        for column in group.columns:
            top = y + HEAD + TITLE
            for node in column:
                inside[node.name] = Box(x, top, *sizes[node.name])
                top = inside[node.name].bottom + GAP + TITLE
            x = max(inside[node.name].right for node in column) + ASIDE
        frame = Box(0, y, x - ASIDE + EDGE, max(box.bottom for box in inside.values()) + EDGE - y)
        yield frame, inside
        y = frame.bottom + BETWEEN
