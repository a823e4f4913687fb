"""The files that prompts name, and whether they have changed since a prompt first named them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link

from ...difflora.errors import DiffLoraError
from ..common.fingerprints import fingerprint
from ..common.inputs import found
from ..common.paths import inside

MAX_NAME = 400  # characters; longer constants are prompts, not file names
MOST_NAMES = 256  # per prompt; each is looked up in dozens of folders
_MODEL_SUFFIXES = frozenset(
    {".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".onnx", ".engine"}
)

Node = Mapping[str, Any]
Facts = tuple[int, int]  # size and modification time in ns


class WatchedFiles:
    """The state of each file when a prompt first named it.

    ComfyUI's own loaders do not notice that a file was replaced under the same name: their results stay cached. So a node
    that names a changed file is cloned into the sweep, with the change in its signature.
    """

    def __init__(self) -> None:
        self._first: dict[Path, Facts] = {}
        # Permanently: even if the old file is put back, a loader may have read the other one in between.
        self._changed: set[Path] = set()
        self._waiting: queue.Queue[list[str]] = queue.Queue()
        self._watcher: threading.Thread | None = None
        self._starting = threading.Lock()

    def look_soon(self, prompt: object) -> None:
        """Record the models that a prompt names, in a thread: disks may be slow, and the server must not wait for them.

        The first run may have no sweep and still leave loaders in the cache.
        """
        with self._starting:
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="difflora-files", daemon=True)
                self._watcher.start()
        nodes = prompt.values() if isinstance(prompt, Mapping) else ()
        texts = (text for node in nodes if isinstance(node, Mapping) for text in texts_of(node.get("inputs")))
        if names := _names(texts, _MODEL_SUFFIXES):
            self._waiting.put(names)

    def wait(self) -> None:
        """Wait until every prompt handed over so far has been looked at."""
        self._waiting.join()

    def paths_of(self, texts: Iterable[str]) -> dict[str, list[Path]]:
        """Which of these texts name files, and which files."""
        paths = {name: list(dict.fromkeys(_files_of(name))) for name in _names(texts)}
        return {name: files for name, files in paths.items() if files}

    def look(self, path: Path) -> Facts:
        """A file's current size and time."""
        facts = _facts(path)
        if self._first.setdefault(path, facts) != facts:
            self._changed.add(path)
        return facts

    def has_changed(self, path: Path) -> bool:
        """Whether a file has changed since a prompt first named it."""
        return path in self._changed

    @property
    def state(self) -> str:
        """A text that changes whenever a watched file changes; empty while none has."""
        watched = list(self._first.items())  # a prompt that arrives meanwhile may add to it
        changed = sorted((str(path), facts) for path, first in watched if (facts := _facts(path)) != first)
        return fingerprint(changed) if changed else ""

    def _watch(self) -> None:
        while True:
            names = self._waiting.get()
            try:
                for name in names:
                    for path in _models_of(name):
                        self.look(path)
            except Exception:  # the thread has to live for the next prompt
                logging.exception("Differential LoRA: the files of a prompt could not be looked at")
            finally:
                self._waiting.task_done()


def _facts(path: Path) -> Facts:
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)


def _names(texts: Iterable[str], suffixes: frozenset[str] | None = None) -> list[str]:
    """Each text that may name a file, once; if a prompt has too many, the first ones."""
    names: dict[str, None] = {}
    for text in texts:
        if len(text) > MAX_NAME or "\n" in text or "\0" in text:
            continue
        suffix = PurePath(text.split(" [")[0]).suffix.lower()
        if suffix and (suffixes is None or suffix in suffixes):
            names[text] = None
        if len(names) >= MOST_NAMES:
            break
    return list(names)


def _files_of(name: str) -> Iterator[Path]:
    yield from _models_of(name)
    plain, folder = folder_paths.annotated_filepath(name)
    try:
        path = inside(folder or folder_paths.get_input_directory(), plain)
    except DiffLoraError:
        return  # It names no file, so there is nothing to watch.
    if path.is_file():
        yield path


def _models_of(name: str) -> Iterator[Path]:
    suffix = PurePath(name).suffix.lower()
    for kind, (_, suffixes) in list(folder_paths.folder_names_and_paths.items()):
        if kind != "custom_nodes" and (not suffixes or suffix in suffixes) and (path := found(kind, name)):
            yield path


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a node's inputs, at any depth."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            waiting.extend(reversed(list(part.values())))
        elif isinstance(part, list) and not is_link(part):
            waiting.extend(reversed(part))
