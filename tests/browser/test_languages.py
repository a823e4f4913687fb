"""Nodes and widgets speak the language that ComfyUI is set to, on every frontend that the pack runs on."""

import json

import pytest

from scripts.locale_texts import LOCALES
from tests.browser.face import Face
from tests.comfy_server import PACK_NAME
from tests.languages import TRANSLATIONS


@pytest.mark.parametrize("language", TRANSLATIONS)
@pytest.mark.parametrize("vue", (False, True), ids=("canvas", "vue"))
def test_titles_labels_and_widgets_are_translated(page_in, language, vue):
    page = page_in(TRANSLATIONS[language].browser)
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


def shown(page):
    """What a person reads of a workflow: titles of groups and nodes, and notes."""
    return page.run("""() => ({
        groups: app.graph._groups.map(group => group.title),
        titles: app.graph._nodes.map(node => node.title),
        notes: app.graph._nodes.filter(node => node.type === 'MarkdownNote').map(node => String(node.widgets[0].value)),
    })""")


def translated(text, words):
    return "\n\n".join(words[part.strip()] for part in text.split("\n\n"))


@pytest.mark.parametrize("how", ("template", "dragged"))
def test_notes_and_titles_of_a_workflow_are_translated(page_in, how):
    """A template is fetched and handed over as JSON, a file is dropped on the page."""
    page = page_in("ja-JP")
    page.set_renderer(False)
    name = "4 Explore a pair, save slider"
    file = LOCALES.parent / "workflows" / f"{name}.json"
    english = json.loads(file.read_text("utf-8"))
    words = json.loads((LOCALES / "ja" / "main.json").read_text("utf-8"))["diffloraWorkflows"]
    if how == "template":
        page.run(
            """async ([pack, name]) => {
                const answer = await fetch(`/api/workflow_templates/${pack}/${encodeURIComponent(name)}.json`);
                await app.loadGraphData(await answer.json(), true, true, name, { openSource: 'template' });
            }""",
            [PACK_NAME, name],
        )
    else:
        page.run(
            """async ([name, text]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([text], name, { type: 'application/json' }));
                const at = { dataTransfer: transfer, bubbles: true, cancelable: true };
                document.querySelector('#graph-canvas').dispatchEvent(new DragEvent('drop', at));
            }""",
            [file.name, file.read_text("utf-8")],
        )
        page.page.wait_for_function("() => app.graph._nodes.some(node => node.type === 'MarkdownNote')")
    seen = shown(page)
    assert seen["groups"] == [words[group["title"]] for group in english["groups"]]
    notes = [node["widgets_values"][0] for node in english["nodes"] if node["type"] == "MarkdownNote"]
    assert seen["notes"] == [translated(note, words) for note in notes]
    assert {words[node["title"]] for node in english["nodes"] if node.get("title")} <= set(seen["titles"])
    assert page.errors == []
