"""Writes a pair of LoRA files as large as the real thing, in seconds: for the demo, the benchmarks and size tests.

`python scripts/full_size.py FOLDER` writes the pair of a Wan2.1-14B; `--help` lists what can be changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

ATTENTION = tuple(f"{kind}_{which}" for kind in ("self_attn", "cross_attn") for which in "qkvo")


def modules(blocks: int, dim: int, ffn: int) -> Iterator[tuple[str, int, int]]:
    """(musubi-tuner's name, out, in) of every linear layer that a Wan T2V LoRA trains: ten a block."""
    for block in range(blocks):
        for projection in ATTENTION:
            yield f"lora_unet_blocks_{block}_{projection}", dim, dim
        yield f"lora_unet_blocks_{block}_ffn_0", ffn, dim
        yield f"lora_unet_blocks_{block}_ffn_2", dim, ffn


def write_pair(
    folder: Path | str,
    rank: int = 16,
    noise: float | None = None,
    blocks: int = 40,
    dim: int = 5120,
    ffn: int = 13824,
    dtype: torch.dtype = torch.bfloat16,
    alpha: float = 8.0,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Write two LoRAs in musubi-tuner's format and return their paths.

    noise=None: B is independent of A. Otherwise B's factors are A's, plus normal noise of `noise` times their
    root mean square: what two trainings from one start look like. `down` is as large as a fresh initialisation,
    and the columns of `up` fall off as in a trained file, so the spectrum is neither flat nor of a single direction.
    The same arguments give the same files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    falloff = torch.logspace(0, -1, rank)
    dense: dict[str, torch.Tensor] = {}
    sparse: dict[str, torch.Tensor] = {}
    for name, rows, columns in modules(blocks, dim, ffn):
        for part, shape, size in (
            ("lora_down", (rank, columns), (3 * columns) ** -0.5),
            ("lora_up", (rows, rank), 0.02 * falloff),
        ):
            key = f"{name}.{part}.weight"
            factor = torch.randn(shape, generator=random) * size
            other = torch.randn(shape, generator=random)
            other = other * size if noise is None else factor + noise * factor.square().mean().sqrt() * other
            dense[key], sparse[key] = factor.to(dtype), other.to(dtype)
        dense[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
        sparse[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)

    paths = folder / "dense.safetensors", folder / "sparse.safetensors"
    for path, tensors in zip(paths, (dense, sparse), strict=True):
        save_file(tensors, path, metadata=_metadata(path.stem, rank, alpha, seed))
    return paths


def _metadata(title: str, rank: int, alpha: float, seed: int) -> dict[str, str]:
    """What musubi-tuner writes about a training, as far as anything reads it."""
    return {
        "ss_network_module": "networks.lora_wan",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": "wan2.1",
        "ss_output_name": title,
        "ss_learning_rate": "3e-05",
        "ss_max_train_steps": "1200",
        "ss_steps": "1200",
        "ss_num_train_items": "200",
        "ss_optimizer": "Lion",
        "ss_mixed_precision": "bf16",
        "ss_seed": str(seed),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "wan2.1/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.1",
        "modelspec.title": title,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a pair of LoRA files of full size, made of random numbers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--noise", type=float, help="B is A with this much relative noise; left out: independent")
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--dim", type=int, default=5120)
    parser.add_argument("--ffn", type=int, default=13824)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--alpha", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    options["dtype"] = getattr(torch, options["dtype"])
    for path in write_pair(**options):
        print(f"{path}  {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
