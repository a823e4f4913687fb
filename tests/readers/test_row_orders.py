"""Rows of fused weights mean the same here and in diffusers, whose converters know the order in each trainer's files."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import difflora
from difflora.names import families

RANK = 2
# Width of a family's models, and rows of what is wider: diffusers reads some files by their sizes only.
WIDTHS = {"Flux": 3072, "FLUX.2": 3072, "HunyuanVideo": 3072, "Lumina 2": 2304}
HEAD = 128
# What HunyuanVideo's own code calls its modules; ComfyUI has a few dots more.
SOURCE = {
    "HunyuanVideo": lambda module: re.sub(
        r"(_attn)\.(qkv|proj)", r"\1_\2", re.sub(r"mlp\.([02])", lambda m: f"mlp.fc{int(m[1]) // 2 + 1}", module)
    )
}
ROWS = {"qkv": 3, "qkv_proj": 3, "linear1": 7, "fc1": 4, "w1": 2, "w3": 2, "mlp.gate": 2, "mlp.up": 2}
OTHER_ROWS = {"FLUX.2": {"linear1": 9, "mlp.0": 6}, "Lumina 2": {"qkv": 5 / 3}}
# Modules outside attention and feed-forward without which diffusers converts nothing.
ASKED = {"Lumina 2": ("layers.#.adaLN_modulation.1", "noise_refiner.#.adaLN_modulation.1")}
# Family, how a trainer writes its names, and diffusers' converter of such files.
CONVERTERS = [
    ("MiniMax H3", "diffusion_model.{}.lora_A.weight", "minimax_h3"),
    ("MiniMax H3", "lora_unet_{}.lora_down.weight", "minimax_h3"),
    ("MiniMax H3", "{}.lora_A.weight", "minimax_h3"),
    ("MiniMax H3", "{}.lora_A.default.weight", "minimax_h3"),
    ("Z-Image", "lora_unet_{}.lora_down.weight", "z_image"),
    ("Lumina 2", "diffusion_model.{}.lora_A.weight", "lumina2"),
    ("Krea 2", "diffusion_model.{}.lora_A.weight", "krea2"),
    ("FLUX.2", "diffusion_model.{}.lora_A.weight", "flux2"),
    ("Flux", "lora_unet_{}.lora_down.weight", "kohya_flux"),
    ("HunyuanVideo", "diffusion_model.{}.lora_A.weight", "hunyuan_video"),
]


def names(family: families.Family) -> list[str]:
    """The matrices in two blocks of each stack that LoRAs are trained on."""
    found = []
    for template, roles in family.own:
        if template in ASKED.get(family.name, ()):
            found += [template.replace("#", str(block)) for block in range(2)]
        # Diffusers cuts both factors of HunyuanVideo's text refiner, which leaves no LoRA.
        if {"attn", "ffn"} & set(roles.split()) and "norm" not in template and not template.startswith("txt_in."):
            found += [template.replace("#", str(block)) for block in range(2)]
    return found


@pytest.mark.parametrize(("name", "written", "converter"), CONVERTERS, ids=lambda value: value.replace(" ", "-"))
def test_q_k_and_v_are_the_rows_that_diffusers_takes(tmp_path, name, written, converter):
    conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    family = families.named(name)
    convert = next(
        function for title, function in vars(conversion).items()
        if re.fullmatch(rf"_convert_(?:non_diffusers_)?{converter}_lora_to_diffusers", title)
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    width, sizes = WIDTHS.get(name, 2 * HEAD), ROWS | OTHER_ROWS.get(name, {})
    tensors = {}
    for module in map(SOURCE.get(name, str), names(family)):
        rows = next((size for end, size in sizes.items() if module.endswith(end)), 1)
        rows = round(rows * width)
        down = written.format(module.replace(".", "_") if written.startswith("lora_unet_") else module)
        up = down.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
        tensors[down] = torch.randn(RANK, width, generator=generator)
        tensors[up] = torch.randn(rows, RANK, generator=generator)
    save_file(tensors, tmp_path / "theirs.safetensors", {"modelspec.architecture": family.words[0]})
    truth = convert({key: value.clone() for key, value in tensors.items()})
    lora = difflora.load(tmp_path / "theirs.safetensors")
    assert [one.name for one in lora.families] == [name]
    ours = load_file(difflora.save(lora, tmp_path / "ours.safetensors", dialect="diffusers", dtype="float32"))
    probe = torch.randn(width, 3, generator=generator)
    checked = 0
    for key, down in truth.items():
        if "lora_A" in key:
            up = truth[key.replace("lora_A", "lora_B")]
            mine = ours[key.replace("lora_A", "lora_B")] @ (ours[key] @ probe)
            torch.testing.assert_close(mine, up @ (down @ probe), rtol=1e-4, atol=1e-4 * float(mine.abs().max()))
            checked += 1
    assert checked == len([key for key in ours if "lora_A" in key]) > 0
