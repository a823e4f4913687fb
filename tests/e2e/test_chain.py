"""Load → Subtract → Select → Re-rank → Slider on a real server: the weights that the sampler sees are the right ones."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import small_models
from tests.comfy_server import NodeFailed
from tests.e2e.test_server import sampling

RANK = 4


def chain(strength=2.0, rank=RANK, selection="attn", apply="patch", model=small_models.WAN, a=small_models.DENSE):
    return {
        "a": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": a}},
        "b": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": small_models.SPARSE}},
        "difference": {
            "class_type": "DiffLoraSubtract",
            "inputs": {"a": ["a", 0], "b": ["b", 0], "weight_a": 1.0, "weight_b": 1.0, "unmatched": "keep"},
        },
        "selected": {
            "class_type": "DiffLoraSelectBlocks",
            "inputs": {"lora": ["difference", 0], "selection": selection, "rest": "leave out"},
        },
        "small": {
            "class_type": "DiffLoraRerank",
            "inputs": {
                "lora": ["selected", 0],
                "rule": "rank",
                "rank": rank,
                "energy": 0.9,
                "ratio": 10.0,
                "max_rank": 64,
            },
        },
        "model": {"class_type": "UNETLoader", "inputs": {"unet_name": model, "weight_dtype": "default"}},
        "slider": {
            "class_type": "DiffLoraSliderModel",
            "inputs": {"model": ["model", 0], "lora": ["small", 0], "strength": strength, "apply": apply},
        },
    }


def difference(models, module):
    """The dense difference of the test pair, from the files, computed another way."""
    total = 0
    for sign, name in ((1, small_models.DENSE), (-1, small_models.SPARSE)):
        tensors = load_file(models / "loras" / name)
        flat = "lora_unet_" + module.replace(".", "_")
        up, down = (tensors[f"{flat}.lora_{side}.weight"].double().numpy() for side in ("up", "down"))
        total = total + sign * float(tensors[f"{flat}.alpha"]) / down.shape[0] * up @ down
    return total


def best(matrix, rank):
    u, s, v = np.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@pytest.fixture
def weights(comfy):
    def read(prompt, source="slider"):
        prompt = prompt | {
            "save": {"class_type": "TestSaveWeights", "inputs": {"model": [source, 0], "name": "weights"}}
        }
        result = comfy.run(prompt)
        return load_file(comfy.base / "output" / "weights.safetensors"), result

    return read


def message(result, node):
    raw = result.output(node)["difflora"][0]
    return json.loads(raw) if isinstance(raw, str) else raw


@pytest.mark.parametrize("apply", ["patch", "bypass"])
def test_weights_are_base_plus_strength_times_the_best_approximation(models, weights, apply):
    base, _ = weights(chain(strength=0.0))
    changed, result = weights(chain(strength=2.0, apply=apply))
    checked = 0
    for key, before in base.items():
        module = key.removesuffix(".weight").removesuffix(".stored")
        if key.endswith(".stored") if apply == "bypass" else "attn" not in module:
            assert torch.equal(changed[key], before), key
        elif "attn" in module:
            truth = before.double().numpy() + 2.0 * best(difference(models, module), RANK)
            assert np.abs(changed[key].double().numpy() - truth).max() < 2e-6 * np.abs(truth).max()
            assert not torch.equal(changed[key], before)
            checked += 1
    assert checked == 3 * 8 * (2 if apply == "patch" else 1)  # as stored, and as the layer computes
    assert any(line["text"].startswith("24 of 24") for line in message(result, "slider")["report"]["lines"])


def test_two_chains_share_one_selection_one_rank_and_one_strength(models, weights):
    """As for the two models of Wan2.2. The second pair is the first one the other way round."""
    shared = {
        ("selected", "selection"): ("PrimitiveString", "cross_attn"),
        ("small", "rank"): ("PrimitiveInt", 2),
        ("slider", "strength"): ("PrimitiveFloat", 2.0),
    }
    prompt = {name: {"class_type": kind, "inputs": {"value": value}} for (_, name), (kind, value) in shared.items()}
    for noise in ("high", "low"):
        for name, node in chain().items():
            inputs = {
                key: [f"{noise} {value[0]}", *value[1:]] if isinstance(value, list) else value
                for key, value in node["inputs"].items()
            }
            inputs |= {key: [key, 0] for owner, key in shared if owner == name}
            prompt[f"{noise} {name}"] = {**node, "inputs": inputs}
    difference_of_low = prompt["low difference"]["inputs"]
    difference_of_low["a"], difference_of_low["b"] = difference_of_low["b"], difference_of_low["a"]

    base, _ = weights({"model": chain()["model"]}, source="model")
    high, _ = weights(prompt, source="high slider")
    low, _ = weights(prompt, source="low slider")
    for key, before in base.items():
        change = 0.0
        module = key.removesuffix(".weight").removesuffix(".stored")
        if "cross_attn" in module:
            change = 2.0 * best(difference(models, module), 2)
            assert np.abs(change).max() > 0
        for after, sign in ((high, 1), (low, -1)):
            truth = before.double().numpy() + sign * change
            assert np.abs(after[key].double().numpy() - truth).max() <= 2e-6 * np.abs(truth).max(), key


def test_strength_zero_is_the_base_model_bit_for_bit(weights):
    zero, _ = weights(chain(strength=0.0))
    untouched, _ = weights({"model": chain()["model"]}, source="model")
    assert zero.keys() == untouched.keys()
    assert all(torch.equal(zero[key], untouched[key]) for key in zero)


def test_changing_the_strength_runs_only_the_slider(comfy, weights):
    weights(chain(strength=1.25))
    _, result = weights(chain(strength=-1.25))
    assert result.executed == ["slider", "save"]


def test_changing_the_rank_keeps_everything_before_it(comfy, weights):
    weights(chain(rank=2))
    _, result = weights(chain(rank=3))
    assert result.executed == ["small", "slider", "save"]


def test_a_saved_slider_gives_the_same_weights(comfy, models, weights):
    direct, _ = weights(chain(strength=-1.5))
    saved = {
        "save_lora": {
            "class_type": "DiffLoraSave",
            "inputs": {
                "lora": ["small", 0],
                "filename_prefix": "test_saved",
                "dtype": "float32",
                "dialect": "native",
                "if_exists": "overwrite",
                "recommended_strength": "-2 to 2.5",
            },
        }
    }
    comfy.run(chain() | saved)
    assert (
        "test_saved.safetensors" in comfy.object_info()["DiffLoraLoad"]["input"]["required"]["lora_name"][1]["options"]
    )
    core = {
        "model": chain()["model"],
        "slider": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["model", 0], "lora_name": "test_saved.safetensors", "strength_model": -1.5},
        },
    }
    through_core, _ = weights(core)
    assert all(torch.equal(direct[key], through_core[key]) for key in direct)
    ours = chain(a="test_saved.safetensors", strength=-1.5)
    ours["slider"]["inputs"]["lora"] = ["a", 0]
    again, result = weights({name: ours[name] for name in ("a", "model", "slider")})
    assert all(torch.equal(direct[key], again[key]) for key in direct)
    assert message(result, "slider")["strength_range"] == [-2.0, 2.5]


def sample(comfy, graph, source="slider"):
    prompt = graph | {name: node for name, node in sampling().items() if name != "model"}
    prompt["sample"]["inputs"]["model"] = [source, 0]
    prompt["keep"] = {"class_type": "TestSaveTensor", "inputs": {"value": ["sample", 0], "name": "latent"}}
    comfy.run(prompt)
    return next(iter(load_file(comfy.base / "output" / "latent.safetensors").values()))


def test_bypass_equals_patch_and_leaves_nothing_behind(comfy):
    base = sample(comfy, chain(strength=0.0))
    patched = sample(comfy, chain(strength=3.0, selection="all", apply="patch"))
    bypassed = sample(comfy, chain(strength=3.0, selection="all", apply="bypass"))
    assert (patched - base).abs().max() > 1e-3
    assert (patched - bypassed).abs().max() < 2e-4 * patched.abs().max()
    assert torch.equal(sample(comfy, chain(strength=0.0)), base)
    assert torch.equal(sample(comfy, chain(strength=3.0, selection="all", apply="bypass")), bypassed)


def test_two_bypassing_sliders_add_up(comfy):
    one = sample(comfy, chain(strength=2.0, apply="bypass"))
    two = chain(strength=1.25, apply="bypass")
    two["second"] = {
        "class_type": "DiffLoraSliderModel",
        "inputs": {"model": ["slider", 0], "lora": ["small", 0], "strength": 0.75, "apply": "bypass"},
    }
    both = sample(comfy, two, source="second")
    assert (one - both).abs().max() < 2e-5 * one.abs().max()
    assert (sample(comfy, chain(strength=2.0, apply="bypass")) - one).abs().max() == 0


def test_a_lora_for_another_model_is_refused_before_sampling(comfy):
    graph = chain(a=small_models.WRAPPER_DENSE)
    graph["slider"]["inputs"]["lora"] = ["a", 0]
    with pytest.raises(NodeFailed, match="another base model"):
        sample(comfy, {name: graph[name] for name in ("a", "model", "slider")})


def test_a_replaced_file_is_read_again(comfy):
    path = comfy.models("loras") / "replaced.safetensors"
    path.write_bytes(path.with_name(small_models.DENSE).read_bytes())
    first = sample(comfy, chain(a="replaced.safetensors"))
    tensors = {key: tensor * 2 if "up" in key else tensor for key, tensor in load_file(path).items()}
    save_file(tensors, path)
    second = sample(comfy, chain(a="replaced.safetensors"))
    path.unlink()
    assert (first - second).abs().max() > 1e-4


def test_the_same_file_twice_is_an_error_in_one_line(comfy):
    graph = chain(a=small_models.SPARSE)
    with pytest.raises(NodeFailed, match="hold the same weights"):
        sample(comfy, graph)


def test_analyze_gives_pictures_text_and_table(comfy):
    graph = {name: chain()[name] for name in ("a", "b")}
    graph["analyze"] = {
        "class_type": "DiffLoraAnalyze",
        "inputs": {"a": ["a", 0], "b": ["b", 0], "rank": 4, "show": "difference"},
    }
    graph["keep"] = {"class_type": "PreviewImage", "inputs": {"images": ["analyze", 1]}}
    result = comfy.run(graph)
    assert len(message(result, "analyze")["modules"]) == 30
    assert result.output("analyze")["images"] and result.output("keep")["images"]


def test_a_difference_of_nothing_is_an_error_on_the_node_that_sees_it_first(comfy):
    prompt = chain() | {"keep": {"class_type": "TestKeep", "inputs": {"value": ["small", 0]}}}
    prompt["difference"]["inputs"] |= {"weight_a": 0.0, "weight_b": 0.0}
    with pytest.raises(NodeFailed, match="zero in every module") as failed:
        comfy.run(prompt)
    assert failed.value.node_id == "small"


def test_an_adapter_config_that_appears_beside_a_file_is_looked_at(comfy):
    folder = comfy.models("loras") / "adapter"
    folder.mkdir()
    weights = {
        "base_model.model.blocks.0.ffn.0.lora_A.weight": torch.randn(4, 256),
        "base_model.model.blocks.0.ffn.0.lora_B.weight": torch.randn(512, 4),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    prompt = {
        "a": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": "adapter/adapter_model.safetensors"}},
        "keep": {"class_type": "TestKeep", "inputs": {"value": ["a", 0]}},
    }
    said = [line["text"] for line in message(comfy.run(prompt), "a")["report"]["lines"]]
    assert "rank 4, alpha none stored (scale 1)" in said
    assert comfy.run(prompt).executed == []
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    result = comfy.run(prompt)
    assert "a" in result.executed
    said = [line["text"] for line in message(result, "a")["report"]["lines"]]
    assert "rank 4, alpha 8" in said


def test_the_empty_text_is_what_comfyuis_own_encoding_of_nothing_is(comfy):
    prompt = {
        "encoder": {"class_type": "TestEncoder", "inputs": {}},
        "empty": {"class_type": "DiffLoraEmptyText", "inputs": {"clip": ["encoder", 0]}},
        "core": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["encoder", 0], "text": ""}},
        "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["encoder", 0], "text": "words"}},
    }
    for kind in ("prompt_embeds", "negative_prompt_embeds"):
        prompt[kind] = {"class_type": "TestEmbeds", "inputs": {"embeds": ["empty", 1], "kind": kind}}
    for name in ("empty", "core", "words", "prompt_embeds", "negative_prompt_embeds"):
        prompt[f"hash {name}"] = {"class_type": "TestHash", "inputs": {"value": [name, 0]}}
    result = comfy.run(prompt)
    empty, core, words, *embeds = (
        json.loads(result.output(name)["text"][0]) for name in prompt if name.startswith("hash")
    )
    assert empty == core and embeds == [core, core] and core["finite"]
    assert words["sha256"] != core["sha256"]


def test_half_a_module_stops_only_those_who_select_it(comfy):
    loras, keep = comfy.models("loras"), {"keep": {"class_type": "TestKeep", "inputs": {"value": ["slider", 0]}}}
    stored = load_file(loras / small_models.DENSE)
    lost = next(key for key in stored if "_ffn_0." in key and "lora_up" in key)
    save_file({key: value for key, value in stored.items() if key != lost}, loras / "half a module.safetensors")
    try:
        sound = comfy.run(chain(selection="attn") | keep)
        half = chain(selection="attn", a="half a module.safetensors")
        result = comfy.run(half | keep)
        lines = [report["text"] for report in result.output("slider")["difflora"][0]["report"]["lines"]]
        assert lines[:1] == [sound.output("slider")["difflora"][0]["report"]["lines"][0]["text"]]
        warned = [
            line["text"] for line in result.output("a")["difflora"][0]["report"]["lines"] if line["level"] == "warning"
        ]
        assert any("cannot be read and can only be left out: blocks.0.ffn.0" in line for line in warned)
        half["selected"]["inputs"]["selection"] = "all"
        with pytest.raises(NodeFailed, match='nothing for its up side.*add !"blocks.0.ffn.0" to the selection'):
            comfy.run(half | keep)
        half["selected"]["inputs"]["selection"] = 'all, !"blocks.0.ffn.0"'
        comfy.run(half | keep)
    finally:
        (loras / "half a module.safetensors").unlink()
