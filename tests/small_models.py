"""Small models with random weights that ComfyUI takes for Wan2.1, and LoRAs for them. Same arguments, same bytes.

Plain state dicts: nothing of ComfyUI is imported, so this runs anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Shapes = Iterator[tuple[str, tuple[int, ...]]]

# What write_all() leaves in the models folder.
WAN = "wan_small.safetensors"
WAN_I2V = "wan_small_i2v.safetensors"
WAN_WRAPPER = "wan_wrapper.safetensors"
VAE = "vae_small.safetensors"
DENSE, SPARSE = "dense.safetensors", "sparse.safetensors"
WRAPPER_DENSE, WRAPPER_SPARSE = "wrapper_dense.safetensors", "wrapper_sparse.safetensors"


def write_all(models: Path) -> None:
    """Every model and LoRA named above, into ComfyUI's models folder: 0.3 GB, a few seconds."""
    diffusion, vae, loras = (models / folder for folder in ("diffusion_models", "vae", "loras"))
    write_wan(diffusion / WAN)
    write_wan(diffusion / WAN_I2V, image=True, seed=1)
    write_wan_for_wrapper(diffusion / WAN_WRAPPER)
    write_vae(vae / VAE)
    write_lora_pair(loras / DENSE, loras / SPARSE, model=diffusion / WAN)
    write_lora_pair(loras / WRAPPER_DENSE, loras / WRAPPER_SPARSE, model=diffusion / WAN_WRAPPER, seed=20)


# Models


def write_wan(
    path: Path, dim: int = 256, blocks: int = 3, ffn: int = 512, image: bool = False, seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:  # fmt: skip
    """A Wan2.1 T2V model (image=True: I2V). ComfyUI takes dim / 128 heads, and any number of blocks."""
    return _write(path, wan_shapes(dim, blocks, ffn, image), seed, dtype)


def write_wan_for_wrapper(path: Path, image: bool = False, seed: int = 2) -> Path:
    """One that WanVideoWrapper loads: it always takes 12 heads and 30 blocks for a dim it does not know."""
    return _write(path, wan_shapes(192, 30, 256, image), seed)


def write_vae(path: Path, dim: int = 2, seed: int = 3) -> Path:
    """A Wan2.1 VAE for ComfyUI's VAELoader. (It decodes for longer than the small Wan samples, so it is as narrow as can be.)"""
    return _write(path, _vae(dim), seed)


def wan_shapes(dim: int, blocks: int, ffn: int, image: bool) -> Shapes:
    # I2V takes the latent of the picture and a mask beside the noise: 16 + 16 + 4 channels.
    yield from _layer("patch_embedding", dim, 36 if image else 16, 1, 2, 2)
    yield from _layer("text_embedding.0", dim, 4096)
    yield from _layer("text_embedding.2", dim, dim)
    yield from _layer("time_embedding.0", dim, 256)
    yield from _layer("time_embedding.2", dim, dim)
    yield from _layer("time_projection.1", 6 * dim, dim)
    for block in (f"blocks.{index}" for index in range(blocks)):
        for attention in ("self_attn", "cross_attn"):
            with_image = image and attention == "cross_attn"
            for projection in ("q", "k", "v", "o", *(("k_img", "v_img") if with_image else ())):
                yield from _layer(f"{block}.{attention}.{projection}", dim, dim)
            for norm in ("norm_q", "norm_k", *(("norm_k_img",) if with_image else ())):
                yield f"{block}.{attention}.{norm}.weight", (dim,)
        yield from _norm(f"{block}.norm3", dim)
        yield from _layer(f"{block}.ffn.0", ffn, dim)
        yield from _layer(f"{block}.ffn.2", dim, ffn)
        yield f"{block}.modulation", (1, 6, dim)
    yield from _layer("head.head", 64, dim)
    yield "head.modulation", (1, 2, dim)
    if image:
        yield from _norm("img_emb.proj.0", 1280)
        yield from _layer("img_emb.proj.1", 1280, 1280)
        yield from _layer("img_emb.proj.3", dim, 1280)
        yield from _norm("img_emb.proj.4", dim)


def _vae(dim: int) -> Shapes:
    channels = 16
    yield from _layer("conv1", 2 * channels, 2 * channels, 1, 1, 1)
    yield from _layer("conv2", channels, channels, 1, 1, 1)

    yield from _layer("encoder.conv1", dim, 3, 3, 3, 3)
    index, before = 0, dim
    for level, size in enumerate((dim, 2 * dim, 4 * dim, 4 * dim)):
        for _ in range(2):
            yield from _residual(f"encoder.downsamples.{index}", before, size)
            index, before = index + 1, size
        if level < 3:
            yield from _layer(f"encoder.downsamples.{index}.resample.1", size, size, 3, 3)
            if level > 0:
                yield from _layer(f"encoder.downsamples.{index}.time_conv", size, size, 3, 1, 1)
            index += 1
    yield from _middle("encoder.middle", 4 * dim)
    yield "encoder.head.0.gamma", (4 * dim, 1, 1, 1)
    yield from _layer("encoder.head.2", 2 * channels, 4 * dim, 3, 3, 3)

    yield from _layer("decoder.conv1", 4 * dim, channels, 3, 3, 3)
    yield from _middle("decoder.middle", 4 * dim)
    index, before = 0, 4 * dim
    for level, size in enumerate((4 * dim, 4 * dim, 2 * dim, dim)):
        for _ in range(3):
            yield from _residual(f"decoder.upsamples.{index}", before, size)
            index, before = index + 1, size
        if level < 3:
            yield from _layer(f"decoder.upsamples.{index}.resample.1", size // 2, size, 3, 3)
            if level < 2:
                yield from _layer(f"decoder.upsamples.{index}.time_conv", 2 * size, size, 3, 1, 1)
            index, before = index + 1, size // 2
    yield "decoder.head.0.gamma", (dim, 1, 1, 1)
    yield from _layer("decoder.head.2", 3, dim, 3, 3, 3)


def _middle(name: str, dim: int) -> Shapes:
    yield from _residual(f"{name}.0", dim, dim)
    yield f"{name}.1.norm.gamma", (dim, 1, 1)
    yield from _layer(f"{name}.1.to_qkv", 3 * dim, dim, 1, 1)
    yield from _layer(f"{name}.1.proj", dim, dim, 1, 1)
    yield from _residual(f"{name}.2", dim, dim)


def _residual(name: str, before: int, after: int) -> Shapes:
    yield f"{name}.residual.0.gamma", (before, 1, 1, 1)
    yield from _layer(f"{name}.residual.2", after, before, 3, 3, 3)
    yield f"{name}.residual.3.gamma", (after, 1, 1, 1)
    yield from _layer(f"{name}.residual.6", after, after, 3, 3, 3)
    if before != after:
        yield from _layer(f"{name}.shortcut", after, before, 1, 1, 1)


def _layer(name: str, out: int, *rest: int) -> Shapes:
    yield f"{name}.weight", (out, *rest)
    yield f"{name}.bias", (out,)


def _norm(name: str, dim: int) -> Shapes:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)


def _write(path: Path, shapes: Shapes, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """Weights that keep the size of what goes through them; norms near 1, biases near 0."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes:
        noise = torch.randn(shape, generator=random)
        if name.endswith("gamma") or re.search(r"norm\w*\.weight|img_emb\.proj\.[04]\.weight", name):
            value = 1 + 0.1 * noise
        elif name.endswith("bias"):
            value = 0.05 * noise
        elif name.endswith("modulation"):
            value = 0.3 * noise
        else:
            value = noise / torch.Size(shape[1:]).numel() ** 0.5
        tensors[name] = value.to(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


# LoRAs

# One entry a dialect: how a module's key begins, how the factors are called, and whether it has an alpha.
_DIALECTS = {
    "musubi": (lambda name: "lora_unet_" + name.replace(".", "_"), ("lora_down", "lora_up"), True),
    "default": (lambda name: f"diffusion_model.{name}", ("lora_down", "lora_up"), True),
    "diffusion_pipe": (lambda name: f"diffusion_model.{name}", ("lora_A", "lora_B"), False),
    "diffusers": (lambda name: f"transformer.{_diffusers(name)}", ("lora_A", "lora_B"), False),
    "peft": (lambda name: f"base_model.model.{name}", ("lora_A", "lora_B"), False),
    "bare": (lambda name: name, ("lora_A", "lora_B"), False),
}


def write_lora(
    path: Path, model: Path, dialect: str = "musubi", rank: int = 4, alpha: float = 2.0, modules: str = r"blocks\.",
    seed: int = 10, like: int | None = None, noise: float = 0.3, size: float = 1.0, dtype: torch.dtype = torch.float32,
) -> Path:  # fmt: skip
    """A LoRA for the linear layers of a model file whose names match the regular expression `modules`.

    like:  a seed: the factors are those of that seed plus `noise` of their size, as two trainings from one start.
    size:  of the change, relative to the weights, at strength 1 and whatever the dialect's scale is.
    """
    key_of, (down_name, up_name), has_alpha = _DIALECTS[dialect]
    own = torch.Generator().manual_seed(seed)
    common = torch.Generator().manual_seed(seed if like is None else like)

    def factor(*shape: int) -> torch.Tensor:
        base = torch.randn(shape, generator=common)
        return base if like is None else base + noise * torch.randn(shape, generator=own)

    scale = alpha / rank if has_alpha else 1.0
    tensors = {}
    for name, (rows, columns) in linear_layers(model):
        if re.match(modules, name):
            key = key_of(name)
            tensors[f"{key}.{down_name}.weight"] = (factor(rank, columns) / columns**0.5).to(dtype)
            tensors[f"{key}.{up_name}.weight"] = (factor(rows, rank) * (0.3 * size / scale) / rank**0.5).to(dtype)
            if has_alpha:
                tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)})
    return path


def write_lora_pair(dense: Path, sparse: Path, model: Path, seed: int = 10, **options: object) -> tuple[Path, Path]:
    """Two LoRAs that are alike, as two trainings on paired scenes are."""
    write_lora(dense, model, seed=seed + 1, like=seed, **options)
    write_lora(sparse, model, seed=seed + 2, like=seed, **options)
    return dense, sparse


def linear_layers(model: Path) -> list[tuple[str, tuple[int, int]]]:
    """(name, (out, in)) of every linear layer in a model file, in the file's order of blocks."""
    with safe_open(model, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    layers = [(n.removesuffix(".weight"), s) for n, s in shapes.items() if n.endswith(".weight") and len(s) == 2]
    return sorted(layers, key=lambda layer: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", layer[0])])


def _diffusers(name: str) -> str:
    for ours, theirs in (
        ("self_attn.", "attn1."), ("cross_attn.", "attn2."), (".q", ".to_q"), (".v_img", ".add_v_proj"),
        (".k_img", ".add_k_proj"), (".k", ".to_k"), (".v", ".to_v"), (".o", ".to_out.0"),
        ("ffn.0", "ffn.net.0.proj"), ("ffn.2", "ffn.net.2"),
    ):  # fmt: skip
        name = re.sub(re.escape(ours) + (r"$" if ours.startswith(".") or ours.startswith("ffn") else ""), theirs, name)
    return name
