"""ComfyUI waits for every pack when it starts: what is slow to import is imported when it is needed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLOW = {"matplotlib", "scipy", "kornia", "torchvision", "transformers", "av", "cv2", "PIL.ImageFont"}


def imported_at_once(path):
    """Modules that importing this file imports, however deep the statement stands outside of functions."""
    todo = list(ast.parse(path.read_text("utf-8")).body)
    while todo:
        statement = todo.pop()
        if isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names)
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            yield statement.module
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        elif not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "nodes").rglob("*.py")), *sorted((ROOT / "difflora").rglob("*.py"))],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_nothing_imports_something_slow_at_once(path):
    found = {name for name in imported_at_once(path) if name.split(".")[0] in SLOW or name in SLOW}
    assert not found


def test_the_entry_point_imports_nothing_at_once():
    assert list(imported_at_once(ROOT / "__init__.py")) == []
