"""The two LoRAs that a concept needs on Wan2.2-A14B: one for its high-noise model, one for its low-noise model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecipeError
from ..lora.file import FileLora
from ..lora.lora import Recipe
from ..sentence import printable
from ..storage.reader import Header

NOISES = ("high", "low")
TWIN_KEY = "difflora.twin"
MODEL_KEY = "ss_sd_model_name"  # where musubi-tuner writes the name of the model file that it trained on

Pair = tuple[FileLora, FileLora]


def path_of(output: Path, noise: str) -> Path:
    """``density.safetensors`` -> ``density_high.safetensors``."""
    return output.parent / f"{output.stem}_{noise}{output.suffix}"


@dataclass(frozen=True)
class Twin:
    """What the metadata of one of two files say about the other.

    noise   which of the two this file is, "high" or "low"
    other   the other's file name
    of      the other's tree of operations, so that either file can bring back both
    """

    noise: str
    other: str
    of: Recipe

    @classmethod
    def of_header(cls, header: Header) -> Twin | None:
        """None for a file that was made alone; raises RecipeError if what it says cannot be read."""
        text = header.metadata.get(TWIN_KEY)
        if text is None:
            return None
        try:
            table = json.loads(text)
            twin = cls(table["noise"], table["other"], table["of"])
            if not (twin.noise in NOISES and isinstance(twin.other, str) and isinstance(twin.of, dict)):
                raise TypeError("an entry has the wrong type")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecipeError(
                f"{header.path.name}: what it says about its twin is damaged ({printable(repr(error))})."
            ) from error
        return twin

    def metadata(self) -> dict[str, str]:
        """The entry for a file's metadata."""
        return {TWIN_KEY: json.dumps({"noise": self.noise, "other": self.other, "of": self.of}, sort_keys=True)}


def other_noise(noise: str) -> str:
    """``high`` -> ``low``, and back."""
    return NOISES[1 - NOISES.index(noise)]


def noise_said(name: str) -> str | None:
    """The noise level in a file name: "high" or "low" before the word "noise", or else alone. None if it has neither or both."""
    words = " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)).lower()
    for pattern in (r"\b(high|low) ?noise\b", r"\b(high|low)\b"):
        if said := set(re.findall(pattern, words)):
            return said.pop() if len(said) == 1 else None
    return None


def mix_ups(pairs: Mapping[str, Pair]) -> Iterator[str]:
    """Warnings about inputs that seem to belong to the other noise level, or are the same for both."""
    for noise, files in pairs.items():
        for file in files:
            model = file.metadata.get(MODEL_KEY, "")
            by_model, by_name = noise_said(model), noise_said(file.path.stem)
            if (by_model or by_name) == other_noise(noise):
                what = f"it was trained on {printable(model)}" if by_model else f"its name says {by_name}"
                yield f"{file.name} is given for {noise} noise, but {what}. Check what follows --high and --low."
    for high in pairs["high"]:
        for low in pairs["low"]:
            if high.sha256 == low.sha256:
                yield (
                    f"{high.name}, given for high noise, and {low.name}, given for low noise, are the same file. Check what "
                    "follows --high and --low."
                )
