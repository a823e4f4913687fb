"""How example workflows are laid out: for whatever sizes the page measures, nothing overlaps and groups hold their nodes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.example_workflows import WORKFLOWS
from scripts.layout import TITLE, WIDTH, lay_out


def overlap(one, other):
    return one.x < other.right and other.x < one.right and one.y < other.bottom and other.y < one.bottom


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.number)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_nothing_overlaps_whatever_the_sizes(workflow, data):
    size = st.tuples(st.integers(200, 700), st.integers(30, 1200))
    sizes = {node.name: data.draw(size) for node in workflow.nodes()}
    layout = lay_out(workflow, sizes, data.draw(size), effort=2)
    assert {name: (box.width, box.height) for name, box in layout.nodes.items()} == sizes

    frames = [*layout.groups, layout.note.moved(0, 0)]
    assert not any(overlap(one, other) for at, one in enumerate(frames) for other in frames[at + 1 :])
    groups = [group for stack in workflow.stacks for group in stack]
    for group, frame in zip(groups, layout.groups, strict=True):
        bodies = [layout.nodes[node.name] for column in group.columns for node in column]
        for at, box in enumerate(bodies):
            assert frame.x < box.x and box.right < frame.right and frame.y < box.y - TITLE and box.bottom < frame.bottom
            titled = type(box)(box.x, box.y - TITLE, box.width, box.height + TITLE)
            assert not any(overlap(titled, other) for other in bodies[at + 1 :] + bodies[:at])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.number)
def test_a_graph_is_no_wider_than_a_screen_and_begins_with_its_note_and_its_first_group(workflow):
    layout = lay_out(workflow, {node.name: (340, 300) for node in workflow.nodes()}, (540, 700), effort=5)
    assert layout.size[0] <= WIDTH
    assert layout.note.x == layout.groups[0].y == 0
    assert 0 < layout.groups[0].x - layout.note.right < 100, "beside each other"
