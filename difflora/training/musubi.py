"""What musubi-tuner needs to train the two sides of a pair alike: dataset files and command files, for both systems.

All paths are relative to the folder of the files (``<dataset>/training``, next to ``<dataset>/detailed``
and ``<dataset>/sparse``). So the dataset can be made on one machine and trained on another, and a folder name
with spaces, brackets or non-ASCII letters never gets into a command.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import OutputError, TrainingError
from ..saving.wan22 import NOISES
from ..sentence import Sentence
from ..storage.writer import WINDOWS_DEVICES, is_same_file, make_folder, write_whole
from .pairs import Dataset, read_size

T = TypeVar("T")

TASKS = {"t2v-14B": 40, "t2v-1.3B": 30, "t2i-14B": 40, "t2v-A14B": 40}
"""musubi-tuner's Wan tasks that start from text alone, and how many blocks the model of each has."""

TWO_EXPERTS = {"t2v-A14B": 875}
"""The tasks with two models, a high-noise and a low-noise expert, and the timestep (of 1000) at which they switch."""

SCHEDULERS = ("constant_with_warmup", "constant", "cosine", "cosine_with_restarts", "linear", "polynomial", "rex")
LAYERS = ("all", "attention")
SAMPLINGS = ("shift", "sigmoid", "uniform", "sigma", "logsnr")
PRECISIONS = ("bf16", "fp16", "no")

LAUNCHER = "same_order.py"
"""Starts the training so that both sides see the images in the same order. Written next to the command files."""

_LAUNCHER_TEXT = '''"""Starts musubi-tuner's training with its cache files listed by the names of the images: same_order.py MUSUBI FLAGS…

musubi-tuner lists them in the order of the file system, and shuffles that. The order is then another on each side: of
creation by several threads, or by the size that the files' names hold. Sorted by the images' names, it is the same.
A worker process that imports this file lists alike.
"""

import glob
import os
import re
import sys

_listed = glob.glob


def _image(path):
    name = os.path.basename(path)
    return re.sub(r"_[0-9]{4,}x[0-9]{4,}(?=[_.])", "", name), name, path


def _by_image(*words, **options):
    return sorted(_listed(*words, **options), key=_image)


glob.glob = _by_image

if __name__ == "__main__":
    sys.path.insert(0, os.path.join(sys.argv.pop(1), "src"))
    from musubi_tuner.wan_train_network import main

    main()
'''

# musubi-tuner knows these three itself, in upper or lower case; it looks up other names without a dot
# in torch.optim, and imports names with dots.
BUILT_IN_OPTIMIZERS = {"adamw8bit", "adamw", "adafactor"}
TORCH_OPTIMIZERS = set("Adadelta Adagrad Adam Adamax ASGD NAdam RAdam RMSprop Rprop SGD".split())
PACKAGES = {"lion_pytorch": "lion-pytorch", "prodigyopt": "prodigyopt", "bitsandbytes": "bitsandbytes"}
"""The package that provides a module, if their names differ or musubi-tuner does not install it."""


def _setting(default: T, text: str, **limits: Any) -> T:
    """A field that both the command line and the node read: default, help text, and `min`, `max`, `step` or `choices`.

    With `later=True`, the node puts it after the inputs that saved workflows find by position.
    """
    value: T = field(default=default, metadata={"help": text, **limits})
    return value


@dataclass(frozen=True)
class Clips:
    """Which pieces of each video are trained on, and at what size."""

    resolution: tuple[int, int]
    target_frames: tuple[int, ...]
    extraction: str
    samples: int = 1


EXTRACTIONS = ("head", "chunk", "slide", "uniform")


def parse_clips(text: str) -> list[Clips]:
    """Read ``768x416 1,21 head; 384x208 45 uniform 2``."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        read = re.fullmatch(rf"(\d+)x(\d+)\s+(\d+(?:,\d+)*)\s+({'|'.join(EXTRACTIONS)})(?:\s+(\d+))?", part, re.ASCII)
        if not read:
            raise TrainingError(
                f"clips: {part!r} is not understood. Write size, frames, {'/'.join(EXTRACTIONS)}, and how many samples "
                "uniform takes of each video, as in: 768x416 1,21 head; 384x208 45 uniform 2"
            )
        width, height, frames, extraction, samples = read.groups()
        targets = tuple(int(count) for count in frames.split(","))
        found.append(Clips((int(width), int(height)), targets, extraction, int(samples or 1)))
    return found


@dataclass(frozen=True)
class Training:
    """Everything that decides what a side learns. Both sides get exactly the same."""

    width: int = _setting(192, "Width of the training images, in pixels.", min=64, max=2048, step=16)
    height: int = _setting(192, "Height of the training images, in pixels.", min=64, max=2048, step=16)
    buckets: bool = _setting(True, "Keep each image's aspect ratio, at the same area. Off: crop to width x height.")
    batch_size: int = _setting(1, "Images per step.", min=1, max=64)
    task: str = _setting("t2v-14B", "The Wan model to train on.", choices=tuple(TASKS))
    rank: int = _setting(16, "Rank of the two LoRAs (network_dim).", min=1, max=1280)
    alpha: float = _setting(
        1.0,
        "network_alpha. The LoRA's scale is alpha / rank; 1 is musubi-tuner's own default.",
        min=0.01,
        max=1280.0,
        step=0.5,
    )
    optimizer: str = _setting(
        "lion_pytorch.Lion",
        "AdamW8bit, AdamW, Adafactor, a class of torch.optim, or module.Class of an installed package.",
    )
    optimizer_args: str = _setting("", "More optimizer settings, as in: weight_decay=0.01 betas=(0.9,0.99)")
    learning_rate: float = _setting(2e-5, "Learning rate.", min=1e-8, max=1.0, step=1e-6)
    scheduler: str = _setting("constant_with_warmup", "How the learning rate changes over time.", choices=SCHEDULERS)
    warmup_steps: int = _setting(50, "Steps over which the learning rate rises.", min=0, max=100_000)
    steps: int = _setting(5000, "Training steps.", min=1, max=1_000_000)
    save_every: int = _setting(500, "Steps between two checkpoints.", min=1, max=1_000_000)
    seed: int = _setting(42, "The same for both sides: same noise, same order of images.", min=0, max=2**32 - 1)
    timestep_sampling: str = _setting("shift", "How noise levels are drawn.", choices=SAMPLINGS)
    flow_shift: float = _setting(3.0, "Shift of the noise levels (discrete_flow_shift).", min=0.1, max=100.0, step=0.1)
    mixed_precision: str = _setting("bf16", "Must suit the model file: fp16 for an fp16 file.", choices=PRECISIONS)
    fp8_base: bool = _setting(True, "Hold the base model in fp8: half the memory.")
    blocks_to_swap: int = _setting(
        16, "Blocks kept in main memory instead of on the GPU. More: less GPU memory, slower.", min=0, max=39
    )
    extra: str = _setting("", "More flags for wan_train_network.py, as on a command line.")
    clips: str = _setting(
        "",
        "Videos next to the images. Size, frames, extraction, samples; as in: 768x416 1,21 head; 384x208 45 uniform 2",
    )
    layers: str = _setting(
        "all",
        "Which layers are trained. attention: only those that an attention slider keeps; the rest is left out.",
        choices=LAYERS,
        later=True,
    )
    min_timestep: int = _setting(
        0,
        "Lowest noise level, of 1000. 750 trains only where it is decided what is where.",
        min=0,
        max=999,
        later=True,
    )
    max_timestep: int = _setting(1000, "Highest noise level, of 1000.", min=1, max=1000, later=True)


PRESETS = {
    "slider": Training(),
    "style": Training(
        width=768,
        height=768,
        optimizer="AdamW8bit",
        learning_rate=5e-5,
        scheduler="constant",
        warmup_steps=0,
        clips="768x416 1,21 head; 384x208 45 uniform 2",
    ),
}
"""`slider`: a pair of image LoRAs to subtract. `style`: one LoRA of look and motion, from images and videos mixed."""


@dataclass(frozen=True)
class Machine:
    """Paths on the machine that trains. Only written into the command files, never opened here."""

    musubi: str = _setting("", "musubi-tuner's folder, in full.")
    dit: str = _setting(
        "",
        "The Wan model file, in full: bf16, or fp16 with mixed precision fp16; not fp8_scaled. "
        "For Wan2.2 its low-noise model.",
    )
    dit_high_noise: str = _setting("", "For Wan2.2 only: the file of its high-noise model, in full.")
    vae: str = _setting("", "The Wan 2.1 VAE file, in full.")
    t5: str = _setting("", "The umT5-XXL text encoder: models_t5_umt5-xxl-enc-bf16.pth, in full.")
    python: str = _setting("python", "The Python that musubi-tuner is installed in.")


def _settings(training: Training, machine: Machine) -> dict[str, str]:
    """The variables at the top of a command file: everything in `machine` that this training uses."""
    settings = dataclasses.asdict(machine)
    models = {model.lower() for model, _, _ in experts(training).values()}
    return {name: value for name, value in settings.items() if not name.startswith("dit") or name in models}


def _files_needed(settings: dict[str, str]) -> list[str]:
    return [name for name in settings if name != "python"]


@dataclass(frozen=True)
class Variable:
    """A word of a command that is set once at the top of the file, and what follows it."""

    name: str
    tail: str = ""


Word = str | Variable
Command = list[Word]


def check(training: Training, machine: Machine, sides: tuple[str, ...]) -> None:
    """Raise TrainingError for what musubi-tuner would only reject later, perhaps after hours."""
    for each in dataclasses.fields(training):
        _check_limits(each, getattr(training, each.name))
    clips = parse_clips(training.clips)
    for width, height in [(training.width, training.height), *(clip.resolution for clip in clips)]:
        if width % 16 or height % 16 or not (width and height):
            raise TrainingError(f"{width} x {height} is not a size for Wan: use multiples of 16, such as 192 x 192.")
    for frames in (count for clip in clips for count in clip.target_frames):
        if frames % 4 != 1:
            raise TrainingError(f"{frames} frames cannot be trained on: Wan needs 4 N + 1, such as 1, 21 or 45.")
    most = TASKS[training.task] - 1
    if training.blocks_to_swap > most:
        raise TrainingError(
            f"blocks_to_swap is {training.blocks_to_swap}, but the {training.task} model has {most + 1} blocks "
            f"and one must stay: use at most {most}."
        )
    _check_optimizer(training.optimizer)
    for option in training.optimizer_args.split():
        if not re.fullmatch(r"[A-Za-z_]\w*=[^=]+", option):
            raise TrainingError(f"optimizer_args: {option!r} is not of the form name=value, without spaces in it.")
        try:
            ast.literal_eval(option.partition("=")[2])
        except (ValueError, SyntaxError) as problem:
            raise TrainingError(
                f"optimizer_args: {option!r}: the value is not a Python literal, such as 0.01, True or (0.9,0.99)."
            ) from problem
    if training.min_timestep >= training.max_timestep:
        raise TrainingError(
            f"min_timestep is {training.min_timestep} and max_timestep {training.max_timestep}: the first must be smaller."
        )
    words = _words(training.extra)
    if training.layers != "all" and "--network_args" in words:
        raise TrainingError(
            f"extra holds --network_args, which layers = {training.layers} writes too. Set layers to all, or leave it out."
        )
    if words and not words[0].startswith("-"):
        raise TrainingError(
            f"extra is {training.extra!r}: it must begin with a flag of musubi-tuner, such as --fp8_t5."
        )
    for name, text in [*dataclasses.asdict(machine).items(), ("extra", training.extra)]:
        _check_text(name, text)
    if len({side.casefold() for side in sides}) != len(sides) or not sides:
        raise TrainingError(f"The sides are called {list(sides)}: give each another name.")
    for side in sides:
        _check_side(side)


def _check_limits(setting: dataclasses.Field[Any], value: Any) -> None:
    choices, low, high = (setting.metadata.get(key) for key in ("choices", "min", "max"))
    if choices and value not in choices:
        raise TrainingError(f"{setting.name} is {value!r}: use one of {', '.join(choices)}.")
    if low is not None and not low <= value <= high:
        raise TrainingError(f"{setting.name} is {value}: use a number from {low} to {high}.")


def _check_optimizer(name: str) -> None:
    if name.lower() in BUILT_IN_OPTIMIZERS or name in TORCH_OPTIMIZERS:
        return
    if name.lower() == "lion":
        raise TrainingError(
            f"optimizer is {name!r}: musubi-tuner looks a bare name up in torch.optim, which has no Lion. "
            "Use lion_pytorch.Lion, and install the package lion-pytorch."
        )
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        raise TrainingError(
            f"optimizer is {name!r}, which is neither AdamW8bit, AdamW, Adafactor nor a class of torch.optim "
            f"({', '.join(sorted(TORCH_OPTIMIZERS))}). For another package write module.Class."
        )


def _check_text(name: str, text: str) -> None:
    """What goes between quotes in both command files: neither shell can express a line break there."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise TrainingError(f"{name} holds a line break or another control character: remove it.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TrainingError(f"{name} holds half a character (a lone surrogate): type the name again.")
    if '"' in text and name != "extra":
        raise TrainingError(
            f"{name} holds a double quote, which no path on Windows can: write the path without quotes."
        )
    if text.endswith(
        "\\"
    ):  # before a closing quote, Windows programs read it as an escape: the quote becomes part of the text
        raise TrainingError(f"{name} is {text!r}, which ends in a backslash: write the file's name, without one.")
    if text.startswith("~"):
        raise TrainingError(f"{name} is {text!r}: ~ is not looked up in a command file, write the path in full.")


def _check_side(side: str) -> None:
    """A side names a folder, four files and a LoRA; musubi-tuner also looks for its cache by a pattern with it."""
    if not re.fullmatch(r"[^\W_]([\w .-]{0,62}\w)?", side):
        raise TrainingError(f"{side!r} cannot name a side: use letters, digits, _ - . and spaces, as in 'detailed'.")
    if side.split(".")[0].rstrip(" ").upper() in WINDOWS_DEVICES:
        raise TrainingError(f"{side!r} is a device on Windows, which no folder can be called: choose another name.")


def dataset_toml(training: Training, side: str) -> str:
    """The dataset file of one side, as musubi-tuner reads it."""
    general = {
        "resolution": [training.width, training.height],
        "caption_extension": ".txt",
        "batch_size": training.batch_size,
        "enable_bucket": training.buckets,
        "bucket_no_upscale": False,
    }
    # Each block needs its own cache: musubi-tuner deletes files that it does not know from a cache folder.
    blocks: list[dict[str, Any]] = [{"image_directory": f"../{side}", "cache_directory": f"cache/{side}"}]
    for number, clip in enumerate(parse_clips(training.clips), 1):
        blocks.append(
            {
                "video_directory": f"../{side}",
                "cache_directory": f"cache/{side} video {number}",
                "resolution": list(clip.resolution),
                "target_frames": list(clip.target_frames),
                "frame_extraction": clip.extraction,
                "frame_sample": clip.samples,
            }
        )
    parts = [f"# The {side} side. Both sides are trained alike: edit the other file, too.\n[general]\n{_toml(general)}"]
    return "\n".join(parts + [f"[[datasets]]\n{_toml(block)}" for block in blocks])


def _toml(table: dict[str, Any]) -> str:
    # JSON's numbers, lists, true and false, and string escapes are all TOML's, too.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items())


def commands(training: Training, side: str, name: str = "slider") -> dict[str, Command]:
    """What is run for one side, in order: title -> the words after the Python program. `name` starts the LoRA's name."""
    dataset: Command = ["--dataset_config", f"{side}.toml"]
    found: dict[str, Command] = {}
    if module := _optimizer_module(training.optimizer):
        found[f"Is {PACKAGES.get(module, module)} installed?"] = ["-c", f"import {module}"]
    found["Images to latents"] = [_script("wan_cache_latents.py"), *dataset, "--vae", Variable("VAE")]
    found["Captions to embeddings"] = [
        *[_script("wan_cache_text_encoder_outputs.py"), *dataset, "--t5", Variable("T5"), "--batch_size", "16"]
    ]
    lora: Command = ["--output_dir", f"loras/{side}", "--output_name"]
    for noise, (model, low, high) in experts(training).items():
        timesteps: Command = []
        if (low, high) != (0, 1000):
            # Without preserve_distribution_shape all noise levels would be squeezed into the range.
            timesteps = ["--min_timestep", str(low), "--max_timestep", str(high), "--preserve_distribution_shape"]
        title, ending = (f"Training, {noise} noise", f"_{noise}") if noise else ("Training", "")
        found[title] = _train(training, side, model, [*timesteps, *lora, f"{name}_{side}{ending}"])
    return found


def experts(training: Training) -> dict[str, tuple[str, int, int]]:
    """Noise -> model variable, lowest and highest timestep of each LoRA that a side needs; noise is "" for one model.

    Of Wan2.2's two models, one that never sees the wanted noise levels is not trained.
    """
    low, high = training.min_timestep, training.max_timestep
    boundary = TWO_EXPERTS.get(training.task)
    if boundary is None:
        return {"": ("DIT", low, high)}
    both = {"high": ("DIT_HIGH_NOISE", max(low, boundary), high), "low": ("DIT", low, min(high, boundary))}
    return {noise: part for noise, part in both.items() if part[1] < part[2]}


def _train(training: Training, side: str, model: str, last: Command) -> Command:
    # One process: accelerate would use all GPUs, and each step would then see that many images.
    train: Command = ["-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"]
    train += ["--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
    train += ["--mixed_precision", training.mixed_precision, LAUNCHER, Variable("MUSUBI")]
    train += ["--task", training.task, "--dit", Variable(model), "--dataset_config", f"{side}.toml"]
    train += ["--sdpa", "--mixed_precision", training.mixed_precision, "--gradient_checkpointing"]
    train += ["--fp8_base"] * training.fp8_base
    train += ["--blocks_to_swap", str(training.blocks_to_swap)] * (training.blocks_to_swap > 0)
    train += ["--network_module", "networks.lora_wan"]
    train += ["--network_dim", str(training.rank), "--network_alpha", _number(training.alpha)]
    # musubi-tuner matches a pattern against a layer's whole name.
    train += ["--network_args", "exclude_patterns=[r'.*ffn.*']"] * (training.layers == "attention")
    train += ["--optimizer_type", training.optimizer]
    train += ["--optimizer_args", *training.optimizer_args.split()] * bool(training.optimizer_args.strip())
    train += ["--learning_rate", _number(training.learning_rate)]
    train += ["--lr_scheduler", training.scheduler, "--lr_warmup_steps", str(training.warmup_steps)]
    train += ["--timestep_sampling", training.timestep_sampling]
    train += ["--discrete_flow_shift", _number(training.flow_shift)]
    train += ["--max_data_loader_n_workers", "2", "--persistent_data_loader_workers"]
    train += ["--max_train_steps", str(training.steps), "--save_every_n_steps", str(training.save_every)]
    train += ["--seed", str(training.seed)]
    return [*train, *last, *_words(training.extra)]


def _script(file: str) -> Variable:
    return Variable("MUSUBI", f"/src/musubi_tuner/{file}")


def _optimizer_module(name: str) -> str | None:
    """The top-level module of an optimizer that musubi-tuner does not install."""
    module = name.split(".")[0] if "." in name else None
    return None if module == "torch" else module


def _number(value: float) -> str:
    return f"{value:.12g}"


def _words(text: str) -> list[str]:
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters, words.escape = True, "", ""  # a backslash is part of a Windows path
    try:
        return list(words)
    except ValueError as problem:
        raise TrainingError(f"extra is {text!r}: {problem}. Close the quote.") from problem


def _what_then(training: Training, sides: tuple[str, ...], name: str) -> list[str]:
    """What to say at the end of a command file: how four LoRAs become the two files of a slider."""
    noises = [noise for noise in NOISES if noise in experts(training)]
    if len(noises) != 2 or len(sides) != 2:
        return []
    words = ["difflora", "subtract"]
    for noise in noises:
        words += [f"--{noise}", *(f"loras/{side}/{name}_{side}_{noise}.safetensors" for side in sides)]
    words += ["-o", f"{name}.safetensors"]
    return [
        "When both sides are trained, in this folder:",
        " ".join(f'"{word}"' if " " in word else word for word in words),
    ]


def shell_script(training: Training, machine: Machine, side: str, name: str = "slider", end: Sequence[str] = ()) -> str:
    """The command file of one side for Linux. `end`: lines that it says when all is done."""
    settings = _settings(training, machine)
    lines = ["#!/usr/bin/env bash", f"# {_about(training, side)}", "set -euo pipefail"]
    lines += ['cd -- "$(dirname -- "${BASH_SOURCE[0]}")"', "export PYTHONUTF8=1", ""]
    lines += [f"{key.upper()}={shlex.quote(value)}" for key, value in settings.items()]
    lines += ["", "for file in " + " ".join(f'"${key.upper()}"' for key in _files_needed(settings)) + "; do"]
    lines += ['  [ -e "$file" ] || { echo "Not found: \'$file\'. Correct the top of this file." >&2; exit 1; }', "done"]
    for title, words in commands(training, side, name).items():
        run = [f"echo {shlex.quote(title)}", _lay_out(['"$PYTHON"', *map(_shell_word, words)], "\\")]
        lines += ["", *(_unless_trained_sh(made, run) if (made := _trained(words)) else run)]
    lines += [""] * bool(end) + [f"echo {shlex.quote(line)}" for line in end]
    return "\n".join(lines) + "\n"


def batch_file(training: Training, machine: Machine, side: str, name: str = "slider", end: Sequence[str] = ()) -> str:
    """The command file of one side for Windows. Lines end in CR LF: cmd.exe can miss a label otherwise."""
    settings = _settings(training, machine)
    lines = [
        "@echo off",
        "setlocal EnableExtensions DisableDelayedExpansion",
        "rem The next line makes this file UTF-8.",
    ]
    lines += ["chcp 65001 >nul", f"rem {_about(training, side)}", 'pushd "%~dp0"', 'set "PYTHONUTF8=1"', ""]
    lines += [f'set "{key.upper()}={_percent(value)}"' for key, value in settings.items()]
    lines += [""]
    for key in map(str.upper, _files_needed(settings)):
        lines += [f'set "WRONG={key}"', f'if not exist "%{key}%" goto missing']
    for number, (title, words) in enumerate(commands(training, side, name).items()):
        # Not `if errorlevel 1`: a crash ends in a negative number.
        run = [f"echo {title}", _lay_out(['"%PYTHON%"', *map(_batch_word, words)], "^")]
        run += ['if not "%ERRORLEVEL%"=="0" goto failed']
        lines += ["", *(_unless_trained_bat(made, run, number) if (made := _trained(words)) else run)]
    lines += ["", "echo Done.", *(f"echo {line}" for line in end), "pause", "exit /b 0", "", ":missing"]
    lines += ["echo There is no file or folder of the name given as %WRONG%. Correct the top of this file.", "pause"]
    lines += ["exit /b 1", "", ":begun", f"echo {_BEGUN} They begin with %BEGUN%.", "pause"]
    lines += ["exit /b 1", "", ":failed", "echo It stopped with an error, see above.", "pause", "exit /b 1"]
    return "\n".join(lines).replace("\n", "\r\n") + "\r\n"


# musubi-tuner's --resume counts steps and draws images from the beginning, so an interrupted run is not resumed.
_BEGUN = (
    "There are checkpoints of an interrupted training. It would start at step 0, not go on, and write over them. "
    "Move them away to train anew, or take the last one."
)


def _trained(words: Command) -> str | None:
    """The LoRA that a training command writes, without ending."""
    if "--output_name" not in words:
        return None
    return f"{words[words.index('--output_dir') + 1]}/{words[words.index('--output_name') + 1]}"


def _unless_trained_sh(made: str, run: list[str]) -> list[str]:
    return [
        f"MADE={shlex.quote(made)}",
        'if [ -e "$MADE.safetensors" ]; then',
        '  echo "$MADE.safetensors is there: this training is done. Move it away to train again."',
        "else",
        '  for file in "$MADE"-step*.safetensors; do',
        f'    [ -e "$file" ] && {{ echo {shlex.quote(_BEGUN)} "They begin with $MADE." >&2; exit 1; }}',
        "  done",
        *run,
        "fi",
    ]


def _unless_trained_bat(made: str, run: list[str], number: int) -> list[str]:
    made = made.replace("/", "\\")
    return [
        f'set "BEGUN={_percent(made)}"',
        f'if not exist "%BEGUN%.safetensors" goto train{number}',
        "echo %BEGUN%.safetensors is there: this training is done. Move it away to train again.",
        f"goto trained{number}",
        f":train{number}",
        'if exist "%BEGUN%-step*.safetensors" goto begun',
        *run,
        f":trained{number}",
    ]


def _about(training: Training, side: str) -> str:
    module = _optimizer_module(training.optimizer)
    needs = f" Needs the package {PACKAGES.get(module, module)} in musubi-tuner's Python." if module else ""
    return f"Trains the {side} side with musubi-tuner (made for version 0.3.4).{needs}"


def _lay_out(words: list[str], continuation: str) -> str:
    """One line for the program, and one for each flag with its values."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return f" {continuation}\n  ".join(" ".join(line) for line in lines)


def _shell_word(word: Word) -> str:
    return f'"${word.name}{word.tail}"' if isinstance(word, Variable) else shlex.quote(word)


def _batch_word(word: Word) -> str:
    if isinstance(word, Variable):
        return f'"%{word.name}%{word.tail}"'.replace("/", "\\")
    if re.fullmatch(r"[\w./:=+-]+", word, re.ASCII):
        return word
    # Between quotes, cmd.exe only interprets %; Python's start-up code then reads \" as a quote.
    if '"' in word:
        raise TrainingError(f"extra holds {word!r}: a double quote cannot be written in a Windows command file.")
    ending = len(word) - len(word.rstrip("\\"))
    return f'"{_percent(word)}{chr(92) * ending}"'


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def files(
    training: Training, machine: Machine, sides: tuple[str, ...] = ("detailed", "sparse"), name: str = "slider"
) -> dict[str, str]:
    """All files of the training folder: name -> text."""
    tidy = dataclasses.replace(machine, musubi=machine.musubi.rstrip("/\\"))
    check(training, tidy, sides)
    _check_side(name)
    made = {}
    end = _what_then(training, sides, name)
    for side in sides:
        made[f"{side}.toml"] = dataset_toml(training, side)
        made[f"train_{side}.sh"] = shell_script(training, tidy, side, name, end)
        made[f"train_{side}.bat"] = batch_file(training, tidy, side, name, end)
    return made | {LAUNCHER: _LAUNCHER_TEXT}


def hints(training: Training, machine: Machine) -> list[Sentence]:
    """What is still to be done by hand before the command files can run."""
    found = []
    if module := _optimizer_module(training.optimizer):
        package = PACKAGES.get(module, module)
        found.append(Sentence("Install the package {0} into the Python of musubi-tuner.", package))
    settings = _settings(training, machine)
    if missing := [name for name in _files_needed(settings) if not settings[name]]:
        found.append(Sentence("Fill in {0} at the top of the command files.", ", ".join(missing)))
    found.append(
        Sentence(
            "The first step with captions fetches the tokenizer {0} from huggingface.co. For a machine without internet, run "
            "that step on another one and copy its folder {1}.",
            "google/umt5-xxl",
            "~/.cache/huggingface",
        )
    )
    return found


def check_twins(dataset: Dataset, training: Training) -> None:
    """Raise TrainingError if the two sides would not see the same pictures in the same order.

    An image without a caption does not count: musubi-tuner leaves it out.
    """
    sides = [
        {stem: files[0] for stem, files in dataset.images(side).items() if dataset.caption(side, stem).is_file()}
        for side in dataset.sides
    ]
    for at, side in enumerate(dataset.sides):
        if alone := sorted(sides[at].keys() - sides[1 - at].keys()):
            raise TrainingError(
                f"{alone[0]} has an image and a caption in {side} only, and so have {len(alone) - 1} more: the sides would be "
                "trained in different orders. Complete the pairs, or move it away."
            )
    for stem in sorted(sides[0]) if training.buckets else ():
        a, b = (bucket(read_size(side[stem]), training) for side in sides)
        if a != b:
            raise TrainingError(
                f"{stem}: the image would be {a[0]} x {a[1]} in {dataset.sides[0]} and {b[0]} x {b[1]} in {dataset.sides[1]}, "
                "because the shapes differ: the sides would be trained in different orders. Crop them alike."
            )


def bucket(size: tuple[int, int], training: Training) -> tuple[int, int]:
    """The size, (width, height), at which musubi-tuner trains on an image, as its BucketSelector chooses for Wan."""
    step, area = 16, training.width * training.height
    side = int(math.sqrt(area))
    widths = range(side // 2 // step * step, side + step, step)
    sizes = {(width, area // width // step * step) for width in widths if width}
    sizes |= {(height, width) for width, height in sizes}
    return min(sorted(sizes), key=lambda each: abs(each[0] / each[1] - size[0] / size[1]))


def write_files(folder: Path, made: dict[str, str], overwrite: bool = False) -> list[Path]:
    """Write the training folder. Nothing is written if one of the files exists and differs, unless `overwrite` is set."""
    make_folder(folder)
    wanted = {folder / name: text.encode() for name, text in made.items()}
    for path, content in wanted.items():
        if os.path.lexists(path) and not overwrite and not is_same_file(path, content):
            raise OutputError(
                f"{path.name} is already in {folder.name} and differs. Allow overwriting, or move it away."
            )
    for path, content in wanted.items():
        write_whole(path, content, 0o755 if path.suffix == ".sh" else 0o644)
    return list(wanted)
