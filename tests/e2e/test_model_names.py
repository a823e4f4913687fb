"""ComfyUI finds the same weight by the name that we write as by the name that we read, in models other than Wan."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from difflora.names.keys import KOHYA, NATIVE, read_keys, write_key
from tests.conftest import absent
from tests.model_names import names_of

pytestmark = pytest.mark.comfy

# A list of names, ComfyUI's model, what stands before the names in files, the base model that a file shows.
SPELLINGS = [
    ("flux-own", "flux", ("lora_unet_", "diffusion_model."), "Flux"),
    ("flux-diffusers", "flux", ("lora_transformer_", "lycoris_", "transformer."), "Flux"),
    ("hunyuan-own", "hunyuan", ("transformer.", "diffusion_model."), "HunyuanVideo"),
    ("hunyuan-comfyui", "hunyuan", ("lora_unet_", "diffusion_model."), "HunyuanVideo"),
    ("ltx-comfyui", "ltx", ("lora_unet_", "diffusion_model."), "LTX-Video"),
    ("qwen-image", "qwen-image", ("lora_unet_", "lycoris_", "transformer.", "diffusion_model."), "Qwen-Image"),
    ("sdxl-own", "sdxl", ("lora_unet_", "diffusion_model."), "SDXL"),
    ("sdxl-diffusers", "sdxl", ("lora_unet_", "lycoris_"), "SDXL"),
]
SPELLINGS = [(names, model, prefix, base) for names, model, prefixes, base in SPELLINGS for prefix in prefixes]


@pytest.fixture(scope="module")
def comfyui():
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        absent("COMFYUI_DIR does not say where a ComfyUI is; python bootstrap.py test brings one")
    script = Path(__file__).parents[1] / "comfyui_keys.py"
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    run = subprocess.run([python, script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("names", "model"),
    [
        ("flux-own", "flux"),
        ("hunyuan-comfyui", "hunyuan"),
        ("ltx-comfyui", "ltx"),
        ("qwen-image", "qwen-image"),
        ("sdxl-own", "sdxl"),
    ],
)
def test_the_list_is_what_comfyui_has(comfyui, names, model):
    assert set(names_of(names)) == set(comfyui[model]["modules"])


def spelled(name, prefix, names):
    if names == "hunyuan-own":
        name = name.replace("_attn.", "_attn_")
    return prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


@pytest.mark.parametrize(("names", "model", "prefix", "base"), SPELLINGS)
def test_comfyui_finds_the_same_weight_by_what_is_written(comfyui, names, model, prefix, base):
    known = comfyui[model]["names"]
    stems = [spelled(name, prefix, names) for name in names_of(names)]
    found = read_keys([f"{stem}.alpha" for stem in stems])
    for module, parts in found.modules.items():
        stem = parts["alpha"].removesuffix(".alpha")
        # By HunyuanVideo's own names, ComfyUI knows no flat ones; those are for musubi-tuner.
        for dialect in (NATIVE,) if names == "hunyuan-own" else (NATIVE, KOHYA):
            key = write_key(module, "alpha", dialect, base, found.flat_prefix).removesuffix(".alpha")
            assert (key, known.get(key)) == (key, known[stem])


@pytest.mark.parametrize(("names", "model", "prefix", "base"), [row for row in SPELLINGS if row[2].endswith("_")])
def test_a_flat_name_alone_is_enough(comfyui, names, model, prefix, base):
    """A file of one module does not show its base model; then the prefix tells Flux from the others."""
    known = comfyui[model]["names"]
    for name in names_of(names):
        stem = spelled(name, prefix, names)
        found = read_keys([f"{stem}.alpha"])
        (module,) = found.modules
        if module == "head.head":
            assert name == "proj_out"  # alone, it is Wan's
            continue
        for dialect in (NATIVE, KOHYA):
            key = write_key(module, "alpha", dialect, None, found.flat_prefix).removesuffix(".alpha")
            assert (key, known.get(key)) == (key, known[stem])
