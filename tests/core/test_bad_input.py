"""Whatever is wrong with the input: one line that says what, where and what to do, exit code 2, nothing written."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import difflora
from difflora.cli.commands import main
from difflora.errors import DiffLoraError, FileError
from difflora.saving.save import RECIPE_KEY
from difflora.storage.reader import read_header
from tests.lora_files import FFN, K, Q, factors, kohya, tensors, write, write_pair

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail cleanly, and gives its one line."""

    def run(*arguments: object) -> str:
        before = snapshot(tmp_path)
        code = main([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        assert code == 2, out + error
        assert out == ""
        assert error.startswith("difflora: error: ")
        assert error.count("\n") == 1 and error.endswith("\n")
        assert snapshot(tmp_path) == before
        return error

    return run


def snapshot(folder: Path) -> dict[str, tuple[int, int] | None]:
    return {
        str(path): None if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    stored = load_file(path)
    change(stored)
    save_file(stored, path)
    return path


# Files that are no LoRA, or a damaged one


def test_missing_file(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "nowhere.safetensors: no such file" in refused(
        "subtract", tmp_path / "nowhere.safetensors", pair[1], "-o", tmp_path / "out.safetensors"
    )


def test_folder_in_place_of_a_file(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "a folder, with 2 .safetensors files in it" in refused(
        "subtract", tmp_path, pair[1], "-o", tmp_path / "out.safetensors"
    )


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "0 bytes are too few"),
        (b"hello", "5 bytes are too few"),
        (b"\x01\x02\x03abc" + bytes(5000), "not a safetensors file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "claims a header of 1,152,921,504,606,846,976 bytes"),
        (struct.pack("<Q", 4) + b"null", "not a JSON object"),
        (struct.pack("<Q", 4) + b"{,,}", "not JSON"),
        (struct.pack("<Q", 2) + b"\xff\xff", "not JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not JSON"),
        (struct.pack("<Q", 2) + b"{}", "no LoRA weights"),
        (b"\x80\x02}q\x00X\x04\x00\x00\x00", "pickled"),
        (b"PK\x03\x04" + bytes(100), "pickled"),
    ],
    ids=range(11),
)
def test_not_a_safetensors_file(
    content: bytes, word: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(content)
    error = refused("subtract", pair[0], bad, "-o", tmp_path / "out.safetensors")
    assert "bad.safetensors" in error and word in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a web page, not a LoRA: the download failed"),
        (b"\xef\xbb\xbf\n  <html>" + b" " * 3000, "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        (b'{"error":"Unauthorized","message":"log in"}', 'JSON, not a LoRA. It begins with {"error"'),
        (b"[1, 2, 3, 4, 5, 6, 7, 8]", "JSON"),
        (b"Entry not found", "text, not a LoRA. It begins with Entry not found"),
        ("見つかりません。もう一度お試しください。".encode() * 200, "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 153\n", "a Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF file"),
        (b"PK\x03\x04" + bytes(22) + b"\x0f\x00\x00\x00lora/readme.txt" + bytes(9), "a zip archive"),
        (b"PK\x03\x04" + bytes(22) + b"\x10\x00\x00\x00archive/data.pkl" + bytes(9), "pickled"),
        (b"\x1f\x8b\x08" + bytes(100), "a gzip archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a picture"),
        (bytes(5000), "the download did not finish"),
        (bytes(8), "the download did not finish"),
        (b"BZh91AY&SY" + bytes(100), "a bzip2 archive"),
        (b"\xfd7zXZ\x00" + bytes(100), "an xz archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(100)), "a Zstandard archive"),
        (b"a.safetensors".ljust(257, b"\0") + b"ustar\x0000" + bytes(248), "a tar archive"),
        (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(100), "a picture"),
        (b"GIF89a" + bytes(100), "a picture"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(100), "a video"),
        (b"\x1aE\xdf\xa3\x9f" + bytes(100), "a video"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'" + bytes(100), "NumPy"),
        (b"MZ\x90\x00\x03" + bytes(100), "a program for Windows"),
        (b"[InternetShortcut]\r\nURL=https://example.org/a.safetensors\r\n", "a link to a web page"),
        (b"version https://hawser.github.com/spec/v1\noid sha256:4d7a\n", "a Git LFS pointer"),
        (b"{\\rtf1\\ansi words words}", "text, not a LoRA"),
        (b"[general]\nresolution = 480\n", "text, not a LoRA"),
    ],
    ids=range(30),
)
@pytest.mark.parametrize("name", ["lora.safetensors", "lora.gguf"])
def test_what_was_downloaded_in_its_place_is_named(
    content: bytes, words: str, name: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refused("inspect", tmp_path / name)
    assert words in error and name in error


@pytest.mark.parametrize(
    "written",
    [
        lambda: b'{"a":' + b"[[1],[2]," * 2_000_000 + b"1" + b"]" * 2_000_000 + b"}",
        lambda: b'{"a":[' + b"0," * 20_000_000 + b"0]}",
        lambda: (
            b"{"
            + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(800_000))
            + b"}"
        ),
        lambda: b"{" + b",".join(b'"%d":"\\\\"' % n for n in range(1_500_000)) + b"}",
        lambda: b'{"a":"' + b'\\"' * 30_000_000,
        lambda: b'{"a":' + b"{" * 40_000_000,
    ],
    ids=["lists", "numbers", "tensors", "texts", "quotes", "tables"],
)
def test_a_header_of_millions_of_parts_is_refused_before_it_is_read(
    written: Callable[[], bytes], tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes the time and the memory, parsing it, is not begun."""
    text = written()
    parsed = []
    original = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: parsed.append(len(text)) or original(text, **options))
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    tracemalloc.start()
    try:
        error = refused("inspect", tmp_path / "a.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text) + 50_000_000
    finally:
        tracemalloc.stop()
    assert "more than 100,000 parts" in error or "not JSON" in error
    assert not parsed or "not JSON" in error


def test_long_metadata_are_no_parts(tmp_path: Path) -> None:
    """Tags of a large data set, as trainers store them: one text, whatever is in it."""
    tags = json.dumps({f'a "tag" [{n}], {{and}} \\ more': n for n in range(150_000)})
    path = write(tmp_path / "a.safetensors", {Q: factors()}, metadata={"ss_tag_frequency": tags})
    assert difflora.load(path).metadata["ss_tag_frequency"] == tags


def test_loras_in_place_of_checkpoints_and_the_other_way_round(
    pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    models = [tmp_path / f"model {side}.safetensors" for side in "ab"]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        save_file({f"blocks.{n}.self_attn.q.weight": torch.randn(8, 8) for n in range(3)}, model)
    full = tmp_path / "full.safetensors"
    save_file({f"diffusion_model.{Q}.diff": torch.randn(8, 8)}, full)
    for sides in (pair, (models[0], pair[1]), (pair[0], models[1]), (models[0], full)):
        error = refused("extract", *sides, "-o", tmp_path / "out.safetensors")
        assert "this is a LoRA" in error and "use subtract" in error
    error = refused("subtract", *models, "-o", tmp_path / "out.safetensors")
    assert "checkpoint" in error and "use extract" in error
    assert "use extract" in refused("subtract", pair[0], models[0], "-o", tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", ["bad.pt", "bad.ckpt", "bad.bin"])
def test_pickles_are_refused_with_the_reason(name: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / name)
    error = refused("inspect", tmp_path / name)
    assert "pickled" in error and "can run any code" in error and "Convert it" in error


def header(path: Path, change: Callable[[dict], object]) -> Path:
    """Change a file's header and leave its data as they are."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    table = json.loads(raw[8 : 8 + length])
    text = change(table)
    text = text if isinstance(text, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return path


KEY = f"{kohya(Q)}.lora_up.weight"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t[KEY].update(data_offsets=[0, 10**15]), "cut off or damaged"),
        (lambda t: t[KEY].update(data_offsets=[10, 4]), "cut off or damaged"),
        (lambda t: t[KEY].update(data_offsets=[-4, 4]), "is damaged"),
        (lambda t: t[KEY].update(data_offsets=[0]), "is damaged"),
        (lambda t: t[KEY].update(data_offsets="ab"), "is damaged"),
        (lambda t: t[KEY].update(shape=[10**30, 10**30]), "cut off or damaged"),
        (lambda t: t[KEY].update(shape=[True, 4]), "is damaged"),
        (lambda t: t[KEY].update(shape=[24.0, 4]), "is damaged"),
        (lambda t: t[KEY].update(shape=None), "is damaged"),
        (lambda t: t[KEY].update(shape=[0, 10**30], data_offsets=[0, 0]), "safetensors"),
        (lambda t: t[KEY].update(dtype="F4"), "dtype F4"),
        (lambda t: t[KEY].update(dtype=["F32"]), "damaged"),
        (lambda t: t.update({KEY: 3}), "is damaged"),
        (lambda t: t.update({KEY: t[f"{kohya(K)}.lora_up.weight"]}), "overlaps"),
        (lambda t: t.pop(KEY), "belong to no tensor|overlaps|nothing for its up side"),
        (lambda t: t.update(__metadata__=3), "metadata are damaged"),
        (lambda t: t.update(__metadata__={"a": 3}), "metadata are damaged"),
        (lambda t: json.dumps(t)[:-1].encode() + b',"x":1,"x":2}', "twice"),
    ],
    ids=range(18),
)
def test_damaged_header(
    change: Callable, word: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    header(pair[0], change)
    error = refused("subtract", *pair, "-o", tmp_path / "out.safetensors")
    assert "a.safetensors" in error
    assert any(one in error for one in word.split("|")), error


def test_a_shape_of_very_many_dimensions_is_refused_at_once(
    pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Their product has millions of digits."""
    header(pair[0], lambda table: table[KEY].update(shape=[2**63 - 1] * 200_000))
    started = time.monotonic()
    assert "has 200,000 dimensions" in refused("inspect", pair[0])
    assert time.monotonic() - started < 5


def test_truncated_anywhere(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    raw = pair[0].read_bytes()
    for size in (7, 8, 9, 100, len(raw) // 2, len(raw) - 1):
        pair[0].write_bytes(raw[:size])
        assert "a.safetensors" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")
    pair[0].write_bytes(raw + b"x")
    assert "belong to no tensor" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_header_is_more_than_a_clean_error(data: st.DataObject, tmp_path: Path) -> None:
    """Whatever bytes are changed: the file is read and written again, or a DiffLoraError says why not."""
    path = write(tmp_path / "a.safetensors", {Q: factors()}, metadata={"ss_base_model_version": "wan"})
    raw = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, end - 1))
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    path.write_bytes(raw)
    try:
        lora = difflora.load(path)
        difflora.save(lora, tmp_path / "out.safetensors", overwrite=True)
    except DiffLoraError as error:
        assert "\n" not in str(error)
    assert not list(tmp_path.glob(".*.tmp"))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "BOOL", "Q4"]) | ANY,
        "shape": st.lists(st.integers(-1, 1 << 70), max_size=4) | ANY,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | ANY,
    },
)
KEYS = st.sampled_from(
    [
        KEY,
        KEY.replace("up", "down"),
        f"{kohya(Q)}.alpha",
        f"{kohya(Q)}.diff_b",
        f"{kohya(Q)}.dora_scale",
        "diffusion_model.blocks.0.modulation.diff",
    ]
) | st.text(max_size=20)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.dictionaries(KEYS, ENTRIES | ANY, max_size=4),
    metadata=st.dictionaries(st.text(max_size=12), st.text(max_size=12)),
)
def test_any_header_is_read_or_refused(table: dict, metadata: dict[str, str], tmp_path: Path) -> None:
    text = json.dumps({**table, "__metadata__": metadata}).encode()
    path = tmp_path / "any.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    try:
        difflora.load(path)
    except DiffLoraError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "config",
    [
        '{"lora_alpha": "much"}',
        '{"lora_alpha": NaN}',
        '{"lora_alpha": [1]}',
        "[" * 100_000,
        '{"lora_alpha": 1, "alpha_pattern": "{"}',
        '{"lora_alpha": 1, "alpha_pattern": {"q": "x"}}',
        "\x00",
    ],
    ids=range(7),
)
def test_damaged_adapter_config(config: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    a = write(tmp_path / "adapter_model.safetensors", {Q: factors(alpha=None)})
    (tmp_path / "adapter_config.json").write_text(config)
    refused("inspect", a)
    (tmp_path / "adapter_config.json").unlink()
    write(a, {Q: factors(alpha=None)}, metadata={"adapter_config": config})
    refused("inspect", a)


# Weights that cannot be subtracted


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("way", [["--rank", "2"], ["--energy", "0.9"], ["--lossless"]])
@pytest.mark.parametrize("part", ["lora_up.weight", "lora_down.weight"])
def test_nan_and_inf_name_the_key(
    value: float, way: list[str], part: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    key = f"{kohya(K)}.{part}"
    changed(pair[1], lambda stored: stored[key].view(-1)[3:4].fill_(value))
    error = refused("subtract", *pair, "-o", tmp_path / "out.safetensors", *way)
    assert "b.safetensors" in error and key in error
    assert ("NaN" if value != value else "infinite") in error


def test_nan_in_a_bias_names_the_key(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    changed(pair[0], lambda stored: stored.update({f"{kohya(Q)}.diff_b": torch.tensor([float("nan")] * 24)}))
    assert "diff_b" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_alpha_that_is_no_number(
    value: float, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    changed(pair[0], lambda stored: stored.update({f"{kohya(Q)}.alpha": torch.tensor(value)}))
    assert f"{kohya(Q)}.alpha" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")


def test_alpha_with_several_values(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    changed(pair[0], lambda stored: stored.update({f"{kohya(Q)}.alpha": torch.ones(3)}))
    assert "must be one number" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("shape", "word"),
    [((24, 5), "the ranks differ"), ((24,), "do not fit"), ((24, 0), "differ"), ((24, 4, 3, 3), "do not fit")],
)
def test_up_and_down_that_do_not_fit(
    shape: tuple[int, ...], word: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    changed(pair[0], lambda stored: stored.update({KEY: torch.zeros(shape)}))
    error = refused("subtract", *pair, "-o", tmp_path / "out.safetensors")
    assert "blocks.0.self_attn.q" in error and str(shape) in error and word in error


def test_a_weight_of_no_values(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    key = "lora_unet_head_head.diff"
    changed(pair[0], lambda stored: stored.update({key: torch.zeros(0, 0)}))
    error = refused("subtract", *pair, "-o", tmp_path / "out.safetensors")
    assert key in error and "no values" in error


@pytest.mark.parametrize("part", ["lora_up", "lora_down"])
def test_half_a_module(part: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    changed(pair[0], lambda stored: stored.pop(f"{kohya(Q)}.{part}.weight"))
    assert "nothing for its" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")


def test_integer_weights(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    changed(pair[0], lambda stored: stored.update({KEY: torch.zeros(24, 4, dtype=torch.int8)}))
    error = refused("subtract", *pair, "-o", tmp_path / "out.safetensors")
    assert KEY in error and "int8" in error


def test_dora(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    changed(pair[0], lambda stored: stored.update({f"{kohya(Q)}.dora_scale": torch.ones(24, 1)}))
    error = refused("subtract", *pair, "-o", tmp_path / "out.safetensors")
    assert "DoRA" in error and "not linear" in error


@pytest.mark.parametrize(
    ("part", "value", "word"),
    [
        ("reshape_weight", torch.tensor([24, 16]), "another shape"),
        ("set_weight", torch.ones(24, 16), "takes the place of the model's"),
    ],
)
def test_changes_that_are_more_than_a_sum_are_named(
    part: str, value: torch.Tensor, word: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    key = f"diffusion_model.{Q}.{part}"
    for module in (Q, "blocks.7.ffn.2"):  # beside factors, and alone
        key = f"diffusion_model.{module}.{part}"
        file = write(tmp_path / f"{module}.safetensors", {Q: factors()}, {key: value})
        error = refused("subtract", file, pair[1], "-o", tmp_path / "out.safetensors")
        assert key in error and word in error and file.name in error


@pytest.mark.parametrize("beside", [{}, {f"{kohya(FFN)}.diff_b": torch.ones(40)}], ids=["alone", "with a bias"])
def test_an_alpha_without_factors(
    beside: dict, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    key = f"{kohya(FFN)}.alpha"
    a = write(tmp_path / "a.safetensors", {Q: factors()}, {key: torch.tensor(4.0), **beside})
    error = refused("subtract", a, pair[1], "-o", tmp_path / "out.safetensors")
    assert key in error and "nothing that it scales" in error and "incomplete" in error


@pytest.mark.parametrize("part", ["hada_w1_a", "lokr_w1", "lora_mid.weight"])
def test_kinds_that_cannot_be_subtracted_yet_are_named(
    part: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    changed(pair[0], lambda stored: stored.update({f"{kohya('blocks.5.ffn.2')}.{part}": torch.ones(4, 4)}))
    assert "blocks_5_ffn_2" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")


def test_unknown_keys_are_an_error_and_can_be_ignored(
    pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    changed(pair[0], lambda stored: stored.update({"something.else": torch.ones(2)}))
    out = tmp_path / "out.safetensors"
    error = refused("subtract", *pair, "-o", out)
    assert "something.else" in error and "--ignore-unknown" in error
    assert main(["subtract", str(pair[0]), str(pair[1]), "-o", str(out), "--ignore-unknown"]) == 0
    assert "something.else" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["extra.proj.weight", "extra.proj.bias"])
def test_whole_weights_beside_a_lora_can_be_ignored(
    key: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    changed(pair[0], lambda stored: stored.update({key: torch.ones(2), "something.else": torch.ones(2)}))
    out = tmp_path / "out.safetensors"
    error = refused("subtract", *pair, "-o", out)
    assert key in error and "whole weights" in error and "--ignore-unknown" in error
    assert main(["subtract", str(pair[0]), str(pair[1]), "-o", str(out), "--ignore-unknown"]) == 0
    assert f"a.safetensors: 2 keys were ignored, the first is {key}" in capsys.readouterr().err
    assert list(difflora.load(out)) == [Q, K, FFN]


def test_a_checkpoint_stays_refused_whatever_is_ignored(tmp_path: Path, refused: Callable[..., str]) -> None:
    save_file({"blocks.0.self_attn.q.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    for flags in ([], ["--ignore-unknown"]):
        error = refused("inspect", tmp_path / "model.safetensors", *flags)
        assert "a checkpoint" in error and "goes on without" not in error


# Pairs that do not go together


def test_other_base_model(tmp_path: Path, refused: Callable[..., str]) -> None:
    a = write(tmp_path / "a.safetensors", {Q: factors(24, 16)})
    b = write(tmp_path / "b.safetensors", {Q: factors(48, 16)})
    error = refused("subtract", a, b, "-o", tmp_path / "out.safetensors")
    assert "(24, 16)" in error and "(48, 16)" in error and "different base models" in error


def test_no_common_module(tmp_path: Path, refused: Callable[..., str]) -> None:
    a, b = write(tmp_path / "a.safetensors", {Q: factors()}), write(tmp_path / "b.safetensors", {K: factors()})
    error = refused("subtract", a, b, "-o", tmp_path / "out.safetensors")
    assert "no module in common" in error and Q in error and K in error


def test_a_and_b_are_the_same_file(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "same weights" in refused("subtract", pair[0], pair[0], "-o", tmp_path / "out.safetensors")


def test_a_and_b_are_equal_in_different_files(
    pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copy(pair[0], pair[1])
    assert "same weights" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")
    assert "same weights" in refused("analyze", *pair)


@pytest.mark.parametrize(
    "way", [["--rank", "2"], ["--energy", "0.9"], ["--knee"], ["--lossless"], ["--lossless", "--nullify"]]
)
@pytest.mark.parametrize("factor", [2.0, 3.0, -0.7])
def test_equal_products_of_other_factors(
    factor: float, way: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Scaled up here and down there: nothing is left but the rounding of the factors."""
    sides: list[dict] = [{}, {}]
    for seed, name in enumerate((Q, K, FFN)):
        up, down, alpha = factors(rank=8, seed=seed)
        sides[0][name], sides[1][name] = (up, down, alpha), (factor * up, down / factor, alpha)
    bias = {f"{kohya(Q)}.diff_b": torch.randn(24)}
    a, b = (write(tmp_path / f"{name}.safetensors", side, bias) for name, side in zip("ab", sides, strict=True))
    for more in ([], ["--select", "attn"], ["--weight-a", "-2", "--weight-b", "-2"]):
        error = refused("subtract", a, b, "-o", tmp_path / "out.safetensors", *way, *more)
        assert "a.safetensors and b.safetensors" in error and "zero" in error


def test_what_is_left_of_equal_modules_is_nothing(tmp_path: Path, refused: Callable[..., str]) -> None:
    a = write(tmp_path / "a.safetensors", {Q: factors(seed=1), K: factors(seed=2)})
    b = write(tmp_path / "b.safetensors", {Q: factors(seed=1), K: factors(seed=2), FFN: factors(40, seed=3)})
    other = write(tmp_path / "other.safetensors", {Q: factors(seed=1), K: factors(seed=4)})
    out = tmp_path / "out.safetensors"
    for way in (["--rank", "2"], ["--ratio", "5"], ["--lossless"]):
        assert "zero" in refused("subtract", a, b, "-o", out, "--unmatched", "drop", *way)
        assert "zero" in refused("subtract", a, other, "-o", out, "--select", "self_attn", *way)
        assert "zero" in refused("subtract", a, other, "-o", out, "--select", "self_attn", "--nullify", *way)
        assert "zero" in refused("subtract", a, other, "-o", out, "--weight-a", "0", "--weight-b", "0", *way)
    assert main(["subtract", str(a), str(b), "-o", str(out)]) == 0  # the module that only B has


def test_full_differences_that_cancel(tmp_path: Path, refused: Callable[..., str]) -> None:
    full = torch.randn(600, 520)
    for name, scale in (("a", 1.0), ("b", 1.0 + 1e-7)):
        save_file({f"diffusion_model.{FFN}.diff": full * scale}, tmp_path / f"{name}.safetensors")
    for way in (["--rank", "2"], ["--lossless"]):
        assert "zero" in refused(
            "subtract", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", tmp_path / "out.safetensors", *way
        )


@pytest.mark.parametrize("what", ["a bias", "one value in bf16", "one LoRA alone"])
def test_a_small_difference_is_written(what: str, tmp_path: Path) -> None:
    """Nothing that could be more than the rounding of factors is refused."""
    up, down, alpha = factors(3000, 16, 16)
    other = up.clone()
    if what == "one value in bf16":
        other[0, 0] *= 1 + 2**-7
    bias = {f"{kohya(Q)}.diff_b": torch.ones(3000)} if what == "a bias" else {}
    a = write(tmp_path / "a.safetensors", {Q: (up, down, alpha)}, bias)
    b = write(tmp_path / "b.safetensors", {Q: (other, down, alpha)})
    untrained = write(tmp_path / "untrained.safetensors", {Q: (0 * up, down, alpha)})
    for number, way in enumerate((["--rank", "2"], ["--lossless"])):
        out = str(tmp_path / f"{number}.safetensors")
        if what == "one LoRA alone":
            assert main(["rerank", str(untrained), "-o", out, *way]) == 0
        else:
            assert main(["subtract", str(a), str(b), "-o", out, *way]) == 0


def test_unmatched_error(tmp_path: Path, refused: Callable[..., str]) -> None:
    a = write(tmp_path / "a.safetensors", {Q: factors(), K: factors()})
    b = write(tmp_path / "b.safetensors", {Q: factors(seed=1)})
    error = refused("subtract", a, b, "-o", tmp_path / "out.safetensors", "--unmatched", "error")
    assert K in error and "a.safetensors" in error


# Wishes that cannot be met


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--rank", "0"], "rank is 0"),
        (["--rank", "-4"], "rank is -4"),
        (["--rank", "many"], "many"),
        (["--energy", "1.5"], "1.5"),
        (["--ratio", "0.5"], "0.5"),
        (["--max-rank", "0"], "max rank is 0"),
        (["--rank", "4", "--energy", "0.9"], "not allowed with"),
        (["--lossless", "--max-rank", "4"], "--max-rank"),
        (["--scale", "0"], "scale is 0"),
        (["--dtype", "int8"], "int8"),
        (["--dialect", "klingon"], "klingon"),
        (["--magnitude-threshold", "1", "--auto-threshold-percentile", "5"], "not allowed with"),
        (["--auto-threshold-percentile", "100"], "100"),
        (["--target-norm", "-1"], "-1"),
        (["--select", "attn", "--target-blocks", "ffn"], "twice"),
        (["--scale", "2", "--alpha", "2"], "twice"),
        (["--target-indices", "one"], "one"),
        (["--magnitude-threshold", "1e9"], "smaller threshold"),
        *(
            ([flag, value], f"{flag}: {value!r} is not a finite number")
            for value in ("nan", "inf", "1e999")
            for flag in (
                "--weight-a",
                "--weight-b",
                "--energy",
                "--ratio",
                "--scale",
                "--alpha",
                "--target-norm",
                "--magnitude-threshold",
                "--auto-threshold-percentile",
            )
        ),
        (["--selct", "attn"], "--selct"),
        (["third.safetensors"], "third.safetensors"),
        (["--lora_a", "a", "--lora_b", "b"], "needs two files"),
    ],
)
def test_wishes_that_cannot_be_met(
    flags: list[str], word: str, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert word in refused("subtract", *pair, "-o", tmp_path / "out.safetensors", *flags)


@pytest.mark.parametrize("flag", ["--weight-a", "--weight-b"])
def test_analyze_takes_finite_weights(flag: str, pair: tuple[Path, Path], refused: Callable[..., str]) -> None:
    assert "not a finite number" in refused("analyze", *pair, f"{flag}=-inf")


@pytest.mark.parametrize("arguments", [[], ["subtrct"], ["subtract"], ["inspect"], ["rebuild", "x"]])
def test_command_lines_that_say_nothing(arguments: list[str], refused: Callable[..., str]) -> None:
    assert "--help" in refused(*arguments)


def test_selection_that_matches_nothing_lists_what_is_there(
    pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    error = refused("subtract", *pair, "-o", tmp_path / "out.safetensors", "--select", "blocks 30-39")
    assert "selects nothing" in error and "blocks 0-2" in error and "self_attn q" in error


def test_selection_that_cannot_be_read(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "character 6" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors", "--select", "attn ffn")


# Places that cannot be written to


def test_output_folder_missing(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    error = refused("subtract", *pair, "-o", tmp_path / "missing" / "out.safetensors")
    assert "missing does not exist" in error


def test_output_is_a_folder(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "out.safetensors").mkdir()
    assert "this is a folder" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors", "--overwrite")


def test_output_of_another_kind(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "must end in .safetensors" in refused("subtract", *pair, "-o", tmp_path / "out.pt")


def test_nothing_is_overwritten_unless_told_to(
    pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    assert "--overwrite" in refused("subtract", *pair, "-o", out)
    assert main(["subtract", *map(str, pair), "-o", str(out), "--overwrite"]) == 0
    assert load_file(out)


@pytest.mark.parametrize("link", [False, True])
def test_an_input_is_never_overwritten(
    link: bool, pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "link.safetensors" if link else pair[1]
    if link:
        out.symlink_to(pair[1])
    assert "one of the inputs" in refused("subtract", *pair, "-o", out, "--overwrite")


def test_the_library_may_write_over_an_input(pair: tuple[Path, Path]) -> None:
    """The file is replaced only after the last byte was read from the old one."""
    lora = difflora.subtract(difflora.load(pair[0]), difflora.load(pair[1]))
    expected = {name: delta.dense() for name, delta in lora.items()}
    difflora.save(lora, pair[0], overwrite=True)
    for name, delta in difflora.load(pair[0]).items():
        assert torch.allclose(delta.dense(), expected[name], atol=1e-5)
    with pytest.raises(FileError, match="changed after it was loaded"):
        lora.read([Q])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(pair: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "may not write" in refused("subtract", *pair, "-o", folder / "out.safetensors")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small file system of its own in memory, where the tests may make one."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def make(options: str) -> Path:
        if (
            not shutil.which("mount")
            or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
            ).returncode
        ):
            pytest.skip("may not mount a file system here")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_read_only_disk(pair: tuple[Path, Path], mount: Callable[[str], Path], refused: Callable[..., str]) -> None:
    assert "read-only" in refused("subtract", *pair, "-o", mount("ro,size=1M") / "out.safetensors")


@pytest.mark.parametrize("seen", [True, False])
def test_full_disk(
    seen: bool,
    pair: tuple[Path, Path],
    mount: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    """Whether it is seen beforehand, or somebody else fills the disk while the file is written."""
    folder = mount("size=4k")
    if not seen:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    error = refused("subtract", *pair, "-o", folder / "out.safetensors", "--lossless")
    assert ("but only" if seen else "the disk is full") in error


# Things that happen on the way


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "difflora", *map(str, arguments)]


def test_size_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # POSIX
    pair = write_pair(tmp_path, rank=16)
    before = snapshot(tmp_path)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails like one on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        command("subtract", *pair, "-o", tmp_path / "out.safetensors", "--lossless"),
        cwd=ROOT,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2
    assert "larger than allowed" in done.stderr and done.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_disk_that_fills_up_while_writing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """The check beforehand has seen space; the write itself then runs out of it."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in refused("subtract", *pair, "-o", tmp_path / "out.safetensors")


def big_pair(folder: Path) -> tuple[Path, Path]:
    """Enough work for a signal to arrive in the middle of it."""
    paths = folder / "a.safetensors", folder / "b.safetensors"
    for seed, path in enumerate(paths):
        write(path, {f"blocks.{block}.ffn.0": factors(3000, 2000, 32, seed=seed + 2 * block) for block in range(40)})
    return paths


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_interrupted_while_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "difflora", "--version"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "difflora: interrupted; nothing was written.\n")
    done = subprocess.run(
        [sys.executable, "-c", "import difflora"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode and "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle(number: int, tmp_path: Path) -> None:
    pair = big_pair(tmp_path)
    before = snapshot(tmp_path)
    with subprocess.Popen(
        command("subtract", *pair, "-o", tmp_path / "out.safetensors"),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_for(lambda: list(tmp_path.glob(".*.tmp")), process)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (out, error) == ("", "difflora: interrupted; nothing was written.\n")
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_killed_in_the_middle_leaves_the_old_file_whole(tmp_path: Path) -> None:
    pair = big_pair(tmp_path)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"the old one")
    with subprocess.Popen(
        command("subtract", *pair, "-o", out, "--overwrite"),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        wait_for(lambda: list(tmp_path.glob(".*.tmp")), process)
        process.kill()
        process.communicate(timeout=60)
    assert out.read_bytes() == b"the old one"


@pytest.mark.parametrize("what", ["replaced", "shortened", "deleted"])
def test_file_changed_while_in_use(what: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    lora = difflora.subtract(difflora.load(pair[0]), difflora.load(pair[1]))
    raw = pair[0].read_bytes()
    if what == "deleted":
        pair[0].unlink()
    elif what == "shortened":
        os.truncate(pair[0], len(raw) - 100)
    else:
        write(pair[0], {Q: factors(seed=9), K: factors(seed=9), FFN: factors(40, seed=9)})
    with pytest.raises(FileError, match="no such file" if what == "deleted" else "changed after it was loaded"):
        difflora.save(lora, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_file_appears_under_the_name_meanwhile(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"

    def meanwhile(done: int, total: int) -> None:
        out.write_bytes(b"somebody else's")

    lora = difflora.subtract(difflora.load(pair[0]), difflora.load(pair[1]))
    with pytest.raises(DiffLoraError, match="the file exists"):
        difflora.save(lora, out, progress=meanwhile)
    assert out.read_bytes() == b"somebody else's"
    assert not list(tmp_path.glob(".*.tmp"))


def test_progress_that_cancels_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    before = snapshot(tmp_path)
    for rule in (difflora.FixedRank(2), difflora.Energy(0.9)):
        lora = difflora.subtract(difflora.load(pair[0]), difflora.load(pair[1]))
        with pytest.raises(Stop):
            difflora.save(difflora.rerank(lora, rule), tmp_path / "out.safetensors", progress=stop)
    assert snapshot(tmp_path) == before


def test_two_spellings_of_one_module(tmp_path: Path, refused: Callable[..., str]) -> None:
    both = {**tensors({Q: factors()}), f"diffusion_model.{Q}.lora_up.weight": torch.zeros(24, 4)}
    save_file(both, tmp_path / "a.safetensors")
    error = refused("inspect", tmp_path / "a.safetensors")
    assert "a.safetensors: " in error and "two LoRAs at once" in error


# Messages


HOSTILE = "x\x1b[31m\n\u202e<b>" + "y" * 5000


def test_names_in_a_message_are_printable_and_short(tmp_path: Path) -> None:
    up, down, _ = factors()
    for stored in (
        {f"{HOSTILE}.lora_up.weight": up},
        {f"{HOSTILE}.lora_up.weight": up, f"{HOSTILE}.lora_down.weight": down.T.contiguous()},
        {f"{HOSTILE}.diff": up, f"{HOSTILE}.hada_w1_a": down},
        {HOSTILE: up},
        {f"diffusion_model.{HOSTILE}.diff": up, f"transformer.{HOSTILE}.diff": up + 1},
    ):
        save_file(stored, tmp_path / "a.safetensors")
        with pytest.raises(DiffLoraError) as caught:
            difflora.load(tmp_path / "a.safetensors")
        assert str(caught.value).isprintable() and len(str(caught.value)) <= 1000
    # The same change under two names is read once, with a warning.
    save_file(
        {f"diffusion_model.{HOSTILE}.diff": up, f"transformer.{HOSTILE}.diff": up.clone()}, tmp_path / "a.safetensors"
    )
    warnings = [str(warning) for warning in difflora.load(tmp_path / "a.safetensors").warnings]
    assert warnings and all(warning.isprintable() and len(warning) <= 1000 for warning in warnings)


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    text = str(FileError("a.safetensors: \x1b" + "\n" * 5000 + " has no end."))
    assert text.startswith("a.safetensors: \\x1b\\n\\n") and text.endswith("\\n has no end.") and "…" in text
    assert len(text) == 1000 and str(FileError(text)) == text
    assert str(FileError("a: 重みがありません. ü")) == "a: 重みがありません. ü"


SAID_OF_ITSELF = ("modelspec.title", "ss_base_model_version", "modelspec.date", "ss_learning_rate", "ss_steps", "ss_num_train_items",
                  "ss_seed", "difflora.retained_energy", "difflora.recommended_strength", "modelspec.architecture",
                  "modelspec.implementation", "ss_network_module", RECIPE_KEY)  # fmt: skip


@pytest.mark.parametrize("length", [len(HOSTILE), 1_000_000])
@pytest.mark.parametrize("recipe", [None, {"op": "load", "file": HOSTILE, "sha256": "0" * 64}])
def test_metadata_in_a_report_are_printable_and_short(
    length: int, recipe: dict | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (HOSTILE * (length // len(HOSTILE) + 1))[:length]
    metadata = dict.fromkeys((*SAID_OF_ITSELF, HOSTILE), text)
    if recipe:
        metadata[RECIPE_KEY] = json.dumps(
            {"version": 1, "dtype": "float32", "dialect": "native", "made_by": text, "of": recipe}
        )
    a, b = (
        write(tmp_path / f"{side}.safetensors", {Q: factors(seed=seed)}, metadata=metadata)
        for seed, side in enumerate("ab")
    )
    out = tmp_path / "out.safetensors"
    for arguments in (
        ["inspect", a],
        ["subtract", a, b, "-o", out],
        ["inspect", out],
        ["convert", a, "-o", tmp_path / "c.safetensors"],
    ):
        assert main([str(argument) for argument in arguments]) == 0
        told = capsys.readouterr()
        for line in (told.out + told.err).split("\n"):
            assert line.isprintable() and len(line) < 600
    assert main(["inspect", str(a), "--json"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told)["metadata"] == metadata and all(line.isprintable() for line in told.split("\n"))
    # What is longer than LONGEST_COPIED is not taken over: it could push the header past what can be read back.
    assert read_header(out).metadata["ss_base_model_version"] == "unknown"
