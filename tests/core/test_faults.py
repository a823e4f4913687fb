"""Modules that are damaged or do not fit: an error where they are used, and none where they are left out."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import difflora
from difflora.cli.commands import main
from difflora.errors import DiffLoraError, SelectionError
from difflora.lora.cache import deltas_of
from difflora.lora.extract import extract
from difflora.lora.selection import leaving_out
from difflora.rank.analysis import analyze_difference
from difflora.rank.calibrate import calibrate_norm
from tests.lora_files import FFN, K, Q, factors, kohya, write, write_pair

FAULTS = {
    "no up": lambda stored: stored.pop(f"{kohya(FFN)}.lora_up.weight"),
    "no down": lambda stored: stored.pop(f"{kohya(FFN)}.lora_down.weight"),
    "rank 0": lambda stored: stored.update(
        {
            f"{kohya(FFN)}.lora_up.weight": torch.zeros(40, 0),
            f"{kohya(FFN)}.lora_down.weight": torch.zeros(0, 16),
        }
    ),
    "other ranks": lambda stored: stored.update({f"{kohya(FFN)}.lora_up.weight": torch.zeros(40, 9)}),
    "alpha alone": lambda stored: [stored.pop(f"{kohya(FFN)}.lora_{part}.weight") for part in ("up", "down")],
    "alpha NaN": lambda stored: stored.update({f"{kohya(FFN)}.alpha": torch.tensor(float("nan"))}),
    "whole numbers": lambda stored: stored.update(
        {f"{kohya(FFN)}.lora_up.weight": torch.zeros(40, 4, dtype=torch.int8)}
    ),
    "half a LoHa": lambda stored: stored.update({f"{kohya(FFN)}.hada_w1_a": torch.ones(40, 2)}),
    "another shape": lambda stored: stored.update({f"{kohya(FFN)}.lora_down.weight": torch.ones(4, 24)}),
}


@pytest.fixture(params=FAULTS)
def pair(request, tmp_path):
    """A is damaged in its feed-forward, or has another shape there than B; its attention is sound."""
    a, b = write_pair(tmp_path)
    stored = load_file(a)
    FAULTS[request.param](stored)
    save_file(stored, a)
    return a, b


@pytest.fixture
def plain(tmp_path):
    """The same pair without that module: what has to come out."""
    folder = tmp_path / "plain"
    folder.mkdir()
    paths = write_pair(folder)
    for path in paths:
        save_file({key: value for key, value in load_file(path).items() if not key.startswith(kohya(FFN))}, path)
    return paths


def equal(one, other):
    assert list(one) == list(other)
    return all(torch.equal(one[name].dense(), other[name].dense()) for name in one)


def test_what_leaves_the_module_out_works_as_if_it_were_not_there(pair, plain):
    (a, b), (c, d) = map(difflora.load, pair), map(difflora.load, plain)
    expected = difflora.subtract(c, d)
    assert equal(difflora.subtract(a, b).select("attn"), expected)
    assert equal(difflora.subtract(a, b, unmatched="drop"), expected)
    assert equal(difflora.subtract(a.select("attn"), b.select("attn")), expected)
    small = difflora.rerank(difflora.subtract(a, b).select(f'!"{FFN}"'), difflora.FixedRank(2))
    assert equal(small, difflora.rerank(expected, difflora.FixedRank(2)))


@pytest.mark.parametrize(
    "use",
    [
        lambda lora, out: lora.prepare(),
        lambda lora, out: difflora.rerank(lora, difflora.FixedRank(2)),
        lambda lora, out: difflora.save(lora, out),
        lambda lora, out: deltas_of(lora),
        lambda lora, out: analyze_difference(lora),
        lambda lora, out: calibrate_norm(lora, 1.0),
        lambda lora, out: difflora.purify(lora, [difflora.load(write(out, {Q: factors(24, 16, seed=9)}))]),
        lambda lora, out: difflora.rerank(lora.scaled(2.0), difflora.FixedRank(2)),
        lambda lora, out: difflora.rerank(lora.select("all"), difflora.FixedRank(2)),
    ],
    ids=["prepare", "rerank", "save", "slider", "analyze", "calibrate", "purify", "scaled", "selected"],
)
def test_whoever_uses_all_modules_is_told_which_selection_goes_on(use, pair, tmp_path):
    difference = difflora.subtract(*map(difflora.load, pair))
    with pytest.raises(DiffLoraError, match="To go on without it, add (.*) to the selection") as caught:
        use(difference, tmp_path / "out.safetensors")
    assert FFN in str(caught.value) or kohya(FFN) in str(caught.value)
    term = re.search("add (.*) to the selection", str(caught.value))[1]
    use(difference.select(term), tmp_path / "out.safetensors")
    use(difference.select("attn, ffn, " + term), tmp_path / "other.safetensors")


def test_the_module_alone_is_its_error(pair):
    difference = difflora.subtract(*map(difflora.load, pair))
    with pytest.raises(DiffLoraError) as caught:
        difference.select(f'"{FFN}"')
    assert not isinstance(caught.value, SelectionError)
    with pytest.raises(DiffLoraError):
        difference[FFN]


@pytest.mark.parametrize(
    "more", [["--select", "attn"], ["--unmatched", "drop"], ["--select", f'!"{FFN}"', "--lossless"]]
)
def test_the_command_line_goes_on_without_it(more, pair, plain, tmp_path, capsys):
    for name, (a, b) in (("one", pair), ("two", plain)):
        assert main(["subtract", str(a), str(b), "-o", str(tmp_path / f"{name}.safetensors"), *more]) == 0
    assert "left out: " + FFN in capsys.readouterr().err
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_command_line_offers_the_selection(pair, tmp_path, capsys):
    assert main(["subtract", *map(str, pair), "-o", str(tmp_path / "out.safetensors")]) == 2
    assert f'add !"{FFN}" to the selection' in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_inspect_shows_what_is_wrong(tmp_path, capsys):
    a, _ = write_pair(tmp_path)
    stored = load_file(a)
    FAULTS["no up"](stored)
    save_file(stored, a)
    assert main(["inspect", str(a), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["faults"]) == [FFN] and "nothing for its up side" in report["faults"][FFN]
    assert report["matrices"] == 2
    assert main(["inspect", str(a)]) == 0
    assert "nothing for its up side" in capsys.readouterr().err


def test_a_damaged_part_of_fused_weights_is_a_fault_of_each_piece(tmp_path):
    fused = "blocks.0.self_attn.qkv"
    whole = write(tmp_path / "a.safetensors", {fused: factors(72, 16), K: factors(24, 16), FFN: factors(40, 16)})
    stored = load_file(whole)
    stored.pop(f"{kohya(fused)}.lora_up.weight")
    save_file(stored, whole)
    lora = difflora.load(whole)
    assert sorted(lora) == sorted([K, FFN])
    assert sorted(lora.faults) == [f"blocks.0.self_attn.{part}" for part in "kqv"]
    assert sorted(difflora.rerank(lora.select("cross_attn"), difflora.FixedRank(2))) == [K]


def test_weights_of_other_shapes_in_checkpoints(tmp_path):
    """Text-to-video against image-to-video: patch_embedding has more inputs."""
    paths = []
    for name, inputs, seed in (("base", 16, 0), ("tuned", 36, 1)):
        random = torch.Generator().manual_seed(seed)
        weights = {
            f"blocks.{b}.self_attn.{p}.weight": torch.randn(64, 64, generator=random) for b in range(2) for p in "qk"
        }
        weights["patch_embedding.weight"] = torch.randn(64, inputs, 1, 2, 2, generator=random)
        save_file(weights, tmp_path / f"{name}.safetensors")
        paths.append(tmp_path / f"{name}.safetensors")
    lora = extract(*paths)
    with pytest.raises(DiffLoraError, match='patch_embedding.*add !"patch_embedding" to the selection'):
        difflora.rerank(lora, difflora.FixedRank(2))
    assert len(difflora.rerank(lora.select("attn"), difflora.FixedRank(2))) == 4
    out = tmp_path / "out.safetensors"
    assert main(["extract", *map(str, paths), "-o", str(out)]) == 2
    assert main(["extract", *map(str, paths), "-o", str(out), "--select", "attn"]) == 0


def test_many_modules_are_left_out_by_what_they_have_in_common():
    names = [f"blocks.{block}.ffn.{part}" for block in range(40) for part in (0, 2)]
    term = leaving_out([*names, "head.head"])
    assert term == '!blocks.*.ffn.0, !blocks.*.ffn.2, !"head.head"'
    chosen = difflora.lora.selection.Selection.parse(term).weights([*names, "head.head", "blocks.3.self_attn.q"])
    assert list(chosen) == ["blocks.3.self_attn.q"]
    assert leaving_out([f"other.{word}" for word in "abcdef"]) is None
