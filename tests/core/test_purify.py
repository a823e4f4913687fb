"""Purified and independent sliders, against dense float64 projections worked out another way."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import difflora
from difflora import FixedRank
from difflora.cli import main
from difflora.errors import PairError, RankError
from difflora.rank.purify import independent, purify
from difflora.saving.recipes import SavedRecipe, find_in, from_recipe, told
from tests.lora_files import FFN, K, Q, factors, write

SHAPES = {Q: (24, 16), K: (24, 16), FFN: (40, 16)}


def lora(path, seed, rank=4, alpha=2.0, dtype=torch.float32, modules=SHAPES, extra=None):
    made = {
        name: factors(*shape, rank, alpha, seed + place, dtype) for place, (name, shape) in enumerate(modules.items())
    }
    return difflora.load(write(path, made, extra))


def full(of, name):
    return of[name].dense(torch.float64).numpy()


def without(slider, others, directions):
    """The same projection by dense SVDs: numpy, and a null-space instead of a product of factors."""
    strongest = [np.linalg.svd(other)[0][:, :directions] for other in others]
    inside, values, _ = np.linalg.svd(np.concatenate(strongest, axis=1), full_matrices=True)
    rank = int((values > 1e-9).sum())
    outside = inside[:, rank:]
    return outside @ (outside.T @ slider)


def off(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("directions", [1, 2, 4])
def test_a_purified_lora_is_the_dense_projection(tmp_path, dtype, directions):
    slider, other = (
        lora(tmp_path / "s.safetensors", 0, 4, dtype=dtype),
        lora(tmp_path / "o.safetensors", 9, 8, dtype=dtype),
    )
    pure = purify(slider, [other], directions)
    for name in SHAPES:
        assert off(full(pure, name), without(full(slider, name), [full(other, name)], directions)) < 1e-6
        assert pure.specs[name] == slider.specs[name]


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), noise=st.sampled_from([1.0, 1e-2, 1e-4]), several=st.integers(1, 4))
def test_it_holds_for_nearly_collinear_and_rank_deficient_loras(tmp_path_factory, seed, noise, several):
    folder = tmp_path_factory.mktemp("loras")
    up, down, _ = factors(24, 16, 4, None, seed)
    slider = difflora.load(write(folder / "s.safetensors", {Q: (up, down, None)}))
    others = []
    for number in range(several):
        more, rows, _ = factors(24, 16, 4, None, seed + 1 + number)
        near = torch.cat([up[:, :2] + noise * more[:, :2], more[:, 2:3], more[:, 2:3]], dim=1)  # two columns alike
        others.append(difflora.load(write(folder / f"{number}.safetensors", {Q: (near, rows, None)})))
    pure = purify(slider, others)
    expected = without(full(slider, Q), [full(other, Q) for other in others], 2)
    # What is left may be far smaller than the slider, and is as exact as the slider's own float32 factors.
    assert np.abs(full(pure, Q) - expected).max() < 1e-5 * np.abs(full(slider, Q)).max()


def test_pythagoras_holds_and_is_reported(tmp_path):
    slider, other = lora(tmp_path / "s.safetensors", 0), lora(tmp_path / "o.safetensors", 9)
    pure = purify(slider, [other])
    for name, removed in pure.removed.items():
        before, after = (np.square(full(one, name)).sum() for one in (slider, pure))
        assert removed.before == pytest.approx(before, rel=1e-6)
        assert removed.gone == pytest.approx(before - after, rel=1e-5)
        assert removed.share == pytest.approx(1 - after / before, rel=1e-5)


def test_a_purified_difference_can_be_cut_and_what_is_left_does_not_touch_the_directions(tmp_path):
    a, b, other = (lora(tmp_path / f"{name}.safetensors", seed) for name, seed in (("a", 0), ("b", 40), ("o", 9)))
    pure = purify(difflora.subtract(a, b).select("attn"), [other])
    small = difflora.rerank(pure, FixedRank(3))
    for name in (Q, K):
        left, values, right = np.linalg.svd(without(full(a, name) - full(b, name), [full(other, name)], 2))
        assert off(full(small, name), (left[:, :3] * values[:3]) @ right[:3]) < 1e-5
        strongest = np.linalg.svd(full(other, name))[0][:, :2]
        assert np.abs(strongest.T @ full(small, name)).max() < 1e-5 * np.abs(full(small, name)).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-4])
def test_a_re_ranked_difference_of_two_that_are_nearly_alike_is_as_exact_as_without_purifying(tmp_path, noise, dtype):
    up, down, _ = factors(24, 16, 4, None, 1)
    more, rows, _ = factors(24, 16, 4, None, 2)
    a = difflora.load(write(tmp_path / "a.safetensors", {Q: (up.to(dtype), down.to(dtype), None)}))
    near = (up + noise * more).to(dtype), (down + noise * rows).to(dtype), None
    b = difflora.load(write(tmp_path / "b.safetensors", {Q: near}))
    other = lora(tmp_path / "o.safetensors", 9, modules={Q: SHAPES[Q]})
    small = difflora.rerank(purify(difflora.subtract(a, b), [other]), FixedRank(3))
    values = np.linalg.svd(without(full(a, Q) - full(b, Q), [full(other, Q)], 2))[1]
    found = small.spectrum(Q).numpy()
    assert np.abs(found - values[: len(found)]).max() < 1e-6 * values[0]


@pytest.mark.parametrize("left", [1e-2, 1e-5])
def test_little_that_is_left_is_exact_too(tmp_path, left):
    up, down, _ = factors(24, 16, 2, None, 1)
    more, rows, _ = factors(24, 16, 2, None, 2)
    other = difflora.load(write(tmp_path / "o.safetensors", {Q: (up, down, None)}))
    both = torch.cat([up, left * more], dim=1), torch.cat([down, rows]), None
    pure = purify(difflora.load(write(tmp_path / "s.safetensors", {Q: both})), [other])
    expected = without(full(pure.of, Q), [full(other, Q)], 2)
    assert off(full(difflora.rerank(pure, FixedRank(2)), Q), expected) < 1e-6
    gone = np.square(full(pure.of, Q)).sum() - np.square(expected).sum()
    assert pure.removed[Q].gone == pytest.approx(gone, rel=1e-6)
    assert pure.removed[Q].before - pure.removed[Q].gone == pytest.approx(np.square(expected).sum(), rel=1e-5)


def test_modules_of_one_side_only_stay_and_are_not_counted(tmp_path):
    slider = lora(tmp_path / "s.safetensors", 0)
    other = lora(tmp_path / "o.safetensors", 9, modules={Q: SHAPES[Q]})
    pure = purify(slider, [other])
    assert pure.touched == (Q,)
    assert torch.equal(pure[FFN].up, slider[FFN].up) and torch.equal(pure[FFN].down, slider[FFN].down)
    assert set(pure.removed) == {Q}


@pytest.mark.parametrize("full_side", ["slider", "other"])
def test_a_side_that_is_stored_in_full(tmp_path, full_side):
    whole = {f"diffusion_model.{Q}.diff": 0.1 * torch.randn(640, 600, generator=torch.Generator().manual_seed(3))}
    factored = difflora.load(write(tmp_path / "f.safetensors", {Q: factors(640, 600, 4)}))
    stored = difflora.load(write(tmp_path / "w.safetensors", {}, whole))
    slider, other = (stored, factored) if full_side == "slider" else (factored, stored)
    pure = purify(slider, [other])
    assert off(full(pure, Q), without(full(slider, Q), [full(other, Q)], 2)) < (1e-5 if full_side == "slider" else 2e-2)
    assert 0 < pure.share < 0.5


def test_a_saved_file_is_made_again_bit_for_bit(tmp_path):
    slider, other = lora(tmp_path / "s.safetensors", 0), lora(tmp_path / "o.safetensors", 9)
    first = difflora.save(purify(slider, [other]), tmp_path / "p.safetensors")
    recipe = SavedRecipe.of_file(first).of
    again = difflora.save(from_recipe(recipe, find_in(tmp_path)), tmp_path / "again.safetensors")
    one, two = difflora.load(first), difflora.load(again)
    for name in SHAPES:
        assert torch.equal(one[name].up, two[name].up) and torch.equal(one[name].down, two[name].down)
    assert told(recipe) == "(s.safetensors) without 2 directions of o.safetensors"


def test_bits_do_not_depend_on_threads(tmp_path):
    slider, other = lora(tmp_path / "s.safetensors", 0), lora(tmp_path / "o.safetensors", 9)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append({name: delta.up for name, delta in purify(slider, [other]).stream(list(SHAPES))})
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in SHAPES)


def test_much_gone_and_the_same_start_are_said(tmp_path):
    up, down, _ = factors(40, 32, 4, None, 1)
    more, rows, _ = factors(40, 32, 4, None, 2)
    slider = difflora.load(write(tmp_path / "s.safetensors", {Q: (up, down, None)}))
    alike = difflora.load(write(tmp_path / "alike.safetensors", {Q: (up + 0.1 * more, down + 0.01 * rows, None)}))
    apart = difflora.load(write(tmp_path / "apart.safetensors", {Q: (more, rows, None)}))
    assert [line.template[:40] for line in purify(slider, [apart], 1).conclusions] == []
    said = " ".join(purify(slider, [alike], 3).conclusions)
    assert "mean much the same" in said and "same initial factors" in said and "alike.safetensors" in said


@pytest.mark.parametrize(("directions", "error"), [(0, RankError), (True, RankError), (1.5, RankError)])
def test_directions_that_are_no_number_of_directions(tmp_path, directions, error):
    with pytest.raises(error, match="whole number of at least 1"):
        purify(lora(tmp_path / "s.safetensors", 0), [lora(tmp_path / "o.safetensors", 9)], directions)


def test_what_cannot_be_purified_is_refused(tmp_path):
    slider, other = lora(tmp_path / "s.safetensors", 0), lora(tmp_path / "o.safetensors", 9)
    with pytest.raises(PairError, match="the slider and what is to be removed are the same"):
        purify(slider, [slider])
    copy = lora(tmp_path / "copy.safetensors", 0)
    with pytest.raises(PairError, match="the slider and what is to be removed are the same"):
        purify(slider, [other, copy])
    with pytest.raises(PairError, match="1 to 4"):
        purify(slider, [other] * 5)
    with pytest.raises(PairError, match="24 outputs .* 40"):
        purify(slider, [lora(tmp_path / "w.safetensors", 5, modules={Q: (40, 16)})])
    with pytest.raises(PairError, match="no module in common"):
        purify(slider, [lora(tmp_path / "n.safetensors", 5, modules={"blocks.7.self_attn.o": (24, 16)})])
    with pytest.raises(PairError, match="nothing is left"):
        purify(slider, [slider.scaled(2.0)], 4).measure()


def test_independent_sliders_keep_their_norm_and_leave_each_others_directions(tmp_path):
    sliders = [lora(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 20, 40)]
    made = independent(sliders)
    assert made[0] is sliders[0]
    for place, (one, before) in enumerate(zip(made, sliders, strict=True)):
        norms = [np.sqrt(sum(np.square(full(of, name)).sum() for name in SHAPES)) for of in (one, before)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        for earlier in made[:place]:
            for name in SHAPES:
                strongest = np.linalg.svd(full(earlier, name))[0][:, :2]
                assert np.abs(strongest.T @ full(one, name)).max() < 1e-5 * np.abs(full(one, name)).max()
    with pytest.raises(PairError, match="2 to 4 sliders"):
        independent(sliders[:1])


def test_the_command_line_writes_the_same_and_reports_what_went(tmp_path, capsys):
    slider, other = lora(tmp_path / "s.safetensors", 0), lora(tmp_path / "o.safetensors", 9, modules={Q: SHAPES[Q]})
    out = tmp_path / "pure.safetensors"
    words = ["purify", str(slider.path), "--against", str(other.path), "--directions", "1", "-o", str(out), "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    pure = purify(slider, [other], 1)
    assert report["share_gone"] == pytest.approx(pure.share) and report["untouched"] == 2
    assert torch.equal(difflora.load(out)[Q].up, pure[Q].up)
    assert main(words[:-1]) == 2 and "--overwrite" in capsys.readouterr().err
    assert main(["purify", str(slider.path), "--against", str(slider.path), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "the slider and what is to be removed are the same" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
