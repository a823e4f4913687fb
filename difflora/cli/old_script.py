"""The command lines of the script that this pack replaces, translated, so that only the program's name changes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import PairError, SelectionError
from ..lora.file import FileLora
from ..rank.rules import RULES
from ..sentence import printable
from .parser import UsageError

DEFAULT_RANK = 16
DEFAULT_DTYPE = "float16"
DEFAULT_TARGET_NORM = 1.0

_WORDS = {"attention": "attn", "mlp": "ffn"}


def translate(given: argparse.Namespace) -> None:
    """Put what the old script's flags of `subtract` say, and its defaults, into the arguments of this program.

    Beyond those it sets `cut` (a Cut), `notes` (lines to print) and `is_old` (whether --lora-a was given).

    raises  UsageError for flags that contradict each other or this program's own, or are out of range
    """
    if given.select is not None and (given.target_blocks or given.target_indices):
        raise UsageError("--select and --target-blocks or --target-indices say the same thing twice; give one")
    if given.scale is not None and given.alpha is not None:
        raise UsageError("--scale and --alpha say the same thing twice; give one")
    if given.target_norm is not None and given.target_norm <= 0:
        raise UsageError(f"--target-norm is {given.target_norm:g}; it must be above zero")
    percentile = given.auto_threshold_percentile
    if percentile is not None and not 0 <= percentile < 100:
        raise UsageError(f"--auto-threshold-percentile is {percentile:g}; it must be from 0 to below 100")

    if given.select is None:
        given.select = selection(given.target_blocks or (), given.target_indices or ())
    if given.scale is None:
        given.scale = given.alpha
    given.cut = Cut(given.magnitude_threshold, percentile)
    given.notes = _without_effect(given)
    given.is_old = given.lora_a is not None
    if not given.is_old:
        return
    given.nullify = given.nullify or not given.exclude_non_targeted
    given.unmatched = given.unmatched or "drop"
    given.dtype = given.dtype or DEFAULT_DTYPE
    if given.scale is None and given.target_norm is None:
        given.target_norm = DEFAULT_TARGET_NORM
    if not given.lossless and all(getattr(given, word) in (None, False) for word in RULES):
        given.rank = DEFAULT_RANK


def _without_effect(given: argparse.Namespace) -> list[str]:
    """Notes on flags that no longer do anything."""
    notes = []
    if given.device and given.device != "cpu":
        notes.append(
            f"--device {printable(given.device)}: runs on the CPU, which is enough: the arithmetic is on small "
            "factors and takes about as long as reading the files."
        )
    if given.fast_svd:
        notes.append(
            "--fast_svd: the exact SVD of the small factors is already faster than an approximate one of "
            "the full matrices, so it is used."
        )
    return notes


def selection(blocks: Sequence[str], indices: Sequence[str]) -> str | None:
    """`--target_blocks attn --target_indices 0 1 2` in the selection language: ``blocks 0,1,2 & attn``.

    None if both are left out: everything.
    """
    words = [word for text in blocks for word in re.split(r"[,\s]+", text) if word]
    numbers = [number for text in indices for number in re.split(r"[,\s]+", text) if number]
    for number in numbers:
        if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", number):
            raise SelectionError(f'--target-indices: "{number}" is no block number and no range such as 0-9.')
    parts = ["blocks " + ",".join(numbers)] if numbers else []
    if words and "all" not in words:
        parts.append(" | ".join(_WORDS.get(word, word) for word in words))
    return " & ".join(parts) or ("all" if words else None)


@dataclass(frozen=True)
class Cut:
    """Which modules are too small to matter: those whose difference has a norm below a bound."""

    bound: float | None = None
    percentile: float | None = None

    def small(self, norms: Mapping[str, float]) -> list[str]:
        """The modules to leave out. The percentile is that of the norms given.

        raises  SelectionError if nothing would be left
        """
        if not self:
            return []
        bound = self.bound if self.percentile is None else float(np.percentile(list(norms.values()), self.percentile))
        assert bound is not None
        small = [name for name, norm in norms.items() if norm < bound]
        if len(small) == len(norms):
            raise SelectionError(
                f"No module's difference has a norm of {bound:g} or more; the largest is "
                f"{max(norms.values()):.4g}. Choose a smaller threshold."
            )
        return small

    def __bool__(self) -> bool:
        return self.bound is not None or self.percentile is not None


def factor_for(norms: Iterable[float], target: float) -> float:
    """The factor that makes the modules' mean norm `target`."""
    values = list(norms)
    mean = sum(values) / len(values)
    if mean == 0:
        raise PairError("The difference is zero in every selected module, so it cannot be scaled to a norm.")
    return target / mean


def strength_note(a: FileLora, b: FileLora, modules: Iterable[str], normalised: bool) -> str:
    """The strength of the old script's result relative to ours: it ignored the files' alpha / rank."""
    modules = list(modules)
    scales = {file.scales[name] for file in (a, b) for name in modules if name in file.scales}
    close = max(scales) - min(scales) <= 1e-6 * max(abs(scale) for scale in scales)
    if not close:
        return (
            f"The old script left out each file's alpha / rank, which differ here ({min(scales):g} to "
            f"{max(scales):g}): it subtracted in other proportions, so no single ratio of strengths compares its "
            "result with this one. This one is the true difference."
        )
    scale = scales.pop()
    if scale == 0:
        return "The old script left out alpha / rank, which is 0 in both files: what it wrote was not the difference, which is zero."
    if normalised or scale == 1:
        why = "both are scaled to the same norm" if scale != 1 else "alpha / rank is 1 in both files"
        return f"Strength, old script : this file = 1 : 1 ({why})."
    return (
        f"Strength, old script : this file = {1 / scale:g} : 1. The script left out alpha / rank ({scale:g}), so "
        f"its strength 1 is a strength of {1 / scale:g} here."
    )
