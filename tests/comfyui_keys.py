"""What ComfyUI calls the weights of models other than Wan, as JSON.

model -> "modules": those that have a weight matrix; "names": name in a LoRA file -> weight. Runs in ComfyUI's own Python, from its folder: ``python comfyui_keys.py``. The models are built without memory.
"""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[0] = str(Path.cwd())
sys.argv += ["--cpu"]

import comfy.options  # noqa: E402 (ComfyUI is in the folder that was just named)

comfy.options.enable_args_parsing()

import comfy.ldm.flux.model  # noqa: E402
import comfy.ldm.hunyuan_video.model  # noqa: E402
import comfy.ldm.lightricks.model  # noqa: E402
import comfy.ldm.qwen_image.model  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

WIDE = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "qkv_bias": True,
    "guidance_embed": True,
}
HUNYUAN = WIDE | {"depth": 20, "depth_single_blocks": 40, "patch_size": [1, 2, 2], "theta": 256}
FLUX = WIDE | {"depth": 19, "depth_single_blocks": 38, "patch_size": 2, "theta": 10000, "txt_ids_dims": []}


def understood(config, parameters):
    """The part that this version of ComfyUI knows; what it asks for without a default, and the config has not, is off."""
    fields = [
        field
        for field in dataclasses.fields(parameters)
        if field.name in config or field.default is dataclasses.MISSING
    ]
    return {field.name: config.get(field.name) for field in fields}


MODELS = {
    "flux": (comfy.model_base.Flux, comfy.ldm.flux.model.Flux,
             understood(FLUX, comfy.ldm.flux.model.FluxParams)),
    "hunyuan": (comfy.model_base.HunyuanVideo, comfy.ldm.hunyuan_video.model.HunyuanVideo,
                understood(HUNYUAN, comfy.ldm.hunyuan_video.model.HunyuanVideoParams)),
    "ltx": (comfy.model_base.LTXV, comfy.ldm.lightricks.model.LTXVModel,
            {"in_channels": 128, "cross_attention_dim": 2048, "attention_head_dim": 64, "num_attention_heads": 32,
             "caption_channels": 4096, "num_layers": 28}),
    "qwen-image": (comfy.model_base.QwenImage, comfy.ldm.qwen_image.model.QwenImageTransformer2DModel,
                   {"num_layers": 60, "in_channels": 64, "out_channels": 16, "num_attention_heads": 24,
                    "attention_head_dim": 128, "joint_attention_dim": 3584}),
    "sdxl": (comfy.model_base.SDXL, UNetModel,
             {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
              "channel_mult": [1, 2, 4], "num_head_channels": 64, "use_spatial_transformer": True,
              "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
              "transformer_depth_middle": 10, "context_dim": 2048, "use_linear_in_transformer": True,
              "adm_in_channels": 2816, "num_classes": "sequential", "legacy": False}),
}  # fmt: skip


def describe(kind, network, config):
    model = kind.__new__(kind)  # its __init__ would load weights
    torch.nn.Module.__init__(model)
    model.diffusion_model = network(
        **config, device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init
    )
    model.model_config = SimpleNamespace(unet_config=config)
    modules = [
        name.removesuffix(".weight")
        for name, weight in model.diffusion_model.named_parameters()
        if name.endswith(".weight") and weight.dim() > 1
    ]
    return {
        "modules": modules,
        "names": {name: str(key) for name, key in comfy.lora.model_lora_keys_unet(model, {}).items()},
    }


json.dump({name: describe(*model) for name, model in MODELS.items()}, sys.stdout)
