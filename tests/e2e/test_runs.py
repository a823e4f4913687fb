"""The checkpoints of a pair of trainings, through the real server."""

import shutil

import pytest

from tests import small_models
from tests.comfy_server import NodeFailed


@pytest.fixture(scope="module")
def runs(comfy):
    """Two trainings of two steps each: at step 200 they are the small pair, at step 100 each is another LoRA."""
    folder = comfy.models("loras")
    model = comfy.models("diffusion_models") / small_models.WAN
    for side, name, seed in (("dense", small_models.DENSE, 70), ("sparse", small_models.SPARSE, 71)):
        target = folder / "trained ペア" / side
        target.mkdir(parents=True)
        small_models.write_lora(target / f"slider_{side}-step00000100.safetensors", model, seed=seed)
        shutil.copy(folder / name, target / f"slider_{side}-step00000200.safetensors")
    return {f"run_{letter}": f"trained ペア/{side}/slider_{side}" for letter, side in (("a", "dense"), ("b", "sparse"))}


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def test_runs_are_listed(comfy, runs):
    listed = comfy.object_info("DiffLoraLoadCheckpoints")["input"]["required"]["run_a"]
    options = listed[0] if isinstance(listed[0], list) else listed[1]["options"]
    assert set(runs.values()) <= set(options)


@pytest.mark.parametrize("step", [200, 0])
def test_a_step_is_the_pair_of_its_files(comfy, runs, step):
    prompt = {
        "pair": node("DiffLoraLoadCheckpoints", **runs, step=step),
        "of the step": node("DiffLoraAnalyze", a=["pair", 0], b=["pair", 1], rank=4, show="difference"),
        "a": node("DiffLoraLoad", lora_name=small_models.DENSE),
        "b": node("DiffLoraLoad", lora_name=small_models.SPARSE),
        "of the files": node("DiffLoraAnalyze", a=["a", 0], b=["b", 0], rank=4, show="difference"),
        "first": node("PreviewAny", source=["of the step", 3]),
        "second": node("PreviewAny", source=["of the files", 3]),
    }
    result = comfy.run(prompt)
    assert result.output("first")["text"] == result.output("second")["text"]


def test_steps_are_compared(comfy, runs):
    prompt = {
        "compare": node("DiffLoraCompareCheckpoints", **runs),
        "csv": node("PreviewAny", source=["compare", 2]),
    }
    result = comfy.run(prompt)
    lines = result.output("csv")["text"][0].splitlines()
    assert lines[0] == "step,norm_a,norm_b,difference,cosine,direction,energy_rank_4"
    early, late = (dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:])
    assert (early["step"], late["step"]) == ("100", "200")
    assert abs(float(early["cosine"])) < 0.2, "two LoRAs that have nothing in common"
    assert float(late["cosine"]) > 0.5, "a pair"
    assert len(comfy.view(**result.output("compare")["images"][0])) > 5000
    assert "compare" not in comfy.run(prompt).executed
    target = comfy.models("loras") / "trained ペア/dense/slider_dense-step00000100.safetensors"
    small_models.write_lora(target, comfy.models("diffusion_models") / small_models.WAN, seed=72)
    again = comfy.run(prompt)
    assert "compare" in again.executed
    assert again.output("csv")["text"] != result.output("csv")["text"]


def test_a_step_that_is_not_there_is_named(comfy, runs):
    with pytest.raises(NodeFailed, match="no checkpoint of step 150. It has 100, 200"):
        comfy.run(
            {
                "pair": node("DiffLoraLoadCheckpoints", **runs, step=150),
                "x": node("DiffLoraAnalyze", a=["pair", 0], b=["pair", 1], rank=4, show="difference"),
            }
        )
