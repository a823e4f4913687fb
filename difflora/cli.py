"""The command line: ``python -m difflora subtract A B -o OUT`` and its neighbours.

Every command fills a report, a plain dictionary: `--json` prints it, otherwise a table is made of it. Only the report
goes to stdout. What a user can put right ends in one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import names, old_script, recipes, training, twins
from .algebra import subtract
from .analysis import Analysis, ModuleNumbers, analyze_pair
from .comparison import ComparedLora
from .errors import DiffLoraError, ExistsError, OutputError, PairError, RecipeError
from .extract import extract
from .lora import CombinedLora, FileLora, Lora, SelectedLora, load
from .output import ENERGY_KEY, drafted
from .rerank import Energy, FixedRank, Knee, RankRule, Ratio, RerankedLora, rerank
from .selection import stack_of, summary
from .storage import CODES, OUTPUT_DTYPES, Draft, Progress, check_target, publish, read_header, shown
from .version import __version__

DEFAULT_RANK = 4
EXTRACT_RANK = 32  # a whole fine-tune takes more than what is left between two LoRAs
OLD_FLAGS = ("lora_a", "lora_b", "target_blocks", "target_indices", "alpha", "target_norm", "magnitude_threshold",
             "auto_threshold_percentile", "exclude_non_targeted", "analyze_blocks", "device", "fast_svd")
Report = dict[str, Any]


class UsageError(DiffLoraError):
    """The command line itself cannot be understood."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 something to put right, or interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Windows console may not have every character
            stream.reconfigure(errors="replace")
    with _terminated_like_interrupted():
        try:
            given = _parser().parse_args(_words(sys.argv[1:] if arguments is None else arguments))
            code: int = given.run(given)
            sys.stdout.flush()
            return code
        except ExistsError as error:
            return _complain(f"{error} (--overwrite)")
        except DiffLoraError as error:
            return _complain(str(error))
        except BrokenPipeError:  # `difflora inspect … | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            return _complain(f"{error.filename}: {error.strerror}." if error.filename else str(error))
        except KeyboardInterrupt:
            sys.stderr.write("difflora: interrupted; nothing was written.\n")
            return 2


def _complain(message: str) -> int:
    sys.stderr.write(f"difflora: error: {' '.join(message.split())}\n")
    return 2


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM cleans up like Ctrl-C, rather than leaving half a file behind."""
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


def _words(arguments: Sequence[str]) -> list[str]:
    """The command line with one spelling of every flag. What follows ``--extra`` is musubi-tuner's, flags and all."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1] == "--extra":
            words[-1] = f"--extra={word}"
        else:
            words.append(_hyphens(word))
    return words


def _hyphens(word: str) -> str:
    """``--target_blocks`` is ``--target-blocks``; what stands after ``=``, and a value that only begins like one, stay."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if re.fullmatch(r"--[A-Za-z_-]+", flag) else word


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(prog="difflora", description="Exact differences of LoRAs: sliders from pairs.")
    parser.add_argument("--version", action="version", version=f"difflora {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("subtract", help="write A - B as a small LoRA: the slider",
                                  description="Writes the exact difference of two LoRAs, at the best small rank. For the "
                                              "two models of Wan2.2-A14B, --high and --low write two files in one go.")
    command.add_argument("pair", nargs="*", metavar="A B", help="the LoRA with more of the property, the one with less")
    for noise in twins.NOISES:
        command.add_argument(f"--{noise}", nargs=2, metavar=("A", "B"),
                             help=f"instead of A B: the pair of Wan2.2's {noise}-noise model; writes OUT_{noise}.safetensors")
    _add_rank_rules(command)
    _add_selection(command)
    command.add_argument("--weight-a", type=_finite, default=1.0, metavar="W", help="factor of A (default 1)")
    command.add_argument("--weight-b", type=_finite, default=1.0, metavar="W", help="factor of B (default 1)")
    command.add_argument("--unmatched", choices=("keep", "drop", "error"), default=None,
                         help="a module that only one side has: count the other as zero (keep, the default), leave it "
                              "out (drop), or stop (error)")
    _add_output(command)
    _add_old_flags(command)
    _add_ignore_unknown(command)
    command.set_defaults(run=run_subtract)

    command = commands.add_parser("extract", help="write what a fine-tuned model changed about its base as a LoRA",
                                  description="Writes the difference of two checkpoints as a LoRA. Each may be one "
                                              ".safetensors file or a folder of shards.")
    command.add_argument("base", metavar="BASE", help="the model that the other one was made from")
    command.add_argument("tuned", metavar="TUNED", help="the fine-tuned model")
    _add_rank_rules(command, EXTRACT_RANK)
    _add_selection(command)
    _add_output(command)
    command.set_defaults(run=run_extract)

    command = commands.add_parser("rerank", help="write a LoRA at another rank",
                                  description="Writes the best approximation of a LoRA at a smaller rank.")
    command.add_argument("file")
    _add_rank_rules(command)
    _add_selection(command)
    _add_output(command)
    _add_ignore_unknown(command)
    command.set_defaults(run=run_rerank)

    command = commands.add_parser("convert", help="write a LoRA in another dialect or dtype",
                                  description="Writes a LoRA again without loss of rank: other key names, other dtype, "
                                              "alpha folded in.")
    command.add_argument("file")
    _add_selection(command)
    _add_output(command)
    _add_ignore_unknown(command)
    command.set_defaults(run=run_convert)

    command = commands.add_parser("inspect", help="say what is in a LoRA file",
                                  description="Says what is in a LoRA file; reads no weights except to hash them.")
    command.add_argument("file")
    _add_ignore_unknown(command)
    _add_json(command)
    command.set_defaults(run=run_inspect)

    command = commands.add_parser("analyze", help="compare two LoRAs, module by module",
                                  description="Compares two LoRAs exactly: norms, cosine, what cancels, how many "
                                              "directions the difference has. Writes nothing.")
    command.add_argument("a", metavar="A")
    command.add_argument("b", metavar="B")
    command.add_argument("--weight-a", type=_finite, default=1.0, metavar="W", help="factor of A (default 1)")
    command.add_argument("--weight-b", type=_finite, default=1.0, metavar="W", help="factor of B (default 1)")
    command.add_argument("--select", metavar="EXPR", help='only these modules, such as "attn" or "blocks 0-9 & ffn"')
    command.add_argument("--by", choices=("component", "block", "module"), default="component",
                         help="what a line of the table stands for (default component)")
    command.add_argument("--csv", action="store_true", help="print all modules for a spreadsheet")
    _add_ignore_unknown(command)
    _add_json(command)
    command.set_defaults(run=run_analyze)

    command = commands.add_parser("rebuild", help="make a file again from the recipe inside it",
                                  description="Reads the recipe in a file's metadata, finds the inputs by their "
                                              "SHA-256 and makes the file again, bit for bit the same tensors.")
    command.add_argument("file", help="a file that difflora wrote")
    command.add_argument("--twin", action="store_true", help="make the file's twin of the other noise instead")
    command.add_argument("--inputs", required=True, metavar="DIR", help="where to look for the input files")
    _add_place(command)
    _add_ignore_unknown(command)
    command.set_defaults(run=run_rebuild)

    training.add_recipe_command(commands)
    return parser


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{shown(repr(text))} is not a finite number")
    return number


def _add_rank_rules(command: argparse.ArgumentParser, default: int = DEFAULT_RANK) -> None:
    rule = command.add_argument_group("how much to keep").add_mutually_exclusive_group()
    rule.add_argument("--rank", type=int, metavar="R", help=f"this rank in every module (default {default})")
    rule.add_argument("--energy", type=_finite, metavar="P", help="the smallest rank that keeps this share, such as 0.95")
    rule.add_argument("--ratio", type=_finite, metavar="P", help="singular values above the largest one / P")
    rule.add_argument("--knee", action="store_true", help="singular values before the knee of the spectrum")
    rule.add_argument("--lossless", action="store_true", help="everything, at the sum of the ranks")
    command.add_argument("--max-rank", type=int, metavar="R", help="never above this rank")


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--select", metavar="EXPR", help='only these modules, such as "attn" or "blocks 0-9 & ffn=0.5"')
    command.add_argument("--nullify", action="store_true", help="write the others as zeros instead of leaving them out")
    command.add_argument("--scale", type=_finite, metavar="S", help="multiply the result (default 1)")


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", choices=tuple(OUTPUT_DTYPES), default=None, help="of the weights (default float32)")
    command.add_argument("--dialect", choices=names.OUTPUT_DIALECTS, default=names.NATIVE,
                         help="whose key names to write (default native, which ComfyUI and WanVideoWrapper read)")
    _add_place(command)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="the .safetensors file to write")
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    _add_json(command)


def _add_ignore_unknown(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ignore-unknown", action="store_true", help="go on if keys of a file are not understood")


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_old_flags(command: argparse.ArgumentParser) -> None:
    old = command.add_argument_group(
        "flags of the old script",
        "Accepted as they stand. With --lora_a the script's defaults hold: rank 16, float16, only modules that both "
        "files have, zeros for what is not targeted, scaled to --target_norm unless --alpha is given.",
    )
    old.add_argument("--lora-a", metavar="A")
    old.add_argument("--lora-b", metavar="B")
    old.add_argument("--target-blocks", nargs="+", metavar="WORD", help="attn, ffn, self_attn, …, all")
    old.add_argument("--target-indices", nargs="+", metavar="N", help="block numbers")
    old.add_argument("--alpha", type=_finite, metavar="S", help="multiplies the difference; another name of --scale")
    old.add_argument("--target-norm", type=_finite, metavar="N", help="without --alpha: the mean norm of the modules")
    small = old.add_mutually_exclusive_group()
    small.add_argument("--magnitude-threshold", type=_finite, metavar="N", help="leave out modules of a smaller norm")
    small.add_argument("--auto-threshold-percentile", type=_finite, metavar="P", help="the same, the norm as a percentile")
    old.add_argument("--exclude-non-targeted", action="store_true", default=None, help="leave out what is not targeted")
    old.add_argument("--analyze-blocks", action="store_true", default=None, help="print the norms block by block")
    old.add_argument("--device", help="answered: the CPU is enough")
    old.add_argument("--fast-svd", action="store_true", default=None, help="answered: the exact way is faster")


# Commands


def run_subtract(given: argparse.Namespace) -> int:
    """``difflora subtract``: difference, selection, rank, file; for Wan2.2 twice, and both files or none."""
    started = time.perf_counter()
    pairs = {noise: (_load(a, given), _load(b, given)) for noise, (a, b) in _paths(given).items()}
    inputs = list(itertools.chain.from_iterable(pairs.values()))
    made = {}
    for noise, (a, b) in pairs.items():
        output = twins.path_of(Path(given.output), noise) if noise else Path(given.output)
        with _side_named(noise):
            made[noise] = _Subtraction(a, b, _free(output, given, *inputs), given)
    with contextlib.ExitStack() as kept:
        drafts = []
        for noise, one in made.items():
            with _side_named(noise):
                drafts.append(one.draft(kept, _twin_of(noise, made)))
        mix_ups = list(twins.mix_ups(pairs)) if "" not in pairs else []
        publish(drafts)
    reports = {noise: one.report for noise, one in made.items()}
    if "" in reports:
        return _finish(given, reports[""], started)
    return _finish_twins(given, reports, mix_ups, started)


class _Subtraction:
    """One pair on its way to a file. Making it checks all that can be checked without arithmetic."""

    def __init__(self, a: FileLora, b: FileLora, output: Path, given: argparse.Namespace):
        self.a, self.b, self.output, self.given = a, b, output, given
        self.old = given.lora_a is not None
        expression = _expression(given)
        self.nullify = given.nullify or (self.old and not given.exclude_non_targeted)
        scale = _scale(given)
        self.normalise = scale is None and (self.old or given.target_norm is not None)
        self.weight = 1.0 if scale is None else scale
        self.difference = subtract(a, b, given.weight_a * self.weight, given.weight_b * self.weight,
                                   given.unmatched or ("drop" if self.old else "keep"))
        self.chosen: Lora = self.difference if expression is None else self.difference.select(expression, self.nullify)
        self.rule = _rule(given, old_script.DEFAULT_RANK if self.old else DEFAULT_RANK)
        self.result = self.chosen if self.rule is None else rerank(self.chosen, self.rule, given.max_rank)
        self.report: Report = {"output": str(output), "notes": _answers(given), "scale": self.weight}

    def draft(self, kept: contextlib.ExitStack, metadata: Mapping[str, str]) -> Draft:
        """Compute and write it, under a temporary name for as long as `kept` is open, and complete the report."""
        started = time.perf_counter()
        given, report, chosen = self.given, self.report, self.chosen
        result = measured = self.result
        cut = old_script.Cut(given.magnitude_threshold, given.auto_threshold_percentile)
        targeted = [name for name in chosen.matrices if _weight(chosen, name) != 0]
        small: list[str] = []
        numbers: Analysis | None = None
        if (cut or self.normalise or given.analyze_blocks) and targeted:
            with _bar("measuring") as progress:
                numbers = analyze_pair(chosen, progress)
            norms = {name: numbers.modules[name].norm for name in targeted}
            small = cut.small({name: norm / abs(self.weight) for name, norm in norms.items()})
            kept_norms = [norm for name, norm in norms.items() if name not in set(small)]
            if small:
                result = result.select(", ".join(["all", *(f'!"{name}"' for name in small)]), self.nullify)
            if self.normalise:
                target = old_script.DEFAULT_TARGET_NORM if given.target_norm is None else given.target_norm
                report["scale"] = old_script.factor_for(kept_norms, target)
                result = result.scaled(report["scale"])
        written = [name for name in targeted if name not in set(small)]
        if self.old and written:
            report["notes"].append(old_script.strength_note(self.a, self.b, written, self.normalise))

        compared: Analysis | ComparedLora
        if self.rule is None and numbers is None:
            compared = ComparedLora(chosen, self.difference)
            draft = _draft(kept, compared, self.output, given, report, metadata, self.old)
        else:
            if result is not measured:
                metadata = {**metadata, ENERGY_KEY: f"{_energy(measured, written):.6f}"}
            draft = _draft(kept, result, self.output, given, report, metadata, self.old)
            compared = numbers = numbers or analyze_pair(measured)
            report["retained_energy"] = _energy(measured, written)
            report["by_qr"] = numbers.slow
            report["stored_in_full"] = _certificates(measured)
            if given.analyze_blocks:
                report["blocks"] = _grouped(numbers, "block")
        report |= {
            "cosine": compared.cosine,
            "cancelled": compared.cancelled,
            "skipped": _skipped(self.difference, chosen, small, self.nullify),
            "kept_from_one_side": _one_sided(self.difference) if self.difference.unmatched == "keep" else [],
            "warnings": [*measured.warnings, *compared.warnings],
            "seconds": round(time.perf_counter() - started, 3),
        }
        return draft


def run_extract(given: argparse.Namespace) -> int:
    """``difflora extract``: a LoRA out of two checkpoints."""
    return _run_at_rank(time.perf_counter(), extract(given.base, given.tuned), given, EXTRACT_RANK)


def run_rerank(given: argparse.Namespace) -> int:
    """``difflora rerank``: another rank for one LoRA."""
    return _run_at_rank(time.perf_counter(), _load(given.file, given), given, DEFAULT_RANK)


def _run_at_rank(started: float, lora: Lora, given: argparse.Namespace, default_rank: int) -> int:
    """Selection, rank, file."""
    output = _output(given, lora)
    chosen = _chosen(lora, given)
    rule = _rule(given, default_rank)
    result = chosen if rule is None else rerank(chosen, rule, given.max_rank)
    report: Report = {"output": str(output), "notes": [], "scale": _scale(given) or 1.0}
    _save(result, output, given, report)
    if isinstance(result, RerankedLora):
        report["retained_energy"] = result.retained_energy
        report["by_qr"] = result.factorisation.slow
        report["stored_in_full"] = _certificates(result)
    report |= {"skipped": _not_selected(lora, chosen, given.nullify), "warnings": list(result.warnings)}
    return _finish(given, report, started)


def run_convert(given: argparse.Namespace) -> int:
    """``difflora convert``: the same LoRA in other clothes."""
    started = time.perf_counter()
    file = _load(given.file, given)
    output = _output(given, file)
    chosen = _chosen(file, given)
    report: Report = {"output": str(output), "notes": [], "scale": _scale(given) or 1.0,
                      "from_dialect": file.dialect, "dialect": given.dialect}
    _save(chosen, output, given, report)
    report |= {"skipped": _not_selected(file, chosen, given.nullify), "warnings": list(chosen.warnings)}
    return _finish(given, report, started)


def run_rebuild(given: argparse.Namespace) -> int:
    """``difflora rebuild``: from the recipe in a file to the file."""
    started = time.perf_counter()
    header = read_header(given.file)
    saved = recipes.SavedRecipe.of_file(given.file)
    of, twin = saved.of, twins.Twin.of_header(header)
    if given.twin:
        if twin is None:
            raise RecipeError(f"{header.path.name}: this file has no twin; it was made alone.")
        of, twin = twin.of, twins.Twin(twins.other_noise(twin.noise), header.path.name, saved.of)
    lora = recipes.from_recipe(of, recipes.find_in(given.inputs))
    output = _output(given, lora)
    report: Report = {"output": str(output), "notes": [], "recipe": recipes.told(of)}
    given.dtype, given.dialect = saved.dtype, saved.dialect
    _save(lora, output, given, report, twin.metadata() if twin else {})
    report["warnings"] = list(lora.warnings)
    if given.twin:
        return _finish(given, report, started)
    report["identical"] = report["sshs_model_hash"] == header.metadata.get("sshs_model_hash")
    if not report["identical"]:
        report["warnings"].append(
            f"The tensors differ from {header.path.name}, which was made by {shown(saved.made_by)}: rounding differs "
            "between versions of torch and between processors."
        )
    return _finish(given, report, started)


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
        "matrices": len(file.matrices),
        "vectors": len(vectors),
        "rank": file.rank_text,
        "scale": scales,
        "dtypes": dict(Counter(CODES[entry.dtype] for entry in entries)),
        "contents": summary(file),
        "recipe": None,
        "twin": None,
        "metadata": dict(file.metadata),
        "warnings": list(file.warnings),
    }
    with contextlib.suppress(RecipeError):
        report["recipe"] = recipes.told(recipes.SavedRecipe.of_file(file.path).of)
        if twin := twins.Twin.of_header(file.header):
            report["twin"] = {"noise": twin.noise, "other": twin.other}
    if given.json:
        report["modules"] = {name: {"shape": list(spec.shape), "rank": spec.rank} for name, spec in file.specs.items()}
        _print_json(report)
        return 0
    shown_keys = ("modelspec.title", "ss_base_model_version", "modelspec.date", "ss_learning_rate", "ss_steps",
                  "ss_num_train_items", "ss_seed", ENERGY_KEY)
    _print_table([
        ("file", f"{shown(report['file'], 400)}  ({_bytes(report['bytes'])})"),
        ("SHA-256", report["sha256"]),
        ("key names", report["dialect"]),
        ("base model", report["base_model"] or "not recognised"),
        ("modules", f"{report['matrices']} matrices at rank {report['rank']}"
                    + (f", {report['vectors']} biases, norms or tables" if vectors else "")),
        ("", shown(report["contents"], 400)),
        ("scale", "alpha / rank = " + " to ".join(dict.fromkeys(f"{scale:g}" for scale in (scales[0], scales[-1])))
         if scales else "-"),
        ("dtypes", ", ".join(f"{code} ({count})" for code, count in report["dtypes"].items())),
        *((key, shown(file.metadata[key])) for key in shown_keys if key in file.metadata),
        *([("recipe", shown(report["recipe"], 400))] if report["recipe"] else []),
        *([("twin", f"for {report['twin']['noise']} noise; the other is {shown(report['twin']['other'])}")]
          if report["twin"] else []),
    ])
    _warn(report["warnings"])
    return 0


def run_analyze(given: argparse.Namespace) -> int:
    """``difflora analyze``: two LoRAs compared."""
    started = time.perf_counter()
    difference = subtract(_load(given.a, given), _load(given.b, given), given.weight_a, given.weight_b)
    chosen: Lora = difference.select(given.select) if given.select else difference
    if not chosen.matrices:
        raise PairError("There is no weight matrix to compare: only biases, norms or modulation change.")
    with _bar("comparing") as progress:
        numbers = analyze_pair(chosen, progress)
    if given.csv:
        sys.stdout.write(numbers.csv())
        return 0
    report: Report = {
        "norm_a": numbers.norm_a, "norm_b": numbers.norm_b, "norm": numbers.norm,
        "cosine": numbers.cosine, "cancelled": numbers.cancelled,
        "energy": {str(rank): numbers.energy(rank) for rank in (1, 2, 4, 8, 16, 32)},
        "by_qr": numbers.slow,
        "only_a": list(numbers.only_a), "only_b": list(numbers.only_b),
        "warnings": [*chosen.warnings, *numbers.warnings],
        "seconds": round(time.perf_counter() - started, 3),
    }
    if given.json:
        report["modules"] = {name: _numbers(one) for name, one in numbers.modules.items()}
        _print_json(report)
        return 0
    _print_table([
        ("norms", f"A {numbers.norm_a:.4g}, B {numbers.norm_b:.4g}, difference {numbers.norm:.4g}"),
        ("cosine of A and B", f"{numbers.cosine:.4f}"),
        ("cancelled", f"{numbers.cancelled:.1%} of both sides' energy"),
        ("energy by rank", ", ".join(f"{rank}: {share:.1%}" for rank, share in report["energy"].items())),
        *([("only in one file", f"{len(numbers.only_a)} modules in A, {len(numbers.only_b)} in B")]
          if numbers.only_a or numbers.only_b else []),
        ("modules", f"{len(numbers.modules)}, {numbers.slow} of them by QR, {report['seconds']:.1f} s"),
    ])
    _print_groups(_grouped(numbers, given.by), given.by)
    _warn(report["warnings"])
    return 0


# What the commands share


def _load(path: str, given: argparse.Namespace) -> FileLora:
    return load(path, given.ignore_unknown)


def _paths(given: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """The files A and B: of each noise, or under no name where there is one pair."""
    if given.high is None and given.low is None:
        paths = [*given.pair, *(path for path in (given.lora_a, given.lora_b) if path is not None)]
        if len(paths) != 2 or (given.lora_a is None) != (given.lora_b is None):
            raise UsageError(f"subtract needs two files, A and B, but got {len(paths)} (see difflora subtract --help)")
        return {"": (paths[0], paths[1])}
    if given.high is None or given.low is None:
        there, lacks = ("--high", "--low") if given.low is None else ("--low", "--high")
        raise UsageError(f"{there} is given without {lacks}; give both, each with two files, or one pair alone: subtract A B")
    if given.pair:
        raise UsageError(f"--high and --low bring both pairs, so there is no place for {shown(given.pair[0])}; leave it out")
    if old := [f"--{flag}" for flag in OLD_FLAGS if getattr(given, flag) is not None]:
        raise UsageError(f"{', '.join(old)}: the old script's flags do not go with --high and --low; use --select, --scale "
                         "and the others of this program")
    return {"high": (given.high[0], given.high[1]), "low": (given.low[0], given.low[1])}


@contextlib.contextmanager
def _side_named(noise: str) -> Iterator[None]:
    """Errors in here say which of the two pairs they are about."""
    try:
        yield
    except DiffLoraError as error:
        if noise:
            raise type(error)(f"{noise} noise: {error}") from error
        raise


def _twin_of(noise: str, made: Mapping[str, _Subtraction]) -> dict[str, str]:
    """What the file of this noise is to say about the other one."""
    if not noise:
        return {}
    other = made[twins.other_noise(noise)]
    return twins.Twin(noise, other.output.name, other.result.recipe).metadata()


def _output(given: argparse.Namespace, *inputs: Lora) -> Path:
    return _free(Path(given.output), given, *inputs)


def _free(output: Path, given: argparse.Namespace, *inputs: Lora) -> Path:
    """The path to write, checked before any work is done."""
    check_target(output, given.overwrite)
    for file in itertools.chain.from_iterable(lora.inputs for lora in inputs):
        if output.exists() and os.path.samefile(output, file.path):
            raise OutputError(f"{output}: this is one of the inputs, which the result's recipe has to find again. "
                              "Choose another name.")
    return output


def _expression(given: argparse.Namespace) -> str | None:
    if given.select is not None and (given.target_blocks or given.target_indices):
        raise UsageError("--select and --target-blocks or --target-indices say the same thing twice; give one")
    if given.select is not None:
        return str(given.select)
    return old_script.selection(given.target_blocks or (), given.target_indices or ())


def _scale(given: argparse.Namespace) -> float | None:
    alpha = getattr(given, "alpha", None)
    if given.scale is not None and alpha is not None:
        raise UsageError("--scale and --alpha say the same thing twice; give one")
    scale: float | None = given.scale if alpha is None else alpha
    if scale == 0:
        raise UsageError(f"the scale is {scale:g}; it must be a number other than zero")
    target = getattr(given, "target_norm", None)
    if target is not None and target <= 0:
        raise UsageError(f"--target-norm is {target:g}; it must be above zero")
    percentile = getattr(given, "auto_threshold_percentile", None)
    if percentile is not None and not 0 <= percentile < 100:
        raise UsageError(f"--auto-threshold-percentile is {percentile:g}; it must be from 0 to below 100")
    return scale


def _chosen(file: Lora, given: argparse.Namespace) -> Lora:
    chosen = file if given.select is None else file.select(given.select, given.nullify)
    scale = _scale(given)
    return chosen if scale is None else chosen.scaled(scale)


def _rule(given: argparse.Namespace, default_rank: int) -> RankRule | None:
    """None for --lossless."""
    if given.lossless:
        if given.max_rank is not None:
            raise UsageError("--lossless keeps every rank, so --max-rank does not go with it")
        return None
    if given.energy is not None:
        return Energy(given.energy)
    if given.ratio is not None:
        return Ratio(given.ratio)
    if given.knee:
        return Knee()
    return FixedRank(default_rank if given.rank is None else given.rank)


def _answers(given: argparse.Namespace) -> list[str]:
    """What to say to flags of the old script that have nothing left to do."""
    notes = []
    if given.device and given.device != "cpu":
        notes.append(f"--device {shown(given.device)}: runs on the CPU, which is enough: the arithmetic is on small "
                     "factors and takes about as long as reading the files.")
    if given.fast_svd:
        notes.append("--fast_svd: the exact SVD of the small factors is already faster than an approximate one of "
                     "the full matrices, so it is used.")
    return notes


def _weight(lora: Lora, name: str) -> float:
    return lora.weights.get(name, 0.0) if isinstance(lora, SelectedLora) else 1.0


def _energy(lora: Lora, written: Iterable[str]) -> float | None:
    """Share of the energy that the rank keeps, over the modules that are written."""
    if not isinstance(lora, RerankedLora):
        return 1.0
    kept = total = 0.0
    for name in written:
        energy = lora.total_energy(name)
        kept += lora.module_energy(name) * energy
        total += energy
    return kept / total if total > 0 else 1.0


def _certificates(lora: Lora) -> dict[str, float]:
    """Modules that were stored in full, and by what share their error can be above the smallest possible one."""
    if not isinstance(lora, RerankedLora):
        return {}
    return {name: found.excess for name, found in lora.certificates.items()}


def _save(
    lora: Lora, output: Path, given: argparse.Namespace, report: Report, metadata: Mapping[str, str] | None = None
) -> None:
    with contextlib.ExitStack() as kept:
        publish([_draft(kept, lora, output, given, report, metadata or {})])


def _draft(
    kept: contextlib.ExitStack, lora: Lora, output: Path, given: argparse.Namespace, report: Report,
    metadata: Mapping[str, str], old: bool = False,
) -> Draft:
    dtype = given.dtype or (old_script.DEFAULT_DTYPE if old else "float32")
    with _bar("writing") as progress:
        draft = kept.enter_context(drafted(lora, output, dtype, given.dialect, given.overwrite, metadata, progress))
    matrices = len(lora.matrices)
    report |= {
        "bytes": draft.temporary.stat().st_size,
        "dtype": dtype,
        "dialect": given.dialect,
        "matrices": matrices,
        "vectors": len(lora) - matrices,
        "rank": lora.rank_text,
        "sshs_model_hash": read_header(draft.temporary).metadata["sshs_model_hash"],
    }
    return draft


def _one_sided(difference: CombinedLora) -> list[dict[str, Any]]:
    lines = []
    for side, (_, lora) in enumerate(difference.parts):
        modules = [name for name, sides in difference.one_sided.items() if sides == (side,)]
        if modules:
            lines.append({"why": f"only in {shown(lora.files[0].name)}", "modules": modules})
    return lines


def _skipped(difference: CombinedLora, chosen: Lora, small: Sequence[str], nullify: bool) -> list[dict[str, Any]]:
    """What was in the files but is not in the output, and why."""
    lines = _one_sided(difference) if difference.unmatched == "drop" else []
    lines += _not_selected(difference, chosen, nullify)
    if small:
        lines.append({"why": "norm below the threshold" + (", written as zeros" if nullify else ""),
                      "modules": list(small)})
    return lines


def _not_selected(of: Lora, chosen: Lora, nullify: bool) -> list[dict[str, Any]]:
    selected: Lora | None = chosen
    while selected is not None and not isinstance(selected, SelectedLora):
        selected = selected.parents[0] if selected is not of and selected.parents else None
    if selected is None:
        return []
    modules = [name for name in of if name not in selected.weights]
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
    summed = {group: Analysis(modules, (), (), 0, numbers.weight_a, numbers.weight_b) for group, modules in groups.items()}
    return {group: {"modules": len(one.modules), "norm_a": one.norm_a, "norm_b": one.norm_b, "norm": one.norm,
                    "cosine": one.cosine, "cancelled": one.cancelled, "energy_rank_4": one.energy(4)}
            for group, one in summed.items() if one.norm_a or one.norm_b}


def _numbers(one: ModuleNumbers) -> dict[str, Any]:
    return {"norm_a": one.norm_a, "norm_b": one.norm_b, "norm": one.norm, "cosine": one.cosine,
            "cancelled": one.cancelled, "stable_rank": one.stable_rank, "singular_values": one.spectrum.tolist()}


# Showing it


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Progress | None]:
    """A progress bar on stderr, if somebody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(desc=what, unit=" modules", leave=False, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _finish(given: argparse.Namespace, report: Report, started: float) -> int:
    report["seconds"] = round(time.perf_counter() - started, 3)
    if given.json:
        _print_json(report)
        return 0
    _print_report(report)
    for note in report["notes"]:
        sys.stderr.write(f"difflora: note: {note}\n")
    _warn(report["warnings"])
    return 0


def _finish_twins(given: argparse.Namespace, reports: dict[str, Report], mix_ups: list[str], started: float) -> int:
    if given.json:
        _print_json({**reports, "warnings": mix_ups, "seconds": round(time.perf_counter() - started, 3)})
    else:
        for report in reports.values():
            _print_report(report)
        _warn(mix_ups)
    for noise, report in reports.items():
        _warn(f"{noise} noise: {line}" for line in report["warnings"])
    return 0


def _print_report(report: Report) -> None:
    sys.stdout.write(f"wrote {shown(report['output'], 400)}  ({_bytes(report['bytes'])}, {report['seconds']:.1f} s)\n")
    written = f"{report['matrices']} at rank {report['rank']}, {report['dtype']}, {report['dialect']} key names"
    if report["vectors"]:
        written += f"; {report['vectors']} biases, norms or tables"
    rows = [("modules", written)]
    rows += [("skipped", f"{_listed(line['modules'])}: {line['why']}") for line in report.get("skipped", [])]
    rows += [("zero on one side", f"{_listed(line['modules'])}: {line['why']}")
             for line in report.get("kept_from_one_side", [])]
    for key, title, text in (
        ("retained_energy", "retained energy", "{:.2%}"),
        ("cosine", "cosine of A and B", "{:.4f}"),
        ("cancelled", "cancelled", "{:.1%} of both sides' energy"),
        ("by_qr", "slow path", "{} modules, by QR"),
        ("recipe", "recipe", "{}"),
    ):
        if report.get(key) is not None:
            rows.append((title, text.format(report[key])))
    if report.get("stored_in_full"):
        excess = report["stored_in_full"]
        rows.append(("stored in full", f"{_listed(list(excess))}: approximated, the error at most "
                                       f"{max(excess.values()):.2%} above the smallest possible"))
    if report.get("scale", 1.0) != 1.0:
        rows.append(("scaled by", f"{report['scale']:.6g}"))
    if report.get("identical"):
        rows.append(("tensors", "bit for bit those of the original"))
    _print_table(rows)
    if "blocks" in report:
        _print_groups(report["blocks"], "block")


def _print_json(report: Mapping[str, Any]) -> None:
    for note in report.get("notes", []):
        sys.stderr.write(f"difflora: note: {note}\n")
    _warn(report.get("warnings", []))
    json.dump(report, sys.stdout, indent=1)
    sys.stdout.write("\n")


def _print_table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        sys.stdout.write(f"  {title:<{width}}  {text}\n")


def _print_groups(groups: Mapping[str, Mapping[str, float]], title: str) -> None:
    width = max(len(title), *(len(group) for group in groups)) if groups else len(title)
    sys.stdout.write(f"\n  {title:<{width}}  modules  norm A    norm B    norm A-B  cosine  cancelled  energy at 4\n")
    for group, one in groups.items():
        sys.stdout.write(
            f"  {group:<{width}}  {one['modules']:>7}  {one['norm_a']:<8.4g}  {one['norm_b']:<8.4g}  "
            f"{one['norm']:<8.4g}  {one['cosine']:>6.3f}  {one['cancelled']:>9.1%}  {one['energy_rank_4']:>11.1%}\n"
        )


def _warn(warnings: Iterable[str]) -> None:
    for line in dict.fromkeys(warnings):
        sys.stderr.write(f"difflora: warning: {line}\n")


def _listed(modules: Sequence[str], most: int = 3) -> str:
    if len(modules) <= most:
        return ", ".join(shown(name) for name in modules)
    return f"{len(modules)} modules ({', '.join(shown(name) for name in modules[:most])}, …)"


def _bytes(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        size_next = size / 1000
        size = size_next  # type: ignore[assignment]
    return f"{size:.3g} GB"


