"""A page that was not there when nodes ran shows what they said; and what is in a file is known when it is picked."""

import pytest
import torch
from safetensors.torch import save_file

from tests import small_models
from tests.browser.face import Face
from tests.browser.test_widgets import chain, faces
from tests.e2e.test_sweep import swept

both_renderers = pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))


def blocks_of(grid):
    """The blocks of the rows that the grid shows."""
    heads = grid.element.query_selector_all(".rowheader")
    return [head.inner_text() for head in heads]


def cached_in(run):
    return [node for kind, told in run["status"]["messages"] if kind == "execution_cached" for node in told["nodes"]]


def energy_shown(face):
    return face["DiffLoraRerank"].text(".headline")


PICTURES = """id => LiteGraph.vueNodesMode ? document.querySelectorAll(`[data-node-id="${id}"] img`).length
    : app.graph.getNodeById(Number(id)).imgs?.length ?? 0"""


@pytest.fixture(scope="module")
def other_page(open_page):
    """A page that sees no run of the shared one. Which renderer it has is the test's to set."""
    page = open_page()
    yield page
    page.close()


def test_after_a_reload_cached_nodes_show_what_they_said(page_in, open_page, other_page):
    """In both renderers: the second page draws nodes with Vue, the third on the canvas."""
    first = page_in("en-US")
    first.set_renderer(False)
    saved = chain(small_models.DENSE, small_models.SPARSE)["6"]["inputs"]
    pure = {"lora": ["5", 0], "against": ["2", 0], "directions": 2}
    more = {
        "17": {"class_type": "DiffLoraPurify", "inputs": pure},
        "18": {"class_type": "DiffLoraSave", "inputs": {**saved, "lora": ["17", 0], "filename_prefix": "pure"}},
    }
    first.load(chain(small_models.DENSE, small_models.SPARSE) | more)
    first.queue()
    first.fit()
    shown = energy_shown(faces(first))
    assert "%" in shown
    workflow = first.workflow()
    errors = list(first.errors)
    first.clear()

    def check_new(page, energy):
        """A page that was not there when the nodes ran."""
        page.load(workflow)
        assert faces(page)["DiffLoraRerank"].find(".empty").is_visible()
        assert {"5", "17"} <= set(cached_in(page.queue())), "otherwise this tests nothing"
        page.settle()
        face = faces(page)
        assert energy_shown(face) == energy
        assert len(blocks_of(face["DiffLoraSelectBlocks"])) == 3, "as many as the small model has, not Wan's 40"
        hot = "e => [...e.querySelectorAll('[role=gridcell]:not(.absent)')].every(cell => cell.dataset.heat)"
        page.page.wait_for_function(hot, arg=face["DiffLoraSelectBlocks"].element, timeout=10_000)
        assert not face["DiffLoraSelectBlocks"].find(".chip:text('Strongest')").is_disabled()
        page.page.wait_for_function(f"id => ({PICTURES})(id) === 1", arg="17", timeout=10_000)

    second = open_page(vue=True)  # another browser, in all that the server can see
    check_new(second, shown)
    # Another workflow with the same ids, then again in a page that has not seen it run: its own words, not the first's.
    workflow["nodes"] = [
        node | {"widgets_values": ["rank", 1, *node["widgets_values"][2:]]}
        if node["type"] == "DiffLoraRerank"
        else node
        for node in workflow["nodes"]
    ]
    second.load(workflow)
    second.queue()
    other = energy_shown(faces(second))
    assert other != shown
    second.close()
    other_page.clear()
    other_page.set_renderer(False)
    check_new(other_page, other)
    assert errors == second.errors == other_page.errors == []


@both_renderers
def test_after_a_reload_nodes_inside_a_sweep_show_what_they_said(page_in, other_page, comfy, vue):
    """They run as clones under ids of their own, and after a reload ComfyUI says nothing of them."""
    prompt = swept("0.5, 1", seed=57 + vue)
    prompt["difference"]["inputs"]["weight_a"] = ["sweep", 0]  # so that Subtract, Select and Re-rank are inside, too
    prompt["slider"]["inputs"]["strength"] = 1.0
    prompt["keep"]["inputs"]["name"] = "inside"
    number = {name: str(at) for at, name in enumerate(prompt, 1)}

    def numbered(value):
        return [number[value[0]], value[1]] if isinstance(value, list) and value[0] in number else value

    first = page_in("en-US")
    first.set_renderer(vue)
    first.load(
        {
            number[name]: node | {"inputs": {key: numbered(value) for key, value in node["inputs"].items()}}
            for name, node in prompt.items()
        }
    )
    first.queue()
    inside = ("DiffLoraSubtract", "DiffLoraSelectBlocks", "DiffLoraRerank", "DiffLoraSliderModel")

    def said(page):
        page.settle()
        shown = faces(page)
        return {kind: shown[kind].element.inner_text() for kind in inside}

    before = said(first)
    assert "24 of 24 modules applied" in before["DiffLoraSliderModel"]
    assert "%" in energy_shown(faces(first))
    workflow = first.workflow()
    other_page.clear()
    other_page.set_renderer(vue)
    other_page.load(workflow)
    assert said(other_page) != before
    ran = other_page.queue()
    other_page.settle()
    assert not {number[name] for name in ("difference", "slider")} & set(cached_in(ran)), "otherwise this tests nothing"
    assert said(other_page) == before
    assert other_page.errors == []


@both_renderers
def test_the_grid_knows_the_lora_when_it_is_picked(page, comfy, vue):
    for name, blocks in (("picked_3.safetensors", 3), ("picked_5.safetensors", 5)):
        tensors = {}
        for block in range(blocks):
            module = f"diffusion_model.double_blocks.{block}.img_attn.qkv"
            tensors[f"{module}.lora_down.weight"] = torch.ones(2, 8)
            tensors[f"{module}.lora_up.weight"] = torch.ones(8, 2)
        save_file(tensors, comfy.models("loras") / name)
    load = Face(page, "DiffLoraLoad", (40, 80))
    grid = Face(page, "DiffLoraSelectBlocks", (500, 80))
    page.run(
        "([a, b]) => app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 0)", [int(load.id), int(grid.id)]
    )
    for blocks in (3, 5):
        load.set("lora_name", f"picked_{blocks}.safetensors")
        shows = "([e, n]) => e.querySelectorAll('.rowheader').length === n"
        page.page.wait_for_function(shows, arg=[grid.element, blocks], timeout=10_000)
        assert blocks_of(grid) == [f"d{block}" for block in range(blocks)]
        assert f"{blocks} modules" in load.text(".lines")
    # A reloaded graph knows it as soon, and without a run.
    workflow = page.workflow()
    page.clear()
    page.load(workflow)
    page.page.wait_for_function(shows, arg=[Face(page, grid.type, node_id=grid.id).element, 5], timeout=10_000)

    load = Face(page, "DiffLoraLoad", node_id=load.id)
    load.set("lora_name", "../../secret<b>.safetensors")
    page.page.wait_for_function("e => e.querySelector('li.error')", arg=load.element, timeout=10_000)
    assert "is not in the loras folder" in load.text("li.error")
    assert str(comfy.base) not in load.element.inner_text()
    page.errors.clear()  # the browser logs the answer's status
