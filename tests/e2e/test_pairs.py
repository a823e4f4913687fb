"""From frames to a recipe through the real server. Any image operation stands in for the editing model."""

import csv
import io
import json
import uuid

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.comfy_server import ROOT, Interrupted, NodeFailed

SIZE = (128, 80)


def frame(seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(40, 200, (4, 6, 3), dtype=np.uint8)).resize(
        SIZE, Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y = generator.integers(0, SIZE[0]), generator.integers(0, SIZE[1])
        draw.rectangle((x, y, x + 4, y + 4), tuple(int(c) for c in generator.integers(0, 256, 3)))
    return image


@pytest.fixture
def names(comfy):
    """A folder of three frames, and the name of a dataset, of this test alone."""
    name = f"データ {uuid.uuid4().hex[:8]}"
    folder = comfy.base / "input" / name
    folder.mkdir()
    for seed in range(3):
        frame(seed).save(folder / f"frame {seed}.png")
    return {"folder": f"input/{name}", "dataset": name, "side_a": "detailed", "side_b": "sparse"}


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def pairing(names, per_run=1, **save):
    """Frame -> blurred twin -> pair: small things vanish, what is large stays."""
    dataset = {key: value for key, value in names.items() if key != "folder"}
    defaults = dict(captions="empty", caption="", word_a="dense", word_b="bare", overwrite=False)
    return {
        "folder": node("DiffLoraImageFolder", **names, per_run=per_run),
        "edit": node("ImageBlur", image=["folder", 0], blur_radius=4, sigma=2.0),
        "save": node(
            "DiffLoraSavePair",
            image_a=["folder", 0],
            image_b=["edit", 0],
            stem=["folder", 1],
            **dataset,
            **{**defaults, **save},
        ),
        "progress": node("PreviewAny", source=["folder", 2]),
    }


def check(names, **limits):
    dataset = {key: value for key, value in names.items() if key != "folder"}
    return {
        "check": node(
            "DiffLoraCheckPairs",
            **dataset,
            **{"least_similar": 0.3, "most_similar": 0.985, "colour_drift": 8.0, **limits},
        ),
        "drop": node("PreviewAny", source=["check", 2]),
    }


def recipe(comfy, names, **changes):
    """The recipe node at its own defaults, but for `changes`."""
    dataset = {key: value for key, value in names.items() if key != "folder"}
    about = comfy.object_info("DiffLoraTrainingRecipe")["input"]["required"]
    inputs = {}
    for name, (kind, *options) in about.items():
        choices = kind if isinstance(kind, list) else options[0].get("options")
        inputs[name] = options[0].get("default", choices[0] if choices else None) if options else choices[0]
    return {"recipe": node("DiffLoraTrainingRecipe", **{**inputs, **dataset, **changes})}


def said(result, node_id):
    """The lines of the report that a node shows."""
    return [line["text"] for line in result.output(node_id)["difflora"][0]["report"]["lines"]]


def files(comfy, names):
    folder = comfy.base / "output" / names["dataset"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_run_makes_one_pair_until_all_are_done(comfy, names):
    for done in range(3):
        result = comfy.run(pairing(names))
        assert result.output("progress")["text"] == [f"{done} of 3 pairs done, now frame {done}"]
        assert [image["filename"] for image in result.output("save")["images"]] == [f"frame {done}.png"] * 2
        assert len(files(comfy, names)) == 4 * (done + 1)
    result = comfy.run(pairing(names))
    assert result.output("progress")["text"] == ["3 of 3 pairs done"]
    assert not {"edit", "save"} & {key for key, shown in result["outputs"].items() if shown.get("images")}
    written = files(comfy, names)
    assert len(written) == 12
    for seed in range(3):
        a, b = (Image.open(io.BytesIO(written[f"{side}/frame {seed}.png"])) for side in ("detailed", "sparse"))
        assert np.array_equal(np.asarray(a), np.asarray(frame(seed))), "side A is the frame to the pixel"
        assert a.size == b.size == SIZE
        assert written[f"detailed/frame {seed}.txt"] == written[f"sparse/frame {seed}.txt"] == b""
    shown = result_images(comfy, names)
    assert shown == written["sparse/frame 0.png"], "what the node shows is the file it saved"


def result_images(comfy, names):
    return comfy.view("frame 0.png", subfolder=f"{names['dataset']}/sparse")


def test_it_goes_on_where_it_was_stopped(comfy, names):
    comfy.run(pairing(names, per_run=2))
    (comfy.base / "output" / names["dataset"] / "sparse/frame 0.png").unlink()
    result = comfy.run(pairing(names, per_run=64))
    assert result.output("progress")["text"] == ["1 of 3 pairs done, now frame 0, frame 2"]
    assert (
        sorted(image["filename"] for image in result.output("save")["images"])
        == ["frame 0.png"] * 2 + ["frame 2.png"] * 2
    )


def test_a_twin_that_was_deleted_is_made_again_though_nothing_else_has_changed(comfy, names):
    for _ in range(3):
        comfy.run(pairing(names))
    before = files(comfy, names)
    (comfy.base / "output" / names["dataset"] / "sparse/frame 2.png").unlink()
    comfy.run(pairing(names))
    assert files(comfy, names) == before


def test_a_new_frame_is_seen_and_an_old_one_costs_nothing(comfy, names):
    comfy.run(pairing(names, per_run=64))
    before = files(comfy, names)
    frame(7).save(comfy.base / names["folder"] / "another.png")
    result = comfy.run(pairing(names, per_run=64))
    assert [image["filename"] for image in result.output("save")["images"]] == ["another.png"] * 2
    after = files(comfy, names)
    assert {key: after[key] for key in before} == before


def test_nothing_is_overwritten_unless_asked(comfy, names):
    comfy.run(pairing(names, per_run=64))
    before = files(comfy, names)
    again = pairing(names)
    again["folder"]["inputs"]["dataset"] += " 2"  # so that it hands the frames out again
    again["edit"]["inputs"]["sigma"] = 0.5
    with pytest.raises(NodeFailed, match=r"sparse/frame 0\.png is already there and differs"):
        comfy.run(again)
    assert files(comfy, names) == before
    again["save"]["inputs"]["overwrite"] = True
    comfy.run(again)
    changed = {key for key, content in files(comfy, names).items() if content != before[key]}
    assert changed == {"sparse/frame 0.png"}


@pytest.mark.parametrize(
    ("captions", "a", "b"),
    [
        ("same for both", "a street", "a street"),
        ("one per side", "dense", "bare"),
        ("caption and side word", "a street, dense", "a street, bare"),
    ],
)
def test_captions_are_written(comfy, names, captions, a, b):
    comfy.run(pairing(names, captions=captions, caption="a street"))
    written = files(comfy, names)
    assert (written["detailed/frame 0.txt"].decode(), written["sparse/frame 0.txt"].decode()) == (a, b)


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [
        ("folder", "folder", "frames", "begin with input/ or output/"),
        ("folder", "folder", "input/../output", "would leave the folder"),
        ("folder", "folder", "/etc", "begin with input/ or output/"),
        ("folder", "folder", "models/loras", "begin with input/ or output/"),
        ("folder", "folder", "input/nothing here", "no images there"),
        ("folder", "dataset", "../input/x", "would leave the folder"),
        ("save", "dataset", "../models", "would leave the folder"),
        ("save", "dataset", "C:\\x", "drive letter"),
        ("save", "dataset", "/tmp/x", "absolute or network"),
        ("save", "side_a", "..", "would leave the folder"),
        ("save", "side_a", "a/b", "it is a path"),
        ("save", "side_a", "SPARSE", "Both sides are called"),
        ("save", "stem", "../frame", "would leave the folder"),
        ("save", "stem", "x/y", "which is a path"),
        ("save", "stem", "NUL", "device"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_and_nothing_is_written(comfy, names, where, key, value, message):
    before = {path for path in comfy.base.rglob("*") if "output" in path.parts or "input" in path.parts}
    prompt = pairing(names)
    prompt[where]["inputs"][key] = value
    with pytest.raises(NodeFailed, match=message) as failed:
        comfy.run(prompt)
    assert failed.value.node_id == where
    assert str(comfy.base) not in failed.value.message
    after = {path for path in comfy.base.rglob("*") if "output" in path.parts or "input" in path.parts}
    assert after == before


def test_two_frames_of_one_name_are_an_error(comfy, names):
    frame(0).save(comfy.base / names["folder"] / "frame 0.jpg")
    with pytest.raises(NodeFailed, match=r"frame 0\.jpg and frame 0\.png share the name"):
        comfy.run(pairing(names))


def test_check_shows_the_pairs_and_names_the_bad_one(comfy, names):
    comfy.run(pairing(names, per_run=64))
    result = comfy.run(check(names))
    assert said(result, "check")[0] == "3 pairs, 3 good, 0 suspect"
    sheet = Image.open(io.BytesIO(comfy.view(**result.output("check")["images"][0])))
    assert sheet.size == (3 * 412 + 12, 125 + 112)
    folder = comfy.base / "output" / names["dataset"]
    frame(9).save(folder / "sparse/frame 1.png")
    result = comfy.run(check(names, least_similar=0.5))
    assert "frame 1: changed too much" in said(result, "check")[-1]
    assert result.output("drop")["text"] == ["frame 1"]
    rows = list(csv.DictReader((folder / "check.csv").open(encoding="utf-8-sig", newline="")))
    assert [row["pair"] for row in rows if row["problems"]] == ["frame 1"]


def test_check_runs_again_only_when_a_file_has_changed(comfy, names):
    comfy.run(pairing(names, per_run=64))
    assert "check" in comfy.run(check(names)).executed
    assert "check" not in comfy.run(check(names)).executed
    (comfy.base / "output" / names["dataset"] / "sparse/frame 1.txt").unlink()
    result = comfy.run(check(names))
    assert said(result, "check")[-1] == "frame 1: no caption in sparse"


def test_check_can_be_cancelled(comfy, names):
    comfy.run(pairing(names))
    folder = comfy.base / "output" / names["dataset"]
    for side in ("detailed", "sparse"):
        content = (folder / side / "frame 0.png").read_bytes()
        for number in range(1500):
            (folder / side / f"copy {number}.png").write_bytes(content)
    running = comfy.queue(check(names))
    comfy.wait_for_node(running, "check")
    comfy.interrupt()
    with pytest.raises(Interrupted):
        comfy.wait(running)
    assert not (folder / "check.csv").exists()


def test_recipe_is_written_next_to_the_sides(comfy, names):
    comfy.run(pairing(names, per_run=64))
    result = comfy.run(recipe(comfy, names, dit="/models/wan 2.1.safetensors", rank=8))
    assert said(result, "recipe")[7:9] == [
        "Install the package lion-pytorch into the Python of musubi-tuner.",
        "Fill in musubi, vae, t5 at the top of the command files.",
    ]
    assert said(result, "recipe")[:7] == [
        *(
            f"{names['dataset']}/training/{name}"
            for side in ("detailed", "sparse")
            for name in (f"{side}.toml", f"train_{side}.sh", f"train_{side}.bat")
        ),
        f"{names['dataset']}/training/same_order.py",
    ]
    written = files(comfy, names)
    script = written["training/train_sparse.sh"].decode()
    assert "DIT='/models/wan 2.1.safetensors'" in script
    assert "--network_dim 8 " in script
    assert "--optimizer_type lion_pytorch.Lion" in script
    assert "--learning_rate 2e-05" in script
    with pytest.raises(NodeFailed, match="already in training and differs"):
        comfy.run(recipe(comfy, names, rank=4))
    assert files(comfy, names) == written
    comfy.run(recipe(comfy, names, rank=4, overwrite=True))
    assert "--network_dim 4 " in files(comfy, names)["training/train_sparse.sh"].decode()


def test_recipe_says_what_musubi_would_refuse(comfy, names):
    comfy.run(pairing(names))
    with pytest.raises(NodeFailed, match=r"Use lion_pytorch\.Lion"):
        comfy.run(recipe(comfy, names, optimizer="Lion"))
    with pytest.raises(NodeFailed, match="learning_rate is 'fast': write a number"):
        comfy.run(recipe(comfy, names, learning_rate="fast"))
    with pytest.raises(NodeFailed, match="learning_rate is nan"):
        comfy.run(recipe(comfy, names, learning_rate="nan"))
    with pytest.raises(NodeFailed, match="control character"):
        comfy.run(recipe(comfy, names, musubi="/x\nrm -rf ~"))
    with pytest.raises(NodeFailed, match="no images in sparse2"):
        comfy.run(recipe(comfy, {**names, "side_b": "sparse2"}))
    assert not (comfy.base / "output" / names["dataset"] / "training").exists()


def test_seed_of_the_recipe_does_not_change_by_itself(comfy):
    options = comfy.object_info("DiffLoraTrainingRecipe")["input"]["required"]["seed"][1]
    assert options["control_after_generate"] is False


WORKFLOW = ROOT / "workflows/5 Pairs with FLUX.1 Kontext.json"
EDITOR = {"UNETLoader", "DualCLIPLoader", "VAELoader", "VAEEncode", "CLIPTextEncode", "ReferenceLatent", "FluxGuidance"}
EDITOR |= {"ConditioningZeroOut", "KSampler", "VAEDecode"}


def test_every_node_and_input_of_the_workflow_is_one_that_comfyui_has(comfy):
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    known = comfy.object_info()
    for each in workflow["nodes"]:
        if each["type"] == "MarkdownNote":
            continue
        about = known[each["type"]]
        inputs = {**about["input"].get("required", {}), **about["input"].get("optional", {})}
        assert {entry["name"] for entry in each["inputs"]} <= set(inputs), each["type"]
        outputs = [entry["name"] for entry in each["outputs"]]
        assert outputs == about["output_name"][: len(outputs)], "a newer ComfyUI may have more"
