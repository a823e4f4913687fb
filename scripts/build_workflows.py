"""Have ComfyUI's own page build the example workflows, lay them out, and save them with a picture of each.

`python -m scripts.build_workflows` with COMFYUI_DIR and WANVIDEO_WRAPPER_DIR set, and chromium installed; with numbers,
only those workflows. `--measure` records how high nodes are after a run (in the workflows as they are), which the layout
leaves room for.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.example_workflows import DEMO, EXPLORE, FOLDER, WORKFLOWS, Node, Workflow, link, with_downloads
from scripts.layout import lay_out
from tests import small_models
from tests.comfy_page import Browser, ComfyPage
from tests.comfy_server import ComfyServer

# Nodes, values and wires; the pack's widgets tell their heights a little later.
MAKE = """async ({ note, noteSize, nodes }) => {
  app.graph.clear();
  const byName = {};
  const readMe = LiteGraph.createNode("MarkdownNote");
  app.graph.add(readMe);
  readMe.title = "Read me";
  readMe.widgets[0].value = note;
  readMe.setSize(noteSize);
  readMe.color = "#432"; readMe.bgcolor = "#653";

  for (const spec of nodes) {
    const node = LiteGraph.createNode(spec.type);
    if (!node) throw new Error(`no node type ${spec.type}`);
    app.graph.add(node);
    if (spec.title) node.title = spec.title;
    for (const [name, value] of Object.entries(spec.values)) {
      const widget = node.widgets?.find(w => w.name === name);
      if (!widget) throw new Error(`${spec.type} has no widget ${name}`);
      widget.value = value;
      widget.callback?.(value, app.canvas, node, [0, 0], undefined);
    }
    const control = node.widgets?.find(w => w.name === "control_after_generate");
    if (control) control.value = "fixed";
    byName[spec.name] = node;
  }
  for (const spec of nodes)
    for (const [input, [from, slot]] of Object.entries(spec.inputs)) {
      const node = byName[spec.name];
      const index = node.inputs.findIndex(i => i.name === input);
      if (index < 0) throw new Error(`${spec.type} has no input ${input}`);
      if (!byName[from].connect(slot, node, index)) throw new Error(`${from} does not fit ${spec.name}.${input}`);
    }
  // Side by side for now, all in sight: what is out of sight is not drawn, and has no height.
  Object.values(byName).forEach((node, at) => { node.pos = [700 + 700 * (at % 5), 1100 * Math.floor(at / 5)]; });
  await new Promise(done => setTimeout(done, 1500));
  for (const spec of nodes) {
    const node = byName[spec.name], least = node.computeSize();
    node.setSize([Math.max(spec.size[0], least[0]), Math.max(spec.size[1] ?? 0, least[1])]);
  }
  return nodes.map(spec => byName[spec.name].id);
}"""

# Names are ids here. The note is the first node.
PLACE = """({ nodes, groups, note }) => {
  for (const [id, box] of Object.entries(nodes)) app.graph.getNodeById(Number(id)).pos = [box.x, box.y];
  const readMe = app.graph._nodes.find(node => node.type === "MarkdownNote");
  readMe.pos = [note.x, note.y];
  for (const { title, color, box } of groups) {
    const frame = new LiteGraph.LGraphGroup(title);
    frame.color = color;
    frame.pos = [box.x, box.y];
    frame.size = [box.width, box.height];
    app.graph.add(frame);
  }
  app.canvas.setDirty(true, true);
}"""

NOTE_WIDTH = 540
SIZES = Path(__file__).with_name("node_sizes.json")  # type -> its height after a run, where the larger renderer has it


def room(node: Node, measured: tuple[float, float]) -> tuple[float, float]:
    """The room that a node needs: as the page shows it now, or after a run."""
    after = json.loads(SIZES.read_text("utf-8"))
    return math.ceil(measured[0] - 0.01), math.ceil(max(measured[1], after.get(node.type, 0)))


def largest(page: ComfyPage) -> dict[str, tuple[float, float]]:
    """Width and height of every node's body by id, in the renderer where it is larger."""
    found: dict[str, tuple[float, float]] = {}
    for vue in (True, False):
        page.set_renderer(vue)
        page.fit()
        page.settle()
        page.page.wait_for_timeout(1500)
        for id, box in page.boxes().items():
            width, height = found.get(id, (0.0, 0.0))
            found[id] = (max(width, box[2]), max(height, box[3]))
    return found


def build(page: ComfyPage, workflow: Workflow) -> dict[str, Any]:
    """Build a workflow in the page; returns what the page saves, without what differs from run to run."""
    nodes = list(workflow.nodes())
    specs = [
        dataclasses.asdict(node) | {"inputs": {name: link(source) for name, source in node.inputs.items()}}
        for node in nodes
    ]
    page.clear()
    lines = sum(1 + len(line) // 62 for line in workflow.note.splitlines())
    note = (NOTE_WIDTH, 120 + 25 * lines)
    ids = page.run(MAKE, {"note": workflow.note, "noteSize": note, "nodes": specs})
    measured = largest(page)
    sizes = {node.name: room(node, measured[str(id)]) for node, id in zip(nodes, ids, strict=True)}
    layout = lay_out(workflow, sizes, note)
    groups = [group for stack in workflow.stacks for group in stack]
    page.run(
        PLACE,
        {
            "nodes": {id: dataclasses.asdict(layout.nodes[node.name]) for node, id in zip(nodes, ids, strict=True)},
            "note": dataclasses.asdict(layout.note),
            "groups": [
                {"title": group.title, "color": group.color, "box": dataclasses.asdict(box)}
                for group, box in zip(groups, layout.groups, strict=True)
            ],
        },
    )
    page.settle()
    # As text: the page's `undefined` is to be left out, as it is when the page saves, and not to become null.
    saved = json.loads(page.run("async () => JSON.stringify((await app.graphToPrompt()).workflow)"))
    saved["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, workflow.name))
    # Opened so that it can be read: the note and the nodes to choose files in first.
    saved["extra"] = {"ds": {"scale": 0.7, "offset": [120, 110]}}
    return with_downloads(saved)


def measure(page: ComfyPage) -> None:
    """Record how high nodes are after a run: of the demo, and of the exploration with a small pair."""
    found: dict[str, int] = {}
    for workflow, pair in ((DEMO, None), (EXPLORE, (small_models.DENSE, small_models.SPARSE))):
        page.clear()
        page.load(json.loads(workflow.path.read_text("utf-8")))
        for node, file in zip(page.node_ids("DiffLoraLoad"), pair or (), strict=False):
            page.set_value(node, "lora_name", file)
        for node in page.node_ids("KSampler"):
            page.set_value(node, "steps", 1)  # a height does not depend on it
        page.set_renderer(False)
        page.queue(timeout=1800)
        types = page.run("() => Object.fromEntries(app.graph._nodes.map(node => [node.id, node.type]))")
        for id, (_, height) in largest(page).items():
            if types[id] != "MarkdownNote":
                found[types[id]] = max(found.get(types[id], 0), math.ceil(height / 10) * 10)
    SIZES.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", "utf-8")


# The graph between the page's bars, in its own pixels; the rest of the page is cut off.
SHOW = """([left, top, width, height]) => {
  const nodes = app.graph._nodes, groups = app.graph._groups;
  const edges = [...nodes.map(n => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]),
                 ...groups.map(g => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]])];
  const [x, y] = [0, 1].map(i => Math.min(...edges.map(e => e[i])));
  const [right, bottom] = [2, 3].map(i => Math.max(...edges.map(e => e[i])));
  const scale = Math.min(width / (right - x), height / (bottom - y));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [left / scale - x, top / scale - y];
  app.canvas.setDirty(true, true);
  return [(right - x) * scale, (bottom - y) * scale];
}"""


def picture(page: ComfyPage) -> Image.Image:
    """The whole graph, as the page shows it."""
    view = page.page.viewport_size
    left, top = 100, 130
    width, height = page.run(SHOW, [left, top, view["width"] - left - 20, view["height"] - top - 20])
    page.page.add_style_tag(content=".p-toast, .comfy-minimap, .litegraph-minimap { display: none !important }")
    page.page.wait_for_timeout(1500)
    shot = page.page.screenshot(clip={"x": left, "y": top, "width": width, "height": height})
    return Image.open(io.BytesIO(shot)).convert("RGB")


# What a workflow leads to, from the demo's results: columns (strengths) and rows of the sweep; otherwise its graph.
SWEEP, CELL, TOP = FOLDER.parent / "demo/results/sweep.jpg", 196, 42
ALL, ENDS = tuple(range(7)), (0, 3, 6)
RESULTS = {"0": (ALL, (0, 1, 2, 3)), "1": (ENDS, (2,)), "2": (ENDS, (1,)), "3": (ENDS, (3,))}
RESULTS |= {"6": (ALL, (1, 2)), "7": (ALL, (2, 3)), "8": (ENDS, (0,))}


def result(columns: tuple[int, ...], rows: tuple[int, ...]) -> Image.Image:
    """Some strengths and scenes of the demo's sweep, with the strengths above them."""
    with Image.open(SWEEP) as sweep:
        cut = Image.new("RGB", (CELL * len(columns), TOP + CELL * len(rows)), "white")
        for x, column in enumerate(columns):
            left = 2 + CELL * column
            cut.paste(sweep.crop((left, 0, left + CELL, TOP)), (CELL * x, 0))
            for y, row in enumerate(rows):
                top = TOP + CELL * row
                cut.paste(sweep.crop((left, top, left + CELL, top + CELL)), (CELL * x, TOP + CELL * y))
        return cut


# And from the demo's pictures under a Slider Map.
MAPS = {"11": "mask.jpg", "12": "ramp.jpg", "13": "mask.jpg", "15": "ramp.jpg", "16": "mask.jpg"}


def under_map(number: str) -> Image.Image:
    with Image.open(SWEEP.with_name(MAPS[number])) as image:
        return image.convert("RGB")


def thumbnail(page: ComfyPage, workflow: Workflow) -> None:
    number = workflow.number
    shot = result(*RESULTS[number]) if number in RESULTS else under_map(number) if number in MAPS else picture(page)
    size = (1200, 1200 * shot.height // shot.width)
    shot.resize(size, Image.Resampling.LANCZOS).save(workflow.path.with_suffix(".jpg"), quality=85)


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "chromium is not installed"
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base, comfyui, wrapper = Path(folder), Path(os.environ["COMFYUI_DIR"]), Path(os.environ["WANVIDEO_WRAPPER_DIR"])
        small_models.write_all(base / "models")
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        with ComfyServer(base, comfyui, wrapper=wrapper, python=python) as comfy, Browser(chromium, comfy) as browser:
            # So large, and with small text drawn, that a picture of a whole graph can be read.
            settings = {
                "LiteGraph.Canvas.MinFontSizeForLOD": 0,
                "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.05,
            }
            settings |= {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasMenu": False}
            page = browser.open(settings=settings, viewport={"width": 3000, "height": 1700})
            if sys.argv[1:] == ["--measure"]:
                return measure(page)
            for workflow in (each for each in WORKFLOWS if each.number in sys.argv[1:] or not sys.argv[1:]):
                saved = build(page, workflow)
                workflow.path.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", "utf-8")
                page.load(saved)
                thumbnail(page, workflow)
                print(f"{workflow.name}: {len(saved['nodes'])} nodes, {len(saved['links'])} links")


if __name__ == "__main__":
    main()
