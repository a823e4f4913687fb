"""Files: what is written is what the safetensors library and kohya's tools would have written, and reads back the same."""

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import difflora
from difflora.errors import DiffLoraError, FileError, OutputError
from difflora.lora.lora import Lora
from difflora.names.keys import OUTPUT_DIALECTS
from difflora.saving.save import ENERGY_KEY, RECIPE_KEY
from difflora.storage import reader
from difflora.storage.dtypes import DTYPES
from difflora.storage.reader import read_header, read_tensors
from difflora.storage.writer import Draft, Layout, draft_file, publish
from tests.lora_files import FFN, K, Q, dense, factors, kohya, write, write_pair

BIAS, NORM, MODULATION = f"{K}.bias", "blocks.0.norm3", "blocks.0.modulation"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path)


@pytest.fixture
def everything(tmp_path: Path) -> Lora:
    """A difference with matrices, a convolution, a bias, a norm and a modulation table."""
    loras = []
    for seed, name in enumerate("ab"):
        random = torch.Generator().manual_seed(seed)
        extra = {
            f"{kohya(K)}.diff_b": torch.randn(24, generator=random),
            f"{kohya(NORM)}.diff": torch.randn(16, generator=random),
            f"{kohya(NORM)}.diff_b": torch.randn(16, generator=random),
            "diffusion_model.blocks.0.diff_m": torch.randn(1, 6, 16, generator=random),
            "lora_unet_patch_embedding.lora_up.weight": torch.randn(16, 4, 1, 1, 1, generator=random),
            "lora_unet_patch_embedding.lora_down.weight": torch.randn(4, 8, 1, 2, 2, generator=random),
        }
        modules = {Q: factors(seed=seed), K: factors(seed=seed + 2), FFN: factors(40, seed=seed + 4)}
        loras.append(difflora.load(write(tmp_path / f"{name}.safetensors", modules, extra)))
    return difflora.subtract(*loras)


def values(lora: Lora) -> dict[str, torch.Tensor]:
    return {name: delta.dense(torch.float64) for name, delta in lora.items()}


def raw_header(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


# The same bytes as other tools write


def test_layout_is_that_of_the_safetensors_library(everything: Lora, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    difflora.save(everything, ours, dtype="bfloat16")
    save_file(load_file(ours), theirs, metadata=raw_header(ours)[0]["__metadata__"])
    one, other = raw_header(ours), raw_header(theirs)
    assert one[0].pop("__metadata__") == other[0].pop("__metadata__")
    assert list(one[0].items()) == list(other[0].items())
    assert one[1] == other[1]
    assert ours.stat().st_size == theirs.stat().st_size  # so the data start at the same place, aligned to 8 bytes


def test_kohya_hash(tmp_path: Path) -> None:
    lora = difflora.load(
        write(
            tmp_path / "a.safetensors",
            {f"blocks.{i}.ffn.0": factors(512, 1024, 16, seed=i) for i in range(4)},
            metadata={"ss_note": "naïve 測試 \n"},
        )
    )
    out = difflora.save(lora, tmp_path / "out.safetensors", dtype="float16")
    stored = safe_open(out, "pt").metadata()
    # As kohya's tools do it: the file is made again with its training metadata only, then hashed.
    again = io.BytesIO(
        safetensors.torch.save(load_file(out), {key: value for key, value in stored.items() if key.startswith("ss_")})
    )
    again.seek(8 + int.from_bytes(again.read(8), "little"))
    assert stored["sshs_model_hash"] == hashlib.sha256(again.read()).hexdigest()


def test_content_hash_leaves_the_date_out(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for day in ("2025-01-01T00:00:00+00:00", "2026-02-02T00:00:00+00:00"):
        monkeypatch.setattr("difflora.saving.save.now", lambda day=day: day)
        out = difflora.save(difflora.load(pair[0]), tmp_path / "out.safetensors", overwrite=True)
        stored = safe_open(out, "pt").metadata()
        assert stored["modelspec.date"] == day
        hashes.append(stored["sshs_model_hash"])
    assert hashes[0] == hashes[1]


# Reading back


@pytest.mark.parametrize("dialect", OUTPUT_DIALECTS)
def test_every_dialect_reads_back_the_same(dialect: str, everything: Lora, tmp_path: Path) -> None:
    before = values(everything)
    out = difflora.save(everything, tmp_path / "out.safetensors", dialect=dialect)
    lora = difflora.load(out)
    assert set(lora) == set(everything)
    assert {BIAS, NORM, MODULATION, "patch_embedding"} <= set(lora)
    assert {name: spec.shape for name, spec in lora.specs.items()} == {
        name: spec.shape for name, spec in everything.specs.items()
    }
    for name, value in values(lora).items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dialect", OUTPUT_DIALECTS)
def test_an_alpha_is_the_rank_or_there_is_none(dialect: str, everything: Lora, tmp_path: Path) -> None:
    for result, name in ((everything, "lossless"), (difflora.rerank(everything, difflora.Energy(0.7)), "cut")):
        stored = load_file(difflora.save(result, tmp_path / f"{name}.safetensors", dialect=dialect))
        alphas = {key: float(value) for key, value in stored.items() if key.endswith(".alpha")}
        assert bool(alphas) == (dialect in ("native", "kohya"))
        for key, alpha in alphas.items():
            stem = key.removesuffix(".alpha")
            down = next(
                value
                for other, value in stored.items()
                if other.startswith(f"{stem}.lora_") and (".lora_down" in other or ".lora_A" in other)
            )
            assert alpha == down.shape[0] > 0


def test_modulation_is_written_where_core_and_wrapper_read_it(everything: Lora, tmp_path: Path) -> None:
    stored = load_file(difflora.save(everything, tmp_path / "out.safetensors"))
    assert stored["diffusion_model.blocks.0.modulation.diff"].shape == (1, 6, 16)


def test_convolutions_keep_their_kernel(everything: Lora, tmp_path: Path) -> None:
    stored = load_file(difflora.save(difflora.rerank(everything, difflora.FixedRank(2)), tmp_path / "out.safetensors"))
    assert stored["diffusion_model.patch_embedding.lora_down.weight"].shape == (2, 8, 1, 2, 2)
    assert stored["diffusion_model.patch_embedding.lora_up.weight"].shape == (16, 2, 1, 1, 1)


@pytest.mark.parametrize("dialect", OUTPUT_DIALECTS)
def test_nullified_modules_are_zeros(dialect: str, everything: Lora, tmp_path: Path) -> None:
    chosen = everything.select("self_attn", nullify=True)
    for result, name in ((chosen, "lossless"), (difflora.rerank(chosen, difflora.FixedRank(2)), "cut")):
        lora = difflora.load(difflora.save(result, tmp_path / f"{name}.safetensors", dialect=dialect))
        assert set(lora) == set(everything)
        assert [module for module, value in values(lora).items() if value.any()] == [Q]


# Dtypes


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_dtypes_lose_no_more_than_their_digits(name: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    lora = difflora.subtract(difflora.load(pair[0]), difflora.load(pair[1]))
    dtype = getattr(torch, name)
    out = difflora.save(difflora.rerank(lora, difflora.FixedRank(8)), tmp_path / "out.safetensors", dtype=name)
    stored = load_file(out)
    assert {value.dtype for key, value in stored.items() if key.endswith("weight")} == {dtype}
    exact = values(lora)
    for module, value in values(difflora.load(out)).items():
        assert float((value - exact[module]).norm() / exact[module].norm()) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1.0, 1e4, 1e8])
@pytest.mark.parametrize("lopsided", [1e-6, 1.0, 1e6])
def test_small_dtypes_hold_factors_of_any_size_if_the_product_can(size: float, lopsided: float, tmp_path: Path) -> None:
    up, down, _ = factors(alpha=None)
    one = (up * size**0.5 * lopsided, down * size**0.5 / lopsided, None)
    lora = difflora.load(write(tmp_path / "a.safetensors", {Q: one}))
    for dtype in ("float16", "bfloat16"):
        out = difflora.save(lora, tmp_path / "out.safetensors", dtype=dtype, overwrite=True)
        error = difflora.load(out)[Q].dense(torch.float64).numpy() - dense(one)
        assert np.linalg.norm(error) < 0.02 * np.linalg.norm(dense(one))


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "float8_e5m2"])
def test_values_beyond_a_dtype_are_refused(dtype: str, tmp_path: Path) -> None:
    up, down, _ = factors(alpha=None)
    lora = difflora.load(write(tmp_path / "a.safetensors", {Q: (up * 1e7, down * 1e7, None)}))
    with pytest.raises(OutputError, match=rf"self_attn\.q: its values do not fit into .*{dtype}"):
        difflora.save(lora, tmp_path / "out.safetensors", dtype=dtype)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_full_difference_beyond_a_dtype_is_refused(tmp_path: Path) -> None:
    save_file({f"{kohya(Q)}.diff": torch.full((1024, 1024), 500.0)}, tmp_path / "a.safetensors")
    with pytest.raises(OutputError, match=r"self_attn\.q: its values do not fit into .*float8_e4m3fn"):
        difflora.save(difflora.load(tmp_path / "a.safetensors"), tmp_path / "out.safetensors", dtype="float8_e4m3fn")


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("length", [1000, 600_000])
def test_a_value_beyond_a_dtype_is_found_wherever_it_lies_and_however_large_the_tensor(
    length: int, place: int, tmp_path: Path
) -> None:
    changes = {
        f"diffusion_model.blocks.{i}.self_attn.q.lora_{part}.weight": torch.ones(*shape)
        for i in range(4)
        for part, shape in (("up", (8, 1)), ("down", (1, length)))
    }
    changes[f"diffusion_model.blocks.{place}.self_attn.q.lora_down.weight"][0, -1] = 3e38
    save_file(changes, tmp_path / "a.safetensors")
    lora = difflora.load(tmp_path / "a.safetensors")
    with pytest.raises(OutputError, match=rf"blocks\.{place}\.self_attn\.q: its values do not fit into .*float16"):
        difflora.save(lora, tmp_path / "out.safetensors", dtype="float16")
    difflora.save(lora, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("dtype", "size", "fits"),
    [
        ("float8_e4m3fn", 1.0, True),
        ("float8_e4m3fn", 1e-3, False),
        ("float8_e5m2", 1e-3, True),
        ("float8_e5m2", 1e-6, False),
    ],
)
def test_values_too_small_for_eight_bits_are_refused(dtype: str, size: float, fits: bool, tmp_path: Path) -> None:
    up, down, _ = factors(alpha=None)
    lora = difflora.load(
        write(tmp_path / "a.safetensors", {Q: (up * size, down * size, None), K: (up * 0, down, None)})
    )
    if fits:
        error = (
            difflora.load(difflora.save(lora, tmp_path / "out.safetensors", dtype=dtype))[Q].dense() - lora[Q].dense()
        )
        assert error.norm() < 0.12 * lora[Q].dense().norm()
    else:
        with pytest.raises(OutputError, match=rf"{dtype} would lose \d+% of this LoRA"):
            difflora.save(lora, tmp_path / "out.safetensors", dtype=dtype)
        assert not list(tmp_path.glob("*out*"))


def test_values_are_written_whose_sum_no_dtype_holds(tmp_path: Path) -> None:
    key = "diffusion_model.blocks.0.self_attn.q.diff_b"
    save_file({key: torch.full((2000,), 3e38)}, tmp_path / "a.safetensors")
    out = difflora.save(difflora.load(tmp_path / "a.safetensors"), tmp_path / "out.safetensors")
    assert bool((load_file(out)[key] == 3e38).all())


@pytest.mark.parametrize(("dtype", "dialect"), [("int8", "native"), (torch.int8, "native"), ("float32", "esperanto")])
def test_what_cannot_be_written_is_named(dtype: object, dialect: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="int8|esperanto"):
        difflora.save(difflora.load(pair[0]), tmp_path / "out.safetensors", dtype=dtype, dialect=dialect)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_stored_dtype_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    one = factors(dtype=dtype)
    lora = difflora.load(write(tmp_path / "a.safetensors", {Q: one}))
    np.testing.assert_allclose(lora[Q].dense(torch.float64).numpy(), dense(one), atol=1e-6)


# Metadata


def test_metadata_that_other_tools_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lora = difflora.rerank(difflora.subtract(difflora.load(pair[0]), difflora.load(pair[1])), difflora.FixedRank(3))
    stored = safe_open(difflora.save(lora, tmp_path / "my slider.safetensors"), "pt").metadata()
    assert stored["ss_network_dim"] == "3" and float(stored["ss_network_alpha"]) == 3
    assert stored["ss_network_module"] == "networks.lora"
    assert stored["modelspec.title"] == "my slider"
    assert stored["modelspec.merged_from"] == "a, b"
    assert float(stored[ENERGY_KEY]) == pytest.approx(lora.retained_energy, abs=1e-6)
    recipe = json.loads(stored[RECIPE_KEY])
    assert recipe["of"] == lora.recipe
    for path in pair:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in stored[RECIPE_KEY]
    assert str(tmp_path) not in json.dumps(stored)


def test_mixed_ranks_are_called_dynamic(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lora = difflora.rerank(difflora.load(pair[0]), difflora.Ratio(2.2))
    assert len({spec.rank for spec in lora.specs.values()}) > 1
    stored = safe_open(difflora.save(lora, tmp_path / "out.safetensors"), "pt").metadata()
    assert (stored["ss_network_dim"], stored["ss_network_alpha"]) == ("Dynamic", "Dynamic")


def test_base_model_is_carried_over_if_both_agree(tmp_path: Path) -> None:
    for other, expected in (("wan2.1", "wan2.1"), ("wan2.2", None)):
        a = write(tmp_path / "a.safetensors", {Q: factors()}, metadata={"ss_base_model_version": "wan2.1"})
        b = write(tmp_path / "b.safetensors", {Q: factors(seed=1)}, metadata={"ss_base_model_version": other})
        out = difflora.save(
            difflora.subtract(difflora.load(a), difflora.load(b)), tmp_path / "out.safetensors", overwrite=True
        )
        found = safe_open(out, "pt").metadata()["ss_base_model_version"]
        assert (found == expected) if expected else found not in ("wan2.1", "wan2.2")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(TEXT.filter(bool).map("x.{}".format), TEXT, max_size=5))
def test_metadata_of_any_characters_round_trip(metadata: dict[str, str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        a = write(Path(folder) / "a.safetensors", {Q: factors(4, 4, 1)})
        out = difflora.save(difflora.load(a), Path(folder) / "out.safetensors", metadata=metadata)
        theirs = safe_open(out, "pt").metadata()  # the safetensors library reads the same
        assert {key: theirs[key] for key in metadata} == metadata
        assert read_header(out).metadata == theirs


@pytest.mark.parametrize(
    "name",
    ["naïve 測試 🎚.safetensors", "a'b\"c.safetensors", " .safetensors", "-o.safetensors", "[x]{y}%s.safetensors"],
)
def test_odd_file_names(name: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    pair[0].rename(tmp_path / name)
    lora = difflora.load(tmp_path / name)
    (tmp_path / "out").mkdir()
    out = difflora.save(lora, tmp_path / "out" / name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert values(difflora.load(out)).keys() == values(lora).keys()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_file_name_that_is_no_text(pair: tuple[Path, Path], tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.safetensors")  # Latin-1 on a UTF-8 system
    pair[0].rename(tmp_path / name)
    (tmp_path / "out").mkdir()
    out = difflora.save(difflora.load(tmp_path / name), tmp_path / "out" / name)
    assert read_header(out).metadata["modelspec.title"] == "caf?"


def test_metadata_with_half_a_character_are_carried_over_cleanly(pair: tuple[Path, Path], tmp_path: Path) -> None:
    raw = pair[0].read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    text = json.dumps({"__metadata__": {"ss_base_model_version": "\ud800x"}, **table}).encode()
    pair[0].write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    out = difflora.save(difflora.load(pair[0]), tmp_path / "out.safetensors")
    assert safe_open(out, "pt").metadata()["ss_base_model_version"] == "?x"


# Publishing


def test_nothing_else_is_left_in_the_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    difflora.save(difflora.load(pair[0]), tmp_path / "out" / "a.safetensors")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.safetensors"]


def test_file_system_without_hard_links(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out.safetensors"
    difflora.save(difflora.load(pair[0]), out)
    assert load_file(out)
    with pytest.raises(OutputError, match="exists"):
        difflora.save(difflora.load(pair[1]), out)
    assert not list(tmp_path.glob(".*.tmp"))


def test_long_names_do_not_make_the_temporary_one_too_long(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / ("x" * 240 + ".safetensors")
    difflora.save(difflora.load(pair[0]), out)
    assert out.exists()
    with pytest.raises(DiffLoraError, match="too long"):
        difflora.save(difflora.load(pair[0]), tmp_path / ("x" * 300 + ".safetensors"))


def test_a_plan_that_is_not_kept_leaves_nothing(tmp_path: Path) -> None:
    plan = Layout.of({"a": (torch.float32, (2,)), "b": (torch.float32, (3,))})
    for tensors in (
        [],
        [("a", torch.zeros(2))],
        [("b", torch.zeros(3)), ("a", torch.zeros(2))],
        [("a", torch.zeros(2)), ("b", torch.zeros(3, dtype=torch.float64))],
    ):
        with pytest.raises((AssertionError, ValueError)):
            with draft_file(tmp_path / "out.safetensors", plan, (pair for pair in tensors), {}, dict):
                pass
    assert list(tmp_path.iterdir()) == []


# Publishing several files at once


def draft_of(path: Path, value: float, overwrite: bool) -> contextlib.AbstractContextManager[Draft]:
    plan = Layout.of({"x": (torch.float32, (2,))})
    return draft_file(path, plan, (pair for pair in [("x", torch.full((2,), float(value)))]), {}, dict, overwrite)


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has hard links."""
    if request.param == "links":
        return True

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    return False


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError(13, "Permission denied")])
@pytest.mark.parametrize("call", range(6))
def test_two_files_get_their_names_together_or_not_at_all(
    call: int,
    error: BaseException | type[BaseException],
    after: bool,
    overwrite: bool,
    links: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever call to the system is the one that fails, or that Ctrl-C comes before or after."""
    high, low = tmp_path / "high.safetensors", tmp_path / "low.safetensors"
    if overwrite:
        high.write_bytes(b"precious")  # low is new
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def failing(real: Callable[..., object]) -> Callable[..., object]:
        def call_it(*arguments: object) -> object:
            nonlocal calls
            if (
                str(arguments[0]).endswith(".old") and len(arguments) == 1
            ):  # all is done, and this one is not needed any more
                return real(*arguments)
            calls += 1
            if calls - 1 == call:
                if after:
                    real(*arguments)
                raise error
            return real(*arguments)

        return call_it

    with (
        contextlib.suppress(KeyboardInterrupt, OutputError),
        draft_of(high, 1, overwrite) as first,
        draft_of(low, 2, overwrite) as second,
        monkeypatch.context() as patched,
    ):
        for name in ("link", "replace", "rename", "unlink"):
            if links or name != "link":
                patched.setattr(os, name, failing(getattr(os, name)))
        publish([first, second])
    there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if there != before:
        assert set(there) == {"high.safetensors", "low.safetensors"}
        assert [float(load_file(path)["x"][0]) for path in (high, low)] == [1, 2]


def test_a_name_taken_meanwhile_takes_the_other_file_back(links: bool, tmp_path: Path) -> None:
    high, low = tmp_path / "high.safetensors", tmp_path / "low.safetensors"
    with pytest.raises(OutputError, match="low.safetensors: the file exists"):
        with draft_of(high, 1, False) as first, draft_of(low, 2, False) as second:
            low.write_bytes(b"somebody else's")
            publish([first, second])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"low.safetensors": b"somebody else's"}


def test_a_draft_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with draft_of(tmp_path / "out.safetensors", 1, False) as draft:
        assert float(load_file(draft.temporary)["x"][0]) == 1
    assert list(tmp_path.iterdir()) == []


# Reading


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda key: key != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=60)
def test_reads_what_the_safetensors_library_writes(tensors: dict[str, tuple[str, list[int]]]) -> None:
    import tempfile

    made = {}
    for place, (key, (code, shape)) in enumerate(tensors.items()):
        size = int(np.prod(shape, dtype=int)) * DTYPES[code].itemsize
        data = torch.arange(place, place + size) % (2 if code == "BOOL" else 256)
        made[key] = (
            data.to(torch.uint8).view(DTYPES[code]).reshape(shape) if size else torch.empty(shape, dtype=DTYPES[code])
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file(made, path)
        header = read_header(path)
        read = read_tensors(header, list(made))
        for key, tensor in made.items():
            assert read[key].shape == tensor.shape and read[key].dtype == tensor.dtype
            assert (
                bytes(read[key].reshape(-1).view(torch.uint8).numpy())
                == bytes(tensor.reshape(-1).view(torch.uint8).numpy())
                if tensor.numel()
                else True
            )


def test_pickle_like_header_length_is_read(tmp_path: Path) -> None:
    """A header of 0x…80 bytes begins like a pickle."""
    for padding in range(0, 400):
        path = tmp_path / "a.safetensors"
        write(path, {Q: factors(4, 4, 1)}, metadata={"x": "y" * padding})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert list(difflora.load(path)) == [Q]


def test_hash_is_remembered_until_the_file_changes(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lora = difflora.load(pair[0])
    assert lora.sha256 == hashlib.sha256(pair[0].read_bytes()).hexdigest()
    with monkeypatch.context() as patched:
        patched.setattr(reader, "_readable", lambda path: pytest.fail("read again"))
        assert lora.sha256
    write(pair[0], {Q: factors(seed=5)})
    with pytest.raises(FileError, match="changed"):
        _ = lora.sha256


def test_a_save_that_fails_does_not_wait_for_the_hash_of_its_inputs(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", {Q: factors()}, extra={f"{kohya(K)}.diff": torch.ones(2, 2)})
    table = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    # A hole of 8 GB, which takes no room and many seconds to hash.
    end = max(value["data_offsets"][1] for value in table.values())
    table["diffusion_model.text_embedding.0.diff"] = {
        "dtype": "F32",
        "shape": [100_000, 20_000],
        "data_offsets": [end, end + 8 * 10**9],
    }
    head = json.dumps(table).encode()
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        out.truncate(8 + len(head) + end + 8 * 10**9)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        difflora.save(difflora.load(file).select("blocks"), tmp_path / "out.safetensors", progress=interrupt)
    assert time.monotonic() - started < 2
    assert not (tmp_path / "out.safetensors").exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
