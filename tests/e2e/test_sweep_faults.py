"""What can go wrong in a sweep without an error: broken cells, other run-times, odd pictures, work done twice."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests import small_models
from tests.comfy_server import NodeFailed
from tests.e2e.test_sweep import grid, lines, message, node, outputs_of_failed, painted, pictures, swept, times


@pytest.fixture(autouse=True)
def no_spoiling(comfy):
    yield
    (comfy.base / "output/spoil.txt").unlink(missing_ok=True)


def spoil(comfy, how):
    (comfy.base / "output/spoil.txt").write_text(how)


def spoilable(strengths, frames, as_it_is="", **more):
    prompt = painted(strengths, frames, **more)
    prompt["spoil"] = node("TestSpoil", images=["clip", 0], number=["sweep", 0], as_it_is=as_it_is)
    prompt["break"]["inputs"]["images"] = ["spoil", 0]
    return prompt


def measured(prompt):
    prompt["response"] = node(
        "DiffLoraSliderResponse", sweep=["grid", 1], target="edges", colour_limit=5.0, brightness_limit=10.0,
        saturation_limit=10.0, moments=2,
    )  # fmt: skip
    return prompt


def warnings(result, of="grid"):
    raw = result.output(of)["difflora"][0]
    told = json.loads(raw) if isinstance(raw, str) else raw
    return [line["text"] for line in told["report"]["lines"] if line["level"] == "warning"]


def labels(result):
    return [clip["label"] for clip in message(result)["player"]["clips"]]


class TestBrokenCells:
    @pytest.mark.parametrize(("how", "said"), [("nan", "not finite"), ("black", "black")])
    def test_a_broken_cell_is_named_not_kept_and_in_no_curve(self, comfy, how, said):
        frames = 8 if how == "nan" else 9
        prompt = measured(spoilable("-1, 0, 1", frames))
        spoil(comfy, f"{how} 1.0")
        result = comfy.run(prompt)
        assert labels(result) == ["−1", "0"]
        assert [line for line in warnings(result) if "+1" in line and said in line]
        csv = [line for line in warnings(result, "response") if "+1" in line]
        assert csv, warnings(result, "response")
        # The cause is cured: only the broken cell is rendered, without anybody deleting anything.
        spoil(comfy, "nothing 9.0")
        cured = comfy.run(prompt)
        assert times(cured, "clip") == 1 and labels(cured) == ["−1", "0", "+1"] and not warnings(cured)

    def test_without_the_baseline_black_is_told_by_the_median_of_the_others(self, comfy):
        spoil(comfy, "black 2.0")
        result = comfy.run(spoilable("-2, -1, 1, 2", frames=10))
        assert labels(result) == ["−2", "−1", "+1"]

    def test_a_baseline_that_is_black_alone_is_broken_too(self, comfy):
        spoil(comfy, "black 0.0")
        assert labels(comfy.run(spoilable("-1, 0, 1", frames=11))) == ["−1", "+1"]

    def test_every_grid_of_a_sweep_with_a_black_cell_leaves_it_out(self, comfy):
        prompt = spoilable("-1, 0, 1", frames=12) | {"row": grid("break", arrange="row")}
        spoil(comfy, "black 1.0")
        result = comfy.run(prompt)
        assert labels(result) == ["−1", "0"]
        for name in ("grid", "row"):
            assert [line for line in warnings(result, name) if "+1" in line and "black" in line], name

    def test_where_all_is_black_nothing_is_wrong(self, comfy):
        prompt = painted("-1, 0, 1", frames=4)
        prompt["clip"] = node("EmptyImage", width=64, height=64, batch_size=4, color=0)
        prompt["break"]["inputs"]["images"] = ["clip", 0]
        result = comfy.run(prompt)
        assert labels(result) == ["−1", "0", "+1"] and not warnings(result)
        assert times(comfy.run(prompt), "break") == 0

    def test_a_sweep_with_nothing_finite_says_so(self, comfy):
        spoil(comfy, "nan 1.0")
        with pytest.raises(NodeFailed, match="not finite"):
            comfy.run(spoilable("1", frames=6))

    def test_ab_compare_says_it_too(self, comfy):
        prompt = {
            "a": node("TestClip", strength=1.0, frames=6, width=64, height=64),
            "spoil": node("TestSpoil", images=["a", 0], number=1.0),
            "compare": node("DiffLoraABCompare", a=["a", 0], b=["spoil", 0], mode="side by side", amplify=4.0,
                            fps=16.0, label_a="A", label_b="B"),
        }  # fmt: skip
        for how, said in (("nan", "B: 1 of 6 pictures"), ("black", "B is black")):
            spoil(comfy, f"{how} 1.0")
            prompt["spoil"]["inputs"]["as_it_is"] = how  # another prompt, so that it runs
            assert [line for line in warnings(comfy.run(prompt), "compare") if said in line], how


class TestOneSweepOneShape:
    def test_a_node_that_collects_from_other_machines_is_refused(self, comfy):
        prompt = painted("-1, 0", frames=3)
        prompt["collect"] = node("TestDistributedCollector", images=["break", 0])
        prompt["grid"]["inputs"]["images"] = ["collect", 0]
        with pytest.raises(NodeFailed, match="TestDistributedCollector.*other machines"):
            comfy.run(prompt)

    @pytest.mark.parametrize("how", ["frames", "size"])
    def test_a_cell_of_another_length_or_size_names_what_is_in_between(self, comfy, how):
        frames = 14 if how == "size" else 15
        prompt = spoilable("-1, 0, 1", frames=frames)
        spoil(comfy, f"{how} 1.0")
        with pytest.raises(NodeFailed, match=r"\+1.*TestClip.*TestSpoil.*TestBreak"):
            comfy.run(prompt)
        spoil(comfy, "nothing 9.0")
        cured = comfy.run(prompt)
        assert times(cured, "clip") == 1 and lines(cured) == ["3 of 3 strengths are there"]


class TestOddPictures:
    @pytest.mark.parametrize(("as_it_is", "said"), [("grey", ""), ("alpha", "transparency")])
    def test_one_channel_and_four(self, comfy, as_it_is, said):
        result = comfy.run(spoilable("-1, 0", frames=4 + len(as_it_is), as_it_is=as_it_is))
        assert labels(result) == ["−1", "0"]
        assert bool(said) == bool([line for line in warnings(result) if said and said in line])
        left = (pictures(comfy)[0, -40, 20] * 255).round()
        assert abs(left - 20).max() <= 3  # the counting half of the first frame, in all three channels


class TestWorkIsDoneOnce:
    def test_two_grids_on_branches_of_one_sweep_share_what_they_share(self, comfy):
        prompt = painted("-1, 0, 1", frames=16)
        prompt["small"] = node("ImageScaleBy", image=["break", 0], upscale_method="area", scale_by=0.5)
        prompt["other"] = grid("small", arrange="row")
        prompt["also"] = node("TestSaveTensor", value=["other", 0], name="other")
        result = comfy.run(prompt)
        assert times(result, "clip") == 3 and times(result, "small") == 3
        assert labels(result) == ["−1", "0", "+1"]
        order = [name.split(".")[-1] for name in result.executed if name.split(".")[-1] in ("clip", "small", "cell")]
        # One clip at a time: nobody begins the next strength while a grid still wants this one.
        assert order[0] == "clip" and order.index("clip", 1) > order.index("small") and order.index("clip", 1) >= 4
        again = comfy.run(prompt)
        assert times(again, "clip") == 0

    def test_a_branch_that_is_done_already_renders_nothing_again(self, comfy):
        prompt = painted("-1, 0, 1", frames=17)
        comfy.run(prompt)
        prompt["small"] = node("ImageScaleBy", image=["break", 0], upscale_method="area", scale_by=0.5)
        prompt["other"] = grid("small", arrange="row")
        assert times(comfy.run(prompt), "clip") == 3
        assert times(comfy.run(prompt), "clip") == 0

    def test_a_grid_that_can_only_begin_when_another_one_is_done_has_the_right_pictures(self, comfy):
        prompt = painted("-1, 0, 1", frames=23)
        prompt["size"] = node("GetImageSize", image=["grid", 0])
        prompt["small"] = node("ImageScaleBy", image=["break", 0], upscale_method="area", scale_by=0.5)
        prompt["other"] = grid("small", arrange="row", cell_size=["size", 1])
        prompt["also"] = node("TestSaveTensor", value=["other", 0], name="other")
        result = comfy.run(prompt)
        assert times(result, "small") == 3
        whole = load_file(comfy.base / "output/other.safetensors")["value"]
        assert whole.shape[0] == 23
        for number in (0, 9, 22):  # the counting half of the first clip
            assert abs(whole[number, -20, 12] * 255 - (20 + 10 * number) % 256).max() <= 4


class TestWhatIsSaid:
    def test_while_it_runs_the_strength_and_how_far_it_is(self, comfy):
        before = len(comfy.told("grid"))
        comfy.run(painted("-1, 0, 1", frames=18))
        told = [line["text"] for each in comfy.told("grid")[before:] for line in each["difflora"][0]["report"]["lines"]]
        assert "rendering −1 (1 of 3)" in told and "rendering +1 (3 of 3)" in told
        assert not [text for text in told if "next run" in text]

    def test_when_it_has_failed_what_the_next_run_does(self, comfy):
        outputs = outputs_of_failed(comfy, painted("-1, 0, 1", frames=19), at=0.0)
        texts = [line["text"] for line in outputs["grid"]["difflora"][0]["report"]["lines"]]
        assert texts == ["1 of 3 strengths are there", "missing: 0, +1. The next run renders only these"]

    def test_a_long_text_is_cut_in_what_the_history_keeps(self, comfy):
        result = comfy.run(painted("-1, 0, 1", frames=5, text="word " * 40_000))
        assert len(json.dumps(result["outputs"])) < 20_000
        result = comfy.run(
            {
                "a": node("TestClip", strength=1.0, frames=2, width=64, height=64),
                "compare": node("DiffLoraABCompare", a=["a", 0], b=["a", 0], mode="wipe", amplify=4.0, fps=16.0,
                                label_a="x" * 200_000, label_b="B"),
            }
        )  # fmt: skip
        assert len(json.dumps(result["outputs"])) < 20_000


class TestRunTime:
    def test_render_again_renders_again_and_going_back_does_not(self, comfy):
        prompt = painted("-1, 0", frames=20)
        assert times(comfy.run(prompt), "clip") == 2
        prompt["grid"]["inputs"]["render_again"] = 1
        assert times(comfy.run(prompt), "clip") == 2
        del prompt["grid"]["inputs"]["render_again"]
        assert times(comfy.run(prompt), "clip") == 0

    @pytest.mark.slow
    def test_other_flags_and_another_version_of_a_pack_render_again(self, start_comfy):
        server = start_comfy()
        pack = server.base / "custom_nodes/a_pack"
        pack.mkdir()
        source = "NODE_CLASS_MAPPINGS = {'Brighter': type('Brighter', (), {'RETURN_TYPES': ('IMAGE',), 'FUNCTION': 'go', " \
            "'CATEGORY': 'test', 'INPUT_TYPES': classmethod(lambda cls: {'required': {'images': ('IMAGE',)}}), " \
            "'go': lambda self, images: (images * %s,)})}"  # fmt: skip
        (pack / "__init__.py").write_text(source % 1)
        prompt = painted("-1, 0", frames=5)
        prompt["brighter"] = node("Brighter", images=["break", 0])
        prompt["grid"]["inputs"]["images"] = ["brighter", 0]

        def restarted(*flags):
            server.stop()
            server.flags = list(flags)
            server.start()
            return times(server.run(prompt), "clip")

        assert restarted() == 2 and restarted() == 0
        assert restarted("--bf16-unet") == 2 and restarted("--preview-size", "256") == 0
        (pack / "__init__.py").write_text(source % 2)
        assert restarted() == 2
        server.stop()


@pytest.mark.slow
def test_a_clip_of_another_machine_is_taken_exactly_if_its_files_hold_the_same(start_comfy, comfy):
    """Other folders, times and inodes are no other picture; a retrained LoRA of the same name, size and header is."""
    name, store = "machines.safetensors", "user/__differential_lora/sweeps"
    weights = load_file(comfy.models("loras") / small_models.DENSE)
    prompt = swept("-1, 1", seed=40, lora=f"here/{name}")
    here = comfy.models("loras") / "here" / name
    here.parent.mkdir(exist_ok=True)
    save_file(weights, here)
    os.utime(here, (1_700_000_000,) * 2)
    comfy.run(prompt)

    other = start_comfy()
    for path in (other.base / "models").rglob("*.safetensors"):
        data = path.read_bytes()
        path.unlink()  # it was a hard link
        path.write_bytes(data)
        os.utime(path, (1_600_000_000,) * 2)
    there = other.models("loras") / "another/folder" / name
    there.parent.mkdir(parents=True)
    shutil.copyfile(here, there)
    size = there.stat().st_size
    shutil.copytree(comfy.base / store, other.base / store)
    prompt["a"]["inputs"]["lora_name"] = f"another/folder/{name}"
    assert times(other.run(prompt), "sample") == 0
    prompt["sweep"]["inputs"]["strengths"] = "-1, 0, 1"
    os.utime(there, (1_700_000_000,) * 2)
    assert times(other.run(prompt), "sample") == 1
    save_file({key: value.flip(0).contiguous() for key, value in weights.items()}, there)
    assert there.stat().st_size == size
    os.utime(there, (1_700_000_001,) * 2)
    assert times(other.run(prompt), "sample") == 3
    other.stop()
    here.unlink()


def test_a_damaged_clip_is_rendered_again(comfy):
    prompt = painted("-1, 0, 1", frames=22)
    comfy.run(prompt)
    store = comfy.base / "user/__differential_lora/sweeps"
    clips = (path for path in store.iterdir() if path.is_dir() and not path.name.startswith("."))  # not the plans
    newest = sorted(clips, key=os.path.getmtime)[-3:]
    for path, damage in zip(newest, (b"", b"\0" * 100, b"{}"), strict=True):
        (path / ("about.json" if damage == b"{}" else "clip.mp4")).write_bytes(damage)
    result = comfy.run(prompt | {"grid": grid("break", arrange="row")})
    assert times(result, "clip") == 3 and lines(result) == ["3 of 3 strengths are there"]
