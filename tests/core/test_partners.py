"""The other side of a pair is found by its name, and a twin for Wan2.2's other model is not taken for it."""

import pytest

from difflora.training.partners import Half, half_of, is_more, partners


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


HALVES = [
    ("cat_high.safetensors", "cat_low.safetensors"),
    ("cat_high_noise.safetensors", "cat_low_noise.safetensors"),
    ("Cat-HighNoise-v2.safetensors", "Cat-LowNoise-v2.safetensors"),
    ("wan22_highnoise_a.safetensors", "Wan22_LowNoise_a.safetensors"),
    ("high_noise/cat.safetensors", "low_noise/cat.safetensors"),
    ("wan\\high\\cat_high.safetensors", "wan/low/cat_low.safetensors"),
    ("NSFW-22-H-e8.safetensors", "NSFW-22-L-e8.safetensors"),
    ("I2V_HN.safetensors", "I2V_LN.safetensors"),
    ("high_detail_high_noise.safetensors", "high_detail_low_noise.safetensors"),
    ("年齢_high.safetensors", "年齢_low.safetensors"),
]


@pytest.mark.parametrize(("high", "low"), HALVES)
def test_each_half_of_a_wan22_lora_finds_the_other(high, low):
    names = [high, low, "unrelated.safetensors", f"old/{low}", low.replace(".safetensors", "-step00000500.safetensors")]
    assert half_of(high, names) == Half("high", low)
    assert half_of(low, names) == Half("low", high)


def test_a_half_without_its_twin_says_which_it_is():
    assert half_of("cat_high.safetensors", ["cat_high.safetensors", "dog_low.safetensors"]) == Half("high", None)


@pytest.mark.parametrize(
    "name", ["cat.safetensors", "model_l.safetensors", "high_to_low.safetensors", "highway.safetensors"]
)
def test_other_names_are_for_both_models(name):
    assert half_of(name, [name, "cat_low.safetensors"]) is None


def test_of_two_spellings_the_more_alike_is_the_twin():
    names = ["Cat_high.safetensors", "cat-LOW.safetensors", "Cat_low.safetensors"]
    assert half_of(names[0], names) == Half("high", "Cat_low.safetensors")


def test_the_twin_comes_after_the_other_side_of_the_pair():
    names = [f"{side}_{noise}.safetensors" for side in ("dense", "sparse") for noise in ("high", "low")]
    assert partners("dense_high.safetensors", names)[0] == "sparse_high.safetensors"
