"""The state of a training in a file that is either complete or absent."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FileError
from ..sentence import printable
from ..storage.reader import read_header, read_tensors
from ..storage.writer import Layout, draft_file, make_folder, publish

STATE_KEY = "difflora.training"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to resume.

    identity  what was trained on what, as JSON data: only the same training can resume from here
    tensors   factors, optimiser, means
    losses    one for each step taken
    """

    identity: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    losses: list[float]

    def write(self, path: Path) -> None:
        """Replace an earlier one. raises OutputError; the earlier one is then still there."""
        make_folder(path.parent)
        plan = Layout.of({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()})

        def produce() -> Generator[tuple[str, Tensor], None, None]:
            for name, _, _ in plan.tensors:
                yield name, self.tensors[name].detach().cpu().contiguous()

        state = {"version": VERSION, "identity": self.identity, "losses": self.losses}
        said = {STATE_KEY: json.dumps(state, sort_keys=True)}
        with draft_file(path, plan, produce(), said, lambda: said, overwrite=True) as draft:
            publish([draft])

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """Returns None if there is no file. raises FileError if it is damaged."""
        if not path.is_file():
            return None
        header = read_header(path)
        try:
            state = json.loads(header.metadata[STATE_KEY])
            if state["version"] != VERSION:
                raise ValueError(f"version {state['version']}")
            losses = [float(loss) for loss in state["losses"]]
            identity = dict(state["identity"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(
                f"{path.name}: this checkpoint cannot be read ({printable(repr(error))}). Delete it to start anew."
            ) from error
        return cls(identity, read_tensors(header, list(header.entries)), losses)
