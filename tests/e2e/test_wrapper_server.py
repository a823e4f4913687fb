"""The ground that the WanVideoWrapper tests stand on: the real one loads, samples a small Wan, and takes a LoRA."""

import json

from tests import small_models


def sampling(strength=None, steps=2):
    """Two steps of the wrapper's own nodes on the small model; with a strength, the dense LoRA on the fly."""
    prompt = {
        "model": {
            "class_type": "WanVideoModelLoader",
            "inputs": {
                "model": small_models.WAN_WRAPPER,
                "base_precision": "fp32",
                "quantization": "disabled",
                "load_device": "main_device",
                "attention_mode": "sdpa",
            },
        },
        "text": {"class_type": "TestConditioning", "inputs": {"seed": 1, "length": 64}},
        "embeds": {
            "class_type": "WanVideoTextEmbedBridge",
            "inputs": {"positive": ["text", 0], "negative": ["text", 0]},
        },
        "empty": {"class_type": "WanVideoEmptyEmbeds", "inputs": {"width": 128, "height": 128, "num_frames": 9}},
        "sample": {
            "class_type": "WanVideoSampler",
            "inputs": {
                "model": ["model", 0],
                "image_embeds": ["empty", 0],
                "text_embeds": ["embeds", 0],
                "steps": steps,
                "cfg": 1.0,
                "shift": 5.0,
                "seed": 1,
                "force_offload": False,
                "scheduler": "unipc",
                "riflex_freq_index": 0,
            },
        },
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": small_models.VAE}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
        "hash": {"class_type": "TestHash", "inputs": {"value": ["decode", 0]}},
    }
    if strength is not None:
        prompt["sample"]["inputs"]["model"] = ["set", 0]
        prompt["set"] = {"class_type": "WanVideoSetLoRAs", "inputs": {"model": ["model", 0], "lora": ["lora", 0]}}
        prompt["lora"] = {
            "class_type": "WanVideoLoraSelect",
            "inputs": {"lora": small_models.WRAPPER_DENSE, "strength": strength, "merge_loras": False},
        }
    return prompt


def hashed(result):
    return json.loads(result.output("hash")["text"][0])


def test_wrapper_samples_the_small_wan_and_hears_a_lora(wrapper, comfy):
    plain = hashed(comfy.run(sampling()))
    assert plain["finite"] and plain["shape"] == [9, 128, 128, 3]
    runs = [comfy.run(sampling(strength)) for strength in (2.0, -2.0, 2.0)]
    more, less, again = map(hashed, runs)
    assert len({facts["sha256"] for facts in (plain, more, less)}) == 3
    assert more == again
    # Sampled anew, with the model loaded once.
    assert all("sample" in run.executed and "model" in run.cached for run in runs)
