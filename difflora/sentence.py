"""Sentences for people, which stay translatable."""

from __future__ import annotations


class Sentence(str):
    """A line in English that remembers what it was made of, so that the page can say it in another language.

    Sentence("{0} of {1} modules", 3, 40) is the text "3 of 40 modules". `locales/*/main.json` has its translations
    under the template. Values are texts and numbers as they are to be shown, or sentences of their own.
    """

    template: str
    values: tuple[object, ...]

    def __new__(cls, template: str, *values: object) -> Sentence:
        made = super().__new__(cls, template.format(*values) if values else template)
        made.template, made.values = template, values
        return made


def joined(sentences: list[Sentence], sign: str) -> Sentence:
    """Several sentences as one: the sign between them is the same in every language."""
    return (
        Sentence(sign.join(f"{{{index}}}" for index in range(len(sentences))), *sentences)
        if sentences
        else Sentence("")
    )


def printable(value: object, limit: int = 120) -> str:
    """A value from a file, safe to put into a message: one line, printable, not too long."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"
