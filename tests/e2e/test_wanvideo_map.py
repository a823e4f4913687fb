"""A slider with a map on WanVideoWrapper: bit for bit the wrapper's own LoRAs where it is constant, mixed where it is not."""

import time

import pytest
import torch

from tests import small_models
from tests.comfy_server import Interrupted, NodeFailed
from tests.e2e.test_block_toggle import Wrapper, node, sampled, value
from tests.e2e.test_sweep import grid, sweep, times
from tests.e2e.test_wanvideo import DISTILL, STYLE, made_from_pair, slider

pytestmark = pytest.mark.usefixtures("wrapper")


class Mapped(Wrapper):
    """Branches with a mapped slider beside branches with WanVideo Set LoRAs."""

    def __init__(self, width=64, height=64, frames=9, **loader):
        super().__init__(**loader)
        self.prompt |= made_from_pair() | {
            "empty": node("WanVideoEmptyEmbeds", width=width, height=height, num_frames=frames),
            "other text": node("TestConditioning", seed=2, length=64),
            "white": node("SolidMask", value=1.0, width=64, height=64),
            "black": node("SolidMask", value=0.0, width=64, height=64),
            "left": node("SolidMask", value=1.0, width=32, height=64),
            "half": node("MaskComposite", destination=["black", 0], source=["left", 0], x=0, y=0, operation="add"),
        }
        self.prompt["text"]["inputs"]["negative"] = ["other text", 0]

    def map(self, name, mask=None, steps="", frames="", feather=0):
        self.prompt[name] = node("DiffLoraSliderMap", steps=steps, frames=frames, feather=feather)
        if mask:
            self.prompt[name]["inputs"]["mask"] = [mask, 0]
        return self

    def mapped(self, name, strength, map, model="model", sample=True, images=True, **inputs):
        options = {
            name: inputs.pop(name) for name in ("steps", "cfg", "context_options", "cache_args") if name in inputs
        }
        if images:
            inputs["image_embeds"] = ["empty", 0]
        self.prompt[f"slider {name}"] = node(
            "DiffLoraMappedSliderWanVideo", model=[model, 0], lora=["rank", 0], map=[map, 0], strength=strength,
            **{"shift": 5.0} | inputs,
        )  # fmt: skip
        return self.sample(name, f"slider {name}", **options) if sample else self

    def plain(self, name, strength, model="model", **options):
        self.prompt[f"lora {name}"] = slider(strength)
        self.prompt[f"set {name}"] = node("WanVideoSetLoRAs", model=[model, 0], lora=[f"lora {name}", 0])
        return self.sample(name, f"set {name}", **options)


def told(result, name):
    sent = [data["output"] for kind, data in result.messages if kind == "executed" and data["node"] == f"slider {name}"]
    return [line["text"] for line in sent[-1]["difflora"][0]["report"]["lines"]]


@pytest.mark.parametrize(
    ("width", "height", "frames", "cfg"), [(64, 64, 1, 1.0), (80, 112, 9, 1.0), (80, 112, 9, 3.0), (112, 80, 17, 3.0)]
)
def test_constant_maps_are_the_wrappers_own_lora_bit_for_bit(comfy, width, height, frames, cfg):
    """5 × 7 and 7 × 5 tokens a frame."""
    prompt = Mapped(width, height, frames)
    prompt.map("white map", "white", feather=1).map("black map", "black").map("half map", frames="0.5")
    prompt.sample("base", "model", cfg=cfg)
    for strength in (2.9, -1.5, 1.45):
        prompt.plain(f"plain {strength}", strength, cfg=cfg)
    prompt.mapped("white at 2.9", 2.9, "white map", cfg=cfg)
    prompt.mapped("black at 2.9", 2.9, "black map", cfg=cfg)
    prompt.mapped("black to -1.5", 2.9, "black map", strength_outside=-1.5, cfg=cfg)
    prompt.mapped("half at 2.9", 2.9, "half map", cfg=cfg)
    prompt.sample("base again", "model", cfg=cfg)
    got = sampled(comfy, prompt.prompt)
    assert torch.equal(got["white at 2.9"], got["plain 2.9"])
    assert torch.equal(got["black at 2.9"], got["base"])
    assert torch.equal(got["black to -1.5"], got["plain -1.5"])
    assert torch.equal(got["half at 2.9"], got["plain 1.45"])
    assert torch.equal(got["base again"], got["base"])
    assert (got["plain 2.9"] - got["base"]).abs().max() > 0.01


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_step_is_the_lerp_of_its_passes(comfy, cfg):
    """One step: the result is linear in the prediction, so it is mixed as the predictions are."""
    prompt = Mapped(80, 112, 9).map("ramp map", frames="0:0, 100:1")
    one = {"steps": 1, "cfg": cfg}
    # The last latent frame is frames 5 to 8 of 8: the greatest weight that occurs is 0.8125, not 1.
    ends = {"low": -2.0, "zero": 0.0, "high": 2.0625, "high alone": 2.4375}
    for name, strength in ends.items():
        prompt.plain(name, strength, **one)
    prompt.mapped("ramp", 3.0, "ramp map", strength_outside=-2.0, **one).mapped("from base", 3.0, "ramp map", **one)
    result = comfy.run(prompt.prompt)
    got = {name: value(comfy, name) for name in ("ramp", "from base", *ends)}
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
    assert (got["high"] - got["low"]).abs().max() > 0.01


def test_a_hard_mask_is_exactly_the_one_and_the_other_after_a_step(comfy):
    prompt = Mapped().map("half map", "half").plain("low", -3.0, steps=1).plain("high", 3.0, steps=1)
    prompt.mapped("both", 3.0, "half map", strength_outside=-3.0, steps=1)
    got = sampled(comfy, prompt.prompt)
    assert torch.equal(got["both"][..., :4], got["high"][..., :4])
    assert torch.equal(got["both"][..., 4:], got["low"][..., 4:])
    assert not torch.equal(got["high"], got["low"])


def test_a_map_of_steps_is_the_list_of_strengths_that_it_means(comfy):
    prompt = Mapped().map("late", steps="50:0, 50:1").mapped("mapped", 2.0, "late", images=False)
    prompt.prompt["lora list"] = slider(2.0, map=["late", 0], scheduler=["scheduler", 3])
    prompt.prompt["scheduler"] = node(
        "WanVideoScheduler", scheduler="unipc", steps=4, shift=5.0, start_step=0, end_step=-1
    )
    prompt.prompt["set list"] = node("WanVideoSetLoRAs", model=["model", 0], lora=["lora list", 0])
    prompt.sample("list", "set list", steps=4).plain("all", 2.0, steps=4)
    prompt.prompt["sample mapped"]["inputs"]["steps"] = 4
    result = comfy.run(prompt.prompt)
    got = {name: value(comfy, name) for name in ("mapped", "list", "all")}
    assert torch.equal(got["mapped"], got["list"])
    assert not torch.equal(got["mapped"], got["all"])
    assert told(result, "mapped")[-1] == "4 steps: 4 × 1 pass"


def context(frames):
    return node(
        "WanVideoContextOptions", context_schedule="static_standard", context_frames=frames, context_stride=4,
        context_overlap=4, freenoise=False, verbose=False, fuse_method="linear",
    )  # fmt: skip


def test_context_windows_stay_inside_a_pass(comfy):
    prompt = Mapped(frames=25).map("white map", "white").map("half map", "half").map("ramp map", frames="0:0, 100:1")
    prompt.prompt["windows"] = context(9)
    how = {"context_options": ["windows", 0]}
    prompt.plain("plain", 2.0, **how).mapped("white", 2.0, "white map", **how).mapped("half", 2.0, "half map", **how)
    prompt.sample("base", "model", **how).plain("without", 2.0)
    got = sampled(comfy, prompt.prompt)
    assert torch.equal(got["white"], got["plain"])
    assert not torch.equal(got["plain"], got["without"])  # the windows are on
    assert not torch.equal(got["half"], got["plain"]) and not torch.equal(got["half"], got["base"])

    prompt = Mapped(frames=25).map("ramp map", frames="0:0, 100:1").mapped("ramp", 2.0, "ramp map", **how)
    prompt.prompt["windows"] = context(9)
    with pytest.raises(NodeFailed, match="3 latent frames at a time, but the clip has 7") as failed:
        comfy.run(prompt.prompt)
    assert failed.value.node_id == "sample ramp"


@pytest.fixture(scope="module")
def style_and_distill(comfy):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    small_models.write_lora(comfy.models("loras") / STYLE, model, seed=40, rank=8)
    small_models.write_lora(comfy.models("loras") / DISTILL, model, seed=41, rank=16, dialect="diffusion_pipe")


def test_other_loras_before_and_behind_and_other_branches_beside(comfy, style_and_distill):
    """A style before, a step-distill LoRA behind, and plain branches of the same model in one prompt."""
    prompt = Mapped().map("white map", "white").map("half map", "half")
    for name, file, strength in (("style", STYLE, 1.0), ("distill", DISTILL, 0.9)):
        prompt.prompt[name] = node(
            "WanVideoLoraSelect", lora=file, strength=strength, low_mem_load=False, merge_loras=False
        )
    prompt.prompt["styled"] = node("WanVideoSetLoRAs", model=["model", 0], lora=["style", 0])
    prompt.mapped("white", 2.0, "white map", "styled", sample=False)
    prompt.mapped("half", 2.0, "half map", "styled", sample=False)
    prompt.prompt["lora plain"] = slider(2.0)
    prompt.prompt["set plain"] = node("WanVideoSetLoRAs", model=["styled", 0], lora=["lora plain", 0])
    for name, model in (("white", "slider white"), ("half", "slider half"), ("plain", "set plain"), ("base", "styled")):
        prompt.prompt[f"{name} distilled"] = node("WanVideoSetLoRAs", model=[model, 0], lora=["distill", 0])
        prompt.sample(name, f"{name} distilled")
    got = sampled(comfy, prompt.prompt)
    assert torch.equal(got["white"], got["plain"])
    assert not torch.equal(got["half"], got["plain"]) and not torch.equal(got["half"], got["base"])
    alone = {key: each for key, each in prompt.prompt.items() if not key.startswith(("sample ", "save "))}
    prompt.prompt = alone
    again = sampled(comfy, prompt.sample("half alone", "half distilled").prompt)
    assert torch.equal(again["half alone"], got["half"])


def test_block_swap_and_another_strength_without_loading_the_model(comfy):
    swap = node(
        "WanVideoBlockSwap", blocks_to_swap=20, offload_img_emb=False, offload_txt_emb=False, use_non_blocking=False,
        vace_blocks_to_swap=0, prefetch_blocks=1, block_swap_debug=False,
    )  # fmt: skip
    prompt = Mapped(block_swap_args=["swap", 0]).map("half map", "half").map("white map", "white")
    prompt.prompt["swap"] = swap
    prompt.plain("plain", 2.0).mapped("white", 2.0, "white map").mapped("half", 2.0, "half map")
    swapped = sampled(comfy, prompt.prompt)
    assert torch.equal(swapped["white"], swapped["plain"])
    prompt.prompt["slider half"]["inputs"]["strength"] = 1.0
    assert set(comfy.run(prompt.prompt).executed) == {"slider half", "sample half", "save half"}
    assert not torch.equal(value(comfy, "half"), swapped["half"])


def test_cancel_in_the_middle_leaves_nothing_behind(comfy):
    before = sampled(comfy, Mapped().sample("before", "model").plain("plain before", 2.0).prompt)
    long = Mapped().map("half map", "half").mapped("long", 3.0, "half map", strength_outside=-3.0, steps=2000)
    running = comfy.queue(long.prompt)
    comfy.wait_for_node(running, "sample long")
    time.sleep(1)  # The sampler loads the weights first; this is well into its 2000 steps.
    comfy.interrupt()
    with pytest.raises(Interrupted):
        comfy.wait(running)
    after = sampled(comfy, Mapped().sample("after", "model").plain("plain after", 2.0).prompt)
    assert torch.equal(after["after"], before["before"])
    assert torch.equal(after["plain after"], before["plain before"])


def test_a_sweep_over_the_strength_of_a_mapped_slider(comfy):
    strengths = (-2.0, 0.0, 2.0)
    prompt = Mapped().map("half map", "half").mapped("swept", ["sweep", 0], "half map").prompt
    del prompt["save swept"]
    prompt |= {
        "sweep": sweep("-2, 0, 2"),
        "vae": node("VAELoader", vae_name=small_models.VAE),
        "decode": node("VAEDecode", samples=["sample swept", 0], vae=["vae", 0]),
        "grid": grid(arrange="row"),
    }
    result = comfy.run(prompt | {"keep": node("TestSaveTensor", value=["grid", 0], name="grid")})
    assert times(result, "sample swept") == 3
    whole = value(comfy, "grid")
    for place, strength in enumerate(strengths):
        single = {name: each for name, each in prompt.items() if name not in ("sweep", "grid")}
        single["slider swept"] = node("DiffLoraMappedSliderWanVideo", **prompt["slider swept"]["inputs"])
        single["slider swept"]["inputs"]["strength"] = strength
        comfy.run(single | {"keep": node("TestSaveTensor", value=["decode", 0], name="single")})
        cell = whole[:, -68:-4, 4 + place * 68 : 68 + place * 68]
        assert (cell - value(comfy, "single").clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


class TestRefused:
    def failure(self, comfy, prompt):
        with pytest.raises(NodeFailed) as failed:
            comfy.run(prompt.prompt)
        return failed.value

    @pytest.mark.parametrize("cache", ["TeaCache", "MagCache", "EasyCache"])
    def test_caches_that_skip_steps_between_the_passes(self, comfy, cache):
        settings = {
            "TeaCache": dict(rel_l1_thresh=0.2, use_coefficients=False, mode="e"),
            "MagCache": dict(magcache_thresh=0.02, magcache_K=4),
            "EasyCache": dict(easycache_thresh=0.015),
        }[cache]
        prompt = Mapped().map("half map", "half").map("late", steps="50:0, 50:1")
        prompt.prompt["cache"] = node(
            f"WanVideo{cache}", start_step=1, end_step=-1, cache_device="offload_device", **settings
        )
        prompt.mapped("cached", 2.0, "half map", cache_args=["cache", 0], steps=3)
        error = self.failure(comfy, prompt)
        assert error.node_id == "sample cached" and f"map: {cache} is on this model" in error.message
        prompt.prompt["slider cached"]["inputs"]["map"] = ["late", 0]  # one pass a step: nothing to mix up
        comfy.run(prompt.prompt)

    def test_a_model_that_merged_loras(self, comfy, style_and_distill):
        prompt = Mapped(lora=["merged", 0]).map("half map", "half").mapped("merged", 2.0, "half map")
        prompt.prompt["merged"] = node(
            "WanVideoLoraSelect", lora=STYLE, strength=1.0, low_mem_load=False, merge_loras=True
        )
        error = self.failure(comfy, prompt)
        assert error.node_id == "slider merged" and "merged its LoRAs into this model" in error.message

    def test_two_maps_and_frames_that_nobody_counted(self, comfy):
        prompt = Mapped().map("half map", "half").mapped("first", 2.0, "half map", sample=False)
        prompt.mapped("second", 2.0, "half map", "slider first")
        error = self.failure(comfy, prompt)
        assert error.node_id == "slider second" and "map on this model already" in error.message

        prompt = Mapped().map("ramp", frames="0:0, 100:1").mapped("uncounted", 2.0, "ramp", images=False)
        error = self.failure(comfy, prompt)
        assert error.node_id == "slider uncounted" and "Wire the sampler's image_embeds" in error.message

        prompt = Mapped().map("pictures", "masks").mapped("counted", 2.0, "pictures")
        prompt.prompt["masks"] = node("TestMasks", count=4)
        error = self.failure(comfy, prompt)
        assert error.node_id == "sample counted" and "4 pictures, but the clip has 9 frames" in error.message

    def test_a_lora_for_another_model(self, comfy):
        prompt = Mapped().map("half map", "half").mapped("foreign", 2.0, "half map")
        prompt.prompt["foreign"] = node("DiffLoraLoad", lora_name=small_models.DENSE)
        prompt.prompt["slider foreign"]["inputs"]["lora"] = ["foreign", 0]
        error = self.failure(comfy, prompt)
        assert error.node_id == "slider foreign" and "another base model" in error.message
