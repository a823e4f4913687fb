"""A/B Compare and Sweep Response on a real server."""

import csv
import io
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.comfy_server import NodeFailed
from tests.e2e.test_sweep import node, sweep, swept


def picture(comfy, name, colour, size=(64, 48)):
    Image.new("RGB", size, colour).save(comfy.base / "input" / name)
    return node("LoadImage", image=name)


def comparison(a, b, **more):
    inputs = {"mode": "difference", "amplify": 4.0, "fps": 16.0, "label_a": "before", "label_b": "after"} | more
    return {
        "a": a,
        "b": b,
        "compare": node("DiffLoraABCompare", a=["a", 0], b=["b", 0], **inputs),
        "keep": node("TestSaveTensor", value=["compare", 0], name="compared"),
        "text": node("PreviewAny", source=["compare", 1]),
    }


def compared(comfy, prompt):
    result = comfy.run(prompt)
    shown = result.output("compare")["difflora"][0]
    return load_file(comfy.base / "output/compared.safetensors")["value"], shown


class TestCompare:
    def test_a_difference_is_enlarged_around_grey_with_its_sign(self, comfy):
        a, b = picture(comfy, "a.png", (100, 100, 100)), picture(comfy, "b.png", (110, 100, 90))
        images, shown = compared(comfy, comparison(a, b))
        assert images.shape == (1, 48, 64, 3)
        assert torch.allclose(images[0, 5, 5] * 255, torch.tensor([168.0, 128.0, 88.0]))
        assert "6.67 of 255 on average, 10 at most" in shown["report"]["lines"][1]["text"]
        assert [clip["label"] for clip in shown["player"]["clips"]] == ["before", "after"]
        assert comfy.view(**shown["player"]["videos"][0])[4:8] == b"ftyp"

    def test_equal_pictures_have_no_difference(self, comfy):
        a, b = picture(comfy, "a.png", (100, 90, 80)), picture(comfy, "same.png", (100, 90, 80))
        images, shown = compared(comfy, comparison(a, b))
        assert (images * 255 == 128).all() and "no difference" in shown["report"]["lines"][1]["text"]

    def test_a_wipe_has_a_left_and_b_right(self, comfy):
        a, b = picture(comfy, "a.png", (100, 0, 0)), picture(comfy, "b.png", (0, 0, 110))
        images, _ = compared(comfy, comparison(a, b, mode="wipe"))
        assert images[0, 5, 5, 0] > 0.3 and images[0, 5, 60, 2] > 0.3 and (images[0, 5, 32] == 1).all()

    def test_other_sizes_and_lengths_are_handled_and_said(self, comfy):
        prompt = comparison(picture(comfy, "a.png", (9, 9, 9)), picture(comfy, "wide.png", (250, 250, 250), (100, 50)))
        prompt["three"] = node("RepeatImageBatch", image=["a", 0], amount=3)
        prompt["compare"]["inputs"] |= {"a": ["three", 0], "mode": "side by side"}
        images, shown = compared(comfy, prompt)
        warnings = [line["text"] for line in shown["report"]["lines"] if line["level"] == "warning"]
        assert warnings == [
            "B is 100×50 and A 64×48: B was fitted into A's size",
            "A has 3 frames and B 1: B holds its last frame",
        ]
        assert images.shape[0] == 3 and images.shape[2] > 2 * 64
        assert torch.equal(images[0], images[2])


def measured(strengths="-2, -1, 0, 1, 2", seed=20, **more):
    prompt = swept(strengths, seed=seed) | {
        "response": node(
            "DiffLoraSliderResponse",
            sweep=["grid", 1],
            **{"target": "edges", "colour_limit": 5.0, "brightness_limit": 10.0, "saturation_limit": 10.0, "moments": 3}
            | more,
        ),
        "numbers": node("TestShow", value=["response", 3]),
        "symmetry": node("TestShow", value=["response", 4]),
        "range": node("TestShow", value=["response", 5]),
        "csv": node("TestShow", value=["response", 1]),
        "words": node("TestShow", value=["response", 2]),
        "plot": node("PreviewImage", images=["response", 0]),
    }
    return prompt


def shown(result, name):
    return json.loads(result.output(name)["text"][0])


class TestResponse:
    def test_plot_table_text_and_numbers_of_a_real_sweep(self, comfy):
        result = comfy.run(measured())
        table = list(csv.DictReader(io.StringIO(shown(result, "csv"))))
        assert [float(line["strength"]) for line in table] == [-2, -1, 0, 1, 2]
        assert float(table[2]["distance (ΔE from the baseline, pixel by pixel)"]) == 0
        assert all(float(table[i]["distance (ΔE from the baseline, pixel by pixel)"]) > 0.1 for i in (0, 1, 3, 4))
        assert -1 <= shown(result, "numbers") <= 1 and shown(result, "symmetry") <= 1
        assert shown(result, "words").startswith("edge density: ")
        assert result.output("response")["images"] and result.output("plot")["images"]

    def test_without_limits_the_whole_sweep_is_recommended_and_the_slider_shows_it_from_the_file(self, comfy):
        prompt = measured(colour_limit=0.0, brightness_limit=0.0, saturation_limit=0.0)
        prompt["save"] = node(
            "DiffLoraSave",
            lora=["small", 0],
            filename_prefix="measured",
            dtype="float32",
            dialect="native",
            if_exists="overwrite",
            recommended_strength=["response", 5],
        )
        assert shown(comfy.run(prompt), "range") == "-2 to 2"
        load = {"load": node("DiffLoraLoad", lora_name="measured.safetensors")}
        load["slider"] = node(
            "DiffLoraSliderWanVideo", lora=["load", 0], strength=1.0, merge_loras=False, low_mem_load=False
        )
        load["show"] = node("TestShow", value=["slider", 0])
        result = comfy.run(load)
        assert result.output("slider")["difflora"][0]["strength_range"] == [-2.0, 2.0]

    def test_several_sweeps_are_averaged(self, comfy):
        prompt = measured("-1, 0, 1", seed=20)
        other = swept("-1, 0, 1", seed=21)
        for name in ("sweep", "slider", "sample", "decode", "grid"):
            copy = json.loads(json.dumps(other[name]))
            for key, value in copy["inputs"].items():
                if isinstance(value, list) and value[0] in ("sweep", "slider", "sample", "decode"):
                    copy["inputs"][key] = [f"other {value[0]}", value[1]]
            prompt[f"other {name}"] = copy
        prompt["response"]["inputs"]["sweep_2"] = ["other grid", 1]
        result = comfy.run(prompt)
        assert len(list(csv.DictReader(io.StringIO(shown(result, "csv"))))) == 3

    def test_a_sweep_without_its_baseline_is_an_error_in_one_line(self, comfy):
        with pytest.raises(NodeFailed, match="baseline 0 is not among the strengths") as failure:
            comfy.run(measured("1, 2", seed=22))
        assert failure.value.node_id == "response"

    def test_a_sweep_alone_gives_its_first_strength(self, comfy):
        result = comfy.run({"sweep": sweep("0.5, 2"), "show": node("TestShow", value=["sweep", 0])})
        assert shown(result, "show") == 0.5
