"""Load LoRA Pair in the page: what fits is offered, sides are swapped, pictures and words of the files are seen."""

import json

import pytest
from PIL import Image

from tests import small_models
from tests.browser.face import Face
from tests.browser.test_widgets import both_renderers, drawn, settled  # noqa: F401

EVIL = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def files(comfy):
    """A pair beside the shared one: with a picture and words on one side."""
    folder = comfy.models("loras") / "cats"
    folder.mkdir(exist_ok=True)
    words = {"ss_tag_frequency": json.dumps({"a": {"ginger cat": 9, EVIL: 4}})}
    small_models.write_lora_pair(
        folder / "cat_pos.safetensors",
        folder / "cat_neg.safetensors",
        comfy.models("diffusion_models") / small_models.WAN,
    )
    rewrite(folder / "cat_pos.safetensors", words)
    Image.new("RGB", (64, 64), (200, 90, 20)).save(folder / "cat_pos.preview.png")
    return "cats/cat_pos.safetensors", "cats/cat_neg.safetensors"


def rewrite(path, metadata):
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path, metadata=metadata)


@both_renderers
def test_what_fits_is_offered_and_taken_and_swapped_and_undone(drawn, files):  # noqa: F811
    drawn.run("async () => { await app.refreshComboInNodes?.(); }")
    pair = Face(drawn, "DiffLoraLoadPair", (100, 60))
    pair.set("lora_a", files[0])
    pair.set("lora_b", small_models.DENSE)
    offer = "e => [...e.querySelectorAll('.offer')].map(b => b.textContent).join() === 'cat_neg'"
    drawn.page.wait_for_function(offer, arg=pair.element)
    settled(drawn)
    pair.find(".offer").click()
    drawn.settle()
    assert pair.sent("lora_b") == files[1]
    drawn.page.wait_for_function(
        "e => [...e.querySelectorAll('.file')].map(f => f.textContent).join() === 'cats/cat_pos.safetensors,cats/cat_neg.safetensors'",
        arg=pair.element,
    )
    drawn.page.wait_for_function("e => e.querySelector('.side img')?.naturalWidth === 64", arg=pair.element)
    assert len(pair.element.query_selector_all(".side img")) == 1, "only one of them has a picture"
    assert pair.text(".words") == f"ginger cat · {EVIL}" and drawn.run("() => window.hacked") is None
    pair.find(".swap").click()
    drawn.settle()
    assert (pair.sent("lora_a"), pair.sent("lora_b")) == (files[1], files[0])
    drawn.page.wait_for_function(
        "e => e.querySelector('.difflora-report').innerText.includes('swap the two')", arg=pair.element
    )
    drawn.undo()
    pair = Face(drawn, pair.type, node_id=pair.id)
    assert (pair.sent("lora_a"), pair.sent("lora_b")) == files
    drawn.undo()
    assert Face(drawn, pair.type, node_id=pair.id).sent("lora_b") == small_models.DENSE


@both_renderers
def test_the_pair_for_the_other_model_of_wan22_is_taken_in_one_step(drawn, files):  # noqa: F811
    pair = Face(drawn, "DiffLoraLoadPair", (100, 60))
    sides = [{"name": pair.sent(name), "words": [], "folder": 0} for name in ("lora_a", "lora_b")]
    pair.told({"pair": {"offers": [], "sides": sides, "twins": {"noise": "low", "files": list(files)}}})
    settled(drawn)
    assert pair.text(".twins") == "Low-noise pair"
    pair.find(".twins").click()
    drawn.settle()
    assert (pair.sent("lora_a"), pair.sent("lora_b")) == files
    drawn.undo()
    pair = Face(drawn, pair.type, node_id=pair.id)
    assert [pair.sent("lora_a"), pair.sent("lora_b")] == [side["name"] for side in sides]


@both_renderers
def test_a_slider_behind_a_pair_is_saved_under_the_name_of_its_files(drawn, files):  # noqa: F811
    drawn.run("async () => { await app.refreshComboInNodes?.(); }")
    pair, slider = Face(drawn, "DiffLoraLoadPair", (100, 60)), Face(drawn, "DiffLoraSliderModel", (600, 60))
    pair.set("lora_a", files[0])
    pair.set("lora_b", files[1])
    drawn.run(
        """([pair, slider]) => {
            const subtract = LiteGraph.createNode('DiffLoraSubtract');
            subtract.pos = [100, 600];
            app.graph.add(subtract);
            const [from, to] = [pair, slider].map(id => app.graph.getNodeById(Number(id)));
            from.connect(0, subtract, 0); from.connect(1, subtract, 1); subtract.connect(0, to, 1);
        }""",
        [pair.id, slider.id],
    )
    drawn.settle()
    slider.find("[aria-label='More']").click()
    drawn.page.locator(".difflora-menu").get_by_role("menuitem").filter(has_text="Save this slider").click()
    drawn.settle()
    [save] = drawn.node_ids("DiffLoraSave")
    assert drawn.prompt()[save]["inputs"]["filename_prefix"] == "cat_slider"
