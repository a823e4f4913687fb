"""What affects pictures besides the prompt and its files: versions, flags, the GPU, and the packs that nodes come from.

It is equal on another machine if and only if that machine would render the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import execution
import torch
from comfy.cli_args import args
from comfy.ldm.modules import attention
from comfy.model_management import get_torch_device

from ...difflora.version import __version__

# Matched by words in their names, so that flags of future versions count too. Flags for file locations and the server's
# address never count.
_FLAGS = re.compile(
    r"fp\d|bf16|int\d|force|fast|attention|xformers|upcast|deterministic|channels_last|directml|vram|cpu|dtype"
    r"|precision|intermediates|triton|optimize|smart_memory|gpu_only|fp8|cuda_graphs"
)
_HARMLESS = {"fast_disk", "reserve_vram", "vram_headroom", "high_ram", "force_non_blocking"}
_KERNELS = re.compile(
    r"(xformers|sageattention|sageattn3|flash_attn|triton|triton_windows|comfy_kitchen|gguf|bitsandbytes|torchao)-(.+)\.dist-info",
    re.IGNORECASE,
)
# As it is when ComfyUI starts: nodes that patch it while they run show that in their inputs.
_ATTENTION = str(getattr(attention.optimized_attention, "__name__", ""))
_OURS = __name__.rsplit(".", 3)[0]


def runtime_facts() -> dict[str, Any]:
    """Versions, device, dtype, attention and speed flags of this ComfyUI. Constant while it runs."""
    return {
        "comfyui": getattr(sys.modules.get("comfyui_version"), "__version__", ""),
        "torch": torch.__version__,
        "device": _device_name(get_torch_device()),
        "flags": {name: _plain(value) for name, value in sorted(vars(args).items()) if _is_flag(name) and value},
        "attention": _ATTENTION,
        "kernels": _kernels(),
        # Libraries of PyTorch that not every build of a version has.
        "flash": bool(getattr(torch.backends.cuda, "is_flash_attention_available", lambda: None)()),
    }


def pack_facts(kinds: Iterable[str]) -> list[str]:
    """The version of every pack that these kinds of nodes come from, whatever its folder is called. ComfyUI's own nodes have
    ComfyUI's.
    """
    packs: dict[str, str] = {}
    for kind in kinds:
        node = execution.nodes.NODE_CLASS_MAPPINGS.get(kind)
        where = str(getattr(node, "RELATIVE_PYTHON_MODULE", ""))
        module = str(getattr(node, "__module__", ""))
        if module == _OURS or module.startswith(f"{_OURS}."):
            packs["difflora"] = __version__
        elif where.startswith("custom_nodes."):
            name = where.removeprefix("custom_nodes.")
            if name not in packs:
                folder = execution.nodes.LOADED_MODULE_DIRS.get(name)
                file = getattr(sys.modules.get(module), "__file__", None)
                packs[name] = _sources(str(folder or file or ""))
    return sorted(set(packs.values()))


def _device_name(device: Any) -> str:
    kind = getattr(device, "type", str(device))
    if kind == "cuda":
        return str(torch.cuda.get_device_name(device))
    if kind == "xpu":
        return str(torch.xpu.get_device_name(device))
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if kind == "cpu" else str(kind)


@lru_cache(maxsize=1)
def _kernels() -> list[list[str]]:
    """Optional packages that models compute with, and their versions."""
    found = set()
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except OSError:
            continue
        found |= {(match[1].lower(), match[2]) for name in names if (match := _KERNELS.fullmatch(name))}
    return [list(each) for each in sorted(found)]


def _is_flag(name: str) -> bool:
    return bool(_FLAGS.search(name)) and name not in _HARMLESS


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset, list, tuple)):
        return sorted(str(each) for each in value)
    return value if isinstance(value, (bool, int, float)) else str(value)


@lru_cache(maxsize=256)
def _sources(place: str) -> str:
    """A hash of a pack's Python files. Read once: the code that runs is that of ComfyUI's start."""
    root = Path(place)
    files = [root] if root.is_file() else sorted(root.rglob("*.py")) if place else []
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix()
        if any(part.startswith(".") or part in ("__pycache__", "node_modules") for part in name.split("/")[:-1]):
            continue
        try:
            # git writes different line ends on Windows.
            text = file.read_bytes().replace(b"\r\n", b"\n")
        except OSError:
            text = b""
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0" + hashlib.sha256(text).digest())
    return digest.hexdigest()[:32]
