"""Notes, group titles and node titles of the example workflows in Japanese and Chinese: the page puts them in on opening.

`js/lib/workflow_texts.js` looks paragraphs and titles up in `locales/<language>/main.json` under "diffloraWorkflows".
"""

import json
import re
from pathlib import Path

import pytest

from scripts.help_pages import LANGUAGES
from scripts.locale_texts import LOCALES
from tests.core.test_help_pages import stars_left

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
# The same in every language.
NAMES = {"CFG-Zero-Star"}


def notes(workflow):
    return [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]


def texts(workflow):
    """What a person reads: paragraphs of notes, titles of groups, titles that nodes were given."""
    paragraphs = {part.strip() for note in notes(workflow) for part in note.split("\n\n")}
    titles = {item["title"] for item in (*workflow.get("groups", ()), *workflow["nodes"]) if item.get("title")}
    return paragraphs | titles


def translations(language):
    return json.loads((LOCALES / language / "main.json").read_text("utf-8"))["diffloraWorkflows"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_every_workflow_is_translated(language):
    translated, said = translations(language), set()
    missing = {}
    for file in WORKFLOWS:
        own = texts(json.loads(file.read_text("utf-8")))
        said |= own
        if left := sorted(own - set(translated) - NAMES):
            missing[file.name] = left
    assert missing == {}
    assert set(translated) - said == set(), "translated, but in no workflow"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_note_begins_with_its_heading_alone(file):
    """By it the page knows a workflow of the pack."""
    headings = [note.split("\n\n")[0] for note in notes(json.loads(file.read_text("utf-8")))]
    assert any(re.fullmatch("# [^\n]+", heading) for heading in headings)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translated_paragraph_has_the_shape_of_its_source(language):
    """A paragraph that loses a step, a row of its table, a piece of code or its heading says less."""
    for english, translated in translations(language).items():
        for part in (r"^\d+\. ", r"^\|", r"^#+ ", r"`[^`]+`", r"https?://[^\s)]+"):
            wanted = re.findall(part, english, re.M)
            assert sorted(re.findall(part, translated, re.M)) == sorted(wanted), english
        assert "\n\n" not in translated, english
        assert stars_left(translated) == [], english


@pytest.mark.parametrize("language", LANGUAGES)
def test_notes_name_nodes_as_that_language_does(language):
    english, other = (json.loads((LOCALES / code / "nodeDefs.json").read_text("utf-8")) for code in ("en", language))
    names = {
        node["display_name"] for key, node in english.items() if other[key]["display_name"] != node["display_name"]
    }
    assert {text for text in translations(language).values() if any(name in text for name in names)} == set()
