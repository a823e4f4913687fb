"""The rules of the tests themselves: who gets a second chance, and what has to stay together on one worker."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import scope_of

TESTS = Path(__file__).parents[1]

FAILS_ONCE = """
import pytest
tried = []

def test_pure():
    tried.append("pure")
    assert tried.count("pure") == 2

@pytest.mark.comfy
def test_with_a_server():
    tried.append("server")
    assert tried.count("server") == 2
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    (((), "2 failed"), (("--second-chance",), "1 failed, 1 passed, 1 rerun")),
)
def test_only_tests_with_a_server_get_a_second_chance(tmp_path, options, expected):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_once.py").write_text(FAILS_ONCE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert expected in done.stdout.splitlines()[-1]
    assert "test_once.py::test_pure" in done.stdout.split("short test summary info")[1]
    # A fault that shows itself once in a hundred runs has to be readable in the log of that run.
    first = done.stdout.partition("before the second chance: test_once.py::test_with_a_server")[2]
    assert ("assert 1 == 2" in first) == bool(options)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    (
        ("tests/browser/test_a.py::test_x[1]", "tests/browser/test_b.py::TestY::test_z", True),
        ("tests/readers/test_a.py::test_x[1]", "tests/readers/test_a.py::test_x[2]", True),
        ("tests/e2e/test_a.py::test_x[1]", "tests/e2e/test_a.py::TestY::test_z", True),
        ("tests/e2e/test_a.py::test_x", "tests/e2e/test_b.py::test_x", False),
        ("tests/core/test_a.py::test_x[1]", "tests/core/test_a.py::test_x[2]", False),
    ),
)
def test_what_shares_a_server_or_a_browser_stays_on_one_worker(one, other, together):
    assert (scope_of(one) == scope_of(other)) == together
