"""Words for the search, given to the ComfyUI that has room for them and to no other."""

import dataclasses
import sys
import types

import pytest

from tests.pack_modules import pack_module


def words(monkeypatch, *names):
    """What `found_by` gives for a Schema with these fields."""
    schema = dataclasses.make_dataclass("Schema", [(name, object, None) for name in names])
    api = types.ModuleType("comfy_api.v0_0_2")
    api.io = types.SimpleNamespace(Schema=schema)
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.v0_0_2", api)
    monkeypatch.delitem(sys.modules, "pack.nodes.common.search", raising=False)
    module = pack_module("nodes.common.search")
    monkeypatch.delitem(sys.modules, "pack.nodes.common.search")
    return schema, module.found_by("subtract", "merge lora")


def test_a_schema_that_knows_aliases_gets_them_with_the_name_of_the_pack(monkeypatch):
    schema, found = words(monkeypatch, "node_id", "search_aliases")
    assert schema(node_id="x", **found).search_aliases == ["differential lora", "subtract", "merge lora"]


def test_an_older_schema_gets_nothing_it_would_fail_on(monkeypatch):
    schema, found = words(monkeypatch, "node_id")
    assert schema(node_id="x", **found) == schema(node_id="x")


# What people type, and a node that it leads to.
WANTED = {
    "differential": None,
    "difference": "DiffLoraSubtract",
    "merge lora": "DiffLoraSubtract",
    "svd": "DiffLoraRerank",
    "resize": "DiffLoraRerank",
    "xy plot": "DiffLoraSweepGrid",
    "slider": "DiffLoraSliderModel",
    "strength": "DiffLoraStrengthSweep",
    "compare": "DiffLoraABCompare",
    "train": "DiffLoraTrainingRecipe",
    "train lora": "DiffLoraTrainSlider",
    "latents": "DiffLoraEncodePairs",
    "keyframes": "DiffLoraSliderMap",
}


def found_for(word, info):
    """As the page's search does it at least: the word in the id, the name, or an alias.

    A node without aliases has null there on ComfyUI 0.33 and nothing at all on 0.3.75.
    """
    texts = {name: [name, node["display_name"], *(node.get("search_aliases") or [])] for name, node in info.items()}
    return {name for name, said in texts.items() if any(word in text.lower() for text in said)}


@pytest.mark.parametrize("word", WANTED)
def test_a_search_by_this_word_finds_the_node(word, comfy):
    info = {name: node for name, node in comfy.object_info().items() if name.startswith("DiffLora")}
    if not any("search_aliases" in node for node in info.values()):
        pytest.skip("this ComfyUI has no search_aliases")
    shown = {name for name, node in info.items() if not node.get("deprecated")}
    assert found_for(word, info) >= ({WANTED[word]} if WANTED[word] else shown)
