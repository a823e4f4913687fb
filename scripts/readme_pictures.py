"""Take the README's pictures: the demo workflow in ComfyUI's page after a run, and the player of its sweep.

`python -m scripts.readme_pictures` with COMFYUI_DIR set, and chromium installed, writes docs/pictures.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from scripts.example_workflows import DEMO
from tests.comfy_page import Browser, ComfyPage
from tests.comfy_server import ComfyServer

PICTURES = Path(__file__).resolve().parents[1] / "docs/pictures"
WIDTH, HEIGHT = 1800, 1080
BARS = (90, 110)  # of the page, at the left and at the top

# Zooms to some nodes, and returns where each is in the page's pixels.
SHOW = """([types, left, top, width, height]) => {
  const nodes = app.graph._nodes.filter(node => types.includes(node.type));
  const x = Math.min(...nodes.map(n => n.pos[0])) - 20, y = Math.min(...nodes.map(n => n.pos[1])) - 50;
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + 20;
  const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + 20;
  const scale = Math.min(1.5, width / (right - x), height / (bottom - y));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [left / scale - x, top / scale - y];
  app.canvas.setDirty(true, true);
  return [left, top, (right - x) * scale, (bottom - y) * scale];
}"""


def show(page: ComfyPage, *types: str) -> dict[str, float]:
    left, top = BARS
    box = page.run(SHOW, [types, left, top, WIDTH - left - 20, HEIGHT - top - 20])
    page.settle()
    page.page.wait_for_timeout(1500)
    return dict(zip(("x", "y", "width", "height"), box, strict=True))


def save(shot: bytes, name: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / name
    Image.open(io.BytesIO(shot)).convert("RGB").save(path, quality=85)
    print(path)


def main() -> None:
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
            page.page.add_style_tag(content=".p-toast { display: none !important }")
            page.queue(timeout=600)
            show(page, "DiffLoraLoad", "DiffLoraSubtract", "DiffLoraSelectBlocks", "DiffLoraRerank", "DiffLoraSave")
            save(page.page.screenshot(), "page.jpg")
            box = show(page, "DiffLoraSweepGrid")
            page.page.keyboard.press("Escape")
            save(page.page.screenshot(clip=box), "player.jpg")


if __name__ == "__main__":
    main()
