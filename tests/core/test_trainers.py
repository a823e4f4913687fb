"""What metadata say: the trainer, Wan2.2's models, and an alpha that is nowhere else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import difflora
from difflora.names.trainers import trainer, wan22

SOFTWARE = json.dumps({"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit", "version": "0.10.28"})
KOHYA = {"ss_session_id": "1", "ss_network_module": "networks.lora_flux"}


@pytest.mark.parametrize(
    ("metadata", "dialect", "name"),
    [
        ({"software": SOFTWARE, "training_info": "{}", "format": "pt"}, "native", "ai-toolkit"),
        ({"modelspec.architecture": "Flux.1-dev/lora", "ot_branch": "master", "ot_revision": "ab12"}, "", "OneTrainer"),
        (KOHYA | {"ss_sd_scripts_commit_hash": "b612d0b0"}, "kohya", "kohya's sd-scripts"),
        (
            {"ss_sd_scripts_commit_hash": "b612d0b0", "ss_network_module": "lycoris.kohya"},
            "kohya",
            "kohya's sd-scripts with LyCORIS",
        ),
        ({"ss_session_id": "1", "ss_network_module": "networks.lora_wan"}, "kohya", "musubi-tuner"),
        ({"ss_session_id": "1", "ss_network_module": "networks.lora"}, "kohya", "musubi-tuner"),
        ({"ss_session_id": "1", "ss_network_module": "lycoris.kohya"}, "kohya", "musubi-tuner with LyCORIS"),
        ({"lora_adapter_metadata": "{}", "format": "pt"}, "diffusers", "diffusers"),
        ({"adapter_config": "{}"}, "native", "PEFT"),
        ({}, "peft", "PEFT"),
        ({}, "diffsynth", "DiffSynth-Studio"),
        ({}, "wan-fun", "VideoX-Fun"),
        ({}, "lycoris", "LyCORIS"),
        # Scripts that merge and resize write these without training anything.
        ({"ss_network_module": "networks.lora", "ss_network_dim": "4"}, "kohya", None),
        ({"format": "pt"}, "native", None),
        ({"software": "[" * 100_000}, "native", None),
        ({"software": '{"name": "<img src=x>"}'}, "native", None),
        # A slider of this pack keeps the entries of its files.
        (KOHYA | {"ss_sd_scripts_commit_hash": "b612", "difflora.recipe": "{}"}, "native", "Differential LoRA"),
    ],
)
def test_the_trainer_by_what_it_writes(metadata, dialect, name):
    assert trainer(metadata, dialect) == name


@pytest.mark.parametrize(
    ("metadata", "base"),
    [
        ({}, "Wan2.1/2.2 14B"),
        ({"modelspec.architecture": "wan2.1/lora"}, "Wan2.1/2.2 14B"),  # musubi-tuner, for 2.2 as well
        ({"ss_base_model_version": "wan_2.2_14b"}, "Wan2.2-A14B (T2V or I2V)"),
        ({"modelspec.architecture": "wan_2.2_14b_i2v"}, "Wan2.2-I2V-A14B"),
        ({"ss_base_model_version": "wan22_14b:t2v"}, "Wan2.2-T2V-A14B"),
        ({"ss_base_model_version": "Wan-Video/Wan2.2-T2V-A14B"}, "Wan2.2-T2V-A14B"),
        ({"ss_base_model_version": "wan2.2_i2v", "modelspec.architecture": "wan2.2_t2v"}, "Wan2.2-A14B (T2V or I2V)"),
    ],
)
def test_which_of_wans_14b_models_it_is(metadata, base):
    assert wan22("Wan2.1/2.2 14B", metadata) == base


@pytest.mark.parametrize("base", ["Wan2.1-I2V-14B", "Wan2.1-T2V-1.3B", "Flux", None])
def test_what_names_and_shapes_tell_is_not_changed(base):
    assert wan22(base, {"ss_base_model_version": "wan_2.2_14b_i2v"}) == base


def saved(path: Path, module: str, rank: int, width: int, metadata: dict[str, str]) -> difflora.Lora:
    tensors = {f"{module}.lora_A.weight": torch.ones(rank, width), f"{module}.lora_B.weight": torch.ones(width, rank)}
    save_file(tensors, path, metadata)
    return difflora.load(path)


def test_a_file_is_asked_for_both(tmp_path):
    name = "diffusion_model.blocks.0.self_attn.q"
    lora = saved(
        tmp_path / "a.safetensors", name, 2, 5120, {"software": SOFTWARE, "ss_base_model_version": "wan_2.2_14b_i2v"}
    )
    assert (lora.trainer, lora.base_model) == ("ai-toolkit", "Wan2.2-I2V-A14B")
    assert difflora.subtract(lora, lora, 1, 0.5).base_model == "Wan2.2-I2V-A14B"
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "adapter_config.json").write_text('{"lora_alpha": 2, "r": 2}')
    assert (
        saved(tmp_path / "pipe" / "adapter_model.safetensors", name, 2, 5120, {"format": "pt"}).trainer
        == "diffusion-pipe"
    )


def test_an_alpha_that_only_the_metadata_have_is_told(tmp_path):
    """ComfyUI reads such a file at scale 1; MiniMax H3 has them."""
    name = "diffusion_model.blocks.0.attn.out_proj"
    said = {"ss_network_dim": "4", "ss_network_alpha": "2.0"}
    lora = saved(tmp_path / "a.safetensors", name, 4, 64, said)
    assert torch.equal(lora["blocks.0.attn.out_proj"].dense(), torch.full((64, 64), 4.0))
    (warning,) = [str(line) for line in lora.warnings if "alpha" in line]
    assert "2 at rank 4" in warning and "strength is 0.5" in warning
    for other in (
        {},
        said | {"ss_network_alpha": "4"},
        said | {"ss_network_alpha": "Dynamic"},
        said | {"lora_alpha": "4"},
    ):
        assert not [line for line in saved(tmp_path / "b.safetensors", name, 4, 64, other).warnings if "alpha" in line]
