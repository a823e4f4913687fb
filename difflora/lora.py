"""`Lora`: an immutable, lazy mapping from module names to deltas.

Operations make a new `Lora` that remembers what it was made of; nothing is computed and no tensor is read
until something asks for a module. The tree of operations is also the recipe that is written into saved files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from . import forms, names
from .deltas import Delta, Dense, LowRank, Spec, Term, Vector, add, sum_shape, zero
from .errors import FileError, PairError, TensorError, UnsupportedError
from .patterns import MAX_LENGTH, Pattern, PatternError
from .selection import Selection
from .storage import CODES, FLOATS, FileIdentity, Header, check_finite, file_sha256, read_header, read_tensors, shown
from .wording import Sentence

Recipe = dict[str, Any]
BATCH_BUDGET = 11_000_000  # bytes of float64 factors worked on at once: what stays in the processor's cache
SMALL_SIDE = 512  # a matrix with a side this small is a product of factors already: itself and an identity
LARGEST_WEIGHT = 2**31  # values in one tensor; an embedding of a large language model has a billion
LARGEST_SCALE = 1e30  # of alpha / rank; more is damage, and overflows
DENSE_SHARE = 0.5  # factors of a larger rank than this share of the smaller side are no smaller than the matrix


class Lora(Mapping[str, Delta], ABC):
    """Canonical module name -> delta, in model order.

    specs       shape and rank of every module, from headers alone
    metadata    what the file or files say of themselves
    warnings    what a user should know, one line each
    """

    specs: Mapping[str, Spec]
    metadata: Mapping[str, str] = MappingProxyType({})
    warnings: tuple[Sentence, ...] = ()

    @abstractmethod
    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        """The deltas of some modules, read together: one pass through each file."""

    def stream(self, modules: Sequence[str], tick: Callable[[], None] = lambda: None) -> Iterator[tuple[str, Delta]]:
        """The deltas of many modules in this order, a few at a time in memory.

        tick  called now and then inside work that takes long for one module; may raise to cancel
        """
        for batch in batches(self.specs, modules):
            read = self.read(batch)
            for name in batch:
                yield name, read.pop(name)

    @abstractmethod
    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        """The recipe, with each file's hash as `sha256` gives it."""

    @property
    def recipe(self) -> Recipe:
        """How to make this again, as JSON data: files by base name and SHA-256, operations, weights."""
        return self.describe(file_sha256)

    @property
    @abstractmethod
    def parents(self) -> tuple[Lora, ...]:
        """What this was made of."""

    def __getitem__(self, module: str) -> Delta:
        if module not in self.specs:
            raise KeyError(module)
        return self.read([module])[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, module: object) -> bool:
        return module in self.specs

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} modules, rank {self.rank_text}>"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.specs)

    @property
    def matrices(self) -> tuple[str, ...]:
        """The modules whose weight matrix changes, as opposed to biases, norms and modulation tables."""
        return tuple(name for name, spec in self.specs.items() if not spec.is_vector)

    @property
    def dense(self) -> tuple[str, ...]:
        """The matrices that are stored in full, at least in part."""
        return tuple(name for name, spec in self.specs.items() if spec.dense)

    @property
    def factored(self) -> tuple[str, ...]:
        """The matrices that are products of small factors."""
        return tuple(name for name in self.matrices if not self.specs[name].dense)

    @property
    def rank_text(self) -> str:
        ranks = sorted({self.specs[name].rank for name in self.matrices})
        return "-" if not ranks else str(ranks[0]) if len(ranks) == 1 else Sentence("{0} to {1}", ranks[0], ranks[-1])

    @functools.cached_property
    def base_model(self) -> str | None:
        """Which model this was trained on, as far as names and shapes tell. A part of a LoRA knows it from the whole."""
        agreed = {parent.base_model for parent in self.parents}
        if len(agreed) == 1 and (base := agreed.pop()):
            return base
        return names.base_model({name: spec.shape for name, spec in self.specs.items()})

    @functools.cached_property
    def flat_prefix(self) -> str:
        """What the flat names of other models than Wan start with in the files; "" if there are none, or they differ."""
        prefixes = {file.keys_found.flat_prefix for file in self.files}
        return prefixes.pop() if len(prefixes) == 1 else ""

    @property
    def files(self) -> tuple[FileLora, ...]:
        """Every LoRA file that this is made of, each once."""
        return tuple(dict.fromkeys(file for parent in self.parents for file in parent.files))

    @property
    def inputs(self) -> tuple[FileIdentity, ...]:
        """Every file that this is made of, each once: LoRAs, and shards of checkpoints."""
        return tuple(dict.fromkeys(file for parent in self.parents for file in parent.inputs))

    @property
    def made_from(self) -> tuple[str, ...]:
        """What to call the LoRAs and models that this is made of."""
        return tuple(dict.fromkeys(name for parent in self.parents for name in parent.made_from))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe: equal if and only if the content is."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()

    def select(self, expression: str, nullify: bool = False) -> Lora:
        """Keep the modules that `expression` picks, weighed as it says; see `difflora.selection`.

        nullify  write what is not picked as zeros instead of leaving it out
        raises   SelectionError if the expression cannot be read or picks nothing
        """
        return SelectedLora(self, Selection.parse(expression), nullify)

    def scaled(self, factor: float) -> Lora:
        """Every delta times `factor`."""
        return CombinedLora([(factor, self)])

    def check_finite(self, module: str) -> None:
        """Raise TensorError, naming file and key, if a file that `module` is made of holds NaN or Inf there."""
        for parent in self.parents:
            parent.check_finite(module)


# Parts of a module that change a weight in a way that no sum of changes can say.
_NOT_LINEAR = {
    "dora_scale": "this is a DoRA. It scales whole weights, which is not linear in them, so a difference of two would not be "
                  "exact.",
    "reshape_weight": "this is the shape to which the model's weight is padded before the LoRA is added, as control LoRAs do. "
                      "A weight of another shape is no change that can be subtracted.",
    "set_weight": "this takes the place of the model's weight. Without that weight, what it changes is not known.",
}


class FileLora(Lora):
    """One safetensors file, in any dialect."""

    def __init__(
        self, header: Header, ignore_unknown: bool = False, adapter_config: Mapping[str, Any] | None = None
    ):
        self.header = header
        self.metadata = MappingProxyType(dict(header.metadata))
        try:
            self.keys_found = names.read_keys(header.entries, header.metadata)
        except FileError as error:
            raise FileError(f"{self.name}: {error}") from error
        self.dialect = self.keys_found.dialect
        self._refuse_foreign_keys(ignore_unknown)
        alphas = self._read_alphas()
        adapter = self._adapter = _AdapterConfig.of(header, adapter_config)
        if adapter.beside:
            self.warnings += (Sentence("{0}: its scale comes from {1} beside it; keep the two together.", self.name, adapter.name),)
        if adapter.rivals and any(self._needs_alpha(parts) for parts in self.keys_found.modules.values()):
            self.warnings += (Sentence("{0}: adapter_config.json beside it was not used, because {1} .safetensors files lie there "
                                       "and it does not say whose it is. Without it the scale is 1; if it is this file's, put the "
                                       "two into a folder of their own.", self.name, adapter.rivals),)
        self._sources: dict[str, _Source] = {}
        self.alphas: dict[str, float] = {}
        for module, parts in self.keys_found.modules.items():
            for name, source in self._module_sources(module, parts, alphas, adapter):
                self._sources[name] = source
        for module, source in self._sources.items():
            sizes = [math.prod(header.entries[key].shape) for key in source.keys]
            if not all(sizes):
                raise TensorError(f"{self.name}: {shown(source.keys[sizes.index(0)])} holds no values: the file is damaged.")
            if max(*sizes, math.prod(source.spec.shape)) > LARGEST_WEIGHT:
                raise TensorError(f"{self.name}: {shown(module)} would change a weight of shape {source.spec.shape}: no model has "
                                  "such a large one, so the file is damaged.")
            if not abs(source.scale) < LARGEST_SCALE:
                raise TensorError(f"{self.name}: the scale of {shown(module)} (alpha / rank) is {source.scale:.3g}: the file is damaged.")
        if not self._sources and self.keys_found.text_encoder:
            raise FileError(f"{self.name}: only text encoder keys in this file ({len(self.keys_found.text_encoder)}), and a slider "
                            "works on the diffusion model. Choose a LoRA of that.")
        if not self._sources:
            raise FileError(f"{self.name}: no LoRA weights in this file ({len(header.entries)} other tensors).")
        self.specs = {name: source.spec for name, source in self._sources.items()}
        if not any(not spec.is_vector for spec in self.specs.values()):
            self.warnings += (Sentence("{0} changes no weight matrix, only biases, norms or modulation.", self.name),)

    @property
    def name(self) -> str:
        return self.header.path.name

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def parents(self) -> tuple[Lora, ...]:
        return ()

    @property
    def files(self) -> tuple[FileLora, ...]:
        return (self,)

    @property
    def inputs(self) -> tuple[FileIdentity, ...]:
        return (self.header.identity,)

    @property
    def made_from(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def scales(self) -> dict[str, float]:
        """What each matrix's product of factors is multiplied by: alpha / rank, or as a configuration says."""
        return {name: source.scale for name, source in self._sources.items() if not source.spec.is_vector}

    @property
    def sha256(self) -> str:
        return file_sha256(self.header.identity)

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        recipe = {"op": "load", "file": self.name, "sha256": sha256(self.header.identity)}
        # A configuration beside the file is part of the content, but not of the hash.
        return recipe | ({"adapter_config": self._adapter.config} if self._adapter.beside else {})

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        tensors = read_tensors(self.header, [key for module in modules for key in self._sources[module].keys])
        return {module: self._sources[module].delta([tensors[key] for key in self._sources[module].keys])
                for module in modules}

    def check_finite(self, module: str) -> None:
        if source := self._sources.get(module):
            for key, tensor in read_tensors(self.header, source.keys).items():
                check_finite(self.name, key, tensor)

    def _refuse_foreign_keys(self, ignore_unknown: bool) -> None:
        found = self.keys_found
        ignored = list(found.unknown)
        for reason, keys in found.foreign.items():
            beside = reason == names.WHOLE_WEIGHTS and bool(found.modules)  # not a checkpoint
            if beside and ignore_unknown:
                ignored += keys
                continue
            raise UnsupportedError(f"{self.name}: {shown(keys[0])} and {len(keys) - 1} more keys: {reason}."
                                   + " ignore_unknown (--ignore-unknown) goes on without them." * beside)
        for part, reason in _NOT_LINEAR.items():
            if key := next((parts[part] for parts in found.modules.values() if part in parts), None):
                raise UnsupportedError(f"{self.name}: {shown(key)}: {reason} Train plain LoRAs for a slider.")
        if found.unknown and not ignore_unknown:
            raise UnsupportedError(
                f"{self.name}: {len(found.unknown)} keys are not understood, the first is {shown(found.unknown[0])}. "
                "Nothing was left out in silence; ignore_unknown (--ignore-unknown) goes on without them."
            )
        if ignored:
            self.warnings += (Sentence("{0}: {1} keys were ignored, the first is {2}.", self.name, len(ignored),
                                       shown(min(ignored))),)
        if found.text_encoder:
            self.warnings += (Sentence("{0}: {1} text encoder keys were left out: the slider works on the diffusion model.",
                                       self.name, len(found.text_encoder)),)

    @staticmethod
    def _needs_alpha(parts: Mapping[str, str]) -> bool:
        return "alpha" not in parts and not parts.keys() <= {"diff", "bias"}

    def _read_alphas(self) -> dict[str, float]:
        keys = [parts["alpha"] for parts in self.keys_found.modules.values() if "alpha" in parts]
        for key in keys:
            if math.prod(self.header.entries[key].shape) != 1:
                raise TensorError(f"{self.name}: {shown(key)} must be one number, "
                                  f"but has shape {self.header.entries[key].shape}.")
        alphas = {key: float(tensor) for key, tensor in read_tensors(self.header, keys).items()}
        for key, alpha in alphas.items():
            if not math.isfinite(alpha):
                raise TensorError(f"{self.name}: {shown(key)} is {alpha}: the file is damaged.")
        return alphas

    def _module_sources(
        self, module: str, parts: dict[str, str], alphas: Mapping[str, float], adapter: _AdapterConfig
    ) -> Iterator[tuple[str, _Source]]:
        """What each of a module's parameters changes by: its weight, its bias."""
        left = set(parts)
        entries = self.header.entries
        for part, key in parts.items():
            if part != "alpha" and CODES[entries[key].dtype] not in FLOATS:
                raise TensorError(f"{self.name}: {shown(key)} holds {entries[key].dtype} values, not weights.")
        scale = 1.0
        if other := next((form for form in _FORMS if form.belongs(parts)), None):
            used = [part for part in other.parts if part in parts]
            left -= {*used, "alpha"}
            shape, rank, divisor = self._form_shape(module, other, {part: parts[part] for part in used})
            divisor = divisor or adapter.rank_of(module, parts)
            if divisor is not None:
                stored = alphas[parts["alpha"]] if "alpha" in parts else None
                scale, alpha = adapter.scale(module, parts, divisor, stored)
                if alpha is not None:
                    self.alphas[module] = alpha
            yield module, _FormSource(other, {part: parts[part] for part in used}, shape, rank, scale)
        elif "down" in parts or "up" in parts:
            left -= {"down", "up", "alpha"}
            if not ("down" in parts and "up" in parts):
                have, lack = ("down", "up") if "down" in parts else ("up", "down")
                raise TensorError(f"{self.name}: {shown(module)} has {shown(parts[have])}, but nothing for its {lack} side: "
                                  "the file is damaged.")
            up, down = entries[parts["up"]].shape, entries[parts["down"]].shape
            shape, rank = self._low_rank_shape(module, parts, up, down)
            alpha = alphas[parts["alpha"]] if "alpha" in parts else None
            scale, alpha = adapter.scale(module, parts, rank, alpha)
            if alpha is not None:
                self.alphas[module] = alpha
            yield module, _Source((parts["up"], parts["down"]), Spec(shape, (rank,)), scale)
        if "diff" in parts and not ({"up", "down"} & set(parts) or other):
            left -= {"diff", "alpha"}
            shape = entries[parts["diff"]].shape
            if len(shape) < 2 or module.endswith("modulation"):
                yield module, _Source((parts["diff"],), Spec(shape), 1.0)
            else:
                rank = min(shape[0], math.prod(shape[1:]))
                yield module, _FormSource(_FULL, {"diff": parts["diff"]}, shape, rank, 1.0)
        for part, factor in (("bias", 1.0), ("up_bias", scale)):
            if part in parts:
                left -= {part}
                yield module + ".bias", _Source((parts[part],), Spec(entries[parts[part]].shape), factor)
        if left == {"alpha"}:
            raise TensorError(f"{self.name}: {shown(parts['alpha'])} is there, but nothing that it scales: the factors of "
                              f"{shown(module)} are missing, so the file is incomplete.")
        if left:
            part = sorted(left)[0]
            raise UnsupportedError(f"{self.name}: {shown(parts[part])}: {shown(module)} holds this beside "
                                   f"{shown(next((parts[p] for p in parts if p not in left), 'nothing else'))}. What the two "
                                   "do together is not known, so the file cannot be subtracted.")

    def _form_shape(
        self, module: str, form: _Form, parts: Mapping[str, str]
    ) -> tuple[tuple[int, ...], int, int | None]:
        shapes = {part: self.header.entries[key].shape for part, key in parts.items()}
        try:
            shape, rank, divisor = form.shape(shapes)
            if rank == 0 or 0 in shape:
                raise ValueError
        except (KeyError, ValueError, IndexError) as error:
            listed = ", ".join(f"{shown(parts[part])} {size}" for part, size in shapes.items())
            raise TensorError(f"{self.name}: the parts of {shown(module)} do not fit together ({listed}): the file is damaged or "
                              "from an unknown trainer.") from error
        return shape, rank, divisor

    def _low_rank_shape(
        self, module: str, parts: dict[str, str], up: tuple[int, ...], down: tuple[int, ...]
    ) -> tuple[tuple[int, ...], int]:
        kernel_on_up = math.prod(up[2:])
        if len(up) < 2 or len(down) < 2 or kernel_on_up != 1 or 0 in up + down or up[1] != down[0]:
            why = "the ranks differ" if len(up) > 1 and len(down) > 1 and up[1] != down[0] else "they do not fit"
            raise TensorError(
                f"{self.name}: {shown(module)} has {shown(parts['down'])} of shape {down} but {shown(parts['up'])} of shape "
                f"{up}: {why}, so the file is damaged or from an unknown trainer."
            )
        kernel = down[2:] if any(size != 1 for size in down[2:]) else ()
        return (up[0], down[1], *kernel), down[0]


class _Source:
    """Which tensors of a file make up one delta, and how."""

    def __init__(self, keys: tuple[str, ...], spec: Spec, scale: float):
        self.keys, self.spec, self.scale = keys, spec, scale

    def delta(self, tensors: Sequence[Any]) -> Delta:
        if self.spec.is_vector:
            return Vector(tensors[0].float() * self.scale if self.scale != 1.0 else tensors[0].float())
        up, down = (tensor if tensor.ndim == 2 else tensor.flatten(1) for tensor in tensors)
        return LowRank((Term(up, down, self.scale),), self.spec.shape)


@dataclass(frozen=True)
class _Form:
    """An adapter that is not stored as up and down: which parts it has, its shape by headers, its factors, its matrix."""

    marks: tuple[str, ...]
    parts: tuple[str, ...]
    shape: Callable[[Mapping[str, tuple[int, ...]]], tuple[tuple[int, ...], int, int | None]]
    factors: Callable[[Mapping[str, Tensor]], forms.Factors]
    full: Callable[[Mapping[str, Tensor]], Tensor]

    def belongs(self, parts: Mapping[str, str]) -> bool:
        return any(mark in parts for mark in self.marks)


def _product_of(factors: Callable[[Mapping[str, Tensor]], forms.Factors]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def full(parts: Mapping[str, Tensor]) -> Tensor:
        up, down = factors(parts)
        return up @ down

    return full


_FORMS = (
    _Form(("mid",), ("up", "mid", "down"), forms.middle_shape, forms.middle, _product_of(forms.middle)),
    _Form(forms.LOHA, (*forms.LOHA, "hada_t1", "hada_t2"), forms.loha_shape, forms.hadamard, forms.hadamard_full),
    _Form(forms.LOKR, forms.LOKR, forms.lokr_shape, forms.kronecker, _product_of(forms.kronecker)),
)
_FULL = _Form(("diff",), ("diff",), lambda shapes: (shapes["diff"], 0, None), lambda parts: forms.thin(parts["diff"]),
              lambda parts: parts["diff"].flatten(1))


class _FormSource(_Source):
    """Reads such an adapter as plain factors; as a full matrix where those would be no smaller."""

    def __init__(self, form: _Form, parts: Mapping[str, str], shape: tuple[int, ...], rank: int, scale: float):
        self.form, self.parts = form, tuple(parts)
        side = min(shape[0], math.prod(shape[1:]))
        dense = rank > DENSE_SHARE * side and side > SMALL_SIDE
        self.multiplied_out = dense or rank > side
        super().__init__(tuple(parts.values()), Spec(shape, () if dense else (min(rank, side),), dense), scale)

    def delta(self, tensors: Sequence[Tensor]) -> Delta:
        if self.spec.dense and self.form is _FULL:  # as it is stored
            return Dense(((tensors[0].flatten(1), self.scale),), (), self.spec.shape)
        parts = dict(zip(self.parts, tensors, strict=True))
        if self.multiplied_out:
            full = self.form.full(parts)
            if self.spec.dense:
                return Dense(((full.float(), self.scale),), (), self.spec.shape)
            up, down = forms.thin(full)
        else:
            up, down = self.form.factors(parts)
        return LowRank((Term(up, down, self.scale),), self.spec.shape)


class _AdapterConfig:
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
    def of(cls, header: Header, given: Mapping[str, Any] | None) -> _AdapterConfig:
        for key in ("adapter_config", "lora_adapter_metadata", "config"):
            if text := header.metadata.get(key):
                if key == "config" and not text.lstrip().startswith("{"):
                    continue  # somebody else's word
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
        if sibling.is_file():
            # Trainers write this file beside one adapter in a folder of its own. In a folder full of LoRAs it would be
            # somebody else's.
            files = {file.name for file in sibling.parent.glob("*.safetensors")}
            if header.path.stem != "adapter_model" and len(files) != 1:
                return cls({}, rivals=0 if "adapter_model.safetensors" in files else len(files))
            try:
                text = sibling.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise FileError(f"{sibling}: cannot be read, so the LoRA's scale is unknown.") from error
            config = _json(text, f"{sibling}: this file")
            if isinstance(config, dict):
                return cls(config, sibling.name, beside=True)
        return cls({})

    def scale(
        self, module: str, parts: Mapping[str, str], rank: int, alpha: float | None
    ) -> tuple[float, float | None]:
        """(scale, alpha) of one module. A tensor in the file goes before the configuration."""
        common = self.config.get("lora_alpha", self.config.get("alpha"))
        if alpha is None and common not in (None, ""):
            alpha = self._number(self._pattern("alpha_pattern", module, parts, common))
        if alpha is None:
            return 1.0, None
        return alpha / (math.sqrt(rank) if self._rslora else rank), alpha

    def rank_of(self, module: str, parts: Mapping[str, str]) -> int | None:
        """What alpha is divided by in a LoKr of two full matrices: by nothing, except in PEFT's."""
        if self.config.get("peft_type") != "LOKR" or "alpha" in parts:
            return None
        rank = self._number(self._pattern("rank_pattern", module, parts, self.config.get("r")), "r")
        if not (rank >= 1 and rank.is_integer()):
            raise FileError(f"{self.name}: r is {shown(rank)}; it must be a whole number of at least 1.")
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
        return self._tables[name].value({module, *(names.spelled(key) for key in parts.values())}, default)

    def _number(self, value: object, what: str = "lora_alpha") -> float:
        try:
            number = float(str(value))
        except ValueError as error:
            raise FileError(f"{self.name}: {what} is {shown(value)}, which is no number.") from error
        if not math.isfinite(number):
            raise FileError(f"{self.name}: {what} is {number}.")
        return number


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
                raise FileError(f"{self.file}: the pattern {shown(pattern)} in {self.name} cannot be read ({error}), so the "
                                "LoRA's scale is unknown.") from error
        self.steps += self.compiled[place].size * (len(spelled) + 1)
        if self.steps > self.MOST_STEPS:
            raise self._too_many()
        return self.compiled[place].found_in(spelled)

    def _too_many(self) -> FileError:
        return FileError(f"{self.file}: {self.name} has more patterns than can be tried on every module, so the LoRA's scale is "
                         "unknown.")


def _ends(name: str) -> Iterator[str]:
    """A module's name, and what stands behind each of its dots, as far as a pattern is long."""
    yield name
    yield "^" + name
    at = len(name)
    while (at := name.rfind(".", 0, at)) >= 0 and len(name) - at - 1 <= MAX_LENGTH:
        yield name[at + 1 :]


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} is damaged JSON, so the LoRA's scale is unknown.") from error


class CombinedLora(Lora):
    """A weighted sum. A module that a part lacks counts as zero there, unless `unmatched` says otherwise.

    parts      (weight, lora), at least one
    unmatched  "keep", "drop" (only modules that every part has) or "error"
    raises     PairError if shapes differ, nothing is common, or a module is one-sided under "error"
    """

    def __init__(self, parts: Sequence[tuple[float, Lora]], unmatched: str = "keep"):
        if unmatched not in ("keep", "drop", "error"):
            raise PairError(f'unmatched is {shown(unmatched)}; it can be "keep", "drop" or "error".')
        for weight, _ in parts:
            if not math.isfinite(weight):
                raise PairError(f"A weight is {weight}; it must be a finite number.")
        self.parts = tuple((float(weight), lora) for weight, lora in parts)
        self.unmatched = unmatched
        loras = [lora for _, lora in parts]
        self.warnings = tuple(dict.fromkeys(line for lora in loras for line in lora.warnings))
        if len(loras) == 1:
            self.metadata = loras[0].metadata
        everything = sorted({name: None for lora in loras for name in lora}, key=names.model_order)
        having = {name: tuple(i for i, lora in enumerate(loras) if name in lora) for name in everything}
        self.one_sided = {name: sides for name, sides in having.items() if len(sides) < len(loras)}
        common = [name for name in everything if name not in self.one_sided]
        self._check(loras, everything, common)
        self.specs = {name: self._spec(name, loras) for name in (common if unmatched == "drop" else everything)}

    def _check(self, loras: Sequence[Lora], everything: Sequence[str], common: Sequence[str]) -> None:
        for name in everything:
            having = [lora for lora in loras if name in lora]
            shapes = [lora.specs[name].shape for lora in having]
            if any(math.prod(shape) != math.prod(shapes[0]) or shape[:1] != shapes[0][:1] for shape in shapes):
                listed = " and ".join(f"{label(lora)}{_model(lora)}: {shape}"
                                      for lora, shape in zip(having, shapes, strict=True))
                raise PairError(f"{shown(name)} has different shapes ({listed}): these LoRAs were trained on different base "
                                "models.")
            if len({lora.specs[name].is_vector for lora in having}) > 1:
                raise PairError(f"{shown(name)} is a matrix in one LoRA and a vector in another: they do not fit together.")
        if not common:
            examples = "; ".join(f"{label(lora)}{_model(lora)} has {shown(next(iter(lora)))} …" for lora in loras)
            raise PairError(f"These LoRAs have no module in common: {examples}")
        if self.unmatched == "error" and self.one_sided:
            name, sides = next(iter(self.one_sided.items()))
            raise PairError(f"{len(self.one_sided)} modules are in one LoRA only, the first is {shown(name)} "
                            f'(in {label(loras[sides[0]])}). Use "keep" to count them as zero on the other side, or '
                            '"drop".')

    @staticmethod
    def _spec(name: str, loras: Sequence[Lora]) -> Spec:
        specs = [lora.specs[name] for lora in loras if name in lora]
        ranks = tuple(rank for spec in specs for rank in spec.ranks)
        return Spec(sum_shape(spec.shape for spec in specs), ranks, any(spec.dense for spec in specs))

    @property
    def parents(self) -> tuple[Lora, ...]:
        return tuple(lora for _, lora in self.parts)

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {"op": "combine", "unmatched": self.unmatched,
                "terms": [{"weight": weight, "of": lora.describe(sha256)} for weight, lora in self.parts]}

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        read = [(weight, lora.read([name for name in modules if name in lora])) for weight, lora in self.parts]
        return {name: add([part[name].scaled(weight) for weight, part in read if name in part]) for name in modules}


class SelectedLora(Lora):
    """Some modules of another LoRA, weighed."""

    def __init__(self, of: Lora, selection: Selection, nullify: bool):
        self.of, self.selection, self.nullify = of, selection, nullify
        self.metadata = of.metadata
        self.weights = {name: weight for name, weight in selection.weights(of).items() if weight != 0.0}
        self.warnings = of.warnings
        for term in selection.unmatched(of):
            self.warnings += (Sentence("The selection's term {0} matches nothing in this LoRA.", shown(term)),)
        self.specs = {name: spec for name, spec in of.specs.items() if nullify or name in self.weights}

    @property
    def parents(self) -> tuple[Lora, ...]:
        return (self.of,)

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {"op": "select", "expression": self.selection.text, "nullify": self.nullify,
                "of": self.of.describe(sha256)}

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        read = self.of.read([name for name in modules if name in self.weights])
        return {name: read[name].scaled(self.weights[name]) if name in read else zero(self.specs[name])
                for name in modules}


def load(
    path: str | os.PathLike[str], ignore_unknown: bool = False, adapter_config: Mapping[str, Any] | None = None
) -> FileLora:
    """Open a LoRA file. Reads its header and scales; tensors are read when a module is asked for.

    adapter_config  the PEFT configuration that goes with it; None looks for `adapter_config.json` beside the file
    raises  FileError, UnsupportedError or TensorError if the file cannot be taken as a linear change of weights
    """
    return FileLora(read_header(path), ignore_unknown, adapter_config)


def label(lora: Lora) -> str:
    """What to call a LoRA in a message: its file name or names."""
    return " and ".join(lora.made_from) or "the LoRA"


def _model(lora: Lora) -> str:
    return f" ({lora.base_model})" if lora.base_model else ""


def batches(specs: Mapping[str, Spec], modules: Sequence[str], budget: int = BATCH_BUDGET) -> Iterator[list[str]]:
    """Cut a list of modules into runs whose factors fit into `budget` bytes of float64; never an empty run."""
    batch: list[str] = []
    used = 0
    for name in modules:
        spec = specs[name]
        size = 8 * sum(spec.ranks) * (spec.out_features + spec.in_features)
        size += 8 * spec.out_features * spec.in_features if spec.dense else 0
        if batch and used + size > budget:
            yield batch
            batch, used = [], 0
        batch.append(name)
        used += size
    if batch:
        yield batch
