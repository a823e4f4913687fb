"""What lies between a Strength Sweep and the pictures that come of it: found, named by all it depends on, and cloned.

A prompt is ComfyUI's own: id -> {"class_type", "inputs"}; an input is a constant or a link [id, output number].
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from comfy_execution.graph_utils import GraphBuilder, is_link

from ...difflora.errors import UnsupportedError
from ...difflora.version import __version__
from .files import Facts, WatchedFiles, texts_of

SWEEP, GRID = "DiffLoraStrengthSweep", "DiffLoraSweepGrid"

Link = list[Any]
Node = Mapping[str, Any]


@dataclass(frozen=True)
class Between:
    """All nodes that pictures depend on, and which of them depend on the sweep.

    nodes       id -> node, every one behind its inputs; the sweep is among them
    varying     ids, without the sweep's own
    """

    nodes: dict[str, Node]
    sweep: str
    varying: frozenset[str]
    images: Link
    files: WatchedFiles

    @classmethod
    def find(cls, images: Link, node_of: Callable[[str], Node], files: WatchedFiles) -> Between:
        """Raises UnsupportedError where the pictures depend on no sweep, on several, or on another grid of this one."""
        nodes = _in_order(images[0], node_of)
        sweeps = [name for name, node in nodes.items() if node["class_type"] == SWEEP]
        if len(sweeps) != 1:
            raise UnsupportedError(
                "images: these pictures do not depend on a Strength Sweep. Wire one into the strength of a slider that "
                "they come from."
                if not sweeps
                else f"images: {len(sweeps)} Strength Sweeps lead to these pictures, where one is needed. Give the others' "
                "sliders a number."
            )
        varying: set[str] = set()
        for name, node in nodes.items():
            if any(source in varying or source == sweeps[0] for _, source in _links(node)):
                varying.add(name)
        if any(nodes[name]["class_type"] == GRID for name in varying):
            raise UnsupportedError(
                "images: these pictures are those of another Sweep Grid. Wire it to what that one takes."
            )
        return cls(nodes, sweeps[0], frozenset(varying), images, files)

    def keys(self, strengths: Iterable[float]) -> list[str]:
        """A name for the pictures at each strength: the same exactly if all that they are made of is the same."""
        fixed: dict[str, str] = {}
        once = uuid.uuid4().hex if self.restless else ""
        for name in self.nodes:
            if name not in self.varying and name != self.sweep:
                fixed[name] = self._digest(name, fixed)
        keys = []
        for strength in strengths:
            digests = fixed | {self.sweep: f"strength {strength!r}"}
            for name in self.nodes:
                if name in self.varying:
                    digests[name] = self._digest(name, digests)
            keys.append(_hash([__version__, digests[self.images[0]], self.images[1], once])[:32])
        return keys

    @property
    def restless(self) -> list[str]:
        """Kinds of nodes that say of themselves that they give something else each time."""
        return sorted({node["class_type"] for node in self.nodes.values() if _never_same(node.get("is_changed"))})

    def clone_fixed(self, graph: GraphBuilder) -> dict[str, str]:
        """Clone what reads a file that has changed, and what depends on it. Returns old id -> new id."""
        clones: dict[str, str] = {}
        for name, node in self.nodes.items():
            if name in self.varying or name == self.sweep:
                continue
            if self._changes(name) or any(source in clones for _, source in _links(node)):
                clones[name] = self._clone(graph, "file", name, clones)
        return clones

    def clone(self, graph: GraphBuilder, prefix: str, fixed: Mapping[str, str], strength: Link) -> Link:
        """Clone what depends on the sweep, with a link in place of the sweep's. Returns the link to the pictures."""
        clones = {**fixed, self.sweep: strength[0]}
        for name in self.nodes:
            if name in self.varying:
                clones[name] = self._clone(graph, prefix, name, clones)
        return [clones[self.images[0]], self.images[1]]

    def _clone(self, graph: GraphBuilder, prefix: str, name: str, clones: Mapping[str, str]) -> str:
        node = self.nodes[name]
        clone = graph.node(node["class_type"], f"{prefix}.{self._age[name]}{name}")
        clone.set_override_display_id(name)
        for key, value in node["inputs"].items():
            # Not set_input, for which None means to delete.
            clone.inputs[key] = [clones.get(value[0], value[0]), value[1]] if is_link(value) else value
        if changes := self._changes(name):
            # No input that the node has: ComfyUI does not hand it on, but counts it in when it looks for cached results.
            clone.inputs["difflora_changed_files"] = str(changes)
        return str(clone.id)

    @cached_property
    def _facts(self) -> dict[str, list[tuple[str, Facts, bool]]]:
        """The files of every node, looked up once: there are many folders to look in."""
        return {
            name: [facts for text in texts_of(node["inputs"]) for facts in self.files.facts(text)]
            for name, node in self.nodes.items()
        }

    @cached_property
    def _age(self) -> dict[str, str]:
        """A part of a clone's id that is another one for every state of the changed files that it depends on.

        ComfyUI keeps the object of a node by its id, and its LoRA loader keeps the last file's weights in the object.
        """
        changes: dict[str, list[Any]] = {}
        for name, node in self.nodes.items():
            own = [changes[source] for _, source in _links(node)] + self._changes(name)
            changes[name] = [_hash(own)[:12]] if any(own) else []
        return {name: f"{change[0]}." if change else "" for name, change in changes.items()}

    def _changes(self, name: str) -> list[Facts]:
        return [facts for _, facts, changed in self._facts[name] if changed]

    def _digest(self, name: str, digests: Mapping[str, str]) -> str:
        node = self.nodes[name]
        inputs = {
            key: [digests[value[0]], value[1]] if is_link(value) else {"value": value}
            for key, value in node["inputs"].items()
        }
        files = [(file, facts) for file, facts, _ in self._facts[name]]
        return _hash([node["class_type"], inputs, files, node.get("is_changed")])


def _in_order(last: str, node_of: Callable[[str], Node]) -> dict[str, Node]:
    """Everything upstream of a node and the node itself, every one behind its inputs. Not recursive: graphs are deep."""
    ordered: dict[str, Node] = {}
    waiting = [(last, False)]
    while waiting:
        name, inputs_done = waiting.pop()
        if name in ordered:
            continue
        node = node_of(name)
        if inputs_done:
            ordered[name] = node
        else:
            waiting.append((name, True))
            waiting.extend((source, False) for _, source in _links(node) if source not in ordered)
    return ordered


def _links(node: Node) -> Iterator[tuple[str, str]]:
    return ((key, value[0]) for key, value in node["inputs"].items() if is_link(value))


def _never_same(is_changed: Any) -> bool:
    values = is_changed if isinstance(is_changed, list) else [is_changed]
    return any(isinstance(value, float) and math.isnan(value) for value in values)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
