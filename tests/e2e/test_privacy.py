"""Nothing that leaves the server says where its files lie: pictures, the history, messages."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests import small_models
from tests.comfy_server import NodeFailed
from tests.e2e.test_chain import chain
from tests.e2e.test_sweep import grid, node, sweep

NAMES = {"dataset": "private pairs", "side_a": "more", "side_b": "less"}
ROOT = Path(__file__).parents[2]


def everything(comfy):
    """Every node of the pack that works without the wrapper and has no MODEL or a fingerprint, and a picture that is saved behind each image."""
    loras = comfy.models("loras")
    for run in ("private_one", "private_two"):
        for step in (100, 200):
            name = small_models.DENSE if run == "private_one" else small_models.SPARSE
            shutil.copyfile(loras / name, loras / f"{run}-step{step:08d}.safetensors")
    frames = comfy.base / "input/private frames"
    frames.mkdir(exist_ok=True)
    from PIL import Image

    Image.new("RGB", (64, 48), (90, 120, 30)).save(frames / "street.png")
    graph = chain()
    pictures = {}
    graph |= {
        "analyze": node("DiffLoraAnalyze", a=["a", 0], b=["b", 0], rank=4, show="difference"),
        "wanvideo": node("DiffLoraSliderWanVideo", lora=["small", 0], strength=1.0, merge_loras=False, low_mem_load=False),
        "rack": node("DiffLoraSliderRackWanVideo", rows=f"1 {small_models.DENSE}", merge_loras=False, low_mem_load=False),
        "unet": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default"),
        "model rack": node("DiffLoraSliderRack", model=["unet", 0], rows=f"1 {small_models.DENSE}", apply="auto"),
        "save": node("DiffLoraSave", lora=["small", 0], filename_prefix="private/saved", dtype="float32", dialect="native",
                     if_exists="overwrite", recommended_strength=""),
        "extract": node("DiffLoraExtract", base=small_models.WAN, tuned="private_tuned.safetensors"),
        "both": node("DiffLoraLoadPair", lora_a=small_models.DENSE, lora_b=small_models.SPARSE, ignore_unknown=False),
        "keep both": node("TestKeep", value=["both", 0]),
        "step": node("DiffLoraLoadCheckpoints", run_a="private_one", run_b="private_two", step=100),
        "steps": node("DiffLoraCompareCheckpoints", run_a="private_one", run_b="private_two"),
        "folder": node("DiffLoraImageFolder", folder="input/private frames", **NAMES, per_run=1),
        "twin": node("ImageInvert", image=["folder", 0]),
        "pair": node("DiffLoraSavePair", image_a=["folder", 0], image_b=["twin", 0], stem=["folder", 1], **NAMES,
                     captions="same for both", caption="a street", word_a="dense", word_b="bare", overwrite=True),
        "check": node("DiffLoraCheckPairs", **NAMES, least_similar=0.3, most_similar=0.985, colour_drift=8.0),
        "vae": node("VAELoader", vae_name=small_models.VAE),
        "encode": node("DiffLoraEncodePairs", vae=["vae", 0], folder_a="output/private pairs/more",
                       folder_b="output/private pairs/less", size=64),
        "sweep": sweep("-1, 0, 1"),
        "clip": node("TestClip", strength=["sweep", 0], frames=3, width=64, height=64),
        "grid": grid("clip"),
        "response": node("DiffLoraSliderResponse", sweep=["grid", 1], target="edges", colour_limit=5.0,
                         brightness_limit=10.0, saturation_limit=10.0, moments=2),
        "compare": node("DiffLoraABCompare", a=["grid", 0], b=["grid", 0], mode="wipe", amplify=4.0, fps=16.0,
                        label_a="A", label_b="B"),
    }  # fmt: skip
    for name in ("wanvideo", "rack", "model rack", "extract", "step", "slider", "encode"):
        graph[f"keep {name}"] = node("TestKeep", value=[name, 0])
    for name, output in (
        ("analyze", 0),
        ("steps", 0),
        ("folder", 0),
        ("check", 0),
        ("grid", 0),
        ("response", 0),
        ("compare", 0),
    ):
        pictures[f"picture {name}"] = node("SaveImage", images=[name, output], filename_prefix=f"private {name}")
    return graph | pictures


@pytest.fixture(scope="module")
def comfy(start_comfy):
    server = start_comfy()
    small_models.write_wan(server.models("diffusion_models") / "private_tuned.safetensors", seed=5)
    # A first pair, so that Check Pairs has one when it runs before Save Pair.
    from PIL import Image

    for side, colour in (("more", (90, 120, 30)), ("less", (165, 135, 225))):
        folder = server.base / "output/private pairs" / side
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 48), colour).save(folder / "first.png")
        (folder / "first.txt").write_text("a street")
    return server


def told_of(text, base):
    return [text[max(0, found.start() - 80) : found.end() + 60] for found in re.finditer(re.escape(str(base)), text)][
        :3
    ]


def test_no_picture_no_history_and_no_message_says_where_the_files_are(comfy):
    prompt = everything(comfy)
    with_fingerprint = set()
    for file in (ROOT / "nodes").rglob("*.py"):
        for part in re.split(r"\nclass ", file.read_text("utf-8")):
            if "def fingerprint_inputs" in part and (found := re.search(r'node_id="(\w+)"', part)):
                with_fingerprint.add(found[1])
    assert with_fingerprint - {each["class_type"] for each in prompt.values()} == set()
    before = len(comfy._messages)
    prompt_id = comfy.queue(prompt, extra_pnginfo={"workflow": {"nodes": []}})
    result = comfy.wait(prompt_id)
    saved = [
        image
        for output in result["outputs"].values()
        for image in output.get("images", [])
        if image["type"] == "output"
    ]
    assert len(saved) >= 7
    for image in saved:
        data = comfy.view(**image)
        assert str(comfy.base).encode() not in data, image["filename"]
        # Save Pair's pictures are for training, without a workflow.
        assert b"DiffLora" in data or image["subfolder"], image["filename"]
    history = json.dumps(comfy.get(f"/history/{prompt_id}"))
    assert not told_of(history, comfy.base)
    messages = json.dumps(comfy._messages[before:])
    assert "DiffLora" in history and not told_of(messages, comfy.base)
    # Nor how long the list of files is: a fingerprint is one short hash.
    import PIL.Image

    picture = next(image for image in saved if image["filename"].startswith("private compare"))  # one of three frames
    stored = json.loads(PIL.Image.open(comfy.base / "output" / picture["filename"]).info["prompt"])
    for name, each in stored.items():
        assert len(json.dumps(each.get("is_changed", ""))) < 120, (name, each["is_changed"])


BROKEN = {
    "a LoRA": ("models/loras/broken.safetensors", {"lora_name": "broken.safetensors"}, "DiffLoraLoad"),
    "a configuration": ("models/loras/peft/adapter_config.json", {"lora_name": "peft/adapter_model.safetensors"}, "DiffLoraLoad"),
    # Of another name than the pair that the test above has saved: Image Folder passes over what is there.
    "a picture": ("input/broken/alley.png", {"folder": "input/broken", **NAMES, "per_run": 1}, "DiffLoraImageFolder"),
    "a model": ("models/diffusion_models/broken.safetensors", {"base": "broken.safetensors", "tuned": small_models.WAN},
                "DiffLoraExtract"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_errors_name_files_and_not_folders(comfy, what):
    place, inputs, kind = BROKEN[what]
    path = comfy.base / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"nothing that anybody could read, but long enough for a header")
    if what == "a configuration":
        shutil.copyfile(comfy.models("loras") / small_models.DENSE, path.with_name("adapter_model.safetensors"))
    prompt_id = comfy.queue({"load": node(kind, **inputs), "keep": node("TestKeep", value=["load", 0])})
    with pytest.raises(NodeFailed) as failure:
        comfy.wait(prompt_id)
    assert path.name in failure.value.message and str(comfy.base) not in failure.value.message
    assert str(comfy.base) not in json.dumps(failure.value.details["current_inputs"])
    path.unlink()


def save(prefix):
    return node("DiffLoraSave", lora=["small", 0], filename_prefix=prefix, dtype="float32", dialect="native",
                if_exists="overwrite", recommended_strength="")  # fmt: skip


def test_save_says_where_its_file_is_below_the_loras_folder(comfy):
    before = len(comfy._messages)
    result = comfy.run(chain() | {"save": save("private/told")})
    [message] = result.output("save")["difflora"]
    assert message["report"]["lines"][0]["text"] == "loras/private/told.safetensors"
    assert not told_of(json.dumps(result["outputs"]), comfy.base)
    assert not told_of(json.dumps(comfy._messages[before:]), comfy.base)


def test_an_error_of_writing_names_no_folder_above(comfy):
    (comfy.models("loras") / "blocked").write_bytes(b"a file where a folder has to be")
    prompt_id = comfy.queue(chain() | {"save": save("blocked/deeper/told")})
    with pytest.raises(
        NodeFailed, match="The folder deeper cannot be made: a file is in the place of a folder"
    ) as failure:
        comfy.wait(prompt_id)
    assert str(comfy.base) not in failure.value.message
