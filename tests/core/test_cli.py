"""The command line as people use it: what it writes, what it says, and the old script's flags."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import difflora
from difflora.cli import old_script, printing
from difflora.cli.commands import main
from difflora.errors import DiffLoraError, RecipeError
from difflora.saving import recipes
from tests.lora_files import FFN, K, Q, dense, factors, kohya, write, write_pair

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    a, b = write_pair(tmp_path)
    return str(a), str(b)


def report(run: Callable[..., str], *arguments: object) -> dict:
    return json.loads(run(*arguments, "--json"))


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def truth(path: str, weight: float = 1.0) -> dict[str, np.ndarray]:
    """Every module's change, from the file alone."""
    return {name: weight * delta.dense(torch.float64).numpy() for name, delta in difflora.load(path).items()}


def difference(pair: tuple[str, str]) -> dict[str, np.ndarray]:
    a, b = truth(pair[0]), truth(pair[1])
    return {name: a[name] - b[name] for name in a}


def norms(changes: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.linalg.norm(change)) for name, change in changes.items()}


# subtract


def test_default_is_rank_4_float32_native(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "out.safetensors"
    text = run("subtract", *pair, "-o", out)
    stored = load_file(out)
    assert stored[f"diffusion_model.{Q}.lora_down.weight"].shape == (4, 16)
    assert stored[f"diffusion_model.{Q}.lora_up.weight"].dtype == torch.float32
    assert float(stored[f"diffusion_model.{Q}.alpha"]) == 4.0
    assert len(stored) == 9
    for word in ("wrote", "3 at rank 4", "retained energy", "cosine of A and B", "cancelled", "slow path"):
        assert word in text


def test_json_is_all_of_stdout_and_agrees_with_truth(
    pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]
) -> None:
    out = tmp_path / "out.safetensors"
    told = report(run, "subtract", *pair, "-o", out, "--rank", "2")
    a, b = (np.concatenate([change.ravel() for change in truth(path).values()]) for path in pair)
    squares = [np.linalg.svd(change, compute_uv=False) ** 2 for change in difference(pair).values()]
    assert told["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert told["cancelled"] == pytest.approx(2 * a @ b / (a @ a + b @ b), abs=1e-6)
    assert told["retained_energy"] == pytest.approx(sum(s[:2].sum() for s in squares) / sum(s.sum() for s in squares))
    assert (told["matrices"], told["vectors"], told["rank"], told["by_qr"]) == (3, 0, 2, 0)
    assert told["bytes"] == out.stat().st_size
    assert told["sshs_model_hash"] == metadata(out)["sshs_model_hash"]


@pytest.mark.parametrize(
    ("flags", "rank"),
    [
        (["--rank", "3"], 3),
        (["--energy", "1"], 8),
        (["--ratio", "1e9"], 8),
        (["--energy", "1", "--max-rank", "5"], 5),
        (["--lossless"], 8),
    ],
)
def test_rank_rules(
    flags: list[str], rank: int, pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]
) -> None:
    run("subtract", *pair, "-o", tmp_path / "out.safetensors", *flags)
    assert difflora.load(tmp_path / "out.safetensors").specs[Q].rank == rank


def test_lossless_is_the_difference_and_knows_its_cosine(
    pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]
) -> None:
    out = tmp_path / "out.safetensors"
    flags = ["--weight-a", "2", "--weight-b", "-0.5", "--select", "self_attn, ffn=3"]
    lossless = report(run, "subtract", *pair, "-o", out, "--lossless", *flags)
    a, b = truth(pair[0]), truth(pair[1])
    written = truth(str(out))
    for name, weight in ((Q, 1), (FFN, 3)):
        np.testing.assert_allclose(written[name], weight * (2 * a[name] + 0.5 * b[name]), atol=1e-5)
    exact = report(run, "subtract", *pair, "-o", out, "--overwrite", *flags)
    assert lossless["cosine"] == pytest.approx(exact["cosine"], abs=1e-5)  # of A and B as they are
    x, y = (np.concatenate([side[name].ravel() for name in (Q, FFN)]) for side in (a, b))
    assert exact["cancelled"] == pytest.approx(-2 * x @ y / (4 * x @ x + 0.25 * y @ y), abs=1e-6)  # of 2 A + 0.5 B
    assert lossless["cancelled"] == pytest.approx(exact["cancelled"], abs=1e-5)


def test_selection_weights_scale_and_nullify(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "out.safetensors"
    told = report(
        run, "subtract", *pair, "-o", out, "--rank", "8", "--select", "attn=0.5", "--scale", "-2", "--weight-a", "3"
    )
    a, b, written = truth(pair[0]), truth(pair[1]), truth(str(out))
    assert set(written) == {Q, K}
    np.testing.assert_allclose(written[K], -2 * 0.5 * (3 * a[K] - b[K]), atol=1e-4)
    assert told["skipped"] == [{"why": "not selected", "modules": [FFN]}]

    report(run, "subtract", *pair, "-o", out, "--select", "attn", "--nullify", "--overwrite")
    written = truth(str(out))
    assert set(written) == {Q, K, FFN}
    assert not written[FFN].any() and written[K].any()


def test_modules_of_one_side_are_kept_dropped_and_always_reported(tmp_path: Path, run: Callable[..., str]) -> None:
    a = write(tmp_path / "a.safetensors", {Q: factors(seed=1), K: factors(seed=2)})
    b = write(tmp_path / "b.safetensors", {Q: factors(seed=3), FFN: factors(40, seed=4)})
    out = tmp_path / "out.safetensors"
    kept = report(run, "subtract", a, b, "-o", out, "--rank", "16")
    assert kept["kept_from_one_side"] == [
        {"why": "only in a.safetensors", "modules": [K]},
        {"why": "only in b.safetensors", "modules": [FFN]},
    ]
    written = truth(str(out))
    np.testing.assert_allclose(written[K], truth(str(a))[K], atol=1e-5)
    np.testing.assert_allclose(written[FFN], -truth(str(b))[FFN], atol=1e-5)

    dropped = report(run, "subtract", a, b, "-o", out, "--unmatched", "drop", "--overwrite")
    assert dropped["skipped"] == [
        {"why": "only in a.safetensors", "modules": [K]},
        {"why": "only in b.safetensors", "modules": [FFN]},
    ]
    assert set(truth(str(out))) == {Q}
    assert f"{K}: only in a.safetensors" in run("subtract", a, b, "-o", out, "--unmatched", "drop", "--overwrite")


@pytest.mark.parametrize("dialect", ["native", "kohya", "diffusers", "peft"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dialects_and_dtypes(
    dialect: str, dtype: str, pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]
) -> None:
    out = tmp_path / "out.safetensors"
    run("subtract", *pair, "-o", out, "--rank", "8", "--dialect", dialect, "--dtype", dtype)
    lora = difflora.load(out)
    assert lora.dialect == dialect
    tolerance = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15}[dtype]
    for name, change in difference(pair).items():
        np.testing.assert_allclose(lora[name].dense().double().numpy(), change, atol=tolerance)


def test_underscores_and_hyphens_mean_the_same(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "out.safetensors"
    a = report(run, "subtract", *pair, "-o", out, "--max_rank", "2", "--weight_a=2", "--energy", "1")
    b = report(run, "subtract", *pair, "-o", out, "--max-rank", "2", "--weight-a=2", "--energy", "1", "--overwrite")
    assert a["sshs_model_hash"] == b["sshs_model_hash"]


def test_modules_that_are_stored_in_full(tmp_path: Path, run: Callable[..., str]) -> None:
    """Both ways to write them, and the certificate of the one that approximates."""
    random = torch.Generator().manual_seed(0)
    name = "blocks.3.ffn.2"
    paths = []
    for side in "ab":
        full = {f"{kohya(name)}.diff": torch.randn(600, 520, generator=random)}
        paths.append(write(tmp_path / f"{side}.safetensors", {Q: factors(seed=ord(side))}, full))
    exact = truth(str(paths[0]))[name] - truth(str(paths[1]))[name]
    out = tmp_path / "out.safetensors"
    assert report(run, "subtract", *paths, "-o", out, "--lossless")["cosine"] is not None
    np.testing.assert_allclose(truth(str(out))[name], exact, atol=1e-5)
    told = report(run, "subtract", *paths, "-o", out, "--rank", "4", "--overwrite", "--analyze_blocks")
    optimum = np.linalg.norm(np.linalg.svd(exact, compute_uv=False)[4:])
    bound = told["stored_in_full"][name]
    assert optimum <= np.linalg.norm(exact - truth(str(out))[name]) <= (1 + bound) * optimum * (1 + 1e-6)
    assert told["blocks"]["blocks 3"]["norm"] == pytest.approx(np.linalg.norm(exact))
    assert "above the smallest possible" in run("subtract", *paths, "-o", out, "--overwrite")
    run("subtract", *paths, "-o", out, "--overwrite", "--select", "ffn", "--lossless")


# The old script


def test_the_old_command_line_as_it_stands(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "out.safetensors"
    text = run(
        *f"subtract --lora_a {pair[0]} --lora_b {pair[1]} --target_blocks attn --target_indices 0 1 2 --output "
        f"{out} --rank 4 --dtype float32 --alpha 1.0 --device cuda --analyze_blocks --exclude_non_targeted "
        "--fast_svd --target_norm 1.0".split()
    )
    written = truth(str(out))
    assert set(written) == {Q, K}
    for name in written:
        u, s, v = np.linalg.svd(difference(pair)[name])
        np.testing.assert_allclose(written[name], (u[:, :4] * s[:4]) @ v[:4], atol=1e-4)
    assert "blocks 0" in text and "blocks 1" in text and "blocks 2" not in text
    assert "--device cuda: runs on the CPU, which is enough" in run.errors
    assert "--fast_svd: the exact SVD" in run.errors
    # alpha 2 at rank 4: the script was twice as strong, as it left out the scale of 1/2
    assert "old script : this file = 2 : 1" in run.errors


def test_the_old_defaults(tmp_path: Path, run: Callable[..., str]) -> None:
    modules = {Q: (30, 20), K: (30, 20), FFN: (40, 20)}
    a = write(
        tmp_path / "a.safetensors",
        {name: factors(*shape, rank=12, seed=i) for i, (name, shape) in enumerate(modules.items())},
    )
    b = write(
        tmp_path / "b.safetensors",
        {name: factors(*modules[name], rank=12, seed=i) for i, name in enumerate([Q, FFN], start=7)},
    )
    out = tmp_path / "out.safetensors"
    told = report(run, "subtract", "--lora_a", a, "--lora_b", b, "--target_blocks", "attn", "--output", out)
    stored = load_file(out)
    assert stored[f"diffusion_model.{Q}.lora_down.weight"].shape == (16, 20)
    assert stored[f"diffusion_model.{Q}.lora_down.weight"].dtype == torch.float16
    assert not stored[f"diffusion_model.{FFN}.lora_up.weight"].any()  # not targeted: zeros
    assert not any(K in key for key in stored)  # not in both
    change = truth(str(a))[Q] - truth(str(b))[Q]
    assert told["scale"] == pytest.approx(1 / np.linalg.norm(change))
    assert np.linalg.norm(truth(str(out))[Q]) == pytest.approx(1.0, rel=0.05)  # rank 16 of 24 keeps nearly all
    assert "1 : 1 (both are scaled to the same norm)" in run.errors


def test_target_norm_is_the_mean_over_the_targeted_modules(
    pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]
) -> None:
    out = tmp_path / "out.safetensors"
    told = report(
        run,
        "subtract",
        "--lora_a",
        pair[0],
        "--lora_b",
        pair[1],
        "--output",
        out,
        "--target_norm",
        "2.5",
        "--target_blocks",
        "all",
        "--dtype",
        "float32",
    )
    assert np.mean(list(norms(truth(str(out))).values())) == pytest.approx(2.5, rel=1e-5)
    assert told["scale"] == pytest.approx(2.5 / np.mean(list(norms(difference(pair)).values())))


@pytest.mark.parametrize("nullify", [True, False])
@pytest.mark.parametrize("percentile", [True, False])
def test_small_modules_are_left_out(
    percentile: bool, nullify: bool, pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]
) -> None:
    sizes = norms(difference(pair))
    smallest = min((Q, K), key=sizes.__getitem__)
    bound = (sizes[Q] + sizes[K]) / 2
    flags = ["--auto_threshold_percentile", "50"] if percentile else ["--magnitude_threshold", f"{bound}"]
    out = tmp_path / "out.safetensors"
    told = report(
        run,
        "subtract",
        "--lora_a",
        pair[0],
        "--lora_b",
        pair[1],
        "--output",
        out,
        "--alpha",
        "0.1",
        "--target_blocks",
        "attn",
        *flags,
        *([] if nullify else ["--exclude_non_targeted"]),
    )
    written = norms(truth(str(out)))
    kept = {name for name, norm in written.items() if norm > 0}
    assert kept == {Q, K} - {smallest}
    assert set(written) == ({Q, K, FFN} if nullify else kept)
    assert [smallest] in [line["modules"] for line in told["skipped"]]


def test_percentile_is_that_of_numpy() -> None:
    sizes = {str(i): float(i) for i in range(1, 10)}
    assert old_script.Cut(percentile=25).small(sizes) == ["1", "2"]
    assert old_script.Cut(percentile=0).small(sizes) == []
    assert old_script.Cut(bound=3.0).small(sizes) == ["1", "2"]
    assert old_script.Cut().small(sizes) == []


@pytest.mark.parametrize(
    ("blocks", "indices", "expression"),
    [
        (["attn"], ["0", "1", "2"], "blocks 0,1,2 & attn"),
        (["attn", "ffn"], [], "attn | ffn"),
        (["self_attn,cross_attn"], ["0-9"], "blocks 0-9 & self_attn | cross_attn"),
        ([], ["5"], "blocks 5"),
        (["all"], ["5", "7"], "blocks 5,7"),
        (["all"], [], "all"),
        (["mlp"], [], "ffn"),
        ([], [], None),
    ],
)
def test_old_words_in_the_selection_language(blocks: list[str], indices: list[str], expression: str | None) -> None:
    assert old_script.selection(blocks, indices) == expression


def test_old_words_select_what_they_say(pair: tuple[str, str]) -> None:
    lora = difflora.load(pair[0])
    expression = old_script.selection(["cross_attn", "ffn"], ["1", "2"])
    assert set(lora.select(expression)) == {K, FFN}
    assert set(lora.select(old_script.selection(["cross_attn", "ffn"], ["0", "1"]))) == {K}


def test_old_flags_on_biases_alone(tmp_path: Path, run: Callable[..., str]) -> None:
    paths = [
        write(
            tmp_path / f"{side}.safetensors",
            {Q: factors(seed=ord(side))},
            {f"{kohya(K)}.diff_b": torch.full((24,), float(ord(side)))},
        )
        for side in "ab"
    ]
    out = tmp_path / "out.safetensors"
    run(
        "subtract",
        "--lora_a",
        paths[0],
        "--lora_b",
        paths[1],
        "--output",
        out,
        "--target_blocks",
        "bias",
        "--lossless",
        "--exclude_non_targeted",
    )
    assert {name: float(change[0]) for name, change in truth(str(out)).items()} == {f"{K}.bias": -1.0}


def test_different_alphas_have_no_single_ratio(tmp_path: Path, run: Callable[..., str]) -> None:
    a = write(tmp_path / "a.safetensors", {Q: factors(alpha=4.0)})
    b = write(tmp_path / "b.safetensors", {Q: factors(alpha=2.0, seed=1)})
    run("subtract", "--lora_a", a, "--lora_b", b, "--output", tmp_path / "out.safetensors", "--alpha", "1")
    assert "no single ratio" in run.errors and "0.5 to 1" in run.errors


def test_old_strength_ratio_is_true(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    """The old script's result, worked out as it did, at strength 1 is this file at the printed strength."""
    out = tmp_path / "out.safetensors"
    run(
        "subtract",
        "--lora_a",
        pair[0],
        "--lora_b",
        pair[1],
        "--output",
        out,
        "--alpha",
        "1.0",
        "--rank",
        "8",
        "--dtype",
        "float32",
    )
    ratio = float(run.errors.split("this file = ")[1].split(" : 1")[0])
    stored = [load_file(path) for path in pair]
    key = "lora_unet_blocks_0_self_attn_q"
    old = stored[0][f"{key}.lora_up.weight"] @ stored[0][f"{key}.lora_down.weight"] - (
        stored[1][f"{key}.lora_up.weight"] @ stored[1][f"{key}.lora_down.weight"]
    )
    np.testing.assert_allclose(old.double().numpy(), ratio * truth(str(out))[Q], atol=1e-4)


# The other commands


def test_inspect(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    text = run("inspect", pair[0])
    for word in ("kohya", "3 matrices at rank 4", "blocks 0-2", "alpha / rank = 0.5", "F32"):
        assert word in text
    told = report(run, "inspect", pair[0])
    assert told["modules"][FFN] == {"shape": [40, 16], "rank": 4}
    assert told["scale"] == [0.5] and told["recipe"] is None
    run("subtract", *pair, "-o", tmp_path / "out.safetensors", "--select", "attn")
    text = run("inspect", tmp_path / "out.safetensors")
    assert "rank fixed 4 of (only [attn] of (a.safetensors - b.safetensors))" in text


def test_analyze(pair: tuple[str, str], run: Callable[..., str]) -> None:
    told = report(run, "analyze", *pair)
    exact = norms(difference(pair))
    assert told["norm"] == pytest.approx(np.linalg.norm(list(exact.values())))
    assert {name: one["norm"] for name, one in told["modules"].items()} == pytest.approx(exact)
    assert len(told["modules"][Q]["singular_values"]) == 8
    text = run("analyze", *pair, "--by", "block")
    assert "blocks 2" in text and "energy by rank" in text
    lines = run("analyze", *pair, "--csv").splitlines()
    assert len(lines) == 4 and lines[0].startswith("module,norm_a")
    assert list(report(run, "analyze", *pair, "--select", "ffn")["modules"]) == [FFN]


def test_rerank_one_file(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "out.safetensors"
    told = report(run, "rerank", pair[0], "-o", out, "--rank", "1")
    u, s, v = np.linalg.svd(truth(pair[0])[Q])
    np.testing.assert_allclose(truth(str(out))[Q], s[0] * np.outer(u[:, 0], v[0]), atol=1e-4)
    assert 0 < told["retained_energy"] < 1


def test_convert_keeps_the_deltas(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "out.safetensors"
    told = report(run, "convert", pair[0], "-o", out, "--dialect", "peft", "--scale", "2")
    assert (told["from_dialect"], told["dialect"]) == ("kohya", "peft")
    for name, change in truth(pair[0]).items():
        np.testing.assert_allclose(truth(str(out))[name], 2 * change, atol=1e-5)


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("subtract", "rerank", "convert", "inspect", "analyze", "rebuild", "recipe"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert f"difflora {command}" in capsys.readouterr().out


def test_as_a_module_and_into_a_pipe_that_closes(pair: tuple[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "difflora", "inspect", pair[0], "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert json.loads(done.stdout)["matrices"] == 3
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "difflora", "inspect", pair[0]],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writer)
    assert done.stderr == ""


def test_progress_bar_on_a_terminal_only(pair: tuple[str, str], tmp_path: Path) -> None:
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))  # POSIX
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "difflora",
            "subtract",
            *pair,
            "-o",
            str(tmp_path / "out.safetensors"),
            "--energy",
            "0.9",
            "--json",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        seen = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # how Linux says that the other side has closed
                break
            if not part:
                break
            seen += part
        out = process.stdout.read()
    os.close(master)
    assert process.returncode == 0
    assert json.loads(out)
    assert b"writing" in seen


# Rebuilding from the recipe


@pytest.mark.parametrize(
    "flags",
    [
        ["--rank", "2"],
        ["--energy", "0.8", "--select", "attn=0.5", "--dtype", "bfloat16", "--dialect", "kohya"],
        ["--lossless", "--nullify", "--select", "ffn", "--scale", "-0.3"],
        ["--knee", "--max-rank", "3", "--weight-a", "0.7", "--unmatched", "drop"],
        ["--target_norm", "1", "--auto_threshold_percentile", "40"],
    ],
)
def test_rebuilds_bit_for_bit(flags: list[str], tmp_path: Path, run: Callable[..., str]) -> None:
    a, b = write_pair(tmp_path)
    first = tmp_path / "first.safetensors"
    run("subtract", a, b, "-o", first, *flags)
    inputs = tmp_path / "inputs"
    (inputs / "deep").mkdir(parents=True)
    a.rename(inputs / "renamed.safetensors")
    b.rename(inputs / "deep" / "a.safetensors")  # under the other's name: content decides
    again = tmp_path / "again.safetensors"
    told = report(run, "rebuild", first, "--inputs", inputs, "-o", again)
    assert told["identical"] is True
    one, other = load_file(first), load_file(again)
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
    assert metadata(first)["sshs_model_hash"] == metadata(again)["sshs_model_hash"]


def test_a_result_of_a_result_rebuilds_too(pair: tuple[str, str], tmp_path: Path, run: Callable[..., str]) -> None:
    middle, last = tmp_path / "middle.safetensors", tmp_path / "last.safetensors"
    run("subtract", *pair, "-o", middle)
    run("rerank", middle, "-o", last, "--rank", "2", "--scale", "2")
    assert report(run, "rebuild", last, "--inputs", tmp_path, "-o", tmp_path / "again.safetensors")["identical"]


def test_the_configuration_beside_a_peft_file_is_in_the_recipe(tmp_path: Path, run: Callable[..., str]) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
        write(tmp_path / side / "adapter_model.safetensors", {Q: factors(alpha=None, seed=ord(side))})
        config = {"lora_alpha": 8, "use_rslora": side == "b", "r": 4}
        (tmp_path / side / "adapter_config.json").write_text(json.dumps(config))
    first = tmp_path / "first.safetensors"
    run(
        "subtract",
        tmp_path / "a" / "adapter_model.safetensors",
        tmp_path / "b" / "adapter_model.safetensors",
        "-o",
        first,
        "--rank",
        "8",
    )
    expected = 8 / 4 * dense(factors(alpha=None, seed=ord("a"))) - 8 / 2 * dense(factors(alpha=None, seed=ord("b")))
    np.testing.assert_allclose(truth(str(first))[Q], expected, atol=1e-4)
    for side in "ab":
        (tmp_path / side / "adapter_config.json").unlink()
    assert report(run, "rebuild", first, "--inputs", tmp_path, "-o", tmp_path / "again.safetensors")["identical"]


def test_equal_nodes_of_a_recipe_are_one_object(pair: tuple[str, str]) -> None:
    a = difflora.load(pair[0])
    twice = difflora.combine(
        [(2.0, a.select("attn")), (-1.0, difflora.rerank(a.select("attn"), difflora.FixedRank(1)))]
    )
    rebuilt = recipes.from_recipe(twice.recipe, recipes.find_in(Path(pair[0]).parent))
    assert rebuilt.recipe == twice.recipe
    assert rebuilt.parents[0] is rebuilt.parents[1].parents[0]
    assert len(rebuilt.files) == 1
    for name, delta in twice.items():
        assert torch.equal(delta.dense(), rebuilt[name].dense())


def test_missing_input_is_named_with_its_hash(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first.safetensors"
    assert main(["subtract", *pair, "-o", str(first)]) == 0
    sha256 = difflora.load(pair[1]).sha256
    write(Path(pair[1]), {Q: factors(seed=99)})
    capsys.readouterr()
    assert main(["rebuild", str(first), "--inputs", str(tmp_path), "-o", str(tmp_path / "again.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "b.safetensors" in error and sha256 in error and "its content is another" in error
    assert not (tmp_path / "again.safetensors").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        None,
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"version": 2}',
        '{"version": 1}',
        '{"version": 1, "dtype": "float32", "dialect": "native", "of": 3}',
        '{"version": 1, "dtype": "float32", "dialect": "native", "of": {}}',
        '{"version": 1, "dtype": "float32", "dialect": "native", "of": {"op": "explode"}}',
        '{"version": 1, "dtype": "float32", "dialect": "native", "of": {"op": "load", "file": 3, "sha256": "x"}}',
        '{"version": 1, "dtype": "float32", "dialect": "native", "of": {"op": "load", "file": "/etc/x", "sha256": "x"}}',
        '{"version": 1, "dtype": "float32", "dialect": "native", "of": {"op": "combine", "terms": [], "unmatched": "keep"}}',
        '{"version": 1, "dtype": "float32", "dialect": "native", "of": {"op": "rerank", "of": {"op": "rerank"}}}',
    ],
    ids=range(15),
)
def test_damaged_recipes(recipe: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = None if recipe is None else {"difflora.recipe": recipe}
    path = write(tmp_path / "a.safetensors", {Q: factors()}, metadata=stored)
    code = main(["rebuild", str(path), "--inputs", str(tmp_path), "-o", str(tmp_path / "out.safetensors")])
    out, error = capsys.readouterr()
    assert (code, out) == (2, "") and error.startswith("difflora: error: ") and error.count("\n") == 1
    assert main(["inspect", str(path)]) == 0  # the LoRA itself is sound


def test_inputs_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        recipes.find_in(tmp_path / "nowhere")


def test_errors_are_one_family() -> None:
    assert issubclass(RecipeError, DiffLoraError)


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("short", "dtype"),
    [
        ("fp16", "F16"),
        ("bf16", "BF16"),
        ("fp32", "F32"),
        ("FP16", "F16"),
        ("half", "F16"),
        ("torch.bfloat16", "BF16"),
        ("fp-16", "F16"),
        ("bf_16", "BF16"),
        ("Float 32", "F32"),
        ("fp8_e4m3", "F8_E4M3"),
        ("E5M2", "F8_E5M2"),
    ],
)
def test_dtypes_as_people_type_them(short, dtype, pair, tmp_path, run):
    run("convert", pair[0], "-o", tmp_path / "out.safetensors", "--dtype", short)
    assert report(run, "inspect", tmp_path / "out.safetensors")["dtypes"][dtype] >= 3


@pytest.mark.parametrize(
    ("words", "guess"),
    [
        (["substract", "A", "B"], "subtract"),
        (["Inspect", "A"], "inspect"),
        (["convert", "A", "-o", "o.safetensors", "--dytpe", "fp16"], "--dtype"),
        (["convert", "A", "-o", "o.safetensors", "--selct=attn"], "--select"),
        (["convert", "A", "-o", "o.safetensors", "--dtype", "float61"], "float16"),
        (["convert", "A", "-o", "o.safetensors", "\u2014dtype", "fp16"], "--dtype"),
        (["convert", "A", "-o", "o.safetensors", "\u2013\u2013select=attn"], "--select"),
        (["subtract", "A", "B", "-o", "o.safetensors", "--unmatched", "kep"], "keep"),
    ],
)
def test_a_word_that_is_almost_right_is_guessed(words, guess, capsys):
    assert f"did you mean {guess}?" in said(capsys, *words)


def test_a_file_that_is_almost_right_is_guessed(pair, tmp_path, capsys):
    assert "did you mean a.safetensors?" in said(capsys, "inspect", tmp_path / "a")
    assert "did you mean a.safetensors?" in said(
        capsys, "rerank", tmp_path / "A.safetensor", "-o", tmp_path / "o.safetensors"
    )
    assert "did you mean" not in said(capsys, "inspect", tmp_path / "quite another one")
    shutil.copy(pair[0], tmp_path / "the safetensors index.safetensors")
    assert "did you mean a.safetensors?" in said(capsys, "inspect", tmp_path / "A.Safetensors")
    assert "this is an address. Download" in said(capsys, "inspect", "https://example.org/a.safetensors")
    assert "did you mean a.safetensors?" in said(
        capsys, "extract", tmp_path / "a", pair[1], "-o", tmp_path / "o.safetensors"
    )


def test_a_folder_with_one_lora_is_that_lora(pair, tmp_path, run, capsys):
    folder = tmp_path / "one"
    folder.mkdir()
    assert "none in it" in said(capsys, "inspect", folder)
    shutil.copy(pair[0], folder)
    assert report(run, "inspect", folder)["matrices"] == 3
    assert "2 .safetensors files" in said(capsys, "inspect", tmp_path)


def test_home_is_found_where_a_shell_leaves_it(pair, tmp_path, run, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    made = report(run, "subtract", "~/a.safetensors", "~/b.safetensors", "--output=~/out.safetensors")
    assert (tmp_path / "out.safetensors").is_file() and made["rank"] == 4
    run("rebuild", "~/out.safetensors", "--inputs=~/", "-o", "~/again.safetensors")
    run("purify", "~/out.safetensors", "--against=~/a.safetensors", "--directions", 1, "-o", "~/pure.safetensors")


def test_an_empty_name_is_no_folder(pair, tmp_path, monkeypatch, capsys):
    """What a shell makes of a variable that is not set: the only LoRA of the current folder must not be taken for it."""
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(pair[0], folder)
    monkeypatch.chdir(folder)
    for words in (
        ["inspect", ""],
        ["subtract", "", pair[1], "-o", "o.safetensors"],
        ["extract", "", pair[1], "-o", "o.safetensors"],
        ["purify", pair[0], "--against", "", "-o", "o.safetensors"],
        ["rebuild", pair[0], "--inputs", "", "-o", "o.safetensors"],
    ):
        assert "the name is empty" in said(capsys, *words)


def test_what_contradicts_itself_or_says_nothing_is_told(pair, tmp_path, capsys):
    assert "--csv and --json" in said(capsys, "analyze", *pair, "--csv", "--json")
    for words in (["convert", pair[0], "-o", tmp_path / "o.safetensors"], ["analyze", *pair]):
        assert "everything is selected with no --select" in said(capsys, *words, "--select", " ")
    for words in ("subtract", *pair), ("convert", pair[0]):
        error = said(capsys, *words, "-o", tmp_path / "o.safetensors", "--scale", "1e40")
        assert "overflows" in error and "1e+40" in error
    assert not (tmp_path / "o.safetensors").exists()


def test_ranks_in_a_report_are_numbers(pair, tmp_path, run):
    path = tmp_path / "mixed.safetensors"
    write(path, {Q: factors(rank=2), K: factors(rank=5)})
    assert report(run, "inspect", path)["rank"] == [2, 5]
    assert report(run, "inspect", pair[0])["rank"] == 4
    assert "at rank 2 to 5" in run("inspect", path)


def test_work_without_a_terminal_is_told_every_ten_seconds(monkeypatch, capsys):
    monkeypatch.setattr(printing, "EVERY", 0.02)
    with printing.bar("writing") as progress:
        time.sleep(0.1)
        progress(3, 40)
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"difflora: writing: \d+ s", lines[0])
    assert re.fullmatch(r"difflora: writing: 3 of 40 modules, \d+ s", lines[-1])
    threads = threading.active_count()
    with pytest.raises(ValueError), printing.bar("writing"):
        raise ValueError
    assert threading.active_count() == threads and not capsys.readouterr().err


def test_a_file_of_wan22s_two_models_goes_through_the_command_line(tmp_path, run, capsys):
    for side, seed in (("a", 0), ("b", 10)):
        stored = {}
        for place, prefix in enumerate(("transformer.", "transformer_2.")):
            up, down, _ = factors(seed=seed + place)
            stored |= {f"{prefix}{Q}.lora_A.weight": down, f"{prefix}{Q}.lora_B.weight": up}
        save_file(stored, tmp_path / f"{side}.safetensors")
    both = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert "--noise high" in said(capsys, "inspect", both[0])
    run("subtract", "--high", *both, "--low", *both, "-o", tmp_path / "out.safetensors", "--lossless")
    for noise in ("high", "low"):
        one = tmp_path / f"{noise}.safetensors"
        run("convert", both[0], "--noise", noise, "-o", one)
        difference = difflora.load(tmp_path / f"out_{noise}.safetensors")
        sides = [difflora.load(path, noise=noise)[Q].dense() for path in both]
        assert torch.allclose(difference[Q].dense(), sides[0] - sides[1], atol=1e-5)
        assert torch.allclose(difflora.load(one)[Q].dense(), sides[0], atol=1e-5)
