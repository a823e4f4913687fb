"""The approximation of full matrices: its certificate against dense decompositions."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import difflora
from difflora import krylov


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
    size, rank, width = 40, 5, 9
    values = torch.rand(size, generator=random, dtype=torch.float64) ** (3 + seed % 4)
    vectors = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64)).Q
    matrix = vectors * values @ vectors.T
    basis = torch.randn(size, width, generator=random, dtype=torch.float64)
    tight = 0
    for _ in range(30):
        basis = torch.linalg.qr(matrix @ basis).Q
        found, inner = torch.linalg.eigh(basis.T @ matrix @ basis)
        found, left = found.flip(0)[: rank + 1], (basis @ inner).flip(1)[:, : rank + 1]
        residuals = torch.linalg.vector_norm(matrix @ left - left * found, dim=0)
        outside = torch.eye(size, dtype=torch.float64) - left[:, :rank] @ left[:, :rank].T
        if torch.linalg.eigvalsh(outside @ matrix @ outside)[-1] > found[rank] + residuals[rank]:
            continue  # the next one found is not the next one: what the certificate takes for granted
        more = float(values.sort(descending=True).values[:rank].sum() - found[:rank].sum())
        bound = krylov._may_be_more(found, residuals, rank)
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
        error = float((matrix - found.left * found.values @ found.right).norm())
        assert error == pytest.approx(float(values[rank:].norm()), rel=1e-3)


def test_a_certificate_is_that_of_the_rank_that_is_used():
    matrix = noisy(300, 500, 8)
    values = torch.linalg.svdvals(matrix.double())
    found = krylov.approximate(matrix, 12)
    for rank in (2, 8):
        cut = found.cut(rank)
        assert cut.error == pytest.approx(float(values[rank:].norm()), rel=1e-6) and cut.excess <= krylov.TOLERANCE
        assert cut.left.shape == (300, rank) and cut.right.shape == (rank, 500)


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
