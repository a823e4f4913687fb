"""Every widget of the pack at once, with something to show."""

from __future__ import annotations

from tests import small_models
from tests.browser.face import Face, wan_names
from tests.comfy_page import ComfyPage

OUTSIDE = ["patch_embedding", "text_embedding.0", "head.head"]


def every_widget(page: ComfyPage) -> dict[str, Face]:
    """The nodes by type. They do not cover each other, and all can be seen."""
    faces = {
        type: Face(page, type, at)
        for type, at in {
            "DiffLoraSelectBlocks": (20, 40),
            "DiffLoraRerank": (420, 40),
            "DiffLoraSliderModel": (420, 480),
            "DiffLoraBlockToggle": (840, 40),
            "DiffLoraLoad": (840, 420),
            "DiffLoraSubtract": (840, 700),
            "DiffLoraSweepGrid": (1240, 40),
            "DiffLoraLoadPair": (1740, 40),
            "DiffLoraSliderRack": (420, 820),
        }.items()
    }
    names = [*wan_names(), *OUTSIDE]
    norms = {name: {"norm": 1 + index * index / 400} for index, name in enumerate(names) if name != "blocks.7.ffn.2"}
    faces["DiffLoraSelectBlocks"].set("selection", "attn, ffn=0.5, blocks 20-30=-0.5, !blocks 3-9, none_such")
    faces["DiffLoraSelectBlocks"].told({"modules": norms})
    spectrum = {"a": [2.0**-index for index in range(16)]}
    faces["DiffLoraRerank"].told({"spectrum": {"values": spectrum, "energy": {}}})
    faces["DiffLoraSliderModel"].set("strength", 3.5)
    faces["DiffLoraSliderModel"].told({"strength_range": [-2.5, 3]})
    faces["DiffLoraBlockToggle"].set("blocks", "blocks 2-5,20")
    lines = [{"text": f"This is {level}.", "level": level} for level in ("info", "warning", "error")]
    faces["DiffLoraLoad"].told({"report": {"title": "dense.safetensors", "lines": lines}})
    clips = [
        {"video": 0, "box": [0, 0, 96, 64], "label": label, "text": "", "baseline": label == "0"}
        for label in ("−3", "0", "+3")
    ]
    videos = [{"filename": "none.mp4", "subfolder": "", "type": "temp"}]
    faces["DiffLoraSweepGrid"].told({"player": {"videos": videos, "clips": clips, "fps": 16, "frames": 12}})
    for side, file in zip("ab", (small_models.DENSE, small_models.SPARSE), strict=True):
        faces["DiffLoraLoadPair"].set(f"lora_{side}", file)
    rows = (f"2 {small_models.DENSE}", f"off -4.5 {small_models.SPARSE}", "nonsense", "1 gone_low.safetensors")
    faces["DiffLoraSliderRack"].set("rows", "\n".join(rows))
    page.run("() => { app.canvas.ds.offset = [75, 60]; app.canvas.ds.scale = 0.72; app.canvas.setDirty(true, true); }")
    page.settle()
    # What is wrong with a row is known when the server has answered.
    known = "e => [...e.querySelectorAll('.problem:not([hidden])')].length >= 2"
    page.page.wait_for_function(known, arg=faces["DiffLoraSliderRack"].element, timeout=10_000)
    return faces
