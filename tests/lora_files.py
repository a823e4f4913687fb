"""Small LoRA files for tests, and what they mean, worked out in numpy without the library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Q, K, FFN = "blocks.0.self_attn.q", "blocks.1.cross_attn.k", "blocks.2.ffn.0"

Factors = tuple[Tensor, Tensor, float | None]
"""up, down, alpha (None: not stored, scale 1)"""


def kohya(module: str) -> str:
    return "lora_unet_" + module.replace(".", "_")


def factors(
    out: int = 24,
    inside: int = 16,
    rank: int = 4,
    alpha: float | None = 2.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Factors:
    random = torch.Generator().manual_seed(seed)
    up, down = torch.randn(out, rank, generator=random), torch.randn(rank, inside, generator=random)
    return up.to(dtype), down.to(dtype), alpha


def tensors(modules: Mapping[str, Factors]) -> dict[str, Tensor]:
    """As musubi-tuner stores them."""
    stored = {}
    for module, (up, down, alpha) in modules.items():
        stored[f"{kohya(module)}.lora_up.weight"] = up.contiguous()
        stored[f"{kohya(module)}.lora_down.weight"] = down.contiguous()
        if alpha is not None:
            stored[f"{kohya(module)}.alpha"] = torch.tensor(alpha)
    return stored


def write(
    path: Path,
    modules: Mapping[str, Factors],
    extra: Mapping[str, Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    save_file({**tensors(modules), **(extra or {})}, path, metadata=metadata)
    return path


def write_pair(folder: Path, **options: object) -> tuple[Path, Path]:
    """Three modules of two shapes; B is another LoRA of the same shape."""
    shapes = {Q: (24, 16), K: (24, 16), FFN: (40, 16)}
    paths = folder / "a.safetensors", folder / "b.safetensors"
    for side, path in enumerate(paths):
        write(
            path,
            {
                name: factors(*shape, seed=10 * side + place, **options)
                for place, (name, shape) in enumerate(shapes.items())
            },
        )
    return paths


def dense(one: Factors) -> np.ndarray:
    """The change of the weight in float64, from the values as stored."""
    up, down, alpha = one
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    return scale * (up.double().reshape(up.shape[0], -1).numpy() @ down.double().reshape(down.shape[0], -1).numpy())
