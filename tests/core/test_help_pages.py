"""Help pages in Japanese and Chinese: none is missing or stale, and each says what the English one says, by the page's own names."""

import json
import re
from collections import Counter
from functools import cache

import pytest

from scripts.help_pages import DOCS, LANGUAGES, fingerprint, made_from, marked, problems
from scripts.locale_texts import LOCALES
from tests.languages import ENGLISH, TRANSLATIONS

KANA = re.compile(TRANSLATIONS["ja"].prose)
PAGES = sorted((page.parent.name, page.stem) for page in DOCS.glob("*/*.md"))


def test_the_tests_know_every_language_of_the_pack():
    assert set(TRANSLATIONS) == set(LANGUAGES)


def test_no_translation_is_missing_or_stale():
    """`python -m scripts.help_pages --diff` shows what has changed; `--mark ID` says that both translations follow."""
    assert problems() == {}


def test_a_changed_page_makes_its_translations_stale_and_a_new_one_has_none(tmp_path):
    (tmp_path / "Node").mkdir()
    (tmp_path / "Node.md").write_text("# Node\n", "utf-8")
    for language in LANGUAGES:
        (tmp_path / "Node" / f"{language}.md").write_text(marked("# 节点\n", "# Node\n"), "utf-8")
    assert problems(tmp_path) == {}
    (tmp_path / "Node.md").write_bytes(b"# Node\r\n")
    assert problems(tmp_path) == {}, "line ends are not a change"
    (tmp_path / "Node.md").write_text("# Node\n\nMore.\n", "utf-8")
    (tmp_path / "Other.md").write_text("# Other\n", "utf-8")
    (tmp_path / "Old").mkdir()
    (tmp_path / "Old" / "ja.md").write_text(marked("# 古い\n", "# Old\n"), "utf-8")
    stale = {f"Node/{language}": "stale" for language in LANGUAGES}
    missing = {f"Other/{language}": "missing" for language in LANGUAGES}
    orphaned = {"Old/ja": "no English page, or no language of the pack"}
    assert problems(tmp_path) == stale | missing | orphaned


def test_marking_again_replaces_the_mark():
    once = marked("# ノード\n", "# Node\n")
    again = marked(once, "# Node 2\n")
    assert made_from(again) == fingerprint("# Node 2\n") != made_from(once)
    assert again.count("<!--") == 1


def skeleton(text):
    """What a translation has in common with its source: headings, rows of tables, list items, blocks of code."""
    lines = text.splitlines()
    return {
        "headings": [len(line) - len(line.lstrip("#")) for line in lines if line.startswith("#")],
        "rows": [line.count(" | ") for line in lines if line.startswith("|")],
        "items": sum(line.startswith("- ") for line in lines),
        "code": sum(line.startswith("```") for line in lines),
    }


def code_of(text):
    return Counter(re.findall(r"`[^`\n]+`", text))


@pytest.mark.parametrize(("node_id", "language"), PAGES)
def test_a_translation_has_the_tables_and_the_code_of_its_source(node_id, language):
    english = (DOCS / f"{node_id}.md").read_text("utf-8")
    translated = (DOCS / node_id / f"{language}.md").read_text("utf-8")
    assert skeleton(translated) == skeleton(english)
    assert code_of(translated) == code_of(english)


@pytest.mark.parametrize(("node_id", "language"), PAGES)
def test_a_translation_calls_the_node_its_inputs_and_its_outputs_as_the_page_does(node_id, language):
    text = (DOCS / node_id / f"{language}.md").read_text("utf-8")
    node = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))[node_id]
    assert text.splitlines()[0] == f"# {node['display_name']}"
    named = set(re.findall(r"\*\*([^*\n]+)\*\*", text))
    names = [entry["name"] for group in ("inputs", "outputs") for entry in node[group].values() if "name" in entry]
    assert [name for name in names if name not in named] == []


@pytest.mark.parametrize(("node_id", "language"), PAGES)
def test_no_paragraph_is_left_in_english_or_in_the_other_language(node_id, language):
    text = re.sub(
        r"<!--.*?-->|```.*?```|`[^`\n]*`", "", (DOCS / node_id / f"{language}.md").read_text("utf-8"), flags=re.S
    )
    assert language == "ja" or not KANA.search(text)
    left = [
        part
        for part in re.split(r"\n\s*\n", text)
        if re.search("[a-z]{3}", part) and not re.search(TRANSLATIONS[language].prose, part)
    ]
    assert left == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_are_named_as_in_that_language(language):
    """Nobody finds *Select Blocks* in a menu that has it in another language."""
    english, other = (json.loads((LOCALES / code / "nodeDefs.json").read_text("utf-8")) for code in ("en", language))
    names = {
        node["display_name"]
        for node_id, node in english.items()
        if other[node_id]["display_name"] != node["display_name"]
    }
    pages = {page.parent.name: page.read_text("utf-8") for page in DOCS.glob(f"*/{language}.md")}
    words = json.loads((LOCALES / language / "main.json").read_text("utf-8"))
    said_there = "\n".join([*words["diffloraSentences"].values(), *words["diffloraErrors"].values()])
    texts = pages | {"locales": said_there + json.dumps(other, ensure_ascii=False)}
    wrong = {where: left for where, text in texts.items() if (left := sorted(name for name in names if name in text))}
    assert wrong == {}


def stars_left(text):
    """What Markdown does not draw as bold: between a letter and a bracket or full stop, stars stay stars."""
    text = re.sub(r"`[^`\n]*`", "", text).replace("\\*", "")
    left = []
    for line in text.splitlines():
        for found in re.finditer(r"(?P<star>\*{1,2})(?P<inner>[^*\n]+)(?P=star)", line):
            before, after = line[: found.start()][-1:], line[found.end() :][:1]
            first, last = found["inner"][0], found["inner"][-1]
            if (not first.isalnum() and before.isalnum()) or (not last.isalnum() and after.isalnum()):
                left.append(found[0])
    return left


@pytest.mark.parametrize(("node_id", "language"), PAGES)
def test_stars_are_drawn_as_bold(node_id, language):
    assert stars_left((DOCS / node_id / f"{language}.md").read_text("utf-8")) == []


def without_numbers(text):
    return re.sub(r"\{\d+\}|\d+", "#", text).casefold()


@cache
def said(language):
    """Everything that nodes say in a language, one text to a line."""
    texts = json.loads((LOCALES / ("ja" if language == "en" else language) / "main.json").read_text("utf-8"))
    both = texts["diffloraSentences"] | texts["diffloraErrors"]
    return without_numbers("\n".join(both if language == "en" else both.values()))


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_messages_are_quoted_as_the_nodes_say_them(language):
    """Who looks an error up has it in front of them, word for word."""
    told = ENGLISH if language == "en" else TRANSLATIONS[language]
    wrong = []
    for page in sorted(DOCS.glob("*.md" if language == "en" else f"*/{language}.md")):
        for heading, section in re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", page.read_text("utf-8"), re.M):
            if re.search(told.headings, heading):
                for line in re.findall(r"^- (.*?)(?::|：|$)", section, re.M):
                    parts = [part for quote in re.findall(told.quoted, line) for part in quote.split("…")]
                    wrong += [
                        f"{page.relative_to(DOCS)}: {part}"
                        for part in parts
                        if without_numbers(part.strip(" 、。，")) not in said(language)
                    ]
    assert wrong == []
