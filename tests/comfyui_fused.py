"""A LoRA whose q, k and v are rows of one weight of ComfyUI's model, beside that weight. For comfyui_families.py."""

import importlib

import comfy.model_patcher
import comfyui_keys
import torch
from safetensors.torch import save_file

difflora = importlib.import_module("pack.difflora")
native = importlib.import_module("pack.nodes.slider.native")
bypass = importlib.import_module("pack.nodes.slider.bypass")
WIDTH, RANK, STRENGTH = 24, 2, 1.5
NAME = "transformer.transformer_blocks.0.attn.to_{}.lora_{}.weight"


def on_parts(folder):
    """The rows of each part, how far the slider is from what they should add up to, and how much that is."""
    torch.manual_seed(0)
    config = comfyui_keys.FLUX | {
        "hidden_size": WIDTH, "num_heads": 2, "axes_dim": [4, 4, 4], "depth": 1, "depth_single_blocks": 1,
    }  # fmt: skip
    model = comfyui_keys.build("Flux", "flux.model.Flux", config, device="cpu", dtype=torch.float32)
    model.manual_cast_dtype, model.device = None, torch.device("cpu")
    model.get_dtype = lambda: torch.float32
    layer = model.diffusion_model.double_blocks[0].img_attn.qkv
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)

    # In these names, Flux.1, Qwen-Image and HunyuanVideo have the same modules: the file does not say which it is for.
    tensors = {}
    for letter in "qkv":
        tensors[NAME.format(letter, "A")] = torch.randn(RANK, WIDTH)
        tensors[NAME.format(letter, "B")] = torch.randn(WIDTH, RANK)
    save_file(tensors, folder / "split.safetensors")
    lora = difflora.load(folder / "split.safetensors")
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    targets = native.Targets(patcher, lora)

    x = torch.randn(5, WIDTH)
    change = torch.cat([tensors[NAME.format(letter, "B")] @ tensors[NAME.format(letter, "A")] for letter in "qkv"])
    before = layer(x)
    beside = bypass.put_beside(patcher, "test", native._low_rank(lora, targets), STRENGTH, adjustable=True)
    beside.inject(patcher)
    return {
        "rows": {name.rpartition("_")[2]: rows for name, rows in targets.rows.items()},
        "error": float((layer(x) - before - STRENGTH * x @ change.T).abs().max()),
        "change": float((STRENGTH * x @ change.T).abs().max()),
    }
