"""From the recipe in a saved file's metadata back to the file.

A recipe is the tree of operations as JSON. It names inputs by base name and SHA-256, never by path, so the caller says where to
find them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..lora.extract import Checkpoint, CheckpointDifference
from ..lora.file import load
from ..lora.lora import CombinedLora, Lora, Recipe
from ..rank.calibrate import CalibratedLora
from ..rank.purify import purify
from ..rank.rerank import rerank
from ..rank.rules import rule_from_recipe
from ..sentence import printable
from ..storage.reader import FileIdentity, file_sha256, read_header
from .save import RECIPE_KEY

VERSION = 1

Find = Callable[[str, str], Path]
"""Gives the path of an input from its base name and its SHA-256; raises RecipeError if it is not there."""


@dataclass(frozen=True)
class SavedRecipe:
    """What a saved file records about how it was made.

    of         the tree of operations
    dtype, dialect, made_by   how it was written, and by which version
    """

    of: Recipe
    dtype: str
    dialect: str
    made_by: str

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> SavedRecipe:
        """Read it from a file's metadata; raises RecipeError if there is none, or none that can be read."""
        name = Path(path).name
        text = read_header(path).metadata.get(RECIPE_KEY)
        if text is None:
            raise RecipeError(
                f"{name}: no recipe in this file's metadata. It was not made by difflora, or the metadata were removed."
            )
        try:
            table = json.loads(text)
            version = table["version"]
            if version != VERSION:
                raise RecipeError(
                    f"{name}: its recipe is of version {printable(version)}, and this difflora reads version "
                    f"{VERSION}. Use the version that made it ({printable(table.get('made_by'))})."
                )
            saved = cls(table["of"], table["dtype"], table["dialect"], str(table.get("made_by", "unknown")))
            if not (isinstance(saved.of, dict) and isinstance(saved.dtype, str) and isinstance(saved.dialect, str)):
                raise TypeError("an entry has the wrong type")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecipeError(f"{name}: its recipe is damaged ({printable(repr(error))}).") from error
        return saved


def from_recipe(recipe: Recipe, find: Find) -> Lora:
    """The `Lora` that a recipe describes. Nodes of the tree that are alike become one object: a file is opened once
    and factored once.

    raises  RecipeError if the recipe is damaged or an input is not found, and whatever the operations raise
    """
    made: dict[str, Lora] = {}

    def make(node: Any) -> Lora:
        key = json.dumps(node, sort_keys=True)
        if key not in made:
            made[key] = operate(node)
        return made[key]

    def checkpoint(node: Any) -> Checkpoint:
        name = _text(node["file"])
        return Checkpoint([find(name, _text(sha256)) for sha256 in node["sha256"]], name)

    def operate(node: Any) -> Lora:
        match node["op"]:
            case "load":
                return load(
                    find(_text(node["file"]), _text(node["sha256"])),
                    ignore_unknown=True,
                    adapter_config=node.get("adapter_config", {}),
                    noise=node.get("noise"),
                )
            case "combine":
                parts = [(float(term["weight"]), make(term["of"])) for term in node["terms"]]
                return CombinedLora(parts, node["unmatched"])
            case "select":
                return make(node["of"]).select(_text(node["expression"]), bool(node["nullify"]))
            case "rerank":
                return rerank(make(node["of"]), rule_from_recipe(node["rule"]), node["max_rank"])
            case "purify":
                return purify(make(node["of"]), [make(other) for other in node["against"]], node["directions"])
            case "calibrate":
                return CalibratedLora(make(node["of"]), float(node["factor"]), _text(node["unit"]))
            case "extract":
                return CheckpointDifference(checkpoint(node["base"]), checkpoint(node["tuned"]))
            case "trained":
                raise RecipeError(
                    f"{printable(node['name'])} was trained inside ComfyUI, so it cannot be rebuilt from files. Its recipe "
                    "says how: train it again on the same pairs, or keep the file."
                )
            case operation:
                raise RecipeError(
                    f"The recipe has the operation {printable(operation)}, which this version does not know."
                )

    try:
        return make(recipe)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise RecipeError(f"The recipe is damaged ({printable(repr(error))}).") from error


def find_in(folder: str | os.PathLike[str]) -> Find:
    """Looks for inputs in a folder and the folders below it: by name first, then among all LoRAs there."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder to look for the inputs in.")
    files = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())

    def find(name: str, sha256: str) -> Path:
        for path in sorted(files, key=lambda path: path.name != name):
            if file_sha256(FileIdentity.of(path)) == sha256:
                return path
        same_name = next((path for path in files if path.name == name), None)
        what = f"a file of that name is there ({same_name}), but its content is another" if same_name else "not found"
        raise RecipeError(
            f"{printable(name)} (SHA-256 {printable(sha256)}): {what}. Put the file into {folder} "
            "and try again; it may have any name."
        )

    return find


def told(recipe: Mapping[str, Any]) -> str:
    """A recipe in one line, for people: ``rank fixed 4 of (only [attn] of (dense.safetensors - sparse.safetensors))``.

    raises  RecipeError if it is damaged
    """
    try:
        return _told(recipe)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(f"The recipe is damaged ({printable(repr(error))}).") from error


def _told(recipe: Mapping[str, Any]) -> str:
    match recipe["op"]:
        case "load":
            return printable(recipe["file"])
        case "combine":
            return _told_sum(recipe["terms"])
        case "select":
            verb = "zeros outside" if recipe["nullify"] else "only"
            return f"{verb} [{printable(recipe['expression'])}] of ({_told(recipe['of'])})"
        case "rerank":
            words = " ".join(printable(value) for value in recipe["rule"].values())
            limit = f", at most {printable(recipe['max_rank'])}" if recipe["max_rank"] else ""
            return f"rank {words}{limit} of ({_told(recipe['of'])})"
        case "calibrate":
            return f"{float(recipe['factor']):g} × ({_told(recipe['of'])}), so that 1 is {printable(recipe['unit'])}"
        case "purify":
            others = ", ".join(_told(other) for other in recipe["against"])
            return f"({_told(recipe['of'])}) without {printable(recipe['directions'])} directions of {others}"
        case "extract":
            return f"model {printable(recipe['tuned']['file'])} - model {printable(recipe['base']['file'])}"
        case "trained":
            return f"trained {printable(recipe['name'])}"
    return printable(recipe)


def _told_sum(terms: list[Mapping[str, Any]]) -> str:
    parts = []
    for place, term in enumerate(terms):
        weight = float(term["weight"])
        sign = "-" if weight < 0 else "" if place == 0 else "+"
        factor = "" if abs(weight) == 1 else f"{abs(weight):g} × "
        of = _told(term["of"])
        if term["of"]["op"] in ("combine", "extract"):
            of = f"({of})"
        parts.append(f"{sign} {factor}{of}".strip() if place else f"{sign}{factor}{of}")
    return " ".join(parts)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
