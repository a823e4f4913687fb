"""A sweep on a real server: exact strengths, one model load, order and labels, and what is done is never done again."""

import copy
import json
import os
import shutil
import signal

import av
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import small_models
from tests.comfy_server import Interrupted, NodeFailed
from tests.e2e.test_chain import chain
from tests.e2e.test_server import sampling


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def grid(images="decode", **more):
    inputs = {"images": [images, 0], "arrange": "grid", "cell_size": 64, "fps": 16.0, "baseline": 0.0, "text": ""}
    return node("DiffLoraSweepGrid", **inputs | more)


def sweep(strengths="-2, 0, 2", include_zero=False):
    return node("DiffLoraStrengthSweep", start=-3.0, stop=3.0, count=7, include_zero=include_zero, strengths=strengths)


def swept(strengths="-2, 0, 2", seed=1, lora=small_models.DENSE, frames=5, **more):
    """Load → subtract → slider ← sweep, two steps of the small Wan, decode → grid."""
    prompt = sampling(seed=seed, frames=frames) | chain(a=lora) | {"sweep": sweep(strengths), "grid": grid(**more)}
    prompt["slider"]["inputs"]["strength"] = ["sweep", 0]
    prompt["sample"]["inputs"]["model"] = ["slider", 0]
    prompt["empty"]["inputs"] |= {"width": 64, "height": 64}
    prompt["keep"] = node("TestSaveTensor", value=["grid", 0], name="grid")
    del prompt["hash"]
    return prompt


def times(result, kind):
    """How often nodes of a prompt ran: clones end in the name of what they are clones of."""
    return sum(name == kind or name.endswith(f".{kind}") for name in result.executed)


def message(result):
    raw = result.output("grid")["difflora"][0]
    return json.loads(raw) if isinstance(raw, str) else raw


def lines(result):
    return [line["text"] for line in message(result)["report"]["lines"]]


def pictures(comfy):
    return load_file(comfy.base / "output/grid.safetensors")["value"]


class TestSweep:
    def test_samples_each_strength_once_and_loads_one_model(self, comfy):
        comfy.forget()  # Another test's model would be taken from the cache, and none be loaded.
        result = comfy.run(swept())
        assert times(result, "sample") == 3 and times(result, "model") == 1
        assert lines(result) == ["3 of 3 strengths are there"]
        assert pictures(comfy).shape[0] == 5
        clips = message(result)["player"]["clips"]
        assert [clip["label"] for clip in clips] == ["−2", "0", "+2"]
        assert [clip["baseline"] for clip in clips] == [False, True, False]

    def test_exact_strengths_reach_the_model_and_0_is_the_base(self, comfy):
        strengths = [-1.7, 0.0, 0.3, 2.05]
        prompt = swept("-1.7, 0, 0.3, 2.05", seed=2)
        prompt["record"] = node("TestRecord", model=["slider", 0], name="swept")
        prompt["sample"]["inputs"]["model"] = ["record", 0]
        comfy.run(prompt)
        base = {"model": chain()["model"], "save": node("TestSaveWeights", model=["model", 0], name="base")}
        comfy.run(base)
        untouched = load_file(comfy.base / "output/base.safetensors")
        for index, strength in enumerate(strengths):
            direct = chain(strength=strength) | {"save": node("TestSaveWeights", model=["slider", 0], name="direct")}
            comfy.run(direct)
            expected = load_file(comfy.base / "output/direct.safetensors")
            got = load_file(comfy.base / f"output/swept/{index}.safetensors")
            assert all(torch.equal(got[key], expected[key]) for key in expected)
            same_as_base = all(torch.equal(got[key], untouched[key]) for key in untouched)
            assert same_as_base == (strength == 0)
        assert not (comfy.base / f"output/swept/{len(strengths)}.safetensors").exists()

    def test_clips_are_those_of_single_runs_in_the_order_typed_with_repeats_rendered_once(self, comfy):
        result = comfy.run(swept("2, -2, 2, 0", seed=3, arrange="row"))
        assert times(result, "sample") == 3
        assert [clip["label"] for clip in message(result)["player"]["clips"]] == ["+2", "−2", "+2", "0"]
        whole = pictures(comfy)
        for place, strength in enumerate((2.0, -2.0, 2.0, 0.0)):
            single = sampling(seed=3, frames=5) | chain(strength=strength)
            single["empty"]["inputs"] |= {"width": 64, "height": 64}
            single["sample"]["inputs"]["model"] = ["slider" if strength else "model", 0]
            single["hash"] = node("TestSaveTensor", value=["decode", 0], name="single")
            comfy.run(single)
            alone = load_file(comfy.base / "output/single.safetensors")["value"]
            left = 4 + place * (64 + 4)
            cell = whole[:, -68:-4, left : left + 64]
            assert (cell - alone.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6

    def test_zero_is_added_where_it_belongs(self, comfy):
        prompt = swept("", seed=4)
        prompt["sweep"]["inputs"] |= {"start": -1.0, "stop": 2.0, "count": 3, "include_zero": True}
        result = comfy.run(prompt)
        assert [clip["label"] for clip in message(result)["player"]["clips"]] == ["−1", "0", "+0.5", "+2"]

    def test_the_preview_plays_and_has_the_workflow_in_it(self, comfy):
        player = message(comfy.run(swept()))["player"]
        [video] = player["videos"]
        path = comfy.base / "temp" / video["subfolder"] / video["filename"]
        with av.open(str(path)) as file:
            assert json.loads(file.metadata["prompt"])["sweep"]["class_type"] == "DiffLoraStrengthSweep"
            assert file.streams.video[0].codec_context.name == "h264"
            assert sum(1 for _ in file.decode(video=0)) == 5 == player["frames"]
            assert file.streams.video[0].average_rate == 16
        assert comfy.view(**video)[4:8] == b"ftyp"


class TestWhatIsDoneStaysDone:
    def test_an_added_strength_renders_only_the_new_one(self, comfy):
        comfy.run(swept("-1, 1", seed=10))
        result = comfy.run(swept("-1, 0.5, 1", seed=10))
        assert times(result, "sample") == 1

    def test_another_layout_renders_nothing(self, comfy):
        comfy.run(swept("-1, 1", seed=11))
        result = comfy.run(swept("-1, 1", seed=11, arrange="column", cell_size=100, fps=8.0, text="a\nb"))
        assert times(result, "sample") == 0
        small = comfy.run(swept("-1, 1", seed=11, cell_size=64, arrange="row"))
        assert times(small, "sample") == 0 and pictures(comfy).shape[2] == 4 + 2 * 68

    def test_a_changed_widget_upstream_renders_again(self, comfy):
        comfy.run(swept("-1, 1", seed=12))
        prompt = swept("-1, 1", seed=12)
        prompt["text"]["inputs"]["seed"] = 5
        assert times(comfy.run(prompt), "sample") == 2

    def test_a_replaced_lora_file_renders_again(self, comfy):
        path = comfy.models("loras") / "swept.safetensors"
        shutil.copyfile(comfy.models("loras") / small_models.DENSE, path)
        comfy.run(swept("-1, 0, 1", seed=13, lora="swept.safetensors"))
        before = pictures(comfy)
        save_file({key: tensor * 2 if "up" in key else tensor for key, tensor in load_file(path).items()}, path)
        result = comfy.run(swept("-1, 0, 1", seed=13, lora="swept.safetensors"))
        after = pictures(comfy)
        path.unlink()
        assert times(result, "sample") == 3
        assert (before - after).abs().max() > 0.05

    @pytest.mark.parametrize("place", ["before the slider", "after the slider", "the slider itself"])
    def test_comfyuis_own_loader_follows_a_file_that_is_replaced_twice(self, comfy, place):
        """It keeps the last file's weights in the node's object, which ComfyUI keeps for the next prompt."""
        path = comfy.models("loras") / "twice.safetensors"
        loader = node("LoraLoaderModelOnly", model=["model", 0], lora_name=path.name, strength_model=1.0)
        prompt = swept("-1, 1", seed=118) | {"core": loader}
        if place == "before the slider":
            prompt["slider"]["inputs"]["model"] = ["core", 0]
        else:
            loader["inputs"]["model"] = ["slider", 0]
            prompt["sample"]["inputs"]["model"] = ["core", 0]
        if place == "the slider itself":
            loader["inputs"] |= {"model": ["model", 0], "strength_model": ["sweep", 0]}
        original = load_file(comfy.models("loras") / small_models.DENSE)
        try:
            kept = []
            for factor in (1, 2, 3):
                save_file({key: tensor * factor if "up" in key else tensor for key, tensor in original.items()}, path)
                assert times(comfy.run(prompt), "sample") == 2, factor
                kept.append(pictures(comfy))
            for factor, before in zip((1, 2, 3), kept, strict=True):
                comfy.forget()
                fresh = copy.deepcopy(prompt)  # under another name: neither a kept clip nor a kept object
                fresh["core"]["inputs"]["lora_name"] = f"twice {factor}.safetensors"
                save_file(
                    {key: tensor * factor if "up" in key else tensor for key, tensor in original.items()},
                    path.with_stem(f"twice {factor}"),
                )
                assert times(comfy.run(fresh), "sample") == 2
                assert torch.equal(before, pictures(comfy)), factor
        finally:
            for file in path.parent.glob("twice*"):
                file.unlink()

    def test_a_file_replaced_after_a_run_without_a_sweep_is_read_again(self, comfy):
        path = comfy.models("loras") / "early.safetensors"
        prompt = swept("0, 1", seed=119)
        prompt["core"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name=path.name, strength_model=1.0)
        prompt["slider"]["inputs"]["model"] = ["core", 0]
        alone = copy.deepcopy(prompt)
        alone["slider"]["inputs"]["strength"] = 0.0
        alone["keep"]["inputs"]["value"] = ["decode", 0]
        del alone["grid"], alone["sweep"]
        original = load_file(comfy.models("loras") / small_models.DENSE)
        try:
            save_file(original, path)
            comfy.run(alone)
            save_file({key: tensor * 3 if "up" in key else tensor for key, tensor in original.items()}, path)
            comfy.run(prompt)
            swept_zero = pictures(comfy)[:, -68:-4, 4:68]
            comfy.forget()
            comfy.run(alone)
            assert (swept_zero - pictures(comfy).clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
        finally:
            path.unlink()

    def test_two_grids_of_one_sweep_render_it_once(self, comfy):
        prompt = swept("-1, 0, 1", seed=120) | {"row": grid(arrange="row", cell_size=80)}
        prompt["also"] = node("TestSaveTensor", value=["row", 0], name="row")
        result = comfy.run(prompt)
        assert times(result, "sample") == 3
        assert lines(result) == ["3 of 3 strengths are there"]
        assert load_file(comfy.base / "output/row.safetensors")["value"].shape[2] == 4 + 3 * 68

    def test_a_response_to_clips_that_were_deleted_has_them_rendered_again(self, comfy):
        prompt = swept("-1, 0, 1", seed=121)
        prompt["response"] = node(
            "DiffLoraSliderResponse",
            sweep=["grid", 1],
            target="edges",
            colour_limit=5.0,
            brightness_limit=10.0,
            saturation_limit=10.0,
            moments=2,
        )
        comfy.run(prompt)
        comfy.forget_clips()
        prompt["response"]["inputs"]["moments"] = 3
        assert times(comfy.run(prompt), "sample") == 3
        prompt["response"]["inputs"]["moments"] = 4
        again = comfy.run(prompt)
        assert times(again, "sample") == 0 and "grid" in again.cached

    @pytest.mark.slow
    @pytest.mark.parametrize("flags", [(), ("--cache-none",)], ids=" ".join)
    def test_what_nodes_say_of_themselves_counts_in_every_cache_mode(self, start_comfy, flags):
        server = start_comfy(*flags)
        mood = server.base / "output/mood.txt"
        mood.write_text("calm")
        prompt = swept("0, 1", seed=122) | {"mood": node("TestMood", images=["decode", 0])}
        prompt["grid"]["inputs"]["images"] = ["mood", 0]
        assert times(server.run(prompt), "sample") == 2
        assert times(server.run(prompt), "sample") == 0
        mood.write_text("wild")
        assert times(server.run(prompt), "mood") == 2
        server.stop()

    def test_a_replaced_model_file_renders_again_with_the_new_model(self, comfy):
        path = comfy.models("diffusion_models") / "swept_model.safetensors"
        prompt = swept("-1, 0", seed=14)
        prompt["model"]["inputs"]["unet_name"] = path.name
        small_models.write_wan(path, seed=0)
        comfy.run(prompt)
        before = pictures(comfy)
        small_models.write_wan(path, seed=77)
        result = comfy.run(prompt)
        after = pictures(comfy)
        assert times(result, "sample") == 2 and times(result, "model") == 1
        assert (before - after).abs().max() > 0.05
        assert times(comfy.run(prompt), "sample") == 0
        path.unlink()

    def test_an_error_at_strength_5_of_7_keeps_4_names_3_and_renders_3(self, comfy):
        prompt = breakable("-3, -2, -1, 0, 1, 2, 3", seed=15)
        (comfy.base / "output/break.txt").write_text("raise 1.0")
        prompt_id = comfy.queue(prompt)
        with pytest.raises(NodeFailed, match="broken at 1.0"):
            comfy.wait(prompt_id)
        kept = comfy.get(f"/history/{prompt_id}")[prompt_id]["outputs"]["grid"]["difflora"][0]
        texts = [line["text"] for line in kept["report"]["lines"]]
        assert texts == ["4 of 7 strengths are there", "missing: +1, +2, +3. The next run renders only these"]
        assert [clip["label"] for clip in kept["player"]["clips"]] == ["−3", "−2", "−1", "0"]
        assert all(comfy.view(**video)[4:8] == b"ftyp" for video in kept["player"]["videos"])
        (comfy.base / "output/break.txt").unlink()
        result = comfy.run(prompt)
        assert times(result, "sample") == 3 and lines(result) == ["7 of 7 strengths are there"]

    def test_a_cancelled_strength_keeps_what_is_done(self, comfy):
        prompt = breakable("-1, 0, 1", seed=16)
        (comfy.base / "output/break.txt").write_text("wait 0.0")
        prompt_id = comfy.queue(prompt)
        comfy.wait_for_node(prompt_id, "grid.0.0.1.break")
        comfy.interrupt()
        with pytest.raises(Interrupted):
            comfy.wait(prompt_id)
        (comfy.base / "output/break.txt").unlink()
        assert times(comfy.run(prompt), "sample") == 2

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "flags",
        [(), ("--cache-none",), ("--cache-lru", "20"), ("--cache-classic",), ("--cache-ram", "2")],
        ids=" ".join,
    )
    def test_in_every_cache_mode_after_kill_and_restart_too(self, start_comfy, flags):
        server = start_comfy(*flags)
        first = server.run(breakable("-2, 0", seed=17))
        assert times(first, "sample") == 2 and times(first, "model") == 1
        assert times(server.run(breakable("-2, 0, 2", seed=17)), "sample") == 1
        assert times(server.run(breakable("-2, 0, 2", seed=17)), "sample") == 0

        (server.base / "output/break.txt").write_text("wait 1.0")
        killed = breakable("-2, -1, 0, 1, 2", seed=17)
        prompt_id = server.queue(killed)
        server.wait_for_node(prompt_id, "grid.0.0.1.break")
        os.killpg(server.pid, signal.SIGKILL)
        server.stop()
        (server.base / "output/break.txt").unlink()
        server.start()
        result = server.run(killed)
        assert times(result, "sample") == 1 and lines(result) == ["5 of 5 strengths are there"]
        server.stop()


def breakable(strengths, **more):
    prompt = swept(strengths, **more)
    prompt["break"] = node("TestBreak", images=["decode", 0], number=["sweep", 0])
    prompt["grid"]["inputs"]["images"] = ["break", 0]
    return prompt


def painted(strengths, frames, **more):
    """The same without a model: clips of two greys, which may break."""
    return {
        "sweep": sweep(strengths),
        "clip": node("TestClip", strength=["sweep", 0], frames=frames, width=64, height=64),
        "break": node("TestBreak", images=["clip", 0], number=["sweep", 0]),
        "grid": grid("break", **more),
        "keep": node("TestSaveTensor", value=["grid", 0], name="grid"),
    }


def outputs_of_failed(comfy, prompt, at):
    """What the history has of a prompt that broke at a strength."""
    file = comfy.base / "output/break.txt"
    file.write_text(f"raise {at}")
    prompt_id = comfy.queue(prompt)
    with pytest.raises(NodeFailed, match="broken at"):
        comfy.wait(prompt_id)
    file.unlink()
    return comfy.get(f"/history/{prompt_id}")[prompt_id]["outputs"]


class TestOtherWaysToWireIt:
    def test_pictures_in_several_batches_are_one_clip(self, comfy):
        prompt = painted("-1, 0, 1", frames=12)
        prompt["batches"] = node("RebatchImages", images=["break", 0], batch_size=5)
        prompt["grid"]["inputs"]["images"] = ["batches", 0]
        result = comfy.run(prompt)
        assert times(result, "clip") == 3
        whole = pictures(comfy)
        assert whole.shape[0] == 12
        left = (whole[:, -40, 20] * 255).mean(-1)  # the counting half of the first clip
        assert (left - (20 + 10 * torch.arange(12))).abs().max() <= 3

    def test_pictures_of_two_sizes_are_no_clip(self, comfy):
        prompt = painted("0, 1", frames=3)
        prompt["two"] = node("TestTwoSizes", images=["break", 0])
        prompt["grid"]["inputs"]["images"] = ["two", 0]
        with pytest.raises(NodeFailed, match="32×64 and 64×64 cannot be one clip"):
            comfy.run(prompt)

    def test_grids_whose_strengths_overlap_render_each_once(self, comfy):
        prompt = painted("1, 2", frames=7, baseline=1.0)
        for name, strengths in (("b", "3, 4"), ("c", "1, 3, 5")):
            other = painted(strengths, frames=7, baseline=float(strengths[0]))
            other["clip"]["inputs"]["strength"] = other["break"]["inputs"]["number"] = [f"sweep {name}", 0]
            other["break"]["inputs"]["images"] = [f"clip {name}", 0]
            other["grid"]["inputs"]["images"] = [f"break {name}", 0]
            prompt |= {f"{kind} {name}": other[kind] for kind in ("sweep", "clip", "break", "grid")}
        result = comfy.run(prompt)
        assert sum(name.split(".")[-1].startswith("clip") for name in result.executed) == 5
        for name, count in (("grid", 2), ("grid b", 2), ("grid c", 3)):
            raw = result.output(name)["difflora"][0]
            assert len((json.loads(raw) if isinstance(raw, str) else raw)["player"]["clips"]) == count

    def test_both_grids_of_a_sweep_that_broke_show_what_is_done(self, comfy):
        prompt = painted("-1, 0, 1, 2", frames=6) | {"row": grid("break", arrange="row")}
        outputs = outputs_of_failed(comfy, prompt, at=1.0)
        for name in ("grid", "row"):
            told = outputs[name]["difflora"][0]
            assert told["report"]["lines"][0]["text"] == "2 of 4 strengths are there"
            assert [clip["label"] for clip in told["player"]["clips"]] == ["−1", "0"]

    def test_clips_of_another_speed_play_at_the_speed_that_is_set(self, comfy):
        comfy.run(painted("-1, 0", frames=13))
        outputs = outputs_of_failed(comfy, painted("-1, 0, 1, 2", frames=13, fps=8.0), at=2.0)
        player = outputs["grid"]["difflora"][0]["player"]
        assert player["fps"] == 8 and len(player["videos"]) == 3
        for video in player["videos"]:
            with av.open(str(comfy.base / "temp" / video["subfolder"] / video["filename"])) as file:
                assert file.streams.video[0].average_rate == 8
                assert [frame.time for frame in file.decode(video=0)] == pytest.approx(
                    [index / 8 for index in range(13)]
                )

    def test_a_grid_behind_a_grid_is_refused(self, comfy):
        prompt = painted("-1, 0", frames=5)
        prompt["again"] = node("TestBreak", images=["grid", 0], number=["sweep", 0])
        prompt["outer"] = grid("again")
        del prompt["keep"]
        with pytest.raises(NodeFailed, match="another Sweep Grid"):
            comfy.run(prompt)


class TestErrors:
    def test_pictures_without_a_sweep(self, comfy):
        prompt = swept()
        prompt["slider"]["inputs"]["strength"] = 1.0
        with pytest.raises(NodeFailed, match="do not depend on a Strength Sweep"):
            comfy.run(prompt)

    def test_two_sweeps(self, comfy):
        prompt = swept() | {"other": sweep("1, 2")}
        prompt["sample"]["inputs"]["cfg"] = ["other", 0]
        with pytest.raises(NodeFailed, match="2 Strength Sweeps"):
            comfy.run(prompt)

    @pytest.mark.parametrize(
        ("strengths", "said"),
        [("1, much", "'much' is not a number"), ("nan", "is not a number"), ("1, 11", "11 is beyond")],
    )
    def test_strengths_that_are_none(self, comfy, strengths, said):
        with pytest.raises(NodeFailed, match=said):
            comfy.run(swept(strengths))

    def test_a_text_for_another_number_of_clips(self, comfy):
        prompt = swept(text="one\ntwo", seed=123)
        with pytest.raises(NodeFailed, match="2 lines for 3 clips"):
            comfy.run(prompt)
        prompt["grid"]["inputs"]["text"] = "one"
        assert times(comfy.run(prompt), "sample") == 3  # it was said before anything was rendered


def test_the_real_wrapper_sweeps_with_one_model_load(wrapper, comfy):
    from tests.e2e.test_wanvideo import made_from_pair, slider
    from tests.e2e.test_wrapper_server import sampling as wrapped

    prompt = wrapped() | made_from_pair() | {"sweep": sweep("-2, 0, 2"), "grid": grid(arrange="row")}
    prompt["slider"] = slider(1.0, model=["model", 0])
    prompt["slider"]["inputs"]["strength"] = ["sweep", 0]
    prompt["set"] = node("WanVideoSetLoRAs", model=["model", 0], lora=["slider", 0])
    prompt["sample"]["inputs"]["model"] = ["set", 0]
    prompt["keep"] = node("TestSaveTensor", value=["grid", 0], name="grid")
    del prompt["hash"]
    comfy.forget()
    result = comfy.run(prompt)
    assert times(result, "sample") == 3 and times(result, "model") == 1
    minus, zero, plus = (pictures(comfy)[:, -68:-4, left : left + 64] for left in (4, 72, 140))
    assert (minus - zero).abs().max() > 0.02 and (plus - zero).abs().max() > 0.02
    prompt["sweep"] = sweep("-2, 0, 1, 2")
    assert times(comfy.run(prompt), "sample") == 1
