"""A LoRA as a lazy mapping: what files mean, and what operations on them do, against numpy in float64."""

import builtins
import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import difflora
from difflora.errors import DiffLoraError, FileError, PairError, SelectionError, TensorError
from difflora.lora.deltas import Delta, LowRank, Spec, Term, Vector, add, zero
from difflora.lora.file import FileLora
from difflora.lora.lora import CombinedLora, Lora, batches
from difflora.saving.recipes import from_recipe
from tests.lora_files import FFN, K, Q, dense, factors, kohya, write, write_pair


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Lora, Lora]:
    a, b = write_pair(tmp_path)
    return difflora.load(a), difflora.load(b)


def values(lora: Lora) -> dict[str, np.ndarray]:
    return {name: delta.dense(torch.float64).numpy() for name, delta in lora.items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-6, rtol=1e-6)


# Files


UP, DOWN, _ = factors(seed=3)
SPELLINGS = {
    "kohya": ("lora_unet_blocks_0_self_attn_q.lora_up.weight", "lora_unet_blocks_0_self_attn_q.lora_down.weight"),
    "native": (
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight",
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
    ),
    "diffusers": ("transformer.blocks.0.attn1.to_q.lora_B.weight", "transformer.blocks.0.attn1.to_q.lora_A.weight"),
    "peft": (
        "base_model.model.blocks.0.self_attn.q.lora_B.weight",
        "base_model.model.blocks.0.self_attn.q.lora_A.weight",
    ),
    "diffsynth": ("blocks.0.self_attn.q.lora_B.default.weight", "blocks.0.self_attn.q.lora_A.default.weight"),
    "wan-fun": ("lora_unet__blocks_0_self_attn_q.lora_up.weight", "lora_unet__blocks_0_self_attn_q.lora_down.weight"),
    "lycoris": ("lycoris_blocks_0_self_attn_q.lora_up.weight", "lycoris_blocks_0_self_attn_q.lora_down.weight"),
    "hybrid": ("lora_unet_blocks_0.self_attn.q.lora_up.weight", "lora_unet_blocks_0.self_attn.q.lora_down.weight"),
}


def spelled(path: Path, dialect: str, up: Tensor = UP, down: Tensor = DOWN, **metadata: str) -> Path:
    keys = SPELLINGS[dialect]
    save_file({keys[0]: up, keys[1]: down}, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize("dialect", SPELLINGS)
def test_any_dialect_means_the_same_change(dialect: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    lora = difflora.load(spelled(tmp_path / "a" / "a.safetensors", dialect))
    same(values(lora), {Q: dense((UP, DOWN, None))})


@pytest.mark.parametrize("other", SPELLINGS)
def test_sides_may_come_in_different_dialects_ranks_dtypes_and_alphas(other: str, tmp_path: Path) -> None:
    first = factors(seed=1, rank=2, alpha=3.0, dtype=torch.bfloat16)
    a = difflora.load(write(tmp_path / "a.safetensors", {Q: first}))
    b = difflora.load(spelled(tmp_path / "b.safetensors", other, UP.half(), DOWN))
    expected = dense(first) - dense((UP.half(), DOWN, None))
    same(values(difflora.subtract(a, b)), {Q: expected})


def test_alpha_is_folded_in_and_missing_alpha_means_one(tmp_path: Path) -> None:
    for alpha, scale in ((1.0, 0.25), (8.0, 2.0), (None, 1.0), (0.0, 0.0), (-4.0, -1.0)):
        lora = difflora.load(write(tmp_path / "a.safetensors", {Q: (UP, DOWN, alpha)}))
        same(values(lora), {Q: scale * dense((UP, DOWN, None))})
        assert lora.scales == {Q: scale}


@pytest.mark.parametrize("where", ["beside", "adapter_config", "lora_adapter_metadata", "flat"])
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": False}, 2.0),
        ({"lora_alpha": 8, "alpha_pattern": {"self_attn.q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"self_attn.k": 2}}, 2.0),
        ({"r": 4}, 1.0),
    ],
)
def test_peft_keeps_its_scale_outside_the_tensors(where: str, config: dict, scale: float, tmp_path: Path) -> None:
    if where == "flat":
        metadata = {key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in config.items()}
    elif where == "lora_adapter_metadata":  # as diffusers writes it
        metadata = {where: json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    else:
        metadata = {where: json.dumps(config)}
    if where == "beside":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        metadata = {}
    lora = difflora.load(spelled(tmp_path / "adapter_model.safetensors", "peft", **metadata))
    same(values(lora), {Q: scale * dense((UP, DOWN, None))})


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("q", True),
        ("attn.q", False),
        ("self_attn.q", True),
        ("self_attn.q$", True),
        ("^self_attn.q", False),
        (f"^{Q}", True),
        (f"^{Q}$", True),
        (Q.replace(".", "\\."), True),
        ("self_attn.[qk]", True),
        ("blocks.[1-9].*", False),
        ("k|q", True),
        (r"(blocks\.\d\.)?self_attn\.\w", True),
        ("", False),
    ],
)
def test_patterns_fit_as_in_peft(pattern: str, fits: bool, tmp_path: Path) -> None:
    assert bool(re.match(rf"(.*\.)?({pattern})$", Q)) == fits
    config = json.dumps({"lora_alpha": 8, "alpha_pattern": {pattern: 4, ".*": 2}})
    lora = difflora.load(spelled(tmp_path / "a.safetensors", "peft", adapter_config=config))
    assert lora.scales == {Q: 1.0 if fits else 0.5}


def many_modules(path: Path, count: int) -> Path:
    return write(path, {f"blocks.{place}.self_attn.q": factors(2, 2, 1, alpha=None) for place in range(count)})


def load_with_patterns(path: Path, patterns: dict[str, float]) -> Lora:
    started = time.monotonic()
    try:
        return difflora.load(path, adapter_config={"lora_alpha": 8, "alpha_pattern": patterns})
    finally:
        assert time.monotonic() - started < 30


def test_a_thousand_patterns_take_no_time(tmp_path: Path) -> None:
    path = many_modules(tmp_path / "a.safetensors", 400)
    started = time.monotonic()
    lora = load_with_patterns(path, {f"blocks\\.{place}.self_attn.q": place + 1 for place in range(100, 1100)})
    assert time.monotonic() - started < 3
    assert [lora.scales[f"blocks.{place}.self_attn.q"] for place in (0, 99, 100, 399)] == [8, 8, 101, 400]


@pytest.mark.parametrize(
    "patterns",
    [
        {f"x{place}": 1 for place in range(10_001)},
        {f"x{place}|y": 1 for place in range(101)},
        {"(x?){150}" + "|y" * place: 1 for place in range(100)},
    ],
    ids=["many", "regular", "slow"],
)
def test_more_patterns_than_can_be_tried_are_refused_soon(patterns: dict[str, float], tmp_path: Path) -> None:
    path = many_modules(tmp_path / "a.safetensors", 400)
    with pytest.raises(FileError, match="alpha_pattern has more patterns than can be tried"):
        load_with_patterns(path, patterns)


def test_counts_of_nothing_take_no_time(tmp_path: Path) -> None:
    assert load_with_patterns(many_modules(tmp_path / "a.safetensors", 1), {"((((){999}){999}){999}){999}q": 4})


def test_a_sum_of_many_modules_takes_no_time() -> None:
    class Many(Lora):
        specs = {f"x.{place}": Spec((2, 2), (1,)) for place in range(20_000)}  # noqa: RUF012
        parents = ()

        def read(self, modules: Sequence[str]) -> dict[str, Delta]:
            raise NotImplementedError

        def describe(self, sha256: Callable[[FileLora], str]) -> dict[str, object]:
            raise NotImplementedError

    started = time.monotonic()
    assert not CombinedLora([(1.0, Many()), (-1.0, Many())]).one_sided
    assert time.monotonic() - started < 3


def test_a_configuration_in_a_folder_of_many_loras_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    spelled(tmp_path / "other.safetensors", "peft")
    lora = difflora.load(spelled(tmp_path / "mine.safetensors", "peft"))
    same(values(lora), {Q: dense((UP, DOWN, None))})
    assert [line for line in lora.warnings if "adapter_config.json" in line and "was not used" in line and "2 " in line]
    assert "mine.safetensors" in lora.warnings[0]


def test_an_unused_configuration_is_only_told_where_it_could_matter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    own = write(tmp_path / "own.safetensors", {Q: (UP, DOWN, 8.0)})
    said = spelled(tmp_path / "said.safetensors", "peft", adapter_config='{"lora_alpha": 8, "r": 4}')
    assert difflora.load(own).warnings == difflora.load(said).warnings == ()
    plain = spelled(tmp_path / "plain.safetensors", "peft")
    assert difflora.load(plain).warnings
    # PEFT writes these two names together, so the configuration is that file's.
    adapter = spelled(tmp_path / "adapter_model.safetensors", "peft")
    assert difflora.load(plain).warnings == ()
    assert difflora.load(adapter).scales == {Q: 2.0}


def test_an_alpha_tensor_goes_before_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 100}')
    lora = difflora.load(write(tmp_path / "adapter_model.safetensors", {Q: (UP, DOWN, 8.0)}))
    assert lora.scales == {Q: 2.0}


def test_somebody_elses_word_in_the_metadata_is_no_configuration(tmp_path: Path) -> None:
    lora = difflora.load(spelled(tmp_path / "a.safetensors", "peft", config="wan.toml"))
    assert lora.scales == {Q: 1.0}


def test_biases_norms_and_modulation_are_vectors(tmp_path: Path) -> None:
    extra = {
        f"{kohya(Q)}.diff_b": torch.arange(24.0),
        "diffusion_model.blocks.0.norm3.diff": torch.arange(16.0),
        "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 16),
    }
    lora = difflora.load(write(tmp_path / "a.safetensors", {Q: factors()}, extra))
    assert lora.matrices == (Q,)
    assert torch.equal(lora[f"{Q}.bias"].value, torch.arange(24.0))
    assert torch.equal(lora["blocks.0.norm3"].value, torch.arange(16.0))
    assert lora["blocks.0.modulation"].shape == (1, 6, 16)


def test_bias_of_lora_b_carries_the_scale(tmp_path: Path) -> None:
    key = "transformer.blocks.0.attn1.to_q"
    save_file(
        {
            f"{key}.lora_A.weight": DOWN,
            f"{key}.lora_B.weight": UP,
            f"{key}.lora_B.bias": torch.ones(24),
            f"{key}.alpha": torch.tensor(2.0),
        },
        tmp_path / "a.safetensors",
    )
    lora = difflora.load(tmp_path / "a.safetensors")
    assert torch.equal(lora[f"{Q}.bias"].value, torch.full((24,), 0.5))


def test_a_file_with_nothing_but_a_text_encoder_says_so(tmp_path: Path) -> None:
    save_file(
        {
            f"lora_te1_text_model_encoder_layers_0_mlp_fc1.{part}": torch.ones(4, 4)
            for part in ("lora_down.weight", "lora_up.weight")
        },
        tmp_path / "a.safetensors",
    )
    with pytest.raises(FileError, match=r"a\.safetensors: only encoder keys \(of text or images\) in this file \(2\)"):
        difflora.load(tmp_path / "a.safetensors")


def test_text_encoder_keys_are_a_warning(tmp_path: Path) -> None:
    extra = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4),
    }
    lora = difflora.load(write(tmp_path / "a.safetensors", {Q: factors()}, extra))
    assert list(lora) == [Q]
    assert any("2 encoder keys" in line for line in lora.warnings)


def test_vace_blocks_are_modules_of_their_own(tmp_path: Path) -> None:
    names = ("blocks.1.self_attn.q", "vace_blocks.1.self_attn.q")
    lora = difflora.load(write(tmp_path / "a.safetensors", {name: factors(seed=i) for i, name in enumerate(names)}))
    assert set(lora) == set(names)
    assert set(lora.select("blocks 1")) == {names[0]}


def test_modules_come_in_the_models_order(pair: tuple[Lora, Lora], tmp_path: Path) -> None:
    names = ("head.head", "blocks.10.ffn.0", "blocks.9.ffn.2", "blocks.9.self_attn.q", "patch_embedding")
    lora = difflora.load(write(tmp_path / "c.safetensors", {name: factors() for name in names}))
    assert list(lora) == [*reversed(names[3:]), "blocks.9.ffn.2", "blocks.10.ffn.0", "head.head"]


# Laziness


def test_nothing_is_read_until_a_module_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (difflora.load(path) for path in write_pair(tmp_path))
    opened: list[object] = []
    plain = builtins.open

    def watched(path: object, *arguments: object, **options: object) -> object:
        opened.append(path)
        return plain(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", watched)
    whole = difflora.subtract(a, b, 2.0, 3.0).select("attn=0.5", nullify=True).scaled(2)
    whole = difflora.rerank(whole, difflora.FixedRank(2))
    assert len(whole) == 3 and whole.specs[Q].rank == 2 and whole.rank_text == "2" and whole.files == (a, b)
    assert opened == []
    _ = whole[Q]
    assert [Path(path).name for path in opened] == ["a.safetensors", "b.safetensors"]


def test_files_are_closed_again(pair: tuple[Lora, Lora]) -> None:
    """On Windows an open file could not be replaced or deleted."""
    before = open_files()
    _ = difflora.rerank(difflora.subtract(*pair), difflora.FixedRank(2))[Q]
    assert open_files() == before
    for lora in pair:
        lora.path.unlink()


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return sum(1 for fd in folder.iterdir() if fd.resolve().suffix == ".safetensors") if folder.is_dir() else 0


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 4000)), max_size=40), st.integers(1, 1_000_000))
def test_batches_keep_the_order_and_the_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    specs = {str(i): Spec((width, width), (rank,)) for i, (rank, width) in enumerate(sizes)}
    cut = list(batches(specs, list(specs), budget))
    assert [name for batch in cut for name in batch] == list(specs)
    for batch in cut:
        assert batch
        assert len(batch) == 1 or sum(16 * specs[name].rank * specs[name].shape[0] for name in batch) <= budget


def test_zeros_take_no_memory() -> None:
    delta = zero(Spec((5120, 13824), (64,)))
    assert sum(tensor.untyped_storage().nbytes() for tensor in (delta.terms[0].up, delta.terms[0].down)) < 100
    assert delta.shape == (5120, 13824) and delta.rank == 64
    assert not delta.up[:4].any()
    assert zero(Spec((7,))).value.tolist() == [0.0] * 7


# Algebra


WEIGHTS = st.floats(-3, 3).map(lambda value: round(value, 3))


@settings(max_examples=40)
@given(WEIGHTS, WEIGHTS, st.integers(0, 1000))
def test_subtract_is_the_weighted_difference_without_loss(weight_a: float, weight_b: float, seed: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        one, other = factors(9, 7, 3, 1.5, seed), factors(9, 7, 2, None, seed + 1)
        a = difflora.load(write(Path(folder) / "a.safetensors", {Q: one}))
        b = difflora.load(write(Path(folder) / "b.safetensors", {Q: other}))
        difference = difflora.subtract(a, b, weight_a, weight_b)
        exact = weight_a * dense(one) - weight_b * dense(other)
        np.testing.assert_allclose(values(difference)[Q], exact, atol=1e-13)  # stored values, summed in float64
        stacked = difference[Q]
        np.testing.assert_allclose((stacked.up.double() @ stacked.down.double()).numpy(), exact, atol=1e-5)
        assert difference.specs[Q].ranks == (3, 2)


def test_difference_plus_b_is_a(pair: tuple[Lora, Lora]) -> None:
    a, b = pair
    back = difflora.combine([(1.0, difflora.subtract(a, b)), (1.0, b)])
    same(values(back), values(a))


def test_shapes_are_compared_wherever_two_of_several_have_a_module(tmp_path: Path) -> None:
    first = difflora.load(write(tmp_path / "1.safetensors", {Q: factors(24, 16), K: factors(24, 16)}))
    second = difflora.load(write(tmp_path / "2.safetensors", {Q: factors(24, 16), K: factors(24, 12)}))
    third = difflora.load(write(tmp_path / "3.safetensors", {Q: factors(24, 16)}))
    with pytest.raises(PairError, match=r"blocks\.1\.cross_attn\.k has different shapes"):
        difflora.combine([(1.0, first), (1.0, second), (1.0, third)])


def test_combine_takes_any_number(pair: tuple[Lora, Lora]) -> None:
    a, b = pair
    total = difflora.combine([(1.0, a), (2.0, b), (-0.5, a)])
    expected = {name: 0.5 * change + 2 * values(b)[name] for name, change in values(a).items()}
    same(values(total), expected)
    assert total.files == (a, b)


def test_subtracting_factor_by_factor_is_not_the_difference(pair: tuple[Lora, Lora]) -> None:
    """What some scripts do. It must never creep in."""
    a, b = pair
    exact = values(difflora.subtract(a, b))[Q]
    wrong = ((a[Q].up - b[Q].up) @ (a[Q].down - b[Q].down)).double().numpy()
    cosine = (exact * wrong).sum() / np.linalg.norm(exact) / np.linalg.norm(wrong)
    assert abs(cosine) < 0.9


@pytest.fixture
def one_sided(tmp_path: Path) -> tuple[Lora, Lora]:
    a = difflora.load(write(tmp_path / "a.safetensors", {Q: factors(seed=1), K: factors(seed=2)}))
    b = difflora.load(write(tmp_path / "b.safetensors", {Q: factors(seed=3), FFN: factors(40, seed=4)}))
    return a, b


def test_unmatched_modules(one_sided: tuple[Lora, Lora]) -> None:
    a, b = one_sided
    kept = difflora.subtract(a, b)
    assert list(kept) == [Q, K, FFN]
    assert kept.one_sided == {K: (0,), FFN: (1,)}
    same(values(kept), {Q: values(a)[Q] - values(b)[Q], K: values(a)[K], FFN: -values(b)[FFN]})
    assert list(difflora.subtract(a, b, unmatched="drop")) == [Q]
    with pytest.raises(PairError, match="2 modules are in one LoRA only"):
        difflora.subtract(a, b, unmatched="error")
    with pytest.raises(PairError, match='"keep", "drop" or "error"'):
        difflora.subtract(a, b, unmatched="perhaps")


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_must_be_numbers(weight: float, pair: tuple[Lora, Lora]) -> None:
    with pytest.raises(PairError, match="finite"):
        difflora.subtract(*pair, weight_a=weight)


def test_a_bias_on_one_side_only_counts_as_zero_on_the_other(tmp_path: Path) -> None:
    a = difflora.load(write(tmp_path / "a.safetensors", {Q: factors()}, {f"{kohya(Q)}.diff_b": torch.ones(24)}))
    b = difflora.load(write(tmp_path / "b.safetensors", {Q: factors(seed=1)}))
    assert difflora.subtract(a, b)[f"{Q}.bias"].value.tolist() == [1.0] * 24
    assert difflora.subtract(b, a, weight_b=2)[f"{Q}.bias"].value.tolist() == [-2.0] * 24


def test_matrix_against_vector_is_refused(tmp_path: Path) -> None:
    up, down, _ = factors(16, 1, 1)
    a = difflora.load(write(tmp_path / "a.safetensors", {"blocks.0.norm3": (up, down, None), Q: factors()}))
    extra = {"lora_unet_blocks_0_norm3.diff": torch.ones(16)}
    b = difflora.load(write(tmp_path / "b.safetensors", {Q: factors(seed=1)}, extra))
    with pytest.raises(PairError, match="matrix in one LoRA and a vector"):
        difflora.subtract(a, b).prepare()


def test_kernel_may_be_flattened_on_either_side(tmp_path: Path) -> None:
    up, down = torch.randn(8, 2), torch.randn(2, 3, 1, 2, 2)
    name = "patch_embedding"
    factored = write(tmp_path / "factored.safetensors", {name: (up.view(8, 2, 1, 1, 1), down, None)})
    flat = write(tmp_path / "flat.safetensors", {name: (2 * up, down.view(2, 12), None)})
    full = tmp_path / "full.safetensors"
    save_file({f"diffusion_model.{name}.diff": torch.einsum("or,ri...->oi...", 4 * up, down)}, full)
    for (a, times), (b, other) in itertools.permutations([(factored, 1), (flat, 2), (full, 4)], 2):
        difference = difflora.subtract(difflora.load(a), difflora.load(b))
        written = difflora.load(difflora.save(difference, tmp_path / "out.safetensors", overwrite=True))
        for lora in (difference, written):
            assert lora.specs[name].shape == lora[name].shape == (8, 3, 1, 2, 2)
            np.testing.assert_allclose(
                values(lora)[name].reshape(8, 12), (times - other) * dense((up, down, None)), atol=1e-5
            )


@pytest.mark.parametrize(("module", "stored", "shape"), [
    ("patch_embedding", (6, 2, 2), (6, 1, 2, 2)), ("patch_embedding", (24,), (6, 1, 2, 2)), ("ref_conv", (24,), (6, 2, 2)),
    ("patch_embedding", (600,), (150, 1, 2, 2)), ("patch_embedding", (6, 1, 2, 2), (6, 1, 2, 2)),
    ("patch_embedding", (7,), (7,)), ("head.head", (24,), (24,)),
])  # fmt: skip
@pytest.mark.parametrize("full", [False, True])
def test_a_flat_kernel_is_written_as_wans_layer_has_it(
    tmp_path: Path, module: str, stored: tuple[int, ...], shape: tuple[int, ...], full: bool
) -> None:
    tensors = (
        {"diff": torch.randn(600, *stored)}
        if full
        else {
            "lora_up.weight": torch.randn(600, 2, *(1 for _ in stored[1:])),
            "lora_down.weight": torch.randn(2, *stored),
        }
    )
    save_file(
        {f"diffusion_model.{module}.{part}": value for part, value in tensors.items()}, tmp_path / "a.safetensors"
    )
    lora = difflora.load(tmp_path / "a.safetensors")
    written = difflora.load(difflora.save(lora, tmp_path / "b.safetensors"))
    assert written.specs[module].shape == (600, *shape)
    np.testing.assert_allclose(values(written)[module].ravel(), values(lora)[module].ravel(), atol=1e-6)


def test_selection_weighs_leaves_out_and_nullifies(pair: tuple[Lora, Lora]) -> None:
    whole = difflora.subtract(*pair)
    exact = values(whole)
    same(values(whole.select("self_attn=0.5, ffn=-2")), {Q: 0.5 * exact[Q], FFN: -2 * exact[FFN]})
    same(values(whole.select("ffn", nullify=True)), {Q: 0 * exact[Q], K: 0 * exact[K], FFN: exact[FFN]})
    same(values(whole.select("all").select("attn=2").select("blocks 0=3")), {Q: 6 * exact[Q]})
    assert whole.select("attn, blocks 77").warnings[-1].endswith("matches nothing in this LoRA.")
    with pytest.raises(SelectionError, match="blocks 0-2"):
        whole.select("blocks 77")


def test_scaled_multiplies_everything(pair: tuple[Lora, Lora]) -> None:
    same(values(pair[0].scaled(-1.5)), {name: -1.5 * change for name, change in values(pair[0]).items()})


def test_vectors_add_in_float64_and_round_once() -> None:
    big, small = Vector(torch.tensor([1e8])), Vector(torch.tensor([1.0]))
    assert add([big, small, big.scaled(-1)]).value.tolist() == [1.0]


def test_dense_keeps_the_kernel() -> None:
    delta = LowRank((Term(torch.ones(2, 1), torch.arange(12.0).view(1, 12)),), (2, 3, 2, 2))
    assert delta.dense().shape == (2, 3, 2, 2)
    assert torch.equal(delta.dense()[1].flatten(), torch.arange(12.0))


# Being a mapping, and having an identity


def test_it_is_a_mapping(pair: tuple[Lora, Lora]) -> None:
    lora = difflora.subtract(*pair)
    assert len(lora) == 3 and Q in lora and "nothing" not in lora and 3 not in lora
    assert dict(lora).keys() == set(lora.names) == {Q, K, FFN}
    with pytest.raises(KeyError):
        lora["nothing"]
    assert lora != difflora.subtract(*pair) and {lora: 1}[lora] == 1
    with pytest.raises(TypeError):
        lora.metadata["x"] = "y"


def test_fingerprint_tells_content_apart_and_nothing_else(pair: tuple[Lora, Lora], tmp_path: Path) -> None:
    a, b = pair
    assert difflora.subtract(a, b).fingerprint == difflora.subtract(difflora.load(a.path), b).fingerprint
    different = {
        difflora.subtract(a, b).fingerprint,
        difflora.subtract(b, a).fingerprint,
        a.fingerprint,
        difflora.subtract(a, b, 2).fingerprint,
        difflora.subtract(a, b).select("attn").fingerprint,
        difflora.rerank(difflora.subtract(a, b), difflora.FixedRank(2)).fingerprint,
        difflora.rerank(difflora.subtract(a, b), difflora.FixedRank(3)).fingerprint,
    }
    assert len(different) == 7


def test_recipe_names_files_by_name_and_hash_and_never_by_path(pair: tuple[Lora, Lora], tmp_path: Path) -> None:
    recipe = json.dumps(difflora.rerank(difflora.subtract(*pair).select("attn"), difflora.Knee()).recipe)
    assert "a.safetensors" in recipe and pair[0].sha256 in recipe
    assert str(tmp_path) not in recipe


def test_check_finite_names_file_and_key(pair: tuple[Lora, Lora], tmp_path: Path) -> None:
    up, down, alpha = factors()
    up[0, 0] = float("inf")
    bad = difflora.load(write(tmp_path / "bad.safetensors", {Q: (up, down, alpha)}))
    with pytest.raises(TensorError, match=r"bad\.safetensors: lora_unet_blocks_0_self_attn_q\.lora_up\.weight"):
        difflora.subtract(pair[0], bad).check_finite(Q)
    difflora.subtract(pair[0], bad).check_finite(K)


def test_base_model_by_shape(tmp_path: Path) -> None:
    lora = difflora.load(
        write(
            tmp_path / "a.safetensors",
            {
                f"blocks.{i}.{name}": factors(5120, 5120, 1)
                for i in range(40)
                for name in ("self_attn.q", "cross_attn.k")
            },
        )
    )
    assert "14B" in lora.base_model


def test_file_with_no_weights(tmp_path: Path) -> None:
    save_file({f"{kohya(Q)}.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    with pytest.raises(DiffLoraError, match="a.safetensors"):
        difflora.load(tmp_path / "a.safetensors")


def test_the_text_encoders_scale_is_not_the_models(tmp_path: Path) -> None:
    up, down, _ = factors(24, 16, rank=4)
    settings = {"transformer.r": 4, "transformer.lora_alpha": 8, "text_encoder.r": 4, "text_encoder.lora_alpha": 32}
    save_file(
        {"transformer.blocks.0.attn1.to_q.lora_A.weight": down, "transformer.blocks.0.attn1.to_q.lora_B.weight": up},
        tmp_path / "a.safetensors",
        metadata={"lora_adapter_metadata": json.dumps(settings)},
    )
    assert difflora.load(tmp_path / "a.safetensors").scales == {Q: 2.0}


# Numbers beside the factors


def beside(path: Path, extra: dict[str, torch.Tensor], alpha: float | None = 2.0) -> Path:
    """A file of one module of rank 4, and other keys of it, by how they end."""
    return write(path, {Q: factors(alpha=alpha)}, {f"{kohya(Q)}.{end}": value for end, value in extra.items()})


def times(path: Path) -> float:
    """How many times the product of the stored factors a file's change is."""
    change = difflora.load(path)[Q].dense(torch.float64).numpy()
    product = dense((*factors()[:2], None))
    ratio = float((change * product).sum() / (product * product).sum())
    np.testing.assert_allclose(change, ratio * product, rtol=1e-6, atol=1e-9)
    return ratio


@pytest.mark.parametrize(
    ("extra", "alpha", "ratio"),
    [
        ({"scalar": torch.tensor(0.3)}, 2.0, 0.15),
        ({"scalar": torch.tensor(-2.0, dtype=torch.float16)}, None, -2.0),
        ({"lora_alpha": torch.tensor(8)}, None, 2.0),
        ({"scaling": torch.tensor(0.25)}, None, 0.25),
        ({"scaling": torch.tensor(0.5)}, 2.0, 0.5),
        ({"lora_down.scale_weight": torch.tensor(3.0)}, 2.0, 1.5),
        ({"lora_up.weight_scale": torch.tensor([3.0])}, 2.0, 1.5),
        ({"lora_up.weight_scale": torch.tensor(3.0), "lora_down.weight_scale": torch.full((4, 1), 2.0)}, 2.0, 3.0),
        ({"use_rslora_flag": torch.tensor(True)}, 2.0, 1.0),
        ({"use_rslora_flag": torch.tensor(False)}, 2.0, 0.5),
        ({"use_rslora_flag": torch.tensor(1.0)}, 2.0, 1.0),
        ({"use_dora_flag": torch.tensor(False), "use_rslora_flag": torch.tensor(0)}, 2.0, 0.5),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_numbers_beside_the_factors_count(extra: dict, alpha: float | None, ratio: float, tmp_path: Path) -> None:
    assert times(beside(tmp_path / "a.safetensors", extra, alpha)) == pytest.approx(ratio)


def test_factors_in_8_bits_are_multiplied_by_their_scales(tmp_path: Path) -> None:
    """Each row by its own, exactly; a marker that says so holds nothing."""
    random = torch.Generator().manual_seed(5)
    scales = torch.rand(24, generator=random) + 0.5, torch.rand(4, 1, generator=random) + 0.5
    up, down, _ = factors(dtype=torch.float8_e4m3fn)
    extra = {f"{kohya(Q)}.lora_up.weight_scale": scales[0], f"{kohya(Q)}.lora_down.scale_weight": scales[1]}
    path = write(tmp_path / "a.safetensors", {Q: (up, down, 2.0)}, {**extra, "scaled_fp8": torch.zeros(0)})
    lora = difflora.load(path)
    truth = 0.5 * (scales[0].double()[:, None] * up.double()) @ (scales[1].double() * down.double())
    assert torch.equal(lora[Q].dense(torch.float64), truth)
    assert any("1 key was ignored" in line for line in lora.warnings)


def test_a_flag_of_the_whole_file_holds_for_every_module(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {Q: factors(), K: factors()}, {"use_rslora_flag": torch.tensor(True)})
    assert difflora.load(path).scales == {Q: 1.0, K: 1.0}


def test_scales_beside_lokr_and_loha_count(tmp_path: Path) -> None:
    parts = {"lokr_w1": torch.randn(3, 4), "lokr_w2_a": torch.randn(8, 2), "lokr_w2_b": torch.randn(2, 4)}
    truth = torch.kron(parts["lokr_w1"].double(), parts["lokr_w2_a"].double() @ parts["lokr_w2_b"].double())
    numbers = {"alpha": torch.tensor(4.0), "scalar": torch.tensor(0.5), "use_rslora_flag": torch.tensor(True)}
    save_file({f"{kohya(Q)}.{end}": value for end, value in (parts | numbers).items()}, tmp_path / "a.safetensors")
    change = difflora.load(tmp_path / "a.safetensors")[Q].dense(torch.float64)
    torch.testing.assert_close(change, 0.5 * 4 / math.sqrt(2) * truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"lora_down.weight_scale": torch.ones(4, 2)}, "shape (4, 2)"),
        ({"lora_up.weight_scale": torch.ones(4)}, "shape (4,)"),
        ({"lora_up.weight_scale_2": torch.ones(())}, "may change"),
        ({"scale": torch.ones(())}, "may change"),
        ({"scaling": torch.tensor(3.0)}, "disagree"),
        ({"scalar": torch.tensor(float("nan"))}, "nan"),
        ({"scalar": torch.ones(2)}, "one number"),
        ({"use_dora_flag": torch.tensor(True)}, "DoRA"),
        ({"dora_layer.weight": torch.ones(24)}, "DoRA"),
        ({"use_rslora_flag": torch.tensor(0.5)}, "neither"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
@pytest.mark.parametrize("ignore_unknown", [False, True])
def test_numbers_that_are_not_understood_are_refused_whatever_is_ignored(
    extra: dict, word: str, ignore_unknown: bool, tmp_path: Path
) -> None:
    with pytest.raises(DiffLoraError) as error:
        difflora.load(beside(tmp_path / "a.safetensors", extra), ignore_unknown)
    assert word in str(error.value) and f"{kohya(Q)}.{next(iter(extra))}" in str(error.value)
    assert "gnore" not in str(error.value) and "a.safetensors: " in str(error.value)


def test_wrapped_names_pair_with_plain_ones_exactly(tmp_path: Path) -> None:
    """A compiled model's LoRA minus the same one with plain names is nothing."""
    up, down, _ = factors()
    tensors = {"lora_A.weight": down, "lora_B.weight": up}
    for name, prefix in (("plain", "diffusion_model."), ("compiled", "diffusion_model._orig_mod."), ("ddp", "module.")):
        save_file({f"{prefix}{Q}.{end}": value for end, value in tensors.items()}, tmp_path / f"{name}.safetensors")
    plain, *others = (difflora.load(tmp_path / f"{name}.safetensors") for name in ("plain", "compiled", "ddp"))
    for other in others:
        assert torch.equal(plain[Q].dense(), other[Q].dense()) and not other.warnings


def test_modules_that_wan_does_not_have_are_one_warning(tmp_path: Path) -> None:
    modules = {"blocks.0.self_attn.gate": factors(), "blocks.1.self_attn.zz": factors(), Q: factors()}
    lora = difflora.load(write(tmp_path / "a.safetensors", modules))
    (line,) = [line for line in lora.warnings if "Wan" in line]
    assert "zz" in line and "a.safetensors: " in line


def test_a_front_that_no_model_has_is_one_warning(tmp_path: Path) -> None:
    up, down, _ = factors()
    tensors = {
        f"student.{module}.lora_{side}.weight": each.clone()
        for module in (Q, K)
        for side, each in (("A", down), ("B", up))
    }
    save_file(tensors, tmp_path / "a.safetensors")
    (line,) = difflora.load(tmp_path / "a.safetensors").warnings
    assert "a.safetensors: all names begin with student., which" in line


EXPERTS = [("transformer.", "transformer_2."), ("pipe.dit.", "pipe.dit2."), ("high_noise_model.", "low_noise_model.")]


@pytest.mark.parametrize(("high", "low"), EXPERTS)
def test_a_file_of_wan22s_two_models_lets_one_be_chosen(high: str, low: str, tmp_path: Path) -> None:
    sides = {"high": (high, factors(seed=1)), "low": (low, factors(seed=2))}
    stored = {}
    for prefix, (up, down, _) in sides.values():
        stored |= {f"{prefix}{Q}.lora_A.weight": down, f"{prefix}{Q}.lora_B.weight": up}
    save_file(stored, tmp_path / "both.safetensors")
    with pytest.raises(FileError, match=r"both\.safetensors: .*Wan2\.2's two models.*--noise high"):
        difflora.load(tmp_path / "both.safetensors")
    for noise, (_, truth) in sides.items():
        lora = difflora.load(tmp_path / "both.safetensors", noise=noise)
        np.testing.assert_allclose(values(lora)[Q], dense((*truth[:2], None)), atol=1e-5)
        assert any("2 keys of the model for" in line for line in lora.warnings)
        again = from_recipe(lora.recipe, lambda name, sha256: tmp_path / name)
        assert torch.equal(again[Q].dense(), lora[Q].dense())
    alone = tmp_path / "alone.safetensors"
    save_file({key: value for key, value in stored.items() if key.startswith(low)}, alone)
    assert not difflora.load(alone).warnings


def full_lokr(path: Path, alpha: float, dtype: torch.dtype, dim: str | None) -> Path:
    parts = {"lokr_w1": torch.randn(3, 4), "lokr_w2": torch.randn(8, 4), "alpha": torch.tensor(alpha).to(dtype)}
    save_file(
        {f"{kohya(Q)}.{end}": value for end, value in parts.items()}, path, {"ss_network_dim": dim} if dim else None
    )
    return path


@pytest.mark.parametrize("alpha", [1e10, 100000.0, float("inf"), float("nan")])
def test_alpha_does_not_count_where_a_lokr_is_stored_in_full(alpha: float, tmp_path: Path) -> None:
    path = full_lokr(tmp_path / "a.safetensors", alpha, torch.float16, "100000")
    lora = difflora.load(path)
    stored = load_file(path)
    truth = torch.kron(stored[f"{kohya(Q)}.lokr_w1"].double(), stored[f"{kohya(Q)}.lokr_w2"].double())
    torch.testing.assert_close(lora[Q].dense(torch.float64), truth)
    assert not lora.warnings
    save_file(
        stored
        | {
            f"{kohya(K)}.lora_up.weight": torch.ones(4, 2),
            f"{kohya(K)}.lora_down.weight": torch.ones(2, 4),
            f"{kohya(K)}.alpha": torch.tensor(float("inf")),
        },
        path,
    )
    with pytest.raises(TensorError, match="cross_attn_k.alpha is inf"):
        difflora.load(path).prepare()


def test_a_full_lokr_whose_alpha_is_not_its_dim_has_one_hint(tmp_path: Path) -> None:
    lora = difflora.load(full_lokr(tmp_path / "a.safetensors", 8.0, torch.float32, "16"))
    (hint,) = lora.warnings
    assert "ss_network_dim 16" in hint and hint.endswith("0.5.")
    assert not difflora.load(full_lokr(tmp_path / "b.safetensors", 16.0, torch.float32, "16")).warnings
    assert not difflora.load(full_lokr(tmp_path / "c.safetensors", 8.0, torch.float32, None)).warnings
    assert not difflora.load(full_lokr(tmp_path / "d.safetensors", 8.0, torch.float32, "many")).warnings


@pytest.mark.parametrize("weight", [1e40, -1e31, 1e300])
def test_a_factor_whose_product_overflows_is_refused(weight: float, pair: tuple[Lora, Lora]) -> None:
    with pytest.raises(PairError, match="overflows"):
        pair[0].scaled(weight)
    assert pair[0].scaled(1e20)[Q].dense().isfinite().all()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("what", ["link", "dangling", "pipe", "folder", "large", "binary", "broken"])
def test_a_configuration_beside_is_a_small_plain_file(what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "adapter_model.safetensors", {Q: factors(alpha=None)})
    config, elsewhere = tmp_path / "adapter_config.json", tmp_path / "elsewhere.json"
    elsewhere.write_text('{"lora_alpha": 8}')
    match what:
        case "link":
            config.symlink_to(elsewhere)
        case "dangling":
            config.symlink_to(tmp_path / "nowhere")
        case "pipe":
            os.mkfifo(config)
        case "folder":
            config.mkdir()
        case "large":
            config.write_text('{"lora_alpha": 8}' + " " * 1_000_000)
        case "binary":
            config.write_bytes(b"\xff\xfe")
        case "broken":
            config.write_text("{")
    with pytest.raises(FileError, match="adapter_model.safetensors: adapter_config.json beside it") as error:
        difflora.load(path)
    assert str(tmp_path) not in str(error.value)


def test_a_module_that_does_not_fit_is_left_out_with_the_unmatched_ones(tmp_path: Path) -> None:
    """Text-to-video against image-to-video: patch_embedding has other inputs, the rest is alike."""
    shared = {Q: factors(seed=1), K: factors(seed=2), FFN: factors(seed=3)}
    sides = [
        difflora.load(write(tmp_path / f"{n}.safetensors", {**shared, Q: factors(seed=n), "patch_embedding": other}))
        for n, other in ((10, factors(8, 64)), (11, factors(8, 144)))
    ]
    for unmatched in ("keep", "error"):
        with pytest.raises(PairError, match='patch_embedding has different shapes .*unmatched "drop" leaves it out'):
            difflora.subtract(*sides, unmatched=unmatched).prepare()
    difference = difflora.subtract(*sides, unmatched="drop")
    assert sorted(difference) == sorted(shared)
    assert any("left out: patch_embedding" in line for line in difference.warnings)
    other_model = difflora.load(
        write(tmp_path / "c.safetensors", {name: factors(48, 32) for name in (Q, K)} | {FFN: factors()})
    )
    with pytest.raises(PairError, match="different base models"):
        difflora.subtract(sides[0], other_model, unmatched="drop")
