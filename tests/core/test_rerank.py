"""Re-ranking against a dense SVD in float64, computed by numpy from the values as they are stored."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import difflora
from difflora.errors import DiffLoraError, FileError, PairError, RankError
from difflora.lora.deltas import LowRank, Spec, Term
from difflora.lora.lora import Lora
from difflora.rank.factorisation import GRAM_TOLERANCE, Factorisation, _decomposed
from difflora.rank.rules import Energy, FixedRank, Knee, Ratio, rule_from_recipe
from tests.lora_files import K, Q, dense, factors, write, write_pair

OUT, IN, RANK = 96, 64, 16
BF16, F16 = torch.bfloat16, torch.float16


def pairs() -> dict[str, tuple]:
    """Pairs that strain different parts of the arithmetic: name -> (A, B), each (up, down, alpha)."""
    random = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    up, down = normal(OUT, RANK), normal(RANK, IN)
    repeated = up.clone()
    repeated[:, RANK // 2 :] = up[:, : RANK // 2]
    falling = torch.logspace(0, -6, RANK)
    cases = {
        "independent": ((up, down, 8.0), (normal(OUT, RANK), normal(RANK, IN), 8.0)),
        "two of rank 1": ((up[:, :1], down[:1], 1.0), (normal(OUT, 1), normal(1, IN), 1.0)),
        "other alpha": ((up, down, 8.0), (2 * up + 2e-4 * normal(OUT, RANK), down, 4.0)),
        "other rank": ((up, down, 8.0), (up[:, :5] + 0.01 * normal(OUT, 5), down[:5], 1.0)),
        "other dtypes": ((up.to(BF16), down.to(BF16), 8.0), ((1.01 * up).to(F16), down, 8.0)),
        "fp8": ((up.to(torch.float8_e4m3fn), down.to(torch.float8_e5m2), 8.0), (normal(OUT, RANK), down, None)),
        "rank-deficient": ((repeated, down, 8.0), (normal(OUT, RANK), normal(RANK, IN), 8.0)),
        "rank-deficient and collinear": ((repeated, down, 8.0), (repeated + 1e-3 * up.roll(1, 1), down, 8.0)),
        "true rank 2": ((up, down, 8.0), (up, torch.cat([1.1 * down[:2], down[2:]]), 8.0)),
        "falling columns": ((up * falling, down, 8.0), (normal(OUT, RANK) * falling, normal(RANK, IN), 8.0)),
        "exactly zero": ((up, down, 8.0), (2 * up, down, 4.0)),
        "one side zero": ((up, down, 8.0), (torch.zeros(OUT, RANK), down, 8.0)),
        "more columns than the matrix has": (
            (normal(OUT, 150), normal(150, IN), 8.0),
            (normal(OUT, 150), normal(150, IN), 8.0),
        ),
        "tiny": ((1e-18 * up, 1e-18 * down, 8.0), (1e-18 * normal(OUT, RANK), 1e-18 * down, 8.0)),
        "large": ((1e15 * up, 1e15 * down, 8.0), (1e15 * normal(OUT, RANK), 1e15 * down, 8.0)),
    }
    for noise in (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        noisy = up + noise * normal(OUT, RANK), down + noise * normal(RANK, IN)
        cases[f"noise {noise:g}"] = ((up, down, 8.0), (*noisy, 8.0))
    return cases


PAIRS = pairs()


def difference(folder: Path, a: tuple, b: tuple) -> Lora:
    """A - B in module Q. Another module differs in any case: two LoRAs that are alike everywhere are refused."""
    return difflora.subtract(
        difflora.load(write(folder / "a.safetensors", {Q: a, K: factors(seed=1)})),
        difflora.load(write(folder / "b.safetensors", {Q: b, K: factors(seed=2)})),
    )


@pytest.mark.parametrize("rank", [1, 4, 1000])
@pytest.mark.parametrize("name", PAIRS)
def test_matches_dense_svd(name: str, rank: int, tmp_path: Path) -> None:
    a, b = PAIRS[name]
    whole = dense(a) - dense(b)
    exact = np.linalg.svd(whole, compute_uv=False)
    result = difflora.rerank(difference(tmp_path, a, b).select("self_attn"), FixedRank(rank))
    delta = result[Q]
    values = result.spectrum(Q).numpy()

    assert delta.rank == min(rank, a[1].shape[0] + b[1].shape[0], OUT, IN)
    assert np.abs(values - exact[: len(values)]).max() <= 1e-5 * exact[0]
    error = np.linalg.norm(whole - delta.dense(torch.float64).numpy())
    optimum = np.linalg.norm(exact[delta.rank :])
    assert error <= (1 + 1e-4) * optimum + 1e-6 * np.linalg.norm(whole)
    energy = (exact[: delta.rank] ** 2).sum() / (exact**2).sum() if exact[0] > 0 else 1.0
    assert result.retained_energy == pytest.approx(energy, abs=1e-5)


WEIGHTS = st.one_of(st.just(0.0), st.floats(0.01, 3), st.floats(-3, -0.01))  # whose root is a float32


@settings(max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 20),
    st.sampled_from([0.0, 1e-6, 1e-4, 1e-2, 1.0]),
    WEIGHTS,
    WEIGHTS,
    st.integers(0, 2**31),
)
def test_matches_dense_svd_for_any_shape(
    out: int,
    inside: int,
    rank_a: int,
    rank_b: int,
    rank: int,
    noise: float,
    weight_a: float,
    weight_b: float,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    shared = max(rank_a, rank_b)
    up, down = torch.randn(out, shared, generator=random), torch.randn(shared, inside, generator=random)
    up_b = up + noise * torch.randn(out, shared, generator=random)
    terms = (Term(up[:, :rank_a], down[:rank_a], weight_a), Term(up_b[:, :rank_b], down[:rank_b], -weight_b))
    whole = sum(term.scale * (term.up.double() @ term.down.double()) for term in terms)
    exact = np.linalg.svd(whole.numpy(), compute_uv=False)
    size = sum(abs(t.scale) * float(t.up.double().norm() * t.down.double().norm()) for t in terms)

    result = difflora.rerank(InMemory({Q: LowRank(terms, (out, inside))}), FixedRank(rank))
    values = result.spectrum(Q).numpy()
    # Where everything cancels, what is left is rounding: an error against the factors' size is all there can be.
    assert np.abs(values - exact[: len(values)]).max() <= 1e-5 * exact[0] + 1e-13 * size
    error = np.linalg.norm((whole - result[Q].dense(torch.float64)).numpy())
    assert error <= (1 + 1e-4) * np.linalg.norm(exact[result[Q].rank :]) + 1e-6 * np.linalg.norm(exact) + 1e-13 * size


class InMemory(Lora):
    """A LoRA of given deltas, for arithmetic without files."""

    def __init__(self, deltas: dict[str, LowRank]):
        self.deltas = deltas
        self.specs = {name: delta.spec for name, delta in deltas.items()}
        self.reads = 0

    parents = ()

    def describe(self, sha256: object) -> dict[str, object]:
        return {"op": "memory"}

    def read(self, modules: object) -> dict[str, LowRank]:
        self.reads += 1
        return {name: self.deltas[name] for name in modules}


def with_spectrum(values: list[float], seed: int = 0) -> InMemory:
    """A module whose difference has exactly these singular values, as far as float32 factors can."""
    count = len(values)
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.standard_normal((count + 3, count)))[0] for _ in range(2))
    up, down = torch.from_numpy(left * values), torch.from_numpy(right.T.copy())
    return InMemory({Q: LowRank((Term(up, down),), (count + 3, count + 3))})


SPECTRA = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12).map(lambda values: sorted(values, reverse=True))


@given(SPECTRA, st.floats(0.01, 0.999))
def test_energy_keeps_the_fewest_values_that_are_enough(values: list[float], share: float) -> None:
    squares = [value**2 for value in values]
    rank = difflora.rerank(with_spectrum(values), Energy(share))[Q].rank
    total = math.fsum(squares)
    assert math.fsum(squares[:rank]) >= share * total * (1 - 1e-9)
    assert math.fsum(squares[: rank - 1]) < share * total * (1 + 1e-9)


@given(SPECTRA, st.floats(1, 100))
def test_ratio_keeps_exactly_the_values_above_the_bound(values: list[float], ratio: float) -> None:
    rank = difflora.rerank(with_spectrum(values), Ratio(ratio))[Q].rank
    bound = values[0] / ratio
    assert all(value >= bound * (1 - 1e-9) for value in values[:rank]) or rank == 1
    assert all(value <= bound * (1 + 1e-9) for value in values[rank:])


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [
        ([2.0, 1.0, 1.0, 1.0], 4 / 7, 1),
        ([2.0, 1.0, 1.0, 1.0], 0.58, 2),
        ([2.0, 1.0, 1.0, 1.0], 1.0, 4),
        ([3.0, 0.0, 0.0], 1.0, 1),
        ([1.0], 0.5, 1),
    ],
)
def test_energy_by_hand(values: list[float], share: float, rank: int) -> None:
    assert difflora.rerank(with_spectrum(values), Energy(share))[Q].rank == rank


@pytest.mark.parametrize(
    ("values", "ratio", "rank"),
    [
        ([10.0, 5.1, 4.9, 1.0], 2.0, 2),
        ([10.0, 5.1, 4.9, 1.0], 1000.0, 4),
        ([10.0, 5.1, 4.9, 1.0], 1.0, 1),  # nothing is above σ₁ itself; rank 1 is the least there is
    ],
)
def test_ratio_by_hand(values: list[float], ratio: float, rank: int) -> None:
    assert difflora.rerank(with_spectrum(values), Ratio(ratio))[Q].rank == rank


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([10.0, 9.0, 8.0, 1.0, 0.9, 0.8], 3),  # 1.0 lies 4.48 below its chord, more than any other
        ([10.0, 1.0, 0.9, 0.8, 0.7], 1),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 5),  # straight: no knee
        ([5.0, 4.9, 4.8, 1.0], 4),  # bulges above the chord: no knee
        ([5.0, 1.0], 2),
        ([10.0, 9.0, 8.0, 1.0, 0.9, 0.8, 0.0, 0.0], 3),  # zeros are no part of the spectrum
    ],
)
def test_knee_by_hand(values: list[float], rank: int) -> None:
    assert difflora.rerank(with_spectrum(values), Knee())[Q].rank == rank


@pytest.mark.parametrize("rule", [Knee(), Ratio(1e9)])
@pytest.mark.parametrize(
    "values", [[10.0, 5.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0], [9.0, 7.0, 5.0, 3.0], [9.0, 1.0, 0.1, 0.01]]
)
def test_rounding_of_factors_is_no_part_of_the_spectrum(
    values: list[float], rule: Knee | Ratio, tmp_path: Path
) -> None:
    """A and B share eight directions, each with its own factors: float32 leaves noise where they cancel."""
    random = torch.Generator().manual_seed(3)
    left, right = (
        torch.linalg.qr(torch.randn(size, 12, generator=random, dtype=torch.float64)).Q for size in (300, 200)
    )
    up, down = 10 * left[:, :8], right[:, :8].mT
    own_up, own_down = left[:, 8:] * torch.tensor(values, dtype=torch.float64), right[:, 8:].mT
    a = (torch.cat([up / 3, own_up], 1).float(), torch.cat([down * 3, own_down]).float(), None)
    b = ((up * 3).float(), (down / 3).float(), None)
    sides = [difflora.load(write(tmp_path / f"{name}.safetensors", {Q: one})) for name, one in (("a", a), ("b", b))]
    reranked = difflora.rerank(difflora.subtract(*sides), rule)
    assert 0 < reranked.spectrum(Q)[4] < 1e-6 * values[0]
    assert reranked[Q].rank == rule.count(torch.tensor(values, dtype=torch.float64))


@given(SPECTRA)
def test_knee_matches_its_definition(values: list[float]) -> None:
    values = [value for value in values if value > 1e-6 * values[0]]  # what is less is noise
    tensor = torch.tensor(values, dtype=torch.float64)
    last = len(values) - 1
    below = [values[0] + (values[-1] - values[0]) * i / max(last, 1) - value for i, value in enumerate(values)]
    kept = Knee().count(tensor)
    if kept < len(values):
        assert below[kept] >= max(below) - 1e-9 * values[0]
    else:
        assert max(below) <= 2e-6 * values[0] or len(values) < 3


def fewest(retained: np.ndarray, share: float) -> int:
    """The first rank that retains a share."""
    return 1 + int((retained < share).sum())


# Two or more values, no two of them at a tie with a share or a ratio.
SPECTRA = [
    [10, 6, 3, 2, 1, 0.5],
    [5, 5, 5, 5],
    [9, 1e-3],
    [1, 0.7, 0.49, 0.343, 0.24, 0.168, 0.118, 0.082],
    [3, 2.9, 0.4, 0.3, 0.05],
]


@pytest.mark.parametrize("values", SPECTRA, ids=range(len(SPECTRA)))
def test_rules_keep_what_those_of_resize_lora_are_meant_to(values: list[float], tmp_path: Path) -> None:
    """kohya's definitions, from the singular values of the full matrix: `docs/command-line.md` compares them with ours."""
    random = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(side, len(values), generator=random))[0] for side in (OUT, IN))
    # Stored with a scale of 1/2, which changes nothing about shares and ratios.
    one = left * torch.tensor(values), right.T, len(values) / 2
    lora = difflora.load(write(tmp_path / "a.safetensors", {Q: one}))
    exact = np.linalg.svd(one[0].double().numpy() @ one[1].double().numpy(), compute_uv=False)[: len(values)]

    def kept(rule: Energy | Ratio) -> int:
        return difflora.rerank(lora, rule)[Q].rank

    for ratio in (1.5, 4, 15, 1e4):
        assert kept(Ratio(ratio)) == sum(exact > exact[0] / ratio)  # sv_ratio
    norms = np.sqrt(np.cumsum(exact**2))
    for share in (0.5, 0.8, 0.9, 0.97):
        assert kept(Energy(share**2)) == fewest(norms / norms[-1], share)  # sv_fro


def test_numbers_in_the_comparison_with_resize_lora() -> None:
    values = torch.tensor([10, 6, 3, 2, 1, 0.5], dtype=torch.float64)
    assert [rule.count(values) for rule in (FixedRank(4), Ratio(4), Energy(0.81), Energy(0.9), Knee())] == [
        4,
        3,
        2,
        2,
        2,
    ]
    assert fewest(np.cumsum(values.numpy()) / float(values.sum()), 0.9) == 4  # sv_cumulative


def test_max_rank_limits_every_rule(tmp_path: Path) -> None:
    a, b = write_pair(tmp_path)
    whole = difflora.subtract(difflora.load(a), difflora.load(b))
    for rule in (FixedRank(8), Energy(1.0), Ratio(1e6), Knee()):
        assert max(spec.rank for spec in difflora.rerank(whole, rule, max_rank=2).specs.values()) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedRank(0),
        lambda: FixedRank(-3),
        lambda: FixedRank(True),
        lambda: FixedRank(2.5),
        lambda: Energy(0),
        lambda: Energy(1.1),
        lambda: Energy(math.nan),
        lambda: Ratio(0.5),
        lambda: Ratio(math.inf),
        lambda: Ratio(math.nan),
    ],
)
def test_rules_refuse_what_is_no_rank(make: object) -> None:
    with pytest.raises(RankError):
        make()


def test_max_rank_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="max rank is 0"):
        difflora.rerank(with_spectrum([1.0]), FixedRank(1), max_rank=0)


def test_a_lora_of_vectors_only_has_nothing_to_rerank() -> None:
    class Norms(InMemory):
        def __init__(self) -> None:
            self.specs = {"blocks.0.norm3": Spec((4,))}

    with pytest.raises(PairError, match="no weight matrix"):
        difflora.rerank(Norms(), FixedRank(1))


@pytest.mark.parametrize("rule", [FixedRank(3), Energy(0.9), Ratio(20.0), Knee()])
def test_rules_survive_their_recipe(rule: object) -> None:
    assert rule_from_recipe(rule.recipe) == rule


def test_unknown_rule_is_named() -> None:
    with pytest.raises(DiffLoraError, match="'softmax' is unknown"):
        rule_from_recipe({"kind": "softmax"})


# What is kept between runs


def test_spectrum_and_energy_touch_no_file_after_the_first_run(tmp_path: Path) -> None:
    a, b = write_pair(tmp_path)
    result = difflora.rerank(difflora.subtract(difflora.load(a), difflora.load(b)), FixedRank(2))
    difflora.save(result, tmp_path / "out.safetensors")
    energy = result.retained_energy
    a.unlink()
    b.unlink()
    assert result.retained_energy == energy
    other = difflora.rerank(result.of, FixedRank(5))
    assert energy < other.retained_energy < 1
    assert torch.equal(other.spectrum(Q), result.spectrum(Q))
    assert difflora.rerank(result.of, Energy(0.5)).specs[Q].rank >= 1
    with pytest.raises(FileError, match="no such file|changed"):
        other.read([Q])


@pytest.mark.parametrize("budget", [192_000_000, 1])
def test_another_rank_of_a_known_lora_equals_a_fresh_one(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["difflora.rank.factorisation"], "MIX_BUDGET", budget)
    a, b = write_pair(tmp_path)

    def fresh() -> Lora:
        return difflora.subtract(difflora.load(a), difflora.load(b))

    known = fresh()
    difflora.save(difflora.rerank(known, FixedRank(2)), tmp_path / "first.safetensors")
    for rank in (3, 1, 8):
        difflora.save(difflora.rerank(known, FixedRank(rank)), tmp_path / f"again{rank}.safetensors")
        difflora.save(difflora.rerank(fresh(), FixedRank(rank)), tmp_path / f"fresh{rank}.safetensors")
        assert data(tmp_path / f"again{rank}.safetensors") == data(tmp_path / f"fresh{rank}.safetensors")


def test_kept_columns_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    lora = InMemory(
        {
            f"blocks.{i}.self_attn.q": LowRank(
                (Term(torch.randn(50, 32, generator=random), torch.randn(32, 40, generator=random)),), (50, 40)
            )
            for i in range(4)
        }
    )
    budget = 16 * 32 * 4 * 5  # five columns of each side in every module
    monkeypatch.setattr(sys.modules["difflora.rank.factorisation"], "MIX_BUDGET", budget)
    factorisation = Factorisation(lora)
    factorisation.run()
    kept = [factorisation[name] for name in lora]
    assert {one.mix_up.shape for one in kept} == {(32, 5)}
    assert sum(tensor.untyped_storage().nbytes() for one in kept for tensor in (one.mix_up, one.mix_down)) <= budget
    reads = lora.reads
    assert all(len(factorisation[name].singular_values) == 32 for name in lora)
    assert lora.reads == reads


def test_runs_are_bit_identical(tmp_path: Path) -> None:
    a, b = write_pair(tmp_path)
    for name in ("first", "second"):
        lora = difflora.subtract(difflora.load(a), difflora.load(b))
        difflora.save(difflora.rerank(lora, Energy(0.8)), tmp_path / f"{name}.safetensors")
    assert data(tmp_path / "first.safetensors") == data(tmp_path / "second.safetensors")


def test_one_module_alone_equals_the_same_in_a_batch(tmp_path: Path) -> None:
    a, b = write_pair(tmp_path)
    lora = difflora.rerank(difflora.subtract(difflora.load(a), difflora.load(b)), FixedRank(2))
    together = lora.read(list(lora))
    alone = difflora.rerank(difflora.subtract(difflora.load(a), difflora.load(b)), FixedRank(2))
    for name in reversed(list(lora)):
        torch.testing.assert_close(alone[name].dense(), together[name].dense(), rtol=1e-6, atol=1e-6)


def data(path: Path) -> bytes:
    """The tensors' bytes, without the header, which holds the date."""
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


# What comes out


def test_singular_values_are_split_evenly_and_signs_follow_the_convention(tmp_path: Path) -> None:
    result = difflora.rerank(difference(tmp_path, *PAIRS["independent"]), FixedRank(6))
    delta, values = result[Q], result.spectrum(Q)[:6]
    torch.testing.assert_close(delta.up.norm(dim=0).double().square(), values, rtol=1e-5, atol=0)
    torch.testing.assert_close(delta.down.norm(dim=1).double().square(), values, rtol=1e-5, atol=0)
    largest = delta.down.abs().argmax(dim=1, keepdim=True)
    assert bool((delta.down.gather(1, largest) > 0).all())


def test_swapping_the_sides_negates_up_alone(tmp_path: Path) -> None:
    a, b = PAIRS["independent"]
    forth = difflora.rerank(difference(tmp_path, a, b), FixedRank(4))[Q]
    (tmp_path / "swapped").mkdir()
    back = difflora.rerank(difference(tmp_path / "swapped", b, a), FixedRank(4))[Q]
    torch.testing.assert_close(forth.up, -back.up, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(forth.down, back.down, rtol=1e-4, atol=1e-5)


def test_slow_path_is_taken_where_gram_matrices_are_too_coarse_and_only_there(tmp_path: Path) -> None:
    slow = {}
    for name in ("independent", "noise 0.1", "noise 1e-06"):
        lora = difference(tmp_path, *PAIRS[name]).select("self_attn")
        factorisation = difflora.rerank(lora, FixedRank(1)).factorisation
        factorisation.run()
        slow[name] = factorisation.slow
    assert slow == {"independent": 0, "noise 0.1": 0, "noise 1e-06": 1}


@pytest.mark.parametrize("last", [1e-7, 3e-7, 6e-7, 1e-6])
def test_no_singular_value_is_further_off_than_the_fast_path_may_be(last: float) -> None:
    """Many large ones beside a small one, which the error of the Gram matrices hides."""
    values = difflora.rerank(with_spectrum([1.0] * 119 + [last]), FixedRank(1)).spectrum(Q)
    assert abs(float(values[119]) - last) <= GRAM_TOLERANCE


def test_vectors_pass_unchanged(tmp_path: Path) -> None:
    bias = torch.randn(24)
    key = "lora_unet_blocks_0_self_attn_q.diff_b"
    a = write(tmp_path / "a.safetensors", {Q: factors(seed=1)}, {key: bias})
    b = write(tmp_path / "b.safetensors", {Q: factors(seed=2)}, {key: bias / 4})
    result = difflora.rerank(difflora.subtract(difflora.load(a), difflora.load(b)), FixedRank(1))
    assert torch.equal(result[Q + ".bias"].value, 0.75 * bias)
    assert result.matrices == (Q,)


def test_progress_counts_every_module_and_can_cancel(tmp_path: Path) -> None:
    a, b = write_pair(tmp_path)
    calls: list[tuple[int, int]] = []
    lora = difflora.subtract(difflora.load(a), difflora.load(b))
    difflora.rerank(lora, FixedRank(1), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (3, 3)
    assert all(x <= y for (x, _), (y, _) in itertools.pairwise(calls))

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    fresh = difflora.subtract(difflora.load(a), difflora.load(b))
    with pytest.raises(Stop):
        difflora.rerank(fresh, FixedRank(1), progress=stop)


def test_a_matrix_on_which_lapack_gives_up_is_decomposed_to_rounding():
    """Found by fuzzing: the core of a module whose numbers lie 260 orders of magnitude apart."""
    rows = [
        [0.0, -4.94606914198118e-128, 3.3816850833620464e-115, -1.4795588035986947e-104, 8.886814104069033e-103],
        [0.0, 1.5727631511260332e85, -1.0753164857080836e98, 4.704737235622338e108, -2.82585086309335e110],
        [0.0, 0.0, 1.4761903557146754e111, -6.458645269280327e121, 3.879317248669966e123],
        [0.0, 0.0, 0.0, 2.8257940144990235e132, -1.6972834092273813e134],
        [0.0, 0.0, 0.0, 0.0, 1.0194554013694605e136],
    ]
    upper = torch.tensor(rows, dtype=torch.float64)
    matrix = torch.zeros(8, 8, dtype=torch.float64)
    matrix[3:, 3:] = upper + upper.triu(1).T
    squares, vectors = _decomposed(torch.linalg.eigh, matrix[None])
    rebuilt = vectors[0] * squares[0] @ vectors[0].T
    assert (rebuilt - matrix).abs().max() <= 1e-14 * matrix.abs().max()
