"""PEFT's configuration of an adapter: the alpha and rank of modules, where the file's tensors do not say them."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..names.keys import spelled
from ..sentence import printable
from ..storage.reader import Header
from .patterns import MAX_LENGTH, Pattern, PatternError

MAX_BESIDE = 1_000_000  # bytes; PEFT writes some hundred


class AdapterConfig:
    """Scales that a PEFT adapter keeps outside its tensors: `adapter_config.json`, or the same in the metadata.

    beside  whether it comes from outside the LoRA file
    rivals  how many LoRA files a configuration beside them may belong to, if it was not used for that reason
    """

    USED = ("lora_alpha", "use_rslora", "alpha_pattern")
    USED_BY_FORMS = ("peft_type", "alpha", "alpha_pattern", "r", "rank_pattern")  # LoHa and LoKr in PEFT's words

    def __init__(self, config: Mapping[str, Any], name: str = "", beside: bool = False, rivals: int = 0):
        used = self.USED_BY_FORMS if config.get("peft_type") in ("LOHA", "LOKR") else self.USED
        self.config = {key: config[key] for key in used if key in config}
        self._tables: dict[str, _Patterns] = {}
        self.name = name
        self.beside = beside and bool(self.config)
        self.rivals = rivals

    @classmethod
    def of(cls, header: Header, given: Mapping[str, Any] | None) -> AdapterConfig:
        for key in ("adapter_config", "lora_adapter_metadata", "config"):
            if text := header.metadata.get(key):
                if key == "config" and not text.lstrip().startswith("{"):
                    continue  # written by somebody else
                config = _json(text, f"{header.path.name}: the metadata entry {key}")
                if isinstance(config, dict) and any(name.split(".")[-1] in ("lora_alpha", "r") for name in config):
                    # diffusers puts the component before each name; a text encoder's are not about this model.
                    own = {name: value for name, value in config.items() if not name.startswith("text_encoder")}
                    return cls({name.split(".")[-1]: value for name, value in own.items()}, header.path.name)
        if "lora_alpha" in header.metadata or "use_rslora" in header.metadata:
            return cls(header.metadata, header.path.name)
        if given is not None:
            return cls(given, header.path.name, beside=True)
        sibling = header.path.with_name("adapter_config.json")
        if os.path.lexists(sibling):
            # Trainers write this file beside one adapter in a folder of its own. In a folder full of LoRAs it would be
            # somebody else's.
            files = {file.name for file in sibling.parent.glob("*.safetensors")}
            if header.path.stem != "adapter_model" and len(files) != 1:
                return cls({}, rivals=0 if "adapter_model.safetensors" in files else len(files))
            config = _json(_read_beside(sibling, header), f"{header.path.name}: {sibling.name} beside it")
            if isinstance(config, dict):
                return cls(config, sibling.name, beside=True)
        return cls({})

    def scale(
        self, module: str, parts: Mapping[str, str], rank: int, alpha: float | None, rslora: bool | None = None
    ) -> tuple[float, float | None]:
        """(scale, alpha) of one module. alpha and rslora in the file's tensors take precedence over the configuration."""
        common = self.config.get("lora_alpha", self.config.get("alpha"))
        if alpha is None and common not in (None, ""):
            alpha = self._number(self._pattern("alpha_pattern", module, parts, common))
        if alpha is None:
            return 1.0, None
        return alpha / (math.sqrt(rank) if (self._rslora if rslora is None else rslora) else rank), alpha

    def rank_of(self, module: str, parts: Mapping[str, str]) -> int | None:
        """What alpha is divided by in a LoKr of two full matrices: nothing, except in a PEFT file."""
        if self.config.get("peft_type") != "LOKR" or "alpha" in parts:
            return None
        rank = self._number(self._pattern("rank_pattern", module, parts, self.config.get("r")), "r")
        if not (rank >= 1 and rank.is_integer()):
            raise FileError(f"{self.name}: r is {printable(rank)}; it must be a whole number of at least 1.")
        return int(rank)

    @property
    def _rslora(self) -> bool:
        return str(self.config.get("use_rslora", "")).lower() in ("true", "1", "yes")

    def _pattern(self, name: str, module: str, parts: Mapping[str, str], default: object) -> object:
        """The value for a module whose name ends in a pattern; PEFT's patterns are of the names that the file has."""
        if name not in self._tables:
            patterns = self.config.get(name) or {}
            if isinstance(patterns, str):
                patterns = _json(patterns, f"{self.name}: {name}")
            self._tables[name] = _Patterns(patterns if isinstance(patterns, dict) else {}, self.name, name)
        spellings = {module, *(spelled(key) for key in parts.values())}
        return self._tables[name].value(spellings, default)

    def _number(self, value: object, what: str = "lora_alpha") -> float:
        try:
            number = float(str(value))
        except ValueError as error:
            raise FileError(f"{self.name}: {what} is {printable(value)}, which is not a number.") from error
        if not math.isfinite(number):
            raise FileError(f"{self.name}: {what} is {number}.")
        return number


NO_CONFIG = AdapterConfig({})


class _Patterns:
    r"""Values for the modules whose names end in a pattern; the first pattern that fits counts.

    Fits as in PEFT, ``re.match(rf"(.*\.)?({pattern})$", name)``, where a plain name such as ``self_attn.q`` has no other
    character for its dot. Plain names are looked up; the others are tried one by one, within a limit, because a file may
    have any number of them and of modules.

    table   pattern -> value
    file, name   what the table is called in errors
    """

    MOST = 10_000
    MOST_REGULAR = 100  # patterns that are no plain names
    MOST_STEPS = 20_000_000  # characters times states of the patterns tried on them: some seconds
    PLAIN = re.compile(r"\^?[\w.-]+")

    def __init__(self, table: Mapping[str, object], file: str, name: str):
        self.table, self.file, self.name = list(table.items()), file, name
        self.plain: dict[str, int] = {}  # name, with ^ before it if nothing may stand there -> place in the table
        self.regular: list[int] = []
        self.compiled: dict[int, Pattern] = {}
        self.steps = 0
        for place, pattern in enumerate(table):
            plain = pattern.removesuffix("$").replace("\\.", ".")
            if len(pattern) <= MAX_LENGTH:
                self.plain.setdefault(pattern, place)
            if len(pattern) <= MAX_LENGTH and self.PLAIN.fullmatch(plain):
                self.plain.setdefault(plain, place)
            else:
                self.regular.append(place)
        if len(table) > self.MOST or len(self.regular) > self.MOST_REGULAR:
            raise self._too_many()

    def value(self, spellings: Collection[str], default: object) -> object:
        """Of a module, by the ways to spell its name."""
        found = [self.plain[end] for spelled in spellings for end in _ends(spelled) if end in self.plain]
        place = min(found, default=len(self.table))
        for other in self.regular:
            if other > place:
                break
            if any(self._fits(other, spelled) for spelled in spellings):
                place = other
        return self.table[place][1] if place < len(self.table) else default

    def _fits(self, place: int, spelled: str) -> bool:
        if place not in self.compiled:
            pattern = self.table[place][0]
            try:
                self.compiled[place] = Pattern(f"^(.*\\.)?({pattern})$")
            except PatternError as error:
                raise FileError(
                    f"{self.file}: the pattern {printable(pattern)} in {self.name} cannot be read ({error}), so the "
                    "LoRA's scale is unknown."
                ) from error
        self.steps += self.compiled[place].size * (len(spelled) + 1)
        if self.steps > self.MOST_STEPS:
            raise self._too_many()
        return self.compiled[place].found_in(spelled)

    def _too_many(self) -> FileError:
        return FileError(
            f"{self.file}: {self.name} has more patterns than can be tried on every module, so the LoRA's scale is "
            "unknown."
        )


def _ends(name: str) -> Iterator[str]:
    """A module's name, and what stands behind each of its dots, as far as a pattern is long."""
    yield name
    yield "^" + name
    at = len(name)
    while (at := name.rfind(".", 0, at)) >= 0 and len(name) - at - 1 <= MAX_LENGTH:
        yield name[at + 1 :]


def _read_beside(sibling: Path, header: Header) -> str:
    """The text of a configuration beside a LoRA. Whoever made the folder decides what is in it."""
    name = f"{header.path.name}: {sibling.name} beside it"
    try:
        if not stat.S_ISREG(os.lstat(sibling).st_mode):
            raise FileError(
                f"{name} is a link or not a plain file, so the LoRA's scale is unknown. Put a copy of the file in its place."
            )
        with open(sibling, "rb") as file:
            content = file.read(MAX_BESIDE + 1)
        if len(content) > MAX_BESIDE:
            raise FileError(f"{name} is larger than {MAX_BESIDE:,} bytes, so the LoRA's scale is unknown.")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{name} cannot be read, so the LoRA's scale is unknown.") from error


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} is damaged JSON, so the LoRA's scale is unknown.") from error
