"""`Lora`: an immutable, lazy mapping from module names to deltas.

Operations make a new `Lora` that remembers what it was made of; nothing is computed and no tensor is read
until something asks for a module. The tree of operations is also the recipe that is written into saved files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..errors import DiffLoraError, PairError
from ..names import families
from ..names.families import Family
from ..names.keys import FileKeys, model_order
from ..progress import Progress
from ..sentence import Sentence, printable
from ..storage.reader import FileIdentity, file_sha256
from . import cache
from .deltas import Delta, Spec, add, sum_shape, zero
from .selection import Selection, leaving_out
from .workspace import Workspace

Recipe = dict[str, Any]
LARGEST_FACTOR = 1e30  # beyond it, float32 cannot hold the change of the weights
BATCH_BUDGET = 11_000_000  # bytes of float64 factors worked on at once: what stays in the processor's cache

UNIT_KEY = "difflora.unit"  # of a file's metadata: what strength 1 means


class Lora(Mapping[str, Delta], ABC):
    """Canonical module name -> delta, in model order.

    specs       shape and rank of every module, from headers alone
    metadata    what the file or files say of themselves
    warnings    what a user should know, one line each
    """

    specs: Mapping[str, Spec]
    metadata: Mapping[str, str] = MappingProxyType({})
    warnings: tuple[Sentence, ...] = ()

    @property
    def faults(self) -> Mapping[str, DiffLoraError]:
        """What is wrong with modules that cannot be read or do not fit. They are in no other list: whoever works on all
        modules calls `check_faults` first, and a selection without them takes them away.
        """
        return {name: error for parent in self.parents for name, error in parent.faults.items()}

    def check_faults(self) -> None:
        """Raise the first of `faults`, with the selection that leaves them out."""
        if self.faults:
            raise _offering(next(iter(self.faults.values())), self.faults)

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

    @property
    def origin(self) -> Lora:
        """What this was made of, up to the first that was made of several, or of none."""
        return self.parents[0].origin if len(self.parents) == 1 else self

    @property
    def parts(self) -> tuple[tuple[float, Lora], ...]:
        """(weight, LoRA) of a sum; empty if this is none."""
        return ()

    @property
    def difference(self) -> CombinedLora | None:
        """The subtraction of two LoRAs that this was selected from or re-ranked, if it was."""
        return None

    @property
    def before_cut(self) -> Lora:
        """The same at its full rank."""
        return self

    @property
    def before_projection(self) -> Lora:
        """The LoRA that this is a projection of; itself if it is none."""
        return self

    def projected_out(self, modules: Sequence[str], workspace: Workspace) -> Tensor | None:
        """Bases (n, out, j) float64 of what is projected out of modules of one shape; their columns are orthonormal or zero."""
        return None

    def weight_of(self, module: str) -> float:
        """What a selection multiplies a module by; 0 where it writes zeros."""
        return 1.0

    @property
    def unzeroed(self) -> tuple[str, ...]:
        """The modules that no selection on the way from `origin` has written as zeros."""
        if len(self.parents) != 1:
            return self.names
        left = set(self.parents[0].unzeroed)
        return tuple(name for name in self if name in left)

    def differ_in(self, module: str) -> bool:
        """Whether the sides of a difference differ in a module, as far as the weights can tell."""
        return True

    @property
    def prepared(self) -> bool:
        """Whether all is known that the ranks depend on."""
        return True

    def prepare(self, progress: Progress | None = None) -> None:
        """Do now, once, what has to be known before the first module can be read on the way to a file.

        raises  what `check_faults` does; PairError if the sides of a difference are alike where they were chosen, before
                minutes are spent on computing zeros
        """
        self.check_faults()
        if self._worthwhile:
            return
        origin = self.origin
        for name in self.unzeroed:
            if origin.differ_in(name):
                self._worthwhile = True
                return
            if progress:
                progress(0, len(self.matrices))
        raise PairError(
            f"{label(origin)}: both sides hold the same weights, at least where they were chosen, so their difference is zero. "
            "Choose a fine-tuned model and the one that it was made from."
        )

    _worthwhile = False

    @property
    def retained_energy(self) -> float | None:
        """Share of the energy that a cut of the rank has kept; None if there was no cut."""
        return None

    is_cut = False  # whether `retained_energy` is a number, which may take work to know

    def __getitem__(self, module: str) -> Delta:
        if module in self.faults:
            raise self.faults[module]
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
    def families(self) -> tuple[Family, ...]:
        """The families of models that this may be for, as names and shapes tell. A part of a LoRA knows it from the whole."""
        agreed = {parent.families for parent in self.parents}
        if len(agreed) == 1:
            return agreed.pop()
        return families.family_of({name: spec.shape for name, spec in self.specs.items()})

    @property
    def family(self) -> Family | None:
        """The family of models; one of several that have the same names for all that is here."""
        return self.families[0] if self.families else None

    @functools.cached_property
    def base_model(self) -> str | None:
        """Which model this was trained on, for people to read. A part of a LoRA knows it from the whole."""
        agreed = {parent.base_model for parent in self.parents}
        if len(agreed) == 1 and (base := agreed.pop()):
            return base
        return families.base_model({name: spec.shape for name, spec in self.specs.items()}, self.families)

    @functools.cached_property
    def prefix(self) -> str:
        """What names that no family knows start with in the files; "" if there are none, or they differ."""
        prefixes = {file.keys_found.prefix for file in self.files}
        return prefixes.pop() if len(prefixes) == 1 else ""

    @property
    def files(self) -> tuple[StoredLora, ...]:
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
    def unit(self) -> str | None:
        """What strength 1 means, where somebody has calibrated it. Sums, weights and selections change that."""
        return None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe: equal if and only if the content is."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()

    def select(self, expression: str, nullify: bool = False) -> SelectedLora:
        """Keep the modules that `expression` picks, with its weights; see `difflora.lora.selection`.

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


class StoredLora(Lora):
    """A LoRA that is a file of its own; `lora.file` reads it.

    keys_found  the file's keys, by module
    """

    keys_found: FileKeys

    @property
    @abstractmethod
    def path(self) -> Path:
        """Where the file lies."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def unit(self) -> str | None:
        return self.metadata.get(UNIT_KEY)


class CombinedLora(Lora):
    """A weighted sum. A module that a part lacks counts as zero there, unless `unmatched` says otherwise.

    parts      (weight, lora), at least one
    unmatched  "keep", "drop" (only modules that every part has) or "error"
    raises     PairError if nothing that fits is common, or a module is one-sided or does not fit under "error"

    A module whose shapes differ is one of `faults`, and left out under "drop".
    """

    def __init__(self, parts: Sequence[tuple[float, Lora]], unmatched: str = "keep"):
        if unmatched not in ("keep", "drop", "error"):
            raise PairError(f'unmatched is {printable(unmatched)}; it can be "keep", "drop" or "error".')
        for weight, _ in parts:
            if not math.isfinite(weight):
                raise PairError(f"A weight is {weight}; it must be a finite number.")
            if abs(weight) > LARGEST_FACTOR:
                raise PairError(
                    f"A weight is {weight:g}, and its product with the values overflows. Use a smaller one."
                )
        self._parts = tuple((float(weight), lora) for weight, lora in parts)
        self.unmatched = unmatched
        loras = [lora for _, lora in parts]
        self.warnings = tuple(dict.fromkeys(line for lora in loras for line in lora.warnings))
        if len(loras) == 1:
            self.metadata = loras[0].metadata
        found = {name: error for lora in loras for name, error in lora.faults.items()}
        everything = sorted({name: None for lora in loras for name in lora if name not in found}, key=model_order)
        misfits = {name: _misfit(name, loras) for name in everything}
        having = {name: tuple(i for i, lora in enumerate(loras) if name in lora) for name in everything}
        common = [name for name in everything if len(having[name]) == len(loras)]
        strangers = [name for name in everything if misfits[name]]
        if strangers and (unmatched == "error" or 2 * len(strangers) > len(common)):
            raise PairError(str(misfits[strangers[0]]))
        if strangers:
            what = printable(", ".join(strangers[:5]) + ", …" * (len(strangers) > 5), 300)
            self.warnings += (
                Sentence(
                    "{0} modules have different shapes in these LoRAs and were left out: {1}.", len(strangers), what
                )
                if unmatched == "drop"
                else Sentence(
                    "{0} modules have different shapes in these LoRAs and can only be left out: {1}.",
                    len(strangers),
                    what,
                ),
            )
        found |= {name: PairError(str(misfits[name])) for name in strangers}
        self._faults = {} if unmatched == "drop" else found
        everything = [name for name in everything if not misfits[name]]
        common = [name for name in common if not misfits[name]]
        self.one_sided = {name: having[name] for name in everything if len(having[name]) < len(loras)}
        self._check(loras, common, found)
        self.specs = {name: self._spec(name, loras) for name in (common if unmatched == "drop" else everything)}

    def _check(self, loras: Sequence[Lora], common: Sequence[str], faults: Mapping[str, DiffLoraError]) -> None:
        if not common and faults:
            raise next(iter(faults.values()))
        if not common:
            examples = "; ".join(f"{label(lora)}{_model(lora)}: {printable(next(iter(lora)))} …" for lora in loras)
            raise PairError(f"These LoRAs have no module in common: {examples}")
        if self.unmatched == "error" and self.one_sided:
            name, sides = next(iter(self.one_sided.items()))
            raise PairError(
                f"{len(self.one_sided)} modules are in one LoRA only, the first is {printable(name)} "
                f'(in {label(loras[sides[0]])}). Use "keep" to count them as zero on the other side, or '
                '"drop".'
            )

    @property
    def faults(self) -> Mapping[str, DiffLoraError]:
        return self._faults

    @staticmethod
    def _spec(name: str, loras: Sequence[Lora]) -> Spec:
        specs = [lora.specs[name] for lora in loras if name in lora]
        ranks = tuple(rank for spec in specs for rank in spec.ranks)
        return Spec(sum_shape(spec.shape for spec in specs), ranks, any(spec.dense for spec in specs))

    @property
    def parts(self) -> tuple[tuple[float, Lora], ...]:
        return self._parts

    @property
    def difference(self) -> CombinedLora | None:
        return self if len(self.parts) == 2 else None

    @property
    def parents(self) -> tuple[Lora, ...]:
        return tuple(lora for _, lora in self.parts)

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {
            "op": "combine",
            "unmatched": self.unmatched,
            "terms": [{"weight": weight, "of": lora.describe(sha256)} for weight, lora in self.parts],
        }

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        read = [
            (weight, cache.read(lora, [name for name in modules if name in lora], lora.read))
            for weight, lora in self.parts
        ]
        return {name: add([part[name].scaled(weight) for weight, part in read if name in part]) for name in modules}


class SelectedLora(Lora):
    """Some modules of another LoRA, each with a weight."""

    def __init__(self, of: Lora, selection: Selection, nullify: bool):
        self.of, self.selection, self.nullify = of, selection, nullify
        self.metadata = of.metadata
        chosen = selection.weights([*of, *of.faults])
        self.weights = {name: weight for name, weight in chosen.items() if name not in of.faults}
        self._faults = {name: error for name, error in of.faults.items() if name in chosen}
        if not self.weights:
            self.check_faults()
        self.warnings = of.warnings
        for term in selection.unmatched([*of, *of.faults]):
            self.warnings += (Sentence("The selection's term {0} matches nothing in this LoRA.", printable(term)),)
        self.specs = {name: spec for name, spec in of.specs.items() if nullify or name in self.weights}

    @property
    def faults(self) -> Mapping[str, DiffLoraError]:
        return self._faults

    @property
    def parents(self) -> tuple[Lora, ...]:
        return (self.of,)

    @property
    def difference(self) -> CombinedLora | None:
        return self.of.difference

    def weight_of(self, module: str) -> float:
        return self.weights.get(module, 0.0) * self.of.weight_of(module)

    @property
    def unzeroed(self) -> tuple[str, ...]:
        return tuple(name for name in super().unzeroed if name in self.weights)

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {
            "op": "select",
            "expression": self.selection.text,
            "nullify": self.nullify,
            "of": self.of.describe(sha256),
        }

    def read(self, modules: Sequence[str]) -> dict[str, Delta]:
        read = cache.read(self.of, [name for name in modules if name in self.weights], self.of.read)
        return {
            name: read[name].scaled(self.weights[name]) if name in read else zero(self.specs[name]) for name in modules
        }


def narrowed(candidates: tuple[Family, ...], specs: Mapping[str, Spec]) -> tuple[Family, ...]:
    """The families among `candidates` that weight shapes leave."""
    if len(candidates) < 2:
        return candidates
    by_shape = families.family_of({name: spec.shape for name, spec in specs.items()})
    return tuple(family for family in candidates if family in by_shape) or candidates


def _offering(error: DiffLoraError, faulty: Iterable[str]) -> DiffLoraError:
    """The error with the selection that leaves out all that is faulty, if that can be said in a few words."""
    without = leaving_out(faulty)
    return error if without is None else type(error)(f"{error} To go on without it, add {without} to the selection.")


def label(lora: Lora) -> str:
    """What to call a LoRA in a message: its file name or names."""
    names = lora.made_from
    return (
        functools.reduce(lambda text, name: Sentence("{0} and {1}", text, name), names)
        if names
        else Sentence("the LoRA")
    )


def _misfit(name: str, loras: Sequence[Lora]) -> str:
    """What keeps a module of several LoRAs from being added, or nothing. A kernel may be flattened in some of them."""
    specs = [lora.specs[name] for lora in loras if name in lora]
    first = specs[0].shape
    if any(spec.shape[:1] != first[:1] or math.prod(spec.shape) != math.prod(first) for spec in specs[1:]):
        return (
            f"{printable(name)} has different shapes ({_shapes(name, loras)}): these LoRAs were trained on different base "
            'models. If the others fit, unmatched "drop" leaves it out.'
        )
    if len({spec.is_vector for spec in specs}) > 1:
        return f"{printable(name)} is a matrix in one LoRA and a vector in another: they do not fit together."
    return ""


def _shapes(name: str, loras: Sequence[Lora]) -> str:
    return " and ".join(f"{label(lora)}{_model(lora)}: {lora.specs[name].shape}" for lora in loras if name in lora)


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
