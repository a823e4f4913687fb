"""The rack of sliders in the page: rows are added, switched, moved, undone and still there after a reload."""

from tests import small_models
from tests.browser.face import Face
from tests.browser.test_widgets import both_renderers, drawn, settled  # noqa: F401


def rows(rack):
    return rack.sent("rows").split("\n") if rack.sent("rows") else []


def add(rack, search):
    rack.find(".add").click()
    page = rack.page.page
    page.wait_for_selector(".difflora-picker .option")
    page.keyboard.type(search)
    page.keyboard.press("Enter")
    rack.page.settle()


def choose(rack, row, text):
    """From the menu of a row."""
    rack.element.query_selector_all(".row .more")[row].click()
    rack.page.page.locator(".difflora-menu").get_by_role("menuitem").filter(has_text=text).first.click()
    rack.page.settle()


@both_renderers
def test_rows_are_added_set_moved_removed_and_undone_one_by_one(drawn):  # noqa: F811
    dense, sparse = (f"1 {name}" for name in (small_models.DENSE, small_models.SPARSE))
    drawn.run("() => localStorage.removeItem('DifferentialLora.strengths')")
    rack = Face(drawn, "DiffLoraSliderRack", (100, 60))
    settled(drawn)
    states = [rows(rack)]
    for deed in (
        lambda: add(rack, "dense"),
        lambda: add(rack, "sparse"),
        lambda: rack.element.query_selector_all(".row [role=switch]")[1].click(),
        lambda: choose(rack, 0, "−3"),
        lambda: choose(rack, 1, "Move up"),
        lambda: choose(rack, 1, "Remove"),
    ):
        deed()
        drawn.settle()
        states.append(rows(rack))
    assert states == [
        [],
        [dense],
        [dense, sparse],
        [dense, f"off {sparse}"],
        [f"-3 {small_models.DENSE}", f"off {sparse}"],
        [f"off {sparse}", f"-3 {small_models.DENSE}"],
        [f"off {sparse}"],
    ]
    assert rack.find(".row").get_attribute("data-off") == "true"
    for state in reversed(states[:-1]):
        drawn.undo()
        rack = Face(drawn, rack.type, node_id=rack.id)
        assert rows(rack) == state
    assert rack.text(".empty") == "No LoRA yet"


@both_renderers
def test_rows_are_the_text_of_the_widget_and_say_what_is_wrong(drawn):  # noqa: F811
    rack = Face(drawn, "DiffLoraSliderRack", (100, 60))
    rack.set("rows", f"4.5 {small_models.DENSE}\nnonsense\noff 1 gone.safetensors\n1 gone_low.safetensors")
    said = "e => [...e.querySelectorAll('.row')].map(r => r.querySelector('.problem:not([hidden])')?.innerText ?? '')"
    drawn.page.wait_for_function(f"e => ({said})(e)[3] !== ''", arg=rack.element)
    assert [text.split(":")[0] for text in rack.element.evaluate(said)] == [
        "", "This row cannot be read", "", "not in the loras folder",
    ]  # fmt: skip
    zones = [row.get_attribute("data-zone") for row in rack.element.query_selector_all(".row")]
    assert zones[0] == "risky" and rack.text(".count") == "2 of 4 on"
    assert "the low-noise half · its twin is not there" in rack.element.inner_text()
    # Nothing of it is cut off, and the node has room for it.
    box, node = rack.element.bounding_box(), drawn.boxes()[rack.id]
    scale = drawn.run("() => app.canvas.ds.scale")
    assert node[3] * scale >= box["height"]
    assert rack.element.evaluate(
        "e => [...e.querySelectorAll('.row, .foot')].every(r => r.scrollWidth <= r.clientWidth + 1)"
    )
    # A row is edited, and what cannot be read is kept.
    rack.element.query_selector_all(".row .value")[0].click()
    drawn.page.keyboard.type("2.5\n")
    drawn.settle()
    assert rows(rack)[:2] == [f"2.5 {small_models.DENSE}", "nonsense"]
    size = "id => app.graph.getNodeById(Number(id)).size[1]"
    drawn.run("id => { const node = app.graph.getNodeById(Number(id)); node.setSize([node.size[0], 700]); }", rack.id)
    workflow, on_canvas = drawn.workflow(), not drawn.run("() => Boolean(LiteGraph.vueNodesMode)")
    drawn.clear()
    drawn.load(workflow)  # as after a reload
    again = Face(drawn, rack.type, node_id=rack.id)
    if on_canvas:  # where a hidden widget would take room
        assert drawn.run(size, again.id) == 700
    assert rows(again)[0] == f"2.5 {small_models.DENSE}"
    assert len(again.element.query_selector_all(".row")) == 4
    again.set("twin", "high")
    drawn.page.wait_for_function("e => e.innerText.includes('its twin for high noise is not there')", arg=again.element)
