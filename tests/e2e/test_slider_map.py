"""A slider with a map on a ComfyUI model: bit for bit the plain bypass slider where it is constant, mixed where it is not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests import small_models
from tests.comfy_server import Interrupted, NodeFailed
from tests.e2e.test_slider import node
from tests.e2e.test_sweep import message, pictures, sweep, swept, times

STEPS = 4


def graph(width=32, height=48, length=9, cfg=1.0, steps=STEPS):
    """Model, LoRA, texts and an empty clip; `sampler` adds branches."""
    return {
        "lora": node("DiffLoraLoad", lora_name=small_models.DENSE),
        "model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default"),
        "text": node("TestConditioning", seed=1, length=16),
        "empty": node("TestConditioning", seed=2, length=16),
        "clip": node("EmptyHunyuanLatentVideo", width=width, height=height, length=length, batch_size=1),
    } | {"_cfg": cfg, "_steps": steps}


def with_branch(prompt, name, strength, model="model", **slider):
    """Sample with a slider of this strength and save the latent as `name`."""
    inputs = {"model": [model, 0], "lora": ["lora", 0], "strength": strength, "apply": "bypass"}
    prompt[f"slider {name}"] = node("DiffLoraSliderModel", **inputs | slider)
    return with_sampler(prompt, name, f"slider {name}")


def with_sampler(prompt, name, model):
    prompt[f"sample {name}"] = node(
        "KSampler", model=[model, 0], positive=["text", 0], negative=["empty", 0], latent_image=["clip", 0], seed=3,
        steps=prompt["_steps"], cfg=prompt["_cfg"], sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    prompt[f"save {name}"] = node("TestSaveTensor", value=[f"sample {name}", 0], name=name)
    return prompt


def with_map(prompt, name="map", steps="", frames="", feather=1, mask=None):
    prompt[name] = node("DiffLoraSliderMap", steps=steps, frames=frames, feather=feather)
    if mask is not None:
        prompt[name]["inputs"]["mask"] = [mask, 0]
    return prompt


def run(comfy, prompt):
    prompt = {key: value for key, value in prompt.items() if not key.startswith("_")}
    result = comfy.run(prompt)
    names = [key.removeprefix("save ") for key in prompt if key.startswith("save ")]
    return {name: load_file(comfy.base / f"output/{name}.safetensors")["value"] for name in names}, result


def told(result, name):
    """The slider's report as it was last sent to the page: its node may be cached, and the sampler adds the passes."""
    sent = [data["output"] for kind, data in result.messages if kind == "executed" and data["node"] == f"slider {name}"]
    return [line["text"] for line in sent[-1]["difflora"][0]["report"]["lines"]]


SIZES = [(32, 48, 1), (40, 56, 9), (72, 32, 17)]  # 5 × 7 and 9 × 4 places: the model pads odd numbers


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("width", "height", "length"), SIZES)
def test_constant_maps_are_the_plain_slider_bit_for_bit(comfy, cfg, width, height, length):
    prompt = graph(width, height, length, cfg)
    prompt["white"] = node("SolidMask", value=1.0, width=64, height=64)
    prompt["black"] = node("SolidMask", value=0.0, width=64, height=64)
    with_map(prompt, "white map", mask="white")
    with_map(prompt, "black map", mask="black")
    with_map(prompt, "half", frames="0.5")
    with_sampler(prompt, "base", "model")
    for strength in (2.9, -1.5, 1.45):
        with_branch(prompt, f"plain {strength}", strength)
    with_branch(prompt, "white at 2.9", 2.9, map=["white map", 0])
    with_branch(prompt, "black at 2.9", 2.9, map=["black map", 0])
    with_branch(prompt, "black to -1.5", 2.9, map=["black map", 0], strength_outside=-1.5)
    with_branch(prompt, "half at 2.9", 2.9, map=["half", 0])
    with_sampler(prompt, "base again", "model")
    got, result = run(comfy, prompt)
    assert torch.equal(got["white at 2.9"], got["plain 2.9"])
    assert torch.equal(got["black at 2.9"], got["base"])
    assert torch.equal(got["black to -1.5"], got["plain -1.5"])
    assert torch.equal(got["half at 2.9"], got["plain 1.45"])
    assert torch.equal(got["base again"], got["base"])
    assert not torch.equal(got["plain 2.9"], got["base"])
    assert told(result, "white at 2.9")[-1] == "4 steps: 4 × 1 pass"


def test_steps_alone_take_one_pass_each_at_the_strength_of_the_step(comfy):
    """On in the first half only: the second of two samplers has the plain model. Halved: as at half the strength."""
    prompt = graph()
    with_map(prompt, "first half", steps="50:1, 50:0")
    with_map(prompt, "halves", steps="50:1, 50:0.5")
    with_branch(prompt, "mapped", 2.5, map=["first half", 0])
    with_branch(prompt, "halved", 2.5, map=["halves", 0])
    for name, late in (("then base", "model"), ("then half", "slider 1.25")):
        if late != "model":
            prompt[late] = node(
                "DiffLoraSliderModel", model=["model", 0], lora=["lora", 0], strength=1.25, apply="bypass"
            )
        prompt["slider early"] = node(
            "DiffLoraSliderModel", model=["model", 0], lora=["lora", 0], strength=2.5, apply="bypass"
        )
        common = {
            "positive": ["text", 0], "negative": ["empty", 0], "steps": 4, "cfg": 1.0, "sampler_name": "euler",
            "scheduler": "simple", "noise_seed": 3,
        }  # fmt: skip
        prompt[f"early {name}"] = node(
            "KSamplerAdvanced", model=["slider early", 0], latent_image=["clip", 0], add_noise="enable",
            start_at_step=0, end_at_step=2, return_with_leftover_noise="enable", **common,
        )  # fmt: skip
        prompt[f"late {name}"] = node(
            "KSamplerAdvanced", model=[late, 0], latent_image=[f"early {name}", 0], add_noise="disable",
            start_at_step=2, end_at_step=100, return_with_leftover_noise="disable", **common,
        )  # fmt: skip
        prompt[f"save {name}"] = node("TestSaveTensor", value=[f"late {name}", 0], name=name)
    got, result = run(comfy, prompt)
    assert told(result, "mapped")[-1] == "4 steps: 4 × 1 pass"
    for mapped, split in (("mapped", "then base"), ("halved", "then half")):
        # The split goes through the latent's own scale once more, and back.
        assert torch.allclose(got[mapped], got[split], atol=1e-5), mapped
    assert not torch.allclose(got["mapped"], got["halved"], atol=1e-2)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_step_is_the_lerp_of_its_passes(comfy, cfg):
    """One step of Euler: the result is linear in the prediction, so it is mixed as the predictions are."""
    prompt = graph(40, 56, 9, cfg, steps=1)
    with_map(prompt, frames="0:0, 100:1")
    # The last latent frame is frames 5 to 8 of 8: the greatest weight that occurs is 0.8125, not 1.
    ends = {"low": -2.0, "zero": 0.0, "high": 2.0625, "high alone": 2.4375}
    for name, strength in ends.items():
        with_branch(prompt, name, strength)
    with_branch(prompt, "ramp", 3.0, map=["map", 0], strength_outside=-2.0)
    with_branch(prompt, "from base", 3.0, map=["map", 0])
    got, result = run(comfy, prompt)
    assert told(result, "ramp")[-1] == "1 step: 1 × 3 passes"
    assert told(result, "from base")[-1] == "1 step: 1 × 2 passes"
    for ramp, first, middle, last in (
        ("ramp", "low", ("low", "zero", (2 - 0.4375) / 2), "high"),  # -2 + 5 · 0.3125 = -0.4375
        ("from base", "zero", ("zero", "high alone", 0.3125 / 0.8125), "high alone"),
    ):
        low, high, share = middle
        assert torch.equal(got[ramp][:, :, 0], got[first][:, :, 0])
        assert torch.equal(got[ramp][:, :, 2], got[last][:, :, 2])
        wanted = torch.lerp(got[low][:, :, 1], got[high][:, :, 1], torch.tensor(share))
        assert torch.allclose(got[ramp][:, :, 1], wanted, atol=2e-5)


def with_half_mask(prompt):
    prompt["none"] = node("SolidMask", value=0.0, width=64, height=64)
    prompt["left"] = node("SolidMask", value=1.0, width=32, height=64)
    prompt["mask"] = node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add")
    return prompt


def test_a_hard_mask_is_exactly_the_one_and_the_other_after_a_step(comfy):
    prompt = with_half_mask(graph(64, 64, 5, steps=1))
    with_map(prompt, mask="mask", feather=0)
    with_branch(prompt, "low", -3.0)
    with_branch(prompt, "high", 3.0)
    with_branch(prompt, "both", 3.0, map=["map", 0], strength_outside=-3.0)
    got, result = run(comfy, prompt)
    assert told(result, "both")[-1] == "1 step: 1 × 2 passes"
    assert torch.equal(got["both"][..., :4], got["high"][..., :4])
    assert torch.equal(got["both"][..., 4:], got["low"][..., 4:])


def test_context_windows_stay_inside_a_pass(comfy):
    """The windows split the clip below the mixing, so a white mask is the plain slider with the same windows."""
    windows = dict(
        context_length=9, context_overlap=4, context_schedule="standard_static", context_stride=1, closed_loop=False,
        fuse_method="pyramid", freenoise=False,
    )  # fmt: skip
    prompt = graph(32, 48, 25)
    options = comfy.object_info()["WanContextWindowsManual"]["input"]["required"]
    newer = {name: False for name in ("split_conds_to_windows", "retain_first_frame") if name in options}
    prompt["windowed"] = node("WanContextWindowsManual", model=["model", 0], **windows, **newer)
    prompt["white"] = node("SolidMask", value=1.0, width=64, height=64)
    with_map(prompt, "white map", mask="white")
    with_map(prompt, "ramp", frames="0:0, 100:1")
    with_branch(prompt, "plain", 2.0, "windowed")
    with_branch(prompt, "white", 2.0, "windowed", map=["white map", 0])
    with_branch(prompt, "ramp", 2.0, "windowed", map=["ramp", 0])
    with_sampler(prompt, "base", "windowed")
    with_branch(prompt, "without", 2.0)
    got, _ = run(comfy, prompt)
    assert torch.equal(got["white"], got["plain"])
    assert not torch.equal(got["plain"], got["without"])  # the windows are on
    assert not torch.equal(got["ramp"], got["plain"]) and not torch.equal(got["ramp"], got["base"])


def test_two_branches_one_with_a_map_are_each_right_and_a_plain_slider_behind_one_adds_up(comfy):
    prompt = with_half_mask(graph())
    with_map(prompt, mask="mask")
    with_branch(prompt, "plain", 2.0)
    with_branch(prompt, "mapped", 2.0, map=["map", 0])
    with_branch(prompt, "behind", 1.0, "slider mapped")
    with_branch(prompt, "before", 1.0)
    with_branch(prompt, "mapped behind", 2.0, "slider before", map=["map", 0])
    together, _ = run(comfy, prompt)
    for name in ("plain", "mapped", "behind", "mapped behind"):
        alone = {key: value for key, value in prompt.items() if not key.startswith(("sample ", "save "))}
        alone["_steps"], alone["_cfg"] = STEPS, 1.0
        got, _ = run(comfy, with_sampler(alone, f"{name} alone", f"slider {name}"))
        assert torch.equal(together[name], got[f"{name} alone"]), name
    assert torch.allclose(together["behind"], together["mapped behind"], atol=1e-4)


def test_cancel_in_the_middle_leaves_nothing_behind(comfy):
    base = with_half_mask(with_sampler(graph(), "base", "model"))
    before, _ = run(comfy, base)
    long = with_half_mask(graph(steps=500))
    with_map(long, mask="mask")
    long = with_branch(long, "long", 3.0, map=["map", 0], strength_outside=-3.0)
    prompt_id = comfy.queue({key: value for key, value in long.items() if not key.startswith("_")})
    comfy.wait_for_node(prompt_id, "sample long")
    comfy.interrupt()
    with pytest.raises(Interrupted):
        comfy.wait(prompt_id)
    with_sampler(base, "base after", "model")
    after, _ = run(comfy, base)
    assert torch.equal(after["base after"], before["base"])


CELL, GAP = 64, 4


def cells(comfy, count):
    """The clips of a grid with one row."""
    whole = pictures(comfy)
    return [whole[:, -CELL - GAP : -GAP, GAP + i * (CELL + GAP) : (i + 1) * (CELL + GAP)] for i in range(count)]


def alone(comfy, prompt, value):
    """The pictures of a swept prompt with this value in the place of the sweep."""
    single = {name: each for name, each in prompt.items() if name not in ("sweep", "grid", "keep")}
    for name, each in single.items():
        inputs = {key: value if source == ["sweep", 0] else source for key, source in each["inputs"].items()}
        single[name] = each | {"inputs": inputs}
    comfy.run(single | {"keep": node("TestSaveTensor", value=["decode", 0], name="single")})
    return load_file(comfy.base / "output/single.safetensors")["value"].clamp(0, 1)


def assert_each_is_its_single_run(comfy, prompt, values):
    result = comfy.run(prompt)
    assert times(result, "sample") == len(values) and len(message(result)["player"]["clips"]) == len(values)
    clips = cells(comfy, len(values))
    for clip, value in zip(clips, values, strict=True):
        assert (clip - alone(comfy, prompt, value)).abs().max() <= 0.5 / 255 + 1e-6
    for one, other in zip(clips, clips[1:], strict=False):
        assert (one - other).abs().max() > 0.02


def test_a_sweep_over_the_strength_of_a_mapped_slider(comfy):
    prompt = swept("-2, 0, 2", arrange="row") | with_half_mask({})
    with_map(prompt, mask="mask")
    prompt["slider"]["inputs"] |= {"map": ["map", 0], "apply": "auto"}
    assert_each_is_its_single_run(comfy, prompt, [-2.0, 0.0, 2.0])


def test_a_grid_of_three_masks(comfy):
    """A sweep over the threshold of a mask with three greys: the left half, its left half, and nothing."""
    prompt = swept(arrange="row") | {"sweep": sweep("0.2, 0.6, 0.9")}
    prompt["grid"]["inputs"]["baseline"] = 0.9
    prompt["none"] = node("SolidMask", value=0.0, width=64, height=64)
    prompt["left"] = node("SolidMask", value=0.4, width=32, height=64)
    prompt["far left"] = node("SolidMask", value=0.4, width=16, height=64)
    prompt["half"] = node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add")
    prompt["greys"] = node("MaskComposite", destination=["half", 0], source=["far left", 0], x=0, y=0, operation="add")
    prompt["mask"] = node("ThresholdMask", mask=["greys", 0], value=["sweep", 0])
    with_map(prompt, mask="mask")
    prompt["slider"]["inputs"] |= {"map": ["map", 0], "strength": 3.0, "apply": "auto"}
    assert_each_is_its_single_run(comfy, prompt, [0.2, 0.6, 0.9])


def test_a_merge_behind_takes_the_mapped_slider_along_on_its_first_model_and_is_warned_of(comfy):
    prompt = graph(steps=1)
    prompt["white"] = node("SolidMask", value=1.0, width=64, height=64)
    with_map(prompt, "white map", mask="white")
    with_branch(prompt, "mapped", 2.0, map=["white map", 0])
    with_branch(prompt, "plain", 2.0)
    for name, first, second in (
        ("mapped first", "slider mapped", "model"),
        ("plain first", "slider plain", "model"),
        ("mapped second", "model", "slider mapped"),
        ("base", "model", "model"),
    ):
        prompt[f"merge {name}"] = node("ModelMergeSimple", model1=[first, 0], model2=[second, 0], ratio=0.5)
        with_sampler(prompt, name, f"merge {name}")
    got, result = run(comfy, prompt)
    assert torch.equal(got["mapped first"], got["plain first"])
    assert torch.equal(got["mapped second"], got["base"])
    assert not torch.equal(got["mapped first"], got["base"])
    assert any("ModelMergeSimple behind this slider" in line for line in told(result, "mapped"))


class TestRefused:
    def failure(self, comfy, prompt):
        with pytest.raises(NodeFailed) as failed:
            run(comfy, prompt)
        return failed.value

    @pytest.mark.parametrize("cache", ["EasyCache", "LazyCache"])
    @pytest.mark.parametrize("first", [True, False])
    def test_step_caches_before_and_behind_the_slider(self, comfy, cache, first):
        prompt = with_half_mask(graph())
        with_map(prompt, mask="mask")
        with_map(prompt, "steps map", steps="50:1, 50:0")
        how = dict(reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False)
        prompt["cached"] = node(cache, model=["model" if first else "slider mapped", 0], **how)
        source = "cached" if first else "model"
        with_branch(prompt, "mapped", 2.0, source, map=["map", 0])
        if not first:
            with_sampler(prompt, "mapped", "cached")
        error = self.failure(comfy, prompt)
        assert error.message.startswith(f"map: {cache} is on this model") and "steps only" in error.message
        assert error.node_id == ("slider mapped" if first else "sample mapped")
        prompt["slider mapped"]["inputs"]["map"] = ["steps map", 0]  # one pass a step: nothing to mix up
        run(comfy, prompt)

    def test_two_maps_on_one_model(self, comfy):
        prompt = with_map(graph(), frames="0:0, 100:1")
        with_branch(prompt, "first", 2.0, map=["map", 0])
        with_branch(prompt, "second", 2.0, "slider first", map=["map", 0])
        error = self.failure(comfy, prompt)
        assert error.node_id == "slider second" and "map on this model already" in error.message

    def test_patch_mode_biases_and_numbers_of_frames(self, comfy):
        prompt = with_map(graph(), frames="0:0, 100:1")
        with_branch(prompt, "patched", 2.0, map=["map", 0], apply="patch")
        assert "apply is patch" in self.failure(comfy, prompt).message

        prompt = with_map(graph(), frames="0:0, 100:1", mask="pictures")
        prompt["pictures"] = node("TestMasks", count=4)
        with_branch(prompt, "counted", 2.0, map=["map", 0])
        error = self.failure(comfy, prompt)
        assert error.node_id == "sample counted" and "4 pictures, but the clip has 9 frames" in error.message
        prompt["pictures"]["inputs"]["count"] = 9
        run(comfy, prompt)

    @pytest.mark.parametrize(("name", "value"), [("steps", "a"), ("frames", "50:1, 0:1"), ("feather", 33)])
    def test_what_is_no_map(self, comfy, name, value):
        prompt = with_map(graph(), **{name: value} if name != "feather" else {})
        prompt["map"]["inputs"] |= {name: ["value", 0]}
        prompt["value"] = node("TestJson", text=json.dumps(value))
        with_branch(prompt, "wrong", 2.0, map=["map", 0])
        error = self.failure(comfy, prompt)
        assert error.node_id == "map" and error.message.startswith(name)

    def test_an_outside_strength_out_of_range(self, comfy):
        prompt = with_map(graph())
        prompt["value"] = node("TestJson", text="11")
        with_branch(prompt, "wrong", 2.0, map=["map", 0], strength_outside=["value", 0])
        assert self.failure(comfy, prompt).message.startswith("strength_outside is 11")


def test_a_workflow_without_a_map_is_as_before(comfy):
    """Saved workflows know neither of the two new inputs; alone, strength_outside does nothing."""
    prompt = graph()
    with_branch(prompt, "plain", 2.0)
    with_branch(prompt, "outside", 2.0, strength_outside=-3.0)
    got, _ = run(comfy, prompt)
    assert torch.equal(got["plain"], got["outside"])


def test_int8_layers_that_comfyui_folds_an_activation_into_are_changed_as_well(comfy):
    """Newer versions do not call the forward of such a layer: the slider's change of ffn.2 was lost without a word."""
    if "linear_input_act" not in (comfy.comfyui / "comfy/ops.py").read_text("utf-8"):
        pytest.skip("this ComfyUI folds no activation into a layer")
    # A file of its own: the helper changes the loaded model in place.
    own = comfy.models("diffusion_models") / "wan_int8_to_be.safetensors"
    own.write_bytes((comfy.models("diffusion_models") / small_models.WAN).read_bytes())
    prompt = graph(steps=1)
    prompt["select"] = node("DiffLoraSelectBlocks", lora=["lora", 0], selection="ffn.2", rest="leave out")
    prompt["its own"] = node("UNETLoader", unet_name=own.name, weight_dtype="default")
    prompt["int8"] = node("TestInt8", model=["its own", 0])
    for name, source in (("float", "model"), ("int8", "int8")):
        with_sampler(prompt, f"{name} base", source)
        with_branch(prompt, f"{name} slid", 2.0, source, lora=["select", 0])
    got, _ = run(comfy, prompt)
    own.unlink()
    wanted = got["float slid"] - got["float base"]
    found = got["int8 slid"] - got["int8 base"]
    print("largest effect", wanted.abs().max(), "and in INT8", found.abs().max(), "off", (found - wanted).abs().max())
    assert wanted.abs().max() > 0.1
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()
