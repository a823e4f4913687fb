"""What the tests have to know about each language of the pack. A new language gets an entry here."""

from __future__ import annotations

from typing import NamedTuple


class Language(NamedTuple):
    """Patterns, and what a browser calls the language."""

    browser: str
    letters: str
    """Every text has one of these."""
    prose: str
    """Every paragraph of a help page has one of these."""
    quoted: str
    """A message that a help page quotes."""
    headings: str
    """The sections of a help page that quote messages."""


ENGLISH = Language("en-US", "[A-Za-z]", "[A-Za-z]", r"\*([^*]+)\*", "errors mean|Warnings on the node")
TRANSLATIONS = {
    "ja": Language(
        "ja-JP", "[\u3040-\u30ff\u4e00-\u9fff]", "[\u3040-\u30ff]", "「([^」]+)」", "エラーの意味|ノードの警告"
    ),
    "zh": Language("zh-CN", "[\u4e00-\u9fff]", "[\u4e00-\u9fff]", "“([^”]+)”", "错误的含义|节点上的警告"),
}
