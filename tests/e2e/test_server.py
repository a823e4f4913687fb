"""The ground that all end-to-end tests stand on: ComfyUI starts with the pack in it, and samples a small Wan."""

import json
import re

import pytest

from tests import small_models
from tests.comfy_server import Interrupted, NodeFailed, PromptRejected


def sampling(steps=2, seed=1, frames=9):
    """Two steps of the small native Wan, in API format, as far as the pictures' hash."""
    return {
        "model": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": small_models.WAN, "weight_dtype": "default"},
        },
        "text": {"class_type": "TestConditioning", "inputs": {"seed": 1, "length": 64}},
        "empty": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 128, "height": 128, "length": frames, "batch_size": 1},
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["text", 0],
                "negative": ["text", 0],
                "latent_image": ["empty", 0],
                "seed": seed,
                "steps": steps,
                "cfg": 1.0,
                "sampler_name": "uni_pc",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": small_models.VAE}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
        "hash": {"class_type": "TestHash", "inputs": {"value": ["decode", 0]}},
    }


def hashed(result):
    return json.loads(result.output("hash")["text"][0])


def test_pack_loads_without_a_word_of_complaint(comfy):
    # Of the packs only: ComfyUI's own sound nodes complain where there is no torchaudio.
    started = comfy.log.partition("To see the GUI")[0]  # what other tests provoke comes after it
    complaints = [line for line in started.splitlines() if re.search(r"custom_nodes", line)]
    assert not [line for line in complaints if re.search(r"IMPORT FAILED|Cannot import|Error|Warning", line)]
    assert "comfy_entrypoint" not in comfy.log
    assert "differential-lora" in comfy.log


def test_every_node_of_the_pack_is_listed(comfy):
    source = (comfy.base / "custom_nodes/differential-lora/nodes").rglob("*.py")
    written = {name for file in source for name in re.findall(r'node_id="(DiffLora\w+)"', file.read_text("utf-8"))}
    listed = {name for name, info in comfy.object_info().items() if name.startswith("DiffLora")}
    assert listed == written


def test_small_wan_samples_and_repeats_itself(comfy):
    first = comfy.run(sampling())
    facts = hashed(first)
    assert facts["shape"] == [9, 128, 128, 3] and facts["finite"]
    assert first.executed[-1] == "hash"

    other = comfy.run(sampling(seed=2))
    assert hashed(other)["sha256"] != facts["sha256"]
    # Only what depends on the seed runs again.
    assert other.executed == ["sample", "decode", "hash"] and "model" in other.cached

    comfy.forget()
    again = comfy.run(sampling())
    assert "model" in again.executed
    assert hashed(again) == facts


def test_picture_loras_dense_and_sparse_reach_every_linear_layer(comfy):
    """ComfyUI's own loader, as a check on the small LoRA files that other tests build on."""
    prompt = {
        "model": {"class_type": "UNETLoader", "inputs": {"unet_name": small_models.WAN, "weight_dtype": "default"}},
        "lora": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["model", 0], "lora_name": small_models.DENSE, "strength_model": 1.0},
        },
        "with": {"class_type": "TestSaveWeights", "inputs": {"model": ["lora", 0], "name": "with"}},
        "without": {"class_type": "TestSaveWeights", "inputs": {"model": ["model", 0], "name": "without"}},
    }
    before = len(comfy.log)  # other tests have the same server
    comfy.run(prompt)
    from safetensors.torch import load_file

    changed, base = (load_file(comfy.base / f"output/{name}.safetensors") for name in ("with", "without"))
    layers = [name for name, _ in small_models.linear_layers(comfy.models("diffusion_models") / small_models.WAN)]
    differing = [name for name in layers if not changed[f"{name}.weight"].equal(base[f"{name}.weight"])]
    assert differing == [name for name in layers if name.startswith("blocks.")]
    assert "lora key not loaded" not in comfy.log[before:]


def test_errors_come_with_comfyuis_own_words(comfy):
    prompt = sampling()
    prompt["sample"]["inputs"]["cfg"] = "much"
    with pytest.raises(PromptRejected, match=r"node sample \(KSampler\).*cfg"):
        comfy.run(prompt)
    prompt = sampling()
    prompt["text"]["inputs"]["length"] = 1
    prompt["decode"]["inputs"]["samples"] = ["odd", 0]
    prompt["odd"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1},
    }
    with pytest.raises(NodeFailed) as failure:
        comfy.run(prompt)
    assert failure.value.node_id == "decode"


def test_interrupt_ends_a_prompt_that_runs(comfy):
    prompt_id = comfy.queue(sampling(steps=500))
    comfy.wait_for_node(prompt_id, "sample")
    comfy.interrupt()
    with pytest.raises(Interrupted):
        comfy.wait(prompt_id, timeout=60)
    assert comfy.running() == []
