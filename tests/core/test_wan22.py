"""Two pairs, for the high-noise and the low-noise model of Wan2.2: two files, which are written together or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import difflora
from difflora.cli import commands
from difflora.cli.commands import main
from difflora.saving import wan22
from difflora.storage.reader import read_header
from tests.lora_files import FFN, K, Q, factors, write

ROOT = Path(__file__).parents[2]
SHAPES = {Q: (24, 16), K: (24, 16), FFN: (40, 16)}


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """noise -> the files of A and B, in a folder of their own."""
    (tmp_path / "inputs").mkdir()
    return {
        noise: tuple(
            write(
                tmp_path / "inputs" / f"{side}_{noise}.safetensors",
                {
                    name: factors(*shape, seed=100 * number + 10 * place + ord(side))
                    for place, (name, shape) in enumerate(SHAPES.items())
                },
            )
            for side in "ab"
        )
        for number, noise in enumerate(("high", "low"))
    }


def words(pairs: dict[str, tuple[Path, Path]], *more: object) -> list[str]:
    return [
        "subtract",
        *(str(word) for noise, files in pairs.items() for word in (f"--{noise}", *files)),
        *map(str, more),
    ]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail in one line and leave every file as it was, and gives that line."""

    def refused(*arguments: object) -> str:
        before = snapshot(tmp_path)
        assert main([str(argument) for argument in arguments]) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("difflora: ") and error.count("\n") == 1
        assert snapshot(tmp_path) == before
        return error

    return refused


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is written


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--rank", "2", "--select", "attn=0.5", "--nullify", "--dtype", "bfloat16", "--dialect", "kohya"],
        ["--lossless", "--scale", "-2", "--weight-a", "0.5"],
        ["--energy", "0.9", "--max-rank", "5", "--unmatched", "error"],
    ],
)
def test_each_file_is_what_its_pair_alone_gives(
    flags: list[str], pairs: dict[str, tuple[Path, Path]], tmp_path: Path, run: Callable[..., str]
) -> None:
    told = json.loads(run(*words(pairs, "-o", tmp_path / "density.safetensors", "--json", *flags)))
    for noise, pair in pairs.items():
        alone = json.loads(
            run("subtract", *pair, "-o", tmp_path / "alone.safetensors", "--overwrite", "--json", *flags)
        )
        ours, theirs = load_file(tmp_path / f"density_{noise}.safetensors"), load_file(tmp_path / "alone.safetensors")
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        for key in set(alone) - {"output", "bytes", "seconds"}:
            assert told[noise][key] == alone[key], key
        assert told[noise]["bytes"] == (tmp_path / f"density_{noise}.safetensors").stat().st_size
    assert set(told) == {"high", "low", "warnings", "seconds"} and told["warnings"] == []
    assert sorted(path.name for path in tmp_path.glob("*density*")) == [
        "density_high.safetensors",
        "density_low.safetensors",
    ]


def test_table_has_both_files(pairs: dict[str, tuple[Path, Path]], tmp_path: Path, run: Callable[..., str]) -> None:
    lines = run(*words(pairs, "-o", tmp_path / "density.safetensors")).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("wrote ")] == [
        str(tmp_path / f"density_{noise}.safetensors") for noise in ("high", "low")
    ]
    assert sum("retained energy" in line for line in lines) == 2
    assert all(
        line.startswith(("difflora: warning: high noise: ", "difflora: warning: low noise: "))
        for line in run.errors.splitlines()
    )


def test_either_file_brings_back_both(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, run: Callable[..., str]
) -> None:
    run(*words(pairs, "-o", tmp_path / "density.safetensors", "--select", "attn", "--dtype", "float16"))
    again = tmp_path / "again.safetensors"
    for noise, other in (("high", "low"), ("low", "high")):
        file = tmp_path / f"density_{noise}.safetensors"
        assert f"twin                      for {noise} noise; the other is density_{other}.safetensors" in run(
            "inspect", file
        )
        rebuild = ("rebuild", file, "--inputs", tmp_path / "inputs", "-o", again, "--overwrite", "--json")
        assert json.loads(run(*rebuild))["identical"] is True
        assert read_header(again).metadata["difflora.twin"] == read_header(file).metadata["difflora.twin"]

        assert "identical" not in json.loads(run(*rebuild, "--twin"))
        lost = read_header(tmp_path / f"density_{other}.safetensors").metadata
        assert {key: read_header(again).metadata[key] for key in ("difflora.twin", "sshs_model_hash")} == {
            key: lost[key] for key in ("difflora.twin", "sshs_model_hash")
        }


# Nothing is written unless all is well


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda words: [*words, "c.safetensors"], "no place for c.safetensors"),
        (lambda words: [words[0], "c.safetensors", *words[1:]], "no place for c.safetensors"),
        (lambda words: [word for word in words if word != "--low"][:4] + words[-2:], "--high is given without --low"),
        (lambda words: [words[0], *words[4:]], "--low is given without --high"),
        (lambda words: [word for word in words if "b_low" not in word], "--low: expected 2 arguments"),
    ],
    ids=["more files", "files before", "only high", "only low", "one of low"],
)
def test_command_lines_that_make_no_sense(
    change: Callable[[list[str]], list[str]],
    reason: str,
    tmp_path: Path,
    pairs: dict[str, tuple[Path, Path]],
    refused: Callable[..., str],
) -> None:
    assert reason in refused(*change(words(pairs, "-o", tmp_path / "out.safetensors")))


@pytest.mark.parametrize(
    "flags",
    [
        ["--lora_a", "x"],
        ["--lora_b", "x"],
        ["--target_blocks", "attn"],
        ["--target_indices", "0"],
        ["--alpha", "0"],
        ["--target_norm", "0"],
        ["--magnitude_threshold", "0"],
        ["--auto_threshold_percentile", "0"],
        ["--exclude_non_targeted"],
        ["--analyze_blocks"],
        ["--device", "cuda"],
        ["--fast_svd"],
    ],
)
def test_flags_of_the_old_script_know_one_pair_only(
    flags: list[str], pairs: dict[str, tuple[Path, Path]], tmp_path: Path, refused: Callable[..., str]
) -> None:
    error = refused(*words(pairs, "-o", tmp_path / "out.safetensors", *flags))
    assert f"{flags[0].replace('_', '-')}: the old script's flags do not go with --high and --low" in error.replace(
        "_", "-"
    )


@pytest.mark.parametrize("noise", ["high", "low"])
def test_what_is_wrong_with_one_pair_stops_both(
    noise: str, pairs: dict[str, tuple[Path, Path]], tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.safetensors"
    for other in ("high", "low"):
        (tmp_path / f"out_{other}.safetensors").write_bytes(b"precious")
    a, b = pairs[noise]

    def failing(*files: Path) -> str:
        return refused(*words({**pairs, noise: files}, "-o", out, "--overwrite"))

    assert "no such file" in failing(a, tmp_path / "nowhere.safetensors")
    assert f"{noise} noise: " in failing(a, a)
    assert f"{noise} noise: " in failing(a, write(tmp_path / "c.safetensors", {Q: factors(24, 20)}))
    zero = factors(24, 16)
    halves = [
        write(tmp_path / f"{name}.safetensors", {Q: (up, zero[1], alpha)})
        for name, up, alpha in (("d", zero[0], 2.0), ("e", 2 * zero[0], 1.0))
    ]
    assert f"{noise} noise: " in failing(*halves)  # zero, which only shows when it is computed
    broken = factors(24, 16)
    broken[0][3, 2] = float("nan")
    assert f"{noise} noise: " in failing(a, write(tmp_path / "f.safetensors", {Q: broken}))


@pytest.mark.parametrize("noise", ["high", "low"])
def test_both_names_must_be_free(
    noise: str,
    pairs: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    run: Callable[..., str],
    refused: Callable[..., str],
) -> None:
    there = tmp_path / f"out_{noise}.safetensors"
    there.write_bytes(b"precious")
    line = words(pairs, "-o", tmp_path / "out.safetensors")
    assert f"{noise} noise: out_{noise}.safetensors: the file exists" in refused(*line)
    run(*line, "--overwrite")
    assert load_file(there)


@pytest.mark.parametrize("noise", ["high", "low"])
def test_no_input_of_either_pair_is_overwritten(
    noise: str, pairs: dict[str, tuple[Path, Path]], refused: Callable[..., str]
) -> None:
    folder = pairs["high"][0].parent
    assert "one of the inputs" in refused(*words(pairs, "-o", folder / "a.safetensors", "--overwrite"))
    pairs[noise] = (folder / f"b_{noise}.safetensors", folder / f"a_{noise}.safetensors")
    assert "one of the inputs" in refused(*words(pairs, "-o", folder / "b.safetensors", "--overwrite"))


@pytest.mark.parametrize("output", ["", "/", "out", "out.pt", "nowhere/out.safetensors"])
def test_outputs_that_cannot_be(output: str, pairs: dict[str, tuple[Path, Path]], refused: Callable[..., str]) -> None:
    error = refused(*words(pairs, "-o", output))
    assert any(why in error for why in ("does not exist", "must end in .safetensors", "the name is empty"))


# On the way


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["fsync", "analyze", "replace"])
def test_failure_of_low_leaves_high_as_it_was(
    where: str,
    error: BaseException | type[BaseException],
    tmp_path: Path,
    pairs: dict[str, tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    """At the end of writing, while its numbers are computed, and when high has its name already."""
    (tmp_path / "out_high.safetensors").write_bytes(b"precious")
    done = 0

    def second_time(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal done
            done += 1
            if done == 2:
                raise error
            return real(*arguments)

        return call

    module, name = {"fsync": (os, "fsync"), "analyze": (commands, "analyze_difference"), "replace": (os, "replace")}[
        where
    ]
    monkeypatch.setattr(module, name, second_time(getattr(module, name)))
    refused(*words(pairs, "-o", tmp_path / "out.safetensors", "--overwrite"))
    assert done >= 2


def big(folder: Path, noise: str) -> tuple[Path, Path]:
    """Enough work for a signal to arrive in the middle of it."""
    folder.mkdir(exist_ok=True)
    return tuple(
        write(
            folder / f"{side}_{noise}.safetensors",
            {f"blocks.{block}.ffn.0": factors(3000, 2000, 32, seed=block + 100 * ord(side)) for block in range(40)},
        )
        for side in "ab"
    )


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_low_is_written(number: int, tmp_path: Path) -> None:
    pairs = {noise: big(tmp_path / "inputs", noise) for noise in ("high", "low")}
    (tmp_path / "out_high.safetensors").write_bytes(b"precious")
    before = snapshot(tmp_path)
    line = [sys.executable, "-m", "difflora", *words(pairs, "-o", tmp_path / "out.safetensors", "--overwrite")]
    with subprocess.Popen(
        line,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        until = time.monotonic() + 300
        while not list(tmp_path.glob(".out_low*.tmp")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        assert list(tmp_path.glob(".out_high*.tmp"))
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (out, error) == ("", "difflora: interrupted; nothing was written.\n")
    assert snapshot(tmp_path) == before


# What may have been mixed up


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        ("wan2.2_t2v_high_noise_14B_fp16", "high"),
        ("wan2.2_t2v_low_noise_14B_fp16", "low"),
        ("Wan22-HighNoise-A", "high"),
        ("WAN2.2_T2V_A14BLowNoise", "low"),
        ("style-highnoise-000010", "high"),
        ("slider_detailed_low-step00000500", "low"),
        ("STYLE_HIGH", "high"),
        ("high_detail_low_noise", "low"),
        ("low poly high noise", "high"),
        ("high_and_low", None),
        ("highlands", None),
        ("slow_noise", None),
        ("flow", None),
        ("style-H", None),
        ("style_L", None),
        ("", None),
    ],
)
def test_noise_that_a_name_speaks_of(name: str, noise: str | None) -> None:
    assert wan22.noise_said(name) == noise


def test_files_that_look_mixed_up_are_said(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, run: Callable[..., str]
) -> None:
    run(*words({"high": pairs["low"], "low": pairs["high"]}, "-o", tmp_path / "out.safetensors"))
    for name, given, said in (
        ("a_low", "high", "low"),
        ("b_low", "high", "low"),
        ("a_high", "low", "high"),
        ("b_high", "low", "high"),
    ):
        assert f"warning: {name}.safetensors is given for {given} noise, but its name says {said}." in run.errors


def test_the_model_that_was_trained_on_decides(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, run: Callable[..., str]
) -> None:
    def trained(path: Path, model: str) -> Path:
        return write(
            path,
            {name: factors(*shape, seed=7) for name, shape in SHAPES.items()},
            metadata={"ss_sd_model_name": model},
        )

    model = "wan2.2_t2v_low_noise_14B_fp16.safetensors"
    right = trained(tmp_path / "high_detail.safetensors", model)
    told = json.loads(
        run(*words({**pairs, "low": (right, pairs["low"][1])}, "-o", tmp_path / "out.safetensors", "--json"))
    )
    assert told["warnings"] == []
    told = json.loads(
        run(*words({**pairs, "high": (right, pairs["high"][1])}, "-o", tmp_path / "more.safetensors", "--json"))
    )
    assert told["warnings"] == [
        f"high_detail.safetensors is given for high noise, but it was trained on {model}. Check what "
        "follows --high and --low."
    ]


def test_one_file_for_both_is_said(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, run: Callable[..., str]
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(pairs["high"][1].read_bytes())
    told = json.loads(
        run(*words({**pairs, "low": (pairs["low"][0], copy)}, "-o", tmp_path / "out.safetensors", "--json"))
    )
    assert told["warnings"] == [
        "b_high.safetensors, given for high noise, and copy.safetensors, given for low noise, are the same "
        "file. Check what follows --high and --low."
    ]


# The note about the twin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"noise": "high", "other": "x"}',
        '{"noise": "loud", "other": "x", "of": {}}',
        '{"noise": [], "other": "x", "of": {}}',
        '{"noise": "high", "other": 3, "of": {}}',
        '{"noise": "high", "other": "x", "of": 3}',
    ],
    ids=range(10),
)
def test_damaged_notes(
    text: str, pairs: dict[str, tuple[Path, Path]], tmp_path: Path, run: Callable[..., str], refused: Callable[..., str]
) -> None:
    lora = difflora.subtract(*map(difflora.load, pairs["high"]))
    path = difflora.save(lora, tmp_path / "x.safetensors", metadata={"difflora.twin": text})
    error = refused("rebuild", path, "--twin", "--inputs", tmp_path / "inputs", "-o", tmp_path / "again.safetensors")
    assert "x.safetensors: what it says about its twin is damaged" in error
    assert "the other is" not in run("inspect", path)


def test_a_file_that_was_made_alone_has_no_twin(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, run: Callable[..., str], refused: Callable[..., str]
) -> None:
    alone = tmp_path / "alone.safetensors"
    run("subtract", *pairs["high"], "-o", alone)
    error = refused("rebuild", alone, "--twin", "--inputs", tmp_path / "inputs", "-o", tmp_path / "again.safetensors")
    assert "alone.safetensors: this file has no twin" in error
