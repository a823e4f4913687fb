"""One cache of deltas: what a re-rank or a slider has read, selections and files are made of."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

import difflora
from difflora.errors import TensorError
from difflora.lora import cache
from difflora.lora.deltas import Delta
from difflora.lora.lora import Lora
from tests.lora_files import write_pair


@pytest.fixture
def small(tmp_path: Path) -> Lora:
    a, b = write_pair(tmp_path)
    return difflora.rerank(difflora.subtract(difflora.load(a), difflora.load(b)), difflora.FixedRank(2))


def without_files(tmp_path: Path) -> None:
    for file in tmp_path.glob("*.safetensors"):
        file.rename(file.with_suffix(".gone"))


def with_files(tmp_path: Path) -> None:
    for file in tmp_path.glob("*.gone"):
        file.rename(file.with_suffix(".safetensors"))


def test_a_file_of_what_is_in_memory_is_the_same_bit_for_bit(small: Lora, tmp_path: Path) -> None:
    before = difflora.save(
        small, tmp_path / "before.safetensors", metadata={"modelspec.date": "now", "modelspec.title": "a"}
    )
    done = []
    assert list(cache.deltas_of(small, lambda *numbers: done.append(numbers))) == list(small.names)
    assert done[-1] == (len(small), len(small))
    reads = []
    small.factorisation.lora.read = lambda modules: reads.append(modules)  # type: ignore[attr-defined]
    after = difflora.save(
        small, tmp_path / "after.safetensors", metadata={"modelspec.date": "now", "modelspec.title": "a"}
    )
    assert before.read_bytes() == after.read_bytes()
    assert not reads


def test_selections_and_sums_are_made_of_what_is_in_memory(small: Lora, tmp_path: Path) -> None:
    chosen, scaled = small.select("attn=0.5"), small.scaled(-3)
    expected = {name: delta.dense() for name, delta in chosen.items()} | {
        f"{name} scaled": delta.dense() for name, delta in scaled.items()
    }
    cache.deltas_of(small)
    without_files(tmp_path)
    found = {name: delta.dense() for name, delta in chosen.items()} | {
        f"{name} scaled": delta.dense() for name, delta in scaled.items()
    }
    with_files(tmp_path)
    assert found.keys() == expected.keys()
    for name, delta in found.items():
        assert torch.equal(delta, expected[name])


def test_a_cancelled_reading_keeps_nothing(small: Lora) -> None:
    def cancel(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.deltas_of(small, cancel)
    assert cache.kept(small) is None
    assert cache.deltas_of(small) is cache.kept(small)


def test_what_is_in_memory_goes_with_its_lora(small: Lora) -> None:
    import weakref

    delta: Delta = next(iter(cache.deltas_of(small.scaled(2)).values()))
    gone = weakref.ref(delta)
    del delta
    gc.collect()
    assert gone() is None


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from tests.lora_files import factors, write

    up, down, alpha = factors(8, 6, 2)
    up[0, 0] = float("nan")
    lora = difflora.load(write(tmp_path / "a.safetensors", {"blocks.0.self_attn.q": (up, down, alpha)}))
    with pytest.raises(TensorError, match="holds NaN values"):
        cache.deltas_of(lora)
    assert cache.kept(lora) is None
