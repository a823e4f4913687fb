"""What the registry packs: nothing that it flags, nothing that only tests, and all that the pack needs."""

import re
import subprocess
from pathlib import Path

import pytest

import difflora

ROOT = Path(__file__).resolve().parents[2]
FLAGGED = re.compile(
    r"(?<![.\w])(?:eval|exec)\(|\bsubprocess\b|\bos\.system\b|\bimportlib\b|__import__|\bos\.environ\b|\bgetenv\b"
    r"|\burllib\b|\brequests\b|\bhttpx?\.client\b|\bsocket\b|\bpip install\b|\.bind\(|\bnew Function\b|\batob\("
)


def listed(*options: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split("\0")) - {""}


@pytest.fixture(scope="module")
def archive() -> set[str]:
    """Files that git tracks, without those that .comfyignore names."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return listed() - listed("--ignored", "--cached", "--exclude-from=.comfyignore")


def test_nothing_in_the_archive_is_flagged(archive):
    code = sorted(name for name in archive if name.endswith((".py", ".js")))
    assert "difflora/rank/rerank.py" in code and "nodes/slider/native.py" in code and "js/difflora.js" in code
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in code
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if FLAGGED.search(line)
    ]
    assert not found


def test_the_archive_has_what_the_pack_needs_and_no_tests(archive):
    needed = {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "nodes/__init__.py"}
    assert needed <= archive
    assert not [name for name in archive if name.startswith(("tests/", ".ci/")) or name == "bootstrap.py"]
    assert not [name for name in archive if re.match(r"demo/.*\.py$", name)]


def test_no_minified_javascript(archive):
    for name in archive:
        if name.endswith(".js"):
            assert max(map(len, (ROOT / name).read_text(encoding="utf-8").splitlines())) < 400, name


def test_the_version_is_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{difflora.__version__}"' in project.splitlines()
    assert f"## {difflora.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_torch_is_not_a_requirement():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.match(r"(torch|numpy|safetensors)\b", line)]
