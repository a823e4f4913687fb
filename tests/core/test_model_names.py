"""Whole models other than Wan: their lists of names are true, and every spelling of them is read, selected and written back."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import difflora
from difflora.errors import PairError
from difflora.names.flat import dotted
from difflora.names.keys import OUTPUT_DIALECTS, read_keys, write_key
from tests.model_names import WHOLE, names_of

DOWN, UP = ".lora_down.weight", ".lora_up.weight"
# Who writes these names flat: sd-scripts, musubi-tuner, OneTrainer (lora_transformer_), SimpleTuner (lycoris_).
FLAT = [
    ("flux-own", "lora_unet_"),
    ("flux-diffusers", "lora_transformer_"),
    ("flux-diffusers", "lycoris_"),
    ("hunyuan-own", "lora_unet_"),
    ("hunyuan-comfyui", "lora_unet_"),
    ("hunyuan-diffusers", "lora_unet_"),
    ("ltx-comfyui", "lora_unet_"),
    ("qwen-image", "lora_unet_"),
    ("qwen-image", "lycoris_"),
    ("sdxl-own", "lora_unet_"),
    ("sdxl-diffusers", "lora_unet_"),
    ("sdxl-diffusers", "lycoris_"),
]


def flat(name: str) -> str:
    return name.replace(".", "_")


def written(path: Path, stems: list[str]) -> difflora.Lora:
    """A LoRA of rank 1 for tiny weights."""
    save_file({stem + end: torch.ones(shape) for stem in stems for end, shape in ((DOWN, (1, 4)), (UP, (4, 1)))}, path)
    return difflora.load(path)


def stems_in(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return {key.removesuffix(DOWN) for key in file.keys() if key.endswith(DOWN)}  # noqa: SIM118 (no mapping)


@pytest.mark.parametrize(("model", "prefix"), FLAT)
def test_flat_names_are_read_selected_and_written_as_they_were(tmp_path, model, prefix):
    stems = {prefix + flat(name): name for name in names_of(model)}
    lora = written(tmp_path / "in.safetensors", list(stems))
    assert set(lora) == set(stems.values())
    difflora.save(lora, tmp_path / "out.safetensors", dialect="kohya")
    assert stems_in(tmp_path / "out.safetensors") == set(stems)
    attention = lora.select("attn")
    difflora.save(attention, tmp_path / "attn.safetensors", dialect="kohya")
    assert stems_in(tmp_path / "attn.safetensors") == {stem for stem, name in stems.items() if name in attention}


@pytest.mark.parametrize("dialect", OUTPUT_DIALECTS)
@pytest.mark.parametrize("model", WHOLE)
def test_what_is_written_reads_back_as_the_same_modules(tmp_path, model, dialect):
    names = names_of(model)
    lora = written(tmp_path / "in.safetensors", [f"lora_unet_{flat(name)}" for name in names])
    difflora.save(lora, tmp_path / "out.safetensors", dialect=dialect)
    again = difflora.load(tmp_path / "out.safetensors")
    assert set(again) == set(names)
    assert again.base_model == lora.base_model


@pytest.mark.parametrize(
    "name",
    [
        "blocks_0_self_attn_q",  # Wan's are read by Wan's table
        "layers_0_attention_to_q",
        "double_blocks_0_img_attn_qkv_extra",
        "double_blocks_x_img_attn_qkv",
        "double_blocks_#_img_attn_qkv",
        "double_blocks__img_attn_qkv",
        "double_blocks_0_0_img_attn_qkv",
        "input_blocks_4_transformer_blocks_0_attn1_to_q",
        "down_blocks_0_2_attention_attn_out_proj",
        "single_blocks_٣_linear1",
        "",
    ],
)
def test_a_flat_name_of_no_known_model_stays_as_it_is(name):
    assert dotted(name) is None
    if name and not name.startswith("blocks"):
        assert list(read_keys([f"lora_unet_{name}.alpha"]).modules) == [name]
        assert write_key(name, "alpha", "kohya") == f"lora_unet_{name}.alpha"


def test_hunyuans_own_dots_are_flux_dots(tmp_path):
    """Its own code says img_attn_qkv and self_attn_proj, without the dot that ComfyUI's has; trainers use either."""
    own = names_of("hunyuan-own")
    theirs = [name.replace("_attn.", "_attn_") for name in own]
    for prefix, dialect in (("diffusion_model.", "native"), ("transformer.", "diffusers")):
        lora = written(tmp_path / "own.safetensors", [prefix + name for name in theirs])
        assert set(lora) == set(own)
        base = lora.base_model
        assert base == "HunyuanVideo"
        assert {write_key(name, "", dialect, base)[:-1] for name in own} == {prefix + name for name in theirs}
        (tmp_path / "own.safetensors").unlink()
    refiner = "transformer.txt_in.individual_token_refiner.blocks.0.self_attn_qkv.lora_A.weight"
    assert list(read_keys([refiner]).modules) == ["txt_in.individual_token_refiner.blocks.0.self_attn.qkv"]


def test_attention_processors_are_modules_of_sdxl(tmp_path):
    """As diffusers' first training scripts for SDXL wrote them."""
    names = [name for name in names_of("sdxl-diffusers") if ".attn" in name]
    keys = {}
    for name in names:
        attention, _, projection = name.removesuffix(".0").rpartition(".")
        keys[f"unet.{attention}.processor.{projection}_lora.down.weight"] = name
    assert len(keys) == 560
    assert set(read_keys(keys).modules) == set(names)


def test_two_spellings_of_one_model_subtract(tmp_path):
    for model, prefix in (
        ("flux-own", "diffusion_model."),
        ("sdxl-diffusers", "unet."),
        ("qwen-image", "transformer."),
    ):
        names = names_of(model)
        a = written(tmp_path / f"{model}-a.safetensors", [f"lora_unet_{flat(name)}" for name in names])
        b = written(tmp_path / f"{model}-b.safetensors", [prefix + name for name in names])
        difference = difflora.subtract(a, b, weight_b=0.5)
        assert set(difference) == set(names)
        assert not difference.one_sided


def test_fluxs_own_names_and_those_in_diffusers_have_no_module_in_common(tmp_path):
    a = written(tmp_path / "a.safetensors", [f"lora_unet_{flat(name)}" for name in names_of("flux-own")])
    b = written(tmp_path / "b.safetensors", [f"transformer.{name}" for name in names_of("flux-diffusers")])
    with pytest.raises(PairError, match="in common"):
        difflora.subtract(a, b)


# --- The lists against the models --------------------------------------------------------------------------------

SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize(
    ("model", "kind", "config"),
    [
        ("flux-diffusers", "FluxTransformer2DModel", {"guidance_embeds": True}),
        ("hunyuan-diffusers", "HunyuanVideoTransformer3DModel", {}),
        ("ltx-diffusers", "LTXVideoTransformer3DModel", {}),
        ("qwen-image", "QwenImageTransformer2DModel", {}),
        ("sdxl-diffusers", "UNet2DConditionModel", SDXL),
    ],
)
def test_the_list_is_what_diffusers_has(model, kind, config):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        built = getattr(diffusers, kind)(**config)
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    assert {name for name, module in built.named_modules() if isinstance(module, layers)} == set(names_of(model))
