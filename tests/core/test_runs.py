"""Checkpoints of a pair of trainings: found by their names, followed step by step, against dense matrices."""

import csv
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from difflora import load
from difflora.errors import FileError, PairError
from difflora.training.runs import Run, common_numbers, compare_runs, find_runs, pair_of_files, to_csv, to_text

MODULES = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.cross_attn.v")
SHAPE, RANK = (24, 16), 3


def write_checkpoint(path: Path, factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    tensors = {}
    for name, (up, down) in factors.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


@pytest.fixture
def pair(tmp_path):
    """Two trainings that share a start and drift apart; (folder, step -> (A, B) as one long dense vector)."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    shared = {name: (draw(SHAPE[0], RANK), draw(RANK, SHAPE[1])) for name in MODULES}
    own = [{name: draw(SHAPE[0], RANK) for name in MODULES} for _ in range(2)]
    truth = {}
    for step in (500, 1000, 1500):
        dense = []
        for side, moved in zip(("detailed", "sparse"), own, strict=True):
            factors = {name: (up + moved[name] * step / 2000, down) for name, (up, down) in shared.items()}
            write_checkpoint(tmp_path / f"{side}/slider_{side}-step{step:08}.safetensors", factors)
            if step == 1500:
                write_checkpoint(tmp_path / f"{side}/slider_{side}.safetensors", factors)
            dense.append(torch.cat([(up.double() @ down.double()).flatten() / RANK for up, down in factors.values()]))
        truth[step] = tuple(dense)
    return tmp_path, truth


def runs_of(folder: Path) -> dict[str, Run]:
    return find_runs(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def test_runs_are_found_by_their_names():
    runs = find_runs(
        [
            "a/slider-step00001000.safetensors",
            "a/slider-step00000500.safetensors",
            "a/slider.safetensors",
            "b\\slider-step00000500.safetensors",
            "style-000010.safetensors",
            "style-000002.safetensors",
            "both-step00000100.safetensors",
            "both-000001.safetensors",
            "wan2.1-step12.safetensors",
            "alone.safetensors",
            "model-00001-of-00003.safetensors",
            "notes-step00000100.txt",
        ]
    )
    assert set(runs) == {"a/slider", "b\\slider", "both", "both (epochs)", "style"}
    assert list(runs["a/slider"].files) == [500, 1000], "in the order of training"
    assert runs["a/slider"].final == "a/slider.safetensors"
    assert runs["b\\slider"].final is None
    assert (runs["style"].unit, list(runs["style"].files)) == ("epoch", [2, 10])
    assert (runs["both"].unit, runs["both (epochs)"].unit) == ("step", "epoch")


def test_a_step_is_picked_and_a_missing_one_named():
    run = find_runs([f"x-step{step:08}.safetensors" for step in (500, 1000)])["x"]
    assert run.file(500) == "x-step00000500.safetensors"
    assert run.file(0) == "x-step00001000.safetensors", "without a final file, the last there is"
    with pytest.raises(FileError, match="x has no checkpoint of step 600. It has 500, 1000"):
        run.file(600)


def test_only_steps_that_both_have_are_compared():
    a = find_runs(["a-step00000500.safetensors", "a-step00001000.safetensors", "a.safetensors"])["a"]
    b = find_runs(["b-step00001000.safetensors", "b-step00001500.safetensors", "b.safetensors"])["b"]
    assert common_numbers(a, b) == [1000, 0]
    epochs = find_runs(["c-000500.safetensors", "c-001000.safetensors"])["c"]
    with pytest.raises(PairError, match="no checkpoint in common .*a: step 500, 1000; c: epoch 500, 1000"):
        common_numbers(a, epochs)


def test_numbers_are_those_of_the_dense_matrices(pair):
    folder, truth = pair
    runs = runs_of(folder)
    seen = []
    moments = compare_runs(
        runs["detailed/slider_detailed"],
        runs["sparse/slider_sparse"],
        lambda file: load(folder / file),
        lambda done, of: seen.append((done, of)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [moment.number for moment in moments] == [500, 1000, 1500, 0]
    before = None
    for moment in moments:
        a, b = truth[moment.number or 1500]
        assert moment.norm_a == pytest.approx(a.norm().item(), rel=1e-5)
        assert moment.norm_b == pytest.approx(b.norm().item(), rel=1e-5)
        assert moment.norm == pytest.approx((a - b).norm().item(), rel=1e-5)
        assert moment.cosine == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=1e-6)
        singular = [torch.linalg.svdvals(part.view(SHAPE)) for part in (a - b).chunk(len(MODULES))]
        kept = sum(values[:4].square().sum() for values in singular) / sum(values.square().sum() for values in singular)
        assert moment.energy == pytest.approx(kept.item(), abs=1e-6)
        if before is None or moment.number == 0:
            assert moment.direction is None
        else:
            assert moment.direction == pytest.approx(torch.cosine_similarity(before, a - b, dim=0).item(), abs=1e-6)
        before = a - b
    assert moments[0].cosine > moments[2].cosine, "the longer the training, the more the two differ"
    assert [moment.repeats for moment in moments] == [None, None, None, 1500], (
        "the end is the last checkpoint once more"
    )


def test_table_and_text_have_a_line_for_each_step(pair):
    folder, _ = pair
    runs = runs_of(folder)
    moments = compare_runs(*runs.values(), read=lambda file: load(folder / file))
    rows = list(csv.DictReader(io.StringIO(to_csv(moments, "step"))))
    assert [row["step"] for row in rows] == ["500", "1000", "1500", "end"]
    assert float(rows[1]["cosine"]) == pytest.approx(moments[1].cosine, abs=1e-5)
    assert rows[0]["direction"] == ""
    lines = to_text(moments, "step").splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1, "columns line up"
    assert "as 1500" in lines[-1] and rows[-1]["direction"] == ""


def test_the_same_training_twice_is_no_pair(pair):
    folder, _ = pair
    run = runs_of(folder)["sparse/slider_sparse"]
    with pytest.raises(PairError, match="hold the same weights"):
        compare_runs(run, run, lambda file: load(folder / file))


def test_the_end_of_both_is_one_moment_or_an_error():
    steps = ["x-step00000500.safetensors", "x-step00001000.safetensors"]
    ended, running = (find_runs(files)["x"] for files in ([*steps, "x.safetensors"], steps))
    shorter = find_runs(steps[:1])["x"]
    assert pair_of_files(ended, ended, 0) == ("x.safetensors", "x.safetensors")
    assert pair_of_files(running, running, 0) == (steps[1], steps[1])
    assert pair_of_files(ended, running, 0, 1000) == ("x.safetensors", steps[1])
    assert pair_of_files(ended, running, 500) == (steps[0], steps[0])
    for other in (running, shorter):
        with pytest.raises(PairError, match="not of the same moment"):
            pair_of_files(ended, other, 0)
    with pytest.raises(PairError, match=r"step 1000 and x step 500.*\(500\)"):
        pair_of_files(running, shorter, 0)
