"""Every example workflow, as each renderer draws it: nothing lies on anything else, and no node leaves its group."""

import json

import pytest

from scripts.example_workflows import DEMO, FOLDER
from scripts.layout import TITLE

WORKFLOWS = sorted(FOLDER.glob("*.json"), key=lambda path: int(path.stem.split(" ")[0]))


def boxes(page):
    """Every node with its title by id, and every group."""
    page.fit()
    page.settle()
    page.page.wait_for_timeout(1000)
    nodes = {id: (x, y - TITLE, width, height + TITLE) for id, (x, y, width, height) in page.boxes().items()}
    return nodes, [tuple(box) for box in page.run("() => app.graph._groups.map(g => [...g.pos, ...g.size])")]


def overlap(one, other):
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def inside(box, frame):
    return all(frame[i] <= box[i] and box[i] + box[i + 2] <= frame[i] + frame[i + 2] for i in (0, 1))


def faults(page):
    nodes, groups = boxes(page)
    assert len(nodes) > 5
    types = page.run("() => Object.fromEntries(app.graph._nodes.map(n => [n.id, n.type]))")
    found = []
    for at, (id, box) in enumerate(nodes.items()):
        found += [
            f"{types[id]} lies on {types[other]}" for other in list(nodes)[at + 1 :] if overlap(box, nodes[other])
        ]
        holders = [group for group in groups if overlap(box, group)]
        if types[id] == "MarkdownNote":
            found += ["the note lies on a group"] * len(holders)
        elif len(holders) != 1 or not inside(box, holders[0]):
            found.append(f"{types[id]} is not in its group")
    return found


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem.split(" ")[0])
def test_nothing_lies_on_anything_else(path, vue, page, request):
    workflow = json.loads(path.read_text("utf-8"))
    if any(node["type"].startswith("WanVideo") for node in workflow["nodes"]):
        request.getfixturevalue("wrapper")
    page.load(workflow)
    assert faults(page) == []


# What takes a person's eye at the page's edges: the side bar, the tabs with the menu, and nothing else.
LEFT, TOP, RIGHT, BOTTOM = 59, 60, 1920, 1080


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem.split(" ")[0])
def test_a_template_opens_as_a_whole_and_large_enough_to_be_read(path, vue, page, request):
    """On a page of 1920 × 1080. Newer versions of ComfyUI would fit it to three quarters of the page."""
    workflow = json.loads(path.read_text("utf-8"))
    if any(node["type"].startswith("WanVideo") for node in workflow["nodes"]):
        request.getfixturevalue("wrapper")
    before = page.page.viewport_size
    page.page.set_viewport_size({"width": RIGHT, "height": BOTTOM})
    try:
        page.run(
            "async ([graph, name]) => { await app.loadGraphData(graph, true, true, name, { openSource: 'template' }); }",
            [workflow, path.stem],
        )
        page.settle()
        seen = page.run("""() => {
            const { scale, offset } = app.canvas.ds, place = app.canvas.canvas.getBoundingClientRect();
            const sizeOf = each => (each.flags?.collapsed ? [each._collapsed_width ?? each.size[0], 0] : each.size);
            const boxes = [...app.graph._groups, ...app.graph._nodes].map(each => [...each.pos, ...sizeOf(each)]);
            const ends = axis => [Math.min(...boxes.map(box => box[axis])), Math.max(...boxes.map(box => box[axis] + box[axis + 2]))];
            const [[left, right], [top, bottom]] = [0, 1].map(axis => ends(axis).map(at => (at + offset[axis]) * scale));
            return { scale, left: left + place.left, right: right + place.left, top: top + place.top, bottom: bottom + place.top };
        }""")
        # The first Vue renderer draws a graph that was made for the canvas larger by a fifth, and its text larger with it.
        larger = 1.2 if page.run("() => app.graph.extra.workflowRendererVersion") == "Vue" else 1
        assert seen["scale"] >= 0.6, seen
        assert seen["left"] >= LEFT and seen["top"] >= TOP, seen
        assert seen["right"] <= RIGHT * larger and seen["bottom"] <= BOTTOM * larger, seen
    finally:
        page.page.set_viewport_size(before)


def test_a_loaded_node_is_as_high_as_it_was_saved_when_its_file_is_known_late(page):
    """Until then it shows the forty blocks of Wan 14B, which are higher than the demo's six."""
    waiting = []
    page.page.route("**/differential_lora/lora?*", lambda route: waiting.append(route))
    try:
        workflow = json.loads(DEMO.path.read_text("utf-8"))
        [saved] = [node for node in workflow["nodes"] if node["type"] == "DiffLoraSelectBlocks"]
        page.load(workflow)
        page.fit()
        height = "() => app.graph._nodes.find(node => node.type === 'DiffLoraSelectBlocks').size[1]"
        page.page.wait_for_function(f"() => ({height})() > {saved['size'][1] + 200}", timeout=10_000)
        assert waiting
        for route in waiting:
            route.continue_()
        page.page.wait_for_function(f"() => Math.abs(({height})() - {saved['size'][1]}) < 30", timeout=10_000)
    finally:
        page.page.unroute("**/differential_lora/lora?*")


def test_the_demo_has_room_for_what_a_run_brings(page):
    page.load(json.loads(DEMO.path.read_text("utf-8")))
    for sampler in page.node_ids("KSampler"):
        page.set_value(sampler, "steps", 1)  # the nodes are as high after one step as after twenty
    before = page.boxes()
    page.queue(timeout=900)
    assert faults(page) == []
    after = page.boxes()
    assert sum(after[id][3] > before[id][3] for id in before) >= 3, "the run has brought nothing"
    page.set_renderer(True)
    assert faults(page) == []
