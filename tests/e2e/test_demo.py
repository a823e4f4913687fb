"""The demo workflow as it is shipped, with the models that come with the pack: no file copied, nothing swapped."""

import pytest

from tests.e2e.test_workflows import filled
from tests.example_workflows import DEMO

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


def test_the_demo_runs_and_its_slider_slides(comfy):
    prompt = filled(DEMO.prompt(), comfy.object_info())
    prompt["monotonicity"] = {"class_type": "TestShow", "inputs": {"value": ["response", 3]}}
    result = comfy.run(prompt)
    assert result.output("save")["images"]
    # Spearman's rank correlation of strength and density of edges, over seven strengths.
    assert float(result.output("monotonicity")["text"][0]) >= 0.9


def test_the_demo_models_are_offered_once_and_by_flat_names(comfy):
    info = comfy.object_info()
    lists = {
        "UNETLoader": ("unet_name", "difflora_demo_wan.safetensors"),
        "VAELoader": ("vae_name", "difflora_demo_vae.safetensors"),
        "LoraLoaderModelOnly": ("lora_name", "difflora_demo_dense.safetensors"),
    }
    for node, (name, file) in lists.items():
        options = info[node]["input"]["required"][name][0]
        assert [option for option in options if option == file] == [file]
        others = {other for _, other in lists.values()} - {file}
        assert not others & set(options)
