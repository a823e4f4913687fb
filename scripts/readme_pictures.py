"""Take the README's pictures: the demo workflow in ComfyUI's page after a run, and the player of its sweep.

`python -m scripts.readme_pictures` with COMFYUI_DIR set, and chromium installed, writes docs/pictures.
`python -m scripts.readme_pictures output/sweep.png` after `python bootstrap.py demo --train` writes trained.jpg there: pairs, and
the slider that was trained on them.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scripts.example_workflows import DEMO
from tests.comfy_page import Browser, ComfyPage
from tests.comfy_server import ComfyServer

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
WIDTH, HEIGHT = 1800, 1400
BARS = (90, 110)  # of the page, at the left and at the top

# Zooms to some nodes; returns the place of the lowest one's end in the page.
SHOW = """([types, left, top, width]) => {
  const nodes = app.graph._nodes.filter(node => types.includes(node.type)).sort((a, b) => a.pos[1] - b.pos[1]);
  // What has grown with the run is moved apart.
  for (const node of nodes)
    for (const above of nodes.slice(0, nodes.indexOf(node)))
      if (Math.abs(above.pos[0] - node.pos[0]) < 100)
        node.pos = [node.pos[0], Math.max(node.pos[1], above.pos[1] + above.size[1] + 50)];
  const x = Math.min(...nodes.map(n => n.pos[0])) - 20, y = Math.min(...nodes.map(n => n.pos[1])) - 60;
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + 20;
  const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + 20;
  const scale = Math.min(1.2, width / (right - x));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [left / scale - x, top / scale - y];
  app.canvas.setDirty(true, true);
  return top + (bottom - y) * scale;
}"""
# A first visitor's banner, and what tells of a finished job.
HIDDEN = ".p-toast, [class*=banner], [data-testid=queue-overlay], .p-message { display: none !important }"


def show(page: ComfyPage, *types: str) -> float:
    left, top = BARS
    page.run(SHOW, [types, left, top, WIDTH - left - 20])
    page.settle()
    page.page.wait_for_timeout(1500)
    bottom = float(page.run(SHOW, [types, left, top, WIDTH - left - 20]))
    page.settle()
    page.page.wait_for_timeout(1500)
    return min(bottom, HEIGHT)


def save(shot: bytes, name: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / name
    Image.open(io.BytesIO(shot)).convert("RGB").save(path, quality=85)
    print(path)


def trained(sweep: Image.Image) -> Image.Image:
    """Pairs at the left, the slider at −3, 0 and +3 at the right; `sweep`: four rows of seven cells, as demo/run.py leaves it."""
    cell, columns, rows, gap, head, between = 192, 7, 4, 4, 30, 60
    margin = (sweep.width - columns * cell) // (columns + 1)
    each = sweep.height // rows
    picture = Image.new("RGB", (5 * (cell + gap) + between, head + rows * (cell + gap)), "white")
    brush, font = ImageDraw.Draw(picture), ImageFont.load_default(18)
    lefts = [place * (cell + gap) + (between if place > 1 else 0) for place in range(5)]
    for left, text in zip(lefts, ("pairs: few", "and many", "slider at -3", "0", "+3"), strict=True):
        brush.text((left + cell / 2, head / 2), text, fill="black", font=font, anchor="mm")
    for row in range(rows):
        top = head + row * (cell + gap)
        for left, side in zip(lefts, ("sparse", "dense"), strict=False):
            with Image.open(ROOT / f"demo/pairs/{side}/{row:03}.png") as scene:
                picture.paste(scene.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS), (left, top))
        bottom = (row + 1) * each - margin
        for left, column in zip(lefts[2:], (0, 3, 6), strict=True):
            corner = margin + column * (cell + margin), bottom - cell
            picture.paste(sweep.crop((*corner, corner[0] + cell, bottom)), (left, top))
    return picture


def main() -> None:
    if len(sys.argv) > 1:
        path = PICTURES / "trained.jpg"
        trained(Image.open(sys.argv[1]).convert("RGB")).save(path, quality=85)
        print(path)
        return
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "chromium is not installed"
    with tempfile.TemporaryDirectory() as folder:
        comfyui, python = Path(os.environ["COMFYUI_DIR"]), os.environ.get("COMFYUI_PYTHON", sys.executable)
        server = ComfyServer(Path(folder), comfyui, python=python, helper_nodes=False)
        with server as comfy, Browser(chromium, comfy) as browser:
            settings = {
                "LiteGraph.Canvas.MinFontSizeForLOD": 0,
                "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.05,
                "Comfy.Minimap.Visible": False,
                "Comfy.Graph.CanvasMenu": False,
            }
            page = browser.open(settings=settings, viewport={"width": WIDTH, "height": HEIGHT})
            page.load(json.loads(DEMO.path.read_text("utf-8")))
            page.page.add_style_tag(content=HIDDEN)
            page.queue(timeout=3600)
            page.page.wait_for_timeout(6000)  # what tells of the finished job goes away
            close = page.page.get_by_role("button", name="Close")
            if close.count():
                close.first.click()
            bottom = show(
                page, "DiffLoraLoad", "DiffLoraSubtract", "DiffLoraSelectBlocks", "DiffLoraRerank", "DiffLoraSave"
            )
            # Without the banner above, and without the folder that Save LoRA names at the bottom.
            clip = {"x": 0, "y": 78, "width": WIDTH, "height": bottom - 78 - 140}
            save(page.page.screenshot(clip=clip), "page.jpg")
            show(page, "DiffLoraSweepGrid")
            player = page.page.locator(".difflora").filter(has=page.page.get_by_role("button", name="Wipe")).first
            player.get_by_role("button", name="Wipe").click()
            page.page.wait_for_timeout(1000)
            save(player.screenshot(), "player.jpg")


if __name__ == "__main__":
    main()
