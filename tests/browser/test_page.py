"""The ground that the browser tests stand on: the page opens, in both renderers, and a graph goes in and out."""

import json

import pytest

from tests import small_models


def sampling():
    return {
        "1": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": small_models.WAN, "weight_dtype": "default"},
        },
        "2": {"class_type": "TestConditioning", "inputs": {"seed": 1, "length": 64}},
        "3": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 64, "height": 64, "length": 1, "batch_size": 1},
        },
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 1,
                "steps": 2,
                "cfg": 1,
                "sampler_name": "uni_pc",
                "scheduler": "simple",
                "denoise": 1,
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
            },
        },
        "5": {"class_type": "TestHash", "inputs": {"value": ["4", 0]}},
    }


def essence(prompt):
    return {
        node: {
            "class_type": value["class_type"],
            # "Control after generate" of a seed and the like belong to the page alone.
            "inputs": {name: value["inputs"][name] for name in sampling()[node]["inputs"]},
        }
        for node, value in prompt.items()
    }


def test_page_opens_without_an_error(shared_page):
    assert shared_page.errors_at_start == []
    assert shared_page.run("() => Object.keys(LiteGraph.registered_node_types).includes('KSampler')")


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_graph_goes_round_trip_and_runs(page, vue):
    page.set_renderer(False)
    page.load(sampling())
    page.set_renderer(vue)
    assert essence(page.prompt()) == sampling()

    workflow = page.workflow()
    page.clear()
    page.load(workflow)
    assert essence(page.prompt()) == sampling()

    page.set_value("4", "seed", 3 + vue)
    result = page.queue()
    assert json.loads(result.output("5")["text"][0])["finite"]
    assert page.prompt()["4"]["inputs"]["seed"] != 1
