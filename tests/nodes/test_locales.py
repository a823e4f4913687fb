"""Every text of every node in English, Japanese and Chinese, and a help page that names every input and output."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

import difflora.errors
from scripts.locale_texts import LOCALES, english, inputs_of, own_nodes
from tests import small_models
from tests.languages import TRANSLATIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "js" / "docs"
# What is called the same everywhere.
NAMES = {"A", "B", "LoRA", "CLIP", "VAE", "T5", "DiT", "Python", "CSV", "alpha", "flow shift"}
LANGUAGES = tuple(TRANSLATIONS)
LETTERS = {code: re.compile(language.letters) for code, language in TRANSLATIONS.items()}


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
    """`python -m scripts.locale_texts URL` writes them anew; then translate what has changed."""
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
    marked = {
        where: text for where, text in texts(read(language, "nodeDefs.json")).items() if re.search(r"[{}@|]", text)
    }
    assert marked == {}


def own_texts(language):
    own = read(language, "main.json")
    return texts(
        {
            key: tree
            for key, tree in own.items()
            if key not in ("diffloraSentences", "diffloraErrors", "diffloraWorkflows")
        }
    )


def placeholders(text):
    return sorted(re.findall(r"\{\d+\}", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_of_the_widgets_are_translated(language):
    source, translated = own_texts("en"), own_texts(language)
    assert set(source) == set(translated)
    for where, text in translated.items():
        assert placeholders(text) == placeholders(source[where]), where
        if text == source[where]:  # names and formulas
            assert text in {"Attention", "Self", "Cross", "FFN", "‖ΔW‖ {0}", "A {0} · B {1}", "cos(A, B) {0}"}, where


@cache
def sentences():
    """The template of every Sentence in the library and the nodes, and where it is."""
    found = {}
    for file, tree in sources():
        for call in tree:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Sentence":
                where = f"{file.name}:{call.lineno}"
                if file.name != "sentence.py":
                    assert isinstance(call.args[0], ast.Constant), (
                        f"{where}: only a literal can be looked up and translated"
                    )
                    found[call.args[0].value] = where
    return {text: where for text, where in found.items() if re.search("[A-Za-z]", re.sub(r"\{\d+\}", "", text))}


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_nodes_say_is_translated(language):
    source, translated = sentences(), read(language, "main.json")["diffloraSentences"]
    assert {text: where for text, where in source.items() if text not in translated} == {}, "not translated"
    assert set(translated) - set(source) == set(), "translated, but nobody says it"
    for text, other in translated.items():
        assert placeholders(other) == placeholders(text), text
        assert LETTERS[language].search(other) or not re.search("[A-Za-z]{3}", re.sub("alpha|size", "", text)), (
            f"{text}: untranslated"
        )


# Their errors reach nobody on the page.
COMMAND_LINE = {"cli", "recipes", "wan22", "sentence"}  # packages and modules


def template(text):
    """A text of the source as the locales have it: with {0}, {1} … for the values of an f-string."""
    if isinstance(text, ast.Constant):
        return text.value if isinstance(text.value, str) else None
    if isinstance(text, ast.JoinedStr):
        numbers = iter(range(100))
        return "".join(part.value if isinstance(part, ast.Constant) else f"{{{next(numbers)}}}" for part in text.values)
    return None


def alternatives(text):
    """What an error says: `one if … else other`, and `text + more * sometimes`, are two texts."""
    if isinstance(text, ast.IfExp):
        return alternatives(text.body) + alternatives(text.orelse)
    if isinstance(text, ast.BinOp) and isinstance(text.op, ast.Add):
        return alternatives(text.left)
    return [text]


@cache
def sources():
    """Every file of the library and the nodes, and what it is made of."""
    files = sorted([*(ROOT / "difflora").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")])
    return [(file, list(ast.walk(ast.parse(file.read_text("utf-8"))))) for file in files]


@cache
def errors():
    """The template of every error that a node can raise, and where it is."""
    kinds = {name for name, value in vars(difflora.errors).items() if isinstance(value, type)}
    kinds |= {"PatternError", "error", "refuse"}
    found = {}
    for file, tree in sources():
        for call in tree:
            name = getattr(call.func, "attr", getattr(call.func, "id", "")) if isinstance(call, ast.Call) else ""
            if name in kinds and call.args and not {file.parent.name, file.stem} & COMMAND_LINE:
                found |= {template(text): f"{file.name}:{call.lineno}" for text in alternatives(call.args[0])}
    # One that is hardly more than a value would be found in the errors of others too.
    return {
        text: where for text, where in found.items() if text and len(re.findall("[A-Za-z]", without_values(text))) >= 8
    }


def without_values(text):
    return re.sub(r"\{\d+\}", "", text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_errors_of_nodes_are_translated(language):
    translated = read(language, "main.json")["diffloraErrors"]
    assert {text: where for text, where in errors().items() if text not in translated} == {}, "not translated"
    said = {template(node) for _, tree in sources() for node in tree}
    longer = {text for text in translated if any(text != other and text.startswith(other) for other in errors())}
    assert set(translated) - said - longer == set(), "translated, but nobody says it"
    for text, other in translated.items():
        assert set(placeholders(other)) <= set(placeholders(text)), text
        assert LETTERS[language].search(other), f"{text}: untranslated"


def test_what_nodes_say_reaches_the_page_as_sentences(comfy):
    """Nothing but names of files and models comes without what it was made of."""
    comfy.forget()  # cached nodes say nothing
    result = comfy.run(
        {
            "1": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": small_models.DENSE, "ignore_unknown": False}},
            "2": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": small_models.SPARSE, "ignore_unknown": False}},
            "3": {
                "class_type": "DiffLoraAnalyze",
                "inputs": {"a": ["1", 0], "b": ["2", 0], "rank": 4, "show": "difference"},
            },
            "4": {
                "class_type": "DiffLoraRerank",
                "inputs": {"lora": ["1", 0], "rule": "rank", "rank": 2, "energy": 0.9, "ratio": 10, "max_rank": 64},
            },
            "5": {
                "class_type": "DiffLoraSave",
                "inputs": {
                    "lora": ["4", 0],
                    "filename_prefix": "said",
                    "dtype": "float32",
                    "dialect": "native",
                    "if_exists": "overwrite",
                },
            },
        }
    )
    lines = [line for node in "12345" for line in result.output(node)["difflora"][0]["report"]["lines"]]
    plain = [line["text"] for line in lines if "template" not in line]
    assert len(plain) == 1 and plain[0].endswith("said.safetensors")
    assert all(
        line["template"] in sentences() or not re.search("[a-z]", line["template"])
        for line in lines
        if "template" in line
    )


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
        missing += [
            f"{node_id}: {name}" for name in names if not re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", text)
        ]
    assert missing == []
