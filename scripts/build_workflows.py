"""Have ComfyUI's own page build the example workflows, lay them out, and save them with a picture of each.

`python -m scripts.build_workflows` with COMFYUI_DIR set, for the wrapper's workflows WANVIDEO_WRAPPER_DIR too, and chromium
installed; with numbers, only those workflows. `--measure` records how high nodes are after a run (in the workflows as they are), which the layout
leaves room for: of several versions of ComfyUI, run it with each, and the largest stays.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.example_workflows import (
    DEMO,
    EXPLORE,
    FOLDER,
    INDEPENDENT_DEMO,
    MASKS_DEMO,
    TRAIN_DEMO,
    TRAIN_WAN,
    TWINS,
    WORKFLOWS,
    Group,
    Node,
    Workflow,
    filled,
    link,
    with_downloads,
)
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
  // On a busy machine they take longer to be drawn, and to hide what does not count.
  for (let tries = 0; tries < 30 && document.querySelector(".difflora-outer[aria-busy]"); tries++)
    await new Promise(done => setTimeout(done, 100));
  for (const spec of nodes) {
    const node = byName[spec.name], least = node.computeSize();
    node.setSize([Math.max(spec.size[0], least[0]), Math.max(spec.size[1] ?? 0, least[1])]);
  }
  return nodes.map(spec => byName[spec.name].id);
}"""

# Names are ids here. The note is the first node.
PLACE = """({ nodes, groups, note, folded }) => {
  for (const [id, box] of Object.entries(nodes)) app.graph.getNodeById(Number(id)).pos = [box.x, box.y];
  for (const id of folded) app.graph.getNodeById(id).collapse();
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
GROUP_TITLE = 18  # font size: below a larger title, the canvas writes over it which pack a node is of
SIZES = Path(__file__).with_name("node_sizes.json")  # type -> its height after a run, where the larger renderer has it
FRAMES = ("EmptyHunyuanLatentVideo", "WanVideoEmptyEmbeds")
GRID_OF_40 = 680  # height of Select Blocks for Wan 14B
MORE_WITH_MAP = 80  # height of what a slider says about its map
BADGE = 16
VIDEO_BARS = 215  # height of a Save Video after a run, without its picture
PLAYER_BARS = 440  # height of a Sweep Grid after a run, without the picture in its player


def room(workflow: Workflow, node: Node, measured: tuple[float, float]) -> tuple[float, float]:
    """The room that a node needs: as the page shows it now, or after a run."""
    width, height = measured
    if node.folded:  # below a title, the canvas writes which pack the next node is of
        return math.ceil(width - 0.01), BADGE
    after = json.loads(SIZES.read_text("utf-8")).get(node.type, 0)
    if node.type == "DiffLoraSweepGrid":  # its player is as high as the pictures are for its width
        frames = next(each.values for each in workflow.nodes() if each.type in FRAMES)
        after = PLAYER_BARS + width * frames["height"] / frames["width"]
    if node.type == "DiffLoraSelectBlocks" and not _is_small(workflow):  # also where it is empty before a run
        after = GRID_OF_40
    if node.type == "SaveVideo":
        frames = next(each.values for each in workflow.nodes() if each.type in FRAMES)
        after = VIDEO_BARS + width * frames["height"] / frames["width"]
    if "map" in node.inputs:
        after += MORE_WITH_MAP
    return math.ceil(width - 0.01), math.ceil(max(height, after))


def _is_small(workflow: Workflow) -> bool:
    """On the demo's models."""
    return any(str(value).startswith("difflora_demo") for node in workflow.nodes() for value in node.values.values())


WIDTHS = "() => app.graph._nodes.reduce((sum, node) => sum + node.size[0], 0)"


def largest(page: ComfyPage) -> dict[str, tuple[float, float]]:
    """Width and height of every node's body by id, in the renderer where it is larger."""
    found: dict[str, tuple[float, float]] = {}
    page.set_renderer(False)
    saved_widths = page.run(WIDTHS)
    for vue in (True, False):
        page.set_renderer(vue)
        page.fit()
        page.settle()
        page.page.wait_for_timeout(1500)
        # The Vue renderer draws a graph that was made for the canvas larger, places and sizes alike.
        scale = page.run(WIDTHS) / saved_widths if vue else 1
        for id, box in page.boxes().items():
            width, height = found.get(id, (0.0, 0.0))
            found[id] = (max(width, box[2] / scale), max(height, box[3] / scale))
    return found


def make(page: ComfyPage, workflow: Workflow, note: tuple[float, float]) -> list[int]:
    """The workflow's nodes in the page, not yet in their places; returns their ids."""
    specs = [
        dataclasses.asdict(node) | {"inputs": {name: link(source) for name, source in node.inputs.items()}}
        for node in workflow.nodes()
    ]
    page.clear()
    return page.run(MAKE, {"note": workflow.note, "noteSize": note, "nodes": specs})


def note_size(workflow: Workflow) -> tuple[float, float]:
    """With room for the text as the Vue renderers set it in each language; rows of tables are higher than lines."""
    lines = re.sub(r"\]\([^)]*\)", "]", workflow.note).splitlines()  # without the addresses of links
    return NOTE_WIDTH, 60 + sum((30 if line.startswith("|") else 18.5) * (1 + len(line) // 85) for line in lines)


def build(page: ComfyPage, workflow: Workflow) -> dict[str, Any]:
    """Build a workflow in the page; returns what the page saves, without what differs from run to run."""
    nodes = list(workflow.nodes())
    note = note_size(workflow)
    ids = make(page, workflow, note)
    measured = largest(page)
    sizes = {node.name: room(workflow, node, measured[str(id)]) for node, id in zip(nodes, ids, strict=True)}
    layout = lay_out(workflow, sizes, note)
    groups = [group for stack in workflow.stacks for group in stack]
    page.run(
        PLACE,
        {
            "nodes": {id: dataclasses.asdict(layout.nodes[node.name]) for node, id in zip(nodes, ids, strict=True)},
            "note": dataclasses.asdict(layout.note),
            "folded": [id for node, id in zip(nodes, ids, strict=True) if node.folded],
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
    saved["extra"] = opening(layout.size)
    for frame in saved["groups"]:  # newer versions of ComfyUI do not save it
        frame["font_size"] = GROUP_TITLE
    return with_downloads(saved)


# Where most graphs are opened, and what the page's bars take at the left and at the top; of a graph that is a little too
# high, the first title may be between the bars.
SCREEN, BARS, HIGHEST = (1920, 1080), (60, 110), 90


def opening(size: tuple[float, float]) -> dict[str, Any]:
    """What a workflow says of its view: the whole graph if it can be read then, otherwise its beginning; see js/lib/opening.js."""
    fitting = min((total - bar - 20) / side for total, bar, side in zip(SCREEN, BARS, size, strict=True))
    scale = round(min(1.0, max(0.6, fitting)), 2)
    top = max(HIGHEST, min(BARS[1], SCREEN[1] - 2 - size[1] * scale))
    return {
        "ds": {"scale": scale, "offset": [round(BARS[0] / scale), math.floor(top / scale)]},
        "difflora_example": True,
    }


def rearrange(page: ComfyPage, path: Path) -> tuple[float, float]:
    """Lay a saved workflow out anew, its nodes as they are; returns the size of the whole."""
    saved = json.loads(path.read_text("utf-8"))
    page.clear()
    page.load(saved)
    measured = largest(page)
    [note] = [node for node in saved["nodes"] if node["type"] == "MarkdownNote"]
    nodes = [node for node in saved["nodes"] if node is not note]
    source = {link[0]: f"{link[1]}:{link[2]}" for link in saved["links"]}
    groups = []
    for frame in saved["groups"]:
        left, top, width, height = frame["bounding"]
        inside = [n for n in nodes if 0 <= n["pos"][0] - left <= width and 0 <= n["pos"][1] - top <= height]
        columns = [
            [
                Node(
                    str(n["id"]),
                    n["type"],
                    inputs={i["name"]: source[i["link"]] for i in n["inputs"] if i.get("link")},
                    folded=n["flags"].get("collapsed", False),
                )
            ]
            for n in sorted(inside, key=lambda n: n["pos"])
        ]
        groups.append(Group(frame["title"], columns, frame["color"]))
    workflow = Workflow(path.stem, note["widgets_values"][0], [groups])
    layout = lay_out(
        workflow,
        {node.name: room(workflow, node, measured[node.name]) for node in workflow.nodes()},
        note_size(workflow),
    )
    for node in nodes:
        box = layout.nodes[str(node["id"])]
        node["pos"] = [box.x, box.y]
    note["pos"], note["size"] = [layout.note.x, layout.note.y], [layout.note.width, layout.note.height]
    for frame, box in zip(saved["groups"], layout.groups, strict=True):
        frame["bounding"] = [box.x, box.y, box.width, box.height]
    saved["extra"] = opening(layout.size)
    path.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return layout.size


# What is run to see how high nodes are then: a height does not depend on the number of steps.
MEASURED = (DEMO, EXPLORE, TRAIN_DEMO, TWINS, MASKS_DEMO, INDEPENDENT_DEMO)
PAIR = (small_models.DENSE, small_models.SPARSE)


def measure(page: ComfyPage) -> None:
    """Record how high nodes are after a run: of the demos, and of what is done to a pair, with a small one."""
    found: dict[str, int] = {}
    for workflow in MEASURED:
        make(page, workflow, note_size(workflow))
        page.set_renderer(False)
        if workflow is EXPLORE:
            for node, file in zip(page.node_ids("DiffLoraLoad"), PAIR, strict=True):
                page.set_value(node, "lora_name", file)
        for node in page.node_ids("DiffLoraLoadPair"):
            for widget, file in zip(("lora_a", "lora_b"), PAIR, strict=True):
                page.set_value(node, widget, file)
        for type, steps in (("KSampler", 1), ("DiffLoraTrainSlider", 2)):
            for node in page.node_ids(type):
                page.set_value(node, "steps", steps)
        page.queue(timeout=1800)  # ComfyUI runs what it can: of Wan2.2, all that needs no model
        types = page.run("() => Object.fromEntries(app.graph._nodes.map(node => [node.id, node.type]))")
        for id, (_, height) in largest(page).items():
            if types[id] not in ("MarkdownNote", "DiffLoraSweepGrid"):
                found[types[id]] = max(found.get(types[id], 0), math.ceil(height / 10) * 10)
        print(workflow.name, flush=True)
    # What cannot be run here stays, and so does what another version of ComfyUI makes larger.
    known = json.loads(SIZES.read_text("utf-8"))
    found = {type: max(height, known.get(type, 0)) for type, height in found.items()}
    SIZES.write_text(json.dumps(dict(sorted((known | found).items())), indent=1) + "\n", "utf-8")


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


# A first visitor's banner, and what tells of a finished job.
WITHOUT_BARS = (
    ".p-toast, .comfy-minimap, .litegraph-minimap, [class*=banner], [data-testid=queue-overlay], .p-message "
    "{ display: none !important }"
)


def picture(page: ComfyPage) -> Image.Image:
    """The whole graph, as the page shows it."""
    view = page.page.viewport_size
    left, top = 100, 130
    width, height = page.run(SHOW, [left, top, view["width"] - left - 20, view["height"] - top - 20])
    page.page.add_style_tag(content=WITHOUT_BARS)
    page.page.wait_for_timeout(1500)
    shot = page.page.screenshot(clip={"x": left, "y": top, "width": width, "height": height})
    return Image.open(io.BytesIO(shot)).convert("RGB")


# What a workflow leads to, from the demo's results: columns (strengths) and rows of the sweep.
DEMO_FOLDER = FOLDER.parent / "demo"
SWEEP, CELL, TOP = DEMO_FOLDER / "results/sweep.jpg", 196, 42
TRAINED = FOLDER.parent / "docs/pictures/trained.jpg"
ALL, ENDS = tuple(range(7)), (0, 3, 6)
RESULTS = {"0": (ALL, (0, 1, 2, 3)), "1": (ENDS, (2,)), "2": (ENDS, (1,)), "3": (ENDS, (3,))}
RESULTS |= {"6": (ALL, (1, 2)), "7": (ALL, (2, 3)), "10": (ENDS, (0, 1)), "17": (ENDS, (2, 3))}


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


# Pairs of pictures that a slider is trained on: numbers of the demo's.
PAIRS = {"5": (0, 5, 6), "9": (2, 7, 8, 1)}


def pairs(numbers: tuple[int, ...]) -> Image.Image:
    """The demo's pairs, the side with more above the side with less."""
    made = Image.new("RGB", (CELL * len(numbers), CELL * 2), "white")
    for y, side in enumerate(("dense", "sparse")):
        for x, number in enumerate(numbers):
            with Image.open(DEMO_FOLDER / f"pairs/{side}/{number:03}.png") as image:
                made.paste(
                    image.convert("RGB").resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS),
                    (CELL * x + 2, CELL * y + 2),
                )
    return made


def run_for(server: ComfyServer, workflow: Workflow, node: str, files: Mapping[str, str]) -> Image.Image:
    """Run a workflow as it is, with other files in its Load LoRA nodes; returns what a node of it shows, one picture below the other."""
    prompt = workflow.prompt()
    for name, file in files.items():
        prompt[name]["inputs"]["lora_name"] = file
    told = server.run(filled(prompt, server.object_info()), timeout=3600).output(node)["images"]
    shown = [Image.open(io.BytesIO(server.view(**each))).convert("RGB") for each in told]
    made = Image.new("RGB", (shown[0].width, sum(image.height for image in shown)))
    for at, image in enumerate(shown):
        made.paste(image, (0, at * shown[0].height))
    return made


def thumbnail(page: ComfyPage, workflow: Workflow) -> None:
    number = workflow.number
    if number in RESULTS:
        shot = result(*RESULTS[number])
    elif number in MAPS:
        shot = under_map(number)
    elif workflow is TRAIN_WAN:
        shot = pairs(PAIRS["9"])
    elif workflow is TRAIN_DEMO:
        with Image.open(TRAINED) as image:
            shot = image.convert("RGB")
    elif workflow is EXPLORE:
        files = {side: f"difflora_demo_{side}.safetensors" for side in ("dense", "sparse")}
        shot = run_for(page.server, workflow, "analyze", files)
    elif workflow is INDEPENDENT_DEMO:
        shot = run_for(page.server, workflow, "save", {})
    else:
        shot = picture(page)
    keep(shot, workflow.path)


def keep(shot: Image.Image, path: Path) -> None:
    size = (1200, 1200 * shot.height // shot.width)
    shot.resize(size, Image.Resampling.LANCZOS).save(path.with_suffix(".jpg"), quality=85)


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "chromium is not installed"
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base, comfyui, wrapper = Path(folder), Path(os.environ["COMFYUI_DIR"]), os.environ.get("WANVIDEO_WRAPPER_DIR")
        small_models.write_all(base / "models")
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        with (
            ComfyServer(base, comfyui, wrapper=Path(wrapper) if wrapper else None, python=python) as comfy,
            Browser(chromium, comfy) as browser,
        ):
            # So large, and with small text drawn, that a picture of a whole graph can be read.
            settings = {
                "LiteGraph.Canvas.MinFontSizeForLOD": 0,
                "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.05,
            }
            settings |= {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasMenu": False}
            page = browser.open(settings=settings, viewport={"width": 3000, "height": 1700})
            if sys.argv[1:] == ["--measure"]:
                return measure(page)
            wanted = sys.argv[1:]
            for workflow in (each for each in WORKFLOWS if each.number in wanted or not wanted):
                saved = build(page, workflow)
                workflow.path.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", "utf-8")
                page.load(saved)
                thumbnail(page, workflow)
                print(f"{workflow.name}: {len(saved['nodes'])} nodes, {len(saved['links'])} links", flush=True)
            if "5" in wanted or not wanted:
                [path] = FOLDER.glob("5 *.json")
                print(f"{path.stem}: {rearrange(page, path)}")
                keep(pairs(PAIRS["5"]), path)


if __name__ == "__main__":
    main()
