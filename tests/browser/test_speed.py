"""Nothing on the page may stutter: painting over a full grid, and loading a graph with many of them.

The work is counted in the page itself. Limits leave room for slow test machines only where the figure is a whole load;
`python -m pytest tests/browser/test_speed.py -s` prints the figures.
"""

import json
import statistics

import pytest

from tests.browser.face import Face, wan_names

I2V = [f"blocks.{n}.cross_attn.{p}_img" for n in range(40) for p in "kv"]

# Times the grid's own pointer handlers, from the first listener to the last: capture on the way down, bubble back up.
TIMING = """element => {
    const table = element.querySelector('.table');
    window.handlerTimes = [];
    window.longTasks = [];
    let start = 0;
    for (const type of ['pointerdown', 'pointermove', 'pointerup']) {
        window.addEventListener(type, () => { start = performance.now(); }, true);
        table.addEventListener(type, () => { window.handlerTimes.push([type, performance.now() - start]); });
    }
    new PerformanceObserver(list => window.longTasks.push(...list.getEntries().map(e => e.duration))).observe({ type: 'longtask' });
}"""


@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_painting_over_all_480_cells(page, vue):
    grid = Face(page, "DiffLoraSelectBlocks")
    names = wan_names() + I2V
    grid.told({"modules": {name: {"norm": 1 + index} for index, name in enumerate(names)}})
    grid.set("selection", "none")
    assert len(grid.element.query_selector_all("[role=gridcell]")) == 480
    page.page.wait_for_timeout(500)
    grid.element.evaluate(TIMING)
    mouse = page.page.mouse
    mouse.move(*grid.middle(0, 0))
    mouse.down()
    for row in range(40):
        ends = (0, 11) if row % 2 == 0 else (11, 0)
        for column in ends:
            mouse.move(*grid.middle(row, column), steps=2)
    mouse.up()
    page.settle()
    assert grid.value("selection") == "all"
    for _ in range(3):  # a press or a release may have had to wait for other work of the machine, but not each of them
        mouse.down()
        mouse.up()
        page.settle()
    times = page.run("() => window.handlerTimes")
    moves = [time for type, time in times if type == "pointermove"]
    ends = [min(time for type, time in times if type == end) for end in ("pointerdown", "pointerup")]
    tasks = page.run("() => window.longTasks")
    print(
        f"\n{len(moves)} moves: median {statistics.median(moves):.2f} ms, largest {max(moves):.2f} ms; "
        f"press {ends[0]:.1f} ms, release {ends[1]:.1f} ms"
    )
    print(f"tasks over 50 ms, ComfyUI's own drawing included: {tasks}")
    assert statistics.quantiles(moves, n=50)[-1] <= 4, "2 of 100 may be slower: the machine has other work"
    assert max(ends) <= 50


def test_a_graph_with_ten_grids_loads_as_fast_as_without(page):
    """Against the same graph whose nodes have no face, loaded in turn; medians."""
    for index in range(10):
        Face(page, "DiffLoraSelectBlocks", at=(400 * (index % 5), 800 * (index // 5)))
    for index in range(30):
        page.run(
            "i => { const n = LiteGraph.createNode('KSampler'); n.pos = [300 * (i % 12), 1700 + 300 * Math.floor(i / 12)]; app.graph.add(n); }",
            index,
        )
    workflow = json.dumps(page.workflow())
    timed = """async ([text, faces]) => {
        const own = app.extensions.find(e => e.name === 'DifferentialLora');
        const created = own.nodeCreated;
        if (!faces) own.nodeCreated = () => {};
        const start = performance.now();
        await app.loadGraphData(JSON.parse(text));
        const time = performance.now() - start;
        own.nodeCreated = created;
        return time;
    }"""
    with_faces, without = [], []
    for _ in range(5):
        with_faces.append(page.run(timed, [workflow, True]))
        without.append(page.run(timed, [workflow, False]))
    with_faces, without = statistics.median(with_faces[1:]), statistics.median(without[1:])
    print(f"\nload: {with_faces:.0f} ms with ten grids, {without:.0f} ms without ({with_faces / without:.2f})")
    # The figure to reach is 1.1 on a quiet machine; a busy one must not fail a test that is not about it.
    assert with_faces <= 3 * without + 100
