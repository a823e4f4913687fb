"""What strangers name (files, metadata, modules, labels, errors) is text to the page, never HTML, in both renderers."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import small_models
from tests.comfy_server import ComfyError
from tests.e2e.test_sweep import grid, node, sweep

EVIL = "<img src=x onerror=window.evil=1>"


def prompts():
    names = {"dataset": "evil pairs", "side_a": "more", "side_b": "less"}
    yield {
        "1": node("DiffLoraImageFolder", folder="input/evil", **names, per_run=1),
        "2": node("PreviewImage", images=["1", 0]),
        "3": node("DiffLoraSavePair", image_a=["1", 0], image_b=["1", 0], stem=["1", 1], **names,
                  captions="same for both", caption=EVIL, word_a=EVIL, word_b="b", overwrite=True),
    }  # fmt: skip
    yield {"1": node("DiffLoraCheckPairs", **names, least_similar=0.3, most_similar=0.985, colour_drift=8.0)}
    yield {
        "1": node("DiffLoraLoad", lora_name=f"{EVIL}.safetensors", ignore_unknown=True),
        "2": node("DiffLoraLoad", lora_name=small_models.SPARSE, ignore_unknown=False),
        "3": node("DiffLoraSubtract", a=["1", 0], b=["2", 0], weight_a=1.0, weight_b=1.0, unmatched="keep"),
        "4": node("DiffLoraSave", lora=["3", 0], filename_prefix="evil/saved", dtype="float32", dialect="native",
                  if_exists="overwrite", recommended_strength=""),
    }  # fmt: skip
    yield {
        "1": sweep("0, 1"),
        "2": node("TestClip", strength=["1", 0], frames=2, width=64, height=64),
        "3": grid("2", text=EVIL),
        "4": node(
            "DiffLoraABCompare", a=["2", 0], b=["2", 0], mode="wipe", amplify=4.0, fps=16.0, label_a=EVIL, label_b=EVIL
        ),
    }
    # These fail, and the message quotes what was typed.
    yield {
        "1": node("DiffLoraLoad", lora_name=small_models.DENSE, ignore_unknown=False),
        "2": node("DiffLoraSelectBlocks", lora=["1", 0], selection=EVIL, rest="leave out"),
        "3": node("TestKeep", value=["2", 0]),
    }
    yield {"1": node("DiffLoraCheckPairs", dataset="evil pairs", side_a=EVIL, side_b="less", least_similar=0.3,
                     most_similar=0.985, colour_drift=8.0)}  # fmt: skip


@pytest.fixture(scope="module")
def evil_files(comfy):
    folder = comfy.base / "input/evil"
    folder.mkdir(exist_ok=True)
    for number in range(4):
        Image.new("RGB", (64, 48), (40 * number, 120, 30)).save(folder / f"{EVIL}{number}.png")
    loras = comfy.models("loras")
    tensors = load_file(loras / small_models.DENSE)
    tensors[f"{EVIL}.lora_up.weight"] = torch.ones(4, 2)
    tensors[f"{EVIL}.lora_down.weight"] = torch.ones(2, 4)
    tensors[f"{EVIL}.what"] = torch.ones(2)
    metadata = {"ss_output_name": EVIL, "ss_network_module": EVIL, "modelspec.title": EVIL, "ss_base_model_version": EVIL,
                "difflora.recommended_strength": EVIL, "recommended_strength": EVIL, "ss_tag_frequency": EVIL}  # fmt: skip
    save_file(tensors, loras / f"{EVIL}.safetensors", metadata=metadata)
    yield
    (loras / f"{EVIL}.safetensors").unlink()
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_what_strangers_name_is_never_html(evil_files, page_in, vue):
    page = page_in("en-US")
    page.set_renderer(vue)
    failed = 0
    for number, prompt in enumerate(prompts()):
        page.clear()
        page.load(prompt)
        try:
            page.queue()
        except ComfyError:
            failed += 1
        page.settle()
        page.fit()
        page.page.wait_for_timeout(500)
        found = page.run("() => [window.evil ?? null, document.querySelectorAll('img[src=\"x\"]').length]")
        assert found == [None, 0], (number, vue)
    assert failed >= 2
