"""How a `Lora` becomes a file: keys, dtype, metadata, and one pass that never holds the whole result."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch import Tensor

from ..errors import OutputError
from ..lora import cache
from ..lora.deltas import Delta, Dense, LowRank
from ..lora.lora import UNIT_KEY, Lora
from ..lora.pieces import cut, cut_rows
from ..names import families
from ..names.keys import KOHYA, NATIVE, OUTPUT_DIALECTS, ending, with_kernel, written
from ..progress import Progress, part_of
from ..rank.rerank import check_something_left
from ..storage.dtypes import OUTPUT_DTYPES
from ..storage.reader import file_sha256
from ..storage.writer import Draft, Layout, NotFiniteError, check_target, draft_file, now, publish
from ..version import __version__

_WITH_ALPHA = (NATIVE, KOHYA)  # diffusers and PEFT have no such tensor in their own files
# The largest error that rounding to a one-byte dtype may cause, as a share of the whole. It is 4 to 8 % if the values fit.
LARGEST_LOSS = 0.2
LONGEST_COPIED = 1000  # characters of a metadata value taken over from an input
RECIPE_KEY = "difflora.recipe"
ENERGY_KEY = "difflora.retained_energy"
STRENGTH_KEY = "difflora.recommended_strength"


def save(
    lora: Lora,
    path: str | os.PathLike[str],
    dtype: str | torch.dtype = "float32",
    dialect: str = NATIVE,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a LoRA as a safetensors file that appears only when it is complete.

    dtype      "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2" or a torch dtype
    dialect    one of `OUTPUT_DIALECTS`; alpha is written as the rank or not at all, so every reader's scale is 1
    metadata   entries to add, or to replace ours with
    progress   called with (done, total) modules; may raise to cancel
    raises     OutputError if it cannot be written, TensorError if an input holds NaN or Inf, PairError if a sum of
               LoRAs is zero in every module
    """
    with drafted(lora, path, dtype, dialect, overwrite, metadata, progress) as draft:
        publish([draft])
    return draft.path


def read_by_comfyui(lora: Lora, dialect: str) -> int | None:
    """How many of a LoRA's modules ComfyUI (0.33) finds by the names of a dialect; None for a model that is not known."""
    family = lora.family
    if family is None:
        return None
    modules = [name.removesuffix(".bias") for name in lora.specs]
    return sum(
        all(families.comfyui_reads(one.name, family) for one in written(name, dialect, family, lora.prefix))
        for name in modules
    )


@contextlib.contextmanager
def drafted(
    lora: Lora,
    path: str | os.PathLike[str],
    dtype: str | torch.dtype = "float32",
    dialect: str = NATIVE,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Iterator[Draft]:
    """Like `save`, but the file has a temporary name until `storage.publish` renames it, alone or with others.

    If it is not published, it is deleted on exit.
    """
    path = Path(path)
    torch_dtype = _dtype(dtype)
    if dialect not in OUTPUT_DIALECTS:
        raise OutputError(f"There is no dialect {dialect!r}; choose one of {', '.join(OUTPUT_DIALECTS)}.")
    check_target(path, overwrite)
    no_more = threading.Event()
    with contextlib.ExitStack() as kept:
        with ThreadPoolExecutor(1) as pool:
            # Hashing the inputs uses neither Python nor the maths library, so it runs in parallel with the algebra.
            hashes = [pool.submit(file_sha256, file, no_more) for file in lora.inputs]

            def tick(done: int) -> None:
                if progress:
                    progress(done, len(lora))

            def described() -> Mapping[str, str]:
                check_something_left(lora)  # only now are the spectra known
                while wait(hashes, 0.1).not_done:
                    tick(len(lora))
                return _metadata(lora, path.stem, torch_dtype, dialect) | dict(metadata or {})

            try:
                before, progress = (
                    (progress, progress) if lora.prepared else (part_of(progress, 0, 2), part_of(progress, 1, 2))
                )
                lora.prepare(before)
                writer = _Writer(lora, torch_dtype, dialect)
                placeholder = _metadata(lora, path.stem, torch_dtype, dialect, known=False) | dict(metadata or {})
                draft = kept.enter_context(
                    draft_file(path, writer.plan, writer.tensors(progress), placeholder, described, overwrite)
                )
            except NotFiniteError as error:
                module, _ = writer.module_of[error.key]
                lora.check_finite(module)
                raise OutputError(
                    f"{module}: its values do not fit into {torch_dtype}. Write float32 or bfloat16."
                ) from error
            finally:
                # After an error or a cancel, nobody waits for the hash of a checkpoint.
                no_more.set()
                for future in hashes:
                    future.cancel()
        yield draft


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        if dtype in OUTPUT_DTYPES.values():
            return dtype
    elif dtype in OUTPUT_DTYPES:
        return OUTPUT_DTYPES[dtype]
    raise OutputError(f"Cannot write {dtype}; choose one of {', '.join(OUTPUT_DTYPES)}.")


class _Writer:
    """Produces a file's tensors in the order of its plan, reading modules in small batches on the way."""

    def __init__(self, lora: Lora, dtype: torch.dtype, dialect: str):
        self.lora, self.dtype = lora, dtype
        self._energy = self._lost = 0.0  # (‖up‖ ‖down‖)² of all modules, and what rounding changes of it
        family = lora.family
        sizes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self.module_of: dict[str, tuple[str, str]] = {}
        self.rows_of: dict[str, tuple[tuple[families.Rows | None, families.Rows | None], ...]] = {}
        for module, spec in lora.specs.items():
            if spec.is_vector:
                weight, _, last = module.rpartition(".")
                name, part = (weight, "bias") if last == "bias" else (module, "diff")
                tensors = {part: (torch.float32, spec.shape)}
            elif spec.dense:
                if dialect not in (NATIVE, KOHYA):
                    raise OutputError(
                        f"{module} is stored in full, and the {dialect} dialect has only small factors. "
                        "Re-rank it first, or write the native dialect."
                    )
                name, tensors = module, {"diff": (dtype, with_kernel(module, spec.shape))}
            else:
                name, shape = module, with_kernel(module, spec.shape)
                tensors = {
                    "up": (dtype, (shape[0], spec.rank, *(1 for _ in shape[2:]))),
                    "down": (dtype, (spec.rank, *shape[1:])),
                    "alpha": (torch.float32, ()),
                }
                if dialect not in _WITH_ALPHA or (dialect == NATIVE and not families.has_alpha(name, family)):
                    del tensors["alpha"]
            there = written(name, dialect, family, lora.prefix)
            for one in there:
                for part, (kind, size) in tensors.items():
                    key = f"{one.name}.{ending(name, part, dialect)}"
                    if key in sizes:
                        raise OutputError(
                            f"{module} and {self.module_of[key][0]} would have the same name in the {dialect} "
                            "dialect. Choose another dialect."
                        )
                    if size and part != "down":
                        size = (cut_rows(size[0], one.rows, module), *size[1:])
                    sizes[key] = (kind, size)
                    self.module_of[key] = (module, part)
                    if not one.is_whole:
                        self.rows_of[key] = one.rows
        self.plan = Layout.of(sizes)
        self.module_of = {key: self.module_of[key] for key, _, _ in self.plan.tensors}

    def tensors(self, progress: Progress | None) -> Generator[tuple[str, Tensor], None, None]:
        order = list(dict.fromkeys(module for module, part in self.module_of.values() if part != "alpha"))
        done = 0
        deltas = cache.stream(self.lora, order, lambda: progress(done, len(order)) if progress else None)
        ready: dict[tuple[str, str], Tensor] = {}  # a module's bias may come between its two factors
        left = Counter(self.module_of.values())  # a module that is split is written in several pieces
        for key, _, shape in self.plan.tensors:
            module, part = self.module_of[key]
            if part == "alpha":
                yield key, torch.tensor(float(self.lora.specs[module].rank))
                continue
            if (module, part) not in ready:
                ready |= self._convert(*next(deltas))
                done += 1
                if progress:
                    progress(done, len(order))
            left[module, part] -= 1
            values = ready[module, part] if left[module, part] else ready.pop((module, part))
            if part != "down" and (rows := self.rows_of.get(key)):
                values = cut(values, rows)
            yield key, values.reshape(shape)
        self._check_rounding()

    def _convert(self, module: str, delta: Delta) -> dict[tuple[str, str], Tensor]:
        if isinstance(delta, LowRank):
            up, down = delta.up, delta.down
            if self.dtype.itemsize < 4:
                up, down = _balanced(up, down)
            up, down = self._rounded(up, down)
            return {(module, "up"): up, (module, "down"): down}
        if isinstance(delta, Dense):
            return {(module, "diff"): self._rounded(delta.dense())[0]}
        return {(module, "bias" if module.endswith(".bias") else "diff"): delta.value}

    def _rounded(self, *factors: Tensor) -> list[Tensor]:
        """A module's factors in the file's dtype, with NaN or infinity for what is too large for it."""
        if self.dtype.itemsize > 1:
            return [factor.to(self.dtype) for factor in factors]
        # float8_e4m3fn has no infinity, and newer versions of torch write its largest value instead.
        most = torch.finfo(self.dtype).max
        rounded = [factor.masked_fill(factor.abs() > most, torch.nan).to(self.dtype) for factor in factors]
        sizes = [_norm(factor) for factor in factors]
        if energy := math.prod(sizes) ** 2:
            self._energy += energy
            self._lost += energy * sum(
                (_norm(factor - new.float()) / size) ** 2
                for factor, new, size in zip(factors, rounded, sizes, strict=True)
            )
        return rounded

    def _check_rounding(self) -> None:
        """Raise OutputError if most values are too small for the dtype: they would silently be rounded to zero."""
        if self._lost > LARGEST_LOSS**2 * self._energy:
            share = math.sqrt(self._lost / self._energy)
            raise OutputError(
                f"{self.dtype} would lose {share:.0%} of this LoRA: its values are too small for it. Write bfloat16."
            )


def _norm(factor: Tensor) -> float:
    return float(torch.linalg.vector_norm(factor, dtype=torch.float64))


def lossless_dtype(lora: Lora, progress: Progress | None = None) -> torch.dtype:
    """The smallest dtype that holds every factor of a LoRA as exactly as float32 does.

    Files in half precision whose difference is taken with weights of ±1 stay in half precision.

    progress   called with (done, total) modules; may raise to cancel
    """
    possible = [torch.bfloat16, torch.float16]
    for done, (_, delta) in enumerate(lora.stream(lora.names)):
        if progress:
            progress(done, len(lora))
        if isinstance(delta, LowRank):
            parts: tuple[Tensor, ...] = _balanced(delta.up, delta.down)
        elif isinstance(delta, Dense):
            parts = (delta.dense(),)
        else:
            continue  # vectors are written in float32
        possible = [
            dtype for dtype in possible if all(torch.equal(part.to(dtype).float(), part.float()) for part in parts)
        ]
        if not possible:
            return torch.float32
    return possible[0]


def _balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors of similar size, so that neither leaves the range of a small dtype.

    The factor is a power of two, so the values' digits stay as they are.
    """
    largest_up, largest_down = (float(torch.stack(factor.aminmax()).abs().max()) for factor in (up, down))
    if not (0 < largest_up < math.inf and 0 < largest_down < math.inf):
        return up, down
    exponent = round(math.log2(largest_up / largest_down) / 2)
    return up * 2.0**-exponent, down * 2.0**exponent


def _metadata(lora: Lora, title: str, dtype: torch.dtype, dialect: str, known: bool = True) -> dict[str, str]:
    """Without `known`, a stand-in of the same length, before the inputs are hashed and the energy is known."""
    ranks = sorted({lora.specs[name].rank for name in lora.matrices})
    rank = "Dynamic" if len(ranks) > 1 else str(ranks[0]) if ranks else "0"
    base = _agreed(lora, "ss_base_model_version") or lora.base_model or "unknown"
    family = lora.family
    architecture = _agreed(lora, "modelspec.architecture") or f"{(family and family.architecture) or base}/lora"
    recipe = {
        "version": 1,
        "made_by": f"difflora {__version__}",
        "dtype": str(dtype).removeprefix("torch."),
        "dialect": dialect,
        "of": lora.recipe if known else lora.describe(lambda file: "0" * 64),
    }
    entries = {
        "ss_network_module": _agreed(lora, "ss_network_module") or "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": f"{ranks[0]}.0" if len(ranks) == 1 else rank,
        "ss_base_model_version": base,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": _agreed(lora, "modelspec.implementation")
        or (family.implementation if family else "unknown"),
        "modelspec.title": title,
        "modelspec.date": now(),
        "modelspec.merged_from": ", ".join(name.removesuffix(".safetensors") for name in lora.made_from),
        RECIPE_KEY: json.dumps(recipe, sort_keys=True),
    }
    if lora.is_cut:
        entries[ENERGY_KEY] = f"{lora.retained_energy if known else 0:.6f}"
    if lora.unit and len(lora.unit) <= LONGEST_COPIED:
        entries[UNIT_KEY] = lora.unit

    return entries


def _agreed(lora: Lora, key: str) -> str | None:
    """A metadata value that all input files share. One too long to be a name is somebody's mistake, and is left behind."""
    values = {file.metadata.get(key) for file in lora.files}
    value = values.pop() if len(values) == 1 else None
    return value if value and len(value) <= LONGEST_COPIED else None
