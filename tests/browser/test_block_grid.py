"""The block grid in ComfyUI's page, in both renderers: what is painted is what is sent, and nothing moves by itself."""

import pytest

from difflora.errors import SelectionError
from difflora.lora.selection import Selection
from tests.browser.face import WAN_COLUMNS, Face, wan_names, wire_text

NAMES = wan_names()

both_renderers = pytest.mark.parametrize("grid", (False, True), ids=("canvas", "vue"), indirect=True)


@pytest.fixture
def grid(page, request):
    grid = Face(page, "DiffLoraSelectBlocks")
    grid.vue = request.param
    return grid


def meaning(text):
    try:
        return Selection.parse(text).weights(NAMES)
    except SelectionError:
        return {}


def sent(grid):
    """What the server would make of the text that the page sends. The grid must show the same."""
    text = grid.sent("selection")
    assert text == grid.value("selection")
    chosen = meaning(text)
    assert grid.chosen() == set(chosen)
    return chosen


@both_renderers
def test_grid_starts_with_what_the_text_says(grid):
    assert sent(grid) == meaning(grid.value("selection")) != {}


@both_renderers
def test_dragging_paints_every_cell_it_crosses(grid):
    grid.set("selection", "all")
    grid.drag((2, 0), (30, 0), steps=2)
    assert set(NAMES) - set(sent(grid)) == {f"blocks.{n}.self_attn.q" for n in range(2, 31)}
    grid.drag((10, 0), (12, 0))
    assert set(NAMES) - set(sent(grid)) == {f"blocks.{n}.self_attn.q" for n in [*range(2, 10), *range(13, 31)]}


@both_renderers
def test_headers_toggle_lines(grid):
    grid.set("selection", "none")
    grid.click(7, -1)
    assert set(sent(grid)) == {f"blocks.7.{column}" for column in WAN_COLUMNS}
    grid.click(-1, 8)
    assert {name for name in sent(grid) if not name.startswith("blocks.7.")} == {
        f"blocks.{n}.ffn.0" for n in range(40) if n != 7
    }
    grid.set("selection", "none")
    grid.click(-2, 4)
    assert grid.value("selection") == "cross_attn"
    grid.drag((3, -1), (6, -1))
    assert set(sent(grid)) >= {f"blocks.{n}.{column}" for n in range(3, 7) for column in WAN_COLUMNS}


@both_renderers
def test_shift_extends_to_a_rectangle(grid):
    grid.set("selection", "none")
    grid.click(5, 1)
    grid.click(9, 3, "Shift")
    assert set(sent(grid)) == {f"blocks.{n}.self_attn.{p}" for n in range(5, 10) for p in "kvo"}


@both_renderers
def test_typing_moves_the_grid_and_says_what_is_wrong(grid):
    grid.set("selection", "blocks 3 & attn")
    assert len(sent(grid)) == 8
    grid.set("selection", "blocks 3 & atn")
    assert "atn" in grid.text(".problem")
    grid.set("selection", "attn ffn")
    assert "character 6" in grid.text(".problem")
    assert grid.chosen() == set()
    grid.set("selection", "ffn")
    assert len(sent(grid)) == 80
    assert grid.find(".problem").is_hidden()


@both_renderers
def test_presets_invert_and_none(grid):
    for label, text in (
        ("Attention", "attn"),
        ("Cross", "cross_attn"),
        ("Early", "blocks 0-10"),
        ("Late", "blocks 30-39"),
    ):
        grid.find(f".bar button:text-is('{label}')").click()
        assert grid.value("selection") == text
        assert sent(grid) == meaning(text)
    grid.find(".bar button:text-is('Invert')").click()
    assert grid.value("selection") == "blocks 0-29"
    grid.find(".bar button:text-is('None')").click()
    assert grid.value("selection") == "none"
    assert sent(grid) == {}


@both_renderers
def test_weights_are_painted_shown_and_sent(grid):
    grid.set("selection", "none")
    grid.find("button.mode").click()
    grid.find(".bar input[step]").fill("-0.5")
    grid.drag((0, 9), (3, 9))
    assert sent(grid) == {f"blocks.{n}.ffn.2": -0.5 for n in range(4)}
    assert grid.cell(2, 9).inner_text() == "-.5"
    grid.click(0, 9)
    assert "blocks.0.ffn.2" not in sent(grid)


@both_renderers
def test_keyboard_alone_is_enough(grid):
    keyboard = grid.page.page.keyboard
    grid.set("selection", "none")
    grid.cell(0, 0).focus()
    for key in ("ArrowDown", "ArrowRight", "Space", "Shift+ArrowDown", "Shift+ArrowRight"):
        keyboard.press(key)
    assert set(sent(grid)) == {"blocks.1.self_attn.k", "blocks.2.self_attn.k", "blocks.2.self_attn.v"}
    keyboard.press("Delete")
    assert grid.page.node_ids("DiffLoraSelectBlocks") == [grid.id], "Delete is for the cell, not for the node"
    assert "blocks.2.self_attn.v" not in sent(grid)
    for key in ("ArrowUp",) * 4:
        keyboard.press(key)
    assert grid.page.run("() => document.activeElement.getAttribute('role')") == "columnheader"
    keyboard.press("Space")
    assert set(sent(grid)) >= {f"blocks.{n}.self_attn.v" for n in range(40)}


@both_renderers
def test_undo_and_redo(grid):
    page = grid.page
    grid.set("selection", "attn")
    page.load(page.workflow())  # only a loaded workflow has a history
    grid = Face(page, grid.type, node_id=page.node_ids(grid.type)[0])
    grid.drag((0, 0), (0, 3))
    painted = grid.value("selection")
    assert painted != "attn"
    page.undo()
    assert page.run("() => app.graph._nodes[0]?.widgets[0].value") == "attn"
    again = Face(page, grid.type, node_id=page.node_ids(grid.type)[0])
    assert sent(again) == meaning("attn")
    page.page.keyboard.press("Control+y")
    page.page.wait_for_function("text => app.graph._nodes[0]?.widgets[0].value === text", arg=painted, timeout=5000)
    page.settle()
    redone = Face(page, grid.type, node_id=page.node_ids(grid.type)[0])
    redone.drag((5, 0), (5, 3))
    assert redone.value("selection") not in (painted, "attn")
    assert sent(redone) == meaning(redone.value("selection"))


@both_renderers
def test_copy_and_paste_takes_the_picture_along(grid):
    page = grid.page
    grid.drag((4, 4), (8, 4))
    page.run(
        "id => { app.canvas.deselectAll?.(); app.canvas.selectNode(app.graph.getNodeById(Number(id))); document.activeElement.blur(); }",
        grid.id,
    )
    page.page.keyboard.press("Control+c")
    page.page.keyboard.press("Control+v")
    page.page.wait_for_function("() => app.graph._nodes.length === 2", timeout=5000)
    page.settle()
    copy = Face(page, grid.type, node_id=next(i for i in page.node_ids(grid.type) if i != grid.id))
    assert copy.value("selection") == grid.value("selection")
    assert copy.chosen() == grid.chosen()


@both_renderers
def test_saved_workflow_comes_back_as_it_was(grid):
    grid.drag((4, 4), (8, 6))
    text, chosen, workflow = grid.value("selection"), grid.chosen(), grid.page.workflow()
    grid.page.clear()
    grid.page.load(workflow)
    again = Face(grid.page, grid.type, node_id=grid.page.node_ids(grid.type)[0])
    assert (again.value("selection"), again.chosen()) == (text, chosen)
    assert again.page.workflow()["nodes"][0]["widgets_values"] == workflow["nodes"][0]["widgets_values"]
    if not grid.vue:  # there, ComfyUI scales nodes of a loaded graph by itself
        assert again.page.workflow()["nodes"][0]["size"] == pytest.approx(workflow["nodes"][0]["size"], abs=1)


def test_switching_the_renderer_changes_nothing(page):
    grid = Face(page, "DiffLoraSelectBlocks")
    grid.drag((4, 4), (8, 6))
    text, chosen = grid.value("selection"), grid.chosen()
    for vue in (True, False, True, False):
        page.set_renderer(vue=vue)
        assert (grid.value("selection"), grid.chosen()) == (text, chosen)
        grid.cell(0, 0).scroll_into_view_if_needed()
        assert grid.cell(0, 0).is_visible()


@both_renderers
def test_sizes_appear_and_the_strongest_can_be_chosen(grid):
    modules = {name: {"norm": 1 + index, "cosine": 0.9} for index, name in enumerate(NAMES) if name != "blocks.0.ffn.2"}
    grid.set("selection", "all")
    grid.told({"modules": modules})
    assert "399 of 399" in grid.text(".count")
    assert "absent" in grid.cell(0, 9).get_attribute("class")
    heat = [int(grid.cell(row, 0).get_attribute("data-heat")) for row in range(40)]
    assert heat == sorted(heat) and heat[-1] > heat[0]
    grid.find(".bar input[max='100']").fill("10")
    grid.find(".bar button:text-is('Strongest')").click()
    assert grid.chosen() == set(NAMES[-40:])
    grid.page.page.mouse.move(*grid.middle(39, 9))
    tip = grid.page.page.locator("#difflora-tip")
    assert tip.is_visible()
    assert "‖ΔW‖ 400" in tip.inner_text() and "cos(A, B) 0.900" in tip.inner_text()


@both_renderers
def test_small_zoom_still_paints_where_the_pointer_is(grid):
    grid.page.run("() => { app.canvas.ds.scale = 0.55; app.canvas.setDirty(true, true); }")
    grid.page.settle()
    grid.set("selection", "none")
    grid.drag((20, 2), (25, 2))
    assert set(sent(grid)) == {f"blocks.{n}.self_attn.v" for n in range(20, 26)}


def test_touch_paints(page):
    grid = Face(page, "DiffLoraSelectBlocks")
    grid.set("selection", "none")
    page.tap(*grid.middle(6, 8))
    assert set(sent(grid)) == {"blocks.6.ffn.0"}


@both_renderers
def test_wheel_over_the_grid_zooms_the_canvas_as_anywhere_else(grid):
    page = grid.page
    scales = []
    for x, y in ((900, 500), grid.middle(20, 5)):
        page.run("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; app.canvas.setDirty(true, true); }")
        page.settle()
        page.page.mouse.move(x, y)
        page.page.mouse.wheel(0, -100)
        page.page.wait_for_timeout(300)
        scales.append(page.run("() => app.canvas.ds.scale"))
    assert scales[0] > 1
    assert scales[1] == pytest.approx(scales[0])


@both_renderers
def test_shift_after_a_header_extends_cells_from_cells_and_lines_from_lines(grid):
    grid.set("selection", "none")
    grid.click(1, 1)
    grid.click(-1, 8)  # ffn.0
    column = {f"blocks.{n}.ffn.0" for n in range(40)}
    grid.click(2, 2, "Shift")
    square = {f"blocks.{n}.self_attn.{p}" for n in (1, 2) for p in "kv"}
    assert set(sent(grid)) == column | square
    grid.click(-1, 9, "Shift")
    assert set(sent(grid)) == column | square | {f"blocks.{n}.ffn.2" for n in range(40)}


OUTSIDE = [
    "patch_embedding",
    *(f"{part}.{n}" for part in ("text_embedding", "time_embedding") for n in (0, 2)),
    "time_projection.1",
    "head.head",
]


@both_renderers
def test_modules_outside_the_blocks_are_chosen_one_by_one_or_along_a_stroke(grid):
    names = [*wan_names(3), *OUTSIDE]
    grid.told({"modules": {name: {} for name in names}})
    row, count = 3, len(OUTSIDE)
    shown = [grid.cell(row, column).get_attribute("aria-label") for column in range(count)]
    assert sorted(shown) == sorted(OUTSIDE)
    grid.set("selection", "none")
    x, y = grid.middle(row, count - 1)
    mouse = grid.page.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + 1, y)
    mouse.up()
    grid.page.settle()
    assert grid.chosen() == {shown[-1]}
    grid.drag((row, 1), (row, 3))
    assert grid.chosen() == {*shown[1:4], shown[-1]}
    grid.cell(row, 3).focus()
    for _ in range(count - 4):
        grid.page.page.keyboard.press("ArrowRight")
    grid.page.page.keyboard.press("Space")
    assert grid.chosen() == set(shown[1:4])


@both_renderers
def test_a_cells_label_tells_its_weight_and_its_size(grid):
    grid.told(
        {
            "modules": {
                name: {"norm": 1.5 * (1 + row)} for row, name in enumerate(wan_names(3)) if name != "blocks.1.ffn.2"
            }
        }
    )
    grid.set("selection", "attn, ffn=0.5")
    label = {spot: grid.cell(*spot).get_attribute("aria-label") for spot in ((0, 0), (0, 8), (1, 9))}
    assert label[0, 0] == "blocks.0.self_attn.q, ‖ΔW‖ 1.5"
    assert label[0, 8] == "blocks.0.ffn.0, weight 0.5, ‖ΔW‖ 13.5"
    assert label[1, 9] == "blocks.1.ffn.2, not in this LoRA"


@both_renderers
def test_a_selection_from_a_wire_cannot_be_painted_and_shows_the_last_run(grid):
    grid.set("selection", "attn")
    wire_text(grid.page, grid.id, "selection", "ffn")
    assert "comes from the wire" in grid.text(".note")
    assert grid.chosen() == set()
    grid.drag((0, 0), (4, 4))
    grid.cell(3, 3).focus()
    for key in ("Space", "Enter", "Delete", "Shift+ArrowDown"):
        grid.page.page.keyboard.press(key)
    assert grid.value("selection") == "attn"
    assert grid.id in grid.page.node_ids()
    assert all(chip.is_disabled() for chip in grid.element.query_selector_all(".bar button"))
    grid.told({"modules": {name: {} for name in NAMES}, "selection": "ffn"})
    assert grid.chosen() == set(meaning("ffn"))
    grid.page.run(
        "id => { const n = app.graph.getNodeById(Number(id)); n.disconnectInput(n.inputs.findIndex(i => i.widget?.name === 'selection')); }",
        grid.id,
    )
    grid.page.settle()
    assert grid.chosen() == set(meaning("attn"))
    grid.click(0, 0)
    assert grid.value("selection") != "attn"


@both_renderers
def test_what_a_selection_before_leaves_out_is_not_offered_again(grid):
    page = grid.page
    grid.set("selection", "attn, !blocks.1.self_attn.q")
    grid.told({"modules": {name: {} for name in wan_names(3)}})
    second = Face(page, grid.type, at=(600, 80))
    page.run(
        "([a, b]) => { app.graph.getNodeById(Number(a)).connect(0, app.graph.getNodeById(Number(b)), 0); }",
        [grid.id, second.id],
    )
    page.settle()
    assert "of 23 modules" in second.text(".count")
    assert "absent" in second.cell(1, 0).get_attribute("class")
    assert "absent" not in second.cell(0, 0).get_attribute("class")
    grid.set("selection", "attn")
    assert "of 24 modules" in second.text(".count")
    grid.set("rest", "write zeros")
    assert "of 30 modules" in second.text(".count"), "zeros are modules too"
