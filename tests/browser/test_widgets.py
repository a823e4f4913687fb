"""Strength slider, spectrum, block tiles and reports in ComfyUI's page, in both renderers; and a real run."""

import json

import pytest
import torch
from safetensors.torch import save_file

from difflora.lora.selection import Selection
from tests import small_models
from tests.browser.face import Face, wire_text

both_renderers = pytest.mark.parametrize("drawn", (False, True), ids=("canvas", "vue"), indirect=True)


@pytest.fixture
def drawn(page):
    """The page, in one of its renderers."""
    return page


def box(face, selector):
    found = face.find(selector).bounding_box()
    assert found, f"{selector} cannot be seen"
    return found


# Strength


@both_renderers
def test_slider_follows_the_pointer_and_the_keys(drawn):
    slider = Face(drawn, "DiffLoraSliderModel")
    track = box(slider, ".track")
    mouse, keyboard = drawn.page.mouse, drawn.page.keyboard
    middle = track["y"] + track["height"] / 2
    mouse.move(track["x"] + track["width"] / 2, middle)
    mouse.down()
    mouse.move(track["x"] + track["width"] * 0.8, middle, steps=5)
    mouse.up()
    assert slider.value("strength") == pytest.approx(3, abs=0.11)
    drawn.page.wait_for_timeout(400)
    mouse.dblclick(track["x"] + track["width"] * 0.2, middle)
    assert slider.value("strength") == 0
    slider.find(".track").focus()
    for key, value in (
        ("ArrowRight", 0.1),
        ("PageUp", 1.1),
        ("-", -1.1),
        ("Home", -3),
        ("End", 3),
        ("Delete", 0),
        ("0", 0),
    ):
        keyboard.press(key)
        assert slider.value("strength") == pytest.approx(value)
        assert slider.sent("strength") == pytest.approx(value)
    assert drawn.node_ids("DiffLoraSliderModel") == [slider.id]


@both_renderers
def test_slider_says_how_safe_a_strength_is(drawn):
    slider = Face(drawn, "DiffLoraSliderModel")
    for value, zone, shown in (
        (-3, "safe", "−3"),
        (3.5, "stretched", "+3.5"),
        (-4.5, "risky", "−4.5"),
        (8, "risky", "+8"),
        (0, "safe", "0"),
    ):
        slider.set("strength", value)
        assert slider.text(".zone") == zone
        assert slider.find(".value").input_value() == shown
        assert float(slider.find(".track").get_attribute("aria-valuenow")) == value
    slider.set("strength", 2.5)
    slider.find("button[aria-label='Flip the sign']").click()
    assert slider.value("strength") == -2.5


@both_renderers
def test_slider_shows_the_range_that_the_file_recommends(drawn):
    slider = Face(drawn, "DiffLoraSliderModel")
    assert slider.find(".advice").is_hidden()
    slider.told({"strength_range": [-2.5, 3]})
    assert "−2.5 to +3" in slider.text(".note")
    band, track = box(slider, ".advice"), box(slider, ".track")
    assert (band["x"] - track["x"]) / track["width"] == pytest.approx(0.25, abs=0.01)
    assert band["width"] / track["width"] == pytest.approx(0.55, abs=0.01)


def settled(page):
    """What is in the graph now is a step that undo comes back to."""
    page.run("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")


@both_renderers
def test_the_number_is_typed_and_each_step_is_undone_by_itself(drawn):
    slider = Face(drawn, "DiffLoraSliderModel")
    settled(drawn)
    number, keyboard = slider.find(".value"), drawn.page.keyboard
    for text, value in (("−2,25", -2.25), ("nonsense", -2.25), ("77", 10), ("1.5", 1.5)):
        number.focus()
        keyboard.press("Control+a")
        keyboard.type(text)
        keyboard.press("Enter")
        assert slider.sent("strength") == value
    assert drawn.run("e => document.activeElement === e", slider.find(".track"))
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    assert slider.value("strength") == pytest.approx(1.7)
    for value in (1.6, 1.5, 10, -2.25, 1):
        for _ in range(3):  # a height that ComfyUI's page changes itself, after an undo, can be a step of its own
            drawn.undo()
            if Face(drawn, slider.type, node_id=slider.id).value("strength") == pytest.approx(value):
                break
        assert Face(drawn, slider.type, node_id=slider.id).value("strength") == pytest.approx(value)


@both_renderers
def test_the_wheel_moves_the_track_that_has_the_focus_and_no_other(drawn):
    slider = Face(drawn, "DiffLoraSliderModel")
    track = box(slider, ".track")
    drawn.page.mouse.move(track["x"] + 20, track["y"] + 10)
    scale = drawn.run("() => app.canvas.ds.scale")
    drawn.page.mouse.wheel(0, -100)
    drawn.settle()
    assert slider.value("strength") == 1
    drawn.run(
        "scale => { app.canvas.ds.reset(); app.canvas.ds.scale = scale; app.canvas.setDirty(true, true); }", scale
    )
    drawn.settle()
    slider.find(".track").focus()
    track = box(slider, ".track")
    drawn.page.mouse.move(track["x"] + 20, track["y"] + 10)
    for turns, value in ((-3, 0.7), (5, 1.2)):
        for _ in range(abs(turns)):
            drawn.page.mouse.wheel(0, -100 if turns > 0 else 100)
        drawn.settle()
        assert slider.value("strength") == pytest.approx(value)
    assert drawn.run("() => app.canvas.ds.scale") == scale


@both_renderers
def test_the_switch_keeps_the_strength(drawn):
    slider = Face(drawn, "DiffLoraSliderModel")
    slider.set("strength", 2)
    switch = slider.find("[role=switch]")
    assert switch.get_attribute("aria-checked") == "true"
    switch.click()
    assert (slider.sent("on"), slider.sent("strength")) == (False, 2)
    assert slider.text(".zone") == "off: the base model"
    workflow = drawn.workflow()
    drawn.clear()
    drawn.load(workflow)
    slider = Face(drawn, slider.type, node_id=slider.id)
    assert slider.find("[role=switch]").get_attribute("aria-checked") == "false"
    slider.find("[role=switch]").focus()
    drawn.page.keyboard.press("Space")
    assert slider.sent("on") is True


@both_renderers
def test_the_menu_sets_copies_and_remembers(drawn, pair):
    drawn.run("() => localStorage.removeItem('DifferentialLora.strengths')")
    load = Face(drawn, "DiffLoraLoad", (40, 40))
    load.set("lora_name", pair[0])
    one, other = Face(drawn, "DiffLoraSliderModel", (500, 40)), Face(drawn, "DiffLoraSliderModel", (900, 40))
    wire = "([a, b]) => app.graph.getNodeById(Number(a)).connect(0, app.graph.getNodeById(Number(b)), 1)"
    drawn.run(wire, [load.id, one.id])
    menu = drawn.page.locator(".difflora-menu")

    def choose(slider, text, button="right"):
        if button == "right":
            track = box(slider, ".track")
            drawn.page.mouse.click(track["x"] + 30, track["y"] + 8, button="right")
        else:
            slider.find("[aria-label='More']").click()
        menu.get_by_role("menuitem").filter(has_text=text).first.click()
        drawn.settle()
        assert menu.count() == 0

    choose(one, "−3")
    assert one.sent("strength") == -3
    choose(one, "Copy −3", "left")
    choose(other, "Paste")
    assert other.sent("strength") == -3
    choose(other, "Flip")
    assert other.sent("strength") == 3
    choose(one, "Remember −3 for dense")
    third = Face(drawn, "DiffLoraSliderModel", (500, 500))
    drawn.run(wire, [load.id, third.id])
    drawn.page.wait_for_timeout(200)
    assert third.value("strength") == -3, "a new slider on this LoRA starts there"
    drawn.run(wire, [load.id, other.id])
    drawn.page.wait_for_timeout(200)
    assert other.value("strength") == 3, "one that somebody has set stays"
    box(one, ".track")
    one.find(".track").click(button="right")
    drawn.page.keyboard.press("ArrowDown")
    drawn.page.keyboard.press("ArrowDown")
    assert drawn.run("() => document.activeElement.textContent") == "−1"
    drawn.page.keyboard.press("Escape")
    assert menu.count() == 0 and drawn.run("e => document.activeElement === e", one.find(".track"))


@both_renderers
def test_a_measured_range_is_on_the_slider_and_in_what_it_saves(drawn, pair):
    # Tests share a page, and ComfyUI keeps what a node of the same id said before.
    drawn.run("() => { if (app.nodeOutputs) delete app.nodeOutputs['5']; }")
    drawn.load(
        {
            "1": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": pair[0], "ignore_unknown": False}},
            "2": {
                "class_type": "DiffLoraSliderModel",
                "inputs": {"lora": ["1", 0], "strength": 1.0, "apply": "auto", "on": True},
            },
            "3": {"class_type": "TestClip", "inputs": {"strength": ["2", 0], "frames": 1, "width": 16, "height": 16}},
            "4": {
                "class_type": "DiffLoraSweepGrid",
                "inputs": {
                    "images": ["3", 0], "arrange": "grid", "cell_size": 384, "fps": 16.0, "baseline": 0.0, "text": "",
                },
            },
            "5": {
                "class_type": "DiffLoraSliderResponse",
                "inputs": {
                    "sweep": ["4", 1], "target": "edges", "colour_limit": 5.0, "brightness_limit": 10.0,
                    "saturation_limit": 10.0, "moments": 12,
                },
            },
        }
    )  # fmt: skip
    # The wire of a model into a number is none that ComfyUI makes; the walk along wires is the same.
    drawn.run("""() => {
        const [slider, clip] = [2, 3].map(id => app.graph.getNodeById(id));
        const index = clip.inputs.findIndex(i => i.name === 'strength');
        if (!clip.inputs[index].link) { clip.inputs[index].type = '*'; slider.connect(0, clip, index); }
    }""")
    drawn.fit()
    slider = Face(drawn, "DiffLoraSliderModel", node_id="2")
    assert slider.find(".advice").is_hidden()
    told = """() => { const output = { difflora: [{ strength_range: [-2.8, 1.1] }] };
        app.nodeOutputs['5'] = output; app.graph.getNodeById(5).onExecuted?.(output); }"""
    drawn.run(told)
    drawn.settle()
    assert slider.text(".note") == "Sweep Response recommends −2.8 to +1.1"
    assert slider.find(".advice").is_visible()
    # Clicked by script: ComfyUI 0.3.75 puts all nodes of a prompt in one place when Vue draws them.
    slider.find("[aria-label='More']").evaluate("button => button.click()")
    item = drawn.page.locator(".difflora-menu").get_by_role("menuitem").filter(has_text="Save this slider")
    item.evaluate("entry => entry.click()")
    drawn.settle()
    [save] = drawn.node_ids("DiffLoraSave")
    sent = drawn.prompt()[save]["inputs"]
    assert sent["lora"] == ["1", 0]
    assert (sent["filename_prefix"], sent["dtype"], sent["recommended_strength"]) == (
        "dense_slider",
        "bfloat16",
        "-2.8 to 1.1",
    )
    slider.find("[aria-label='More']").evaluate("e => e.click()")
    drawn.page.locator(".difflora-menu").get_by_role("menuitem").filter(has_text="Save this slider").click()
    assert drawn.node_ids("DiffLoraSave") == [save], "the one that is there is taken"


# Spectrum


@both_renderers
def test_cut_and_kept_energy_follow_the_rank_without_a_run(drawn):
    rerank = Face(drawn, "DiffLoraRerank")
    assert rerank.find(".empty").is_visible()
    values = [2.0**-index for index in range(16)]
    rerank.told({"spectrum": {"values": {"a": values, "b": values}, "energy": {}}})
    energy = [value * value for value in values]
    for rank in (1, 2, 6):
        rerank.set("rank", rank)
        shown = float(rerank.text(".headline b").split()[0])
        assert shown == pytest.approx(100 * sum(energy[:rank]) / sum(energy), abs=0.051)
        assert len(rerank.element.query_selector_all(".bar.keep")) == rank
    chart = box(rerank, "svg")
    drawn.page.mouse.move(chart["x"] + chart["width"] * 0.3, chart["y"] + 30)
    drawn.page.mouse.down()
    drawn.page.mouse.move(chart["x"] + chart["width"] * 0.9, chart["y"] + 30, steps=4)
    drawn.page.mouse.up()
    dragged = rerank.value("rank")
    assert abs(box(rerank, ".grip")["x"] - (chart["x"] + chart["width"] * 0.9)) < chart["width"] / 16
    assert dragged in (14, 15)
    rerank.find("svg").focus()
    drawn.page.keyboard.press("ArrowLeft")
    assert rerank.sent("rank") == dragged - 1
    rerank.set("rule", "ratio")
    rerank.set("ratio", 4.5)
    assert len(rerank.element.query_selector_all(".bar.keep")) == 3


SEEN = """id => LiteGraph.vueNodesMode
    ? [...document.querySelectorAll(`[data-node-id="${id}"] .lg-node-widget`)]
        .filter(row => row.getBoundingClientRect().height && !row.querySelector('.difflora-outer')).map(row => row.innerText.split('\\n')[0])
    : [...app.graph.getNodeById(Number(id)).widgets].filter(w => !w.hidden && !w.options?.hidden && w.type !== 'difflora').map(w => w.name)"""


@both_renderers
def test_calibrate_asks_for_what_its_unit_needs(drawn):
    calibrate = Face(drawn, "DiffLoraCalibrate")
    needs = {"norm": ["norm"], "change": ["change"], "safe range": [], "prediction": ["percent", "noise", "samples"]}
    heights = {}
    for by in (*needs, "norm"):
        calibrate.set("by", by)
        assert drawn.run(SEEN, calibrate.id) == ["by", *needs[by]]
        height = drawn.boxes()[calibrate.id][3]
        assert heights.setdefault(by, height) == height, "back and forth, the node is as high as before"
    assert heights["safe range"] < heights["norm"] < heights["prediction"], "no gap is left"
    assert calibrate.sent("percent") == 5 and calibrate.sent("change") == 1


@both_renderers
def test_rerank_asks_for_what_its_rule_needs_and_keeps_the_rest(drawn):
    rerank = Face(drawn, "DiffLoraRerank")
    rerank.set("energy", 0.77)
    seen = SEEN
    needs = {
        "rank": ["rank"],
        "energy": ["energy", "max_rank"],
        "ratio": ["ratio", "max_rank"],
        "knee": ["max_rank"],
        "budget": ["rank", "max_rank"],
    }
    heights = {}
    for rule in (*needs, "rank"):
        rerank.set("rule", rule)
        assert drawn.run(seen, rerank.id) == ["rule", *needs[rule]]
        height = drawn.boxes()[rerank.id][3]
        assert heights.setdefault(rule, height) == height, "back and forth, the node is as high as before"
    assert heights["energy"] > heights["rank"], "no gap is left"
    assert rerank.sent("energy") == 0.77 and rerank.sent("max_rank") == 64
    workflow = drawn.workflow()
    drawn.clear()
    drawn.load(workflow)
    rerank = Face(drawn, "DiffLoraRerank", node_id=rerank.id)
    assert rerank.value("energy") == 0.77
    assert drawn.run(seen, rerank.id) == ["rule", "rank"]
    drawn.run(
        """id => {
            const source = LiteGraph.createNode('PrimitiveFloat');
            app.graph.add(source);
            const node = app.graph.getNodeById(Number(id));
            source.connect(0, node, node.inputs.findIndex(i => i.name === 'energy'));
        }""",
        rerank.id,
    )
    rerank.set("rule", "rank")
    assert drawn.run(seen, rerank.id) == ["rule", "rank", "energy"], "what has a wire stays in sight"


@both_renderers
def test_lines_of_an_older_run_are_called_that(drawn):
    rerank = Face(drawn, "DiffLoraRerank")
    ran = {"rule": "rank", "rank": 4, "energy": 0.9, "ratio": 10, "max_rank": 64}
    spectrum = {"values": {"a": [4, 2, 1, 0.5, 0.25]}, "energy": {}}
    lines = [{"text": "rank 32 → 4, 99 % of the energy kept", "level": "info"}]
    rerank.told({"spectrum": spectrum, "ran": ran, "report": {"title": "Re-rank", "lines": lines}})
    assert not rerank.element.query_selector("li.old")
    rerank.set("rank", 2)
    assert rerank.text("li.old") == "The last run:"
    rerank.set("rank", 4)
    assert not rerank.element.query_selector("li.old")


# Block tiles


@both_renderers
def test_tiles_switch_blocks_off(drawn):
    toggle = Face(drawn, "DiffLoraBlockToggle")
    toggle.drag((0, 2), (0, 5))
    toggle.click(2, 0)
    names = [f"blocks.{n}.{part}" for n in range(40) for part in ("self_attn.q", "ffn.2")]
    text = toggle.sent("blocks")
    off = {name.split(".")[1] for name in Selection.parse(text).weights(names)}
    assert off == {"2", "3", "4", "5", "20"}
    assert "5 of 40" in toggle.text(".count")
    toggle.find("button:text-is('None')").click()
    assert toggle.value("blocks") == "none"


@both_renderers
def test_tiles_do_not_move_while_the_text_comes_from_a_wire(drawn):
    toggle = Face(drawn, "DiffLoraBlockToggle")
    toggle.set("blocks", "blocks 2")
    wire_text(drawn, toggle.id, "blocks", "blocks 5")
    assert "come from the wire" in toggle.text(".count")
    toggle.drag((0, 2), (0, 5))
    assert toggle.value("blocks") == "blocks 2"
    assert toggle.chosen() == set()


# Reports


@both_renderers
def test_report_is_plain_text_whatever_it_says(drawn):
    load = Face(drawn, "DiffLoraLoad")
    hostile = "<img src=x onerror='window.hacked = true'><script>window.hacked = true</script>"
    lines = [{"text": "fine", "level": "info"}, {"text": hostile, "level": "error"}, {"text": "hm", "level": "warning"}]
    load.told({"report": {"title": hostile, "lines": lines}})
    assert load.text(".title") == hostile
    assert [line.inner_text().split("\n")[-1] for line in load.element.query_selector_all("li")] == [
        "fine",
        hostile,
        "hm",
    ]
    assert not load.element.query_selector_all("img, script")
    assert drawn.run("() => window.hacked") is None


# A real run


@pytest.fixture
def pair(comfy):
    return small_models.DENSE, small_models.SPARSE


def chain(a, b):
    return {
        "1": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": a, "ignore_unknown": False}},
        "2": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": b, "ignore_unknown": False}},
        "3": {
            "class_type": "DiffLoraSubtract",
            "inputs": {"a": ["1", 0], "b": ["2", 0], "weight_a": 1, "weight_b": 1, "unmatched": "keep"},
        },
        "4": {
            "class_type": "DiffLoraSelectBlocks",
            "inputs": {"lora": ["3", 0], "selection": "attn", "rest": "leave out"},
        },
        "5": {
            "class_type": "DiffLoraRerank",
            "inputs": {"lora": ["4", 0], "rule": "rank", "rank": 2, "energy": 0.9, "ratio": 10, "max_rank": 64},
        },
        "6": {
            "class_type": "DiffLoraSave",
            "inputs": {
                "lora": ["5", 0],
                "filename_prefix": "face",
                "dtype": "float32",
                "dialect": "native",
                "if_exists": "overwrite",
                "recommended_strength": "-2.5 to 3",
            },
        },
        "7": {
            "class_type": "DiffLoraAnalyze",
            "inputs": {"a": ["1", 0], "b": ["2", 0], "rank": 4, "show": "difference"},
        },
    }


def faces(page):
    page.fit()  # what cannot be seen is not drawn
    return {
        type: Face(page, type, node_id=node_id)
        for node_id in page.node_ids()
        if (type := page.run("id => app.graph.getNodeById(Number(id)).type", node_id))
    }


@both_renderers
def test_a_run_brings_heat_spectrum_and_reports(drawn, pair):
    drawn.load(chain(*pair))
    drawn.queue()
    drawn.settle()
    face = faces(drawn)
    grid = face["DiffLoraSelectBlocks"]
    hot = "e => [...e.querySelectorAll('[role=gridcell]:not(.absent)')].some(cell => cell.dataset.heat)"
    drawn.page.wait_for_function(hot, arg=grid.element, timeout=10_000)
    cells = grid.element.query_selector_all("[role=gridcell]:not(.absent)")
    heat = [cell.get_attribute("data-heat") for cell in cells]
    assert len(cells) > 0
    assert all(heat), "Analyze has measured every module"
    assert "11" in heat, "the largest module has the hottest colour"
    assert grid.chosen() < {cell.get_attribute("aria-label").split(", ")[0] for cell in cells}
    assert "%" in face["DiffLoraRerank"].text(".headline")
    assert len(face["DiffLoraRerank"].element.query_selector_all(".bar.keep")) == 2
    assert "face" in face["DiffLoraSave"].text(".title")
    told = "e => e.querySelector('.lines').innerText.includes('rank')"
    drawn.page.wait_for_function(told, arg=face["DiffLoraLoad"].element, timeout=10_000)
    before = grid.value("selection")
    grid.cell(0, 0).focus()  # nodes of a loaded prompt may cover each other, so not by pointer
    drawn.page.keyboard.press("Space")
    assert grid.value("selection") != before
    drawn.queue()
    assert grid.element.query_selector(".difflora-report").is_hidden(), "nothing is wrong"


@pytest.mark.parametrize("times", [1, 20_000])
def test_hostile_file_shows_as_text_and_runs_nothing(times, page, comfy):
    evil = "<img src=x onerror='window.hacked=1'>\x1b[31m\0\r\n\u202e" * times
    name = "blocks.0.self_attn.q"
    file = comfy.models("loras") / "hostile.safetensors"
    save_file(
        {
            f"diffusion_model.{name}.lora_down.weight": torch.ones(2, 8),
            f"diffusion_model.{name}.lora_up.weight": torch.ones(8, 2),
        },
        file,
        metadata={
            key: evil
            for key in (
                "ss_base_model_version",
                "ss_output_name",
                "modelspec.title",
                "modelspec.architecture",
                "difflora.recipe",
            )
        }
        | {
            "difflora.recommended_strength": f"{evil} to 3",
            "ss_network_module": evil,
            "ss_tag_frequency": json.dumps({evil: 1}),
        },
    )
    page.run("async () => { await app.refreshComboInNodes?.(); }")
    prompt = {
        "1": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": "hostile.safetensors", "ignore_unknown": False}},
        "2": {
            "class_type": "DiffLoraRerank",
            "inputs": {"lora": ["1", 0], "rule": "rank", "rank": 1, "energy": 0.9, "ratio": 10, "max_rank": 64},
        },
        "3": {
            "class_type": "DiffLoraSave",
            "inputs": {
                "lora": ["2", 0],
                "filename_prefix": "face2",
                "dtype": "float32",
                "dialect": "native",
                "if_exists": "overwrite",
                "recommended_strength": "",
            },
        },
    }
    page.load(prompt)
    page.queue()
    page.page.wait_for_timeout(500)
    face = faces(page)
    assert face["DiffLoraLoad"].text(".title") == "hostile.safetensors"
    assert page.run("() => window.hacked") is None
    assert page.run("() => document.querySelectorAll('.difflora img, .difflora script').length") == 0


SHOWS = """async ([id, picture]) => {
    const file = () => new Blob([Uint8Array.from(atob(picture), letter => letter.charCodeAt(0))], { type: 'image/png' });
    const form = new FormData();
    form.append('image', file(), 'result.png');
    form.append('type', 'temp');
    const { name, subfolder, type } = await (await testApi.fetchApi('/upload/image', { method: 'POST', body: form })).json();
    const prompt_id = 'a-run', places = { nodeId: id, displayNodeId: id, parentNodeId: id, realNodeId: id, promptId: prompt_id };
    const rest = () => new Promise(resolve => setTimeout(resolve, 1000));
    testApi.dispatchCustomEvent('b_preview_with_metadata', { blob: file(), ...places });
    await rest();
    const during = app.nodePreviewImages[id]?.length ?? 0;
    const output = { images: [{ filename: name, subfolder, type }], difflora: [{}] };
    testApi.dispatchCustomEvent('executed', { node: id, display_node: id, prompt_id, output });
    await rest();
    const node = document.querySelector(`[data-node-id="${id}"]`);
    return { during, after: app.nodePreviewImages[id]?.length ?? 0, pictures: node?.querySelectorAll('img').length };
}"""
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_the_last_preview_of_a_training_goes_when_its_picture_comes(page, vue):
    page.load({"1": {"class_type": "DiffLoraTrainSlider", "inputs": {}}})
    page.set_renderer(vue)
    [node] = page.node_ids("DiffLoraTrainSlider")
    page.fit()
    seen = page.run(SHOWS, [node, DOT])
    assert seen["during"] == 1
    assert seen["after"] == 0
    if vue:
        assert seen["pictures"] == 1
