"""Have ComfyUI's own page build the example workflows, lay them out, and save them with a picture of each.

`python -m scripts.build_workflows` with COMFYUI_DIR and WANVIDEO_WRAPPER_DIR set, and chromium installed; with numbers,
only those workflows.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.example_workflows import FOLDER, WORKFLOWS, Workflow, link
from tests import small_models
from tests.comfy_page import Browser, ComfyPage
from tests.comfy_server import ComfyServer

# Positions follow from the nodes' own sizes, which only the page knows.
BUILD = """async ({ note, stacks, noteSize }) => {
  const GAP = 40, TITLE = 30, EDGE = 20, HEAD = 50;
  app.graph.clear();
  const byName = {};
  let x = 0;

  const readMe = LiteGraph.createNode("MarkdownNote");
  app.graph.add(readMe);
  readMe.title = "Read me";
  readMe.widgets[0].value = note;
  readMe.pos = [x, 0];
  readMe.setSize(noteSize);
  readMe.color = "#432"; readMe.bgcolor = "#653";
  x += noteSize[0] + 3 * GAP;

  const make = async spec => {
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
    return node;
  };
  for (const stack of stacks)
    for (const group of stack)
      for (const column of group.columns)
        for (const spec of column) await make(spec);
  for (const stack of stacks)
    for (const group of stack)
      for (const column of group.columns)
        for (const spec of column)
          for (const [input, [from, slot]] of Object.entries(spec.inputs)) {
            const node = byName[spec.name];
            const index = node.inputs.findIndex(i => i.name === input);
            if (index < 0) throw new Error(`${spec.type} has no input ${input}`);
            if (!byName[from].connect(slot, node, index)) throw new Error(`${from} does not fit ${spec.name}.${input}`);
          }

  // The widgets that are pages of their own tell their height a little later.
  await new Promise(done => setTimeout(done, 1500));

  for (const stack of stacks) {
    let y = 0;
    const frames = [];
    for (const group of stack) {
      const inside = [];
      let columnX = x + EDGE, bottom = y;
      for (const column of group.columns) {
        let nodeY = y + HEAD + TITLE, right = columnX;
        for (const spec of column) {
          const node = byName[spec.name];
          const least = node.computeSize();
          node.setSize([Math.max(spec.size[0], least[0]), Math.max(spec.size[1] ?? 0, least[1])]);
          nodeY += spec.drop;
          node.pos = [columnX, nodeY];
          inside.push(node);
          nodeY += node.size[1] + TITLE + GAP;
          right = Math.max(right, columnX + node.size[0]);
        }
        bottom = Math.max(bottom, nodeY - TITLE - GAP);
        columnX = right + 2 * GAP;
      }
      const frame = new LiteGraph.LGraphGroup(group.title);
      frame.color = group.color;
      frame.pos = [x, y];
      frame.size = [columnX - 2 * GAP + EDGE - x, bottom + EDGE - y];
      app.graph.add(frame);
      frames.push([frame, inside, group.side]);
      y = bottom + EDGE + 2 * GAP;
    }
    // To the right as a rule, so that wires to the next stack cross nothing.
    const right = Math.max(...frames.map(([frame]) => frame.pos[0] + frame.size[0]));
    for (const [frame, inside, side] of frames) {
      const shift = side === "right" ? right - frame.pos[0] - frame.size[0] : 0;
      frame.pos = [frame.pos[0] + shift, frame.pos[1]];
      for (const node of inside) node.pos = [node.pos[0] + shift, node.pos[1]];
    }
    x = right + 3 * GAP;
  }
  app.canvas.setDirty(true, true);
}"""


def build(page: ComfyPage, workflow: Workflow) -> dict[str, Any]:
    """Build a workflow in the page; returns what the page saves, without what differs from run to run."""
    stacks = [[dataclasses.asdict(group) for group in stack] for stack in workflow.stacks]
    for stack in stacks:
        for group in stack:
            for column in group["columns"]:
                for node in column:
                    node["inputs"] = {name: link(source) for name, source in node["inputs"].items()}
    page.clear()
    lines = sum(1 + len(line) // 75 for line in workflow.note.splitlines())
    page.run(BUILD, {"note": workflow.note, "stacks": stacks, "noteSize": [620, 120 + 25 * lines]})
    page.settle()
    # As text: the page's `undefined` is to be left out, as it is when the page saves, and not to become null.
    saved = json.loads(page.run("async () => JSON.stringify((await app.graphToPrompt()).workflow)"))
    saved["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, workflow.name))
    saved["extra"] = {"ds": {"scale": 0.5, "offset": [100, 150]}}
    return saved


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


def thumbnail(page: ComfyPage, path: Path) -> None:
    shot = picture(page)
    shot.resize((1200, 1200 * shot.height // shot.width), Image.Resampling.LANCZOS).save(path, quality=85)


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
            for workflow in (each for each in WORKFLOWS if each.name[0] in sys.argv[1:] or not sys.argv[1:]):
                saved = build(page, workflow)
                workflow.path.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", "utf-8")
                page.load(saved)
                thumbnail(page, workflow.path.with_suffix(".jpg"))
                print(f"{workflow.name}: {len(saved['nodes'])} nodes, {len(saved['links'])} links")


if __name__ == "__main__":
    main()
