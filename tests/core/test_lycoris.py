"""LoHa, LoKr, Tucker cores and full differences: the same change as the definition, and exact to subtract."""

import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import difflora
from difflora import Energy, FixedRank, Knee, Ratio
from difflora.errors import TensorError
from difflora.lora.deltas import Dense, LowRank, tensors_of
from difflora.rank.krylov import approximate_product

OUT, IN, RANK = 48, 36, 3
random = np.random.default_rng(0)


def loha(shape=(OUT, IN), rank=RANK, alpha=2.0):
    o, i = shape
    w1a, w1b, w2a, w2b = (random.standard_normal(s) for s in ((o, rank), (rank, i), (o, rank), (rank, i)))
    parts = {"hada_w1_a": w1a, "hada_w1_b": w1b, "hada_w2_a": w2a, "hada_w2_b": w2b, "alpha": np.array(alpha)}
    return parts, alpha / rank * (w1a @ w1b) * (w2a @ w2b)


def lokr(full_1=True, full_2=False, alpha=2.0, p=4, q=6):
    m, n = OUT // p, IN // q
    parts = {"alpha": np.array(alpha)}
    if full_1:
        parts["lokr_w1"] = w1 = random.standard_normal((p, q))
    else:
        parts["lokr_w1_a"], parts["lokr_w1_b"] = random.standard_normal((p, RANK)), random.standard_normal((RANK, q))
        w1 = parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if full_2:
        parts["lokr_w2"] = w2 = random.standard_normal((m, n))
    else:
        parts["lokr_w2_a"], parts["lokr_w2_b"] = random.standard_normal((m, RANK)), random.standard_normal((RANK, n))
        w2 = parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    return parts, (1 if full_1 and full_2 else alpha / RANK) * np.kron(w1, w2)


def lora(alpha=2.0, shape=(OUT, IN)):
    up, down = random.standard_normal((shape[0], RANK)), random.standard_normal((RANK, shape[1]))
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": np.array(alpha)}, alpha / RANK * up @ down


def full(shape=(OUT, IN)):
    value = random.standard_normal(shape)
    return {"diff": value}, value


KINDS = {
    "lora": lora,
    "loha": loha,
    "lokr factored": lambda: lokr(False, False),
    "lokr w1 full": lokr,
    "lokr w2 full": lambda: lokr(False, True),
    "lokr full": lambda: lokr(True, True),
    "full difference": full,
}


def write(path, parts, module="diffusion_model.blocks.0.self_attn.q"):
    save_file({f"{module}.{name}": torch.from_numpy(np.asarray(value)).float() for name, value in parts.items()}, path)
    return difflora.load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_as_its_definition(tmp_path, kind):
    parts, truth = KINDS[kind]()
    delta = write(tmp_path / "a.safetensors", parts)["blocks.0.self_attn.q"]
    assert isinstance(delta, LowRank)
    assert np.abs(delta.dense(torch.float64).numpy() - truth).max() < 1e-6 * np.abs(truth).max()


@pytest.mark.parametrize("a", KINDS)
@pytest.mark.parametrize("b", ["lora", "loha", "lokr w1 full"])
def test_any_two_kinds_subtract_exactly(tmp_path, a, b):
    parts_a, truth_a = KINDS[a]()
    parts_b, truth_b = KINDS[b]()
    difference = difflora.subtract(
        write(tmp_path / "a.safetensors", parts_a), write(tmp_path / "b.safetensors", parts_b)
    )
    truth = truth_a - truth_b
    left, values, right = np.linalg.svd(truth)
    small = difflora.rerank(difference, FixedRank(4))
    got = small["blocks.0.self_attn.q"].dense(torch.float64).numpy()
    assert np.abs(got - (left[:, :4] * values[:4]) @ right[:4]).max() < 1e-5 * values[0]
    spectrum = small.spectrum("blocks.0.self_attn.q").numpy()
    assert np.abs(spectrum - values[: len(spectrum)]).max() < 1e-6 * values[0]


@pytest.mark.parametrize("kernel", [(1, 2, 2), (3, 3)])
def test_convolutions(tmp_path, kernel):
    o, i, r = 20, 6, 3
    k = math.prod(kernel)
    up, mid, down = (random.standard_normal(s) for s in ((o, r), (r, r, *kernel), (r, i)))
    ones = (1,) * len(kernel)
    t1, t2 = random.standard_normal((r, r, *kernel)), random.standard_normal((r, r, *kernel))
    a1, b1, a2, b2 = (random.standard_normal(s) for s in ((r, o), (r, i), (r, o), (r, i)))
    plain = random.standard_normal((r, i, *kernel))
    w1, w2 = random.standard_normal((4, 2)), random.standard_normal((5, 3, *kernel))
    tucker = lambda t, a, b: np.einsum("ij...,ip,jr->pr...", t, a, b)  # noqa: E731
    cases = {
        "plain": (
            {"lora_up.weight": up.reshape(o, r, *ones), "lora_down.weight": plain},
            np.einsum("or,ri...->oi...", up, plain),
        ),
        "mid": (
            {
                "lora_up.weight": up.reshape(o, r, *ones),
                "lora_mid.weight": mid,
                "lora_down.weight": down.reshape(r, i, *ones),
                "alpha": np.array(6.0),
            },
            2.0 * np.einsum("oa,ab...,bi->oi...", up, mid, down),
        ),
        "loha tucker": (
            {"hada_t1": t1, "hada_w1_a": a1, "hada_w1_b": b1, "hada_t2": t2, "hada_w2_a": a2, "hada_w2_b": b2},
            tucker(t1, a1, b1) * tucker(t2, a2, b2),
        ),
        "lokr": ({"lokr_w1": w1, "lokr_w2": w2}, np.kron(w1.reshape(4, 2, *ones), w2)),
        "full": ({"diff": np.ones((o, i, *kernel)) * 0.5}, np.ones((o, i, *kernel)) * 0.5),
    }
    for name, (parts, truth) in cases.items():
        lora_file = write(tmp_path / f"{name}.safetensors", parts, "diffusion_model.patch_embedding")
        assert lora_file.specs["patch_embedding"].shape == (o, i, *kernel), name
        delta = lora_file["patch_embedding"]
        assert delta.rank <= min(o, i * k)
        assert np.abs(delta.dense(torch.float64).numpy() - truth).max() < 1e-6 * np.abs(truth).max(), name
        difflora.save(lora_file, tmp_path / "again.safetensors", overwrite=True)
        again = difflora.load(tmp_path / "again.safetensors")["patch_embedding"]
        assert again.shape == truth.shape
        assert np.abs(again.dense(torch.float64).numpy() - truth).max() < 1e-5 * np.abs(truth).max(), name


def falling(size, rank=40):
    """A full matrix with a known spectrum."""
    q = [np.linalg.qr(random.standard_normal((size, size)))[0] for _ in range(2)]
    values = np.concatenate([np.geomspace(1, 0.05, rank), np.full(size - rank, 0.01)])
    return (q[0] * values) @ q[1], values


def test_a_large_full_difference_comes_within_a_thousandth_of_the_optimum(tmp_path):
    matrix, values = falling(640)
    parts_b, truth_b = lora(shape=(640, 640))
    difference = difflora.subtract(
        write(tmp_path / "a.safetensors", {"diff": matrix}), write(tmp_path / "b.safetensors", parts_b), weight_b=0.0
    )
    assert isinstance(difference["blocks.0.self_attn.q"], Dense)
    for rank in (1, 8, 40):
        small = difflora.rerank(difference, FixedRank(rank))
        got = small["blocks.0.self_attn.q"].dense(torch.float64).numpy()
        optimum = np.linalg.norm(values[rank:])
        certificate = small.certificates["blocks.0.self_attn.q"]
        missed = np.linalg.norm(matrix - got)
        assert missed <= 1.001 * optimum
        assert certificate.error == pytest.approx(missed, rel=1e-4)
        assert missed <= optimum * (1 + certificate.excess) * (1 + 1e-5) and certificate.excess <= 1e-3
        assert small.retained_energy == pytest.approx(1 - missed**2 / np.linalg.norm(matrix) ** 2, rel=1e-5)


def test_rank_rules_on_a_full_difference(tmp_path):
    matrix, values = falling(640)
    lora_file = write(tmp_path / "a.safetensors", {"diff": matrix})
    energy = np.cumsum(values**2) / np.sum(values**2)
    name = "blocks.0.self_attn.q"
    assert difflora.rerank(lora_file, Energy(0.9)).specs[name].rank == int(np.argmax(energy >= 0.9)) + 1
    assert difflora.rerank(lora_file, Ratio(3)).specs[name].rank == int((values > values[0] / 3).sum())
    assert difflora.rerank(lora_file, Energy(0.999), max_rank=20).specs[name].rank == 20


Q = "blocks.0.self_attn.q"


@pytest.fixture
def approximations(monkeypatch):
    """The ranks at which matrices were approximated, in order."""
    module, ranks = sys.modules["difflora.rank.factorisation"], []
    real = module.approximate
    monkeypatch.setattr(
        module, "approximate", lambda matrix, rank, tick: ranks.append(rank) or real(matrix, rank, tick)
    )
    return ranks


@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("rule", [FixedRank(4), FixedRank(20), Energy(0.97)])
def test_a_result_does_not_depend_on_what_was_asked_before(tmp_path, monkeypatch, rule, budget):
    monkeypatch.setattr(sys.modules["difflora.rank.factorisation"], "DENSE_BUDGET", budget)
    lora_file = write(tmp_path / "a.safetensors", {"diff": falling(640)[0]})
    for other in (FixedRank(40), Energy(0.999), FixedRank(1), Knee()):
        _ = difflora.rerank(lora_file, other)[Q]
    later, first = difflora.rerank(lora_file, rule), difflora.rerank(difflora.load(lora_file.path), rule)
    assert torch.equal(later[Q].up, first[Q].up) and torch.equal(later[Q].down, first[Q].down)
    assert (
        torch.equal(later.spectrum(Q), first.spectrum(Q))
        and later.certificates[Q].excess == first.certificates[Q].excess
    )


def test_a_smaller_rank_is_the_beginning_of_a_larger_one(tmp_path, approximations):
    lora_file = write(tmp_path / "a.safetensors", {"diff": falling(640)[0]})
    four, sixteen = (difflora.rerank(lora_file, FixedRank(rank))[Q] for rank in (4, 16))
    assert torch.equal(four.up, sixteen.up[:, :4]) and torch.equal(four.down, sixteen.down[:4])
    assert approximations == [16]


@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize(
    ("rule", "made"),
    [(FixedRank(4), [16]), (FixedRank(20), [32]), (Energy(0.5), [16]), (Energy(0.97), [16, 32]), (Ratio(8), [16, 32])],
)
def test_full_matrices_are_worked_out_once_and_once_more_only_for_factors_beyond_the_budget(
    tmp_path, monkeypatch, approximations, rule, made, budget
):
    monkeypatch.setattr(sys.modules["difflora.rank.factorisation"], "DENSE_BUDGET", budget)
    small = difflora.rerank(write(tmp_path / "a.safetensors", {"diff": falling(640)[0]}), rule)
    difflora.save(small, tmp_path / "small.safetensors")
    again = [] if budget or isinstance(rule, FixedRank) else made[-1:]
    assert approximations == made + again
    _ = (
        small.retained_energy,
        small.certificates,
        small.total_energy(Q),
        small.spectrum(Q),
        small.rank_text,
        small.recipe,
    )
    _ = difflora.rerank(small.of, FixedRank(16)).certificates
    assert approximations == made + again + [16] * (16 not in made)


def test_full_differences_are_saved_as_they_are_or_at_a_rank(tmp_path):
    matrix, _ = falling(640)
    lora_file = write(tmp_path / "a.safetensors", {"diff": matrix})
    difflora.save(lora_file, tmp_path / "same.safetensors")
    again = difflora.load(tmp_path / "same.safetensors")
    assert torch.equal(again["blocks.0.self_attn.q"].dense(), torch.from_numpy(matrix).float())
    with pytest.raises(difflora.DiffLoraError, match="stored in full"):
        difflora.save(lora_file, tmp_path / "peft.safetensors", dialect="peft")
    difflora.save(difflora.rerank(lora_file, FixedRank(5)), tmp_path / "small.safetensors", dialect="peft")
    assert difflora.load(tmp_path / "small.safetensors").specs["blocks.0.self_attn.q"].rank == 5


def test_a_full_difference_can_be_cancelled(tmp_path):
    lora_file = write(tmp_path / "a.safetensors", {"diff": falling(640)[0]})
    calls = []

    def cancel(done, total):
        calls.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        difflora.save(difflora.rerank(lora_file, FixedRank(4)), tmp_path / "x.safetensors", progress=cancel)
    assert calls == [0] and not list(tmp_path.glob("*x*"))


@pytest.mark.parametrize(
    "parts",
    [
        {"hada_w1_a": (8, 2), "hada_w1_b": (3, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
        {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8)},
        {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 4)},
        {"lokr_w2": (4, 4)},
        {"lora_up.weight": (8, 2), "lora_mid.weight": (2, 3, 1, 1), "lora_down.weight": (2, 8)},
        {"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "hada_w1_a": (8, 2)},
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, parts):
    with pytest.raises(TensorError, match="do not fit together"):
        write(tmp_path / "a.safetensors", {name: np.ones(shape) for name, shape in parts.items()})


def test_analysis_of_a_full_difference_and_a_lora(tmp_path):
    matrix, _ = falling(640)
    parts, truth = lora(shape=(640, 640))
    found = difflora.analyze(
        write(tmp_path / "a.safetensors", {"diff": matrix}), write(tmp_path / "b.safetensors", parts)
    )
    numbers = found.modules["blocks.0.self_attn.q"]
    norms = [np.linalg.norm(x) for x in (matrix, truth, matrix - truth)]
    assert [numbers.norm_a, numbers.norm_b, numbers.norm] == pytest.approx(norms, rel=1e-5)
    assert numbers.cosine == pytest.approx((matrix * truth).sum() / norms[0] / norms[1], abs=1e-6)
    values = np.linalg.svd(matrix - truth, compute_uv=False)
    assert numbers.energy(4) == pytest.approx((values[:4] ** 2).sum() / norms[2] ** 2, rel=1e-5)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation made, and the multiplications of all matrix products."""

    def __init__(self):
        super().__init__()
        self.bytes = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.bytes = max(self.bytes, made.numel() * made.element_size())
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
                self.products += made.numel() * args[0].shape[-1]
        return made


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": (64, 64), "lokr_w2": (80, 80)},
        {"lokr_w1_a": (64, 60), "lokr_w1_b": (60, 64), "lokr_w2": (80, 80)},
        {"lokr_w1": (64, 64), "lokr_w2_a": (80, 70), "lokr_w2_b": (70, 80)},
    ],
    ids=["full", "left", "right"],
)
def test_an_honest_lokr_takes_the_memory_and_work_of_its_weight(parts, tmp_path):
    """Factor -1 at 5120 x 5120: a file of 80 kB that stands for 105 MB."""
    random = torch.Generator().manual_seed(1)
    stored = {name: torch.randn(*shape, generator=random) for name, shape in parts.items()}
    save_file(
        {f"lora_unet_blocks_0_self_attn_q.{name}": value for name, value in stored.items()}, tmp_path / "a.safetensors"
    )
    lora = difflora.load(tmp_path / "a.safetensors")
    with Largest() as largest:
        delta = lora["blocks.0.self_attn.q"]
    assert largest.bytes < 1_000_000 and largest.products < 5120 * 5120
    assert sum(tensor.nbytes for tensor in tensors_of(delta)) < 500_000, (
        "what a slider keeps of it is as small as the file"
    )
    with Largest() as largest:
        approximate_product(delta.fulls[0][0], 1.0, 16)
    assert largest.bytes < 5120 * 5120, "its own singular triples take no memory of the weight's size"
    left = stored["lokr_w1"] if "lokr_w1" in stored else stored["lokr_w1_a"].double() @ stored["lokr_w1_b"].double()
    right = stored["lokr_w2"] if "lokr_w2" in stored else stored["lokr_w2_a"].double() @ stored["lokr_w2_b"].double()
    torch.testing.assert_close(delta.dense(), torch.kron(left.double(), right.double()).float())


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": (24, 24), "lokr_w2": (25, 25)},
        {"lokr_w1": (20, 30), "lokr_w2": (31, 22)},
        {"lokr_w1": (30, 20), "lokr_w2": (20, 40)},
        {"lokr_w1_a": (24, 20), "lokr_w1_b": (20, 24), "lokr_w2_a": (25, 22), "lokr_w2_b": (22, 25)},
        {"lokr_w1": (24, 24), "lokr_w2": (25, 25, 3, 3)},
        {"lokr_w1": (24, 24), "lokr_t2": (22, 22, 3, 3), "lokr_w2_a": (22, 25), "lokr_w2_b": (22, 25)},
    ],
    ids=["square", "wide and tall", "tall and wide", "factored", "kernel", "core"],
)
def test_the_triples_of_a_kronecker_product_are_those_of_the_dense_matrix(parts, scale, tmp_path):
    """numpy's SVD of the matrix multiplied out in float64 is the truth; the product itself is never formed."""
    random = torch.Generator().manual_seed(3)
    stored = {name: torch.randn(*shape, generator=random, dtype=torch.float64) for name, shape in parts.items()}
    left = stored["lokr_w1"] if "lokr_w1" in stored else stored["lokr_w1_a"] @ stored["lokr_w1_b"]
    if "lokr_t2" in stored:
        right = torch.einsum("ijkl,ip,jr->prkl", stored["lokr_t2"], stored["lokr_w2_a"], stored["lokr_w2_b"])
    else:
        right = stored["lokr_w2"] if "lokr_w2" in stored else stored["lokr_w2_a"] @ stored["lokr_w2_b"]
    truth = scale * np.kron(left.numpy(), right.flatten(1).numpy())
    save_file(
        {f"lora_unet_blocks_0_self_attn_q.{name}": value for name, value in stored.items()}, tmp_path / "a.safetensors"
    )
    lora = difflora.load(tmp_path / "a.safetensors")
    name = "blocks.0.self_attn.q"
    truth *= lora.scales[name]
    lora = lora if scale == 1.0 else lora.scaled(scale)
    assert isinstance(lora[name], Dense)
    assert np.allclose(lora[name].dense(torch.float64).flatten(1), truth, rtol=0, atol=1e-12 * abs(truth).max())
    u, values, v = np.linalg.svd(truth, full_matrices=False)
    for rank in (1, 7, 40):
        small = difflora.rerank(lora, difflora.FixedRank(rank))
        found = small.certificates[name]
        assert found.energy == pytest.approx((values**2).sum(), rel=1e-12)
        assert small.spectrum(name)[:rank].numpy() == pytest.approx(values[:rank], rel=1e-9)
        assert found.error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-9)
        assert found.excess < 1e-9
        best = (u[:, :rank] * values[:rank]) @ v[:rank]
        got = small[name].dense(torch.float64).flatten(1).numpy()
        assert np.linalg.norm(got - truth) <= (1 + 1e-9) * np.linalg.norm(best - truth) + 1e-6 * values[0]


def test_a_difference_of_two_kronecker_products_is_that_of_the_dense_matrices(tmp_path):
    sides, dense = [], []
    for seed in (1, 2):
        random = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(24, 24, generator=random), torch.randn(25, 25, generator=random))
        path = tmp_path / f"{seed}.safetensors"
        prefix = "lora_unet_blocks_0_self_attn_q"
        save_file({f"{prefix}.lokr_w1": left, f"{prefix}.lokr_w2": right}, path)
        sides.append(difflora.load(path))
        dense.append(np.kron(left.double().numpy(), right.double().numpy()))
    small = difflora.rerank(difflora.subtract(*sides), difflora.FixedRank(8))
    values = np.linalg.svd(dense[0] - dense[1], compute_uv=False)
    assert small.spectrum("blocks.0.self_attn.q")[:8].numpy() == pytest.approx(values[:8], rel=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": (214, 214), "lokr_w2": (215, 215)},
        {"lokr_w1": (1000, 30), "lokr_w2": (1000, 30)},
        {"lokr_w1_a": (300, 1), "lokr_w1_b": (1, 300), "lokr_w2_a": (100, 1), "lokr_w2_b": (1, 100)},
        {"hada_w1_a": (30000, 1), "hada_w1_b": (1, 30000), "hada_w2_a": (30000, 1), "hada_w2_b": (1, 30000)},
        {"lokr_w1": (80, 80), "lokr_w2": (8, 8, 50, 50)},
    ],
    ids=range(5),
)
def test_a_small_file_that_claims_a_weight_of_no_model_is_refused_from_its_header(parts, tmp_path):
    save_file(
        {f"lora_unet_blocks_0_self_attn_q.{name}": torch.zeros(shape) for name, shape in parts.items()},
        tmp_path / "a.safetensors",
    )
    with Largest() as largest, pytest.raises(TensorError, match="no model has such a large one"):
        difflora.load(tmp_path / "a.safetensors")
    assert largest.bytes < 1000
