"""Make the README's pictures: the demo in ComfyUI's page after a run, the player of its sweep, and the slider in motion.

`python -m scripts.readme_pictures` with COMFYUI_DIR set, and chromium installed, writes docs/pictures. With `slider`, only the
slider in motion, from the demo's results; with `page`, only the others. `python -m scripts.readme_pictures output/sweep.png` after
`python bootstrap.py demo --train` writes trained.jpg: pairs, and the slider that was trained on them.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from scripts.build_workflows import SHOW, SWEEP, WITHOUT_BARS
from scripts.build_workflows import TOP as HEAD
from scripts.example_workflows import DEMO
from tests.comfy_page import Browser, ComfyPage
from tests.comfy_server import ComfyServer

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
WIDTH, HEIGHT = 1900, 1300
BARS = (70, 165)  # of the page, at the left and at the top


def save(shot: bytes, name: str) -> None:
    path = PICTURES / name
    Image.open(io.BytesIO(shot)).convert("RGB").save(path, quality=85)
    print(path)


def of_page(page: ComfyPage) -> None:
    """The whole graph after a run, and the player with −3 beside +3."""
    page.load(json.loads(DEMO.path.read_text("utf-8")))
    page.page.add_style_tag(content=WITHOUT_BARS)
    page.queue(timeout=3600)
    left, top = BARS
    width, height = page.run(SHOW, [left, top, WIDTH - left - 20, HEIGHT - top - 20])
    page.settle()
    page.page.wait_for_timeout(3000)
    save(page.page.screenshot(clip={"x": left, "y": top, "width": width, "height": height}), "page.jpg")

    [grid] = page.node_ids("DiffLoraSweepGrid")
    page.run("id => { app.canvas.ds.scale = 1.2; app.canvas.centerOnNode(app.graph.getNodeById(id)); }", int(grid))
    page.settle()
    player = page.page.locator(".difflora-player")
    player.get_by_role("button", name="Wipe").click()
    for side, at in (("clipShown", 0), ("clipCompared", 6)):
        player.locator(f".range.{side}").fill(str(at))
    page.page.wait_for_timeout(1500)
    save(player.screenshot(), "player.jpg")


# The slider in motion: the demo's sweep from −3 to +3 and back, four scenes side by side, the strength below them.
CELL, BETWEEN, TRACK = 192, 4, 54
STRENGTHS = range(-3, 4)
FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def of_slider() -> None:
    """Every strength that was rendered, and none in between."""
    with Image.open(SWEEP) as sweep:
        frames = [frame([cell(sweep, at, row) for row in range(4)], strength) for at, strength in enumerate(STRENGTHS)]
    there_and_back = [*frames, *frames[-2:0:-1]]
    times = [900 if strength in (-3, 0, 3) else 350 for strength in STRENGTHS]
    path = PICTURES / "slider.webp"
    there_and_back[0].save(
        path,
        append_images=there_and_back[1:],
        duration=[*times, *times[-2:0:-1]],
        save_all=True,
        loop=0,
        quality=85,
        method=6,
    )
    print(path, f"{path.stat().st_size / 1e6:.2f} MB")


def cell(sweep: Image.Image, column: int, row: int) -> Image.Image:
    left, top = 4 + (CELL + BETWEEN) * column, HEAD + 2 + (CELL + BETWEEN) * row
    return sweep.crop((left, top, left + CELL, top + CELL))


def frame(scenes: list[Image.Image], strength: int) -> Image.Image:
    """Scenes side by side, and below them a slider at this strength."""
    width = len(scenes) * (CELL + BETWEEN) - BETWEEN
    made = Image.new("RGB", (width, CELL + TRACK), "#1e1e1e")
    for at, scene in enumerate(scenes):
        made.paste(scene, (at * (CELL + BETWEEN), 0))
    draw, font = ImageDraw.Draw(made), ImageFont.truetype(FONT, 17)
    left, right, y = 70, width - 90, CELL + TRACK // 2
    x = left + (right - left) * (strength - STRENGTHS[0]) / (STRENGTHS[-1] - STRENGTHS[0])
    middle = (left + right) / 2
    draw.rounded_rectangle((left, y - 3, right, y + 3), 3, fill="#555555")
    draw.rectangle((min(x, middle), y - 3, max(x, middle), y + 3), fill="#5b9bf0")
    for mark in STRENGTHS:
        at = left + (right - left) * (mark - STRENGTHS[0]) / (STRENGTHS[-1] - STRENGTHS[0])
        draw.line((at, y + 6, at, y + 11), fill="#999999", width=2)
    draw.ellipse((x - 10, y - 10, x + 10, y + 10), fill="#5b9bf0", outline="#ffffff", width=2)
    draw.text((left - 20, y), "−3", "#dddddd", font, anchor="rm")
    text = f"{strength:+d}".replace("-", "−") if strength else "0"
    draw.text((width - 14, y), text, "#ffffff", font, anchor="rm")
    return made


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
    wanted = sys.argv[1:] or ["page", "slider"]
    PICTURES.mkdir(exist_ok=True)
    for file in (name for name in wanted if name.endswith(".png")):
        with Image.open(file) as sweep:
            trained(sweep.convert("RGB")).save(PICTURES / "trained.jpg", quality=85)
    if "slider" in wanted:
        of_slider()
    if "page" not in wanted:
        return
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "chromium is not installed"
    settings = {
        "LiteGraph.Canvas.MinFontSizeForLOD": 0,
        "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.05,
        "Comfy.Minimap.Visible": False,
        "Comfy.Graph.CanvasMenu": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        comfyui, python = Path(os.environ["COMFYUI_DIR"]), os.environ.get("COMFYUI_PYTHON", sys.executable)
        server = ComfyServer(Path(folder), comfyui, python=python, helper_nodes=False)
        with server as comfy, Browser(chromium, comfy) as browser:
            of_page(browser.open(settings=settings, viewport={"width": WIDTH, "height": HEIGHT}))


if __name__ == "__main__":
    main()
