"""LoRA Slider Rack against a chain of LoRA Sliders, and what it says of rows that are off, missing or another model's."""

import json
import os
import shutil

import pytest
import torch

from tests import small_models
from tests.comfy_server import NodeFailed, PromptRejected
from tests.e2e.test_block_toggle import Wrapper, sampled
from tests.e2e.test_slider import FP8, I2V, files, lines, message, node, read, slider  # noqa: F401

MODEL = {"model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default")}


def rack(rows, model="model", **inputs):
    return MODEL | {"slider": node("DiffLoraSliderRack", model=[model, 0], rows=rows, apply="auto", **inputs)}


def chained(*loras, apply="auto"):
    """One slider after another. loras: (file, strength)"""
    prompt, before = dict(MODEL), "model"
    for number, (name, strength) in enumerate(loras):
        prompt[f"lora{number}"] = node("DiffLoraLoad", lora_name=name)
        prompt[f"slider{number}"] = slider(before, strength, apply) | {}
        prompt[f"slider{number}"]["inputs"] |= {"lora": [f"lora{number}", 0]}
        before = f"slider{number}"
    prompt["slider"] = prompt.pop(before)
    return prompt


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("apply", ("patch", "bypass"))
def test_a_rack_is_bit_for_bit_a_chain_of_sliders(read, apply):  # noqa: F811
    pair = (small_models.DENSE, -1.5), (small_models.SPARSE, 0.75)
    rows = "\n".join(f"{strength} {name}" for name, strength in pair)
    expected, _ = read(chained(*pair, apply=apply))
    prompt = rack(rows)
    prompt["slider"]["inputs"]["apply"] = apply
    found, result = read(prompt)
    assert same(found, expected)
    where = "applied" if apply == "patch" else "applied, beside the weights"
    assert lines(result)[:2] == [
        f"dense, −1.5: 30 of 30 modules {where}",
        f"sparse, +0.75: 30 of 30 modules {where}",
    ]


def test_rows_that_are_off_or_zero_change_nothing_and_the_rack_multiplies_them_all(read):  # noqa: F811
    base, _ = read(rack(""))
    off, result = read(rack(f"off 2 {small_models.DENSE}\n0 {small_models.SPARSE}\noff 1 gone.safetensors"))
    assert same(off, base)
    assert lines(result) == ["sparse, +0: nothing is added"]
    assert message(result, "slider")["report"]["title"]["text"] == "1 of 3 LoRAs are on"
    twice, _ = read(rack(f"1 {small_models.DENSE}", strength=-2.0))
    assert same(twice, read(chained((small_models.DENSE, -2.0)))[0]) and not same(twice, base)
    added, _ = read(rack(f"1 {small_models.DENSE}\n1 {small_models.DENSE}", strength=-1.0))
    assert same(added, read(chained((small_models.DENSE, -1.0), (small_models.DENSE, -1.0)))[0])
    assert max(float((added[key] - twice[key]).abs().max()) for key in base) < 1e-5, "the same LoRA twice adds up"


@pytest.mark.parametrize(
    ("rows", "inputs", "says"),
    [
        (f"1 {small_models.DENSE}\n1 gone.safetensors", {}, "row 2: gone.safetensors is not in the loras folder"),
        ("1 ../../secret.safetensors", {}, "row 1: ../../secret.safetensors is not in the loras folder"),
        ("1 /etc/passwd", {}, "row 1: /etc/passwd is not in the loras folder"),
        (f"{small_models.DENSE}", {}, "row 1: dense.safetensors cannot be read. Write a strength"),
        (f"4 {small_models.DENSE}", {"strength": 3.0}, "row 1: 4 times the rack's strength 3 is 12"),
        ("1 alone_high.safetensors", {"twin": "low"}, "row 1: alone_high.safetensors is for high noise, and its twin"),
        (f"1 {small_models.DENSE}", {"twin": "both"}, ""),
        (f"1 {small_models.DENSE}\n1 other_model.safetensors", {}, "row 2: "),
    ],
)
def test_what_is_wrong_is_said_with_its_row(files, rows, inputs, says):  # noqa: F811
    loras = files.models("loras")
    shutil.copyfile(loras / small_models.DENSE, loras / "alone_high.safetensors")
    small_models.write_lora(loras / "other_model.safetensors", wide(files), seed=3)
    with pytest.raises((NodeFailed, PromptRejected)) as failure:
        files.run(rack(rows, **inputs) | {"keep": node("TestKeep", value=["slider", 0])})
    if says:
        assert says in failure.value.message
    assert str(files.base) not in str(failure.value)


def wide(comfy):
    path = comfy.base / "wide.safetensors"
    if not path.exists():
        small_models.write_wan(path, dim=128, seed=4)
    return path


def test_one_rack_drives_both_models_of_wan22(files, read):  # noqa: F811
    loras = files.models("loras") / "twins"
    loras.mkdir(exist_ok=True)
    for name, source in (
        ("high_noise/cat", small_models.DENSE),
        ("low_noise/cat", small_models.SPARSE),
        ("plain", small_models.DENSE),
    ):
        (loras / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(files.models("loras") / source, loras / f"{name}.safetensors")
    for row in ("twins/high_noise/cat.safetensors", "twins\\low_noise\\cat.safetensors"):
        for twin, source in (("high", small_models.DENSE), ("low", small_models.SPARSE)):
            found, result = read(rack(f"2 {row}", twin=twin))
            assert same(found, read(chained((source, 2.0)))[0]), (row, twin)
    low, result = read(rack("2 twins/high_noise/cat.safetensors\n1 twins/plain.safetensors", twin="low"))
    assert same(low, read(chained((small_models.SPARSE, 2.0), (small_models.DENSE, 1.0)))[0])


def test_a_file_that_is_replaced_runs_again_and_one_that_is_off_does_not(files, read):  # noqa: F811
    path = files.models("loras") / "edited.safetensors"
    shutil.copyfile(files.models("loras") / small_models.DENSE, path)
    prompt = rack("1.5 edited.safetensors")
    before, _ = read(prompt)
    fresh = path.with_suffix(".new")
    shutil.copyfile(files.models("loras") / small_models.SPARSE, fresh)
    os.replace(fresh, path)
    after, _ = read(prompt)
    assert not same(before, after)
    assert same(after, read(chained((small_models.SPARSE, 1.5)))[0])


def test_the_page_is_told_of_files_without_a_run(files):  # noqa: F811
    names = [small_models.DENSE, "gone_low.safetensors", "../x.safetensors"]
    code, answer = files._request("/differential_lora/rack", {"names": names})
    told = json.loads(answer)
    assert code == 200 and told[small_models.DENSE]["rank"] and "missing" not in told[small_models.DENSE]
    assert told["gone_low.safetensors"] == {"noise": "low", "twin": None, "missing": True}
    assert told["../x.safetensors"] == {"missing": True}
    assert files._request("/differential_lora/rack", {"name": "x"})[0] == 400


# WanVideoWrapper

WRAPPED = (small_models.WRAPPER_DENSE, -2.0), (small_models.WRAPPER_SPARSE, 1.5)


def wrapper_rack(rows, **inputs):
    return node("DiffLoraSliderRackWanVideo", rows=rows, **{"merge_loras": False, "low_mem_load": False} | inputs)


def wrapper_chain(*loras, **inputs):
    """Sliders one after another; the last is called "chain"."""
    prompt, before = {}, {}
    for number, (name, strength) in enumerate(loras):
        prompt[f"load {number}"] = node("DiffLoraLoad", lora_name=name)
        plain = {"merge_loras": False, "low_mem_load": False, "strength": strength}
        prompt["chain"] = node("DiffLoraSliderWanVideo", lora=[f"load {number}", 0], **plain | before | inputs)
        prompt[f"slider {number}"] = prompt["chain"]
        before = {"prev_lora": [f"slider {number}", 0]}
    return prompt


def shown(comfy, prompt, *names):
    prompt = prompt | {f"show {name}": node("TestShow", value=[name, 0]) for name in names}
    result = comfy.run(prompt)
    return [json.loads(result.output(f"show {name}")["text"][0]) for name in names]


def test_a_rack_hands_the_wrapper_the_list_that_a_chain_of_sliders_does(comfy):
    rows = "\n".join(f"{strength} {name}" for name, strength in WRAPPED)
    prompt = wrapper_chain(*WRAPPED) | {
        "rack": wrapper_rack(f"off 3 gone.safetensors\n{rows}\n0 {small_models.WRAPPER_DENSE}"),
        "behind": wrapper_rack(f"1 {small_models.WRAPPER_DENSE}", prev_lora=["rack", 0], strength=-0.5),
        "steps": node("TestJson", text="[1.0, 0.5]"),
        "by step": wrapper_rack(f"-2 {small_models.WRAPPER_DENSE}", strength=["steps", 0]),
        "nothing": wrapper_rack(rows, strength=0.0, prev_lora=["rack", 0]),
    }
    chain, rack, behind, by_step, nothing = shown(comfy, prompt, "chain", "rack", "behind", "by step", "nothing")
    assert rack == chain == nothing and len(rack) == 2
    assert behind[:2] == rack and behind[2]["strength"] == -0.5 and behind[2]["path"] == rack[0]["path"]
    assert by_step[0]["strength"] == [-2.0, -1.0]
    with pytest.raises(NodeFailed, match="row 1: prev_lora: .* is merged, but .* are not"):
        shown(comfy, prompt | {"behind": wrapper_rack(rows, prev_lora=["rack", 0], merge_loras=True)}, "behind")


@pytest.mark.usefixtures("wrapper")
def test_the_wrapper_samples_the_same_behind_a_rack_as_behind_sliders(comfy):
    rows = "\n".join(f"{strength} {name}" for name, strength in WRAPPED)
    prompt = Wrapper()
    prompt.prompt |= wrapper_chain(*WRAPPED, model=["model", 0])
    prompt.prompt["rack"] = wrapper_rack(rows, model=["model", 0])
    prompt.prompt["twice"] = wrapper_rack(f"1 {small_models.WRAPPER_DENSE}\n1 {small_models.WRAPPER_DENSE}")
    prompt.prompt["double"] = wrapper_rack(f"2 {small_models.WRAPPER_DENSE}")
    for name in ("chain", "rack", "twice", "double"):
        prompt.prompt[f"set {name}"] = node("WanVideoSetLoRAs", model=["model", 0], lora=[name, 0])
        prompt.sample(name, f"set {name}")
    got = sampled(comfy, prompt.sample("plain", "model").prompt)
    assert torch.equal(got["rack"], got["chain"])
    assert (got["rack"] - got["plain"]).abs().max() > 0.01
    assert (got["twice"] - got["double"]).abs().max() < 1e-3 < (got["twice"] - got["plain"]).abs().max()
