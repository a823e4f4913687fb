"""The selection language: every worked case of tests/data/selection.json, and properties that hold for all texts."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difflora.errors import SelectionError
from difflora.lora.patterns import Pattern
from difflora.lora.selection import Selection, stack_of, summary
from scripts import family_tables
from tests.model_names import DATA, names_of


def numbers(text: str) -> list[int]:
    ends = [part.split("-") for part in text.split(",")]
    return [n for low, *high in ends for n in range(int(low), int((high or [low])[0]) + 1)]


def expand(groups: list) -> dict[str, float]:
    weights = {}
    for group in groups:
        if len(group) == 2:
            weights[group[0]] = group[1]
        else:
            stack, blocks, modules, weight = group
            weights |= {f"{stack}.{n}.{module}": weight for n in numbers(blocks) for module in modules}
    return weights


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["why"])
def test_worked_case(case):
    names = names_of(case["names"])
    if "error" in case:
        with pytest.raises(SelectionError) as caught:
            Selection.parse(case["text"]).weights(names)
        for piece in case["error"]:
            assert piece in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    selection = Selection.parse(case["text"])
    if "count" in case:
        assert list(selection.weights(names).values()) == [1] * case["count"]
        assert len(set(names)) == len(names) and not selection.unmatched(names)
        return
    if "all" in case:
        expected = dict.fromkeys(names, case["all"])
    else:
        expected = case["weights"] if "weights" in case else expand(case["groups"])
    weights = selection.weights(names)
    assert weights == expected
    assert list(weights) == [name for name in names if name in weights]
    assert selection.unmatched(names) == case.get("unmatched", [])


@pytest.mark.parametrize("case", DATA["round_trips"], ids=lambda case: case["text"])
def test_text_of_the_block_grid_means_what_was_painted(case):
    names = names_of(case["names"])
    painted = {}
    for paint in case["paint"]:
        if len(paint) == 4 and paint[2] == "*":
            painted |= {
                n: paint[3] for n in names if n.split(".")[0] == paint[0] and int(n.split(".")[1]) in numbers(paint[1])
            }
        else:
            painted |= expand([paint])
    painted = {name: weight for name, weight in painted.items() if weight}
    if painted:
        assert Selection.parse(case["text"]).weights(names) == painted
    else:
        with pytest.raises(SelectionError):
            Selection.parse(case["text"]).weights(names)


TERMS = st.sampled_from(
    ["attn", "ffn", "q", "cross_attn", "ffn.0", "blocks 0-1", "blocks 1 2", "*.k_img", "/blocks\\.[02]/", "head"]
)
FACTORS = st.lists(TERMS, min_size=1, max_size=3).map("|".join)
TINY = names_of("tiny")


def chosen(text: str) -> dict[str, float]:
    try:
        return Selection.parse(text).weights(TINY)
    except SelectionError as error:
        assert "selects nothing" in str(error)
        return {}


@given(FACTORS, FACTORS)
def test_and_or_not_are_set_operations(a, b):
    sets = [set(chosen(text)) for text in (a, b, f"{a} & {b}", f"{a}, {b}", f"{a}, !{b}", f"!{a}", f"{a} & !{b}")]
    left, right, both, either, without, inverse, narrowed = sets
    assert both == left & right
    assert either == left | right
    assert without == narrowed == left - right
    assert inverse == set(TINY) - left


@given(FACTORS, FACTORS, st.floats(-10, 10).filter(bool), st.floats(-10, 10).filter(bool))
def test_the_last_weight_wins_and_is_read_to_the_last_bit(a, b, first, second):
    weights = chosen(f"{a}={first!r}, {b}={second!r}")
    for name in TINY:
        expected = second if name in chosen(b) else first if name in chosen(a) else None
        assert weights.get(name) == expected


@given(st.text(alphabet="abqk019 ,!&|=*?/\\().[]{}-+^$\n", max_size=40))
def test_any_text_is_either_read_or_refused_in_one_line(text):
    try:
        Selection.parse(text).weights(TINY)
    except SelectionError as error:
        assert "\n" not in str(error)


PIECES = st.sampled_from(
    [
        "a",
        "b",
        ".",
        "[ab]",
        "[^a]",
        "\\w",
        "\\.",
        "(a|b)",
        "(?:ab)*",
        "a+",
        "b?",
        "(a*)*",
        "a{1,2}",
        "^",
        "$",
        "\\b",
        "(|a)",
    ]
)


@given(st.lists(PIECES, max_size=5).map("".join), st.text(alphabet="ab.-", max_size=8))
def test_patterns_match_what_pythons_own_matcher_matches(source, text):
    assert Pattern(source).found_in(text) == bool(re.search(source, text, re.ASCII))


def test_hostile_pattern_takes_no_longer_than_a_harmless_one():
    name = "blocks.0." + "a" * 200
    start = time.perf_counter()
    assert Selection.parse("/(a+)+(a+)+(a|a)*!/, blocks").weights([name]) == {name: 1.0}
    assert time.perf_counter() - start < 2


def test_summary_is_short_for_a_file_with_thousands_of_modules():
    assert len(summary(f"part{n}.x{n}" for n in range(5000))) < 300
    assert len(summary(f"blocks.{n}.m{n}.w" for n in range(5000))) < 300


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        ("blocks.7.ffn.0", ("blocks", 7, "ffn.0")),
        ("double_blocks.3.img_attn.qkv.bias", ("double_blocks", 3, "img_attn.qkv.bias")),
        ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", ("input_blocks.4.1.transformer_blocks", 0, "attn1.to_q")),
        ("input_blocks.4.1.proj_in", ("input_blocks.4", 1, "proj_in")),
        ("input_blocks.4.0.in_layers.2.bias", ("input_blocks.4", 0, "in_layers.2.bias")),
        ("middle_block.0.in_layers.2", ("middle_block", 0, "in_layers.2")),
        ("mid_block.attentions.0.proj_in", ("mid_block.attentions", 0, "proj_in")),
        ("txt_in.individual_token_refiner.blocks.1.mlp.0", ("txt_in.individual_token_refiner.blocks", 1, "mlp.0")),
        ("layers.2.attention.qkv", ("layers", 2, "attention.qkv")),
        ("head.head", None),
        ("text_embedding.0", None),
        ("blocks.7", None),
    ],
)
def test_the_stack_of_a_name_is_the_innermost(name, stack):
    assert stack_of(name) == stack


def test_a_stack_and_number_select_its_block_and_nothing_else():
    for model in ("sdxl-own", "sdxl-diffusers", "hunyuan-comfyui", "qwen-image"):
        names = names_of(model)
        for stack, block, _ in {at[:2]: at for at in map(stack_of, names) if at}.values():
            inside = f"{stack}.{block}."
            assert list(Selection.parse(f"{stack} {block}").weights(names)) == [
                n for n in names if n.startswith(inside)
            ]


def test_equal_texts_are_equal_selections():
    assert Selection.parse("attn & q") == Selection.parse("attn & q")
    assert Selection.parse("attn") != Selection.parse("ffn")


MANY = [f"blocks.{n}.self_attn.q" for n in range(400)]
LONG = ["x" * 20_000, "a." * 10_000 + "q"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("q," * 49_000, MANY),
        ("blocks " + "0 " * 49_000, MANY),
        ('"x",' * 24_000, MANY),
        ("a 1,b 2," * 12_000, LONG),
        ("/(x?){100}x*y/", LONG),
        (",".join(["/(x?){30}[a-c]z/"] * 20), LONG),
        (",".join(["*?*?*?*?*?*?*?y"] * 20), LONG),
    ],
    ids=range(7),
)
def test_a_selection_has_a_budget_of_work(text, names):
    """Where the bound is does not depend on the machine: the work is counted."""
    selection = Selection.parse(text)
    for question in (selection.weights, selection.unmatched):
        began = time.process_time()
        with pytest.raises(SelectionError, match="take too long"):
            question(names)
        assert time.process_time() - began < 30
    assert selection._work.left < 0


def test_what_people_write_is_far_below_the_budget():
    text = ", ".join(["all", *(f'!"{name}"' for name in MANY)]) + ", " + ",".join(["*.self_attn.?"] * 20)
    assert len(Selection.parse(text).weights(MANY)) == 400


def test_the_page_has_the_same_families():
    assert family_tables.TARGET.read_text("utf-8") == family_tables.text(), "run: python -m scripts.family_tables"
