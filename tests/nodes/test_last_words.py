"""What nodes said is found again under what they were given, and under nothing else; and it is bounded. Runs without ComfyUI."""

import copy

import pytest

from tests.pack_modules import pack_module

LastWords = pack_module("nodes.common.last_words").LastWords


def graph():
    return {
        "1": {"class_type": "Load", "inputs": {"name": "a"}, "is_changed": ["12 bytes"]},
        "2": {"class_type": "Load", "inputs": {"name": "b"}},
        "3": {"class_type": "Subtract", "inputs": {"a": ["1", 0], "b": ["2", 0], "ends": ["x", 3]}},
    }


@pytest.fixture
def words():
    words = LastWords()
    words.watch("first", graph())
    words.keep("first", "3", {"report": "said"})
    return words


def ask(words, prompt, node="3", had=""):
    words.watch("second", prompt)
    return words.find("second", {node: had})


def test_the_same_graph_in_another_prompt_and_under_other_ids_finds_it(words):
    assert ask(words, graph()) == {"3": {"report": "said"}}
    other = graph()
    other = {"7:1": other["1"], "7:2": other["2"], "9": other["3"]}
    other["9"]["inputs"] |= {"a": ["7:1", 0], "b": ["7:2", 0]}
    assert ask(words, other, "9") == {"9": {"report": "said"}}


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph["1"]["inputs"].update(name="b"),
        lambda graph: graph["1"].update(is_changed=["13 bytes"]),
        lambda graph: graph["3"].update(class_type="Add"),
        lambda graph: graph["3"]["inputs"].update(a=["1", 1]),
        lambda graph: graph["3"]["inputs"].update(a=["2", 0], b=["1", 0]),
        lambda graph: graph["3"]["inputs"].update(ends=["x", 4]),
        lambda graph: graph.pop("1"),
    ],
    ids=["value before", "file replaced", "class", "output", "swapped", "value that looks like a link", "node gone"],
)
def test_whatever_is_given_otherwise_finds_nothing(words, change):
    other = copy.deepcopy(graph())
    change(other)
    assert ask(words, other) == {}


def test_what_the_page_has_is_not_sent_again(words):
    key = words.keep("first", "3", {"report": "said"})
    assert ask(words, graph(), had=key) == {}
    assert ask(words, graph(), had="another") == {"3": {"report": "said"}}


def test_unknown_prompts_and_nodes_find_nothing(words):
    assert words.find("never", {"3": ""}) == {}
    assert ask(words, graph(), "77") == {}
    assert words.keep("first", "3.0.0.5", {}) == ""


def test_the_latest_messages_are_kept_within_the_room_there_is():
    words = LastWords(messages=3, values=10)
    words.watch("run", {str(n): {"class_type": str(n), "inputs": {}} for n in range(6)})

    def known():
        return sorted(words.find("run", dict.fromkeys(map(str, range(6)), "")))

    for n in range(4):
        words.keep("run", str(n), {"value": n})
    assert known() == ["1", "2", "3"]
    words.keep("run", "4", {"values": [{"a": 1}] * 9})
    assert known() == ["3", "4"]
    words.keep("run", "5", {"values": list(range(99))})
    assert known() == ["5"], "one that is larger than the room is there all the same"


def test_a_graph_as_deep_as_graphs_get_is_no_recursion():
    prompt = {str(n): {"class_type": "Next", "inputs": {"before": [str(n - 1), 0]}} for n in range(5000)}
    words = LastWords()
    words.watch("deep", prompt)
    assert words.keep("deep", "4999", {"report": 1})
    assert words.find("deep", {"4999": ""})
