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
    page.set_renderer(vue)
    page.load(workflow)
    assert faults(page) == []
    page.clear()
    page.set_renderer(False)


def test_the_demo_has_room_for_what_a_run_brings(page):
    page.set_renderer(False)
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
    page.clear()
    page.set_renderer(False)
