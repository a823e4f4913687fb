"""Modules of the pack without a ComfyUI: `pack_module("nodes.common.paths")`."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def pack_module(name: str) -> Any:
    """Import a module of the pack by its dotted name, without running `nodes/__init__.py`, which needs ComfyUI."""
    for package, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            module = types.ModuleType(package)
            module.__path__ = [str(folder)]
            sys.modules[package] = module
    return importlib.import_module(f"pack.{name}")
