"""The curves of Slider Map in ComfyUI's page, by pointer and by keys, in both renderers."""

import pytest

from tests.browser.face import Face, wire_text
from tests.browser.test_widgets import both_renderers, box, drawn  # noqa: F401


@both_renderers
def test_a_curve_is_drawn_with_the_pointer(drawn):  # noqa: F811
    face = Face(drawn, "DiffLoraSliderMap")
    chart = box(face, ".difflora-curve svg")
    mouse = drawn.page.mouse

    def at(x, y):
        return chart["x"] + chart["width"] * (7 + 266 * x / 100) / 280, chart["y"] + chart["height"] * (
            63 - 56 * y
        ) / 70

    mouse.move(*at(0, 1))
    mouse.down()
    mouse.move(*at(0, 0), steps=4)
    mouse.up()
    assert face.value("steps") == "0:0"
    mouse.click(*at(50, 0.5))
    assert face.value("steps") == "0:0, 50:0.5"
    drawn.page.wait_for_timeout(400)
    mouse.move(*at(50, 0.5))
    mouse.down()
    mouse.move(*at(40, 1), steps=4)
    mouse.up()
    assert face.value("steps") == face.sent("steps") == "0:0, 40:1"
    assert face.value("frames") == ""
    drawn.page.wait_for_timeout(400)
    mouse.dblclick(*at(40, 1))
    assert face.value("steps") == "0:0"


@both_renderers
def test_every_point_has_the_keys_and_says_where_it_is(drawn):  # noqa: F811
    face = Face(drawn, "DiffLoraSliderMap")
    face.set("frames", "0:0, 50:0.5")
    point = face.find(".difflora-curve >> nth=1 >> .point >> nth=1")
    point.focus()
    assert point.get_attribute("aria-label") == "Frames, point 2 of 2"
    assert point.get_attribute("aria-valuetext") == "50 %: weight 0.5"
    for key, text in (
        ("ArrowRight", "0:0, 51:0.5"),
        ("ArrowUp", "0:0, 51:0.55"),
        ("Shift+ArrowLeft", "0:0, 50.9:0.55"),
        ("PageUp", "0:0, 50.9:1"),
        ("End", "0:0, 100:1"),
        ("Enter", "0:0, 100:1, 100:1"),
        ("Delete", "0:0, 100:1"),
    ):
        drawn.page.keyboard.press(key)
        assert face.value("frames") == text, key
    assert drawn.node_ids("DiffLoraSliderMap") == [face.id]


@both_renderers
def test_what_is_no_curve_is_said_and_reset_and_a_wire_is_left_alone(drawn):  # noqa: F811
    face = Face(drawn, "DiffLoraSliderMap")
    face.set("steps", "nonsense")
    assert "no curve" in face.text(".difflora-curve .note >> nth=0")
    face.find(".difflora-curve .chip >> nth=0").click()
    assert face.value("steps") == ""
    face.told({"map": {"width": 2, "height": 1, "frames": ["0f", "8f"]}})
    assert face.find(".strip").is_visible()
    wire_text(drawn, face.id, "steps", "0:0")
    assert "wire" in face.text(".difflora-curve .note >> nth=0")


@pytest.mark.parametrize("text", ["", "0:0, 40:1, 80:1", "0.5"])
def test_a_curve_survives_saving_and_loading(page, text):
    face = Face(page, "DiffLoraSliderMap")
    face.set("steps", text)
    page.load(page.workflow())
    assert page.value(page.node_ids("DiffLoraSliderMap")[0], "steps") == text
