"""Sentences for people, which stay translatable."""

from __future__ import annotations

import re

# What follows a number in a sentence, and what it is after a one. The longest comes first.
ONE = {
    "biases, norms or modulations": "bias, norm or modulation",
    "biases, norms or tables": "bias, norm or table",
    "channels": "channel",
    "files are": "file is",
    "files": "file",
    "frames": "frame",
    "keys are": "key is",
    "keys were": "key was",
    "layers": "layer",
    "matrices": "matrix",
    "modulations are": "modulation is",
    "modules are left": "module is left",
    "modules are": "module is",
    "modules were": "module was",
    "modules": "module",
    "of them are": "of them is",
    "pairs": "pair",
    "passes": "pass",
    "pictures have": "picture has",
    "pictures": "picture",
    "pixels": "pixel",
    "steps": "step",
    "strengths are": "strength is",
    "strengths": "strength",
    "encoder keys were": "encoder key was",
    "vectors": "vector",
    "weights are": "weight is",
    "weights": "weight",
}
_ONE = re.compile(rf"(?<![\w.,−-])(of )?1 ({'|'.join(ONE)})\b")


class Sentence(str):
    """A line in English that remembers what it was made of, so that the page can say it in another language.

    Sentence("{0} of {1} modules", 3, 40) is the text "3 of 40 modules". `locales/*/main.json` has its translations
    under the template. Values are texts and numbers as they are to be shown, or sentences of their own.
    """

    template: str
    values: tuple[object, ...]

    def __new__(cls, template: str, *values: object) -> Sentence:
        made = super().__new__(cls, singular(template.format(*values)) if values else template)
        made.template, made.values = template, values
        return made


def singular(text: str) -> str:
    """English text in which what follows a 1 is one thing: "1 modules were" becomes "1 module was"."""
    return _ONE.sub(lambda found: f"{found[1] or ''}1 {ONE[found[2]]}", text)


def joined(sentences: list[Sentence], sign: str) -> Sentence:
    """Several sentences as one: the sign between them is the same in every language."""
    return (
        Sentence(sign.join(f"{{{index}}}" for index in range(len(sentences))), *sentences)
        if sentences
        else Sentence("")
    )


def with_minus(number: str) -> str:
    """A number as it is written for people: with a real minus sign, and none before a zero."""
    return number.replace("-", "−" if any(digit in number for digit in "123456789") else "")


def printable(value: object, limit: int = 120) -> str:
    """A value from a file, safe to put into a message: one line, printable, not too long."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"
