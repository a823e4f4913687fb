"""The files that prompts name, and whether they are still what they were when a prompt first named them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link

from ...difflora.errors import DiffLoraError
from ..common.inputs import found
from ..common.paths import inside

MAX_NAME = 400  # characters; longer constants are prompts, not names of files

Node = Mapping[str, Any]
Facts = tuple[int, int]  # size, and time of the last change in ns


class WatchedFiles:
    """The files that prompts name, as they were when a prompt first named them.

    ComfyUI's own loaders do not notice that a file was replaced under the same name: their results stay in the cache. So
    what names a file that has changed since is cloned into the sweep, with the change as a part of its signature.
    """

    def __init__(self) -> None:
        self._first: dict[Path, Facts] = {}
        # For good: a file that is put back may have been read as the other one meanwhile.
        self._changed: set[Path] = set()

    def look(self, prompt: Mapping[str, Any]) -> None:
        """Remember the files of a prompt: the first run may have no sweep in it, and leave loaders in the cache."""
        for node in prompt.values():
            for text in texts_of(node.get("inputs")):
                self.facts(text)

    def facts(self, name: str) -> list[tuple[str, Facts, bool]]:
        """Every file that a constant of a prompt may mean, and whether it is no longer what it was."""
        return [(path.name, self._look(path), path in self._changed) for path in _files_of(name)]

    @property
    def state(self) -> str:
        """Another text whenever a watched file is not as it was; empty as long as all are."""
        watched = list(self._first.items())  # while a prompt that arrives may add to it
        return str(sorted((str(path), facts) for path, first in watched if (facts := _facts(path)) != first))

    def _look(self, path: Path) -> Facts:
        facts = _facts(path)
        if self._first.setdefault(path, facts) != facts:
            self._changed.add(path)
        return facts


def _facts(path: Path) -> Facts:
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)


def _files_of(name: str) -> Iterator[Path]:
    if len(name) > MAX_NAME or "\n" in name or not PurePath(name.split(" [")[0]).suffix:
        return
    for kind in folder_paths.folder_names_and_paths:
        if path := found(kind, name):
            yield path
    plain, folder = folder_paths.annotated_filepath(name)
    try:
        path = inside(folder or folder_paths.get_input_directory(), plain)
    except DiffLoraError:
        return  # No name of a file in there, so there is nothing to watch.
    if path.is_file():
        yield path


def texts_of(value: Any) -> Iterator[str]:
    """Every text in the inputs of a node, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts_of(part)
    elif isinstance(value, list) and not is_link(value):
        for part in value:
            yield from texts_of(part)
