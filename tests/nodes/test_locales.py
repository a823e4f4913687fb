"""Every text of every node in English, Japanese and Chinese, and a help page that names every input and output."""

import json
import re
from pathlib import Path

import pytest

from tests.nodes.locale_texts import LOCALES, english, inputs_of, own_nodes

DOCS = Path(__file__).parents[2] / "js" / "docs"
LANGUAGES = ("ja", "zh")
# What is called the same everywhere.
NAMES = {"A", "B", "LoRA", "CLIP", "VAE", "T5", "DiT", "Python", "CSV", "alpha", "flow shift"}
LETTERS = {"ja": re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]"), "zh": re.compile(r"[\u4e00-\u9fff]")}


def read(language, file):
    return json.loads((LOCALES / language / file).read_text("utf-8"))


def texts(tree, path=()):
    """Every text in nested dicts, with the keys that lead to it."""
    if isinstance(tree, str):
        return {path: tree}
    return {where: text for key, value in tree.items() for where, text in texts(value, (*path, key)).items()}


@pytest.fixture(scope="module")
def object_info(comfy):
    return comfy.object_info()


def test_english_texts_are_those_of_the_nodes(object_info):
    """`python -m tests.nodes.locale_texts URL` writes them anew; then translate what has changed."""
    assert read("en", "nodeDefs.json") == english(object_info)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_every_node_is_translated(object_info, language):
    source, translated = texts(english(object_info)), texts(read(language, "nodeDefs.json"))
    assert set(source) - set(translated) == set(), "not translated"
    assert set(translated) - set(source) == set(), "translated, but not there"
    left = [where for where, text in translated.items() if text not in NAMES and not LETTERS[language].search(text)]
    assert left == []


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_no_text_has_signs_that_the_page_would_read_as_code(language):
    """vue-i18n takes braces, at signs and bars for placeholders, links and plurals."""
    marked = {where: text for where, text in texts(read(language, "nodeDefs.json")).items() if re.search(r"[{}@|]", text)}
    assert marked == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_of_the_widgets_are_translated(language):
    source, translated = texts(read("en", "main.json")), texts(read(language, "main.json"))
    assert set(source) == set(translated)
    for where, text in translated.items():
        assert sorted(re.findall(r"\{\d\}", text)) == sorted(re.findall(r"\{\d\}", source[where])), where
        if text == source[where]:  # names and formulas
            assert text in {"Attention", "Self", "Cross", "FFN", "‖ΔW‖ {0}", "A {0} · B {1}", "cos(A, B) {0}"}, where


def test_page_serves_the_translations(comfy):
    served = comfy.get("/i18n")
    for language in ("en", *LANGUAGES):
        assert served[language]["nodeDefs"]["DiffLoraSubtract"] == read(language, "nodeDefs.json")["DiffLoraSubtract"]
        assert served[language]["difflora"] == read(language, "main.json")["difflora"]


def test_every_node_has_a_help_page_that_names_all_inputs_and_outputs(object_info):
    missing = []
    for node_id, node in own_nodes(object_info).items():
        page = DOCS / f"{node_id}.md"
        text = page.read_text("utf-8") if page.is_file() else ""
        names = [*inputs_of(node), *node["output_name"]]
        missing += [f"{node_id}: {name}" for name in names if not re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", text)]
    assert missing == []
