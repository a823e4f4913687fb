"""The commands: ``python -m difflora subtract A B -o OUT`` and the others.

Every command fills a report, a plain dictionary. `--json` prints it as it is, otherwise it is printed as a table. Only the report
goes to stdout. An error that the user can fix is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..errors import DiffLoraError, ExistsError, FileError, OutputError, PairError, RecipeError
from ..lora.algebra import subtract
from ..lora.extract import extract
from ..lora.file import FileLora, load
from ..lora.lora import CombinedLora, Lora
from ..lora.selection import stack_of, summary
from ..names import families
from ..rank.analysis import Analysis, ModuleNumbers, analyze_difference
from ..rank.calibrate import calibrate_norm
from ..rank.passing_stats import MeasuredLora
from ..rank.purify import purify
from ..rank.rerank import RerankedLora, rerank
from ..rank.rules import RULES, FixedRank, RankRule, rule_of
from ..saving import recipes, wan22
from ..saving.save import ENERGY_KEY, drafted, read_by_comfyui
from ..sentence import printable
from ..storage.dtypes import CODES
from ..storage.reader import read_header
from ..storage.writer import Draft, check_target, publish
from ..training import musubi
from ..training.pairs import Dataset
from . import old_script
from .parser import DEFAULT_RANK, EXTRACT_RANK, OLD_FLAGS, UsageError, parser, words_of
from .printing import (
    Report,
    bar,
    cancelled_text,
    finish,
    finish_twins,
    print_groups,
    print_json,
    print_table,
    rank_words,
    size_text,
    warn,
)

Settings = TypeVar("Settings", musubi.Training, musubi.Machine)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 2 for an error that the user can fix or an interrupt."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Windows console may not have every character
            stream.reconfigure(errors="replace")
    with _terminated_like_interrupted():
        try:
            given = _at_home(parser().parse_args(words_of(sys.argv[1:] if arguments is None else arguments)))
            code = COMMANDS[given.command](given)
            sys.stdout.flush()
            return code
        except ExistsError as error:
            return _complain(f"{error} (--overwrite)")
        except DiffLoraError as error:
            return _complain(str(error))
        except BrokenPipeError:  # `difflora inspect … | head`: the reader has stopped reading
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            return _complain(f"{error.filename}: {error.strerror}." if error.filename else str(error))
        except KeyboardInterrupt:
            sys.stderr.write("difflora: interrupted; nothing was written.\n")
            return 2


_PATHS = (
    *("file", "a", "b", "pair", "high", "low", "lora_a", "lora_b", "base", "tuned", "against"),
    *("output", "inputs", "dataset"),
)


def _at_home(given: argparse.Namespace) -> argparse.Namespace:
    """~ in paths is the user's folder; a shell leaves it as it is behind = and between quotes."""
    for name in _PATHS:
        value = getattr(given, name, None)
        if "" in (value if isinstance(value, list) else [value]):
            raise UsageError(f"{name.replace('_', ' ')}: the name is empty; a variable of the shell may not be set")
        if isinstance(value, list):
            setattr(given, name, [os.path.expanduser(path) for path in value])
        elif value is not None:
            setattr(given, name, type(value)(os.path.expanduser(value)))
    return given


def _complain(message: str) -> int:
    sys.stderr.write(f"difflora: error: {' '.join(message.split())}\n")
    return 2


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM clean up as Ctrl-C does, so that no half-written file is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Commands


def run_subtract(given: argparse.Namespace) -> int:
    """``difflora subtract``: difference, selection, rank, file; for Wan2.2 twice, and both files or none."""
    started = time.perf_counter()
    paths = _paths(given)
    old_script.translate(given)
    pairs = {noise: (_load(a, given, noise), _load(b, given, noise)) for noise, (a, b) in paths.items()}
    inputs = list(itertools.chain.from_iterable(pairs.values()))
    made = {}
    for noise, (a, b) in pairs.items():
        output = wan22.path_of(Path(given.output), noise) if noise else Path(given.output)
        with _side_named(noise):
            made[noise] = _Subtraction(a, b, _free(output, given, *inputs), given)
    with contextlib.ExitStack() as kept:
        drafts = []
        for noise, one in made.items():
            with _side_named(noise):
                drafts.append(one.draft(kept, _twin_of(noise, made)))
        mix_ups = list(wan22.mix_ups(pairs)) if "" not in pairs else []
        publish(drafts)
    reports = {noise: one.report for noise, one in made.items()}
    if "" in reports:
        return finish(given, reports[""], started)
    return finish_twins(given, reports, mix_ups, started)


class _Subtraction:
    """One pair to be subtracted and saved. Creating it checks everything that needs no arithmetic."""

    def __init__(self, a: FileLora, b: FileLora, output: Path, given: argparse.Namespace):
        self.a, self.b, self.output, self.given = a, b, output, given
        _check_select(given.select)
        scale = _scale(given)
        self.normalise = scale is None and given.target_norm is not None
        self.weight = 1.0 if scale is None else scale
        self.difference = subtract(
            a,
            b,
            given.weight_a * self.weight,
            given.weight_b * self.weight,
            given.unmatched or "keep",
        )
        self.chosen: Lora = self.difference
        if given.select is not None:
            self.chosen = self.difference.select(given.select, given.nullify)
        self.rule = _rule(given, DEFAULT_RANK)
        self.cut = None if self.rule is None else rerank(self.chosen, self.rule, given.max_rank)
        self.result = self.chosen if self.cut is None else self.cut
        self.report: Report = {"output": str(output), "notes": list(given.notes), "scale": self.weight}

    def draft(self, kept: contextlib.ExitStack, metadata: Mapping[str, str]) -> Draft:
        """Compute the result, write it under a temporary name until `kept` closes, and complete the report."""
        started = time.perf_counter()
        given, report, chosen = self.given, self.report, self.chosen
        measured = self.result
        result: Lora = measured
        targeted = [name for name in chosen.matrices if chosen.weight_of(name) != 0]
        small: list[str] = []
        numbers: Analysis | None = None
        if (given.cut or self.normalise or given.analyze_blocks) and targeted:
            with bar("measuring") as progress:
                numbers = analyze_difference(chosen, progress)
            norms = {name: numbers.modules[name].norm for name in targeted}
            small = given.cut.small({name: norm / abs(self.weight) for name, norm in norms.items()})
            kept_norms = [norm for name, norm in norms.items() if name not in set(small)]
            if small:
                result = result.select(", ".join(["all", *(f'!"{name}"' for name in small)]), given.nullify)
            if self.normalise:
                report["scale"] = old_script.factor_for(kept_norms, given.target_norm)
                result = result.scaled(report["scale"])
        written = [name for name in targeted if name not in set(small)]
        if given.is_old and written:
            report["notes"].append(old_script.strength_note(self.a, self.b, written, self.normalise))

        compared: Analysis | MeasuredLora
        if self.rule is None and numbers is None:
            compared = MeasuredLora(chosen, self.difference)
            draft = _draft(kept, compared, self.output, given, report, metadata)
        else:
            if result is not measured:
                metadata = {**metadata, ENERGY_KEY: f"{_energy(self.cut, written):.6f}"}
            draft = _draft(kept, result, self.output, given, report, metadata)
            compared = numbers = numbers or analyze_difference(measured)
            report["retained_energy"] = _energy(self.cut, written)
            report["by_qr"] = numbers.slow
            report["stored_in_full"] = _certificates(self.cut)
            if given.analyze_blocks:
                report["blocks"] = _grouped(numbers, "block")
        report |= {
            "cosine": compared.cosine,
            "cancelled": compared.cancelled,
            "skipped": _skipped(self.difference, chosen, small, given.nullify),
            "kept_from_one_side": _one_sided(self.difference) if self.difference.unmatched == "keep" else [],
            "warnings": [*measured.warnings, *compared.warnings],
            "seconds": round(time.perf_counter() - started, 3),
        }
        return draft


def run_extract(given: argparse.Namespace) -> int:
    """``difflora extract``: a LoRA from two checkpoints."""
    for path in (given.base, given.tuned):
        _check_there(Path(path))
    return _run_at_rank(time.perf_counter(), extract(given.base, given.tuned), given, EXTRACT_RANK)


def run_rerank(given: argparse.Namespace) -> int:
    """``difflora rerank``: another rank for one LoRA."""
    return _run_at_rank(time.perf_counter(), _load(given.file, given), given, DEFAULT_RANK)


def _run_at_rank(started: float, lora: Lora, given: argparse.Namespace, default_rank: int) -> int:
    """Selection, rank, file."""
    output = _output(given, lora)
    chosen = _chosen(lora, given)
    rule = _rule(given, default_rank)
    cut = None if rule is None else rerank(chosen, rule, given.max_rank)
    result = chosen if cut is None else cut
    report: Report = {"output": str(output), "notes": [], "scale": _scale(given) or 1.0}
    _save(result, output, given, report)
    if cut is not None:
        report["retained_energy"] = cut.retained_energy
        report["by_qr"] = cut.factorisation.slow
        report["stored_in_full"] = _certificates(cut)
    report |= {"skipped": _not_selected(lora, chosen, given.nullify), "warnings": list(result.warnings)}
    return finish(given, report, started)


def run_convert(given: argparse.Namespace) -> int:
    """``difflora convert``: the same LoRA with other key names or another dtype."""
    started = time.perf_counter()
    file = _load(given.file, given)
    output = _output(given, file)
    chosen = _chosen(file, given)
    report: Report = {
        "output": str(output),
        "notes": [],
        "scale": _scale(given) or 1.0,
        "from_dialect": file.dialect,
        "dialect": given.dialect,
    }
    _save(chosen, output, given, report)
    report |= {"skipped": _not_selected(file, chosen, given.nullify), "warnings": list(chosen.warnings)}
    return finish(given, report, started)


def run_purify(given: argparse.Namespace) -> int:
    """``difflora purify``: a slider without the directions of other LoRAs."""
    started = time.perf_counter()
    slider, against = _load(given.file, given), [_load(path, given) for path in given.against]
    output = _output(given, slider, *against)
    pure = purify(slider, against, given.directions)
    with bar("measuring") as progress:
        pure.measure(progress)
    report: Report = {"output": str(output), "notes": []}
    _save(pure, output, given, report)
    report |= {
        "share_gone": pure.share,
        "modules_gone": {name: removed.share for name, removed in pure.removed.items()},
        "untouched": len(pure.matrices) - len(pure.touched),
        "warnings": [*pure.warnings, *pure.conclusions],
    }
    return finish(given, report, started)


def run_calibrate(given: argparse.Namespace) -> int:
    """``difflora calibrate``: a slider whose strength 1 has a unit."""
    started = time.perf_counter()
    slider = _load(given.file, given)
    output = _output(given, slider)
    with bar("measuring") as progress:
        made = calibrate_norm(slider, given.norm, progress)
    report: Report = {"output": str(output), "notes": [], "scale": made.factor, "unit": made.unit}
    _save(made, output, given, report)
    report["warnings"] = list(made.warnings)
    return finish(given, report, started)


def run_rebuild(given: argparse.Namespace) -> int:
    """``difflora rebuild``: make a file again from its recipe."""
    started = time.perf_counter()
    header = read_header(given.file)
    saved = recipes.SavedRecipe.of_file(given.file)
    of, twin = saved.of, wan22.Twin.of_header(header)
    if given.twin:
        if twin is None:
            raise RecipeError(f"{header.path.name}: this file has no twin; it was made alone.")
        of, twin = twin.of, wan22.Twin(wan22.other_noise(twin.noise), header.path.name, saved.of)
    lora = recipes.from_recipe(of, recipes.find_in(given.inputs))
    output = _output(given, lora)
    report: Report = {"output": str(output), "notes": [], "recipe": recipes.told(of)}
    given.dtype, given.dialect = saved.dtype, saved.dialect
    _save(lora, output, given, report, twin.metadata() if twin else {})
    report["warnings"] = list(lora.warnings)
    if given.twin:
        return finish(given, report, started)
    report["identical"] = report["sshs_model_hash"] == header.metadata.get("sshs_model_hash")
    if not report["identical"]:
        report["warnings"].append(
            f"The tensors differ from {header.path.name}, which was made by {printable(saved.made_by)}: rounding differs "
            "between versions of torch and between processors."
        )
    return finish(given, report, started)


def run_inspect(given: argparse.Namespace) -> int:
    """``difflora inspect``: what is in a file."""
    file = _load(given.file, given)
    entries = file.header.entries.values()
    scales = sorted(set(file.scales.values()))
    vectors = [name for name, spec in file.specs.items() if spec.is_vector]
    report: Report = {
        "file": str(file.path),
        "bytes": file.header.identity.size,
        "sha256": file.sha256,
        "dialect": file.dialect,
        "base_model": file.base_model,
        "trainer": file.trainer,
        "matrices": len(file.matrices),
        "vectors": len(vectors),
        "rank": _ranks(file),
        "scale": scales,
        "unit": file.unit,
        "dtypes": dict(Counter(CODES[entry.dtype] for entry in entries)),
        "family": file.family.name if file.family else None,
        "roles": _roles(file),
        "contents": summary(file),
        "recipe": None,
        "twin": None,
        "metadata": dict(file.metadata),
        "faults": {name: str(error) for name, error in file.faults.items()},
        "warnings": list(file.warnings),
    }
    with contextlib.suppress(RecipeError):
        report["recipe"] = recipes.told(recipes.SavedRecipe.of_file(file.path).of)
        if twin := wan22.Twin.of_header(file.header):
            report["twin"] = {"noise": twin.noise, "other": twin.other}
    if given.json:
        report["modules"] = {name: {"shape": list(spec.shape), "rank": spec.rank} for name, spec in file.specs.items()}
        print_json(report)
        return 0
    shown_keys = (
        "modelspec.title",
        "ss_base_model_version",
        "modelspec.date",
        "ss_learning_rate",
        "ss_steps",
        "ss_num_train_items",
        "ss_seed",
        ENERGY_KEY,
    )
    print_table(
        [
            ("file", f"{printable(report['file'], 400)}  ({size_text(report['bytes'])})"),
            ("SHA-256", report["sha256"]),
            ("key names", report["dialect"]),
            ("base model", report["base_model"] or "not recognised"),
            ("trained with", report["trainer"] or "not said in the file"),
            (
                "modules",
                f"{report['matrices']} matrices at rank {rank_words(report['rank'])}"
                + (f", {report['vectors']} biases, norms or tables" if vectors else ""),
            ),
            ("", printable(report["contents"], 400)),
            *(
                [("roles", ", ".join(f"{role} {count}" for role, count in report["roles"].items()))]
                if report["roles"]
                else []
            ),
            (
                "scale",
                "alpha / rank = " + " to ".join(dict.fromkeys(f"{scale:g}" for scale in (scales[0], scales[-1])))
                if scales
                else "-",
            ),
            *([("strength 1 is", printable(file.unit))] if file.unit else []),
            ("dtypes", ", ".join(f"{code} ({count})" for code, count in report["dtypes"].items())),
            *((key, printable(file.metadata[key])) for key in shown_keys if key in file.metadata),
            *([("recipe", printable(report["recipe"], 400))] if report["recipe"] else []),
            *(
                [("twin", f"for {report['twin']['noise']} noise; the other is {printable(report['twin']['other'])}")]
                if report["twin"]
                else []
            ),
        ]
    )
    warn(report["warnings"] + list(report["faults"].values())[:5])
    return 0


def run_analyze(given: argparse.Namespace) -> int:
    """``difflora analyze``: two LoRAs compared."""
    started = time.perf_counter()
    if given.csv and given.json:
        raise UsageError("--csv and --json are two ways to print the same; give one")
    _check_select(given.select)
    difference = subtract(_load(given.a, given), _load(given.b, given), given.weight_a, given.weight_b)
    chosen: Lora = difference.select(given.select) if given.select else difference
    if not chosen.matrices:
        raise PairError("There is no weight matrix to compare: only biases, norms or modulation change.")
    with bar("comparing") as progress:
        numbers = analyze_difference(chosen, progress)
    if given.csv:
        sys.stdout.write(numbers.csv())
        return 0
    report: Report = {
        "norm_a": numbers.norm_a,
        "norm_b": numbers.norm_b,
        "norm": numbers.norm,
        "cosine": numbers.cosine,
        "cancelled": numbers.cancelled,
        "energy": {str(rank): numbers.energy(rank) for rank in (1, 2, 4, 8, 16, 32)},
        "by_qr": numbers.slow,
        "only_a": list(numbers.only_a),
        "only_b": list(numbers.only_b),
        "warnings": [*chosen.warnings, *numbers.warnings],
        "seconds": round(time.perf_counter() - started, 3),
    }
    if given.json:
        report["modules"] = {name: _numbers(one) for name, one in numbers.modules.items()}
        print_json(report)
        return 0
    print_table(
        [
            ("norms", f"A {numbers.norm_a:.4g}, B {numbers.norm_b:.4g}, difference {numbers.norm:.4g}"),
            ("cosine of A and B", f"{numbers.cosine:.4f}"),
            ("cancelled", cancelled_text(numbers.cancelled)),
            ("energy by rank", ", ".join(f"{rank}: {share:.1%}" for rank, share in report["energy"].items())),
            *(
                [("only in one file", f"{len(numbers.only_a)} modules in A, {len(numbers.only_b)} in B")]
                if numbers.only_a or numbers.only_b
                else []
            ),
            ("modules", f"{len(numbers.modules)}, {numbers.slow} of them by QR, {report['seconds']:.1f} s"),
        ]
    )
    print_groups(_grouped(numbers, given.by), given.by)
    warn(report["warnings"])
    return 0


def run_recipe(given: argparse.Namespace) -> int:
    """``difflora recipe``: the files that train both sides of a pair alike."""
    training, machine = _with(musubi.PRESETS[given.preset], given), _with(musubi.Machine(), given)
    sides = tuple(given.sides)
    made = musubi.files(training, machine, sides, given.name)
    for side in sides:
        if not (given.dataset / side).is_dir():
            raise OutputError(f"{given.dataset}: there is no folder {side!r} in it. Name the sides with --sides.")
    if len(sides) == 2:
        musubi.check_twins(Dataset(given.dataset, (sides[0], sides[1])), training)
    for path in musubi.write_files(given.dataset / "training", made, given.overwrite):
        sys.stdout.write(f"{path}\n")
    for hint in musubi.hints(training, machine):
        sys.stderr.write(f"{hint}\n")
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "subtract": run_subtract,
    "extract": run_extract,
    "rerank": run_rerank,
    "convert": run_convert,
    "purify": run_purify,
    "calibrate": run_calibrate,
    "inspect": run_inspect,
    "analyze": run_analyze,
    "rebuild": run_rebuild,
    "recipe": run_recipe,
}


# What the commands share


def _load(path: str, given: argparse.Namespace, noise: str = "") -> FileLora:
    return load(_lora_at(path), given.ignore_unknown, noise=given.noise or noise or None)


def _lora_at(path: str) -> Path:
    """The file, or the only one in a folder."""
    there = Path(path)
    if re.match("[a-z]+://", path, re.IGNORECASE):
        raise FileError(f"{printable(path)}: this is an address. Download the file, and give its name.")
    if not there.is_dir():
        _check_there(there)
        return there
    files = sorted(there.glob("*.safetensors"))
    if len(files) != 1:
        found = f"{len(files)} .safetensors files in it, such as {printable(files[0].name)}" if files else "none in it"
        raise FileError(f"{printable(path)}: this is a folder, with {found}. Name the .safetensors file.")
    return files[0]


def _check_there(path: Path) -> None:
    """Say what was most likely meant, where a file is not there."""
    if os.path.lexists(path):
        return
    try:
        stems = {file.name.removesuffix(".safetensors"): file.name for file in path.parent.glob("*.safetensors")}
    except OSError:
        stems = {}
    stem = re.split(r"\.safe", path.name, flags=re.IGNORECASE)[0]
    close = difflib.get_close_matches(stem, stems, n=1) or difflib.get_close_matches(stem.casefold(), stems, n=1)
    if close:
        raise FileError(f"{printable(path)}: no such file; did you mean {printable(stems[close[0]])}?")


def _paths(given: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """The files A and B: of each noise, or under no name where there is one pair."""
    if given.high is None and given.low is None:
        paths = [*given.pair, *(path for path in (given.lora_a, given.lora_b) if path is not None)]
        if len(paths) != 2 or (given.lora_a is None) != (given.lora_b is None):
            raise UsageError(f"subtract needs two files, A and B, but got {len(paths)} (see difflora subtract --help)")
        return {"": (paths[0], paths[1])}
    if given.high is None or given.low is None:
        there, lacks = ("--high", "--low") if given.low is None else ("--low", "--high")
        raise UsageError(
            f"{there} is given without {lacks}; give both, each with two files, or one pair alone: subtract A B"
        )
    if given.pair:
        raise UsageError(
            f"--high and --low bring both pairs, so there is no place for {printable(given.pair[0])}; leave it out"
        )
    if old := [f"--{flag}" for flag in OLD_FLAGS if getattr(given, flag) is not None]:
        raise UsageError(
            f"{', '.join(old)}: the old script's flags do not go with --high and --low; use --select, --scale "
            "and the others of this program"
        )
    return {"high": (given.high[0], given.high[1]), "low": (given.low[0], given.low[1])}


@contextlib.contextmanager
def _side_named(noise: str) -> Iterator[None]:
    """Make errors raised inside say which of the two pairs they are about."""
    try:
        yield
    except DiffLoraError as error:
        if noise:
            raise type(error)(f"{noise} noise: {error}") from error
        raise


def _twin_of(noise: str, made: Mapping[str, _Subtraction]) -> dict[str, str]:
    """What the metadata of this file says about the file for the other noise level."""
    if not noise:
        return {}
    other = made[wan22.other_noise(noise)]
    return wan22.Twin(noise, other.output.name, other.result.recipe).metadata()


def _output(given: argparse.Namespace, *inputs: Lora) -> Path:
    return _free(Path(given.output), given, *inputs)


def _free(output: Path, given: argparse.Namespace, *inputs: Lora) -> Path:
    """The path to write, checked before any work is done."""
    check_target(output, given.overwrite)
    for file in itertools.chain.from_iterable(lora.inputs for lora in inputs):
        if output.exists() and os.path.samefile(output, file.path):
            raise OutputError(
                f"{output}: this is one of the inputs, which the result's recipe has to find again. "
                "Choose another name."
            )
    return output


def _roles(lora: Lora) -> dict[str, int]:
    """How many modules each word for a role selects."""
    counts = Counter(role for name in lora if (known := families.own(name)) for role in known[0].roles)
    return {role: counts[role] for role in families.ROLES if counts[role]}


def _scale(given: argparse.Namespace) -> float | None:
    scale: float | None = given.scale
    if scale == 0:
        raise UsageError(f"the scale is {scale:g}; it must be a number other than zero")
    return scale


def _check_select(expression: str | None) -> None:
    if expression is not None and not expression.strip():
        raise UsageError("--select is empty, which selects nothing; everything is selected with no --select")


def _chosen(file: Lora, given: argparse.Namespace) -> Lora:
    _check_select(given.select)
    chosen = file if given.select is None else file.select(given.select, given.nullify)
    scale = _scale(given)
    return chosen if scale is None else chosen.scaled(scale)


def _rule(given: argparse.Namespace, default_rank: int) -> RankRule | None:
    """None for --lossless."""
    if given.lossless:
        if given.max_rank is not None:
            raise UsageError("--lossless keeps every rank, so --max-rank does not go with it")
        return None
    for word, rule in RULES.items():
        number = getattr(given, word)
        if number is not None and number is not False:
            return rule_of(word, {} if rule.setting is None else {rule.setting: number})
    return FixedRank(default_rank)


def _energy(lora: RerankedLora | None, written: Iterable[str]) -> float:
    """Share of the energy that the rank keeps, over the modules that are written. Without a cut, all of it."""
    if lora is None:
        return 1.0
    kept = total = 0.0
    for name in written:
        energy = lora.total_energy(name)
        kept += lora.module_energy(name) * energy
        total += energy
    return kept / total if total > 0 else 1.0


def _certificates(lora: RerankedLora | None) -> dict[str, float]:
    """Modules that were stored in full, and how far their error can be above the smallest possible one, as a share of it."""
    if lora is None:
        return {}
    return {name: found.excess for name, found in lora.certificates.items()}


def _save(
    lora: Lora, output: Path, given: argparse.Namespace, report: Report, metadata: Mapping[str, str] | None = None
) -> None:
    with contextlib.ExitStack() as kept:
        publish([_draft(kept, lora, output, given, report, metadata or {})])


def _draft(
    kept: contextlib.ExitStack,
    lora: Lora,
    output: Path,
    given: argparse.Namespace,
    report: Report,
    metadata: Mapping[str, str],
) -> Draft:
    dtype = given.dtype or "float32"
    with bar("writing") as progress:
        draft = kept.enter_context(drafted(lora, output, dtype, given.dialect, given.overwrite, metadata, progress))
    matrices = len(lora.matrices)
    report |= {
        "bytes": draft.temporary.stat().st_size,
        "dtype": dtype,
        "dialect": given.dialect,
        "matrices": matrices,
        "vectors": len(lora) - matrices,
        "read_by_comfyui": read_by_comfyui(lora, given.dialect),
        "rank": _ranks(lora),
        "sshs_model_hash": read_header(draft.temporary).metadata["sshs_model_hash"],
    }
    return draft


def _ranks(lora: Lora) -> int | list[int] | None:
    """The rank of the matrices; the lowest and the highest if they differ; None without matrices."""
    ranks = {lora.specs[name].rank for name in lora.matrices}
    return None if not ranks else ranks.pop() if len(ranks) == 1 else [min(ranks), max(ranks)]


def _one_sided(difference: CombinedLora) -> list[dict[str, Any]]:
    lines = []
    for side, (_, lora) in enumerate(difference.parts):
        modules = [name for name, sides in difference.one_sided.items() if sides == (side,)]
        if modules:
            lines.append({"why": f"only in {printable(lora.files[0].name)}", "modules": modules})
    return lines


def _skipped(difference: CombinedLora, chosen: Lora, small: Sequence[str], nullify: bool) -> list[dict[str, Any]]:
    """What the files contain but the output does not, and why."""
    lines = _one_sided(difference) if difference.unmatched == "drop" else []
    lines += _not_selected(difference, chosen, nullify)
    if small:
        lines.append(
            {"why": "norm below the threshold" + (", written as zeros" if nullify else ""), "modules": list(small)}
        )
    return lines


def _not_selected(of: Lora, chosen: Lora, nullify: bool) -> list[dict[str, Any]]:
    kept = set(chosen.unzeroed)
    modules = [name for name in of if name not in kept]
    why = "not selected" + (", written as zeros" if nullify else "")
    return [{"why": why, "modules": modules}] if modules else []


def _grouped(numbers: Analysis, by: str) -> dict[str, dict[str, float]]:
    """The analysis summed over blocks or components."""
    groups: dict[str, dict[str, ModuleNumbers]] = {}
    for name, one in numbers.modules.items():
        stack = stack_of(name)
        if by == "module":
            group = name
        elif stack is None:
            group = "outside the blocks"
        elif by == "block":
            group = f"{stack[0]} {stack[1]}"
        else:
            group = stack[2].partition(".")[0]
        groups.setdefault(group, {})[name] = one
    summed = {
        group: Analysis(modules, (), (), 0, numbers.weight_a, numbers.weight_b) for group, modules in groups.items()
    }
    return {
        group: {
            "modules": len(one.modules),
            "norm_a": one.norm_a,
            "norm_b": one.norm_b,
            "norm": one.norm,
            "cosine": one.cosine,
            "cancelled": one.cancelled,
            "energy_rank_4": one.energy(4),
        }
        for group, one in summed.items()
        if one.norm_a or one.norm_b
    }


def _numbers(one: ModuleNumbers) -> dict[str, Any]:
    return {
        "norm_a": one.norm_a,
        "norm_b": one.norm_b,
        "norm": one.norm,
        "cosine": one.cosine,
        "cancelled": one.cancelled,
        "stable_rank": one.stable_rank,
        "singular_values": one.spectrum.tolist(),
    }


def _with(settings: Settings, given: argparse.Namespace) -> Settings:
    """`settings` with the values that the command line overrides."""
    words = {each.name: getattr(given, each.name, None) for each in dataclasses.fields(settings)}
    return dataclasses.replace(settings, **{key: value for key, value in words.items() if value is not None})
