"""The chain of nodes in ComfyUI's page: it runs, says what it did, and shows errors in the library's own words."""

import pytest

from tests import small_models
from tests.e2e.test_chain import chain

# Links by number, as the page does it.
IDS = {
    name: str(number)
    for number, name in enumerate(
        ("a", "b", "difference", "selected", "small", "model", "slider", "analyze", "save", "keep"), 1
    )
}

# The order of the widgets that a saved workflow relies on: it stores values by place. Never change it; add at the end.
WIDGETS = {
    "DiffLoraLoad": ["lora_name", "ignore_unknown"],
    "DiffLoraSubtract": ["weight_a", "weight_b", "unmatched"],
    "DiffLoraSelectBlocks": ["selection", "rest"],
    "DiffLoraRerank": ["rule", "rank", "energy", "ratio", "max_rank"],
    "DiffLoraAnalyze": ["rank", "show"],
    "DiffLoraSave": ["filename_prefix", "dtype", "dialect", "if_exists", "recommended_strength"],
    "DiffLoraSliderModel": ["strength", "apply"],
}


def prompt(**changes):
    graph = chain()
    graph["analyze"] = {
        "class_type": "DiffLoraAnalyze",
        "inputs": {"a": ["a", 0], "b": ["b", 0], "rank": 4, "show": "difference"},
    }
    graph["save"] = {
        "class_type": "DiffLoraSave",
        "inputs": {
            "lora": ["small", 0],
            "filename_prefix": "from_page",
            "dtype": "float32",
            "dialect": "native",
            "if_exists": "overwrite",
            "recommended_strength": "-2 to 3",
        },
    }
    graph["keep"] = {"class_type": "TestKeep", "inputs": {"value": ["slider", 0]}}
    for name, inputs in changes.items():
        graph[name]["inputs"] |= inputs
    return {
        IDS[name]: {
            "class_type": step["class_type"],
            "inputs": {
                key: [IDS[value[0]], value[1]] if isinstance(value, list) else value
                for key, value in step["inputs"].items()
            },
        }
        for name, step in graph.items()
    }


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_the_chain_runs_in_the_page(page, vue, tmp_path):
    page.set_renderer(False)
    page.load(prompt())
    page.set_renderer(vue)
    page.queue()
    page.fit()
    page.screenshot(tmp_path / "chain.png")
    text = page.page.locator("body").inner_text()
    for line in (
        "24 of 24 modules applied",
        "24 of 30 modules",
        "of the energy kept",
        "alpha 2",
        "from_page.safetensors",
    ):
        assert line in text, line
    sent = page.prompt()
    for number, step in prompt().items():
        assert step["inputs"].items() <= sent[number]["inputs"].items(), number


def test_workflows_that_are_saved_today_keep_their_values(page):
    """By place in the workflow's file, and by name in a prompt."""
    page.load(prompt())
    for node in page.workflow()["nodes"]:
        if node["type"] in WIDGETS:
            values = list(
                prompt()[str(node["id"])]["inputs"][name]
                for name in WIDGETS[node["type"]]
                if name in prompt()[str(node["id"])]["inputs"]
            )
            assert node["widgets_values"][: len(values)] == values, node["type"]


def test_inputs_outputs_and_the_node_itself_explain_themselves(comfy):
    for name in WIDGETS:
        info = comfy.object_info(name)
        assert len(info["description"]) > 40
        ports = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert [port for port in ports if port in WIDGETS[name]] == WIDGETS[name]
        for port, (_, options) in ports.items():
            assert options["tooltip"], (name, port)
        assert all(info["output_tooltips"]) and len(info["output_tooltips"]) == len(info["output"])


def test_an_error_is_shown_in_the_librarys_words(page, tmp_path):
    page.load(prompt(selected={"selection": "blocks 90"}))
    with pytest.raises(Exception, match="selects nothing"):
        page.queue()
    page.screenshot(tmp_path / "error.png")
    text = page.page.locator("body").inner_text()
    assert 'Selection "blocks 90" selects nothing. There is: blocks 0-2' in text
    page.page.keyboard.press("Escape")


def test_a_missing_file_is_named(page):
    page.load(prompt(a={"lora_name": "gone.safetensors"}))
    with pytest.raises(Exception, match="gone.safetensors"):
        page.queue()
    page.page.keyboard.press("Escape")
    page.errors.clear()  # newer frontends log that the prompt was refused
    assert small_models.SPARSE in str(page.prompt())
