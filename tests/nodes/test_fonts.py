"""Labels in any language. Runs without ComfyUI."""

import pytest
from PIL import ImageFont

from tests.conftest import absent
from tests.pack_modules import pack_module

fonts = pack_module("nodes.common.fonts")


def has(font, character):
    """Whether the font draws something else than it does for a character that no font has."""
    drawn = ImageFont.truetype(str(font), 40)
    return bytes(drawn.getmask(character)) != bytes(drawn.getmask("\uffff"))


@pytest.mark.parametrize("text", ["", "strength −3 · baseline", "Über façade", "плотность"])
def test_matplotlibs_font_does_where_it_can(text):
    font = fonts.font_for(text)
    assert font.name == "DejaVuSans.ttf"
    assert all(has(font, character) for character in text if character != " ")


@pytest.mark.parametrize("text", ["データの密度", "场景密度"])
def test_other_scripts_get_a_font_that_has_them(text):
    font = fonts.font_for("density", text)
    assert "LastResort" not in font.name, "it has a box for every character"
    if not fonts._characters(font) >= set(map(ord, text)):
        absent("no font with both Latin and this language's characters; on Debian: fonts-wqy-microhei")
    assert all(has(font, character) for character in text + "density−3·…")


def test_what_no_font_has_is_drawn_all_the_same():
    assert fonts.font_for("\U000f0000").name == "DejaVuSans.ttf"
