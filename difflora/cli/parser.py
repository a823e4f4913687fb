"""The words of the command line. Each command is parsed into a namespace whose `command` names it."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import DiffLoraError
from ..names.keys import NATIVE, OUTPUT_DIALECTS
from ..rank.rules import RULES, FixedRank
from ..saving import wan22
from ..sentence import printable
from ..storage.dtypes import OUTPUT_DTYPES
from ..training.musubi import PRESETS, Machine, Training
from ..version import __version__

DEFAULT_RANK = 4
EXTRACT_RANK = 32  # a whole fine-tune needs a larger rank than the difference of two LoRAs
OLD_FLAGS = (
    "lora_a",
    "lora_b",
    "target_blocks",
    "target_indices",
    "alpha",
    "target_norm",
    "magnitude_threshold",
    "auto_threshold_percentile",
    "exclude_non_targeted",
    "analyze_blocks",
    "device",
    "fast_svd",
)


class UsageError(DiffLoraError):
    """The command line itself cannot be understood."""


def words_of(arguments: Sequence[str]) -> list[str]:
    """The command line with one spelling for every flag. Everything after ``--extra`` is for musubi-tuner and stays as it is."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1] == "--extra":
            words[-1] = f"--extra={word}"
        else:
            words.append(_hyphens(word))
    return words


def _hyphens(word: str) -> str:
    """Write ``--target_blocks`` as ``--target-blocks``. Text after ``=``, and values that merely begin like a flag, stay unchanged."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if re.fullmatch(r"--[A-Za-z_-]+", flag) else word


_DASHES = re.compile("^[-\u2010-\u2015\u2212\ufe58\ufe63\uff0d]*[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]-*")


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{self._meant(message)} (see {self.prog} --help)")

    def _meant(self, message: str) -> str:
        """The known word that is most like an unknown one, as a suggestion."""
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2]))
        if message.startswith("unrecognized arguments: "):
            for word in message.split()[2:]:
                word = _DASHES.sub("--", word)  # a text that was copied from a page has longer ones
                if word.startswith("-") and (guess := did_you_mean(word.partition("=")[0], self._flags())):
                    return guess
        return ""

    def _flags(self) -> list[str]:
        """Every flag of this parser and of its commands."""
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags += [flag for command in action.choices.values() for flag in command._option_string_actions]
        return flags


def did_you_mean(word: str, there: Sequence[str]) -> str:
    """``; did you mean subtract?``, or nothing if no word is much like it."""
    close = difflib.get_close_matches(word.casefold(), there, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser: argparse.ArgumentParser = _Parser(
        prog="difflora", description="Exact differences of LoRAs: sliders from pairs."
    )
    parser.add_argument("--version", action="version", version=f"difflora {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "subtract",
        help="write A - B as a small LoRA: the slider",
        description="Writes the exact difference of two LoRAs, at the best small rank. For the "
        "two models of Wan2.2-A14B, --high and --low write two files in one go.",
    )
    command.add_argument("pair", nargs="*", metavar="A B", help="the LoRA with more of the property, the one with less")
    for noise in wan22.NOISES:
        command.add_argument(
            f"--{noise}",
            nargs=2,
            metavar=("A", "B"),
            help=f"instead of A B: the pair of Wan2.2's {noise}-noise model; writes OUT_{noise}.safetensors",
        )
    _add_rank_rules(command)
    _add_selection(command)
    command.add_argument("--weight-a", type=_finite, default=1.0, metavar="W", help="factor of A (default 1)")
    command.add_argument("--weight-b", type=_finite, default=1.0, metavar="W", help="factor of B (default 1)")
    command.add_argument(
        "--unmatched",
        choices=("keep", "drop", "error"),
        default=None,
        help="a module that only one side has: count the other as zero (keep, the default), leave it "
        "out (drop), or stop (error)",
    )
    _add_output(command)
    _add_old_flags(command)
    _add_ignore_unknown(command)
    command.set_defaults(command="subtract")

    command = commands.add_parser(
        "extract",
        help="write what a fine-tuned model changed about its base as a LoRA",
        description="Writes the difference of two checkpoints as a LoRA. Each may be one "
        ".safetensors file or a folder of shards.",
    )
    command.add_argument("base", metavar="BASE", help="the model that the other one was made from")
    command.add_argument("tuned", metavar="TUNED", help="the fine-tuned model")
    _add_rank_rules(command, EXTRACT_RANK)
    _add_selection(command)
    _add_output(command)
    command.set_defaults(command="extract")

    command = commands.add_parser(
        "rerank",
        help="write a LoRA at another rank",
        description="Writes the best approximation of a LoRA at a smaller rank.",
    )
    command.add_argument("file")
    _add_rank_rules(command)
    _add_selection(command)
    _add_output(command)
    _add_ignore_unknown(command)
    command.set_defaults(command="rerank")

    command = commands.add_parser(
        "convert",
        help="write a LoRA in another dialect or dtype",
        description="Writes a LoRA again without loss of rank: other key names, other dtype, alpha folded in.",
    )
    command.add_argument("file")
    _add_selection(command)
    _add_output(command)
    _add_ignore_unknown(command)
    command.set_defaults(command="convert")

    command = commands.add_parser(
        "purify",
        help="take the directions of other LoRAs out of a slider",
        description="Writes SLIDER without the strongest output directions of other LoRAs, such as a colour cast or "
        "another slider. Exact; the rank does not grow.",
    )
    command.add_argument("file", metavar="SLIDER", help="the slider")
    command.add_argument(
        "--against",
        action="append",
        required=True,
        metavar="OTHER",
        help="a LoRA of what is to go; may be given up to four times",
    )
    command.add_argument(
        "--directions", type=int, default=2, metavar="N", help="how many of each, in every module (default 2)"
    )
    _add_output(command)
    _add_ignore_unknown(command)
    command.set_defaults(command="purify")

    command = commands.add_parser(
        "calibrate",
        help="scale a slider so that strength 1 has a unit",
        description="Writes FILE scaled so that its modules have a given mean norm at strength 1. Sliders of one norm are "
        "closer to each other in effect. The unit is written into the metadata.",
    )
    command.add_argument("file", metavar="FILE", help="the slider")
    command.add_argument(
        "--norm", type=_finite, required=True, metavar="N", help="the mean Frobenius norm of a module at strength 1"
    )
    _add_output(command)
    _add_ignore_unknown(command)
    command.set_defaults(command="calibrate")

    command = commands.add_parser(
        "inspect",
        help="say what is in a LoRA file",
        description="Says what is in a LoRA file; reads no weights except to hash them.",
    )
    command.add_argument("file")
    _add_ignore_unknown(command)
    _add_json(command)
    command.set_defaults(command="inspect")

    command = commands.add_parser(
        "analyze",
        help="compare two LoRAs, module by module",
        description="Compares two LoRAs exactly: norms, cosine, what cancels, how many "
        "directions the difference has. Writes nothing.",
    )
    command.add_argument("a", metavar="A")
    command.add_argument("b", metavar="B")
    command.add_argument("--weight-a", type=_finite, default=1.0, metavar="W", help="factor of A (default 1)")
    command.add_argument("--weight-b", type=_finite, default=1.0, metavar="W", help="factor of B (default 1)")
    command.add_argument("--select", metavar="EXPR", help='only these modules, such as "attn" or "blocks 0-9 & ffn"')
    command.add_argument(
        "--by",
        choices=("component", "block", "module"),
        default="component",
        help="what a line of the table stands for (default component)",
    )
    command.add_argument("--csv", action="store_true", help="print all modules for a spreadsheet")
    _add_ignore_unknown(command)
    _add_json(command)
    command.set_defaults(command="analyze")

    command = commands.add_parser(
        "rebuild",
        help="make a file again from the recipe inside it",
        description="Reads the recipe in a file's metadata, finds the inputs by their "
        "SHA-256 and makes the file again, bit for bit the same tensors.",
    )
    command.add_argument("file", help="a file that difflora wrote")
    command.add_argument("--twin", action="store_true", help="make the file's twin of the other noise instead")
    command.add_argument("--inputs", required=True, metavar="DIR", help="where to look for the input files")
    _add_place(command)
    _add_ignore_unknown(command)
    command.set_defaults(command="rebuild")

    _add_recipe(commands)
    return parser


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{printable(repr(text))} is not a finite number")
    return number


SHORT_DTYPES = {"fp32": "float32", "f32": "float32", "fp16": "float16", "f16": "float16", "half": "float16"}
SHORT_DTYPES |= {"bf16": "bfloat16", "float": "float32", "fp8": "float8_e4m3fn", "fp8_e4m3fn": "float8_e4m3fn"}
SHORT_DTYPES |= {"fp8_e5m2": "float8_e5m2", "e4m3fn": "float8_e4m3fn", "e5m2": "float8_e5m2"}
SHORT_DTYPES |= dict.fromkeys(("fp8_e4m3", "float8_e4m3", "e4m3", "f8", "float8", "f8_e4m3"), "float8_e4m3fn")
SHORT_DTYPES |= {"f8_e5m2": "float8_e5m2"}
# With a hyphen, a space or an underscore in it as well: fp-16.
SHORT_DTYPES |= {re.sub("[_ -]", "", word): dtype for word, dtype in [*SHORT_DTYPES.items()]}
SHORT_DTYPES |= {re.sub("[_ -]", "", dtype): dtype for dtype in OUTPUT_DTYPES}


def _dtype(text: str) -> str:
    word = text.casefold().removeprefix("torch.")
    return SHORT_DTYPES.get(re.sub("[_ -]", "", word), word)


def _add_rank_rules(command: argparse.ArgumentParser, default: int = DEFAULT_RANK) -> None:
    rule = command.add_argument_group("how much to keep").add_mutually_exclusive_group()
    for word, one in RULES.items():
        if one.setting is None:
            rule.add_argument(f"--{word}", action="store_true", help=one.says)
        else:
            such_as = f"default {default}" if one is FixedRank else f"such as {one.example}"
            kind, metavar = (int, "R") if one.whole else (_finite, "P")
            rule.add_argument(f"--{word}", type=kind, metavar=metavar, help=f"{one.says} ({such_as})")
    rule.add_argument("--lossless", action="store_true", help="everything, at the sum of the ranks")
    command.add_argument("--max-rank", type=int, metavar="R", help="never above this rank")


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--select",
        metavar="EXPR",
        help='only these modules, such as "attn" or "attn, ffn=0.5" (ffn=0.5 alone leaves attention out)',
    )
    command.add_argument("--nullify", action="store_true", help="write the others as zeros instead of leaving them out")
    command.add_argument("--scale", type=_finite, metavar="S", help="multiply the result (default 1)")


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        type=_dtype,
        choices=tuple(OUTPUT_DTYPES),
        default=None,
        help="of the weights (default float32); fp16, bf16 and fp32 will do",
    )
    command.add_argument(
        "--dialect",
        choices=OUTPUT_DIALECTS,
        default=NATIVE,
        help="whose key names to write (default native, which ComfyUI and WanVideoWrapper read)",
    )
    _add_place(command)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="the .safetensors file to write")
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    _add_json(command)


def _add_ignore_unknown(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ignore-unknown", action="store_true", help="go on if keys of a file are not understood")
    command.add_argument(
        "--noise",
        choices=wan22.NOISES,
        default=None,
        help="of a file that holds the LoRAs of Wan2.2's two models: which one",
    )


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
    small.add_argument(
        "--auto-threshold-percentile", type=_finite, metavar="P", help="the same, the norm as a percentile"
    )
    old.add_argument("--exclude-non-targeted", action="store_true", default=None, help="leave out what is not targeted")
    old.add_argument("--analyze-blocks", action="store_true", default=None, help="print the norms block by block")
    old.add_argument("--device", help="answered: the CPU is enough")
    old.add_argument("--fast-svd", action="store_true", default=None, help="answered: the exact way is faster")


def _add_recipe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "recipe",
        help="write what musubi-tuner needs to train both sides of a pair alike",
        description="Writes DATASET/training: a dataset file and command files (.sh, .bat) for each side.",
    )
    command.add_argument("dataset", type=Path, help="the folder that holds the two folders of images")
    command.add_argument("--preset", choices=tuple(PRESETS), default="slider", help="settings to start from")
    command.add_argument("--sides", nargs="+", default=["detailed", "sparse"], help="the folders' names")
    command.add_argument("--name", default="slider", help="what the LoRA files' names start with")
    command.add_argument("--overwrite", action="store_true", help="replace files of an earlier recipe")
    for each in (*dataclasses.fields(Training), *dataclasses.fields(Machine)):
        if each.metadata:
            _add_option(command, each)
    command.set_defaults(command="recipe")


def _add_option(command: argparse.ArgumentParser, setting: dataclasses.Field[Any]) -> None:
    text = setting.metadata["help"].replace("%", "%%")
    flag = f"--{setting.name.replace('_', '-')}"
    if isinstance(setting.default, bool):
        command.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    choices = setting.metadata.get("choices")
    command.add_argument(flag, type=type(setting.default), default=None, choices=choices, help=text)
