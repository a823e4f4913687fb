"""The rows of a rack: every worked case of tests/data/rack.json, which the page's tests read too."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difflora.errors import InputError
from difflora.lora.rack import MOST, Row, multiplied, rows_of

CASES = json.loads((Path(__file__).parents[1] / "data" / "rack.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_worked_case(case):
    if "bad" in case:
        with pytest.raises(InputError) as caught:
            rows_of(case["text"])
        for piece in case["error"]:
            assert piece in str(caught.value)
        return
    for text in (case["text"], case.get("written", case["text"])):
        rows = rows_of(text)
        assert [[row.on, row.strength, row.name] for row in rows] == case["rows"]
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))


@given(st.text())
def test_any_text_is_rows_or_one_clear_error(text):
    try:
        rows = rows_of(text)
    except InputError as error:
        assert str(error).startswith("row")
    else:
        assert all(abs(row.strength) <= 10 and row.name for row in rows)


def test_a_rack_has_room_for_a_hundred():
    assert len(rows_of("1 a\n" * MOST)) == MOST == 100
    with pytest.raises(InputError, match="101 LoRAs are more than the 100"):
        rows_of("1 a\n" * (MOST + 1))


def test_the_strength_of_the_rack_multiplies_and_keeps_to_the_range():
    row = Row(3, -2.5, "a")
    assert multiplied(row, 2) == -5 and multiplied(row, -4) == 10
    assert str(multiplied(row, 0)) == "0.0"
    with pytest.raises(InputError, match=r"row 3: -2\.5 times the rack's strength 5 is -12\.5"):
        multiplied(row, 5)
