"""The numbers of a pair, against dense matrices in float64."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import difflora
from difflora.errors import PairError
from difflora.lora.lora import Lora
from difflora.rank.analysis import Analysis, ModuleNumbers, analyze_difference, average_spectrum
from difflora.rank.passing_stats import MeasuredLora
from tests.lora_files import FFN, K, Q, dense, factors, write, write_pair


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Lora, Lora]:
    a, b = write_pair(tmp_path)
    return difflora.load(a), difflora.load(b)


def values(lora: Lora) -> dict[str, np.ndarray]:
    return {name: delta.dense(torch.float64).numpy() for name, delta in lora.items()}


def whole(changes: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([change.ravel() for change in changes.values()])


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize(("weight_a", "weight_b"), [(1.0, 1.0), (2.0, 0.5), (-1.0, 3.0), (1.0, 0.0)])
def test_every_number_matches_dense_matrices(weight_a: float, weight_b: float, pair: tuple[Lora, Lora]) -> None:
    numbers = difflora.analyze(*pair, weight_a, weight_b)
    a, b = values(pair[0]), values(pair[1])
    assert list(numbers.modules) == [Q, K, FFN]
    for name, one in numbers.modules.items():
        difference = weight_a * a[name] - weight_b * b[name]
        spectrum = np.linalg.svd(difference, compute_uv=False)
        assert one.norm == pytest.approx(np.linalg.norm(difference))
        np.testing.assert_allclose(one.spectrum.numpy(), spectrum[: len(one.spectrum)], atol=1e-5 * spectrum[0])
        assert one.stable_rank == pytest.approx((spectrum**2).sum() / spectrum[0] ** 2)
        for rank in (1, 3, 100):
            assert one.energy(rank) == pytest.approx((spectrum[:rank] ** 2).sum() / (spectrum**2).sum())
        assert one.norm_a == pytest.approx(np.linalg.norm(a[name]))
        if weight_b:  # a side without weight is not there to be measured
            assert one.norm_b == pytest.approx(np.linalg.norm(b[name]))
            assert one.cosine == pytest.approx(cosine(a[name], b[name]), abs=1e-9)
            product = (a[name] * b[name]).sum()
            parts = (weight_a * one.norm_a) ** 2 + (weight_b * one.norm_b) ** 2
            assert one.cancelled == pytest.approx(2 * weight_a * weight_b * product / parts, abs=1e-9)
            assert one.cancelled == pytest.approx(1 - one.norm**2 / parts, abs=1e-9)
    difference = {name: weight_a * a[name] - weight_b * b[name] for name in a}
    assert numbers.norm == pytest.approx(np.linalg.norm(whole(difference)))
    assert numbers.norm_a == pytest.approx(np.linalg.norm(whole(a)))
    if weight_b:
        assert numbers.cosine == pytest.approx(cosine(whole(a), whole(b)), abs=1e-9)
        parts = (weight_a * numbers.norm_a) ** 2 + (weight_b * numbers.norm_b) ** 2
        assert numbers.cancelled == pytest.approx(1 - numbers.norm**2 / parts, abs=1e-9)


@pytest.mark.parametrize("noise", [0.1, 1e-2, 1e-4])
def test_nearly_collinear_pair(noise: float, tmp_path: Path) -> None:
    """Where everything but a ten-thousandth cancels, the size of what is left still is right."""
    up, down, alpha = factors(64, 48, 16)
    random = torch.Generator().manual_seed(5)
    other = (
        up + noise * torch.randn(64, 16, generator=random),
        down + noise * torch.randn(16, 48, generator=random),
        alpha,
    )
    a = difflora.load(write(tmp_path / "a.safetensors", {Q: (up, down, alpha)}))
    b = difflora.load(write(tmp_path / "b.safetensors", {Q: other}))
    numbers = difflora.analyze(a, b)
    exact = dense((up, down, alpha)) - dense(other)
    assert numbers.norm == pytest.approx(np.linalg.norm(exact), rel=1e-6)
    assert 1 - numbers.cosine == pytest.approx(1 - cosine(dense((up, down, alpha)), dense(other)), rel=1e-3, abs=1e-12)
    assert numbers.modules[Q].energy(4) == pytest.approx(
        float((np.linalg.svd(exact, compute_uv=False)[:4] ** 2).sum() / (exact**2).sum()), rel=1e-5
    )


def test_energy_of_a_rank_over_all_modules_is_what_a_rerank_keeps(pair: tuple[Lora, Lora]) -> None:
    numbers = difflora.analyze(*pair)
    for rank in (1, 2, 5, 8):
        cut = difflora.rerank(difflora.subtract(*pair), difflora.FixedRank(rank))
        assert numbers.energy(rank) == pytest.approx(cut.retained_energy)


def test_selected_and_reranked_differences_tell_the_same_of_a_and_b(pair: tuple[Lora, Lora]) -> None:
    plain = difflora.analyze(*pair)
    chosen = difflora.subtract(*pair).select("attn=0.5")
    for lora in (chosen, difflora.rerank(chosen, difflora.FixedRank(2))):
        numbers = analyze_difference(lora)
        assert list(numbers.modules) == [Q, K]
        for name, one in numbers.modules.items():
            assert (one.norm_a, one.norm_b, one.cosine) == pytest.approx(
                (plain.modules[name].norm_a, plain.modules[name].norm_b, plain.modules[name].cosine)
            )
            assert one.norm == pytest.approx(0.5 * plain.modules[name].norm)
    assert chosen.select("blocks 0=-4").weight_of(Q) == -2.0
    assert chosen.weight_of(FFN) == 0.0


def test_zeroed_modules_add_nothing(pair: tuple[Lora, Lora]) -> None:
    numbers = analyze_difference(difflora.subtract(*pair).select("ffn", nullify=True))
    alone = analyze_difference(difflora.subtract(*pair).select("ffn"))
    assert (numbers.norm, numbers.cosine, numbers.cancelled) == pytest.approx(
        (alone.norm, alone.cosine, alone.cancelled)
    )


def test_modules_of_one_side_only(tmp_path: Path) -> None:
    a = difflora.load(write(tmp_path / "a.safetensors", {Q: factors(seed=1), K: factors(seed=2)}))
    b = difflora.load(write(tmp_path / "b.safetensors", {Q: factors(seed=3), FFN: factors(40, seed=4)}))
    numbers = difflora.analyze(a, b)
    assert (numbers.only_a, numbers.only_b) == ((K,), (FFN,))
    assert numbers.modules[K].norm == pytest.approx(np.linalg.norm(values(a)[K]))
    assert (numbers.modules[K].norm_b, numbers.modules[K].cosine, numbers.modules[K].cancelled) == (0, 0, 0)
    assert numbers.modules[FFN].norm_a == 0


def test_a_module_that_cancels_completely(tmp_path: Path) -> None:
    up, down, _ = factors()
    a = difflora.load(write(tmp_path / "a.safetensors", {Q: (up, down, 2.0), K: factors(seed=1)}))
    b = difflora.load(write(tmp_path / "b.safetensors", {Q: (2 * up, down, 1.0), K: factors(seed=2)}))
    one = difflora.analyze(a, b).modules[Q]
    assert (one.norm, one.stable_rank, one.energy(1)) == (0, 0, 1)
    assert (one.cosine, one.cancelled) == pytest.approx((1, 1))


def test_pairs_that_make_no_sense_are_errors(pair: tuple[Lora, Lora], tmp_path: Path) -> None:
    with pytest.raises(PairError, match="same weights"):
        difflora.analyze(pair[0], pair[0])
    with pytest.raises(ValueError, match="not a difference"):
        analyze_difference(pair[0])
    assert pair[0].difference is None
    assert difflora.subtract(*pair).select("all").difference is not None


def test_what_looks_wrong_is_said(tmp_path: Path) -> None:
    def warned(a: tuple, b: tuple) -> str:
        sides = [difflora.load(write(tmp_path / f"{name}.safetensors", {Q: one})) for name, one in (("a", a), ("b", b))]
        return " ".join(difflora.analyze(*sides).warnings)

    up, down, alpha = factors(200, 200)
    noise = factors(200, 200, seed=1)[0]
    assert "differ in size" in warned((up, down, alpha), (3 * up + noise, down, alpha))
    assert "hardly have anything in common" in warned((up, down, alpha), factors(200, 200, seed=1))
    assert "nearly the same" in warned((up, down, alpha), (up + 0.01 * noise, down, alpha))
    assert warned((up, down, alpha), (up + 0.3 * noise, down, alpha)) == ""


def test_warnings_are_about_the_weighted_difference(tmp_path: Path) -> None:
    up, down, alpha = factors(200, 200)
    other = up + 0.01 * factors(200, 200, seed=1)[0]
    a, b = (
        difflora.load(write(tmp_path / f"{name}.safetensors", {Q: (one, down, alpha)}))
        for name, one in (("a", up), ("b", other))
    )
    assert "nearly the same" in " ".join(difflora.analyze(a, b, -3.0, -3.0).warnings)
    for weights in ((1.0, -1.0), (3.0, 1.0), (1.0, 0.0)):  # a sum, most of A, A alone: none of these is small
        assert difflora.analyze(a, b, *weights).warnings == []
    assert difflora.analyze(a, b, 1.0, -1.0).cancelled == pytest.approx(-1, abs=1e-3)


def test_full_differences_cancel_as_their_weights_say(tmp_path: Path) -> None:
    key, random = f"diffusion_model.{FFN}.diff", torch.Generator().manual_seed(0)
    shared = torch.randn(600, 520, generator=random)
    for name in "ab":
        save_file({key: shared + torch.randn(600, 520, generator=random)}, tmp_path / f"{name}.safetensors")
    numbers = difflora.analyze(*(difflora.load(tmp_path / f"{name}.safetensors") for name in "ab"), 2.0, 0.5)
    one = numbers.modules[FFN]
    parts = (2 * one.norm_a) ** 2 + (0.5 * one.norm_b) ** 2
    assert (one.cancelled, numbers.cancelled) == pytest.approx((1 - one.norm**2 / parts,) * 2, abs=1e-6)


def test_csv_has_a_line_per_module(pair: tuple[Lora, Lora]) -> None:
    numbers = difflora.analyze(*pair)
    rows = list(csv.DictReader(io.StringIO(numbers.csv())))
    assert [row["module"] for row in rows] == [Q, K, FFN]
    for row in rows:
        one = numbers.modules[row["module"]]
        assert float(row["norm_difference"]) == pytest.approx(one.norm, rel=1e-5)
        assert float(row["energy_rank_4"]) == pytest.approx(one.energy(4), rel=1e-5)
        assert float(row["sigma_1"]) == pytest.approx(float(one.spectrum[0]), rel=1e-5)


def test_progress(pair: tuple[Lora, Lora]) -> None:
    calls: list[tuple[int, int]] = []
    difflora.analyze(*pair, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (3, 3)


def test_progress_inside_a_module_stored_in_full(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        full = torch.randn(600, 520, generator=torch.Generator().manual_seed(seed))
        save_file({f"diffusion_model.{FFN}.diff": full}, tmp_path / f"{name}.safetensors")
    calls: list[tuple[int, int]] = []
    difflora.analyze(
        *(difflora.load(tmp_path / f"{name}.safetensors") for name in "ab"),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls.count((0, 1)) > 2 and calls[-1] == (1, 1)


@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=6), min_size=1, max_size=5))
def test_average_spectrum_keeps_the_energy(spectra: list[list[float]]) -> None:
    average = average_spectrum([torch.tensor(sorted(one, reverse=True), dtype=torch.float64) for one in spectra])
    assert len(average) == max(map(len, spectra))
    energy = math.fsum(value**2 for one in spectra for value in one)
    assert float(average.square().sum()) * len(spectra) == pytest.approx(energy, rel=1e-9, abs=1e-12)


def test_nothing_measured_is_no_division_by_zero() -> None:
    zero = ModuleNumbers(0, 0, 0, 0, 0, 0, torch.zeros(3, dtype=torch.float64))
    nothing = Analysis({Q: zero}, (), (), 0)
    assert (nothing.norm, nothing.cosine, nothing.cancelled, nothing.energy(2)) == (0, 0, 0, 1)
    assert any("differ in size" in line for line in nothing.warnings)


# The comparison of factors that pass by


@settings(max_examples=30)
@given(
    st.sampled_from([1.0, 0.5, -2.0]),
    st.sampled_from([1.0, 3.0, -1.0]),
    st.sampled_from(["all", "attn=0.5, ffn=-3", "blocks 0"]),
    st.booleans(),
)
def test_comparison_in_passing_agrees_with_the_factorisation(
    weight_a: float, weight_b: float, expression: str, nullify: bool
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        a, b = (difflora.load(path) for path in write_pair(Path(folder)))
        difference = difflora.subtract(a, b, weight_a, weight_b)
        chosen = difference.select(expression, nullify)
        passing = MeasuredLora(chosen, difference)
        difflora.save(passing, Path(folder) / "out.safetensors")
        exact = analyze_difference(chosen)
        assert passing.cosine == pytest.approx(exact.cosine, abs=1e-5)
        assert passing.cancelled == pytest.approx(exact.cancelled, abs=1e-5)
        assert passing.recipe == chosen.recipe
        for name, delta in difflora.load(Path(folder) / "out.safetensors").items():
            torch.testing.assert_close(delta.dense(), chosen[name].dense(), rtol=1e-5, atol=1e-5)
