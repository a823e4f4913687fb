"""A LoRA out of two checkpoints."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import difflora
from difflora.errors import FileError, PairError
from difflora.extract import extract

Q = "blocks.0.self_attn.q"


@pytest.fixture
def models(tmp_path):
    """(base, tuned, the low-rank change of one weight): a base of two blocks, and a tune of rank 3 in three weights."""
    random = torch.Generator().manual_seed(0)
    base = {f"model.diffusion_model.blocks.{b}.self_attn.{p}.weight": torch.randn(640, 640, generator=random)
            for b in range(2) for p in "qk"}
    base["model.diffusion_model.blocks.0.norm3.weight"] = torch.ones(640)
    base["model.diffusion_model.patch_embedding.weight"] = torch.randn(64, 16, 1, 2, 2, generator=random)
    base["first_stage_model.unused"] = torch.zeros(2, dtype=torch.int64)
    up, down = torch.randn(640, 3, generator=random), torch.randn(3, 640, generator=random)
    tuned = {key.removeprefix("model."): value.clone() for key, value in base.items()}
    tuned[f"diffusion_model.{Q}.weight"] += up @ down * 0.1
    tuned["diffusion_model.blocks.0.norm3.weight"] += 0.5
    tuned["diffusion_model.patch_embedding.weight"] += 0.25
    save_file(base, tmp_path / "base.safetensors")
    shards = tmp_path / "tuned"
    shards.mkdir()
    keys = sorted(tuned)
    save_file({key: tuned[key] for key in keys[::2]}, shards / "model-00001-of-00002.safetensors")
    save_file({key: tuned[key] for key in keys[1::2]}, shards / "model-00002-of-00002.safetensors")
    return tmp_path / "base.safetensors", shards, (up @ down * 0.1).double().numpy()


def test_the_change_comes_out_at_its_rank(models, tmp_path):
    base, tuned, change = models
    small = difflora.rerank(extract(base, tuned), difflora.FixedRank(3))
    difflora.save(small, tmp_path / "out.safetensors")
    out = difflora.load(tmp_path / "out.safetensors")
    got = out[Q].dense(torch.float64).numpy()
    assert np.linalg.norm(got - change) < 1e-4 * np.linalg.norm(change)
    assert small.certificates[Q].excess <= 1e-3
    assert torch.allclose(out["blocks.0.norm3"].dense(), torch.full((640,), 0.5))
    assert out["patch_embedding"].shape == (64, 16, 1, 2, 2)
    assert torch.allclose(out["patch_embedding"].dense(), torch.full((64, 16, 1, 2, 2), 0.25), atol=1e-6)
    assert torch.equal(out["blocks.1.self_attn.k"].dense(), torch.zeros(640, 640))


def test_scaled_fp8_weights_count_with_their_scale(tmp_path):
    weight = torch.randn(32, 16).to(torch.float8_e4m3fn)
    save_file({"blocks.0.ffn.0.weight": weight.float() * 0.5}, tmp_path / "base.safetensors")
    save_file({"blocks.0.ffn.0.weight": weight, "blocks.0.ffn.0.scale_weight": torch.tensor(0.75)},
              tmp_path / "tuned.safetensors")
    change = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")["blocks.0.ffn.0"]
    assert torch.allclose(change.dense(), weight.float() * 0.25)


def test_what_cannot_be_a_fine_tune_is_said(models, tmp_path):
    base, tuned, _ = models
    save_file({f"{Q}.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(PairError, match="not a fine-tune"):
        extract(base, tmp_path / "other.safetensors")
    save_file({"x.weight": torch.zeros(3, 3)}, tmp_path / "strange.safetensors")
    with pytest.raises(PairError, match="no weight in common"):
        extract(base, tmp_path / "strange.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no .safetensors"):
        extract(base, tmp_path / "empty")
