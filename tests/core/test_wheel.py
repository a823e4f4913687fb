"""What `pip install` makes of the library: every package, and a command that starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
# The wheel alone is on the path, and the script's entry point is looked up as the installed script does it.
START = """
import sys
from importlib.metadata import EntryPoint
main = EntryPoint("difflora", sys.argv[1], "console_scripts").load()
assert ".whl" in sys.modules["difflora"].__file__, sys.modules["difflora"].__file__
raise SystemExit(main(["--version"]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend itself, which needs no network; from a copy, because it leaves a folder behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "difflora", folder / "difflora", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "nodes").mkdir()
    (folder / "nodes" / "__init__.py").touch()  # which is ComfyUI's and stays out
    (folder / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_has_all_of_the_library_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "difflora").rglob("*.py")}
    assert "difflora/rank/rerank.py" in packed


def test_the_installed_command_starts(wheel: Path) -> None:
    entries = zipfile.ZipFile(wheel).read(f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/entry_points.txt").decode()
    scripts = dict(line.split(" = ") for line in entries.splitlines() if " = " in line)
    assert scripts == {"difflora": "difflora.cli:main"}
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(wheel)!r})\n{START}", scripts["difflora"]]
    done = subprocess.run(command, cwd=wheel.parent, capture_output=True, text=True)
    assert done.stdout.startswith("difflora "), done.stderr
