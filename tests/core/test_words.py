"""Trigger words as trainers write them into a file, and what is no such list."""

import json

import pytest

from difflora.training.words import LONGEST, MOST, trained_words


def test_what_somebody_wrote_comes_before_what_was_counted():
    tags = {"a": {"cat": 3}}
    assert trained_words({"ss_tag_frequency": json.dumps(tags), "modelspec.trigger_phrase": "ohwx, style "}) == [
        "ohwx",
        "style",
    ]


def test_tags_of_all_data_sets_are_counted_and_the_frequent_come_first():
    tags = {"10_a": {"dog": 2, " cat": 2, "x" * (LONGEST + 1): 99}, "5_b": {"cat": 3, "sky": 1, "no": "many"}}
    assert trained_words({"ss_tag_frequency": json.dumps(tags)}) == ["cat", "dog", "sky"]
    many = {"a": {f"tag{number}": number for number in range(1, 50)}}
    assert trained_words({"ss_tag_frequency": json.dumps(many)}) == [f"tag{49 - at}" for at in range(MOST)]


@pytest.mark.parametrize(
    "text", ["", "null", "[1]", '{"a": [1]}', '{"a": {"b": null}}', "{", "[" * 100_000, '{"a": {"b": 1e999}}']
)
def test_what_is_no_list_of_tags_gives_none(text):
    assert trained_words({"ss_tag_frequency": text}) == []
