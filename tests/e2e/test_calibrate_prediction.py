"""Calibrate LoRA by the model's prediction, on a real server: checked with ComfyUI's own samplers and LoRA loader."""

import ast
import math
import os
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import difflora
from difflora.rank.calibrate import CalibratedLora, way_to
from difflora.saving.recipes import SavedRecipe, find_in, from_recipe
from difflora.storage.reader import read_header
from tests import small_models
from tests.comfy_server import Interrupted, NodeFailed
from tests.e2e.test_cancel import SECOND, machine_slowness
from tests.e2e.test_purify import files, lines, saved
from tests.e2e.test_server import hashed, sampling
from tests.e2e.test_sweep import node

EMPTY = node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1)
SHAPE = (1, 16, 1, 8, 8)


def calibrating(weight_dtype="default", **settings):
    """Calibrate LoRA with all it needs; settings replace its inputs, None takes one away."""
    inputs = {
        "lora": ["slider", 0], "by": "prediction", "norm": 1.0, "change": 1.0, "model": ["model", 0],
        "conditioning": ["text", 0], "latent": ["empty", 0], "percent": 5.0, "noise": 0.75, "samples": 1,
    } | settings  # fmt: skip
    return files() | {
        "model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype=weight_dtype),
        "text": sampling()["text"],
        "empty": EMPTY,
        "unit": node("DiffLoraCalibrate", **{name: value for name, value in inputs.items() if value is not None}),
    }


def wan21(name):
    """A constant of ComfyUI's latent format, (1, 16, 1, 1, 1)."""
    source = Path(os.environ["COMFYUI_DIR"], "comfy/latent_formats.py").read_text("utf-8")
    wan = source[source.index("class Wan21(") :]
    values = re.search(rf"self\.{name} = torch\.tensor\((\[[^\]]*\])\)", wan)[1]
    return torch.tensor(ast.literal_eval(values)).view(1, 16, 1, 1, 1)


def predictions(comfy, lora_name, noise, strengths):
    """The model's prediction of noise − picture on its way from noise of seed 0, by ComfyUI's Euler sampler."""
    prompt = {
        "model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default"),
        "text": sampling()["text"],
        "empty": EMPTY,
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "random": node("RandomNoise", noise_seed=0),
        "none": node("DisableNoise"),
        "way": node("TestSigmas", text=str(way_to(noise))),
        "last": node("TestSigmas", text=str([noise, 0.0])),
        "plain": node("BasicGuider", model=["model", 0], conditioning=["text", 0]),
        "there": node(
            "SamplerCustomAdvanced", noise=["random", 0], guider=["plain", 0], sampler=["euler", 0], sigmas=["way", 0],
            latent_image=["empty", 0],
        ),
        "save there": node("TestSaveTensor", value=["there", 0], name="there"),
    }  # fmt: skip
    begins = {"noise": ["none", 0], "latent_image": ["there", 0]}
    if noise == 1:
        begins = {"noise": ["random", 0], "latent_image": ["empty", 0]}
        del prompt["there"], prompt["save there"]
    for strength in strengths:
        prompt |= {
            f"model {strength}": node(
                "LoraLoaderModelOnly", model=["model", 0], lora_name=lora_name, strength_model=strength
            ),
            f"guider {strength}": node("BasicGuider", model=[f"model {strength}", 0], conditioning=["text", 0]),
            f"end {strength}": node(
                "SamplerCustomAdvanced", guider=[f"guider {strength}", 0], sampler=["euler", 0], sigmas=["last", 0], **begins
            ),
            f"save {strength}": node("TestSaveTensor", value=[f"end {strength}", 0], name=f"end {strength}"),
        }  # fmt: skip
    comfy.run(prompt)
    mean, deviation = wan21("latents_mean"), wan21("latents_std")

    def latent(name):
        return ((load_file(comfy.base / f"output/{name}.safetensors")["value"] - mean) / deviation).double()

    if noise == 1:
        noisy = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).double()
    else:
        noisy = latent("there") * (1 - noise)  # ComfyUI divides what a sampler leaves unfinished
    return [(noisy - latent(f"end {strength}")) / noise for strength in strengths]


def change(plain, plus, minus):
    return float((plus - minus).norm() / 2 / plain.norm())


def test_with_comfyuis_own_sampler_and_loader_the_saved_slider_changes_the_prediction_by_the_unit(comfy):
    save, path = saved(comfy, "unit", "by_prediction")
    result = comfy.run(calibrating() | save)
    assert lines(result, "unit")[0] == "strength 1 is a change of the prediction by 5% at noise 0.75"
    assert read_header(path).metadata["difflora.unit"] == "a change of the prediction by 5% at noise 0.75"
    assert change(*predictions(comfy, path.name, 0.75, [0.0, 1.0, -1.0])) == pytest.approx(0.05, rel=0.012)
    before = change(*predictions(comfy, small_models.DENSE, 0.75, [0.0, 1.0, -1.0]))
    told = re.fullmatch(r"before, strength 1 changed it by (.*)%", lines(result, "unit")[2])[1]
    assert float(told) == pytest.approx(100 * before, rel=0.01)
    factor = float(re.fullmatch(rf"{small_models.DENSE} times (.*)", lines(result, "unit")[1])[1])
    recipe = SavedRecipe.of_file(path).of
    again = from_recipe(recipe, find_in(comfy.models("loras")))
    assert isinstance(again, CalibratedLora) and again.factor == pytest.approx(factor, rel=1e-3)
    loaded = difflora.load(path)
    for name in loaded:
        assert torch.equal(again[name].up, loaded[name].up) and torch.equal(again[name].down, loaded[name].down)


def test_the_model_is_as_before_to_the_last_bit(comfy):
    comfy.forget()
    before = hashed(comfy.run(sampling()))["sha256"]
    weights = node("TestSaveParameters", model=["model", 0], name="before")
    comfy.run({"model": sampling()["model"], "save": weights})
    comfy.run(calibrating(samples=2, noise=0.9) | {"keep": node("TestKeep", value=["unit", 0])})
    weights = node("TestSaveParameters", model=["model", 0], name="after")
    comfy.run({"model": sampling()["model"], "save": weights})
    one, other = (load_file(comfy.base / f"output/{name}.safetensors") for name in ("before", "after"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    # The same model, still loaded. Another seed in between, or the picture would come from the cache.
    comfy.run(sampling(seed=2))
    assert hashed(comfy.run(sampling()))["sha256"] == before


def test_on_fp8_weights_a_small_slider_is_measured_beside_them(comfy):
    factors = []
    for dtype in ("default", "fp8_e4m3fn"):
        result = comfy.run(calibrating(dtype, percent=0.5) | {"keep": node("TestKeep", value=["unit", 0])})
        factors.append(float(lines(result, "unit")[1].rpartition(" ")[2]))
    # In the weights, so small a change would be lost: fp8 has steps of 6 to 12 %.
    assert factors[0] == pytest.approx(factors[1], rel=0.1)


def test_noise_alone_takes_no_way_and_more_samples_are_averaged(comfy):
    changes = []
    for samples in (1, 2, 3):
        result = comfy.run(calibrating(noise=1.0, samples=samples) | {"keep": node("TestKeep", value=["unit", 0])})
        changes.append(float(re.search("by (.*)%", lines(result, "unit")[2])[1]))
    exact = change(*predictions(comfy, small_models.DENSE, 1.0, [0.0, 1.0, -1.0]))
    assert changes[0] == pytest.approx(100 * exact, rel=0.01)
    assert len(set(changes)) == 3 and max(changes) < 1.5 * min(changes)


def test_cancel_ends_it_within_a_second_and_leaves_the_model_as_it_was(comfy):
    comfy.forget()
    before = hashed(comfy.run(sampling()))["sha256"]
    prompt = calibrating(samples=64) | {"empty": sampling()["empty"], "keep": node("TestKeep", value=["unit", 0])}
    slowness = machine_slowness()
    prompt_id = comfy.queue(prompt)
    comfy.wait_for_node(prompt_id, "unit")
    time.sleep(0.5 * slowness)
    began = time.monotonic()
    comfy.interrupt()
    with pytest.raises(Interrupted):
        comfy.wait(prompt_id)
    assert time.monotonic() - began < SECOND * slowness
    comfy.run(sampling(seed=2))
    assert hashed(comfy.run(sampling()))["sha256"] == before


@pytest.mark.parametrize("missing", ["model", "conditioning", "latent"])
def test_what_is_not_connected_is_named(comfy, missing):
    with pytest.raises(NodeFailed, match=f"{missing}: not connected"):
        comfy.run(calibrating(**{missing: None}) | {"keep": node("TestKeep", value=["unit", 0])})


def test_models_that_are_no_flow_and_sliders_of_other_models_are_refused(comfy):
    keep = {"keep": node("TestKeep", value=["unit", 0])}
    eps = {"eps": node("ModelSamplingDiscrete", model=["model", 0], sampling="eps", zsnr=False)}
    with pytest.raises(NodeFailed, match="not a flow-matching model"):
        comfy.run(calibrating(model=["eps", 0]) | eps | keep)
    other = {"slider": node("DiffLoraLoad", lora_name=small_models.WRAPPER_DENSE)}
    with pytest.raises(NodeFailed, match="another base model"):
        comfy.run(calibrating() | other | keep)


@pytest.mark.parametrize("wrong", [{"percent": math.inf}, {"noise": 0.0}, {"samples": 0}])
def test_numbers_from_links_are_checked(comfy, wrong):
    ((name, value),) = wrong.items()
    number = {"number": node("TestJson", text=str(value).replace("inf", "Infinity"))}
    with pytest.raises(NodeFailed, match=f"{name} is"):
        comfy.run(calibrating(**{name: ["number", 0]}) | number | {"keep": node("TestKeep", value=["unit", 0])})
