"""What changes pictures besides the prompt and its files: versions, flags, the GPU, and the packs that nodes come from.

All of it is the same on another machine exactly if that machine would render the same.
"""

from __future__ import annotations

import hashlib
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

# By words in their names, so that the flags of versions to come count, too. Where files lie and how the server is reached
# never do.
_FLAGS = re.compile(
    r"fp\d|bf16|int\d|force|fast|attention|xformers|upcast|deterministic|channels_last|directml|vram|cpu|dtype"
    r"|precision|intermediates|triton|optimize|smart_memory|gpu_only|fp8|cuda_graphs"
)
_HARMLESS = {"fast_disk", "reserve_vram", "vram_headroom", "high_ram", "force_non_blocking"}
_KERNELS = ("xformers", "sageattention", "flash_attn", "triton", "comfy_kitchen", "gguf", "bitsandbytes", "torchao")
_OURS = __name__.rsplit(".", 3)[0]


def runtime_facts() -> dict[str, Any]:
    """Versions, device, dtype, attention and speed-up flags of this ComfyUI."""
    device = get_torch_device()
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "comfyui": getattr(sys.modules.get("comfyui_version"), "__version__", ""),
        "torch": torch.__version__,
        "device": _device_name(device),
        "flags": {name: _plain(value) for name, value in sorted(vars(args).items()) if _is_flag(name) and value},
        "attention": getattr(attention.optimized_attention, "__name__", ""),
        "kernels": {name: str(getattr(sys.modules.get(name), "__version__", "")) for name in _KERNELS},
        "arithmetic": [
            cuda.matmul.allow_tf32,
            cudnn.allow_tf32,
            cuda.matmul.allow_fp16_reduced_precision_reduction,
            getattr(cuda.matmul, "allow_fp16_accumulation", False),
            torch.get_float32_matmul_precision(),
        ],
    }


def pack_facts(kinds: Iterable[str]) -> dict[str, str]:
    """The version of every pack that these kinds of nodes come from. ComfyUI's own nodes have ComfyUI's."""
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
    return packs


def _device_name(device: Any) -> str:
    kind = getattr(device, "type", str(device))
    if kind == "cuda":
        return str(torch.cuda.get_device_name(device))
    if kind == "xpu":
        return str(torch.xpu.get_device_name(device))
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if kind == "cpu" else str(kind)


def _is_flag(name: str) -> bool:
    return bool(_FLAGS.search(name)) and name not in _HARMLESS


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset, list, tuple)):
        return sorted(str(each) for each in value)
    return value if isinstance(value, (bool, int, float)) else str(value)


@lru_cache(maxsize=256)
def _sources(place: str) -> str:
    """A hash of a pack's Python files. Read once: what runs is what was there when ComfyUI started."""
    root = Path(place)
    files = [root] if root.is_file() else sorted(root.rglob("*.py")) if place else []
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix()
        if any(part.startswith(".") or part in ("__pycache__", "node_modules") for part in name.split("/")[:-1]):
            continue
        try:
            # git writes other line ends on Windows.
            text = file.read_bytes().replace(b"\r\n", b"\n")
        except OSError:
            text = b""
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0" + hashlib.sha256(text).digest())
    return digest.hexdigest()[:32]
