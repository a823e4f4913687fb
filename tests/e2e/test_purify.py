"""Purify, Independent Sliders and Calibrate on a real server, down to the weights and the saved file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import difflora
from difflora.storage.reader import read_header
from tests import small_models
from tests.comfy_server import NodeFailed
from tests.e2e.test_chain import message
from tests.e2e.test_sweep import node, swept


def files():
    return {
        "slider": node("DiffLoraLoad", lora_name=small_models.DENSE),
        "other": node("DiffLoraLoad", lora_name=small_models.SPARSE),
    }


def saved(comfy, source, name, slot=0):
    prompt = {
        "save": node(
            "DiffLoraSave",
            lora=[source, slot],
            filename_prefix=name,
            dtype="float32",
            dialect="native",
            if_exists="overwrite",
        )
    }
    return prompt, comfy.base / "models" / "loras" / f"{name}.safetensors"


def lines(result, name):
    return [line["text"] for line in message(result, name)["report"]["lines"]]


def test_a_purified_slider_is_saved_as_the_dense_projection(comfy):
    save, path = saved(comfy, "pure", "purified")
    prompt = files() | save | {"pure": node("DiffLoraPurify", lora=["slider", 0], against=["other", 0], directions=2)}
    result = comfy.run(prompt)
    folder = comfy.models("loras")
    slider, other, pure = (
        difflora.load(file) for file in (folder / small_models.DENSE, folder / small_models.SPARSE, path)
    )
    before = after = 0.0
    for name in slider.matrices:
        dense, against = (lora[name].dense(torch.float64).flatten(1).numpy() for lora in (slider, other))
        strongest = np.linalg.svd(against)[0][:, :2]
        expected = dense - strongest @ (strongest.T @ dense)
        assert np.abs(pure[name].dense(torch.float64).flatten(1).numpy() - expected).max() <= 1e-5 * np.abs(dense).max()
        before, after = before + np.square(dense).sum(), after + np.square(expected).sum()
    assert lines(result, "pure")[0] == f"{1 - after / before:.1%} of the slider removed, {after / before:.1%} left"
    assert result.output("pure")["images"]  # the heat map


def test_a_slider_against_itself_is_refused(comfy):
    prompt = files() | {"pure": node("DiffLoraPurify", lora=["slider", 0], against=["slider", 0], directions=2)}
    prompt |= saved(comfy, "pure", "never")[0]
    with pytest.raises(NodeFailed, match="the slider and what is to be removed are the same"):
        comfy.run(prompt)


def test_independent_sliders_leave_the_first_and_keep_the_size_of_the_second(comfy):
    save, path = saved(comfy, "both", "second", slot=1)
    prompt = (
        files() | save | {"both": node("DiffLoraIndependent", lora_1=["slider", 0], lora_2=["other", 0], directions=2)}
    )
    result = comfy.run(prompt)
    assert lines(result, "both")[0] == f"unchanged: {small_models.DENSE}"
    norms = [
        np.sqrt(sum(float(lora[name].dense(torch.float64).square().sum()) for name in lora.matrices))
        for lora in (difflora.load(path), difflora.load(comfy.models("loras") / small_models.SPARSE))
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_by_norm_the_file_has_the_unit_and_the_size(comfy):
    save, path = saved(comfy, "unit", "calibrated")
    prompt = files() | save | {"unit": node("DiffLoraCalibrate", lora=["slider", 0], by="norm", norm=0.25, change=1.0)}
    result = comfy.run(prompt)
    lora = difflora.load(path)
    norms = [float(lora[name].dense(torch.float64).norm()) for name in lora.matrices]
    assert np.mean(norms) == pytest.approx(0.25, rel=1e-5)
    assert read_header(path).metadata["difflora.unit"] == "a mean norm of 0.25 a module"
    assert lines(result, "unit")[0] == "strength 1 is a mean norm of 0.25 a module"


def test_by_the_measured_safe_range_its_nearer_end_is_three(comfy):
    prompt = swept("-2, -1, 0, 1, 2", seed=77)
    prompt["response"] = node(
        "DiffLoraSliderResponse",
        sweep=["grid", 1],
        target="edges",
        colour_limit=0.5,
        brightness_limit=0.0,
        saturation_limit=0.0,
        moments=2,
    )
    prompt["unit"] = node(
        "DiffLoraCalibrate", lora=["small", 0], by="safe range", norm=1.0, change=1.0, response=["response", 6]
    )
    save, path = saved(comfy, "unit", "ranged")
    save["save"]["inputs"]["recommended_strength"] = ["unit", 2]
    prompt |= save
    result = comfy.run(prompt)
    low, high = (float(end) for end in read_header(path).metadata["difflora.recommended_strength"].split(" to "))
    assert min(-low, high) == pytest.approx(3, abs=0.01)
    assert "a third of the recommended range" in lines(result, "unit")[0]


def test_without_a_response_the_node_says_what_is_missing(comfy):
    prompt = files() | saved(comfy, "unit", "never")[0]
    prompt["unit"] = node("DiffLoraCalibrate", lora=["slider", 0], by="change", norm=1.0, change=1.0)
    with pytest.raises(NodeFailed, match="response is not connected"):
        comfy.run(prompt)


def test_sizes_and_keys_of_what_is_written_are_those_of_the_slider(comfy):
    save, path = saved(comfy, "pure", "same_shape")
    prompt = files() | save | {"pure": node("DiffLoraPurify", lora=["slider", 0], against=["other", 0], directions=1)}
    comfy.run(prompt)
    slider = difflora.load(comfy.models("loras") / small_models.DENSE)
    assert {name: spec.ranks for name, spec in difflora.load(path).specs.items()} == {
        name: spec.ranks for name, spec in slider.specs.items()
    }
    assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


@pytest.mark.parametrize("saved_first", [False, True])
def test_a_slider_node_shows_the_unit_of_a_calibrated_lora(comfy, saved_first):
    prompt = files() | {"unit": node("DiffLoraCalibrate", lora=["slider", 0], by="norm", norm=0.25, change=1.0)}
    slider = ["unit", 0]
    if saved_first:
        comfy.run(prompt | saved(comfy, "unit", "unit_on_slider")[0])
        prompt, slider = {"file": node("DiffLoraLoad", lora_name="unit_on_slider.safetensors")}, ["file", 0]
    prompt |= {
        "model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default"),
        "native": node("DiffLoraSliderModel", model=["model", 0], lora=slider, strength=1.0, apply="patch"),
        "wan": node("DiffLoraSliderWanVideo", lora=slider, strength=1.0, merge_loras=False, low_mem_load=False),
        "keep": node("TestKeep", value=["native", 0]),
        "keep_wan": node("TestKeep", value=["wan", 0]),
    }
    comfy.forget()
    result = comfy.run(prompt)
    for name in ("native", "wan"):
        assert lines(result, name)[-1] == "strength 1 is a mean norm of 0.25 a module"
