"""Encode Pairs and Train Slider on a real server: the result, the checkpoint, Cancel, and the model afterwards."""

import contextlib
import json
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import difflora
from difflora.clips.video import write_video
from difflora.saving.recipes import SavedRecipe
from difflora.training.checkpoint import Checkpoint
from tests import small_models
from tests.comfy_server import Interrupted, NodeFailed
from tests.e2e.test_cancel import SECOND, machine_slowness
from tests.e2e.test_chain import message
from tests.e2e.test_server import hashed, sampling

CHECKPOINTS = "output/differential-lora/training"


@pytest.fixture(scope="module")
def pictures(comfy):
    """Six pairs of noise, the first side brighter; two of them in another shape, and one without a twin."""
    random = torch.Generator().manual_seed(0)
    for number in range(7):
        width, height = (64, 64) if number < 4 else (96, 48)
        pixels = torch.rand(height, width, 3, generator=random)
        for side, light in (("bright", 0.4), ("dark", 0.0)):
            folder = comfy.base / "input/train_pairs" / side
            folder.mkdir(parents=True, exist_ok=True)
            if number < 6 or side == "bright":
                image = Image.fromarray(((pixels * 0.6 + light) * 255).to(torch.uint8).numpy())
                image.save(folder / f"{number}.png")
    yield comfy
    shutil.rmtree(comfy.base / "input/train_pairs")
    shutil.rmtree(comfy.base / CHECKPOINTS, ignore_errors=True)


def graph(**settings):
    wanted = {
        "name": "test", "mode": "direct", "selection": "attn", "rank": 2, "steps": 4, "batch": 2,
        "learning_rate": "1e-3", "optimizer": "lion", "warmup": 2, "noise": "composition", "sigma_low": 0.5,
        "sigma_high": 0.9, "seed": 3, "reach": 3.0, "preview_every": 2, "checkpoint": "start anew",
    } | settings  # fmt: skip
    base = sampling()
    return {
        **{name: base[name] for name in ("model", "text", "vae")},
        "pairs": {
            "class_type": "DiffLoraEncodePairs",
            "inputs": {
                "vae": ["vae", 0], "folder_a": "input/train_pairs/bright", "folder_b": "input/train_pairs/dark",
                "size": 64,
            },
        },
        "train": {
            "class_type": "DiffLoraTrainSlider",
            "inputs": {
                "model": ["model", 0], "pairs": ["pairs", 0], "conditioning": ["text", 0], "vae": ["vae", 0], **wanted,
            },
        },
        "save": {
            "class_type": "DiffLoraSave",
            "inputs": {
                "lora": ["train", 0], "filename_prefix": f"trained/{wanted['name']}", "dtype": "float32",
                "dialect": "native", "if_exists": "overwrite", "recommended_strength": "",
            },
        },
    }  # fmt: skip


def saved(comfy, name="test"):
    return comfy.models("loras") / f"trained/{name}.safetensors"


def lines(result, node="train"):
    return [line["text"] for line in message(result, node)["report"]["lines"]]


def checkpoints(comfy):
    return sorted((comfy.base / CHECKPOINTS).glob("*.safetensors"))


def same_tensors(a, b):
    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["direct", "pair"])
def test_a_slider_is_trained_saved_and_says_how(pictures, mode):
    comfy = pictures
    result = comfy.run(graph(mode=mode, name=mode))
    told = lines(result, "train")
    assert any("4 steps on 6 pairs, 24 layers of rank 2" in line for line in told)
    assert any("needs about" in line for line in told)
    if mode == "direct":  # the second time Encode Pairs is cached, and ComfyUI sends no word of it
        assert any("1 picture has no twin" in line for line in lines(result, "pairs"))
    lora = difflora.load(saved(comfy, mode))
    assert set(lora) == {
        f"blocks.{block}.{part}.{letter}"
        for block in range(3)
        for part in ("self_attn", "cross_attn")
        for letter in "qkvo"
    }
    assert {spec.rank for spec in lora.specs.values()} == {2 if mode == "direct" else 4}
    recipe = SavedRecipe.of_file(saved(comfy, mode)).of
    trained = recipe if mode == "direct" else recipe["terms"][0]["of"]
    assert trained["op"] == "trained" and trained["settings"]["seed"] == 3 and trained["settings"]["steps"] == 4
    assert str(comfy.base) not in json.dumps(recipe)


@pytest.mark.slow
def test_the_same_seed_is_the_same_file_and_the_model_is_as_before(pictures):
    comfy = pictures
    before = hashed(comfy.run(sampling()))["sha256"]
    comfy.run(graph(name="once"))
    comfy.forget()  # another run in the same process, with the model loaded anew
    comfy.run(graph(name="twice"))
    assert same_tensors(saved(comfy, "once"), saved(comfy, "twice"))
    comfy.run(graph(name="other", seed=4))
    assert not same_tensors(saved(comfy, "once"), saved(comfy, "other"))
    # The model that was just trained on, still loaded, samples as if nothing had been.
    again = sampling(seed=2)
    comfy.run(again)
    assert hashed(comfy.run(sampling(steps=2, seed=1) | {"extra": graph()["text"]}))["sha256"] == before


@pytest.mark.slow
def test_a_training_goes_on_with_more_steps_and_ends_where_one_run_would(pictures):
    comfy = pictures
    comfy.run(graph(name="long", steps=6))
    comfy.run(graph(name="short", steps=3))
    result = comfy.run(graph(name="short", steps=6, checkpoint="go on"))
    assert any("resumed from step 3" in line for line in lines(result))
    assert same_tensors(saved(comfy, "long"), saved(comfy, "short"))
    as_it_is = comfy.run(graph(name="short", steps=500, checkpoint="use it as it is"))
    assert any("Not finished: 6 of 500" in line for line in lines(as_it_is))
    assert same_tensors(saved(comfy, "long"), saved(comfy, "short"))
    with pytest.raises(NodeFailed, match="no checkpoint"):
        comfy.run(graph(name="never", seed=77, checkpoint="use it as it is"))


@pytest.mark.slow
def test_cancel_keeps_what_was_reached_and_the_next_run_goes_on(pictures):
    comfy = pictures
    queued = comfy.queue(graph(name="stopped", steps=100_000, preview_every=0, seed=5))
    comfy.wait_for_node(queued, "train")
    deadline = time.monotonic() + 120
    while not [file for file in checkpoints(comfy) if file.name.startswith("stopped")] and time.monotonic() < deadline:
        time.sleep(0.2)
    began = time.monotonic()
    comfy.interrupt()
    with contextlib.suppress(Interrupted):
        comfy.wait(queued)
    assert time.monotonic() - began < 5  # a second on a machine that does nothing else
    result = comfy.run(graph(name="stopped", steps=1, seed=5, checkpoint="use it as it is"))
    reached = int(next(line for line in lines(result) if " steps on " in line).split()[0])
    assert reached >= 25
    result = comfy.run(graph(name="stopped", steps=reached + 2, seed=5, checkpoint="go on"))
    comfy.run(graph(name="whole", steps=reached + 2, seed=5))
    assert any(f"resumed from step {reached}" in line for line in lines(result))
    assert same_tensors(saved(comfy, "stopped"), saved(comfy, "whole"))


@pytest.fixture(scope="module")
def slow_model(pictures):
    """A model of which one step takes many seconds, and pairs to match."""
    comfy = pictures
    model = comfy.models("diffusion_models") / "slow_wan.safetensors"
    small_models.write_wan(model, 512, 6, 1024)
    random = torch.Generator().manual_seed(0)
    for side in ("bright", "dark"):
        folder = comfy.base / "input/slow_pairs" / side
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = torch.rand(1024, 1024, 3, generator=random)
            Image.fromarray((pixels * 255).to(torch.uint8).numpy()).save(folder / f"{number}.png", compress_level=1)
    yield comfy
    shutil.rmtree(comfy.base / "input/slow_pairs")
    model.unlink()


def slow_graph(size, **settings):
    prompt = graph(**{"name": "slow", "batch": 4} | settings)
    prompt["model"]["inputs"]["unet_name"] = "slow_wan.safetensors"
    prompt["pairs"]["inputs"] |= {
        "folder_a": "input/slow_pairs/bright", "folder_b": "input/slow_pairs/dark", "size": size,
    }  # fmt: skip
    return prompt


def cancelled_after(comfy, prompt, node, delay, step=None):
    """Seconds from Cancel to the end of the prompt, and how many it may take on this machine as it is now.

    delay   seconds, on a machine that does nothing else, from the node's beginning, or from this step of it, to Cancel
    """
    slowness = machine_slowness()
    queued = comfy.queue(prompt)
    if step is None:
        comfy.wait_for_node(queued, node)
    else:
        comfy.wait_for_step(queued, node, step)
    time.sleep(delay * slowness)
    began = time.monotonic()
    comfy.interrupt()
    with pytest.raises(Interrupted):
        comfy.wait(queued)
    took = time.monotonic() - began
    print(f"{node}: cancelled after {took:.2f} s (machine {slowness:.1f} times as slow as alone)")
    return took, SECOND * slowness


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.5, 1.5, 2.5, 3.5])
def test_cancel_within_a_second_anywhere_in_a_step(slow_model, delay):
    """On the way forward and on the way back: a step of this model takes several times as long."""
    took, most = cancelled_after(slow_model, slow_graph(256, steps=1000, preview_every=0), "train", delay)
    assert took < most


@pytest.mark.slow
@pytest.mark.parametrize("moment, reach", [("measured", 3.0), ("shown", 0.0)])
def test_cancel_within_a_second_while_the_slider_is_measured_or_shown(slow_model, moment, reach):
    """After the first step its size is measured, or with reach 0 its pictures are sampled at once; both take seconds.

    With the demo's model, of which a pass over four pairs takes half a second.
    """
    comfy = slow_model
    prompt = slow_graph(320, name=moment, reach=reach, steps=1000, preview_every=1)
    prompt["model"]["inputs"]["unet_name"] = "difflora_demo_wan.safetensors"
    took, most = cancelled_after(comfy, prompt, "train", 0.3, step=1)
    assert took < most
    [kept] = (file for file in checkpoints(comfy) if file.name.startswith(f"{moment}_"))
    assert len(Checkpoint.read(kept).losses) == 1


@pytest.mark.slow
def test_cancel_within_a_second_while_pairs_are_encoded(slow_model):
    took, most = cancelled_after(slow_model, slow_graph(1024), "pairs", 0.7)
    assert took < most
    assert slow_model.running() == []


@pytest.mark.slow
def test_what_comfyui_loads_from_the_file_is_what_the_wire_gave(pictures):
    comfy = pictures
    trained = graph(name="same", steps=4, learning_rate="1e-2")
    sampled = {name: node for name, node in sampling().items() if name not in trained}
    sampled["sample"]["inputs"] |= {"model": ["slider", 0]}
    wire = {
        "slider": {
            "class_type": "DiffLoraSliderModel",
            "inputs": {"model": ["model", 0], "lora": ["train", 0], "strength": 2.0, "apply": "patch"},
        }
    }
    by_wire = hashed(comfy.run(trained | sampled | wire))
    file = {
        "slider": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["model", 0], "lora_name": "trained/same.safetensors", "strength_model": 2.0},
        }
    }
    by_file = hashed(comfy.run(sampling() | sampled | file))
    assert by_wire == by_file
    assert by_wire["sha256"] != hashed(comfy.run(sampling()))["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, said",
    [
        ({"selection": "nothing_like_it"}, "selects nothing"),
        ({"selection": "attn=0.5"}, "weight 0.5"),
        ({"learning_rate": "much"}, "learning_rate"),
        ({"noise": "custom", "sigma_low": 0.9, "sigma_high": 0.5}, "noise levels"),
        ({"name": "../out"}, "out"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(pictures, settings, said):
    with pytest.raises(NodeFailed, match=said) as failed:
        pictures.run(graph(**settings))
    assert "\n" not in failed.value.message


@pytest.mark.slow
def test_a_model_that_wants_a_picture_is_refused(pictures):
    prompt = graph()
    prompt["model"]["inputs"]["unet_name"] = small_models.WAN_I2V
    with pytest.raises(NodeFailed, match="needs a picture"):
        pictures.run(prompt)


@pytest.mark.slow
def test_loras_on_the_model_are_warned_about(pictures):
    prompt = graph(name="patched", steps=1)
    prompt["fast"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["model", 0], "lora_name": small_models.DENSE, "strength_model": 1.0},
    }
    prompt["train"]["inputs"]["model"] = ["fast", 0]
    assert any("step-distill LoRAs" in line for line in lines(pictures.run(prompt)))
    assert not any("step-distill LoRAs" in line for line in lines(pictures.run(graph(name="plain", steps=1))))


# Clips and tints


@pytest.fixture(scope="module")
def clips(pictures):
    """Three pairs of clips of nine frames: a video, an animated picture and a folder of frames."""
    comfy = pictures
    for side, light in (("bright", 0.4), ("dark", 0.0)):
        folder = comfy.base / "input/train_clips" / side
        folder.mkdir(parents=True)
        for number in range(3):
            random = torch.Generator().manual_seed(number)
            pixels = torch.rand(9, 64, 64, 3, generator=random) * 0.6 + light
            drawn = [Image.fromarray((frame * 255).to(torch.uint8).numpy()) for frame in pixels]
            if number == 0:
                write_video(folder / "0.mp4", [np.asarray(image) for image in drawn], 16)
            elif number == 1:
                drawn[0].save(folder / "1.webp", save_all=True, append_images=drawn[1:], lossless=True)
            else:
                (folder / "2").mkdir()
                for place, image in enumerate(drawn):
                    image.save(folder / "2" / f"{place:03}.png")
    yield comfy
    shutil.rmtree(comfy.base / "input/train_clips")


def clip_graph(frames, **settings):
    prompt = graph(**settings)
    prompt["pairs"]["inputs"] |= {
        "folder_a": "input/train_clips/bright", "folder_b": "input/train_clips/dark", "frames": frames,
    }  # fmt: skip
    return prompt


@pytest.mark.slow
def test_a_slider_is_trained_on_clips_of_every_kind(clips):
    result = clips.run(clip_graph(9, name="clips", steps=2))
    assert any("9 frames each" in line for line in lines(result, "pairs"))
    assert any("2 steps on 3 pairs" in line for line in lines(result))
    again = clips.run(clip_graph(5, name="clips", steps=2))
    assert any("2 steps on 3 pairs" in line for line in lines(again))
    assert len([file for file in checkpoints(clips) if file.name.startswith("clips_")]) == 2  # other pairs


@pytest.mark.slow
def test_clips_that_are_too_short_are_named(clips):
    with pytest.raises(NodeFailed, match=r"0\.mp4 has 9 frames, and 13"):
        clips.run(clip_graph(13, name="short_clips"))


@pytest.mark.slow
def test_a_tint_is_trained_on_one_folder_alone(pictures):
    prompt = graph(name="tint", steps=2)
    prompt["pairs"]["inputs"] |= {"folder_a": "input/nowhere", "folder_b": "input/train_pairs/dark", "tint": "#00c800"}
    result = pictures.run(prompt)
    assert any("2 steps on 6 pairs" in line for line in lines(result))
    with pytest.raises(NodeFailed, match="write a colour as"):
        prompt["pairs"]["inputs"]["tint"] = "green"
        pictures.run(prompt)
