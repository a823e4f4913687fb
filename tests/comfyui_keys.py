"""ComfyUI's models of every family, without memory, and what it calls their weights. For comfyui_families.py."""

import dataclasses
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[0] = str(Path.cwd())
sys.argv += ["--cpu"]

import comfy.options  # noqa: E402 (ComfyUI is in the folder that was just named)

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402

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
    "txt_ids_dims": [],
}
FLUX = WIDE | {"depth": 19, "depth_single_blocks": 38, "patch_size": 2, "theta": 10000}
FLUX2 = WIDE | {
    "depth": 8, "depth_single_blocks": 48, "patch_size": 1, "theta": 2000, "axes_dim": [32, 32, 32, 32], "num_heads": 48,
    "hidden_size": 6144, "context_in_dim": 15360, "in_channels": 128, "out_channels": 128, "mlp_ratio": 3.0,
    "vec_in_dim": None, "qkv_bias": False, "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    "txt_ids_dims": [3],
}  # fmt: skip
KLEIN = FLUX2 | {"depth": 5, "depth_single_blocks": 20, "hidden_size": 3072, "num_heads": 24, "context_in_dim": 7680,
                 "guidance_embed": False}  # fmt: skip
HUNYUAN = WIDE | {"depth": 20, "depth_single_blocks": 40, "patch_size": [1, 2, 2], "theta": 256}
HUNYUAN15 = HUNYUAN | {
    "depth": 54, "depth_single_blocks": 0, "hidden_size": 2048, "num_heads": 16, "in_channels": 65, "out_channels": 32,
    "vec_in_dim": None, "context_in_dim": 3584, "patch_size": [1, 1, 1], "guidance_embed": False, "byt5": True,
    "use_cond_type_embedding": True, "vision_in_dim": 1152, "meanflow_sum": True,
}  # fmt: skip
LUMINA = {"patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26, "qk_norm": True,
          "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512],
          "ffn_dim_multiplier": 4.0}  # fmt: skip
Z_IMAGE = LUMINA | {
    "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 2048, "num_blocks": 28, "num_heads": 16, "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 256,
}  # fmt: skip
WAN = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "in_dim": 16, "out_dim": 16}
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "num_head_channels": 64, "use_spatial_transformer": True,
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10, "context_dim": 2048, "use_linear_in_transformer": True, "adm_in_channels": 2816,
    "num_classes": "sequential", "legacy": False,
}  # fmt: skip

# name -> model class, where the network is, its settings
MODELS = {
    "flux": ("Flux", "flux.model.Flux", FLUX),
    "flux2": ("Flux2", "flux.model.Flux", FLUX2),
    "flux2-klein": ("Flux2", "flux.model.Flux", KLEIN),
    "hunyuan": ("HunyuanVideo", "hunyuan_video.model.HunyuanVideo", HUNYUAN),
    "hunyuan15": ("HunyuanVideo15", "hunyuan_video.model.HunyuanVideo", HUNYUAN15),
    "ltx": ("LTXV", "lightricks.model.LTXVModel",
            {"in_channels": 128, "cross_attention_dim": 2048, "attention_head_dim": 64, "num_attention_heads": 32,
             "caption_channels": 4096, "num_layers": 28}),
    "ltx2": ("LTXAV", "lightricks.av_model.LTXAVModel", {"num_layers": 48}),
    "qwen-image": ("QwenImage", "qwen_image.model.QwenImageTransformer2DModel",
                   {"num_layers": 60, "in_channels": 64, "out_channels": 16, "num_attention_heads": 24,
                    "attention_head_dim": 128, "joint_attention_dim": 3584}),
    "krea2": ("Krea2", "krea2.model.SingleStreamDiT", {"layers": 28, "features": 6144}),
    "z-image": ("Lumina2", "lumina.model.NextDiT", Z_IMAGE),
    "lumina2": ("Lumina2", "lumina.model.NextDiT", LUMINA),
    "anima": ("Anima", "anima.model.Anima", COSMOS),
    "minimax-h3": ("MiniMaxH3", "minimax.model.MiniMaxH3Model", {}),
    "wan": ("WAN21", "wan.model.WanModel", WAN | {"model_type": "t2v"}),
    "wan-i2v": ("WAN21", "wan.model.WanModel", WAN | {"model_type": "i2v", "in_dim": 36}),
    "wan-5b": ("WAN22", "wan.model.WanModel",
               WAN | {"model_type": "t2v", "dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30,
                      "in_dim": 48, "out_dim": 48}),
    "wan-vace": ("WAN21_Vace", "wan.model.VaceWanModel",
                 WAN | {"model_type": "vace", "vace_layers": 8, "vace_in_dim": 96}),
    "wan-animate": ("WAN22_Animate", "wan.model_animate.AnimateWanModel", WAN | {"model_type": "i2v", "in_dim": 36}),
    "wan-s2v": ("WAN22_S2V", "wan.model.WanModel_S2V", WAN | {"model_type": "t2v"}),
    "wan-fun-control": ("WAN21", "wan.model.WanModel",
                        WAN | {"model_type": "i2v", "in_dim": 52, "in_dim_ref_conv": 16}),
    "wan-camera": ("WAN21_Camera", "wan.model.CameraWanModel", WAN | {"model_type": "camera", "in_dim": 32}),
    "sdxl": ("SDXL", "modules.diffusionmodules.openaimodel.UNetModel", SDXL),
}  # fmt: skip


def understood(config, parameters):
    """The part that this version of ComfyUI knows; what it asks for without a default, and the config has not, is off."""
    fields = [
        field
        for field in dataclasses.fields(parameters)
        if field.name in config or field.default is dataclasses.MISSING
    ]
    return {field.name: config.get(field.name) for field in fields}


def build(kind, network, config, device="meta", dtype=torch.bfloat16):
    """ComfyUI's model, with weights that are not there on the meta device, and without its loading."""
    module, _, name = network.rpartition(".")
    module = importlib.import_module(f"comfy.ldm.{module}")
    kind, network = getattr(comfy.model_base, kind), getattr(module, name)
    if parameters := getattr(module, f"{name}Params", None):
        config = understood(config, parameters)
    model = kind.__new__(kind)  # its __init__ would load weights
    torch.nn.Module.__init__(model)
    with torch.device(device):
        model.diffusion_model = network(**config, device=device, dtype=dtype, operations=comfy.ops.disable_weight_init)
    model.model_config = SimpleNamespace(unet_config=config)
    return model


def describe(model):
    """What ComfyUI calls the weights of a model.

    "shapes": module with a weight -> its shape; "vectors": other parameters; "names": name in a LoRA file -> weight, or
    [weight, [dimension, first row, rows]] where it is a part of one; "turned": name -> where the rows come from, in
    twelfths, of one whose rows ComfyUI puts in another order.
    """
    parameters = {name: list(weight.shape) for name, weight in model.diffusion_model.named_parameters()}
    keys = comfy.lora.model_lora_keys_unet(model, {})
    return {
        "shapes": {
            name.removesuffix(".weight"): shape for name, shape in parameters.items() if name.endswith(".weight")
        },
        "vectors": [name for name in parameters if not name.endswith(".weight")],
        "names": {name: plain(key) for name, key in keys.items()},
        "turned": {
            name: key[2](torch.arange(12)).tolist()
            for name, key in keys.items()
            if not isinstance(key, str) and len(key) > 2
        },
    }


def plain(key):
    """ComfyUI's target of a name; of one with a function that turns rows around, only the weight."""
    return key if isinstance(key, str) else list(key[:2]) if key[1] else key[0]
