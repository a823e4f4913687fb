"""The approximation of full matrices: its certificate against dense decompositions."""

import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import difflora
from difflora.rank import krylov


def noisy(rows, columns, rank, seed=0):
    """A signal of a rank, a thousand times as large as the noise that it stands in."""
    random = torch.Generator().manual_seed(seed)
    signal = torch.randn(rows, rank, generator=random) @ torch.randn(rank, columns, generator=random)
    return signal + 1e-3 * torch.randn(rows, columns, generator=random)


@pytest.mark.parametrize("rank", [4, 8, 12])
def test_signal_in_noise_is_certified_at_its_rank_below_it_and_above_it(rank):
    matrix = noisy(300, 500, 8)
    found = krylov.approximate(matrix, rank)
    values = torch.linalg.svdvals(matrix.double())
    optimum = float(values[rank:].norm())
    assert found.excess <= krylov.TOLERANCE and found.steps < krylov.MAX_STEPS
    assert optimum * (1 - 1e-9) <= found.error <= optimum * (1 + found.excess)


@pytest.mark.parametrize("seed", range(20))
def test_no_sum_of_eigenvalues_is_larger_than_the_certificate_allows(seed):
    """In every state of convergence, from a few steps on; the truth is a dense eigendecomposition."""
    random = torch.Generator().manual_seed(seed)
    size, kept, width = 40, 7, 9
    values = torch.rand(size, generator=random, dtype=torch.float64) ** (3 + seed % 4)
    vectors = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64)).Q
    matrix = vectors * values @ vectors.T
    basis = torch.randn(size, width, generator=random, dtype=torch.float64)
    tight = 0
    for _ in range(30):
        basis = torch.linalg.qr(matrix @ basis).Q
        found, inner = torch.linalg.eigh(basis.T @ matrix @ basis)
        found, left = found.flip(0)[: kept + 1], (basis @ inner).flip(1)[:, : kept + 1]
        residuals = torch.linalg.vector_norm(matrix @ left - left * found, dim=0)
        outside = torch.eye(size, dtype=torch.float64) - left[:, :kept] @ left[:, :kept].T
        if torch.linalg.eigvalsh(outside @ matrix @ outside)[-1] > found[kept] + residuals[kept]:
            continue  # the next one found is not the next one: what the certificate takes for granted
        bounds = [krylov._may_be_more(found, residuals, rank) for rank in range(kept + 1)]
        assert bounds == sorted(bounds)
        for rank, bound in enumerate(bounds):
            more = float(values.sort(descending=True).values[:rank].sum() - found[:rank].sum())
            assert -1e-12 <= more <= bound + 1e-12
            tight += bound < 0.7 * float(residuals[:rank].sum())
    assert tight  # better than the sum of the residuals, which is always a bound


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_a_flat_spectrum_at_a_large_rank_is_decomposed_whole(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    values = torch.linalg.svdvals(matrix.double())
    for rank in (30, 100, 250):
        found = krylov.approximate(matrix, rank)
        assert found.excess <= krylov.TOLERANCE
        error = float((matrix - found.up @ found.down).norm())
        assert error == pytest.approx(float(values[rank:].norm()), rel=1e-3)


def test_a_whole_decomposition_can_be_cancelled_before_it_is_done(monkeypatch):
    begun, released = threading.Event(), threading.Event()
    eigh = torch.linalg.eigh

    def slow(matrix):
        begun.set()
        released.wait(30)
        return eigh(matrix)

    def cancel():
        if begun.is_set():
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.linalg, "eigh", slow)
    matrix = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(1))).Q
    try:
        with pytest.raises(KeyboardInterrupt):
            krylov.approximate(matrix, 36, cancel)
    finally:
        released.set()


def test_a_certificate_is_that_of_the_rank_that_is_used():
    matrix = noisy(300, 500, 8)
    values = torch.linalg.svdvals(matrix.double())
    found = krylov.approximate(matrix, 12)
    for rank in (2, 8):
        cut = found.cut(rank)
        assert cut.error == pytest.approx(float(values[rank:].norm()), rel=1e-6) and cut.excess <= krylov.TOLERANCE
        assert cut.up.shape == (300, rank) and cut.down.shape == (rank, 500)


def test_energy_of_a_full_matrix_goes_as_far_as_it_must(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((640, 700)).astype(np.float32)
    paths = []
    for name, value in (("a", matrix), ("b", np.zeros_like(matrix))):
        paths.append(tmp_path / f"{name}.safetensors")
        save_file({"diffusion_model.blocks.0.self_attn.q.diff": torch.from_numpy(value)}, paths[-1])
    difference = difflora.subtract(*map(difflora.load, paths))
    small = difflora.rerank(difference, difflora.Energy(0.9))
    squares = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    needed = int(np.searchsorted(np.cumsum(squares) / squares.sum(), 0.9)) + 1
    assert needed > 256 and small.specs["blocks.0.self_attn.q"].rank == needed
    assert 0.9 <= small.retained_energy < 0.902


# Where the optimum is known by construction


COUNT = 90
PLACES = torch.arange(1, COUNT + 1, dtype=torch.float64)
SPECTRA = {
    "flat": torch.ones_like(PLACES),
    "slow": 1 / PLACES,
    "exponential": torch.exp(-PLACES / 5),
    "steep": torch.exp(-PLACES / 2),
    "to the rounding": torch.exp(-PLACES * 0.9),
    "clustered around the cuts": torch.cat(
        [torch.linspace(1.001, 0.999, 20), torch.linspace(0.3, 0.1, COUNT - 20)]
    ).double(),
    "rank-deficient": torch.cat([torch.linspace(2, 1, 10), torch.zeros(COUNT - 10)]).double(),
    "one far above": torch.cat([torch.tensor([1e3]), 1 / PLACES[:-1]]),
}
SHAPES = {"wide": (90, 400), "tall": (400, 90), "like 5120 to 13824": (320, 864)}


def of_spectrum(values, shape, seed=0):
    """U diag(values) Vᵀ in float32, with random singular vectors."""
    random = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(side, len(values), generator=random, dtype=torch.float64)).Q for side in shape
    )
    return (left * values @ right.T).float()


def check_against_the_optimum(found, matrix, values, rank):
    """What is written, what is reported, and the bound that goes with it; rounding to float32 is all that may be between."""
    size = float(values.norm())
    optimum, least = float(values[rank:].norm()), krylov.ROUNDING * size
    factors = found.at(rank, tuple(matrix.shape))
    error = float((matrix.double() - factors.up.double() @ factors.down.double()).norm())
    assert found.excess <= krylov.TOLERANCE
    assert error <= max((1 + found.excess) * optimum, least) + 1e-7 * size
    assert optimum - 1e-7 * size <= found.error <= max((1 + found.excess) * optimum, least) + 1e-7 * size


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_every_cut_is_certified_against_an_optimum_known_by_construction(spectrum, shape):
    values = SPECTRA[spectrum]
    matrix = of_spectrum(values, SHAPES[shape])
    for rank in (1, 16, 32):
        found = krylov.approximate(matrix, rank)
        assert found.energy == pytest.approx(float(values.square().sum()), rel=1e-6)
        for cut in range(rank, 0, -3):
            check_against_the_optimum(found.cut(cut), matrix, values, cut)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (9, 9)])
def test_matrices_smaller_than_a_block_are_found_whole(shape):
    values = 1 / PLACES[: min(shape)]
    matrix = of_spectrum(values, shape)
    for rank in range(1, len(values) + 1):
        check_against_the_optimum(krylov.approximate(matrix, rank), matrix, values, rank)


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e18, 1e30])
def test_squares_beyond_float32_are_not_lost(size):
    values = size / PLACES
    matrix = of_spectrum(values, (90, 120))
    check_against_the_optimum(krylov.approximate(matrix, 16), matrix, values, 16)


def test_one_huge_entry_does_not_hide_the_rest():
    matrix = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)) * 1e-3
    matrix[17, 200] = 100.0
    values = torch.linalg.svdvals(matrix.double())
    found = krylov.approximate(matrix, 16)
    for rank in (1, 4, 16):
        check_against_the_optimum(found.cut(rank), matrix, values, rank)


def test_what_was_not_trained_is_found_to_be_zero_at_once():
    def stop():
        raise AssertionError("multiplied")

    found = krylov.approximate(torch.zeros(600, 700), 16, stop)
    assert (found.energy, found.error, found.excess, found.steps) == (0, 0, 0, 0)
    assert torch.equal(found.at(4, (600, 700)).dense(), torch.zeros(600, 700)) and not found.values.any()
    assert found.cut(4).excess == 0 and len(found.cut(4).values) == 4


def test_without_factors_their_memory_is_free_and_the_numbers_stay():
    found = krylov.approximate(noisy(300, 500, 8), 16)
    bare = found.without_factors()
    assert not bare.complete and bare.bytes == 0
    assert (
        sum(tensor.untyped_storage().nbytes() for tensor in vars(bare).values() if isinstance(tensor, torch.Tensor))
        < 2000
    )
    assert (bare.cut(8).error, bare.cut(8).excess) == (found.cut(8).error, found.cut(8).excess)
    assert torch.equal(bare.cut(8).values, found.values[:8])


def test_the_bound_holds_for_clusters_whose_vectors_are_still_mixed():
    values = torch.cat([torch.linspace(1.001, 0.999, 20), torch.linspace(0.3, 0.1, 70)]).double()
    for seed in range(12):
        matrix = of_spectrum(values, (400, 100), seed)
        for rank in (1, 4):
            found = krylov.approximate(matrix, rank)
            for cut in range(1, rank + 1):
                check_against_the_optimum(found.cut(cut), matrix, values, cut)
