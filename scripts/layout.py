"""Where the nodes of a workflow stand: groups packed onto one screen, each node with the room it takes when it has run.

Everything is in ComfyUI's pixels at zoom 1. A node's position is that of its body; its title is above it.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise, product

from scripts.example_workflows import Group, Node, Workflow

WIDTH, HEIGHT = 3060, 1580  # of the whole: at zoom 0.6, that is a page of 1920 × 1080 without ComfyUI's bars
TITLE = 30  # of a node, above its body
HEAD = 42  # of a group: its own title
LETTER = 13  # of a group's title, about
# In pixels of height, what it costs that a group is read before one that comes earlier: as much as there is room for.
DISORDER = (150, 50)
SHUFFLED = 4  # orders of placing the groups that are tried where nothing else fits the page
MISCOUNTED = 1500  # and that a group begins above the one with the number before, and not right of it
# And for each two groups that are read in the wrong order, whether one goes row by row or column by column.
MISREAD = 400
ROW = 60  # what begins this much lower is in the same row, and so with columns
EDGE = 12  # from a group's frame to its nodes
GAP = 14  # between nodes, one below the other
ASIDE = 28  # between nodes side by side, for the wires
BETWEEN = 20  # between groups


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

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the whole, the note's title included."""
        boxes = [*self.groups, self.note]
        return max(box.right for box in boxes), max(box.bottom for box in boxes)


@dataclass(frozen=True)
class _Shape:
    """A way to arrange a group's nodes: the frame's size, and the nodes' places in it."""

    width: float
    height: float
    nodes: dict[str, Box]


@dataclass(frozen=True)
class _Packing:
    """Groups that have their places: index -> shape and frame. frames[0] is the note with its title."""

    frames: tuple[Box, ...]
    placed: dict[int, tuple[_Shape, Box]] = field(default_factory=dict)
    cost: float = 0.0

    @property
    def width(self) -> float:
        return max(frame.right for frame in self.frames)

    @property
    def height(self) -> float:
        return max(frame.bottom for frame in self.frames)


def lay_out(
    workflow: Workflow, sizes: Mapping[str, tuple[float, float]], note: tuple[float, float], effort: int = 80
) -> Layout:
    """Pack the groups, each in one of several shapes, as low as they go in WIDTH: a beam search.

    sizes       name -> width, height of the node's body, in the renderer and at the time where it is largest
    note        width, height of the note's body; it stands at the top left, the first group beside it
    effort      how many packings are kept at each step
    """
    groups = [group for stack in workflow.stacks for group in stack]
    shapes = [list(_shapes(group, sizes)) for group in groups]
    counted = _counted(groups)
    widest = max(WIDTH, *(min(shape.width for shape in ways) + note[0] + BETWEEN for ways in shapes))
    begun = _Packing((Box(0, 0, note[0], note[1] + TITLE),))
    others = list(range(1, len(groups)))
    orders = [others, sorted(others, key=lambda at: -min(shape.width * shape.height for shape in shapes[at]))]
    chance = random.Random(0)
    orders += [chance.sample(others, len(others)) for _ in range(SHUFFLED)]
    best = None
    for disorder, order in product(DISORDER, orders):
        for packing in _search(begun, [0, *order], shapes, widest, effort, disorder, counted, workflow):
            if best is None or packing.cost < best.cost:
                best = packing
        if order is not others and best and best.height <= HEIGHT and best.width <= WIDTH:
            break
    assert best is not None
    nodes: dict[str, Box] = {}
    for shape, frame in best.placed.values():
        nodes |= {name: box.moved(frame.x, frame.y) for name, box in shape.nodes.items()}
    frames = [best.placed[at][1] for at in range(len(groups))]
    return Layout(nodes, frames, Box(0, TITLE, *note))


def _search(
    begun: _Packing,
    order: list[int],
    shapes: list[list[_Shape]],
    widest: float,
    effort: int,
    disorder: float,
    counted: list[int],
    workflow: Workflow,
) -> list[_Packing]:
    beam = [begun]
    for at in order:
        grown: dict[tuple[object, ...], _Packing] = {}
        for packing in beam:
            for shape in shapes[at]:
                for x, y in _corners(packing, shape, widest, beside_note=not packing.placed):
                    frame = Box(x, y, shape.width, shape.height)
                    made = _Packing((*packing.frames, frame), packing.placed | {at: (shape, frame)})
                    made = replace(made, cost=_cost(made, disorder, counted))
                    grown[frame.x, frame.y, frame.width, round(made.cost)] = made
        # The wires take the longest to add up: only where they can still count.
        best = heapq.nsmallest(2 * effort, grown.values(), key=lambda each: each.cost)
        wired = [replace(each, cost=each.cost + 0.02 * _wires(each, workflow)) for each in best]
        beam = heapq.nsmallest(effort, wired, key=lambda each: each.cost)
    return beam


def _corners(packing: _Packing, shape: _Shape, widest: float, beside_note: bool) -> Iterator[tuple[float, float]]:
    """Places where a frame of this shape can stand: right of something, or at the left edge, and as high as it goes there."""
    frames = packing.frames
    if beside_note:
        if frames[0].right + BETWEEN + shape.width <= widest:
            yield frames[0].right + BETWEEN, 0.0
        return
    across = sorted({0.0, *(frame.right + BETWEEN for frame in frames)})
    down = sorted({0.0, *(frame.bottom + BETWEEN for frame in frames)})
    for x in across:
        if x + shape.width > widest:
            continue
        beside = [f for f in frames if f.x < x + shape.width + BETWEEN and x < f.right + BETWEEN]
        for y in down:
            if not any(f.y < y + shape.height + BETWEEN and y < f.bottom + BETWEEN for f in beside):
                yield x, y


def _counted(groups: list[Group]) -> list[int]:
    """Groups whose titles have numbers, in their order."""
    numbers = [group.title.partition(".")[0] for group in groups]
    return sorted((at for at, number in enumerate(numbers) if number.isdigit()), key=lambda at: int(numbers[at]))


def misread(corners: Iterable[tuple[float, float]]) -> int:
    """How many pairs of groups are read in the wrong order: row by row or column by column, whichever suits them better.

    corners     left and top, in the order of the groups' numbers. The first stands beside the note, and is found anyway.
    """
    pairs = list(combinations(list(corners)[1:], 2))
    return min(
        sum(
            other[along] < one[along] - ROW or (other[along] <= one[along] + ROW and other[across] < one[across])
            for one, other in pairs
        )
        for along, across in ((1, 0), (0, 1))
    )


def _cost(packing: _Packing, disorder: float, counted: list[int]) -> float:
    """In pixels: the height, what does not fit on the screen, groups before those that come earlier."""
    filled = sum((frame.width + BETWEEN) * (frame.height + BETWEEN) for frame in packing.frames)
    over = max(0.0, packing.height - HEIGHT) * 10 + max(0.0, packing.width - WIDTH) * 10
    waste = max(0.0, packing.height * packing.width - filled) / WIDTH
    placed = {at: frame for at, (_, frame) in packing.placed.items()}
    miscounted = sum(
        placed[other].y < placed[one].y and placed[other].x < placed[one].right
        for one, other in pairwise(counted)
        if one in placed and other in placed
    )
    read_wrong = misread((placed[at].x, placed[at].y) for at in counted if at in placed)
    size = max(packing.height, packing.width * HEIGHT / WIDTH)
    return (
        size + over + 0.3 * waste + disorder * _out_of_order(packing) + MISCOUNTED * miscounted + MISREAD * read_wrong
    )


def _out_of_order(packing: _Packing) -> int:
    """How many pairs of groups are read in the wrong order: the later one wholly above, or left of the earlier one."""
    frames = [packing.placed[at][1] for at in sorted(packing.placed)]
    return sum(
        later.bottom <= earlier.y or (later.right <= earlier.x and later.y < earlier.bottom)
        for at, earlier in enumerate(frames)
        for later in frames[at + 1 :]
    )


def _wires(packing: _Packing, workflow: Workflow) -> float:
    """The wires' lengths; one that runs back to the left counts twice."""
    at = {
        name: (frame.x + box.x, frame.y + box.y, frame.x + box.right)
        for shape, frame in packing.placed.values()
        for name, box in shape.nodes.items()
    }
    total = 0.0
    for node in workflow.nodes():
        for source in node.inputs.values():
            begin, end = at.get(source.partition(":")[0]), at.get(node.name)
            if begin and end:
                across = end[0] - begin[2]
                total += max(across, -2 * across) + abs(end[1] - begin[1])
    return total


def _shapes(group: Group, sizes: Mapping[str, tuple[float, float]]) -> Iterator[_Shape]:
    """The group's own columns; its nodes in the same order in fewer and in more columns; and in columns of about one height."""
    flat = [node for column in group.columns for node in column]
    counts = range(1, len(flat) + 1)
    ways = [group.columns]
    ways += [way for count in counts for way in (_columns(flat, count, sizes), _balanced(flat, count, sizes))]
    shapes = [_shape(columns, sizes, LETTER * len(group.title)) for columns in ways]
    lowest = math.inf
    for shape in sorted(shapes, key=lambda shape: (shape.width, shape.height)):
        if shape.height < lowest:  # than all that are as narrow
            lowest = shape.height
            yield shape


def _columns(nodes: list[Node], count: int, sizes: Mapping[str, tuple[float, float]]) -> list[list[Node]]:
    """Nodes in this many columns, in their order, the highest column as low as can be."""
    heights = [sizes[node.name][1] + GAP + TITLE for node in nodes]
    # lowest[k][n]: the height of the first n nodes in k columns, and where the last column begins.
    lowest: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(math.inf, 0)] * len(nodes)]
    for _ in range(count):
        before = lowest[-1]
        lowest.append(
            [(math.inf, 0)]
            + [
                min((max(before[start][0], sum(heights[start:end])), start) for start in range(end))
                for end in range(1, len(nodes) + 1)
            ]
        )
    cuts = [len(nodes)]
    for step in reversed(range(1, count + 1)):
        cuts.append(lowest[step][cuts[-1]][1])
    return [nodes[start:end] for start, end in pairwise(reversed(cuts))]


def _balanced(nodes: list[Node], count: int, sizes: Mapping[str, tuple[float, float]]) -> list[list[Node]]:
    """Nodes in this many columns: the highest first, each where there is most room; then in their order."""
    columns: list[list[int]] = [[] for _ in range(count)]
    heights = [0.0] * count
    for at in sorted(range(len(nodes)), key=lambda at: -sizes[nodes[at].name][1]):
        lowest = heights.index(min(heights))
        columns[lowest].append(at)
        heights[lowest] += sizes[nodes[at].name][1] + GAP + TITLE
    return [[nodes[at] for at in sorted(column)] for column in sorted(columns, key=min)]


def _shape(columns: list[list[Node]], sizes: Mapping[str, tuple[float, float]], title: float) -> _Shape:
    inside: dict[str, Box] = {}
    x = float(EDGE)
    for column in columns:
        top = float(HEAD + TITLE)
        for node in column:
            inside[node.name] = Box(x, top, *sizes[node.name])
            top = inside[node.name].bottom + GAP + TITLE
        x = max(inside[node.name].right for node in column) + ASIDE
    return _Shape(max(x - ASIDE + EDGE, title), max(box.bottom for box in inside.values()) + EDGE, inside)
