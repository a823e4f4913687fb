"""A LoRA out of two checkpoints."""

import json
import os
import shutil
import sys
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import difflora
from difflora.cli.commands import main
from difflora.errors import DiffLoraError, FileError, PairError
from difflora.lora.extract import extract

Q = "blocks.0.self_attn.q"


@pytest.fixture
def models(tmp_path):
    """(base, tuned, the low-rank change of one weight): a base of two blocks, and a tune of rank 3 in three weights."""
    random = torch.Generator().manual_seed(0)
    base = {
        f"model.diffusion_model.blocks.{b}.self_attn.{p}.weight": torch.randn(640, 640, generator=random)
        for b in range(2)
        for p in "qk"
    }
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
    save_file(
        {"blocks.0.ffn.0.weight": weight, "blocks.0.ffn.0.scale_weight": torch.tensor(0.75)},
        tmp_path / "tuned.safetensors",
    )
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


# On the command line


def test_the_command_writes_and_reports(models, tmp_path, run):
    base, tuned, change = models
    out = tmp_path / "out.safetensors"
    told = json.loads(run("extract", base, tuned, "-o", out, "--rank", "3", "--select", "blocks", "--json"))
    got = difflora.load(out)[Q].dense(torch.float64).numpy()
    assert np.linalg.norm(got - change) < 1e-4 * np.linalg.norm(change)
    assert 0.999 < told["retained_energy"] <= 1
    assert set(told["stored_in_full"]) == {f"blocks.{b}.self_attn.{p}" for b in range(2) for p in "qk"}
    assert all(excess <= 1e-3 for excess in told["stored_in_full"].values())
    assert told["skipped"] == [{"why": "not selected", "modules": ["patch_embedding"]}]
    text = run("extract", base, tuned, "-o", tmp_path / "table.safetensors", "--energy", "0.9")
    assert "stored in full" in text and "retained energy" in text


@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_input_is_overwritten(models, capsys, which):
    base, tuned, _ = models
    path = [base, *sorted(tuned.iterdir())][which]
    before = path.read_bytes()
    assert main(["extract", str(base), str(tuned), "-o", str(path), "--overwrite"]) == 2
    assert "one of the inputs" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_inspect_and_rebuild_know_an_extract(models, tmp_path, capsys, run):
    base, tuned, _ = models
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    run("extract", base, tuned, "-o", out, "--rank", "2", "--scale", "0.5", "--dtype", "bfloat16")
    assert "rank fixed 2 of (0.5 × (model tuned - model base.safetensors))" in run("inspect", out)
    moved = tmp_path / "moved"
    moved.mkdir()
    base.rename(moved / "b.safetensors")
    for place, shard in enumerate(sorted(tuned.iterdir(), reverse=True)):
        shard.rename(moved / f"{place}.safetensors")
    told = json.loads(run("rebuild", out, "--inputs", moved, "-o", again, "--json"))
    assert told["identical"]
    assert all(torch.equal(value, load_file(again)[key]) for key, value in load_file(out).items())
    assert main(["rebuild", str(out), "--inputs", str(moved), "-o", str(moved / "0.safetensors"), "--overwrite"]) == 2
    assert "one of the inputs" in capsys.readouterr().err
    (moved / "0.safetensors").unlink()
    assert main(["rebuild", str(out), "--inputs", str(moved), "-o", str(tmp_path / "third.safetensors")]) == 2
    assert "tuned (SHA-256" in capsys.readouterr().err


# What is taken of a checkpoint


def test_what_is_left_out_is_said(tmp_path):
    shared = {"blocks.0.ffn.0.weight": torch.zeros(4, 4)}
    save_file(
        shared | {"blocks.0.ffn.2.weight": torch.zeros(4, 4), "blocks.1.ffn.0.weight": torch.zeros(4, 4)},
        tmp_path / "base.safetensors",
    )
    save_file(
        {
            "blocks.0.ffn.0.weight": torch.ones(4, 4),
            "blocks.0.ffn.2.weight": torch.ones(4, 4, dtype=torch.int8),
            "blocks.2.ffn.0.weight": torch.ones(4, 4),
        },
        tmp_path / "tuned.safetensors",
    )
    change = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    assert list(change) == ["blocks.0.ffn.0"]
    text = "\n".join(change.warnings)
    assert "1 weight is in tuned.safetensors only, and left out: blocks.2.ffn.0.weight" in text
    assert "2 weights are in base.safetensors only" in text
    assert "tuned.safetensors: 1 weight is stored as whole numbers, and left out: blocks.0.ffn.2.weight" in text


def test_two_checkpoints_of_whole_numbers_are_said_to_be_such(tmp_path):
    save_file({"blocks.0.ffn.0.weight": torch.zeros(4, 4, dtype=torch.int8)}, tmp_path / "base.safetensors")
    save_file({"blocks.0.ffn.0.weight": torch.ones(4, 4)}, tmp_path / "tuned.safetensors")
    with pytest.raises(PairError, match="whole numbers"):
        extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")


def test_of_a_full_checkpoint_only_the_diffusion_model_counts(tmp_path):
    def checkpoint(value):
        return {
            "model.diffusion_model.input_blocks.1.0.emb_layers.1.weight": torch.full((4, 4), value),
            "first_stage_model.encoder.conv_in.weight": torch.full((4, 4, 3, 3), value),
            "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.full((4,), value),
        }

    save_file(checkpoint(0.0), tmp_path / "base.safetensors")
    save_file(checkpoint(1.0), tmp_path / "tuned.safetensors")
    change = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    assert list(change) == ["input_blocks.1.0.emb_layers.1"]
    assert any("2 keys were ignored" in line for line in change.warnings)


def test_diffusers_names_become_the_models_own(tmp_path):
    theirs = {
        "blocks.0.attn1.to_q.weight": torch.ones(8, 8),
        "blocks.0.attn1.to_q.bias": torch.full((8,), 2.0),
        "blocks.0.scale_shift_table": torch.full((1, 6, 8), 3.0),
        "scale_shift_table": torch.full((1, 2, 8), 4.0),
        "blocks.0.norm2.weight": torch.full((8,), 5.0),
        "proj_out.weight": torch.full((8, 8), 6.0),
    }
    ours = {"self_attn.q.weight": (8, 8), "self_attn.q.bias": (8,), "modulation": (1, 6, 8), "norm3.weight": (8,)}
    base = {f"model.diffusion_model.blocks.0.{name}": torch.zeros(shape) for name, shape in ours.items()}
    base |= {
        "model.diffusion_model.head.modulation": torch.zeros(1, 2, 8),
        "model.diffusion_model.head.head.weight": torch.zeros(8, 8),
    }
    save_file(base, tmp_path / "base.safetensors")
    save_file(theirs, tmp_path / "tuned.safetensors")
    change = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    assert {name: float(delta.dense().max()) for name, delta in change.items()} == {
        Q: 1,
        f"{Q}.bias": 2,
        "blocks.0.norm3": 5,
        "blocks.0.modulation": 3,
        "head.head": 6,
        "head.modulation": 4,
    }
    assert change.warnings == ()


# Two checkpoints that do not differ


@pytest.fixture
def no_work(monkeypatch):
    def approximate(*_):
        raise AssertionError("approximated")

    monkeypatch.setattr(sys.modules["difflora.rank.factorisation"], "approximate", approximate)


@pytest.mark.parametrize(
    "make", [lambda file, link: file, os.symlink, os.link, lambda file, link: file.parent / "." / file.name]
)
def test_a_model_and_itself_are_refused_by_name(models, tmp_path, make):
    base, tuned, _ = models
    other = make(base, tmp_path / "link.safetensors") or tmp_path / "link.safetensors"
    with pytest.raises(PairError, match=r"the same file: their difference is zero\. Choose a fine-tuned model"):
        extract(base, other)
    with pytest.raises(PairError, match="the same file"):
        extract(tuned, tuned)


@pytest.mark.parametrize("rule", [difflora.FixedRank(2), difflora.Energy(0.9), None])
def test_a_copy_is_refused_before_any_work(models, tmp_path, no_work, rule):
    base, _, _ = models
    (tmp_path / "out").mkdir()
    shutil.copy(base, tmp_path / "copy.safetensors")
    same = extract(base, tmp_path / "copy.safetensors")
    with pytest.raises(PairError, match=r"^copy.safetensors and base.safetensors: both sides hold the same weights"):
        difflora.save(
            same if rule is None else difflora.rerank(same.scaled(2.0), rule), tmp_path / "out" / "x.safetensors"
        )
    assert not list((tmp_path / "out").iterdir())


def test_a_selection_in_which_nothing_was_trained_is_refused_before_any_work(models, no_work):
    base, tuned, _ = models
    for nullify in (False, True):
        with pytest.raises(PairError, match="both sides hold the same weights, at least where they were chosen"):
            difflora.rerank(
                extract(base, tuned).select("blocks 1", nullify), difflora.FixedRank(2), progress=lambda *_: None
            )


# What is said of the two


def test_both_checkpoints_are_named_in_the_result(models, tmp_path):
    base, tuned, _ = models
    small = difflora.rerank(extract(base, tuned), difflora.FixedRank(2))
    difflora.save(small, tmp_path / "out.safetensors")
    assert difflora.load(tmp_path / "out.safetensors").metadata["modelspec.merged_from"] == "tuned, base"


@pytest.mark.parametrize("change", [lambda lora: lora, lambda lora: lora.select("self_attn").scaled(2.0)])
@pytest.mark.parametrize("rule", [difflora.FixedRank(2), difflora.Energy(0.9), None])
def test_a_weight_that_is_not_finite_is_named(models, tmp_path, change, rule):
    base, tuned, _ = models
    weights = load_file(base)
    weights[f"model.diffusion_model.{Q}.weight"][3, 4] = torch.nan
    save_file(weights, tmp_path / "damaged.safetensors")
    lora = change(extract(base, tmp_path / "damaged.safetensors"))
    with pytest.raises(FileError, match=rf"^damaged.safetensors: model.diffusion_model.{Q}.weight holds NaN"):
        difflora.save(lora if rule is None else difflora.rerank(lora, rule), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# Hashes, cancel


def test_inputs_are_hashed_beside_the_work_and_waiting_for_them_can_be_cancelled(models, tmp_path, monkeypatch):
    base, tuned, _ = models
    (tmp_path / "out").mkdir()
    hashing, stopped, calls = threading.Event(), threading.Event(), []

    def never_done(identity, stop):
        hashing.set()
        stop.wait()
        stopped.set()
        raise CancelledError

    class Stop(Exception):
        pass

    def progress(done, total):
        calls.append(done)
        assert hashing.wait(60)
        if calls.count(total) > 3:
            raise Stop

    monkeypatch.setattr(sys.modules["difflora.saving.save"], "file_sha256", never_done)
    lora = difflora.rerank(extract(base, tuned), difflora.FixedRank(2))
    with pytest.raises(Stop):
        difflora.save(lora, tmp_path / "out" / "x.safetensors", progress=progress)
    assert stopped.is_set() and max(calls) == len(lora) and calls == sorted(calls)
    assert not list((tmp_path / "out").iterdir())


def test_ctrl_c_within_a_module_leaves_nothing(models, tmp_path, monkeypatch, capsys):
    base, tuned, _ = models
    (tmp_path / "out").mkdir()
    real = sys.modules["difflora.rank.factorisation"].approximate

    def interrupted(matrix, rank, tick):
        def stop():
            raise KeyboardInterrupt

        return real(matrix, rank, stop)

    monkeypatch.setattr(sys.modules["difflora.rank.factorisation"], "approximate", interrupted)
    for rule in ("--rank=4", "--energy=0.9"):
        assert main(["extract", str(base), str(tuned), "-o", str(tmp_path / "out" / "x.safetensors"), rule]) == 2
        assert capsys.readouterr().err == "difflora: interrupted; nothing was written.\n"
    assert not list((tmp_path / "out").iterdir())


def test_a_checkpoint_that_changes_meanwhile_is_no_input(models, tmp_path):
    base, tuned, _ = models
    (tmp_path / "out").mkdir()

    def progress(done, total):
        if done == 2:
            os.utime(base, ns=(1, 1))

    with pytest.raises(FileError, match=r"base.safetensors: the file changed after it was loaded"):
        difflora.save(
            difflora.rerank(extract(base, tuned), difflora.FixedRank(2)),
            tmp_path / "out" / "x.safetensors",
            progress=progress,
        )
    assert not list((tmp_path / "out").iterdir())


# Shards and scales


def indexed(folder, names):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"{n}.weight": n for n in names}}))


def test_a_missing_shard_is_an_error(models, tmp_path):
    base, tuned, _ = models
    shards = sorted(tuned.iterdir())
    indexed(tuned, [shard.name for shard in shards])
    assert len(extract(base, tuned).dense) == 4
    indexed(tuned, [*(shard.name for shard in shards), "extra-a.safetensors", "extra-b.safetensors"])
    with pytest.raises(
        FileError, match=r"^tuned: 2 shards of this model are not there, the first is extra-a.safetensors"
    ):
        extract(base, tuned)
    (tuned / "model.safetensors.index.json").unlink()
    shards[0].unlink()
    with pytest.raises(
        FileError, match=rf"^tuned: 1 shards of this model are not there, the first is {shards[0].name}"
    ):
        extract(base, tuned)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "\ud800", "[" * 100_000])
def test_an_index_that_cannot_be_read_is_an_error(models, text):
    base, tuned, _ = models
    (tuned / "model.safetensors.index.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileError, match="^tuned: the index model.safetensors.index.json cannot be read"):
        extract(base, tuned)


def test_a_weight_in_two_shards_is_an_error(models, tmp_path):
    base, tuned, _ = models
    shutil.copy(sorted(tuned.iterdir())[0], tuned / "again.safetensors")
    with pytest.raises(FileError, match="is in again.safetensors and in model-00001-of-00002.safetensors"):
        extract(base, tuned)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((), True),
        ((1,), True),
        ((1, 1), True),
        ((8,), True),
        ((8, 1), True),
        ((1, 8), False),
        ((2, 2), False),
        ((4,), False),
        ((0,), False),
    ],
)
def test_scales_are_of_the_whole_or_of_the_rows(tmp_path, shape, scales):
    weight = torch.randn(8, 8).to(torch.float8_e4m3fn)
    factor = torch.rand(shape) + 1
    save_file({"blocks.0.ffn.0.weight": torch.zeros(8, 8)}, tmp_path / "base.safetensors")
    save_file({"blocks.0.ffn.0.weight": weight, "blocks.0.ffn.0.scale_weight": factor}, tmp_path / "tuned.safetensors")
    change = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    if scales:
        whole = weight.float() * (factor.reshape(-1, 1) if factor.numel() == 8 else factor.reshape(()))
        assert torch.allclose(change["blocks.0.ffn.0"].dense(), whole)
    else:
        with pytest.raises(DiffLoraError, match="one for all or one for each row was expected"):
            _ = change["blocks.0.ffn.0"]
