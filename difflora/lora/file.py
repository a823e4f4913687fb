"""A LoRA in a safetensors file: which tensors make which module, at which scale, read when they are asked for."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffLoraError, FileError, TensorError, UnsupportedError
from ..names import trainers
from ..names.families import Family
from ..names.keys import WHOLE_WEIGHTS, Piece, model_order, read_keys
from ..sentence import Sentence, printable
from ..storage.dtypes import CODES, FLOATS
from ..storage.reader import FileIdentity, Header, check_finite, file_sha256, read_header, read_tensors
from . import lycoris
from .adapter_config import NO_CONFIG, AdapterConfig
from .deltas import Delta, Dense, Kronecker, LowRank, Spec, Term, Vector, multiplied_out
from .lora import Lora, Recipe, StoredLora, narrowed
from .pieces import Part, is_same_change, joined, joined_spec

SMALL_SIDE = 512  # a matrix with a side this small already is a product of factors: itself and an identity
LARGEST_WEIGHT = 2**31  # values in one tensor; an embedding of a large language model has a billion
LARGEST_PRODUCT = 2**29  # the same, where a small file stands for the weight: FLUX.2's largest has 340 million
LARGEST_SCALE = 1e30  # of alpha / rank; more is damage, and overflows
DENSE_SHARE = 0.5  # factors of a larger rank than this share of the smaller side are no smaller than the matrix


# Parts of a module that change a weight in a way that is not additive.
_NOT_LINEAR = {
    "dora_scale": "this is a DoRA. It scales whole weights, which is not linear in them, so a difference of two would not be "
    "exact.",
    "reshape_weight": "this is the shape to which the model's weight is padded before the LoRA is added, as control LoRAs do. "
    "The change of a weight of another shape cannot be subtracted.",
    "set_weight": "this takes the place of the model's weight. Without that weight, what it changes is not known.",
}
# Parts that are a single number: multipliers of the factors, and switches.
_NUMBERS = ("alpha", "scalar", "scaling", "use_rslora_flag", "use_dora_flag")


class FileLora(StoredLora):
    """One safetensors file, in any dialect.

    noise   which of Wan2.2's two models this is the LoRA of, if the file holds both
    """

    noise: str | None = None

    def __init__(
        self,
        header: Header,
        ignore_unknown: bool = False,
        adapter_config: Mapping[str, Any] | None = None,
        noise: str | None = None,
    ):
        self.header = header
        self.metadata = MappingProxyType(dict(header.metadata))
        try:
            self.keys_found = read_keys(
                header.entries, header.metadata, noise, lambda key: header.entries[key].shape, self._is_same
            )
        except FileError as error:
            raise FileError(f"{self.name}: {error}") from error
        self.dialect = self.keys_found.dialect
        self._refuse_foreign_keys(ignore_unknown)
        numbers = self._read_numbers()
        adapter = self._adapter = AdapterConfig.of(header, adapter_config)
        if adapter.beside:
            self.warnings += (
                Sentence("{0}: its scale comes from {1} beside it; keep the two together.", self.name, adapter.name),
            )
        if adapter.rivals and any(self._needs_alpha(parts) for parts in self.keys_found.modules.values()):
            self.warnings += (
                Sentence(
                    "{0}: adapter_config.json beside it was not used, because {1} .safetensors files lie there "
                    "and it does not say whose it is. Without it the scale is 1; if it is this file's, put the "
                    "two into a folder of their own.",
                    self.name,
                    adapter.rivals,
                ),
            )
        if other := self.keys_found.other_noise:
            self.noise = noise
            self.warnings += (
                Sentence(
                    "{0}: {1} keys of the model for {2} noise were left out.",
                    self.name,
                    len(other),
                    "low" if noise == "high" else "high",
                ),
            )
        if missing := self.keys_found.strangers:
            self.warnings += (
                Sentence(
                    "{0}: {1} of {2} modules are not in {3} ({4}). They do nothing unless your model has them.",
                    self.name,
                    len(missing),
                    len(self.keys_found.modules),
                    self.keys_found.families[0].name,
                    printable(", ".join(missing[:5]) + ", …" * (len(missing) > 5), 300),
                ),
            )
        self._twice = list(self.keys_found.twice)
        if front := self.keys_found.front:
            self.warnings += (
                Sentence(
                    "{0}: all names begin with {1}, which no known model has; without it, its names would be known. They do "
                    "nothing unless your model has them.",
                    self.name,
                    printable(front, 60),
                ),
            )
        self.alphas: dict[str, float] = {}
        self._faults: dict[str, DiffLoraError] = {}
        sources: dict[str, _Source] = {}
        for module, parts in self.keys_found.modules.items():
            try:
                found = dict(self._module_sources(module, parts, numbers, adapter))
                for name, source in found.items():
                    self._check_size(name, source)
            except (TensorError, UnsupportedError) as error:
                self._note_fault(module, error)
            else:
                sources |= found
        self._sources = self._as_in_the_model(sources) if self.keys_found.pieces else sources
        if self._twice:
            self.warnings += (
                Sentence(
                    "{0}: {1} modules are there twice, in two spellings with the same change ({2}). Each is read once.",
                    self.name,
                    len(self._twice),
                    printable(", ".join(self._twice[:3]) + ", …" * (len(self._twice) > 3), 200),
                ),
            )
        for hint in (self._strength_hint(numbers), self._alpha_hint()):
            if hint:
                self.warnings += (hint,)
        if faulty := [*self._faults]:
            if not self._sources:
                raise self._faults[faulty[0]]
            self.warnings += (
                Sentence(
                    "{0}: {1} modules cannot be read and can only be left out: {2}.",
                    self.name,
                    len(faulty),
                    printable(", ".join(faulty[:5]) + ", …" * (len(faulty) > 5), 300),
                ),
            )
        if not self._sources and self.keys_found.text_encoder:
            raise FileError(
                f"{self.name}: only encoder keys (of text or images) in this file ({len(self.keys_found.text_encoder)}), and a slider "
                "works on the diffusion model. Choose a LoRA of that."
            )
        if not self._sources:
            raise FileError(f"{self.name}: no LoRA weights in this file ({len(header.entries)} other tensors).")
        self.specs = {name: source.spec for name, source in self._sources.items()}
        if not any(not spec.is_vector for spec in self.specs.values()):
            self.warnings += (Sentence("{0} changes no weight matrix, only biases, norms or modulation.", self.name),)

    @property
    def faults(self) -> Mapping[str, DiffLoraError]:
        return self._faults

    def _note_fault(self, module: str, error: DiffLoraError) -> None:
        self._faults[module] = type(error)(str(error))  # without the frames that the error holds
        self.alphas.pop(module, None)

    def _check_size(self, module: str, source: _Source) -> None:
        sizes = [math.prod(self.header.entries[key].shape) for key in source.keys]
        if not all(sizes):
            raise TensorError(
                f"{self.name}: {printable(source.keys[sizes.index(0)])} holds no values: the file is damaged."
            )
        limit = LARGEST_PRODUCT if isinstance(source, _FormSource) and source.form is not _FULL else LARGEST_WEIGHT
        if max(*sizes, math.prod(source.spec.shape)) > limit:
            raise TensorError(
                f"{self.name}: {printable(module)} would change a weight of shape {source.spec.shape}: no model has "
                "such a large one, so the file is damaged."
            )
        if not abs(source.scale) < LARGEST_SCALE:
            raise TensorError(
                f"{self.name}: the scale of {printable(module)} (alpha / rank) is {source.scale:.3g}: the file is damaged."
            )

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def parents(self) -> tuple[Lora, ...]:
        return ()

    @property
    def files(self) -> tuple[StoredLora, ...]:
        return (self,)

    @property
    def inputs(self) -> tuple[FileIdentity, ...]:
        return (self.header.identity,)

    @property
    def made_from(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def families(self) -> tuple[Family, ...]:
        return narrowed(self.keys_found.families, self.specs)

    @functools.cached_property
    def base_model(self) -> str | None:
        return trainers.wan22(super().base_model, self.metadata)

    @property
    def trainer(self) -> str | None:
        """The program that made the file, as its metadata and keys tell."""
        # diffusion-pipe leaves PEFT's configuration beside the model's own names.
        by_pipe = self._adapter.beside and self.dialect == "native"
        return trainers.trainer(self.metadata, self.dialect) or ("diffusion-pipe" if by_pipe else None)

    @property
    def scales(self) -> dict[str, float]:
        """What each matrix's product of factors is multiplied by: alpha / rank, or as a configuration says."""
        return {name: source.scale for name, source in self._sources.items() if not source.spec.is_vector}

    @property
    def sha256(self) -> str:
        return file_sha256(self.header.identity)

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        recipe = {"op": "load", "file": self.name, "sha256": sha256(self.header.identity)}
        if self.noise:
            recipe["noise"] = self.noise
        # A configuration beside the file is part of the content, but not of the hash.
        return recipe | ({"adapter_config": self._adapter.config} if self._adapter.beside else {})

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        tensors = read_tensors(self.header, [key for module in modules for key in self._sources[module].keys])
        return {
            module: self._sources[module].delta([tensors[key] for key in self._sources[module].keys])
            for module in modules
        }

    def check_finite(self, module: str) -> None:
        if source := self._sources.get(module):
            for key, tensor in read_tensors(self.header, source.keys).items():
                check_finite(self.name, key, tensor)

    def _is_same(self, key: str, other: str) -> bool:
        """Whether two keys hold the same values."""
        entries = self.header.entries
        if entries[key].shape != entries[other].shape or entries[key].dtype != entries[other].dtype:
            return False
        return torch.equal(*read_tensors(self.header, (key, other)).values())

    def _refuse_foreign_keys(self, ignore_unknown: bool) -> None:
        found = self.keys_found
        ignored = found.unknown + found.markers
        for reason, keys in found.foreign.items():
            beside = reason == WHOLE_WEIGHTS and bool(found.modules)  # not a checkpoint
            if beside and ignore_unknown:
                ignored += keys
                continue
            if reason == WHOLE_WEIGHTS and not found.modules:
                raise UnsupportedError(
                    f"{self.name}: {printable(keys[0])} and {len(keys) - 1} more keys: {reason}. For the difference of two "
                    "checkpoints use extract (Extract LoRA)."
                )
            raise UnsupportedError(
                f"{self.name}: {printable(keys[0])} (keys of this kind: {len(keys)}): {reason}."
                + " ignore_unknown (--ignore-unknown) goes on without them." * beside
            )
        for part, reason in _NOT_LINEAR.items():
            if key := next((parts[part] for parts in found.modules.values() if part in parts), None):
                raise UnsupportedError(f"{self.name}: {printable(key)}: {reason} Train plain LoRAs for a slider.")
        if found.changing:
            raise UnsupportedError(
                f"{self.name}: {printable(found.changing[0])}: this may change the numbers of the factors beside it, and "
                "how is not known here. Convert the file to one without such keys."
            )
        if found.unknown and not ignore_unknown:
            raise UnsupportedError(
                f"{self.name}: keys that are not understood: {len(found.unknown)}, the first is {printable(found.unknown[0])}. "
                "Nothing was left out silently; ignore_unknown (--ignore-unknown) goes on without them."
            )
        if ignored:
            self.warnings += (
                Sentence(
                    "{0}: {1} keys were ignored, the first is {2}.", self.name, len(ignored), printable(min(ignored))
                ),
            )
        if found.text_encoder:
            self.warnings += (
                Sentence(
                    "{0}: {1} encoder keys were left out (of text or images): the slider works on the diffusion model.",
                    self.name,
                    len(found.text_encoder),
                ),
            )

    def _as_in_the_model(self, sources: Mapping[str, _Source]) -> dict[str, _Source]:
        """The file's modules in the pieces that the model has them in, in the model's order."""
        pieces = self.keys_found.pieces
        whole = {name: source for name, source in sources.items() if name.removesuffix(".bias") not in pieces}
        parts: dict[str, list[tuple[str, Part, _Source]]] = {}
        for name, source in sources.items():
            module = name.removesuffix(".bias")
            by_target: dict[str, list[Piece]] = {}
            for piece in pieces.get(module, ()):
                by_target.setdefault(piece.module + name[len(module) :], []).append(piece)
            for target, own in by_target.items():
                parts.setdefault(target, []).append((name, Part.of(source.spec, own), source))
        # Trainers that split, and files written from fused ones, do it everywhere or nowhere: one module shows it.
        shares: bool | None = None
        for module in self._faults.keys() & pieces.keys():
            error = self._faults.pop(module)
            for target in dict.fromkeys(piece.module for piece in pieces[module]):
                self._faults[target] = error
                parts.pop(target, None)
        for target, group in parts.items():
            names = ", ".join(printable(name) for name, _, _ in group)
            if target in whole:
                if self._adds_up_to(whole[target], [(part, one) for _, part, one in group]):
                    self._twice.append(target)
                    continue
                raise FileError(
                    f"{self.name}: {printable(target)} is there as a whole and in parts ({names}), and the two are not the "
                    "same change: the file holds two LoRAs at once, or was put together wrongly. Split it, or convert it "
                    "again."
                )
            may_share = len(group) > 1 and all(type(source) is _Source for _, _, source in group)
            if may_share and shares is not False and not group[0][2].spec.is_vector:
                shares = self._share_down([source for _, _, source in group])
            try:
                whole[target] = _JoinedSource([(part, one) for _, part, one in group], may_share and bool(shares))
            except ValueError as error:
                misfit = TensorError(
                    f"{self.name}: {names} are parts of {printable(target)}, but do not fit together ({error}): the file "
                    "is damaged, or for another model."
                )
                self._note_fault(target, misfit)
        return {name: whole[name] for name in sorted(whole, key=model_order)}

    def _adds_up_to(self, whole: _Source, parts: Sequence[tuple[Part, _Source]]) -> bool:
        """Whether a module's parts, which the file has beside it, are the same change."""
        try:
            joined_parts = _JoinedSource(parts, shares_down=False)
        except ValueError:
            return False

        def delta(source: _Source) -> Delta:
            tensors = read_tensors(self.header, source.keys)
            return source.delta([tensors[key] for key in source.keys])

        return is_same_change(delta(whole), delta(joined_parts))

    def _share_down(self, sources: Sequence[_Source]) -> bool:
        """Whether the parts of a module are cuts of one product, as this pack writes them."""
        if (
            len({(source.scale, source.spec.ranks, source.spec.shape[1:], source.scaled) for source in sources}) > 1
            or sources[0].scaled
        ):
            return False
        keys = [source.keys[1] for source in sources]
        first, *others = read_tensors(self.header, keys).values()
        return all(first.dtype == other.dtype and torch.equal(first, other) for other in others)

    @staticmethod
    def _needs_alpha(parts: Mapping[str, str]) -> bool:
        return not {"alpha", "scaling"} & parts.keys() and not parts.keys() <= {"diff", "bias"}

    def _read_numbers(self) -> dict[str, float]:
        """Key -> value, of all parts that are one number."""
        modules = [*self.keys_found.modules.values(), self.keys_found.flags]
        keys = [parts[part] for parts in modules for part in _NUMBERS if part in parts]
        for key in keys:
            if math.prod(self.header.entries[key].shape) != 1:
                raise TensorError(
                    f"{self.name}: {printable(key)} must be one number, but has shape {self.header.entries[key].shape}."
                )
        numbers = {key: float(tensor) for key, tensor in read_tensors(self.header, keys).items()}
        for part in ("use_rslora_flag", "use_dora_flag"):
            for key in (parts[part] for parts in modules if part in parts):
                if numbers[key] not in (0.0, 1.0):
                    raise TensorError(f"{self.name}: {printable(key)} is {numbers[key]}, neither 0 nor 1.")
                if part == "use_dora_flag" and numbers[key]:
                    raise UnsupportedError(
                        f"{self.name}: {printable(key)}: {_NOT_LINEAR['dora_scale']} Train plain LoRAs for a slider."
                    )
        return numbers

    def _strength_hint(self, numbers: Mapping[str, float]) -> Sentence | None:
        """What to say of LoKrs stored in full whose alpha is not the dim that they were trained with."""
        try:
            dim = float(self.metadata.get("ss_network_dim", ""))
        except ValueError:
            return None
        full = {"lokr_w1", "lokr_w2", "alpha"}
        alphas = {numbers[parts["alpha"]] for parts in self.keys_found.modules.values() if full <= parts.keys()}
        other = next((alpha for alpha in alphas if math.isfinite(alpha) and alpha not in (dim, 0.0)), None)
        if other is None or not (math.isfinite(dim) and dim > 0):
            return None
        return Sentence(
            "{0}: alpha is {1} and ss_network_dim {2}. LoKr in full is read at scale 1, as everywhere; if its trainer "
            "multiplied by alpha / dim, the right strength is {3}.",
            self.name,
            f"{other:g}",
            f"{dim:g}",
            f"{other / dim:.4g}",
        )

    def _alpha_hint(self) -> Sentence | None:
        """What to say if the metadata have an alpha that no tensor and no configuration has: no reader uses it."""
        modules = [parts for parts in self.keys_found.modules.values() if "down" in parts]
        try:
            alpha, dim = (float(self.metadata.get(f"ss_network_{name}", "")) for name in ("alpha", "dim"))
        except ValueError:
            return None
        is_said = self.alphas or not modules or not all(self._needs_alpha(parts) for parts in modules)
        if is_said or not (0 < dim < math.inf and 0 < alpha < math.inf) or alpha == dim:
            return None
        return Sentence(
            "{0}: only the metadata have an alpha ({1} at rank {2}). It is read at scale 1, as ComfyUI does; if its trainer "
            "multiplied by alpha / rank, the right strength is {3}.",
            self.name,
            f"{alpha:g}",
            f"{dim:g}",
            f"{alpha / dim:.4g}",
        )

    def _scale(
        self, module: str, parts: Mapping[str, str], rank: int, numbers: Mapping[str, float], adapter: AdapterConfig
    ) -> float:
        """What a module's product of factors is multiplied by; notes the alpha that it comes from."""
        values = {part: numbers[parts[part]] for part in ("alpha", "scalar", "scaling") if part in parts}
        for part, value in values.items():
            if not math.isfinite(value):
                raise TensorError(f"{self.name}: {printable(parts[part])} is {value}: the file is damaged.")
        flag = {**self.keys_found.flags, **parts}.get("use_rslora_flag")
        rslora = bool(numbers[flag]) if flag else None
        scale, alpha = adapter.scale(module, parts, rank, values.get("alpha"), rslora)
        if "scaling" in values:
            if "alpha" in values and not math.isclose(values["scaling"], scale, rel_tol=0.01):
                raise TensorError(
                    f"{self.name}: {printable(parts['scaling'])} is {values['scaling']:.4g}, but by "
                    f"{printable(parts['alpha'])} the scale is {scale:.4g}: the two disagree, so it is unknown."
                )
            scale, alpha = values["scaling"], values.get("alpha")
        if alpha is not None:
            self.alphas[module] = alpha
        return scale * values.get("scalar", 1.0)

    def _module_sources(
        self, module: str, parts: dict[str, str], numbers: Mapping[str, float], adapter: AdapterConfig
    ) -> Iterator[tuple[str, _Source]]:
        """What each of a module's parameters changes by: its weight, its bias."""
        left = set(parts) - {"use_rslora_flag", "use_dora_flag"}
        entries = self.header.entries
        for part, key in parts.items():
            if part not in _NUMBERS and CODES[entries[key].dtype] not in FLOATS:
                raise TensorError(f"{self.name}: {printable(key)} holds {entries[key].dtype} values, not weights.")
        scale = 1.0
        if other := next((form for form in _FORMS if form.belongs(parts)), None):
            used = [part for part in other.parts if part in parts]
            left -= {*used, "alpha", "scalar", "scaling"}
            shape, rank, divisor = self._form_shape(module, other, {part: parts[part] for part in used})
            divisor = divisor or adapter.rank_of(module, parts)
            if divisor is not None:
                scale = self._scale(module, parts, divisor, numbers, adapter)
            else:  # alpha is not used here, and overflows in the files of some trainers
                without = {part: key for part, key in parts.items() if part != "alpha"}
                scale = self._scale(module, without, 1, numbers, NO_CONFIG)
            yield module, _FormSource(other, {part: parts[part] for part in used}, shape, rank, scale)
        elif "down" in parts or "up" in parts:
            left -= {"down", "up", "alpha", "scalar", "scaling", "down_scale", "up_scale"}
            if not ("down" in parts and "up" in parts):
                have, lack = ("down", "up") if "down" in parts else ("up", "down")
                raise TensorError(
                    f"{self.name}: {printable(module)} has {printable(parts[have])}, but nothing for its {lack} side: "
                    "the file is damaged."
                )
            up, down = entries[parts["up"]].shape, entries[parts["down"]].shape
            shape, rank = self._low_rank_shape(module, parts, up, down)
            scale = self._scale(module, parts, rank, numbers, adapter)
            scaled = tuple(part for part in ("up_scale", "down_scale") if part in parts)
            for part in scaled:
                self._check_rows(parts[part], entries[parts[part.removesuffix("_scale")]].shape[0])
            keys = (parts["up"], parts["down"], *(parts[part] for part in scaled))
            yield module, _Source(keys, Spec(shape, (rank,)), scale, scaled)
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
            raise TensorError(
                f"{self.name}: {printable(parts['alpha'])} is there, but nothing that it scales: the factors of "
                f"{printable(module)} are missing, so the file is incomplete."
            )
        if left:
            part = sorted(left)[0]
            raise UnsupportedError(
                f"{self.name}: {printable(parts[part])}: {printable(module)} holds this beside "
                f"{printable(next((parts[p] for p in parts if p not in left), 'nothing else'))}. What the two "
                "do together is not known, so the file cannot be subtracted."
            )

    def _check_rows(self, key: str, rows: int) -> None:
        """A factor's own scale: one number, or one for each row."""
        shape = self.header.entries[key].shape
        if math.prod(shape) != 1 and shape not in ((rows,), (rows, 1)):
            raise UnsupportedError(
                f"{self.name}: {printable(key)} has shape {shape}; a scale of one number, or of one for each of the "
                f"{rows} rows, can be read. Convert the file to one without such keys."
            )

    def _form_shape(
        self, module: str, form: _Form, parts: Mapping[str, str]
    ) -> tuple[tuple[int, ...], int, int | None]:
        shapes = {part: self.header.entries[key].shape for part, key in parts.items()}
        try:
            shape, rank, divisor = form.shape(shapes)
            if rank == 0 or 0 in shape:
                raise ValueError
        except (KeyError, ValueError, IndexError) as error:
            listed = ", ".join(f"{printable(parts[part])} {size}" for part, size in shapes.items())
            raise TensorError(
                f"{self.name}: the parts of {printable(module)} do not fit together ({listed}): the file is damaged or "
                "from an unknown trainer."
            ) from error
        return shape, rank, divisor

    def _low_rank_shape(
        self, module: str, parts: dict[str, str], up: tuple[int, ...], down: tuple[int, ...]
    ) -> tuple[tuple[int, ...], int]:
        kernel_on_up = math.prod(up[2:])
        if len(up) < 2 or len(down) < 2 or kernel_on_up != 1 or 0 in up + down or up[1] != down[0]:
            why = "the ranks differ" if len(up) > 1 and len(down) > 1 and up[1] != down[0] else "they do not fit"
            raise TensorError(
                f"{self.name}: {printable(module)} has {printable(parts['down'])} of shape {down} but {printable(parts['up'])} of shape "
                f"{up}: {why}, so the file is damaged or from an unknown trainer."
            )
        kernel = down[2:] if any(size != 1 for size in down[2:]) else ()
        return (up[0], down[1], *kernel), down[0]


class _Source:
    """The tensors of a file that make up one delta, and how they do.

    scaled  which factors are multiplied by the further tensors, row by row: "up_scale", "down_scale"
    """

    def __init__(self, keys: tuple[str, ...], spec: Spec, scale: float, scaled: tuple[str, ...] = ()):
        self.keys, self.spec, self.scale, self.scaled = keys, spec, scale, scaled

    def delta(self, tensors: Sequence[Any]) -> Delta:
        if self.spec.is_vector:
            return Vector(tensors[0].float() * self.scale if self.scale != 1.0 else tensors[0].float())
        up, down = (tensor if tensor.ndim == 2 else tensor.flatten(1) for tensor in tensors[:2])
        for which, rows in zip(self.scaled, tensors[2:], strict=True):
            # float64: the product of two stored values is then exact.
            if which == "up_scale":
                up = up.double() * rows.double().reshape(-1, 1)
            else:
                down = down.double() * rows.double().reshape(-1, 1)
        return LowRank((Term(up, down, self.scale),), self.spec.shape)


class _JoinedSource(_Source):
    """A module that the file has in other pieces than the model."""

    def __init__(self, parts: Sequence[tuple[Part, _Source]], shares_down: bool):
        self.parts = [part for part, _ in parts]
        self.sources = [source for _, source in parts]
        self.shares_down = shares_down and not self.sources[0].spec.is_vector
        super().__init__(
            tuple(key for source in self.sources for key in source.keys),
            joined_spec(self.parts, self.shares_down),
            max((source.scale for source in self.sources), key=abs),
        )

    def delta(self, tensors: Sequence[Any]) -> Delta:
        left = list(tensors)
        deltas = []
        for source in self.sources:
            deltas.append(source.delta(left[: len(source.keys)]))
            del left[: len(source.keys)]
        return joined(self.parts, deltas, self.spec, self.shares_down)


@dataclass(frozen=True)
class _Form:
    """An adapter that is not stored as up and down: which parts it has, its shape by headers, its factors, its matrix."""

    marks: tuple[str, ...]
    parts: tuple[str, ...]
    shape: Callable[[Mapping[str, tuple[int, ...]]], tuple[tuple[int, ...], int, int | None]]
    factors: Callable[[Mapping[str, Tensor]], lycoris.Factors]
    full: Callable[[Mapping[str, Tensor]], Tensor | Kronecker]

    def belongs(self, parts: Mapping[str, str]) -> bool:
        return not parts.keys().isdisjoint(self.marks)


def _product_of(factors: Callable[[Mapping[str, Tensor]], lycoris.Factors]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def full(parts: Mapping[str, Tensor]) -> Tensor:
        up, down = factors(parts)
        return up @ down

    return full


def _sides(parts: Mapping[str, Tensor]) -> Kronecker:
    return Kronecker(*lycoris.kronecker_sides(parts))


_FORMS = (
    _Form(("mid",), ("up", "mid", "down"), lycoris.middle_shape, lycoris.middle, _product_of(lycoris.middle)),
    _Form(
        lycoris.LOHA, (*lycoris.LOHA, "hada_t1", "hada_t2"), lycoris.loha_shape, lycoris.hadamard, lycoris.hadamard_full
    ),
    _Form(lycoris.LOKR, lycoris.LOKR, lycoris.lokr_shape, lycoris.kronecker, _sides),
)
_FULL = _Form(
    ("diff",),
    ("diff",),
    lambda shapes: (shapes["diff"], 0, None),
    lambda parts: lycoris.thin(parts["diff"]),
    lambda parts: parts["diff"].flatten(1),
)


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
                kept = full if isinstance(full, Kronecker) else full.float()
                return Dense(((kept, self.scale),), (), self.spec.shape)
            up, down = lycoris.thin(multiplied_out(full))
        else:
            up, down = self.form.factors(parts)
        return LowRank((Term(up, down, self.scale),), self.spec.shape)


def load(
    path: str | os.PathLike[str],
    ignore_unknown: bool = False,
    adapter_config: Mapping[str, Any] | None = None,
    noise: str | None = None,
) -> FileLora:
    """Open a LoRA file. Reads its header and scales; tensors are read when a module is asked for.

    adapter_config  the PEFT configuration that goes with it; None looks for `adapter_config.json` beside the file
    noise           "high" or "low": whose LoRA to take from a file that holds those of Wan2.2's two models
    raises  FileError, UnsupportedError or TensorError if the file cannot be taken as a linear change of weights. If that is
            so of some modules only, they are the LoRA's `faults`.
    """
    return FileLora(read_header(path), ignore_unknown, adapter_config, noise)
