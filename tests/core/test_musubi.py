"""The musubi-tuner recipe: what it writes, read back the way the other side reads it."""

import argparse
import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from difflora.cli.commands import main, run_recipe
from difflora.cli.parser import parser
from difflora.errors import OutputError, TrainingError
from difflora.training import musubi
from difflora.training.musubi import PRESETS, Machine, Training, Variable, parse_clips

HERE = Path(__file__).resolve().parent.parent
FLAGS = json.loads((HERE / "data" / "musubi_flags.json").read_text())
SIDES = ("detailed", "sparse")
MACHINE = Machine(
    musubi="/home/ユーザー/my tools & toys/musubi-tuner",
    dit="/models/100% wan/wan2.1 (t2v)_bf16.safetensors",
    dit_high_noise="/models/100% wan/wan2.2 (t2v)_high_noise.safetensors",
    vae="/models/it's/vae.safetensors",
    t5="/models/$HOME `t5` !x! ^.pth",
)


def ask_musubi(task: dict, cwd: Path | None = None) -> dict:
    """What a musubi-tuner checkout says, in a process of its own, run where the command file would run it."""
    folder = os.environ.get("MUSUBI_TUNER_DIR")
    if not folder:
        pytest.skip("MUSUBI_TUNER_DIR does not point at a musubi-tuner checkout")
    python = os.environ.get("MUSUBI_TUNER_PYTHON", sys.executable)
    done = subprocess.run(
        [python, str(HERE / "musubi.py"), folder],
        input=json.dumps(task),
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(folder) / "src"), "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def words_of(recipe: Training, side: str = "detailed") -> list[tuple[str, list[str]]]:
    """(script, words) of each command that runs one of musubi-tuner's scripts."""
    found = []
    for command in musubi.commands(recipe, side).values():
        for position, word in enumerate(command):
            if isinstance(word, Variable) and word.name == "MUSUBI":
                words = [w.name if isinstance(w, Variable) else w for w in command[position + 1 :]]
                found.append((Path(word.tail).name or "wan_train_network.py", words))
    return found


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset whose own folder has all that a folder name may have."""
    from PIL import Image

    folder = tmp_path / "my [set] données 集"
    for side, colour in zip(SIDES, ("red", "blue"), strict=True):
        (folder / side).mkdir(parents=True)
        for stem in ("frame 1", "frame 2", "フレーム 3"):
            Image.new("RGB", (96, 64), colour).save(folder / side / f"{stem}.png")
            (folder / side / f"{stem}.txt").write_text("")
    return folder


# The defaults


def test_defaults_are_the_authors_settings():
    (_, latents), (_, texts), (_, train) = words_of(PRESETS["slider"])
    assert latents == ["--dataset_config", "detailed.toml", "--vae", "VAE"]
    assert texts[:4] == ["--dataset_config", "detailed.toml", "--t5", "T5"]
    line = " ".join(train)
    for setting in (
        "--task t2v-14B",
        "--optimizer_type lion_pytorch.Lion",
        "--learning_rate 2e-05",
        "--lr_scheduler constant_with_warmup --lr_warmup_steps 50",
        "--network_dim 16",
        "--max_train_steps 5000",
        "--seed 42",
        "--fp8_base",
        "--blocks_to_swap 16",
    ):
        assert setting in line
    assert "resolution = [192, 192]" in musubi.dataset_toml(PRESETS["slider"], "detailed")
    assert "batch_size = 1\n" in musubi.dataset_toml(PRESETS["slider"], "detailed")


def test_style_preset_is_the_mixed_image_and_video_setup():
    toml = musubi.dataset_toml(PRESETS["style"], "detailed")
    assert "resolution = [768, 768]" in toml
    assert 'resolution = [768, 416]\ntarget_frames = [1, 21]\nframe_extraction = "head"' in toml
    assert 'resolution = [384, 208]\ntarget_frames = [45]\nframe_extraction = "uniform"\nframe_sample = 2' in toml
    line = " ".join(words_of(PRESETS["style"])[2][1])
    assert "--optimizer_type AdamW8bit --learning_rate 5e-05" in line
    assert "--timestep_sampling shift --discrete_flow_shift 3 " in line


@pytest.mark.parametrize("preset", PRESETS)
def test_sides_differ_in_nothing_but_the_side(preset):
    made = musubi.files(PRESETS[preset], MACHINE, SIDES)
    assert len(made) == 7
    for name, text in made.items():
        if "detailed" in name:
            assert made[name.replace("detailed", "sparse")] == text.replace("detailed", "sparse")
            assert "sparse" not in text


# Wan2.2: two models


WAN22 = dataclasses.replace(Training(), task="t2v-A14B")


def test_each_model_of_wan22_is_trained_within_its_own_timesteps():
    """And alike but for that: the table of musubi-tuner's docs/wan.md."""
    commands = words_of(WAN22)
    assert [script for script, _ in commands[2:]] == ["wan_train_network.py"] * 2
    high, low = (words for _, words in commands[2:])
    assert "--preserve_distribution_shape" in high
    expected = {"--dit": ("DIT_HIGH_NOISE", "DIT"), "--min_timestep": ("875", "0"), "--max_timestep": ("1000", "875")}
    expected["--output_name"] = ("slider_detailed_high", "slider_detailed_low")
    for flag, values in expected.items():
        at = high.index(flag) + 1
        assert (high[at], low[at]) == values
        high[at] = low[at] = ""
    assert high == low


def test_only_wan22_has_use_for_a_second_model():
    made = musubi.files(Training(), dataclasses.replace(MACHINE, dit_high_noise=""), SIDES)
    assert made == musubi.files(Training(), MACHINE, SIDES)
    assert not any("NOISE" in text or "timestep " in text or "subtract" in text for text in made.values())
    hints, hints22 = (
        [line for line in musubi.hints(training, Machine("m", "d", "", "v", "t")) if "tokenizer" not in line]
        for training in (Training(), WAN22)
    )
    assert hints == ["Install the package lion-pytorch into the Python of musubi-tuner."]
    assert hints22[1:] == ["Fill in dit_high_noise at the top of the command files."]


@pytest.mark.skipif(not shutil.which("bash") or os.name == "nt", reason="no bash")
@pytest.mark.parametrize("sides", [SIDES, ("très dense", "sparse")])
def test_wan22_ends_with_the_command_that_makes_the_slider(sides, tmp_path, monkeypatch, capsys):
    """What the command file says is run as it stands, on LoRAs under the names that the trainings give them."""
    from tests.lora_files import Q, factors, write

    paths = {key: str(tmp_path / key) for key in ("musubi", "dit", "dit_high_noise", "vae", "t5")}
    for path in paths.values():
        Path(path).touch()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    folder = tmp_path / "training"
    made = musubi.files(WAN22, Machine(python=str(python), **paths), sides, "my slider")
    musubi.write_files(folder, made)
    done = subprocess.run(["bash", str(folder / f"train_{sides[1]}.sh")], capture_output=True, text=True, check=True)
    last, line = done.stdout.splitlines()[-2:]
    assert last == "When both sides are trained, in this folder:"
    for side in sides:
        assert f"echo {last}\r\necho {line}\r\npause" in made[f"train_{side}.bat"]
        (folder / "loras" / side).mkdir(parents=True)
        for command in list(musubi.commands(WAN22, side, "my slider").values())[-2:]:
            file = (
                folder
                / command[command.index("--output_dir") + 1]
                / f"{command[command.index('--output_name') + 1]}.safetensors"
            )
            write(file, {Q: factors(seed=len(list(folder.rglob("*.safetensors"))))})
    program, *words = split_arguments(line)
    assert program == "difflora"
    monkeypatch.chdir(folder)
    assert main(words) == 0
    assert "Check what follows" not in capsys.readouterr().err
    assert {path.name for path in folder.glob("*.safetensors")} == {
        "my slider_high.safetensors",
        "my slider_low.safetensors",
    }


def test_wan22_on_windows_names_every_file_it_needs():
    variables, commands = read_batch(musubi.files(WAN22, MACHINE)["train_sparse.bat"])
    assert variables["DIT_HIGH_NOISE"] == MACHINE.dit_high_noise
    dits = [command[command.index("--dit") + 1] for command in commands if "--dit" in command]
    assert dits == [MACHINE.dit_high_noise, MACHINE.dit]


# What is refused, before anything is written


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 200}, "multiples of 16"),
        ({"width": 0}, "from 64 to 2048"),
        ({"optimizer": "Lion"}, r"has no Lion\. Use lion_pytorch\.Lion, and install the package lion-pytorch"),
        ({"optimizer": "adam"}, "neither AdamW8bit"),
        ({"optimizer": "os; rm"}, "neither AdamW8bit"),
        ({"optimizer_args": "weight_decay"}, "name=value"),
        ({"task": "t2v-99B"}, "use one of t2v-14B"),
        ({"task": "t2v-1.3B", "blocks_to_swap": 30}, "at most 29"),
        ({"rank": 0}, "from 1 to"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"extra": "--comment 'open"}, "Close the quote"),
        ({"extra": "--a\nrm"}, "control character"),
        ({"extra": "stray words"}, "begin with a flag"),
        ({"optimizer_args": "foreach=true"}, "not a Python literal"),
        ({"optimizer": "LBFGS"}, "LBFGS"),
        ({"clips": "768x416 20 head"}, r"4 N \+ 1"),
        ({"clips": "760x416 21 head"}, "multiples of 16"),
        ({"clips": "0x416 21 head"}, "multiples of 16"),
        ({"clips": "768x416 21 tail"}, "not understood"),
        ({"clips": "768x416"}, "not understood"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_its_reason(change, reason):
    with pytest.raises(TrainingError, match=reason):
        musubi.files(dataclasses.replace(Training(), **change), MACHINE)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (Machine(dit="C:\\a\r\nformat c:"), "control character"),
        (Machine(vae='x" & calc & "'), "double quote"),
        (Machine(t5="~/t5.pth"), "in full"),
        (Machine(python="py\0"), "control character"),
        (Machine(dit="C:\\models\\"), "ends in a backslash"),
        (Machine(dit_high_noise="~/high.safetensors"), "in full"),
    ],
)
def test_a_path_that_no_command_file_can_hold_is_refused(machine, reason):
    with pytest.raises(TrainingError, match=reason):
        musubi.files(Training(), machine)


@pytest.mark.parametrize(
    "side", ["", ".", "..", "../x", "a/b", "a\\b", "a[b]", "a*", "a%b", 'a"b', "a'b", "a\nb", "x" * 65, "a ", "$a"]
)
def test_a_name_that_is_more_than_a_word_cannot_name_a_side(side):
    with pytest.raises(TrainingError, match="cannot name a side"):
        musubi.files(Training(), MACHINE, (side, "sparse"))


@pytest.mark.parametrize("side", ["con", "AUX", "nul.x", "lpt1"])
def test_a_device_of_windows_cannot_name_a_side(side):
    with pytest.raises(TrainingError, match="device on Windows"):
        musubi.files(Training(), MACHINE, (side, "sparse"))


def test_half_a_character_is_refused():
    with pytest.raises(TrainingError, match="half a character"):
        musubi.files(Training(), dataclasses.replace(MACHINE, dit="/m/\ud800"))


def test_sides_need_two_names():
    with pytest.raises(TrainingError, match="give each another name"):
        musubi.files(Training(), MACHINE, ("Detailed", "detailed"))


# The command files, run for real or read as cmd.exe reads them


def run_script(folder: Path, script: str, python: Path) -> list[list[str]]:
    """Run a .sh with a Python that only writes its arguments down."""
    log = folder / "log.txt"
    done = subprocess.run(
        ["bash", script], cwd="/", capture_output=True, text=True, env={**os.environ, "LOG": str(log)}
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_shell_script_passes_every_path_through_unharmed(tmp_path):
    if os.name == "nt":
        pytest.skip("the .sh is for Linux")
    names = {
        "musubi": "my tools & toys/mûsubi",
        "dit": "100% (wan).st",
        "vae": "it's \\ vae",
        "t5": "$HOME `t5` !x! ^ 模型",
    }
    paths = {key: tmp_path / name for key, name in names.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    python = tmp_path / "a python"
    python.write_text(
        f'#!{sys.executable}\nimport json, os, sys\nopen(os.environ["LOG"], "a").write(json.dumps([os.getcwd(), *sys.argv[1:]]) + "\\n")\n'
    )
    python.chmod(0o755)
    machine = Machine(python=str(python), **{key: str(path) for key, path in paths.items()})
    folder = tmp_path / "données ' [x] $(touch pwned)" / "training"
    recipe = dataclasses.replace(
        Training(), extra="--training_comment 'two words; $(touch pwned)'", optimizer_args="betas=(0.9,0.99)"
    )
    musubi.write_files(folder, musubi.files(recipe, machine, ("très dense", "sparse")))
    calls = run_script(folder, str(folder / "train_très dense.sh"), python)
    expected = musubi.commands(recipe, "très dense")
    values = {key.upper(): str(path) for key, path in paths.items()}
    assert calls == [
        [str(folder), *(values[w.name] + w.tail if isinstance(w, Variable) else w for w in command)]
        for command in expected.values()
    ]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.skipif(not shutil.which("bash") or os.name == "nt", reason="no bash")
def test_shell_script_names_what_is_missing_before_it_starts(tmp_path):
    musubi.write_files(tmp_path, musubi.files(Training(), Machine(musubi=str(tmp_path), dit="/not/there")))
    done = subprocess.run(["bash", str(tmp_path / "train_sparse.sh")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Not found: '/not/there'. Correct the top of this file." in done.stderr


def read_batch(text: str) -> tuple[dict[str, str], list[list[str]]]:
    """The variables and commands of a .bat, by the rules of cmd.exe and of the C start-up code's argument parser."""
    variables: dict[str, str] = {}
    commands = []
    for line in text.replace("^\r\n", "").split("\r\n"):
        line = expand_percents(line, variables)
        if line.startswith('set "'):
            key, _, value = line[5 : line.rindex('"')].partition("=")
            variables[key] = value
        elif line.startswith('"'):
            commands.append(split_arguments(line))
    return variables, commands


def expand_percents(line: str, variables: dict[str, str]) -> str:
    out, rest = "", line
    while "%" in rest:
        before, _, rest = rest.partition("%")
        out += before
        if rest.startswith("%"):
            out, rest = out + "%", rest[1:]
        elif rest.startswith("~dp0"):
            rest = rest[4:]
        else:
            name, found, rest = rest.partition("%")
            assert found, f"a single % in {line!r}"
            out += variables.get(name, "")
    return out + rest


def split_arguments(line: str) -> list[str]:
    arguments, word, quoted, started, position = [], "", False, False, 0
    while position < len(line):
        slashes = len(line[position:]) - len(line[position:].lstrip("\\"))
        after = line[position + slashes : position + slashes + 1]
        if slashes and after == '"':
            word += "\\" * (slashes // 2)
            position += slashes
            started = True
            if slashes % 2:
                word, position = word + '"', position + 1
            continue
        character = line[position]
        if character == '"':
            quoted, started = not quoted, True
        elif character == " " and not quoted:
            if started:
                arguments.append(word)
            word, started = "", False
        else:
            assert quoted or character not in "&|<>^()!", f"{character} is not quoted in {line!r}"
            word, started = word + character, True
        position += 1
    assert not quoted, line
    return arguments + [word] if started else arguments


def test_batch_file_passes_every_path_through_unharmed():
    machine = Machine(
        musubi="C:\\Users\\José & Co\\100% (musubi)\\",
        dit="D:\\模型\\wan ^2.1^ !x!.safetensors",
        vae="D:\\it's\\%PATH%\\vae.safetensors",
        t5="\\\\server\\share\\t5.pth",
        python="C:\\musubi\\.venv\\Scripts\\python.exe",
    )
    recipe = dataclasses.replace(
        Training(), extra="--training_comment '50% & more \\'", optimizer_args="betas=(0.9,0.99)"
    )
    text = musubi.files(recipe, machine, ("très dense", "sparse"))["train_très dense.bat"]
    assert "\n" not in text.replace("\r\n", ""), "cmd.exe wants CR LF"
    assert text[: text.index("chcp")].isascii()
    variables, commands = read_batch(text)
    values = {key.upper(): value.rstrip("\\") for key, value in dataclasses.asdict(machine).items()}
    assert {key: variables[key] for key in values if key != "DIT_HIGH_NOISE"} == {
        key: value for key, value in values.items() if key != "DIT_HIGH_NOISE"
    }
    expected = musubi.commands(recipe, "très dense").values()
    assert commands == [
        [
            machine.python,
            *(values[w.name] + w.tail.replace("/", "\\") if isinstance(w, Variable) else w for w in command),
        ]
        for command in expected
    ]


@given(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=30), st.sampled_from(["dit", "vae", "t5", "python"])
)
def test_any_path_is_passed_through_or_refused(path, which):
    machine = dataclasses.replace(MACHINE, **{which: path})
    try:
        text = musubi.files(Training(), machine)["train_sparse.bat"]
    except TrainingError:
        return
    variables, _ = read_batch(text)
    assert variables[which.upper()] == path


# Writing


def test_nothing_is_overwritten_unless_asked(tmp_path):
    first = musubi.files(Training(), MACHINE)
    written = musubi.write_files(tmp_path, first)
    assert sorted(path.name for path in written) == sorted(first)
    musubi.write_files(tmp_path, first)  # the same again is no loss
    (tmp_path / "detailed.toml").write_text("# edited by hand")
    second = musubi.files(dataclasses.replace(Training(), rank=8), MACHINE)
    with pytest.raises(OutputError, match="is already in"):
        musubi.write_files(tmp_path, second)
    assert "--network_dim 16" in (tmp_path / "train_sparse.sh").read_text()
    assert (tmp_path / "detailed.toml").read_text() == "# edited by hand"
    musubi.write_files(tmp_path, second, overwrite=True)
    assert "--network_dim 8" in (tmp_path / "train_sparse.sh").read_text()


def command_line(*words: str) -> argparse.Namespace:
    return parser().parse_args(["recipe", *words])


def test_command_line_writes_what_it_is_told(dataset, capsys):
    arguments = command_line(
        str(dataset), "--rank", "8", "--no-fp8-base", "--learning-rate", "1e-4", "--dit", "/m/dit.st"
    )
    assert run_recipe(arguments) == 0
    script = (dataset / "training" / "train_sparse.sh").read_text()
    assert "--network_dim 8 " in script
    assert "--learning_rate 0.0001" in script
    assert "fp8" not in script
    assert "DIT=/m/dit.st\n" in script
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 7
    assert said.err.splitlines()[:2] == [
        "Install the package lion-pytorch into the Python of musubi-tuner.",
        "Fill in musubi, vae, t5 at the top of the command files.",
    ]


def test_a_windows_path_among_the_extra_flags_keeps_its_backslashes():
    settings = dataclasses.replace(Training(), extra=r"--resume 'C:\train\new state\x' --log C:\logs")
    for text in (musubi.shell_script(settings, MACHINE, "a"), musubi.batch_file(settings, MACHINE, "a")):
        assert r"C:\train\new state\x" in text and r"C:\logs" in text


@pytest.mark.parametrize("words", [["--extra", "--min_timestep 0 --fp8_t5"], ["--extra=--min_timestep 0 --fp8_t5"]])
def test_command_line_hands_extra_flags_on_as_they_are(tmp_path, words):
    for side in ("detailed", "sparse"):
        (tmp_path / side).mkdir()
    assert main(["recipe", str(tmp_path), "--learning_rate", "1e-4", *words]) == 0
    script = (tmp_path / "training/train_sparse.sh").read_text()
    assert "--learning_rate 0.0001" in script
    for word in ("--min_timestep", "--fp8_t5"):
        assert word in script


def test_command_line_starts_from_a_preset(dataset):
    arguments = command_line(str(dataset), "--preset", "style", "--steps", "100", "--sides", "detailed")
    run_recipe(arguments)
    assert "AdamW8bit" in (dataset / "training" / "train_detailed.sh").read_text()
    assert "--max_train_steps 100 " in (dataset / "training" / "train_detailed.sh").read_text()
    assert not (dataset / "training" / "sparse.toml").exists()


def test_command_line_wants_the_folders_to_be_there(dataset):
    arguments = command_line(str(dataset), "--sides", "detailed", "empty")
    with pytest.raises(OutputError, match="no folder 'empty'"):
        run_recipe(arguments)
    assert not (dataset / "training").exists()


# musubi-tuner's own word


@pytest.mark.parametrize("recipe", [*PRESETS.values(), WAN22], ids=[*PRESETS, "wan2.2"])
def test_every_flag_is_one_that_musubi_has(recipe):
    for script, words in words_of(recipe):
        known = FLAGS["scripts"][script]
        position = 0
        while position < len(words):
            flag = words[position]
            assert flag in known, f"{script} has no {flag}"
            values = []
            while position + 1 < len(words) and not words[position + 1].startswith("--"):
                position += 1
                values.append(words[position])
            takes = known[flag]["takes"]
            assert takes == "*" or len(values) == takes, flag
            assert not known[flag]["choices"] or values[0] in known[flag]["choices"], flag
            position += 1
        assert {flag for flag, about in known.items() if about["required"]} <= set(words)


def test_choices_offered_are_choices_that_musubi_has():
    known = FLAGS["scripts"]["wan_train_network.py"]
    for offered, flag in [
        (musubi.TASKS, "--task"),
        (musubi.SAMPLINGS, "--timestep_sampling"),
        (musubi.PRECISIONS, "--mixed_precision"),
    ]:
        assert set(offered) <= set(known[flag]["choices"])


def test_recorded_flags_are_those_of_the_checkout():
    assert ask_musubi({"flags": True}) == FLAGS


@pytest.mark.parametrize("preset", PRESETS)
def test_musubi_accepts_the_recipe_finds_the_images_and_builds_the_optimizer(preset, dataset):
    recipe = PRESETS[preset]
    if preset == "style":  # bitsandbytes wants a GPU; what is checked here is the dataset
        recipe = dataclasses.replace(recipe, optimizer="torch.optim.AdamW")
        for side in SIDES:
            (dataset / side / "clip.mp4").write_bytes(b"")
            (dataset / side / "clip.txt").write_text("")
    musubi.write_files(dataset / "training", musubi.files(recipe, MACHINE, SIDES))
    commands = [command for side in SIDES for command in words_of(recipe, side)]
    task = {"commands": commands, "datasets": [f"{side}.toml" for side in SIDES], "optimizer": commands[2][1]}
    answer = ask_musubi(task, cwd=dataset / "training")
    for side, parsed, blocks in zip(SIDES, answer["parsed"][2::3], answer["datasets"], strict=True):
        assert parsed["network_dim"] == "16"
        assert parsed["dit"] == "DIT"
        assert parsed["output_name"] == f"slider_{side}"
        assert blocks[0]["files"] == ["frame 1.png", "frame 2.png", "フレーム 3.png"]
        assert blocks[0]["captions"] == ["", "", ""]
        assert blocks[0]["resolution"] == [recipe.width, recipe.height]
        assert len(blocks) == 1 + len(parse_clips(recipe.clips))
        for block, clip in zip(blocks[1:], parse_clips(recipe.clips), strict=True):
            assert block["files"] == ["clip.mp4"]
            found = (block["resolution"], block["target_frames"], block["frame_extraction"], block["frame_sample"])
            assert found == (list(clip.resolution), list(clip.target_frames), clip.extraction, clip.samples)
    expected = "lion_pytorch.lion_pytorch.Lion lr=2e-05" if preset == "slider" else "torch.optim.adamw.AdamW lr=5e-05"
    assert answer["optimizer"] == expected


def test_musubi_fails_on_the_bare_name_that_we_refuse():
    _, words = words_of(Training())[2]
    words = ["Lion" if word == "lion_pytorch.Lion" else word for word in words]
    with pytest.raises(AssertionError, match="has no attribute 'Lion'"):
        ask_musubi({"commands": [], "datasets": [], "optimizer": words})


# The same order of images on both sides


STAND_IN = """
import glob, json, multiprocessing, os, random, sys

def listed(folder):
    # As musubi-tuner lists its cache: unsorted, then positions are shuffled with the seed.
    items = [os.path.basename(path) for path in glob.glob(os.path.join(folder, "*_wan.safetensors"))]
    random.Random(42).shuffle(items)
    return items

def main():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        in_workers = pool.map(listed, [sys.argv[1]] * 4)
    print(json.dumps([listed(sys.argv[1]), *in_workers]))
"""
# A file system that lists in an order of its own, in every process.
SHUFFLED = """
import glob, os, random
original = glob.glob
def other(*words, **options):
    found = original(*words, **options)
    random.Random(os.environ["ORDER"]).shuffle(found)
    return found
glob.glob = other
"""


def orders(tmp_path: Path, launcher: str, sizes: dict[str, str]) -> dict[str, list[list[str]]]:
    """For each side, the names of images in the order of a training, in its process and in its workers."""
    source = tmp_path / "musubi tuner" / "src" / "musubi_tuner"
    source.mkdir(parents=True, exist_ok=True)
    (source / "__init__.py").touch()
    (source / "wan_train_network.py").write_text(STAND_IN)
    (tmp_path / "sitecustomize.py").write_text(SHUFFLED)
    (tmp_path / "same_order.py").write_text(launcher)
    found = {}
    for side, size in sizes.items():
        cache = tmp_path / side
        cache.mkdir(exist_ok=True)
        for number in range(40):
            (cache / f"frame_{number} [x]_{size if number % 2 else '0192x0192'}_wan.safetensors").touch()
        done = subprocess.run(
            [sys.executable, str(tmp_path / "same_order.py"), str(tmp_path / "musubi tuner"), str(cache)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "ORDER": side},
        )
        assert done.returncode == 0, done.stderr
        found[side] = [[name.rpartition(" [x]")[0] for name in names] for names in json.loads(done.stdout)]
    return found


def test_the_launcher_gives_both_sides_the_same_order(tmp_path):
    """Whatever the file system lists, whatever the images' own sizes, in workers that were spawned as well."""
    sizes = {"detailed": "0256x0144", "sparse": "0832x0480"}
    launcher = musubi.files(Training(), MACHINE, SIDES)["same_order.py"]
    found = orders(tmp_path, launcher, sizes)
    assert found["detailed"] == found["sparse"] and len(set(map(tuple, found["sparse"]))) == 1
    assert sorted(found["sparse"][0]) == sorted(f"frame_{number}" for number in range(40))
    # The stand-in tells the difference: without the sorting the sides differ.
    without = orders(tmp_path, launcher.replace("glob.glob = _by_image", ""), sizes)
    assert without["detailed"] != without["sparse"]


REAL = """
import argparse, json, random, sys
from multiprocessing import Value

import torch

torch.cuda.current_device = lambda: 0  # without a GPU it cannot be imported

def main():
    from musubi_tuner.dataset import config_utils
    from musubi_tuner.dataset.architectures import ARCHITECTURE_WAN
    from musubi_tuner.training.accelerator_setup import collator_class
    config = config_utils.load_user_config(sys.argv[1])
    generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
    blueprint = generator.generate(config, argparse.Namespace(debug_dataset=False), architecture=ARCHITECTURE_WAN)
    random.seed(42)
    torch.manual_seed(42)
    epoch = Value("i", 0)
    group = config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group, training=True, shared_epoch=epoch)
    loader = torch.utils.data.DataLoader(
        group, batch_size=1, shuffle=True, collate_fn=collator_class(epoch, None), num_workers=8, persistent_workers=True
    )
    met = []
    for number in (1, 2):
        epoch.value = number
        met += [int(batch["latents"].flatten()[0]) for batch in loader]
    print(json.dumps(met))
"""


def test_musubis_own_data_set_code_meets_the_images_in_the_same_order(tmp_path):
    """Its classes and its loader with eight workers, two epochs; twins whose originals have other sizes."""
    folder = os.environ.get("MUSUBI_TUNER_DIR")
    if not folder:
        pytest.skip("MUSUBI_TUNER_DIR does not point at a musubi-tuner checkout")
    package = tmp_path / "musubi" / "src" / "musubi_tuner"
    package.mkdir(parents=True)
    for part in (Path(folder) / "src" / "musubi_tuner").iterdir():
        if part.name != "wan_train_network.py":
            (package / part.name).symlink_to(part)
    (package / "wan_train_network.py").write_text(REAL)
    (tmp_path / "sitecustomize.py").write_text(SHUFFLED)
    launcher = musubi.files(Training(), MACHINE, SIDES)["same_order.py"]

    def met(side: str, launcher: str) -> list[int]:
        images, cache = tmp_path / side, tmp_path / f"{side} cache"
        images.mkdir(exist_ok=True)
        cache.mkdir(exist_ok=True)
        for number in range(40):
            twin = side == "sparse" and number % 2
            size = "1664x0960" if twin else "0832x0480"
            save_file({"latents_1x2x2_float32": torch.full((16, 1, 2, 2), float(number))},
                      cache / f"frame_{number}_{size}_wan.safetensors")  # fmt: skip
            save_file({"varlen_t5_float32": torch.zeros(2, 4)}, cache / f"frame_{number}_wan_te.safetensors")
            Image.new("RGB", (8, 8)).save(images / f"frame_{number}.png")
            (images / f"frame_{number}.txt").touch()
        (tmp_path / f"{side}.toml").write_text(
            "[general]\nresolution = [832, 480]\ncaption_extension = '.txt'\nbatch_size = 1\nenable_bucket = true\n"
            f"[[datasets]]\nimage_directory = {str(images)!r}\ncache_directory = {str(cache)!r}\n"
        )
        (tmp_path / "same_order.py").write_text(launcher)
        done = subprocess.run(
            [os.environ.get("MUSUBI_TUNER_PYTHON", sys.executable), str(tmp_path / "same_order.py"),
             str(tmp_path / "musubi"), str(tmp_path / f"{side}.toml")],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path), "ORDER": side},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    detailed, sparse = (met(side, launcher) for side in SIDES)
    assert sorted(detailed) == sorted([*range(40)] * 2) and detailed[:40] != detailed[40:]
    assert detailed == sparse
    # Without the sorting the sides meet other images, so the comparison can tell.
    plain = [met(side, launcher.replace("glob.glob = _by_image", "")) for side in SIDES]
    same = sum(one == other for one, other in zip(*plain, strict=True))
    print(f"the same image in {same} of 80 steps without the launcher's order, in 80 of 80 with it")
    assert same < 40


def test_the_training_runs_through_the_launcher_in_one_process():
    command = musubi.commands(Training(), "sparse")["Training"]
    assert command[command.index("same_order.py") + 1] == Variable("MUSUBI")
    line = " ".join(word for word in command if isinstance(word, str))
    for words in ("--num_processes 1", "--num_machines 1", "--dynamo_backend no"):
        assert words in line[: line.index("same_order.py")]


@pytest.mark.skipif(not shutil.which("bash") or os.name == "nt", reason="no bash")
def test_an_interrupted_training_is_not_written_over(tmp_path):
    for name in ("musubi", "dit", "vae", "t5"):
        (tmp_path / name).touch()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho ran "$@"\n')
    python.chmod(0o755)
    machine = Machine(python=str(python), **{key: str(tmp_path / key) for key in ("musubi", "dit", "vae", "t5")})
    musubi.write_files(tmp_path, musubi.files(Training(), machine))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", str(tmp_path / "train_sparse.sh")], capture_output=True, text=True)

    assert "same_order.py" in run().stdout
    loras = tmp_path / "loras" / "sparse"
    loras.mkdir(parents=True)
    (loras / "slider_sparse-step00000500.safetensors").touch()
    done = run()
    assert done.returncode == 1 and "interrupted training" in done.stderr and "same_order.py" not in done.stdout
    (loras / "slider_sparse.safetensors").touch()
    done = run()
    assert done.returncode == 0 and "this training is done" in done.stdout and "same_order.py" not in done.stdout
    batch = musubi.files(Training(), machine)["train_sparse.bat"]
    assert 'if exist "%BEGUN%-step*.safetensors" goto begun' in batch and "\r\n:begun\r\n" in batch


def test_what_needs_the_internet_is_said():
    assert any("google/umt5-xxl" in hint and "without internet" in hint for hint in musubi.hints(Training(), MACHINE))


def twin(folder: Path, side: str, stem: str, size: tuple[int, int], caption: bool = True) -> None:
    from PIL import Image

    (folder / side).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / side / f"{stem}.png")
    if caption:
        (folder / side / f"{stem}.txt").touch()


def test_twins_that_would_not_meet_are_refused(tmp_path, capsys):
    for side in SIDES:
        twin(tmp_path, side, "a", (320, 240))
    twin(tmp_path, "detailed", "b", (320, 240))
    twin(tmp_path, "sparse", "b", (640, 480))  # another size in the same bucket
    assert main(["recipe", str(tmp_path)]) == 0
    twin(tmp_path, "sparse", "b", (480, 640))
    assert main(["recipe", str(tmp_path), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "b: the image would be 224 x 160 in detailed and 160 x 224 in sparse" in error
    assert main(["recipe", str(tmp_path), "--no-buckets", "--overwrite"]) == 0
    twin(tmp_path, "sparse", "b", (320, 240))
    twin(tmp_path, "detailed", "c", (320, 240))
    capsys.readouterr()
    assert main(["recipe", str(tmp_path), "--overwrite"]) == 2
    assert "c has an image and a caption in detailed only" in capsys.readouterr().err
    twin(tmp_path, "sparse", "c", (320, 240), caption=False)  # musubi-tuner leaves it out
    assert main(["recipe", str(tmp_path), "--overwrite"]) == 2


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_in_the_training_folder_are_not_followed(tmp_path):
    folder, outside = tmp_path / "training", tmp_path / "outside"
    folder.mkdir()
    made = musubi.files(Training(), MACHINE)
    (folder / "train_sparse.sh").symlink_to(outside)
    with pytest.raises(OutputError, match="already in training"):
        musubi.write_files(folder, made)
    assert not outside.exists() and sorted(file.name for file in folder.iterdir()) == ["train_sparse.sh"]
    outside.write_text("mine")
    (folder / "sparse.toml").symlink_to(outside)
    musubi.write_files(folder, made, overwrite=True)
    assert outside.read_text() == "mine"
    for name, text in made.items():
        assert not (folder / name).is_symlink() and (folder / name).read_bytes() == text.encode()
    assert os.access(folder / "train_sparse.sh", os.X_OK) and not list(folder.glob(".*"))


def option(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def training_words(recipe: Training) -> list[list[str]]:
    return [words for script, words in words_of(recipe) if script == "wan_train_network.py"]


def test_only_the_layers_that_are_kept_are_trained_when_asked_for() -> None:
    (plain,) = training_words(Training())
    (kept,) = training_words(Training(layers="attention"))
    assert option(plain, "--network_args") is None
    # As musubi-tuner reads it: name=value, the value a Python literal, each pattern matched with the whole name.
    name, _, value = option(kept, "--network_args").partition("=")
    (pattern,) = ast.literal_eval(value)
    assert name == "exclude_patterns"
    assert re.fullmatch(pattern, "blocks.3.ffn.0") and not re.fullmatch(pattern, "blocks.3.self_attn.q")
    assert [word for word in kept if word not in ("--network_args", option(kept, "--network_args"))] == plain
    for text in (musubi.shell_script(Training(layers="attention"), MACHINE, "a"),
                 musubi.batch_file(Training(layers="attention"), MACHINE, "a")):  # fmt: skip
        assert "exclude_patterns=[r'.*ffn.*']" in text.replace("'\"'\"'", "'")
    with pytest.raises(TrainingError, match="--network_args"):
        musubi.check(Training(layers="attention", extra="--network_args x=1"), MACHINE, SIDES)


def test_a_range_of_noise_levels_is_cut_out_and_not_squeezed_in() -> None:
    (words,) = training_words(Training(min_timestep=750))
    assert (option(words, "--min_timestep"), option(words, "--max_timestep")) == ("750", "1000")
    assert "--preserve_distribution_shape" in words
    assert "--min_timestep" not in training_words(Training())[0]
    with pytest.raises(TrainingError, match="must be smaller"):
        musubi.check(Training(min_timestep=900, max_timestep=900), MACHINE, SIDES)


def test_each_model_of_wan22_is_trained_within_its_own_part_of_the_range() -> None:
    both = training_words(Training(task="t2v-A14B", min_timestep=750))
    assert [(option(w, "--min_timestep"), option(w, "--max_timestep")) for w in both] == [
        ("875", "1000"),
        ("750", "875"),
    ]
    high = Training(task="t2v-A14B", min_timestep=900)
    (only,) = training_words(high)
    assert option(only, "--dit") == "DIT_HIGH_NOISE" and option(only, "--min_timestep") == "900"
    # The low-noise model is then neither asked for, nor spoken of at the end.
    text = musubi.files(high, dataclasses.replace(MACHINE, dit=""))["train_detailed.sh"]
    assert "DIT_HIGH_NOISE=" in text and "\nDIT=" not in text and "difflora subtract" not in text
