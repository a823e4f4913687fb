"""The nodes between a Strength Sweep and its pictures: finds them, names clips by all they depend on, and clones them.

A prompt is ComfyUI's own: id -> {"class_type", "inputs"}; an input is a constant or a link [id, output number].
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import execution
from comfy_execution.graph_utils import GraphBuilder, is_link

from ...difflora.errors import DiffLoraError, UnsupportedError
from ...difflora.progress import Progress
from ...difflora.storage.hashes import ContentHashes
from .files import Facts, WatchedFiles, texts_of
from .runtime import pack_facts, runtime_facts

SWEEP, GRID = "DiffLoraStrengthSweep", "DiffLoraSweepGrid"
# They send work to other machines and merge the results, or collect pictures over several prompts: their output at one
# strength may contain pictures of another.
COLLECTORS = re.compile(
    r"Distributed(?!Seed|Value|ModelName|EmptyImage)|RemoteQueue|FetchRemote|^ImageBatchDivider$|^VHS_BatchManager$"
)

Link = list[Any]
Clones = dict[tuple[str, str], str]  # (id of the node, its key) -> id of the clone
Node = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The pictures of one strength: the key of their clip, and a key for each node at this strength."""

    key: str
    strength: float
    digests: Mapping[str, str]


@dataclass(frozen=True)
class NodeFiles:
    """The files that a node reads.

    told    as the node itself reports them, if it is a node of this pack that does
    named   those that its texts may name
    """

    told: list[Path] | None
    named: Mapping[str, list[Path]]

    @property
    def paths(self) -> list[Path]:
        return list(dict.fromkeys([*(self.told or ()), *(path for paths in self.named.values() for path in paths)]))


@dataclass(frozen=True)
class Between:
    """All nodes that pictures depend on, and which of them depend on the sweep.

    nodes       id -> node, each after its inputs; includes the sweep
    varying     ids, without the sweep's own
    """

    nodes: dict[str, Node]
    sweep: str
    varying: frozenset[str]
    images: Link
    files: WatchedFiles

    @classmethod
    def find(cls, images: Link, node_of: Callable[[str], Node], files: WatchedFiles) -> Between:
        """raises UnsupportedError if the pictures depend on no sweep, on several, or on another grid of this one, or come
        through a node that merges pictures of several machines or prompts
        """
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
        for name in varying:
            if COLLECTORS.search(kind := nodes[name]["class_type"]):
                raise UnsupportedError(
                    f"images: {kind} lies between the sweep and the grid. It hands work to other machines or collects "
                    "pictures of several prompts, so a strength would get the pictures of another one. Take it out."
                )
        files.wait()
        return cls(nodes, sweeps[0], frozenset(varying), images, files)

    @property
    def kinds(self) -> list[str]:
        """The kinds of nodes that depend on the sweep, in the order in which they run."""
        return list(dict.fromkeys(self.nodes[name]["class_type"] for name in self.nodes if name in self.varying))

    def wanted(
        self,
        strengths: Iterable[float],
        hashes: ContentHashes,
        progress: Progress,
        version: int = 0,
        any_machine: bool = False,
    ) -> list[Wanted]:
        """The pictures at each strength, with a name that is equal if and only if everything they depend on is equal.

        Names are the same on every machine: they contain files by name, size and content, and versions and flags by value.

        version         a new number gives new names, so that all clips are rendered again
        any_machine     leave out the machine: versions, flags, the GPU, and what nodes say of files whose contents count
        progress        called with (done, total) bytes of the files that have to be read; may raise to cancel
        """
        contents = self._contents(hashes, progress)
        fixed: dict[str, str] = {}
        once = uuid.uuid4().hex if self.restless else ""
        for name in self.nodes:
            if name not in self.varying and name != self.sweep:
                fixed[name] = self._digest(name, fixed, contents, any_machine)
        machine = [] if any_machine else [runtime_facts(), pack_facts(n["class_type"] for n in self.nodes.values())]
        around = [machine, version, once]
        wanted = []
        for strength in strengths:
            digests = fixed | {self.sweep: f"strength {strength!r}"}
            for name in self.nodes:
                if name in self.varying:
                    digests[name] = self._digest(name, digests, contents, any_machine)
            key = _hash([around, digests[self.images[0]], self.images[1]])[:32]
            wanted.append(Wanted(key, strength, digests))
        return wanted

    @property
    def restless(self) -> list[str]:
        """Kinds of nodes that declare that their output changes every time."""
        return sorted({node["class_type"] for node in self.nodes.values() if _never_same(node.get("is_changed"))})

    def clone_fixed(self, graph: GraphBuilder, clones: Clones, digests: Mapping[str, str]) -> dict[str, str]:
        """Clone the nodes that read a changed file, and those that depend on them. Returns old id -> new id."""
        made: dict[str, str] = {}
        for name, node in self.nodes.items():
            if name in self.varying or name == self.sweep:
                continue
            if self._changes(name) or any(source in made for _, source in _links(node)):
                made[name] = self._clone(graph, "file", name, made, clones, digests[name])
        return made

    def clone(
        self, graph: GraphBuilder, prefix: str, fixed: Mapping[str, str], gate: str, clones: Clones, wanted: Wanted
    ) -> Link:
        """Clone what depends on the sweep, with the gate in its place. Returns the link to the pictures.

        clones      clones that this prompt already has, from this grid or another; they are reused
        """
        made = {**fixed, self.sweep: gate}
        for name in self.nodes:
            if name in self.varying:
                made[name] = self._clone(graph, prefix, name, made, clones, wanted.digests[name])
        return [made[self.images[0]], self.images[1]]

    def _clone(
        self, graph: GraphBuilder, prefix: str, name: str, made: Mapping[str, str], clones: Clones, digest: str
    ) -> str:
        if there := clones.get((name, digest)):
            return there
        node = self.nodes[name]
        clone = graph.node(node["class_type"], f"{prefix}.{self._age[name]}{name}")
        clone.set_override_display_id(name)
        for key, value in node["inputs"].items():
            # Not set_input, for which None means to delete.
            clone.inputs[key] = [made.get(value[0], value[0]), value[1]] if is_link(value) else value
        if changes := self._changes(name):
            # Not an input of the node: ComfyUI does not pass it on, but includes it in the signature of cached results.
            clone.inputs["difflora_changed_files"] = str(changes)
        clones[name, digest] = str(clone.id)
        return str(clone.id)

    @cached_property
    def _files(self) -> dict[str, NodeFiles]:
        """The files of every node, looked up once."""
        found = {name: NodeFiles(_files_read(node), self.files.paths_of(texts_of(node["inputs"])))
                 for name, node in self.nodes.items()}  # fmt: skip
        for files in found.values():
            for path in files.paths:
                self.files.look(path)
        return found

    def _contents(self, hashes: ContentHashes, progress: Progress) -> dict[Path, list[Any]]:
        """Name, size and SHA-256 of every file."""
        paths = list(dict.fromkeys(path for files in self._files.values() for path in files.paths))
        sizes = {path: self.files.look(path)[0] for path in paths}
        total, contents = sum(sizes.values()), {}
        for number, path in enumerate(paths):
            before = sum(sizes[earlier] for earlier in paths[:number])

            def read(done: int, _: int, before: int = before) -> None:
                progress(before + done, total)

            contents[path] = [path.name, sizes[path], hashes.of(path, read)]
        return contents

    @cached_property
    def _age(self) -> dict[str, str]:
        """A part of a clone's id that differs for every state of the changed files it depends on.

        ComfyUI keeps a node's object by id, and its LoRA loader keeps the last file's weights in the object.
        """
        changes: dict[str, list[Any]] = {}
        for name, node in self.nodes.items():
            own = [changes[source] for _, source in _links(node)] + self._changes(name)
            changes[name] = [_hash(own)[:12]] if any(own) else []
        return {name: f"{change[0]}." if change else "" for name, change in changes.items()}

    def _changes(self, name: str) -> list[Facts]:
        return [self.files.look(path) for path in self._files[name].paths if self.files.has_changed(path)]

    def _digest(
        self, name: str, digests: Mapping[str, str], contents: Mapping[Path, list[Any]], any_machine: bool
    ) -> str:
        node = self.nodes[name]
        files = self._files[name]
        inputs = {
            key: [digests[value[0]], value[1]]
            if is_link(value)
            else {"value": _with_contents(value, files.named, contents)}
            for key, value in node["inputs"].items()
        }
        if files.told is not None:
            # The fingerprint contains these files' times, which differ between machines.
            return _hash([node["class_type"], inputs, [contents[path] for path in files.told]])
        if any_machine and files.named:
            return _hash([node["class_type"], inputs])
        return _hash([node["class_type"], inputs, _without_times(node.get("is_changed"), files.paths)])


def _files_read(node: Node) -> list[Path] | None:
    """The files that a node of this pack reports to read; None for other nodes, whose texts may name files."""
    reads = getattr(execution.nodes.NODE_CLASS_MAPPINGS.get(node["class_type"]), "files_read", None)
    constants = {key: value for key, value in node["inputs"].items() if not is_link(value)}
    if reads is None or any(
        name not in constants for name in inspect.signature(reads).parameters if name in node["inputs"]
    ):
        return None  # A name comes through a link.
    try:
        return list(reads(**constants))
    except (DiffLoraError, TypeError):
        return None  # The node reports what is wrong with its inputs when it runs.


def _without_times(value: Any, paths: Iterable[Path]) -> Any:
    """A node's fingerprint without the times of its files (all that ComfyUI's Load Video gives): contents count instead."""
    times: set[float] = set()
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            times |= {status.st_mtime, status.st_mtime_ns, int(status.st_mtime)}
    texts = {str(time) for time in times}

    def plain(part: Any) -> Any:
        if isinstance(part, (list, tuple)):
            return [plain(each) for each in part]
        if isinstance(part, (set, frozenset)):  # whose order differs between processes
            return sorted(map(repr, part))
        is_time = type(part) in (int, float) and part in times or isinstance(part, str) and part in texts
        return "time" if is_time else part

    return plain(value)


def _with_contents(value: Any, named: Mapping[str, list[Path]], contents: Mapping[Path, list[Any]]) -> Any:
    """A constant, with a file's content in place of its name: another folder does not change the picture."""
    if isinstance(value, str) and value in named:
        # Each once: another machine may have a second copy in another folder.
        return {"files": sorted({tuple(contents[path]) for path in named[value]})}
    if isinstance(value, Mapping):
        return {key: _with_contents(part, named, contents) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_contents(part, named, contents) for part in value]
    return value


def _in_order(last: str, node_of: Callable[[str], Node]) -> dict[str, Node]:
    """Everything upstream of a node, and the node itself, each after its inputs. Not recursive: graphs are deep."""
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
