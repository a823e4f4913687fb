"""The demo's drawn scenes count true, and its training can be stopped and resumed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("PIL", reason="the demo draws with Pillow")
pytest.importorskip("scipy", reason="the demo counts with scipy")
sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))

import scenes  # noqa: E402
import train  # noqa: E402


def test_counting_finds_the_number_of_things_that_was_drawn() -> None:
    errors = []
    for seed in range(40):
        scene = scenes.random_scene(seed)
        picture, mask = scenes.draw(scene)
        found = scenes.thing_pixels(picture)
        errors.append(abs(scenes.count_things(found) - len(scene.things)))
        assert np.mean(found == mask) > 0.95
        assert scenes.background_class(picture, found) == scene.background
    assert max(errors) <= 1 and np.mean(errors) < 0.1


def test_a_scene_depends_on_its_seed_alone() -> None:
    first, again, other = (scenes.draw(scenes.random_scene(seed))[0] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fewer_things_change_nothing_else() -> None:
    scene = scenes.random_scene(11, count=scenes.MOST)
    many, mask = scenes.draw(scene)
    few, _ = scenes.draw(scene.with_first(2))
    changed = np.any(many != few, axis=-1)
    assert changed.any()
    # Outlines are blended with what is behind them, so a pixel beside a thing may change too.
    padded = np.pad(mask, 1)
    near = np.any([padded[y : y + scenes.SIZE, x : x + scenes.SIZE] for y, x in np.ndindex(3, 3)], axis=0)
    assert not np.any(changed & ~near)


def _fit(work: Path, steps: int, stop_at: int | None = None) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    target = torch.randn(4, 6)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 6, generator=generator)
        return (model(x) - x @ target.T).square().mean()

    optimizer = train.Muon(list(model.parameters()), 0.02, 0.01)
    train.fit("toy", work, model, optimizer, steps, train.warm_up_then_cosine, loss_of, ema=0.9)
    return model.weight.detach()


def test_a_resumed_training_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole = _fit(tmp_path / "a", 520)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "b", 520, stop_at=510)
    assert torch.equal(_fit(tmp_path / "b", 520), whole)


def test_newton_schulz_makes_singular_values_about_one() -> None:
    for shape in ((40, 12), (12, 40), (16, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        made = train.orthogonal(matrix[None])[0]
        singular = torch.linalg.svdvals(made)
        assert singular.min() > 0.3 and singular.max() < 1.3
        assert torch.nn.functional.cosine_similarity(made.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_lion_moves_by_the_rate_and_not_at_all_without_gradient() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    lion = train.Lion([weight], 0.1)
    weight.grad = torch.tensor([5.0, -0.001, 0.0])
    lion.step()
    assert torch.allclose(weight.detach(), torch.tensor([0.9, 1.1, 1.0]))
