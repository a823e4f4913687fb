"""Whole models: what trainers call their modules is read as the model's own, exactly, and written back."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import difflora
from difflora.errors import FileError, SelectionError, TensorError
from difflora.lora.deltas import LowRank, Term, Vector
from difflora.lora.pieces import widened
from difflora.lora.selection import Selection
from difflora.names import families
from difflora.names.families import FAMILIES
from difflora.names.keys import OUTPUT_DIALECTS, read_keys
from tests.model_names import names_of, write_key

DOWN, UP = ".lora_down.weight", ".lora_up.weight"
ROWS = 210  # can be divided by 2, 3, 5 and 7
# A list of names from outside, who writes them flat, and the family that they are of.
FLAT = [
    ("flux-own", "lora_unet_", "Flux"),
    ("flux-diffusers", "lora_transformer_", "Flux"),  # OneTrainer
    ("flux-diffusers", "lycoris_", "Flux"),  # SimpleTuner
    ("hunyuan-own", "lora_unet_", "HunyuanVideo"),
    ("hunyuan-comfyui", "lora_unet_", "HunyuanVideo"),
    ("hunyuan-diffusers", "lora_unet_", "HunyuanVideo"),
    ("ltx-comfyui", "lora_unet_", "LTX-Video"),
    ("qwen-image", "lora_unet_", "Qwen-Image"),
    ("qwen-image", "lycoris_", "Qwen-Image"),
    ("sdxl-own", "lora_unet_", "SDXL"),
    ("sdxl-diffusers", "lora_unet_", "SDXL"),
    ("sdxl-diffusers", "lycoris_", "SDXL"),
]


def flat(name: str) -> str:
    return name.replace(".", "_")


def product(rows: int, columns: int, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(rows, rank), torch.randn(rank, columns)


def written(path: Path, factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> difflora.Lora:
    save_file(
        {
            stem + end: t.clone().contiguous()
            for stem, pair in factors.items()
            for end, t in zip((UP, DOWN), pair, strict=True)
        },
        path,
    )
    return difflora.load(path)


@pytest.mark.parametrize(("model", "prefix", "family"), FLAT)
def test_flat_names_are_read_as_the_models_own(model, prefix, family):
    stems = [prefix + flat(name) for name in names_of(model)]
    keys = {}
    for stem in stems:
        keys[stem + UP] = (640, 1)
        keys[stem + DOWN] = (1, 2048 if "attn2_to_" in stem else 640)
    found = read_keys(keys, {}, shape_of=keys.__getitem__)
    assert family in [one.name for one in found.families]
    own = {piece.module for module in found.modules for piece in found.pieces.get(module, ())} | (
        found.modules.keys() - found.pieces.keys()
    )
    assert not [name for name in own if families.own(name) is None]
    assert not (found.unknown or found.foreign or found.text_encoder)


def small(family, rank=2):
    """A change of every matrix of a small model of a family: two blocks a stack, 210 x 6."""
    own = {}
    for template, _ in family.own:
        if template in family.bare or families.is_norm(template.replace("#", "0")):
            continue
        numbers = [("0", "0", "0"), ("1", "1", "1")] if "#" in template else [()]
        for at in numbers:
            name = families.filled(template, at[: template.count("#")])
            own[name] = product(ROWS, 6, rank, len(own))
    return own


@pytest.mark.parametrize("dialect", OUTPUT_DIALECTS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_written_reads_back_as_the_same_change(tmp_path, family, dialect):
    own = small(family)
    lora = written(tmp_path / "in.safetensors", {f"diffusion_model.{name}": pair for name, pair in own.items()})
    assert set(lora) == set(own)
    assert family in lora.families
    path = difflora.save(lora, tmp_path / "out.safetensors", dialect=dialect)
    again = difflora.load(path)
    assert set(again) == set(own)
    # What is cut when it is written is put together again when it is read: a rank stays what it is.
    assert {again.specs[name].rank for name in own} == {2}
    for name, (up, down) in own.items():
        assert torch.equal(again[name].dense(torch.float64), up.double() @ down.double()), name


def joined_by_hand(rows: dict[str, slice], total: int, theirs: dict[str, tuple[torch.Tensor, torch.Tensor]]):
    """The dense change of a fused weight, in float64."""
    full = torch.zeros(total, next(iter(theirs.values()))[1].shape[1], dtype=torch.float64)
    for name, at in rows.items():
        up, down = theirs[name]
        full[at] = up.double() @ down.double()
    return full


H = 30
# family, what stands before the names, fused module, {the other code's: (its rows, where they go)}, rows of the fused one
FUSED = [
    ("transformer.", "double_blocks.3.img_attn.qkv", {f"transformer_blocks.3.attn.to_{p}": slice(n * H, (n + 1) * H) for n, p in enumerate("qkv")}, 3 * H),
    ("transformer.", "double_blocks.3.txt_attn.qkv", {f"transformer_blocks.3.attn.add_{p}_proj": slice(n * H, (n + 1) * H) for n, p in enumerate("qkv")}, 3 * H),
    ("lycoris_", "single_blocks.37.linear1", {
        "single_transformer_blocks.37.attn.to_q": slice(0, H), "single_transformer_blocks.37.attn.to_k": slice(H, 2 * H),
        "single_transformer_blocks.37.attn.to_v": slice(2 * H, 3 * H), "single_transformer_blocks.37.proj_mlp": slice(3 * H, 7 * H)}, 7 * H),
    ("diffusion_model.", "layers.29.attention.qkv", {f"layers.29.attention.to_{p}": slice(n * H, (n + 1) * H) for n, p in enumerate("qkv")}, 3 * H),
    ("lora_unet_", "double_blocks.53.txt_attn.qkv", {f"double_blocks.53.txt_attn_{p}": slice(n * H, (n + 1) * H) for n, p in enumerate("qkv")}, 3 * H),
]  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "module", "rows", "total"), FUSED, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("missing", [0, 1])
def test_parts_of_a_fused_matrix_are_put_together_exactly(tmp_path, prefix, module, rows, total, missing):
    theirs = {name: product(at.stop - at.start, 16, 3 + n, n) for n, (name, at) in enumerate(rows.items())}
    present = dict(list(theirs.items())[missing:])
    stems = {prefix + (flat(name) if prefix.endswith("_") else name): pair for name, pair in present.items()}
    # Something that one family has and no other.
    theirs_too, own_too = {
        "lora_unet_": ("lora_unet_byt5_in_fc1", "byt5_in.fc1"),
        "transformer.": ("transformer.single_transformer_blocks.37.norm.linear", "single_blocks.37.modulation.lin"),
    }.get(prefix, ("", ""))
    if theirs_too:
        stems[theirs_too] = product(8, 8, 1, 99)
    lora = written(tmp_path / "theirs.safetensors", stems)
    truth = joined_by_hand({name: rows[name] for name in present}, total, present)
    assert lora.specs[module].shape == truth.shape
    assert lora.specs[module].rank == sum(up.shape[1] for up, _ in present.values())
    assert torch.equal(lora[module].dense(torch.float64), truth)
    if missing:
        return
    # A LoRA of the fused matrix meets it, and the difference is exact at the rank that is asked for.
    up, down = product(total, 16, 2, 50)
    fused = {f"diffusion_model.{module}": (up, down)}
    if own_too:
        fused[f"diffusion_model.{own_too}"] = product(8, 8, 1, 98)
    other = written(tmp_path / "fused.safetensors", fused)
    difference = difflora.rerank(difflora.subtract(lora, other), difflora.FixedRank(4))
    values = torch.linalg.svd(truth - up.double() @ down.double())
    best = (values.U[:, :4] * values.S[:4]) @ values.Vh[:4]
    assert difference.specs[module].rank == 4
    assert torch.linalg.norm(difference[module].dense(torch.float64) - best) < 1e-5 * values.S[0]


@pytest.mark.parametrize("family", ["Flux", "MiniMax H3"])
def test_halves_that_are_swapped_elsewhere_are_swapped_back(tmp_path, family):
    theirs, own, anchor = {
        "Flux": ("norm_out.linear", "final_layer.adaLN_modulation.1", "single_transformer_blocks.37.norm.linear"),
        "MiniMax H3": ("transformer_blocks.49.ff.net.0.proj", "blocks.49.mlp.fc1", "audio_proj_in"),
    }[family]
    up, down = product(20, 6, 2, 1)
    lora = written(
        tmp_path / "a.safetensors", {f"transformer.{theirs}": (up, down), f"transformer.{anchor}": product(4, 6, 1, 2)}
    )
    full = up.double() @ down.double()
    assert lora.family is families.named(family)
    assert torch.equal(lora[own].dense(torch.float64), torch.cat([full[10:], full[:10]]))
    path = difflora.save(lora, tmp_path / "b.safetensors", dialect="diffusers")
    assert torch.equal(load_file(path)[f"transformer.{theirs}.lora_B.weight"], up)


H3 = "blocks.49.attn.qkv_proj"


@pytest.mark.parametrize("key", ["{}.lora_A.default.weight", "pipe.dit.{}.lora_A.default.weight"])
def test_rows_that_diffsynth_has_head_by_head_come_in_the_models_order(tmp_path, key):
    heads, head = 3, 128
    up, down = product(3 * heads * head, 6, 2, 1)
    name = key.format(H3)
    save_file({name: down, name.replace("lora_A", "lora_B"): up}, tmp_path / "a.safetensors")
    lora = difflora.load(tmp_path / "a.safetensors")
    full = (up.double() @ down.double()).reshape(heads, 3, head, 6)
    assert lora.dialect == "diffsynth" and list(lora) == [H3]
    assert torch.equal(lora[H3].dense(torch.float64), full.transpose(0, 1).reshape(-1, 6))
    # Written in another dialect, the rows are in the order that all others use.
    again = difflora.load(difflora.save(lora, tmp_path / "b.safetensors"))
    assert again.dialect == "native" and torch.equal(again[H3].dense(torch.float64), lora[H3].dense(torch.float64))


def test_other_trainers_rows_stay_where_they_are(tmp_path):
    up, down = product(3 * 3 * 128, 6, 2, 1)
    lora = written(tmp_path / "a.safetensors", {f"diffusion_model.{H3}": (up, down)})
    assert torch.equal(lora[H3].dense(torch.float64), up.double() @ down.double())


def test_rows_that_are_no_heads_are_damage(tmp_path):
    up, down = product(3 * 100, 6, 2, 1)
    save_file({f"{H3}.lora_A.default.weight": down, f"{H3}.lora_B.default.weight": up}, tmp_path / "a.safetensors")
    with pytest.raises(TensorError, match="300 rows cannot be divided by 3 heads of 128|do not fit together"):
        difflora.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("stem", ["blocks.0.self_attn.qkv", "blocks.0.self_attn.to_qkv", "blocks.0.attn1.to_qkv"])
def test_fused_q_k_v_of_wan_are_split_by_rows(tmp_path, stem):
    up, down = product(90, 30, 4, 3)
    lora = written(tmp_path / "a.safetensors", {f"diffusion_model.{stem}": (up, down)})
    assert list(lora) == [f"blocks.0.self_attn.{p}" for p in "qkv"]
    full = up.double() @ down.double()
    for n, p in enumerate("qkv"):
        assert lora.specs[f"blocks.0.self_attn.{p}"].rank == 4
        assert torch.equal(lora[f"blocks.0.self_attn.{p}"].dense(torch.float64), full[30 * n : 30 * (n + 1)])


def test_biases_of_parts_are_put_together(tmp_path):
    tensors = {
        f"transformer.single_transformer_blocks.37.attn.to_{p}.diff_b": torch.full((5,), float(n + 1))
        for n, p in enumerate("qkv")
    }
    save_file(tensors, tmp_path / "a.safetensors")
    lora = difflora.load(tmp_path / "a.safetensors")
    assert list(lora) == ["single_blocks.37.linear1.bias"]
    truth = torch.tensor([1.0] * 5 + [2.0] * 5 + [3.0] * 5 + [0.0] * 20)
    assert torch.equal(lora["single_blocks.37.linear1.bias"].dense(), truth)


def test_parts_that_do_not_fit_together_are_damage(tmp_path):
    stems = {
        f"transformer.single_transformer_blocks.37.attn.to_{p}": product(rows, 8, 1, rows)
        for p, rows in zip("qkv", (8, 8, 9), strict=True)
    }
    with pytest.raises(TensorError, match="do not fit together"):
        written(tmp_path / "a.safetensors", stems)


def test_a_matrix_as_a_whole_and_in_parts_is_two_loras(tmp_path):
    stems = {
        "transformer.single_transformer_blocks.37.attn.to_q": product(8, 8, 1, 1),
        "diffusion_model.single_blocks.37.linear1": product(56, 8, 1, 2),
    }
    with pytest.raises(FileError, match="two"):
        written(tmp_path / "a.safetensors", stems)


def a_z_image_file_with_both():
    """What is published for ComfyUI and diffusers at once: q, k and v fused and apart, out under two names."""
    up, down = product(3 * H, H, 4, 1)
    out = product(H, H, 4, 2)
    stem = "lora_unet_layers_27_attention"
    stems = {f"{stem}_qkv": (up, down), f"{stem}_out": out, f"{stem}_to_out_0": out}
    for n, p in enumerate("qkv"):
        stems[f"{stem}_to_{p}"] = (up[n * H : (n + 1) * H], down)
    return stems


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_change_in_two_spellings_is_read_once(tmp_path, dtype):
    stems = {stem: (up.to(dtype), down.to(dtype)) for stem, (up, down) in a_z_image_file_with_both().items()}
    lora = written(tmp_path / "a.safetensors", stems)
    assert list(lora) == ["layers.27.attention.qkv", "layers.27.attention.out"]
    up, down = stems["lora_unet_layers_27_attention_qkv"]
    assert torch.equal(lora["layers.27.attention.qkv"].dense(torch.float64), up.double() @ down.double())
    up, down = stems["lora_unet_layers_27_attention_out"]
    assert torch.equal(lora["layers.27.attention.out"].dense(torch.float64), up.double() @ down.double())
    assert any("2 modules are there twice" in str(warning) for warning in lora.warnings)


@pytest.mark.parametrize("name", ["to_q", "to_out_0"])
def test_another_change_in_the_second_spelling_is_two_loras(tmp_path, name):
    stems = a_z_image_file_with_both()
    up, down = stems[f"lora_unet_layers_27_attention_{name}"]
    stems[f"lora_unet_layers_27_attention_{name}"] = (1.05 * up, down)
    with pytest.raises(FileError, match="two LoRAs at once"):
        written(tmp_path / "a.safetensors", stems)


def test_a_part_that_is_missing_in_the_second_spelling_is_two_loras(tmp_path):
    stems = a_z_image_file_with_both()
    del stems["lora_unet_layers_27_attention_to_v"]
    with pytest.raises(FileError, match="two LoRAs at once"):
        written(tmp_path / "a.safetensors", stems)


BLOCK = "transformer_blocks.3.attn"
# A module that tells the family -> matrices that a trainer has fused -> the model's own, with the shares of their rows.
TRAINED_FUSED = [
    ("transformer_blocks.3.ff.gate", f"{BLOCK}.to_qkv", {f"blocks.3.attn.w{p}": n for p, n in zip("qkv", (4, 1, 1), strict=True)}),
    ("transformer_blocks.3.img_mlp.net.2", f"{BLOCK}.to_qkv", {f"{BLOCK}.to_{p}": 1 for p in "qkv"}),
    ("transformer_blocks.3.img_mlp.net.2", f"{BLOCK}.to_added_qkv", {f"{BLOCK}.add_{p}_proj": 1 for p in "qkv"}),
    ("transformer_blocks.3.img_mlp.net.2", f"{BLOCK}.add_qkv_proj", {f"{BLOCK}.add_{p}_proj": 1 for p in "qkv"}),
    ("caption_projection.linear_1", "transformer_blocks.3.attn2.to_kv", {f"transformer_blocks.3.attn2.to_{p}": 1 for p in "kv"}),
    ("single_transformer_blocks.37.norm.linear", f"{BLOCK}.to_added_qkv", {"double_blocks.3.txt_attn.qkv": 3}),
    ("layers.3.feed_forward.w1", "layers.3.attention.to_qkv", {"layers.3.attention.qkv": 3}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("anchor", "name", "own"), TRAINED_FUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_trainers_fuse_is_the_models_own_again(tmp_path, anchor, name, own):
    shares = sum(own.values())
    up, down = product(shares * H, H, 4, 3)
    stems = {f"transformer.{name}": (up, down), f"transformer.{anchor}": product(H, H, 1, 4)}
    lora = written(tmp_path / "a.safetensors", stems)
    full, start = up.double() @ down.double(), 0
    assert own.keys() <= set(lora)
    assert len(lora) == len(own) + 1
    for module, share in own.items():
        assert torch.equal(lora[module].dense(torch.float64), full[start * H : (start + share) * H])
        start += share


def test_flux_single_blocks_that_are_trained_fused_come_together(tmp_path):
    stem = "transformer.single_transformer_blocks.37"
    qkv, mlp = product(3 * H, H, 2, 1), product(4 * H, H, 3, 2)
    stems = {f"{stem}.attn.to_qkv": qkv, f"{stem}.proj_mlp": mlp, f"{stem}.norm.linear": product(3 * H, H, 1, 3)}
    lora = written(tmp_path / "a.safetensors", stems)
    truth = torch.cat([up.double() @ down.double() for up, down in (qkv, mlp)])
    assert torch.equal(lora["single_blocks.37.linear1"].dense(torch.float64), truth)


def test_what_several_families_would_read_differently_keeps_its_name(tmp_path):
    """Flux, Qwen-Image and others have a transformer_blocks.0.attn.to_q, and call it something else themselves."""
    lora = written(tmp_path / "a.safetensors", {"transformer.transformer_blocks.0.attn.to_q": product(8, 8, 1, 1)})
    assert list(lora) == ["transformer_blocks.0.attn.to_q"]
    assert lora.families == ()
    path = difflora.save(lora, tmp_path / "b.safetensors")
    assert set(load_file(path)) == {f"transformer.transformer_blocks.0.attn.to_q{end}" for end in (UP, DOWN, ".alpha")}
    said = {"modelspec.architecture": "qwen-image/lora"}
    assert [one.name for one in read_keys(["transformer.transformer_blocks.0.attn.to_q.alpha"], said).families] == [
        "Qwen-Image"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "layers_0_attention_to_x",
        "double_blocks_0_img_attn_qkv_extra",
        "double_blocks_x_img_attn_qkv",
        "double_blocks_#_img_attn_qkv",
        "double_blocks__img_attn_qkv",
        "double_blocks_0_0_img_attn_qkv",
        "double_blocks_00_img_attn_qkv",
        "down_blocks_0_2_attention_attn_out_proj",
        "single_blocks_٣_linear1",
    ],
)
def test_a_flat_name_of_no_known_model_stays_as_it_is(name):
    assert families.spelling(name) is None
    assert list(read_keys([f"lora_unet_{name}.alpha"]).modules) == [name]
    assert write_key(name, "alpha", "kohya") == f"lora_unet_{name}.alpha"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_spelling_of_a_family_means_one_thing(family):
    """Written flat, no name of a family is another one's as well; and every alias leads to a module of the family."""
    own = {name for name, _ in family.own}
    meanings: dict[str, tuple] = {name.replace(".", "_"): ((name, None, None),) for name in own}
    assert len(meanings) == len(own)
    for links in family.codes.values():
        grouped: dict[str, list] = {}
        for link in links:
            assert families.own(link.own.replace("#", "3")), link
            grouped.setdefault(link.theirs.replace(".", "_"), []).append((link.own, link.own_rows, link.their_rows))
        for name, meaning in grouped.items():
            assert meanings.setdefault(name, tuple(meaning)) == tuple(meaning), name
    assert all(link.own in own for links in family.layouts.values() for link in links)


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
# family -> its class in diffusers and what that is built with.
IN_DIFFUSERS = {
    "Wan": ("WanAnimateTransformer3DModel", {}),
    "Flux": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "FLUX.2": ("Flux2Transformer2DModel", {}),
    "Krea 2": ("Krea2Transformer2DModel", {}),
    "Z-Image": ("ZImageTransformer2DModel", {}),
    "Lumina 2": ("Lumina2Transformer2DModel", {}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}),
    "LTX-2": ("LTX2VideoTransformer3DModel", {}),
    "LTX-Video": ("LTXVideoTransformer3DModel", {}),
    "MiniMax H3": ("MiniMaxH3Transformer3DModel", {}),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}),
    "HunyuanVideo-1.5": ("HunyuanVideo15Transformer3DModel", {}),
    "SDXL": ("UNet2DConditionModel", SDXL),
}
# Layers of Animate's own that are no part of the diffusion model's blocks: nobody trains them.
LEFT_OUT = ("motion_encoder.", "face_encoder.", "face_adapter.", "pose_patch_embedding")


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_every_layer_of_diffusers_model_is_known(name):
    diffusers = pytest.importorskip("diffusers")
    kind, settings = IN_DIFFUSERS[name]
    if not hasattr(diffusers, kind):
        pytest.skip(f"this version of diffusers has no {kind}")
    with torch.device("meta"):
        built = getattr(diffusers, kind)(**settings)
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    unknown = []
    for module, layer in built.named_modules():
        if isinstance(layer, layers) and not module.startswith(LEFT_OUT):
            found = families.spelling(flat(module))
            if found is None or name not in found[0].targets:
                unknown.append(module)
    assert not unknown


def test_a_change_of_some_rows_is_one_of_all_rows():
    up, down = product(6, 4, 2, 5)
    delta = LowRank((Term(up, down, 0.5),), (6, 4))
    full = widened(delta, 12, 18).dense(torch.float64)
    assert torch.equal(full[12:], delta.dense(torch.float64)) and not full[:12].any()
    assert torch.equal(widened(Vector(torch.ones(3)), 3, 9).dense(), torch.tensor([0.0] * 3 + [1.0] * 3 + [0.0] * 3))


def test_reading_wan_builds_the_tables_of_its_first_words_only():
    """The first LoRA of a session would wait for those of all families."""
    for table in (families._spellings, families._own):
        table.cache_clear()
    families.own.cache_clear()
    read_keys(f"lora_unet_blocks_{block}_self_attn_q.alpha" for block in range(40))
    read_keys(["lora_unet_of_no_model_0_q.alpha"])
    for table in (families._spellings, families._own):
        assert table.cache_info().currsize == 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_knows_the_first_word_of_each_of_its_names(family):
    names = [name for name, _ in family.own]
    names += [link.theirs for links in family.codes.values() for link in links]
    assert {re.match("[^._]*", name)[0] for name in names} == family.first_words
    assert not any("#" in word for word in family.first_words)


HUNYUAN_VIDEO = families.named("HunyuanVideo")


@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "transformer.", "base_model.model.", "", "lora_unet_", "lora_unet__"]
)
def test_hunyuan_videos_own_names_are_read_after_every_prefix(prefix):
    """As in its own code: what HunyuanVideoWrapper loads, and what musubi-tuner, finetrainers and diffusion-pipe write."""
    links = [link for link in HUNYUAN_VIDEO.codes["source"] if "norm" not in link.own]
    keys = {}
    for link in links:
        name = link.theirs.replace("#", "7")
        keys[prefix + (flat(name) if prefix.endswith("_") else name)] = link.own.replace("#", "7")
    found = read_keys(f"{key}.{part}" for key in keys for part in ("lora_A.weight", "lora_B.weight"))
    assert HUNYUAN_VIDEO in found.families
    assert set(found.modules) == set(keys.values())
    assert not (found.pieces or found.strangers or found.unknown or found.foreign)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_selecting_nothing_says_which_stacks_there_are(family):
    names = list(small(family))
    with pytest.raises(SelectionError) as caught:
        Selection.parse("no_such_module").weights(names)
    stacks = {own.stack for name in names if (own := families.own(name)[0]).stack}
    assert stacks
    for stack in stacks:
        segments = [segment for segment in stack.split(".") if segment != "#"]
        assert re.search(rf"(?:^| ){re.escape(segments[-1])} [0-9]", str(caught.value)), stack


def test_the_table_says_how_many_frames_a_latent_frame_is():
    assert [families.frames_per_latent(name) for name in ("Wan21", "LTXV", "Mochi")] == [4, 8, 6]
