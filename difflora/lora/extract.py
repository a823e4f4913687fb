"""A LoRA from two checkpoints: the difference between a fine-tuned model and its base, at a small rank.

Weight differences are full matrices, so they are approximated with a certificate (see `krylov`), one module in memory
at a time. Checkpoints may be one file or a folder of shards; both may differ in that.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DiffLoraError, FileError, PairError
from ..names.keys import Piece, model_order, read_keys
from ..sentence import Sentence, printable
from ..storage.dtypes import CODES, FLOATS
from ..storage.reader import FileIdentity, Header, read_header, read_tensors
from .deltas import Delta, Dense, LowRank, Spec, Term, Vector
from .file import LARGEST_WEIGHT, SMALL_SIDE
from .lora import Lora, Recipe
from .lycoris import thin
from .pieces import Part, joined, joined_spec

_SHARD = re.compile(r"(?P<name>.*)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_MODEL = re.compile(r"^(?:model\.)?diffusion_model\.")
# What a quantised checkpoint stores in addition to a weight. These are not weights of the model.
_SCALE = re.compile(r"(?:^|\.)(?:scale_weight|weight_scale|weight_scale_2|scale_input|input_scale|scaled_fp8)$")


class Checkpoint:
    """The weights of a model, in one file or in shards, by the names that a LoRA's modules have.

    From a full checkpoint, which also has a VAE and a text encoder, only the weights of the diffusion model are used.

    name     what to call it in messages and recipes
    ignored  keys of weights that are not the diffusion model's
    whole    keys of weights that are stored as whole numbers, which cannot be read here
    raises   FileError if there is no such file, or two shards have the same weight
    """

    def __init__(self, files: Sequence[Path], name: str):
        self.name = name
        self.headers: list[Header] = [read_header(file) for file in files]
        for header in self.headers:
            if _is_lora(header):
                raise FileError(
                    f"{header.path.name}: this is a LoRA, not a checkpoint. For the difference of two LoRAs use subtract "
                    "(Subtract LoRAs)."
                )
        self._header_of: dict[str, Header] = {}
        for header in self.headers:
            for key, entry in header.entries.items():
                if key in self._header_of and not _SCALE.search(key):
                    raise FileError(
                        f"{self.name}: {printable(key)} is in {self._header_of[key].path.name} and in "
                        f"{header.path.name}. Is this the folder of one model?"
                    )
                if math.prod(entry.shape) > LARGEST_WEIGHT:
                    raise FileError(
                        f"{self.name}: {printable(key)} has the shape {entry.shape}: no model has such a large "
                        "weight, so the file is damaged."
                    )
                self._header_of[key] = header
        weights = [key for key in self._header_of if not _SCALE.search(key)]
        model = [key for key in weights if _MODEL.match(key)] or weights
        floats = [key for key in model if self._dtype(key) in FLOATS]
        spelled = {_as_in_a_lora(key): key for key in floats}
        found = read_keys(spelled)
        self.keys = {
            module + ".bias" * (part == "bias"): spelled[key]
            for module, parts in found.modules.items()
            for part, key in parts.items()
        }
        self.pieces = found.pieces
        known = set(self.keys.values())
        self.ignored = [key for key in weights if self._dtype(key) in FLOATS and key not in known]
        self.whole = [key for key in model if self._dtype(key) not in FLOATS and key.endswith(".weight")]

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """One file, or all files of a folder."""
        path = Path(os.path.abspath(path))
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise FileError(f"{path}: no .safetensors file in this folder.")
        if missing := sorted(_shards(path) - {file.name for file in files}) if path.is_dir() else []:
            raise FileError(
                f"{path.name}: {len(missing)} shards of this model are not there, the first is {printable(missing[0])}. "
                "Download them, or its weights would be left out."
            )
        return cls(files, path.name)

    def _dtype(self, key: str) -> str:
        return CODES[self._header_of[key].entries[key].dtype]

    def shape(self, module: str) -> tuple[int, ...]:
        key = self.keys[module]
        return self._header_of[key].entries[key].shape

    def read(self, module: str) -> Tensor:
        """A weight as float32, with the scale of a scaled fp8 checkpoint in it."""
        key = self.keys[module]
        tensor = self._tensor(key)
        for scale in (key.removesuffix(".weight") + ".scale_weight", key + "_scale"):
            if key.endswith(".weight") and scale in self._header_of:
                factor = self._tensor(scale)
                if factor.numel() != 1 and (factor.numel() != len(tensor) or factor.shape[:1] != tensor.shape[:1]):
                    raise FileError(
                        f"{self.name}: {printable(key)} of shape {tuple(tensor.shape)} has a scale of shape "
                        f"{tuple(factor.shape)}: one for all or one for each row was expected."
                    )
                tensor = tensor * factor.reshape(-1, *(1 for _ in tensor.shape[1:]))
        return tensor

    def _tensor(self, key: str) -> Tensor:
        return read_tensors(self._header_of[key], [key])[key].float()

    @property
    def files(self) -> list[FileIdentity]:
        return [header.identity for header in self.headers]


_OF_A_LORA = {"down", "up", "hada_w1_a", "lokr_w1", "lokr_w1_a", "lokr_w2", "diff", "dora_scale"}


def _is_lora(header: Header) -> bool:
    """Whether most of a file's keys are parts of adapters, and no whole weights."""
    try:
        modules = read_keys(header.entries, header.metadata, noise="high").modules
    except FileError:  # two keys that mean the same part: only adapters have parts
        return True
    parts = sum(len(_OF_A_LORA & parts.keys()) for parts in modules.values())
    return 2 * parts > sum(key.endswith(".weight") for key in header.entries)


def _shards(folder: Path) -> set[str]:
    """The files of a model in shards: those that an index names, and those that the names of others count."""
    shards = set()
    for file in folder.glob("*.safetensors"):
        if shard := _SHARD.fullmatch(file.name):
            count = int(shard["count"])
            shards |= {f"{shard['name']}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards |= {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileError(
                f"{folder.name}: the index {printable(index.name)} cannot be read, so nobody knows whether the model is "
                f"complete ({printable(repr(error))}). Download it again."
            ) from error
    return shards


def _as_in_a_lora(key: str) -> str:
    """The key that a LoRA file would have for the change of this weight."""
    for ending, part in ((".weight", ".diff"), (".bias", ".diff_b")):
        if key.endswith(ending):
            return key.removesuffix(ending) + part
    return key + ".diff"


class CheckpointDifference(Lora):
    """``tuned - base``, module by module, read when asked for.

    Only weights that both have are compared; those that one of them lacks are reported.
    Weights of different shapes are its `faults`.

    raises  PairError if few weights fit, or the two are the same files
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint):
        self.base, self.tuned = base, tuned
        if len(base.files) == len(tuned.files) and all(
            os.path.samefile(one.path, other.path) for one, other in zip(base.files, tuned.files, strict=True)
        ):
            raise PairError(
                f"{base.name} and {tuned.name} are the same file: their difference is zero. Choose a fine-tuned model "
                "and the one that it was made from."
            )
        both = sorted(base.keys.keys() & tuned.keys.keys(), key=model_order)
        self._parts: dict[str, list[tuple[str, Part]]] = {}
        self._faults: dict[str, DiffLoraError] = {
            module: PairError(
                f"{printable(tuned.keys[module])} has shape {base.shape(module)} in {base.name} but "
                f"{tuned.shape(module)} in {tuned.name}: one is not a fine-tune of the other."
            )
            for module in both
            if base.shape(module) != tuned.shape(module)
        }
        if 2 * len(self._faults) > len(both):
            raise next(iter(self._faults.values()))
        both = [module for module in both if module not in self._faults]
        if not both:
            if whole := next((model.name for model in (tuned, base) if model.whole), None):
                raise PairError(
                    f"{whole}: its weights are stored as whole numbers, which cannot be read. Use a float or fp8 "
                    "checkpoint."
                )
            raise PairError(f"{base.name} and {tuned.name} have no weight in common: different models.")
        self.warnings = tuple(_left_out(base, tuned))
        if faulty := [*self._faults]:
            self.warnings += (
                Sentence(
                    "{0} weights have different shapes in these models and can only be left out: {1}.",
                    len(faulty),
                    printable(", ".join(faulty[:5]) + ", …" * (len(faulty) > 5), 300),
                ),
            )
        self.specs = self._as_in_the_model({module: _spec(tuned.shape(module), module) for module in both})

    def _as_in_the_model(self, specs: dict[str, Spec]) -> dict[str, Spec]:
        """The checkpoints' modules in the pieces that the model has them in."""
        pieces = self.tuned.pieces
        for name in [*self._faults]:
            module = name.removesuffix(".bias")
            for target in dict.fromkeys(piece.module for piece in pieces.get(module, ())):
                self._faults[target + name[len(module) :]] = self._faults[name]
            if module in pieces:
                del self._faults[name]
        whole = {name: spec for name, spec in specs.items() if name.removesuffix(".bias") not in pieces}
        for name, spec in specs.items():
            module = name.removesuffix(".bias")
            groups: dict[str, list[Piece]] = {}
            for piece in pieces.get(module, ()):
                groups.setdefault(piece.module + name[len(module) :], []).append(piece)
            for target, group in groups.items():
                self._parts.setdefault(target, []).append((name, Part.of(spec, group)))
        for target in self._faults:
            self._parts.pop(target, None)
        for target, parts in self._parts.items():
            try:
                whole[target] = joined_spec([part for _, part in parts])
            except ValueError as error:
                raise PairError(
                    f"{self.tuned.name}: {', '.join(printable(name) for name, _ in parts)} do not make up "
                    f"{printable(target)} ({error})."
                ) from error
        return {name: whole[name] for name in sorted(whole, key=model_order)}

    @property
    def faults(self) -> Mapping[str, DiffLoraError]:
        return self._faults

    @property
    def inputs(self) -> tuple[FileIdentity, ...]:
        return tuple(dict.fromkeys((*self.base.files, *self.tuned.files)))

    @property
    def made_from(self) -> tuple[str, ...]:
        return (self.tuned.name, self.base.name)

    @property
    def parents(self) -> tuple[Lora, ...]:
        return ()

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        sides = (("base", self.base), ("tuned", self.tuned))
        return {"op": "extract"} | {
            side: {"file": model.name, "sha256": [sha256(file) for file in model.files]} for side, model in sides
        }

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        return {module: self._read(module) for module in modules}

    def _read(self, module: str) -> Delta:
        spec = self.specs[module]
        if parts := self._parts.get(module):
            deltas = [self._change(name, part.spec) for name, part in parts]
            return joined([part for _, part in parts], deltas, spec)
        return self._change(module, spec)

    def _change(self, module: str, spec: Spec) -> Delta:
        change = self.tuned.read(module) - self.base.read(module)
        if spec.is_vector:
            return Vector(change)
        if spec.dense:
            return Dense(((change.flatten(1), 1.0),), (), spec.shape)
        up, down = thin(change)
        return LowRank((Term(up, down),), spec.shape)

    def differ_in(self, module: str) -> bool:
        """Whether any weight differs between the two."""
        return any(not torch.equal(self.tuned.read(name), self.base.read(name)) for name in self._names(module))

    def _names(self, module: str) -> list[str]:
        """What the checkpoints call the pieces of a module."""
        return [name for name, _ in self._parts.get(module, ())] or [module]

    def check_finite(self, module: str) -> None:
        for model in (self.base, self.tuned) if module in self.specs else ():
            for name in self._names(module):
                if not bool(torch.isfinite(model.read(name)).all()):
                    raise FileError(f"{model.name}: {printable(model.keys[name])} holds NaN or infinite values.")


def _left_out(base: Checkpoint, tuned: Checkpoint) -> Iterator[Sentence]:
    for model, other in ((tuned, base), (base, tuned)):
        only = [key for module, key in model.keys.items() if module not in other.keys]
        if only:
            yield Sentence(
                "{0} weights are in {1} only, and left out: {2} …", len(only), model.name, printable(only[0])
            )
        if model.whole:
            yield Sentence(
                "{0}: {1} weights are stored as whole numbers, and left out: {2} …",
                model.name,
                len(model.whole),
                printable(model.whole[0]),
            )
    if tuned.ignored:
        yield Sentence(
            "{0}: {1} keys were ignored, the first is {2}.",
            tuned.name,
            len(tuned.ignored),
            printable(min(tuned.ignored)),
        )


def _spec(shape: tuple[int, ...], module: str) -> Spec:
    size = torch.Size(shape)
    if len(shape) < 2 or module.endswith("modulation"):
        return Spec(shape)
    side = min(shape[0], size.numel() // max(1, shape[0]))
    return Spec(shape, dense=True) if side > SMALL_SIDE else Spec(shape, (side,))


def extract(base: str | os.PathLike[str], tuned: str | os.PathLike[str]) -> CheckpointDifference:
    """The difference of two checkpoints (files, or folders of shards), to be re-ranked and saved like any other.

    raises  FileError or PairError if they cannot be read or do not fit together
    """
    return CheckpointDifference(Checkpoint.at(base), Checkpoint.at(tuned))
