"""The slider for WanVideoWrapper: what it puts on the wire, and what the real wrapper makes of that."""

import json
import os
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import difflora
from tests import small_models, wrapper_signatures
from tests.comfy_server import NodeFailed
from tests.e2e.test_block_toggle import Wrapper, node, sampled


def slider(strength, lora="rank", **more):
    return node(
        "DiffLoraSliderWanVideo",
        lora=[lora, 0],
        strength=strength,
        **{"merge_loras": False, "low_mem_load": False} | more,
    )


def made_from_pair():
    """Nodes from the small pair to a LoRA of rank 2 for the attention, under the name "rank"."""
    return {
        "dense": node("DiffLoraLoad", lora_name=small_models.WRAPPER_DENSE),
        "sparse": node("DiffLoraLoad", lora_name=small_models.WRAPPER_SPARSE),
        "subtract": node(
            "DiffLoraSubtract", a=["dense", 0], b=["sparse", 0], weight_a=1.0, weight_b=1.0, unmatched="keep"
        ),
        "select": node("DiffLoraSelectBlocks", lora=["subtract", 0], selection="attn", rest="leave out"),
        "rank": node("DiffLoraRerank", lora=["select", 0], rule="rank", rank=2, energy=0.9, ratio=10.0, max_rank=64),
    }


def expected(loras):
    """The same LoRA by the library alone."""
    pair = [difflora.load(loras / name) for name in (small_models.WRAPPER_DENSE, small_models.WRAPPER_SPARSE)]
    return difflora.rerank(difflora.subtract(*pair).select("attn"), difflora.FixedRank(2))


def shown(comfy, prompt, name="show"):
    return json.loads(comfy.run(prompt).output(name)["text"][0])


class TestWire:
    """Needs no wrapper."""

    def test_an_entry_has_the_fields_of_the_contract_and_a_file_with_the_lora(self, comfy):
        prompt = made_from_pair() | {"slider": slider(-2.5), "show": node("TestShow", value=["slider", 0])}
        [entry] = shown(comfy, prompt)
        path = entry.pop("path")
        name = entry.pop("name")
        assert entry == {
            "strength": -2.5,
            "blocks": {},
            "layer_filter": "",
            "low_mem_load": False,
            "merge_loras": False,
        }
        assert os.path.isabs(path) and path.startswith(str(comfy.base / "temp"))
        assert "wrapper_dense" in name and "wrapper_sparse" in name
        written, direct = difflora.load(path), expected(comfy.models("loras"))
        assert written.names == direct.names and len(direct) == 30 * 8
        for module in direct.names:
            assert torch.equal(dense(written[module]), dense(direct[module]))

    def test_another_strength_writes_no_other_file_and_another_rank_does(self, comfy):
        def path_at(strength, rank=2):
            prompt = made_from_pair() | {"slider": slider(strength), "show": node("TestShow", value=["slider", 0])}
            prompt["rank"]["inputs"]["rank"] = rank
            return shown(comfy, prompt)[0]["path"]

        first = path_at(1.0)
        file = os.stat(first).st_ino  # not its time, which tells when it was last asked for; writing makes another file
        assert path_at(1.5) == path_at(-9.0) == first
        assert os.stat(first).st_ino == file
        assert path_at(1.5, rank=3) != first

    def test_strength_0_adds_no_entry_and_a_chain_keeps_its_order(self, comfy):
        prompt = made_from_pair() | {
            "first": slider(2.0),
            "nothing": slider(0.0, prev_lora=["first", 0]),
            "second": slider(-1.0, lora="subtract", prev_lora=["nothing", 0]),
            "none at all": slider(0.0),
            "show": node("TestShow", value=["second", 0]),
            "empty": node("TestShow", value=["none at all", 0]),
        }
        result = comfy.run(prompt)
        chain = json.loads(result.output("show")["text"][0])
        assert [lora["strength"] for lora in chain] == [2.0, -1.0]
        assert len({lora["path"] for lora in chain}) == 2
        assert json.loads(result.output("empty")["text"][0]) == []

    def test_a_list_of_strengths_goes_on_the_wire_as_it_is(self, comfy):
        prompt = made_from_pair() | {"values": node("TestJson", text="[0, 1.5, -2]")}
        prompt |= {"slider": slider(["values", 0]), "show": node("TestShow", value=["slider", 0])}
        [entry] = shown(comfy, prompt)
        assert entry["strength"] == [0.0, 1.5, -2.0] and entry["merge_loras"] is False
        prompt["values"] = node("TestJson", text="[0, 0, 0]")
        assert shown(comfy, prompt) == []
        for values, merge, reason in (
            ("[1, 11]", False, "from -10 to 10"),
            ("[]", False, "0 values"),
            ('[1, "a"]', False, "strength is a"),
            ("[[1], 2]", False, "a list of 1"),
            ("[1, 2]", True, "cannot merge"),
        ):
            prompt["values"] = node("TestJson", text=values)
            prompt["slider"]["inputs"]["merge_loras"] = merge
            with pytest.raises(NodeFailed, match=reason) as failed:
                comfy.run(prompt)
            assert failed.value.node_id == "slider"

    def test_a_map_of_steps_is_a_list_by_noise_for_one_sampler_and_for_two(self, comfy):
        """Shift 1, so a noise of 0.6 is 40 per cent. Wan2.2's second sampler starts at entry 0 of its own list."""

        def strengths(start=0, end=-1, steps="50:0, 50:1", **more):
            prompt = made_from_pair() | {
                "map": node("DiffLoraSliderMap", steps=steps, frames="", feather=1),
                "sigmas": node("TestSigmas", text="[1, 0.9, 0.6, 0.5, 0.1, 0]"),
                "show": node("TestShow", value=["slider", 0]),
            }
            schedule = {"sigmas": ["sigmas", 0], "shift": 1.0, "start_step": start, "end_step": end}
            prompt["slider"] = slider(2.5, map=["map", 0], **{"strength_outside": -1.0} | schedule | more)
            return [entry["strength"] for entry in shown(comfy, prompt)]

        assert strengths() == [[-1.0, -1.0, -1.0, 2.5, 2.5]]
        assert strengths(0, 4) == [[-1.0, -1.0, -1.0, 2.5]]
        assert strengths(2) == [[-1.0, 2.5, 2.5]]
        assert strengths(3) == [2.5]  # all the same: no list
        assert strengths(0, 3, strength_outside=0.0) == []
        assert strengths(steps="0:1, 100:0", strength_outside=0.0)[0] == pytest.approx([2.5, 2.25, 1.5, 1.25, 0.25])

    def test_a_map_that_the_wrapper_cannot_follow_is_an_error_on_the_slider(self, comfy):
        for steps, frames, more, reason in (
            ("50:0, 50:1", "", {}, "the sampler's steps"),
            ("", "0:0, 100:1", {"sigmas": ["sigmas", 0]}, "only a map of steps"),
            ("50:0, 50:1", "", {"sigmas": ["sigmas", 0], "start_step": 5}, "leave nothing"),
            ("50:0, 50:1", "", {"sigmas": ["sigmas", 0], "merge_loras": True}, "cannot merge"),
            ("50:0, 50:1", "", {"scheduler": ["name", 0]}, "does not say how many steps"),
            ("50:0, 50:1", "", {"sigmas": ["sigmas", 0], "strength": ["list", 0]}, "Use one of them"),
        ):
            prompt = made_from_pair() | {
                "map": node("DiffLoraSliderMap", steps=steps, frames=frames, feather=1),
                "sigmas": node("TestSigmas", text="[1, 0.9, 0.6, 0.5, 0.1, 0]"),
                "name": node("TestJson", text='"unipc"'),
                "list": node("TestJson", text="[1, 2]"),
                "show": node("TestShow", value=["slider", 0]),
                "slider": slider(2.5, map=["map", 0]),
            }
            prompt["slider"]["inputs"] |= more
            with pytest.raises(NodeFailed, match=reason) as failed:
                comfy.run(prompt)
            assert failed.value.node_id == "slider"

    def test_a_file_that_is_gone_is_made_again(self, comfy):
        prompt = made_from_pair() | {"slider": slider(1.25), "show": node("TestShow", value=["slider", 0])}
        [entry] = shown(comfy, prompt)
        before = load_file(entry["path"])
        assert "slider" not in comfy.run(prompt).executed
        os.unlink(entry["path"])
        result = comfy.run(prompt)
        assert "slider" in result.executed and "rank" not in result.executed
        after = load_file(json.loads(result.output("show")["text"][0])[0]["path"])
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        assert "slider" not in comfy.run(prompt).executed

    def test_modules_that_the_wrapper_passes_over_are_named_unless_it_merges(self, comfy):
        path = comfy.models("loras") / "with_head.safetensors"
        small_models.write_lora(
            path, comfy.models("diffusion_models") / small_models.WAN_WRAPPER, modules="head|blocks.0"
        )
        for merge in (False, True):
            prompt = {
                "load": node("DiffLoraLoad", lora_name=path.name),
                "slider": slider(1.0, "load", merge_loras=merge),
            }
            result = comfy.run(prompt | {"show": node("TestShow", value=["slider", 0])})
            told = result.output("slider")["difflora"][0]["report"]["lines"]
            warnings = [line["text"] for line in told if line["level"] == "warning"]
            assert [text for text in warnings if "1 module is left out" in text and "(head.head)" in text] == warnings
            assert bool(warnings) != merge
        path.unlink()

    def test_merged_and_unmerged_in_one_chain_are_an_error_on_the_node(self, comfy):
        prompt = made_from_pair() | {
            "first": slider(2.0, merge_loras=True),
            "second": slider(1.0, prev_lora=["first", 0]),
            "show": node("TestShow", value=["second", 0]),
        }
        with pytest.raises(NodeFailed, match="is not merged, but .* is merged") as failed:
            comfy.run(prompt)
        assert failed.value.node_id == "second"


def dense(delta):
    return (delta.up.double() @ delta.down.double()) if hasattr(delta, "up") else delta.value.double()


def with_sliders(strengths, before=(), **loader):
    """One prompt that samples once per strength, on one model."""
    prompt = Wrapper(**loader)
    prompt.prompt |= made_from_pair()
    previous = None
    for name, strength in before:
        select = node("WanVideoLoraSelect", lora=name, strength=strength, low_mem_load=False, merge_loras=False)
        prompt.prompt[name] = select | {"inputs": select["inputs"] | ({"prev_lora": [previous, 0]} if previous else {})}
        previous = name
    for index, strength in enumerate(strengths):
        chain = {"prev_lora": [previous, 0]} if previous else {}
        prompt.prompt[f"slider {index}"] = slider(strength, model=["model", 0], **chain)
        prompt.prompt[f"set {index}"] = node("WanVideoSetLoRAs", model=["model", 0], lora=[f"slider {index}", 0])
        prompt.sample(f"slid {index}", f"set {index}")
    return prompt


STYLE, DISTILL = "style.safetensors", "distill.safetensors"


@pytest.fixture(scope="module")
def style_and_distill(comfy):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    small_models.write_lora(comfy.models("loras") / STYLE, model, seed=40, rank=8)
    small_models.write_lora(comfy.models("loras") / DISTILL, model, seed=41, rank=16, dialect="diffusion_pipe")
    return [(STYLE, 1.0), (DISTILL, 0.9)]


@pytest.mark.usefixtures("wrapper")
class TestWrapper:
    def test_strengths_in_one_prompt_are_distinct_and_repeatable_and_0_is_the_model(self, comfy):
        prompt = with_sliders([-2.0, 0.0, 2.0, -2.0]).sample("no lora", "model")
        minus, zero, plus, again = (sampled(comfy, prompt.prompt)[f"slid {i}"] for i in range(4))
        assert torch.equal(minus, again)
        assert torch.equal(zero, saved(comfy, "no lora"))
        for one, other in ((minus, zero), (plus, zero), (plus, minus)):
            assert (one - other).abs().max() > 0.01

    def test_a_list_of_strengths_is_one_strength_a_step(self, comfy):
        """Other strengths in the last step only, and nothing but the last step's own list differs."""
        prompt = with_sliders([["same", 0], ["other", 0], 1.5])
        steps = prompt.prompt["sample slid 0"]["inputs"]["steps"]
        prompt.prompt["same"] = node("TestJson", text=json.dumps([1.5] * steps))
        prompt.prompt["other"] = node("TestJson", text=json.dumps([1.5] * (steps - 1) + [-1.5]))
        got = sampled(comfy, prompt.prompt)
        assert torch.equal(got["slid 0"], got["slid 2"])
        assert not torch.equal(got["slid 0"], got["slid 1"])

    def test_a_map_with_the_samplers_own_scheduler_equals_the_list_that_it_means(self, comfy):
        prompt = with_sliders([2.0, ["values", 0], 2.0])
        prompt.prompt["map"] = node("DiffLoraSliderMap", steps="50:0, 50:1", frames="", feather=1)
        settings = prompt.prompt["sample slid 0"]["inputs"]
        how = {name: settings[name] for name in ("steps", "shift")}
        prompt.prompt["scheduler"] = node("WanVideoScheduler", scheduler="unipc", start_step=0, end_step=-1, **how)
        prompt.prompt["slider 0"]["inputs"] |= {"map": ["map", 0], "scheduler": ["scheduler", 3]}
        prompt.prompt["show"] = node("TestShow", value=["slider 0", 0])
        [entry] = shown(
            comfy, {name: one for name, one in prompt.prompt.items() if not name.startswith(("sample", "save"))}
        )
        assert len(entry["strength"]) == settings["steps"] and {0.0, 2.0} == set(entry["strength"])
        prompt.prompt["values"] = node("TestJson", text=json.dumps(entry["strength"]))
        got = sampled(comfy, prompt.prompt)
        assert torch.equal(got["slid 0"], got["slid 1"])
        assert not torch.equal(got["slid 0"], got["slid 2"])

    def test_the_same_behind_a_style_and_a_distill_lora(self, comfy, style_and_distill):
        prompt = with_sliders([-2.0, 0.0, 2.0, -2.0], before=style_and_distill)
        prompt.prompt["set style"] = node("WanVideoSetLoRAs", model=["model", 0], lora=[DISTILL, 0])
        got = sampled(comfy, prompt.sample("styled", "set style").sample("plain", "model").prompt)
        minus, zero, plus, again = (got[f"slid {i}"] for i in range(4))
        assert torch.equal(minus, again)
        assert torch.equal(zero, got["styled"])
        for one, other in ((minus, zero), (plus, zero), (plus, minus), (got["styled"], got["plain"])):
            assert (one - other).abs().max() > 0.01

    @pytest.mark.parametrize("strength", [-2.0, 1.0, 2.9])
    def test_equals_a_checkpoint_with_the_change_in_its_weights(self, comfy, strength):
        models = comfy.models("diffusion_models")
        tensors = load_file(models / small_models.WAN_WRAPPER)
        lora = expected(comfy.models("loras"))
        for module in lora.names:
            weight = tensors[f"{module}.weight"]
            tensors[f"{module}.weight"] = (weight.double() + strength * dense(lora[module])).float()
        changed = (
            models / f"changed {strength}.safetensors"
        )  # A name of its own: the loader's result is cached by name.
        save_file(tensors, changed)
        [got] = sampled(comfy, with_sliders([strength]).prompt).values()
        truth = sampled(comfy, Wrapper(changed.name).sample("changed", "model").prompt)["changed"]
        error = ((got - truth).abs().max() / truth.abs().max()).item()
        print(f"largest error at strength {strength}: {error:.1e} of the largest value")
        assert error < 1e-4
        changed.unlink()

    def test_a_slider_trained_on_comfyuis_own_model_is_the_same_by_file_and_by_wire(self, comfy):
        """On the wire of Train Slider, from its file with this pack's loader, and with the wrapper's own."""
        random = torch.Generator().manual_seed(0)
        for side in ("bright", "dark"):
            folder = comfy.base / "input/wrapper_pairs" / side
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = torch.rand(64, 64, 3, generator=random) * (255 if side == "bright" else 120)
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.png")
        training = {
            "native": node("UNETLoader", unet_name=small_models.WAN_WRAPPER, weight_dtype="default"),
            "conditioning": node("TestConditioning", seed=1, length=64),
            "vae": node("VAELoader", vae_name=small_models.VAE),
            "pairs": node(
                "DiffLoraEncodePairs", vae=["vae", 0], folder_a="input/wrapper_pairs/bright",
                folder_b="input/wrapper_pairs/dark", size=64,
            ),
            "train": node(
                "DiffLoraTrainSlider", model=["native", 0], pairs=["pairs", 0], conditioning=["conditioning", 0],
                name="for_wrapper", mode="direct", selection="blocks 29 & attn", rank=2, steps=3, batch=2,
                learning_rate="1e-1", optimizer="lion", warmup=0, noise="composition", sigma_low=0.5, sigma_high=1.0,
                seed=3, reach=0.0, preview_every=0, checkpoint="start anew",
            ),
            "save": node(
                "DiffLoraSave", lora=["train", 0], filename_prefix="for_wrapper", dtype="float32", dialect="native",
                if_exists="overwrite", recommended_strength="",
            ),
        }  # fmt: skip
        comfy.run(training)
        file = comfy.models("loras") / "for_wrapper.safetensors"
        assert len(difflora.load(file)) == 8
        prompt = Wrapper().sample("plain", "model")
        prompt.prompt |= {name: one for name, one in training.items() if name != "save"}
        prompt.prompt |= {
            "file": node("DiffLoraLoad", lora_name=file.name),
            "by wire": slider(2.0, "train", model=["model", 0]),
            "by file": slider(2.0, "file", model=["model", 0]),
            "its own": node("WanVideoLoraSelect", lora=file.name, strength=2.0, low_mem_load=False, merge_loras=False),
        }
        for way in ("by wire", "by file", "its own"):
            prompt.prompt[f"set {way}"] = node("WanVideoSetLoRAs", model=["model", 0], lora=[way, 0])
            prompt.sample(way, f"set {way}")
        got = sampled(comfy, prompt.prompt)
        assert torch.equal(got["by wire"], got["by file"]) and torch.equal(got["by wire"], got["its own"])
        assert (got["by wire"] - got["plain"]).abs().max() > 0.01
        file.unlink()

    def test_a_new_strength_loads_no_model_and_reads_no_pair(self, comfy):
        comfy.run(with_sliders([0.5]).prompt)
        ran = comfy.run(with_sliders([0.75]).prompt).executed
        assert set(ran) == {"slider 0", "set 0", "sample slid 0", "save slid 0"}

    def test_a_model_that_merged_loras_is_an_error_on_the_slider(self, comfy, style_and_distill):
        prompt = with_sliders([1.0], lora=["merged", 0])
        prompt.prompt["merged"] = node(
            "WanVideoLoraSelect", lora=STYLE, strength=1.0, low_mem_load=False, merge_loras=True
        )
        with pytest.raises(NodeFailed, match="merged its LoRAs into this model") as failed:
            comfy.run(prompt.prompt)
        assert failed.value.node_id == "slider 0"

    @pytest.mark.parametrize(
        ("module", "reason"), [("", "another base model"), ("blocks.40.", "belong to another model")]
    )
    def test_a_lora_for_another_model_is_an_error_before_anything_is_sampled(self, comfy, module, reason):
        path = comfy.models("loras") / "foreign.safetensors"
        other = comfy.models("diffusion_models") / small_models.WAN
        small_models.write_lora(path, other, modules=r"blocks\.0\.self_attn")
        if module:
            renamed = {
                re.sub(r"blocks_0_", module.replace(".", "_"), key): value for key, value in load_file(path).items()
            }
            save_file(renamed, path)
        prompt = with_sliders([1.0])
        prompt.prompt["foreign"] = node("DiffLoraLoad", lora_name=path.name)
        prompt.prompt["slider 0"]["inputs"]["lora"] = ["foreign", 0]
        with pytest.raises(NodeFailed, match=reason) as failed:
            comfy.run(prompt.prompt)
        path.unlink()
        assert failed.value.node_id == "slider 0"

    def test_merged_by_the_loader_equals_unmerged_to_rounding(self, comfy):
        merged = Wrapper(lora=["slider", 0])
        merged.prompt |= made_from_pair() | {"slider": slider(2.0, merge_loras=True)}
        one = sampled(comfy, merged.sample("merged", "model").prompt)["merged"]
        [other] = sampled(comfy, with_sliders([2.0]).prompt).values()
        assert (one - other).abs().max() < 1e-3 * one.abs().max()

    def test_the_checkout_has_the_recorded_signatures(self, comfy, wrapper):
        recorded, found = wrapper_signatures.recorded(), wrapper_signatures.of_checkout(wrapper, comfy.object_info())
        assert found["nodes"].keys() == recorded["nodes"].keys()
        for name, signature in recorded["nodes"].items():
            assert found["nodes"][name] == signature, (
                f"{name}: run python -m tests.wrapper_signatures, then the workflows"
            )
        assert found["version"] == recorded["version"]


def saved(comfy, name):
    return load_file(comfy.base / f"output/{name}.safetensors")["value"]
