"""The other side of a pair is found by its name, and a twin for Wan2.2's other model is not taken for it."""

import pytest

from difflora.training.partners import is_more, partners


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("dense_scenes.safetensors", "sparse_scenes.safetensors"),
        ("cat_pos.safetensors", "cat_neg.safetensors"),
        ("CatPos.safetensors", "CatNeg.safetensors"),
        ("age-positive-v2.safetensors", "age-negative-v2.safetensors"),
        ("detail_more_rank16.safetensors", "detail_less_rank16.safetensors"),
        ("detail_high.safetensors", "detail_low.safetensors"),
        ("x\\dense.safetensors", "x/sparse.safetensors"),
        ("dense/run.safetensors", "sparse/run.safetensors"),
        ("run A.safetensors", "run B.safetensors"),
        ("dense_high_noise.safetensors", "sparse_high_noise.safetensors"),
        ("dense-step00000500.safetensors", "sparse-step00000500.safetensors"),
    ],
)
def test_the_other_side_is_found_from_either_side(name, other):
    names = [name, other, "unrelated.safetensors", "dense_of_something_else.safetensors"]
    assert partners(name, names) == [other]
    assert partners(other, names) == [name]
    assert is_more(name, other) is True and is_more(other, name) is False


def test_the_same_step_comes_before_others_and_the_same_folder_before_others():
    dense, sparse = (
        [f"{side}.safetensors", *(f"{side}-step{step:08d}.safetensors" for step in (500, 1000))]
        for side in ("dense", "sparse")
    )
    names = [*dense, *sparse, "old/sparse-step00000500.safetensors"]
    assert partners(dense[1], names)[:2] == [sparse[1], "old/sparse-step00000500.safetensors"]
    assert set(partners(dense[1], names)) == {*sparse, "old/sparse-step00000500.safetensors"}
    assert partners(dense[0], names)[0] == sparse[0]


def test_the_two_models_of_wan22_are_no_pair():
    high, low = "dense_high_noise.safetensors", "dense_low_noise.safetensors"
    assert partners(high, [high, low, "sparse_low_noise.safetensors"]) == []
    assert is_more(high, low) is None


def test_names_that_share_nothing_are_offered_to_nobody():
    assert partners("style.safetensors", ["style.safetensors", "other.safetensors", "", "ü.safetensors"]) == []
