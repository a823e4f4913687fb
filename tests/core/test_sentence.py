"""Sentences with numbers in them: one of a thing is one thing."""

import ast
import re
from pathlib import Path

import pytest

from difflora.sentence import ONE, Sentence, singular, with_minus

ROOT = Path(__file__).resolve().parents[2]
COUNTED = re.compile(r"\{\d+\} (?:of \{\d+\} )?((?:[a-z]+, )?[a-z]+s|matrices|of them are)\b")
# Words that end in s and are no plural, or that follow something else than a count.
NOT_COUNTED = {"factors", "matches", "is", "has", "was", "its", "this", "changes", "needs", "holds", "keeps", "looks", "says", "takes", "uses",
               "names", "gives", "shows", "lies", "does", "times", "stays"}  # fmt: skip


# How the text goes on when the sentence is about one thing.
SINGULAR = re.compile(r" (is|was|has|itself|(?!times)[a-z]+[^s ]s)\b")


def test_no_sentence_is_about_one_thing_where_there_may_be_several():
    """What is made of two files is called "A and B", and "A and B looks as if" is no English."""
    assert [f"{file.name}: …{after[:40]}" for file, after in after_lists() if SINGULAR.match(after)] == []


def after_lists():
    """The texts that follow a LoRA's label or a joined list in sentences and errors, and the files they are in."""
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                listed = False  # {label(a)}{_of(model)} is one thing
                for part in node.values:
                    if isinstance(part, ast.FormattedValue):
                        listed |= bool(re.search(r"\blabel\(|\.join\(", ast.unparse(part)))
                    elif listed:
                        yield file, part.value
                        listed = False
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Sentence" and node.args:
                template = getattr(node.args[0], "value", "")
                for index, value in enumerate(node.args[1:]):
                    if "label(" in ast.unparse(value):
                        yield file, template.partition(f"{{{index}}}")[2]


def sources():
    return [*(ROOT / "difflora").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]


def templates():
    for file in sources():
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Sentence":
                if call.args and isinstance(call.args[0], ast.Constant):
                    yield call.args[0].value


def test_every_counted_word_has_a_singular():
    missing = {
        (template, found[1])
        for template in templates()
        for found in COUNTED.finditer(template)
        if found[1].split(" ")[0] not in NOT_COUNTED
        and not any(many == found[1] or many.startswith(f"{found[1]} ") for many in ONE)
    }
    assert missing == set()


@pytest.mark.parametrize(
    ("text", "one"),
    [
        ("1 modules, rank 4", "1 module, rank 4"),
        ("a.safetensors: 1 keys were ignored", "a.safetensors: 1 key was ignored"),
        ("1 of 1 modules applied", "1 of 1 module applied"),
        ("0 of 1 strengths are there", "0 of 1 strength is there"),
        ("21 modules", "21 modules"),
        ("0.1 weights", "0.1 weights"),
        ("11 keys were", "11 keys were"),
        ("1 files", "1 file"),
        ("model1 modules", "model1 modules"),
        ("3 modules", "3 modules"),
    ],
)
def test_one_of_a_thing_is_one_thing(text, one):
    assert singular(text) == one


def test_the_template_stays_so_that_it_is_found_in_the_translations():
    sentence = Sentence("{0} modules, rank {1}", 1, 4)
    assert sentence == "1 module, rank 4" and sentence.template == "{0} modules, rank {1}" and sentence.values == (1, 4)


def test_a_number_has_a_real_minus_and_a_zero_has_none():
    assert [with_minus(text) for text in ("-0.1", "-0.0", "+0.0", "symmetry -0.00", "-10")] == [
        "−0.1", "0.0", "+0.0", "symmetry 0.00", "−10",
    ]  # fmt: skip
