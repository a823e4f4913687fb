"""The example workflows: as described, readable by ComfyUI's page, and they run, with small models in place of large."""

import io
import json
import re
import unicodedata
import urllib.parse
import urllib.request

import av
import pytest

import difflora
from difflora.saving.save import STRENGTH_KEY
from difflora.saving.wan22 import NOISES, noise_said
from scripts.example_workflows import (
    BACKGROUND_NATIVE,
    BACKGROUND_WRAPPER,
    CLIP_NATIVE,
    CLIP_WRAPPER,
    EXPLORE,
    FAST,
    FOLDER,
    FULL,
    NATIVE,
    STYLE,
    SWEEP_NATIVE,
    SWEEP_WRAPPER,
    TWINS,
    TWINS_WRAPPER,
    WORKFLOWS,
    filled,
)
from scripts.layout import misread
from tests import small_models, wrapper_signatures
from tests.comfy_server import PACK_NAME
from tests.languages import TRANSLATIONS

ROOT = FOLDER.parent
WITH_WRAPPER = (FAST, FULL, SWEEP_WRAPPER, CLIP_WRAPPER, BACKGROUND_WRAPPER, TWINS_WRAPPER)
WITH_MAP = (CLIP_NATIVE, BACKGROUND_NATIVE, CLIP_WRAPPER, BACKGROUND_WRAPPER)
ids = {"ids": lambda workflow: workflow.name.split(" ")[0]}
each = pytest.mark.parametrize("workflow", WORKFLOWS, **ids)


def saved(workflow):
    return json.loads(workflow.path.read_text("utf-8"))


class TestFiles:
    """Without ComfyUI."""

    @each
    def test_a_workflow_has_a_note_a_picture_and_nothing_of_a_machine(self, workflow):
        text = workflow.path.read_text("utf-8")
        graph = json.loads(text)
        assert workflow.path.with_suffix(".jpg").read_bytes()[:3] == b"\xff\xd8\xff"
        assert [node for node in graph["nodes"] if node["type"] == "MarkdownNote"][0]["widgets_values"] == [
            workflow.note
        ]
        for node in graph["nodes"]:
            node["properties"].pop("models", None)  # addresses
        files = re.findall(r'"([^"]*\.(?:safetensors|gguf|pth|pt|ckpt))"', json.dumps(graph))
        assert files and not [file for file in files if "/" in file or "\\" in file]
        assert "/home/" not in text and "C:\\\\" not in text

    @each
    @pytest.mark.parametrize("language", ["en", *TRANSLATIONS])
    def test_no_title_widens_its_node(self, workflow, language):
        """A node drawn on the canvas is at least as wide as its title, and a wider one lies on its neighbours.

        Vue's nodes cut a title instead, before the name of the node's pack: what a workflow calls a node is read there too.
        """
        texts, names = (
            json.loads((ROOT / f"locales/{language}/{file}.json").read_text("utf-8")) for file in ("main", "nodeDefs")
        )
        for node in saved(workflow)["nodes"]:
            own, title = node.get("title"), node.get("title")
            title = (
                texts.get("diffloraWorkflows", {}).get(title, title)
                if title
                else names.get(node["type"], {}).get("display_name", "")
            )
            # Letters of 14 pixels; Latin ones are about half as wide.
            width = 40 + sum(14 if unicodedata.east_asian_width(letter) in "WF" else 7.6 for letter in title)
            assert width <= node["size"][0], title
            if node["flags"].get("collapsed"):
                assert len(title) <= 20, "the canvas writes no more of a folded node's title"
            if own:
                pack = 100 if node["type"].startswith("DiffLora") else 140 if node["type"].startswith("WanVideo") else 0
                assert width + pack <= node["size"][0], title

    @each
    def test_nodes_and_links_are_those_described(self, workflow):
        graph = saved(workflow)
        number = {node["id"]: node for node in graph["nodes"]}
        described = {node.name: node for node in workflow.nodes()}
        types = sorted(node["type"] for node in graph["nodes"] if node["type"] != "MarkdownNote")
        assert types == sorted(node.type for node in described.values())
        links = sorted(
            (number[source]["type"], slot, number[target]["type"], number[target]["inputs"][into]["name"])
            for _, source, slot, target, into, _ in graph["links"]
        )
        assert links == sorted(
            (described[name].type, slot, node.type, into)
            for node in described.values()
            for into, (name, slot) in ((key, _split(source)) for key, source in node.inputs.items())
        )

    @each
    def test_groups_are_laid_out_from_left_to_right_and_hold_what_is_in_them(self, workflow):
        graph = saved(workflow)
        frames = [group["bounding"] for group in graph["groups"]]
        for at, one in enumerate(frames):
            for other in frames[at + 1 :]:
                assert not _overlap(one, other)
        boxes = [
            [*node["pos"], node["size"][0], 0 if node["flags"].get("collapsed") else node["size"][1]]
            for node in graph["nodes"]
            if node["type"] != "MarkdownNote"
        ]
        for at, box in enumerate(boxes):
            assert sum(_inside(box, frame) for frame in frames) == 1
            assert not any(_overlap(box, other) for other in boxes[at + 1 :])

    @pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem.split(" ")[0])
    def test_it_opens_as_a_whole_between_the_pages_bars_and_so_that_it_can_be_read(self, path):
        """On a page of 1920 × 1080. Below a zoom of about 0.57, ComfyUI no longer draws text."""
        graph = json.loads(path.read_text("utf-8"))
        assert graph["extra"]["difflora_example"] is True
        view = graph["extra"]["ds"]
        assert view["scale"] >= 0.6
        [note] = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
        boxes = [*(group["bounding"] for group in graph["groups"]), [*note["pos"], *note["size"]]]
        for box in boxes:
            left, top, right, bottom = (
                (box[side] + box[side + 2] * far + view["offset"][side]) * view["scale"]
                for far in (0, 1)
                for side in (0, 1)
            )
            assert left >= 59 and top >= 89 and right <= 1910 and bottom <= 1080, box

    @pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem.split(" ")[0])
    def test_a_group_with_a_number_begins_below_or_right_of_the_one_before(self, path):
        frames = {}
        for group in json.loads(path.read_text("utf-8"))["groups"]:
            number, _, _ = group["title"].partition(".")
            if number.isdigit():
                frames[int(number)] = group["bounding"]
        for number in sorted(frames)[:-1]:
            one, other = frames[number], frames[number + 1]
            assert other[1] >= one[1] or other[0] >= one[0] + one[2], f"{number + 1} is read before {number}"

    @pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem.split(" ")[0])
    def test_groups_are_read_in_the_order_of_their_numbers(self, path):
        """Row by row, or column by column. In one pair, the right one may begin a little higher than the left one."""
        frames = {}
        for group in json.loads(path.read_text("utf-8"))["groups"]:
            if found := re.match(r"(\d+)\W", group["title"]):
                frames[int(found[1])] = group["bounding"][:2]
        assert len(frames) > 2
        assert misread(frames[number] for number in sorted(frames)) <= 1

    @each
    def test_every_public_model_says_where_it_can_be_had(self, workflow):
        # The user's, and one whose page asks for an account.
        own = {"dense_scenes.safetensors", "sparse_scenes.safetensors", STYLE}
        own |= {f"{side}_{noise}_noise.safetensors" for side in ("dense", "sparse") for noise in NOISES}
        for node in saved(workflow)["nodes"]:
            values = node.get("widgets_values") or []
            # A rack's rows have a strength before the name.
            files = {value.split(" ")[-1] for value in values if str(value).endswith(".safetensors")} - own
            files = {file for file in files if not file.startswith("difflora_demo_")}  # the pack brings them along
            models = node["properties"].get("models", [])
            assert {model["name"] for model in models} == files, node["type"]
            for model in models:
                assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
                assert model["directory"] in ("diffusion_models", "loras", "text_encoders", "vae")

    @pytest.mark.parametrize("workflow", WITH_WRAPPER, **ids)
    def test_the_wrappers_nodes_have_the_recorded_inputs_and_outputs(self, workflow):
        nodes = wrapper_signatures.recorded()["nodes"]
        found = 0
        for node in saved(workflow)["nodes"]:
            if "WanVideo" in node["type"] and not node["type"].startswith("DiffLora"):
                found += 1
                signature = nodes[node["type"]]
                assert [(output["name"], output["type"]) for output in node.get("outputs", [])] == [
                    (output["name"], output["type"]) for output in signature["outputs"]
                ]
                for slot in node.get("inputs", []):
                    assert signature["inputs"][slot["name"]]["type"] == slot["type"]
        assert found >= 10

    @pytest.mark.parametrize("workflow", WITH_WRAPPER, **ids)
    def test_what_the_wrapper_is_given_is_what_it_takes(self, workflow):
        nodes = wrapper_signatures.recorded()["nodes"]
        described = {node.name: node for node in workflow.nodes()}
        for node in described.values():
            inputs = nodes.get(node.type, {}).get("inputs", {})
            for name, value in node.values.items():
                if inputs:
                    options = inputs[name].get("options")
                    assert options is None or value in options, f"{node.type}.{name} cannot be {value}"
            missing = [
                name
                for name, described_input in inputs.items()
                if not described_input.get("optional") and "default" not in described_input
                if name not in node.values and name not in node.inputs and "options" not in described_input
            ]
            assert not missing, f"{node.type} needs {missing}"

    @pytest.mark.parametrize("workflow", WITH_WRAPPER, **ids)
    def test_no_lora_is_merged(self, workflow):
        merging = [node.values["merge_loras"] for node in workflow.nodes() if "merge_loras" in node.values]
        assert len(merging) >= 2 and not any(merging)

    def test_no_name_is_cut_off_on_its_card(self):
        assert max(len(path.stem) for path in FOLDER.iterdir()) <= 30

    def test_no_other_file_lies_in_the_folder(self):
        names = {path.stem for path in FOLDER.iterdir()}
        assert names >= {workflow.name for workflow in WORKFLOWS}
        assert {path.suffix for path in FOLDER.iterdir()} <= {".json", ".jpg"}


def _split(source):
    name, _, slot = source.partition(":")
    return name, int(slot or 0)


def _overlap(one, other):
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def _inside(box, frame):
    return all(frame[i] <= box[i] and box[i] + box[i + 2] <= frame[i] + frame[i + 2] for i in (0, 1))


def test_comfyui_offers_them_with_their_pictures(comfy):
    assert {workflow.name for workflow in WORKFLOWS} <= set(comfy.get("/workflow_templates")[PACK_NAME])
    for workflow in WORKFLOWS:
        address = f"/api/workflow_templates/{PACK_NAME}/{urllib.parse.quote(workflow.name)}"
        assert comfy.get(f"{address}.json") == saved(workflow)
        with urllib.request.urlopen(f"{comfy.url}{address}.jpg") as answer:
            assert answer.read() == workflow.path.with_suffix(".jpg").read_bytes()


# In the page


@each
def test_the_page_loads_it_with_every_node_and_every_value_in_its_place(workflow, comfy, page, request):
    if workflow in WITH_WRAPPER:
        request.getfixturevalue("wrapper")
    page.load(saved(workflow))
    types = page.run("() => app.graph._nodes.map(node => LiteGraph.registered_node_types[node.type] ? '' : node.type)")
    assert set(types) == {""}
    prompt = page.prompt()
    for node in workflow.nodes():
        alike = [made["inputs"] for made in prompt.values() if made["class_type"] == node.type]
        assert [
            made
            for made in alike
            if all(made[name] == value for name, value in node.values.items())
            and all(isinstance(made[name], list) for name in node.inputs)
        ], f"{node.name}: {node.values} is not among {alike}"


# Run


def runnable(workflow, comfy):
    """The workflow as a prompt, with what is too large for a test replaced: models, encoders, frames, steps, torch.compile."""
    wrapper = workflow in WITH_WRAPPER
    pair = {"dense": small_models.WRAPPER_DENSE, "sparse": small_models.WRAPPER_SPARSE}
    if not wrapper:
        pair = {"dense": small_models.DENSE, "sparse": small_models.SPARSE}
    swapped = {
        "DiffLoraLoad": lambda name: {"lora_name": pair[name]},
        # The other way round for low noise: a pair at the wrong model would be heard.
        "DiffLoraLoadPair": lambda name: dict(
            zip(("lora_a", "lora_b"), list(pair.values())[:: -1 if "low" in name else 1], strict=True)
        ),
        "WanVideoLoraSelect": lambda name: {"lora": small_models.WRAPPER_DENSE},
        "LoraLoaderModelOnly": lambda name: {"lora_name": small_models.DENSE},
        "DiffLoraSliderRack": lambda name: {"rows": f"1 {small_models.DENSE}"},
        "WanVideoModelLoader": lambda name: {
            "model": LOW_WRAPPER if "low" in name else small_models.WAN_WRAPPER,
            "attention_mode": "sdpa",
        },
        "UNETLoader": lambda name: {"unet_name": LOW if "low" in name else small_models.WAN},
        "VAELoader": lambda name: {"vae_name": small_models.VAE},
        "WanVideoEmptyEmbeds": lambda name: {"width": 64, "height": 64, "num_frames": 5},
        "EmptyHunyuanLatentVideo": lambda name: {"width": 64, "height": 64, "length": 5},
        "WanVideoSampler": lambda name: {"steps": 4},
        "KSampler": lambda name: {"steps": 2},
        "WanVideoTeaCache": lambda name: {"start_step": 1},
    }
    prompt = workflow.prompt()
    for name, node in prompt.items():
        node["inputs"] |= swapped.get(node["class_type"], lambda name: {})(name)
        if node["class_type"] == "WanVideoTextEncode":
            prompt[name] = {"class_type": "WanVideoTextEmbedBridge", "inputs": dict.fromkeys(TEXTS, ["words", 0])}
        elif node["class_type"] == "CLIPTextEncode":
            prompt[name] = {"class_type": "TestConditioning", "inputs": {"seed": 1, "length": 64}}
        elif node["class_type"] == "WanVideoVAELoader":
            prompt[name] = {"class_type": "VAELoader", "inputs": {"vae_name": small_models.VAE}}
        elif node["class_type"] == "WanVideoDecode":
            inputs = {"samples": node["inputs"]["samples"], "vae": node["inputs"]["vae"]}
            prompt[name] = {"class_type": "VAEDecode", "inputs": inputs}
    prompt = {name: node for name, node in prompt.items() if node["class_type"] not in LEFT_OUT}
    for node in prompt.values():
        node["inputs"].pop("compile_args", None)  # Compiling 30 blocks takes a CPU longer than everything else here.
    if wrapper:
        prompt["words"] = {"class_type": "TestConditioning", "inputs": {"seed": 1, "length": 64}}
    last = "sampler" if "sampler" in prompt else "sampler_low"
    if last in prompt and "sweep" not in prompt:
        prompt["hash"] = {"class_type": "TestHash", "inputs": {"value": [last, 0]}}
    return filled(prompt, comfy.object_info())


# The second model of Wan2.2, written by the tests that need it.
LOW, LOW_WRAPPER = "small_wan_low_noise.safetensors", "small_wan_low_noise_wrapper.safetensors"
TEXTS = ("positive", "negative")
LEFT_OUT = ("LoadWanVideoT5TextEncoder", "CLIPLoader", "DiffLoraEmptyText", "WanVideoTorchCompileSettings")


def digest(result):
    facts = json.loads(result.output("hash")["text"][0])
    assert facts["finite"]
    return facts["sha256"]


@pytest.mark.parametrize("workflow", [FAST, FULL, NATIVE, *WITH_MAP], **ids)
def test_a_workflow_runs_to_its_video_and_hears_the_slider(workflow, comfy, request):
    if workflow in WITH_WRAPPER:
        request.getfixturevalue("wrapper")
    prompt = runnable(workflow, comfy)
    result = comfy.run(prompt, timeout=900)
    video = comfy.view(**result.output("save")["images"][0])
    with av.open(io.BytesIO(video)) as file:
        stream = file.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (64, 64, 16)
        assert sum(1 for _ in file.decode(stream)) == 5
    seen = {digest(result)}
    for strength in (0.0, -2.0):
        prompt["slider"]["inputs"]["strength"] = strength
        again = comfy.run(prompt, timeout=900)
        assert not {"model", "unet", "rank"} & set(again.executed)
        seen.add(digest(again))
    assert len(seen) == 3


@pytest.mark.parametrize("workflow", [SWEEP_WRAPPER, SWEEP_NATIVE], **ids)
def test_a_sweep_runs_to_its_grid_its_response_and_a_slider_saved_with_its_range(workflow, comfy, request):
    if workflow in WITH_WRAPPER:
        request.getfixturevalue("wrapper")
    prompt = runnable(workflow, comfy)
    prompt["sweep"]["inputs"]["count"] = 3
    prompt["response"]["inputs"] |= {"colour_limit": 200, "brightness_limit": 100, "saturation_limit": 100}
    before = set(comfy.models("loras").glob("slider_*"))
    comfy.forget()  # Another test's model would be taken from the cache, and none be loaded.
    result = comfy.run(prompt, timeout=900)
    shown = result.output("grid")["difflora"][0]
    assert [clip["label"] for clip in shown["player"]["clips"]] == ["−3", "0", "+3"]
    assert sum(name.endswith(".sampler") for name in result.executed) == 3
    assert result.executed.count("model" if workflow in WITH_WRAPPER else "unet") == 1
    assert comfy.view(**result.output("response")["images"][0])[:4] == b"\x89PNG"
    [path] = set(comfy.models("loras").glob("slider_*")) - before
    assert difflora.load(path).metadata[STRENGTH_KEY] == "-3 to 3"
    if "save" not in prompt:
        return
    with av.open(io.BytesIO(comfy.view(**result.output("save")["images"][0]))) as file:
        stream = file.streams.video[0]
        assert stream.width > 3 * 64 or stream.height > 3 * 64
        assert "DiffLoraSweepGrid" in file.metadata["prompt"]


def test_exploring_a_pair_saves_a_slider_of_rank_4(comfy):
    before = set(comfy.models("loras").glob("slider_*"))
    result = comfy.run(runnable(EXPLORE, comfy))
    [path] = set(comfy.models("loras").glob("slider_*")) - before
    lora = difflora.load(path)
    assert all("attn" in name for name in lora.names) and lora.rank_text == "4"
    assert comfy.view(**result.output("analyze")["images"][0])[:4] == b"\x89PNG"


def twins(workflow, comfy, request):
    """A workflow for both models of Wan2.2 on two small ones, four steps, the first half of them with high noise."""
    folder = comfy.models("diffusion_models")
    if workflow in WITH_WRAPPER:
        request.getfixturevalue("wrapper")
        small_models.write_wan_for_wrapper(folder / LOW_WRAPPER, seed=9)
        steps = {"high": {"end_step": 2}, "low": {"start_step": 2}}
    else:
        small_models.write_wan(folder / LOW, seed=9)
        steps = {"high": {"end_at_step": 2}, "low": {"start_at_step": 2}}
    prompt = runnable(workflow, comfy)
    for noise in NOISES:
        prompt[f"sampler_{noise}"]["inputs"] |= {"steps": 4} | steps[noise]
    return prompt


@pytest.mark.parametrize("workflow", [TWINS, TWINS_WRAPPER], **ids)
def test_both_models_of_wan22_hear_their_own_slider_and_a_sweep_drives_both(workflow, comfy, request):
    prompt = twins(workflow, comfy, request)
    model = "model" if workflow in WITH_WRAPPER else "unet"
    seen = []
    for strength, high, low in ((2.0, True, True), (2.0, True, False), (2.0, False, True), (-2.0, True, True)):
        prompt["strength"]["inputs"]["value"] = strength
        prompt["slider_high"]["inputs"]["on"], prompt["slider_low"]["inputs"]["on"] = high, low
        result = comfy.run(prompt, timeout=900)
        seen.append(digest(result))
        if len(seen) > 1:
            once = {f"{kind}_{noise}" for kind in (model, "rank", "file") for noise in NOISES}
            assert not once & set(result.executed)
    assert len(set(seen)) == len(seen)

    for noise in NOISES:
        path = comfy.models("loras") / f"density_{noise}.safetensors"
        assert noise_said(path.stem) == noise
        lora = difflora.load(path)
        assert lora.rank_text == "4" and all("attn" in name for name in lora.names)

    # A sweep in place of the strength, as the note says.
    prompt["strength"] = {
        "class_type": "DiffLoraStrengthSweep",
        "inputs": {"start": -2.0, "stop": 2.0, "count": 3, "include_zero": True, "strengths": ""},
    }
    grid = {"arrange": "grid", "cell_size": 64, "fps": 16.0, "baseline": 0.0, "text": ""}
    prompt["grid"] = {"class_type": "DiffLoraSweepGrid", "inputs": {"images": ["decode", 0]} | grid}
    prompt["video"]["inputs"]["images"] = ["grid", 0]
    del prompt["hash"]
    comfy.forget()  # Another test's model would be taken from the cache, and none be loaded.
    result = comfy.run(prompt, timeout=900)
    [shown] = result.output("grid")["difflora"]
    assert [clip["label"] for clip in shown["player"]["clips"]] == ["−2", "0", "+2"]
    for noise in NOISES:
        assert result.executed.count(f"{model}_{noise}") == 1
        assert sum(name.endswith(f".sampler_{noise}") for name in result.executed) == 3
        assert sum(name.endswith(f".slider_{noise}") for name in result.executed) == 3
