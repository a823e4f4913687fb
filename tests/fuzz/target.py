"""What a fuzzer feeds: everything that the pack does with a file somebody else made."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import difflora
from difflora.errors import RecipeError
from difflora.lora.extract import extract
from difflora.lora.selection import summary
from difflora.names.keys import OUTPUT_DIALECTS
from difflora.rank.analysis import analyze_difference
from difflora.saving.recipes import SavedRecipe, from_recipe, told

MOST = 1_000_000  # values of one delta that are still multiplied out


def read_like_a_user(path: Path, content: bytes | None, size: int | None = None) -> bool:
    """Load, read every module, re-rank, save, compare, rebuild, extract. True if the file could be loaded at all.

    Any exception other than a DiffLoraError with a one-line message gets through, and is the find.

    content  the file's bytes; None: it is there already
    size     what the file is stretched to, without taking room on the disk
    """
    if content is not None:
        path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)
    refused = [_is_refused(way, path) for way in (_read, _save, _subtract, _rebuild, _extract)]
    return not refused[0]


def _is_refused(way: Callable[[Path], None], path: Path) -> bool:
    try:
        way(path)
    except difflora.DiffLoraError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 2000, message
        assert message.isprintable(), repr(message)
        return True
    return False


def _read(path: Path) -> None:
    lora = difflora.load(path)
    _ = lora.base_model, lora.rank_text, repr(lora), summary(lora)
    if path.stat().st_size <= MOST:
        _ = lora.fingerprint  # reads all of it
    for line in lora.warnings:
        assert line.isprintable() and len(line) < 2000, line
    for name, spec in lora.specs.items():
        if math.prod(spec.shape) <= MOST:
            assert lora[name].spec.shape == lora[name].dense().shape == spec.shape


def _small(path: Path) -> difflora.Lora:
    lora = difflora.load(path, ignore_unknown=True)
    if max(math.prod(spec.shape) for spec in lora.specs.values()) > MOST:
        raise difflora.DiffLoraError("too large to be multiplied out a thousand times a minute")
    return lora


def _save(path: Path) -> None:
    lora = _small(path)
    out = path.with_name("out.safetensors")
    size = path.stat().st_size
    difflora.save(
        lora,
        out,
        ("float32", "float16", "float8_e5m2")[size % 3],
        OUTPUT_DIALECTS[size % len(OUTPUT_DIALECTS)],
        overwrite=True,
    )
    again = difflora.load(out)
    assert len(again) == len(lora)
    difflora.save(difflora.rerank(lora, difflora.Energy(0.9)), out, overwrite=True)
    assert len(difflora.load(out)) == len(lora)


def _subtract(path: Path) -> None:
    lora = _small(path)
    numbers = analyze_difference(difflora.subtract(lora, lora.scaled(0.5)))
    assert numbers.csv() and 0 <= numbers.cancelled <= 1


def _rebuild(path: Path) -> None:
    def find(name: str, sha256: str) -> Path:
        raise RecipeError("there is no such file here")

    recipe = SavedRecipe.of_file(path).of
    try:
        assert told(recipe).isprintable()
    finally:
        from_recipe(recipe, find)


def _extract(path: Path) -> None:
    difference = extract(path, path)
    for name, spec in difference.specs.items():
        if math.prod(spec.shape) <= MOST:
            assert not difference[name].dense().nan_to_num().any()
