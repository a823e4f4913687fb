"""Nodes and widgets speak the language that ComfyUI is set to, on every frontend that the pack runs on."""

import json

import pytest

from scripts.locale_texts import LOCALES
from tests.browser.face import Face


@pytest.mark.parametrize("language", ("ja", "zh"))
@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_titles_labels_and_widgets_are_translated(page_in, language, vue):
    page = page_in({"ja": "ja-JP", "zh": "zh-CN"}[language])
    page.set_renderer(vue)
    texts = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))["DiffLoraSelectBlocks"]
    words = json.loads((LOCALES / language / "main.json").read_text("utf-8"))["difflora"]
    grid = Face(page, "DiffLoraSelectBlocks")
    seen = page.run(
        """id => { const node = app.graph.getNodeById(Number(id)); return {
            title: node.title,
            label: node.widgets.find(w => w.name === 'selection').label,
            output: node.outputs[0].localized_name ?? node.outputs[0].label ?? node.outputs[0].name,
        }; }""",
        grid.id,
    )
    assert seen["title"] == texts["display_name"]
    assert seen["label"] == texts["inputs"]["selection"]["name"]
    assert seen["output"] == texts["outputs"]["0"]["name"]
    assert grid.text(".bar button") == words["all"]
    assert set(grid.page.prompt()[grid.id]["inputs"]) >= {"selection", "rest"}, "ids stay what they are"
    assert page.errors == []
