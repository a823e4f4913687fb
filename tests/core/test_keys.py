"""Key spellings, written out by hand as trainers write them; identities and partitions for everything else."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflora.errors import FileError
from difflora.lora.deltas import Spec
from difflora.lora.lora import narrowed
from difflora.names.families import base_model, named
from difflora.names.keys import OUTPUT_DIALECTS, read_keys
from tests.model_names import write_key

Q = "blocks.0.self_attn.q"

# One row of the table of file formats after the other: dialect, key, module, part.
SPELLINGS = [
    ("kohya", "lora_unet_blocks_0_self_attn_q.lora_down.weight", Q, "down"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.lora_up.weight", Q, "up"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.alpha", Q, "alpha"),
    ("kohya", "lora_unet_blocks_39_cross_attn_k_img.lora_down.weight", "blocks.39.cross_attn.k_img", "down"),
    ("kohya", "lora_unet_blocks_12_ffn_2.lora_up.weight", "blocks.12.ffn.2", "up"),
    ("kohya", "lora_unet_time_projection_1.alpha", "time_projection.1", "alpha"),
    ("kohya", "lora_unet_head_head.lora_up.weight", "head.head", "up"),
    ("kohya", "lora_unet_blocks_3_cross_attn_norm_k_img.diff", "blocks.3.cross_attn.norm_k_img", "diff"),
    ("native", "diffusion_model.blocks.0.self_attn.q.lora_A.weight", Q, "down"),
    ("native", "diffusion_model.blocks.39.cross_attn.v_img.lora_B.weight", "blocks.39.cross_attn.v_img", "up"),
    ("native", "diffusion_model.blocks.11.ffn.0.lora_down.weight", "blocks.11.ffn.0", "down"),
    ("native", "diffusion_model.text_embedding.2.lora_up.weight", "text_embedding.2", "up"),
    ("native", "model.diffusion_model.blocks.1.cross_attn.o.lora_A.weight", "blocks.1.cross_attn.o", "down"),
    ("diffusers", "transformer.blocks.0.attn1.to_q.lora_A.weight", Q, "down"),
    ("diffusers", "transformer.blocks.7.attn2.to_out.0.lora_B.weight", "blocks.7.cross_attn.o", "up"),
    ("diffusers", "transformer.blocks.7.attn2.add_k_proj.lora_A.weight", "blocks.7.cross_attn.k_img", "down"),
    ("diffusers", "transformer.blocks.7.attn2.add_v_proj.alpha", "blocks.7.cross_attn.v_img", "alpha"),
    ("diffusers", "transformer.blocks.29.ffn.net.0.proj.lora_B.weight", "blocks.29.ffn.0", "up"),
    ("diffusers", "transformer.blocks.29.ffn.net.2.lora_B.bias", "blocks.29.ffn.2", "up_bias"),
    ("diffusers", "transformer.blocks.4.norm2.diff", "blocks.4.norm3", "diff"),
    ("diffusers", "transformer.blocks.4.attn2.norm_added_k.diff", "blocks.4.cross_attn.norm_k_img", "diff"),
    ("diffusers", "transformer.blocks.4.scale_shift_table.diff", "blocks.4.modulation", "diff"),
    ("diffusers", "transformer.scale_shift_table.diff", "head.modulation", "diff"),
    ("diffusers", "transformer.proj_out.lora_A.weight", "head.head", "down"),
    ("diffusers", "transformer.condition_embedder.time_proj.lora_B.weight", "time_projection.1", "up"),
    ("diffusers", "transformer.condition_embedder.time_embedder.linear_1.lora_A.weight", "time_embedding.0", "down"),
    ("diffusers", "transformer.condition_embedder.text_embedder.linear_2.lora_A.weight", "text_embedding.2", "down"),
    (
        "diffusers",
        "transformer.condition_embedder.image_embedder.ff.net.0.proj.lora_A.weight",
        "img_emb.proj.1",
        "down",
    ),
    ("diffusers", "transformer.condition_embedder.image_embedder.ff.net.2.lora_B.weight", "img_emb.proj.3", "up"),
    ("diffusers", "transformer.condition_embedder.image_embedder.norm2.diff", "img_emb.proj.4", "diff"),
    ("diffusers", "blocks.3.attn1.processor.to_out_lora.down.weight", "blocks.3.self_attn.o", "down"),
    ("diffusers", "transformer.blocks.3.attn2.processor.to_k_lora.up.weight", "blocks.3.cross_attn.k", "up"),
    ("diffusers", "transformer_2.blocks.3.attn2.to_v.lora_A.weight", "blocks.3.cross_attn.v", "down"),
    ("peft", "base_model.model.blocks.0.self_attn.q.lora_A.weight", Q, "down"),
    ("peft", "base_model.model.blocks.0.self_attn.q.lora_B.default.weight", Q, "up"),
    ("peft", "base_model.model.blocks.5.ffn.2.lora_A.slider.weight", "blocks.5.ffn.2", "down"),
    ("peft", "base_model.model.blocks.5.ffn.2.lora_B.default.bias", "blocks.5.ffn.2", "up_bias"),
    ("peft", "base_model.model.diffusion_model.blocks.5.ffn.0.lora_B.weight", "blocks.5.ffn.0", "up"),
    ("peft", "base_model.model.blocks.5.self_attn.v.hada_w1_a.default", "blocks.5.self_attn.v", "hada_w1_a"),
    ("diffsynth", "pipe.dit.blocks.0.self_attn.q.lora_A.default.weight", Q, "down"),
    ("diffsynth", "pipe.dit.blocks.31.ffn.0.lora_B.default.weight", "blocks.31.ffn.0", "up"),
    ("diffsynth", "blocks.8.cross_attn.o.lora_A.default.weight", "blocks.8.cross_attn.o", "down"),
    ("bare", "blocks.8.cross_attn.o.lora_A.weight", "blocks.8.cross_attn.o", "down"),
    ("bare", "vace_blocks.3.cross_attn.k.lora_B.weight", "vace_blocks.3.cross_attn.k", "up"),
    ("bare", "blocks.0.self_attn.q.alpha", Q, "alpha"),
    ("wan-fun", "lora_unet__blocks_0_cross_attn_k.lora_down.weight", "blocks.0.cross_attn.k", "down"),
    ("wan-fun", "lora_unet__blocks_28_self_attn_o.alpha", "blocks.28.self_attn.o", "alpha"),
    ("wan-fun", "lora_unet__blocks_9_cross_attn_v_img.lora_up.weight", "blocks.9.cross_attn.v_img", "up"),
    ("wan-fun", "lora_unet__text_embedding_0.lora_up.weight", "text_embedding.0", "up"),
    ("native", "diffusion_model.blocks.2.norm3.diff", "blocks.2.norm3", "diff"),
    ("native", "diffusion_model.blocks.2.norm3.diff_b", "blocks.2.norm3", "bias"),
    ("native", "diffusion_model.blocks.2.self_attn.q.diff_b", "blocks.2.self_attn.q", "bias"),
    ("native", "diffusion_model.blocks.2.diff_m", "blocks.2.modulation", "diff"),
    ("native", "diffusion_model.blocks.2.modulation.diff", "blocks.2.modulation", "diff"),
    ("native", "diffusion_model.head.diff_m", "head.modulation", "diff"),
    ("native", "diffusion_model.head.head.diff", "head.head", "diff"),
    ("native", "diffusion_model.patch_embedding.diff_b", "patch_embedding", "bias"),
    ("native", "diffusion_model.img_emb.emb_pos.diff", "img_emb.emb_pos", "diff"),
    ("kohya", "lora_unet_blocks_2.diff_m", "blocks.2.modulation", "diff"),
    ("lycoris", "lycoris_blocks_0_self_attn_q.lora_down.weight", Q, "down"),
    ("lycoris", "lycoris_blocks_0_self_attn_to_out_0.lora_up.weight", "blocks.0.self_attn.o", "up"),
    ("lycoris", "lycoris_blocks_14_ffn_net_0_proj.lokr_w1", "blocks.14.ffn.0", "lokr_w1"),
    ("lycoris", "lycoris_blocks_14_ffn_net_2.hada_w2_b", "blocks.14.ffn.2", "hada_w2_b"),
    ("lycoris", "lycoris_blocks_14_norm3.w_norm", "blocks.14.norm3", "diff"),
    ("lycoris", "lycoris_blocks_14_norm3.b_norm", "blocks.14.norm3", "bias"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.hada_w1_a", Q, "hada_w1_a"),
    ("native", "diffusion_model.blocks.0.self_attn.q.hada_w2_a", Q, "hada_w2_a"),
    ("kohya", "lora_unet_patch_embedding.hada_t1", "patch_embedding", "hada_t1"),
    ("native", "diffusion_model.blocks.0.self_attn.q.lokr_w2_a", Q, "lokr_w2_a"),
    ("kohya", "lora_unet_blocks_0_ffn_0.lokr_w2", "blocks.0.ffn.0", "lokr_w2"),
    ("kohya", "lora_unet_patch_embedding.lokr_t2", "patch_embedding", "lokr_t2"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.dora_scale", Q, "dora_scale"),
    ("native", "diffusion_model.blocks.0.self_attn.q.dora_scale", Q, "dora_scale"),
    ("peft", "base_model.model.blocks.0.self_attn.q.lora_magnitude_vector.default.weight", Q, "dora_scale"),
    ("peft", "base_model.model.blocks.0.self_attn.q.lora_magnitude_vector", Q, "dora_scale"),
    ("hybrid", "lora_unet_blocks_6.self_attn.k.lora_A.weight", "blocks.6.self_attn.k", "down"),
    ("hybrid", "lora_unet_blocks_6.cross_attn.v_img.lora_down.weight", "blocks.6.cross_attn.v_img", "down"),
    ("hybrid", "lora_unet_blocks.6.ffn.0.alpha", "blocks.6.ffn.0", "alpha"),
    ("native", "diffusion_model.vace_blocks.0.before_proj.lora_A.weight", "vace_blocks.0.before_proj", "down"),
    ("kohya", "lora_unet_vace_blocks_7_after_proj.lora_up.weight", "vace_blocks.7.after_proj", "up"),
    ("diffusers", "transformer.vace_blocks.0.proj_in.lora_A.weight", "vace_blocks.0.before_proj", "down"),
    ("diffusers", "transformer.vace_blocks.0.attn1.to_k.lora_A.weight", "vace_blocks.0.self_attn.k", "down"),
    ("native", "diffusion_model.vace_patch_embedding.diff", "vace_patch_embedding", "diff"),
    # "Also seen"
    ("native", "diffusion_model.blocks.0.self_attn.q.lora_down", Q, "down"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.lora_up", Q, "up"),
    ("native", "diffusion_model.blocks.0.self_attn.q.lora_A", Q, "down"),
    ("native", "diffusion_model.blocks.0.self_attn.q.lora.up.weight", Q, "up"),
    ("diffusers", "transformer.blocks.0.attn1.to_q.lora.down.weight", Q, "down"),
    ("bare", "blocks.0.self_attn.q_lora.up.weight", Q, "up"),
    ("diffusers", "blocks.0.attn1.to_q_lora.down.weight", Q, "down"),
    ("diffusers", "unet.blocks.0.attn1.to_q.lora_linear_layer.up.weight", Q, "up"),
    ("native", "diffusion_model.blocks.0.self_attn.q.lora_linear_layer.down.weight", Q, "down"),
    ("native", "diffusion_model.blocks.0.self_attn.q.reshape_weight", Q, "reshape_weight"),
    ("native", "diffusion_model.blocks.0.self_attn.q.set_weight", Q, "set_weight"),
    ("kohya", "lora_unet_patch_embedding.lora_mid.weight", "patch_embedding", "mid"),
    # Numbers beside the factors
    ("native", "diffusion_model.blocks.0.self_attn.q.lora_A.scale_weight", Q, "down_scale"),
    ("native", "diffusion_model.blocks.0.self_attn.q.lora_B.weight_scale", Q, "up_scale"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.lora_down.weight_scale", Q, "down_scale"),
    ("peft", "base_model.model.blocks.0.self_attn.q.lora_A.default.weight_scale", Q, "down_scale"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.scalar", Q, "scalar"),
    ("native", "diffusion_model.blocks.0.self_attn.q.lora_alpha", Q, "alpha"),
    ("native", "diffusion_model.blocks.0.self_attn.q.scaling", Q, "scaling"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.use_rslora_flag", Q, "use_rslora_flag"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.use_dora_flag", Q, "use_dora_flag"),
    ("kohya", "lora_unet_blocks_0_self_attn_q.dora_layer.weight", Q, "dora_scale"),
    # The modulation table, with its own name before diff_m or without
    ("native", "diffusion_model.blocks.0.diff_m", "blocks.0.modulation", "diff"),
    ("native", "diffusion_model.blocks.0.modulation.diff_m", "blocks.0.modulation", "diff"),
    ("bare", "blocks.0.modulation.diff_m", "blocks.0.modulation", "diff"),
    ("native", "diffusion_model.head.modulation.diff_m", "head.modulation", "diff"),
    ("kohya", "lora_unet_blocks_0_modulation.diff_m", "blocks.0.modulation", "diff"),
    ("diffusers", "transformer.blocks.0.scale_shift_table.diff_m", "blocks.0.modulation", "diff"),
]


@pytest.mark.parametrize(("dialect", "key", "module", "part"), SPELLINGS, ids=[row[1] for row in SPELLINGS])
def test_every_spelling_is_understood(dialect, key, module, part):
    found = read_keys([key])
    assert found.modules == {module: {part: key}}
    assert found.dialect == dialect
    assert not (found.text_encoder or found.unknown or found.foreign)


WRITTEN = [
    (Q, "down", "native", "diffusion_model.blocks.0.self_attn.q.lora_down.weight"),
    (Q, "alpha", "native", "diffusion_model.blocks.0.self_attn.q.alpha"),
    (Q, "bias", "native", "diffusion_model.blocks.0.self_attn.q.diff_b"),
    (Q, "up", "kohya", "lora_unet_blocks_0_self_attn_q.lora_up.weight"),
    (Q, "bias", "kohya", "lora_unet_blocks_0_self_attn_q.diff_b"),
    (Q, "down", "diffusers", "transformer.blocks.0.attn1.to_q.lora_A.weight"),
    (Q, "bias", "diffusers", "transformer.blocks.0.attn1.to_q.lora_B.bias"),
    (Q, "up", "peft", "base_model.model.blocks.0.self_attn.q.lora_B.weight"),
    ("blocks.3.cross_attn.o", "up", "diffusers", "transformer.blocks.3.attn2.to_out.0.lora_B.weight"),
    ("blocks.3.cross_attn.k_img", "up", "diffusers", "transformer.blocks.3.attn2.add_k_proj.lora_B.weight"),
    ("blocks.3.ffn.0", "down", "diffusers", "transformer.blocks.3.ffn.net.0.proj.lora_A.weight"),
    ("blocks.3.norm3", "diff", "diffusers", "transformer.blocks.3.norm2.diff"),
    ("blocks.3.norm3", "bias", "diffusers", "transformer.blocks.3.norm2.diff_b"),
    ("blocks.3.modulation", "diff", "native", "diffusion_model.blocks.3.modulation.diff"),
    ("blocks.3.modulation", "diff", "kohya", "diffusion_model.blocks.3.modulation.diff"),
    ("head.modulation", "diff", "kohya", "diffusion_model.head.modulation.diff"),
    ("head.modulation", "diff", "peft", "base_model.model.head.modulation.diff"),
    ("head.head", "down", "diffusers", "transformer.proj_out.lora_A.weight"),
    ("time_projection.1", "down", "diffusers", "transformer.condition_embedder.time_proj.lora_A.weight"),
    ("vace_blocks.2.before_proj", "down", "kohya", "lora_unet_vace_blocks_2_before_proj.lora_down.weight"),
    # Other models.
    ("double_blocks.0.img_attn.qkv", "down", "native", "diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight"),
    ("double_blocks.0.img_attn.qkv", "down", "kohya", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"),
    ("blocks.3.attn.wq", "up", "diffusers", "transformer.transformer_blocks.3.attn.to_q.lora_B.weight"),
    ("blocks.3.attn.qkv_proj", "up", "native", "diffusion_model.blocks.3.attn.qkv_proj.lora_up.weight"),
    (
        "transformer_blocks.0.audio_ff.net.2",
        "up",
        "diffusers",
        "transformer.transformer_blocks.0.audio_ff.net.2.lora_B.weight",
    ),
    # No family has these: what nobody understood stays as it is.
    ("no_blocks_0_img_attn_qkv", "up", "kohya", "lora_unet_no_blocks_0_img_attn_qkv.lora_up.weight"),
    ("no_blocks_0_img_attn_qkv", "up", "native", "lora_unet_no_blocks_0_img_attn_qkv.lora_up.weight"),
    ("odd", "up", "native", "lora_unet_odd.lora_up.weight"),
    ("odd", "up", "diffusers", "transformer.odd.lora_B.weight"),
    ("odd_0_linear", "up", "peft", "lora_unet_odd_0_linear.lora_B.weight"),
    ("lycoris_no_blocks_0_ff_net_2", "alpha", "native", "lycoris_no_blocks_0_ff_net_2.alpha"),
]


@pytest.mark.parametrize(("module", "part", "dialect", "key"), WRITTEN)
def test_written_keys_are_what_readers_know(module, part, dialect, key):
    assert write_key(module, part, dialect) == key


def test_a_name_that_two_families_have_is_written_for_the_one_that_is_meant():
    shared = "double_blocks.0.img_mlp.0"
    flux, hunyuan = named("Flux"), named("HunyuanVideo")
    assert write_key(shared, "up", "kohya", flux) == "lora_unet_double_blocks_0_img_mlp_0.lora_up.weight"
    assert write_key(shared, "up", "kohya", hunyuan) == "lora_unet_double_blocks_0_img_mlp_fc1.lora_up.weight"


# Every module of the models, as their own sources name them.
ATTENTION = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"]
ATTENTION += ["cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o"]
MATRICES = [*ATTENTION, "ffn.0", "ffn.2"]
NORMS = ["self_attn.norm_q", "self_attn.norm_k", "norm3", "cross_attn.norm_q", "cross_attn.norm_k"]
IMAGE = ["cross_attn.k_img", "cross_attn.v_img", "cross_attn.norm_k_img"]
OUTSIDE = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
OUTSIDE += ["time_projection.1", "head.head", "head.modulation"]


def wan(blocks, image=False, vace=0):
    inside = [*MATRICES, *NORMS, "modulation"]
    modules = [f"blocks.{n}.{name}" for n in range(blocks) for name in inside + (IMAGE if image else [])]
    modules += [f"vace_blocks.{n}.{name}" for n in range(vace) for name in [*inside, "after_proj"]]
    modules += ["vace_blocks.0.before_proj", "vace_patch_embedding"] if vace else []
    modules += [f"img_emb.proj.{n}" for n in (0, 1, 3, 4)] + ["img_emb.emb_pos"] if image else []
    return modules + OUTSIDE


MODELS = {
    "T2V-14B": wan(40),
    "T2V-1.3B": wan(30),
    "I2V-14B": wan(40, image=True),
    "VACE": wan(40, vace=8),
    "5B": wan(30),
}


@pytest.mark.parametrize("dialect", OUTPUT_DIALECTS)
@pytest.mark.parametrize("model", MODELS)
def test_a_whole_model_survives_writing_and_reading(model, dialect):
    parts = ("down", "up", "alpha", "diff")
    written = {m: {part: write_key(m, part, dialect) for part in parts} for m in MODELS[model]}
    found = read_keys([key for keys in written.values() for key in keys.values()])
    assert found.modules == written
    assert found.dialect == dialect
    assert not (found.text_encoder or found.unknown or found.foreign)


@settings(deadline=None)
@given(
    model=st.sampled_from(sorted(MODELS)),
    dialect=st.sampled_from(OUTPUT_DIALECTS),
    part=st.sampled_from(["down", "up", "mid", "alpha", "diff", "bias", "hada_w1_a", "lokr_w2_b", "dora_scale"]),
    data=st.data(),
)
def test_one_key_alone_reads_back_as_written(model, dialect, part, data):
    module = data.draw(st.sampled_from(MODELS[model]))
    key = write_key(module, part, dialect)
    (found,) = read_keys([key]).modules.items()
    assert found[0] == module
    # PEFT has no other bias than that of lora_B.
    assert found[1] == {"up_bias" if key.endswith("lora_B.bias") else part: key}


WORDS = st.sampled_from(
    """diffusion_model model base_model transformer pipe dit blocks vace_blocks 0 1 39 007 99999999999 self_attn q k_img
    cross_attn attn1 attn2 to_q to_out ffn net proj head norm2 norm3 modulation lora lora_A lora_B lora_down default
    up down weight bias alpha diff diff_b diff_m lokr_w1 processor scale_shift_table proj_out dora_scale text_encoder
    lora_unet lycoris lora_te1 patch_embedding q_loras oft_blocks transformer_blocks single_blocks _ x _orig_mod net
    module scaled_fp8 scalar scaling weight_scale use_rslora_flag clip_l umt5""".split()
)
KEYS = st.lists(st.tuples(WORDS, st.sampled_from([".", ".", "_", "__", ""])), min_size=1, max_size=9).map(
    lambda pieces: "".join(word + joint for word, joint in pieces)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(KEYS, st.text(max_size=30)), max_size=8, unique=True))
def test_every_key_ends_up_in_exactly_one_place(keys):
    try:
        found = read_keys(keys)
    except FileError as error:
        assert sum(key in str(error) for key in keys) >= 2
        return
    places = [key for parts in found.modules.values() for key in parts.values()] + found.text_encoder + found.unknown
    places += [key for some in found.foreign.values() for key in some]
    places += [*found.changing, *found.markers, *found.flags.values()]
    assert sorted(places) == sorted(keys)
    assert read_keys(reversed(keys)) == found
    assert list(read_keys(reversed(keys)).modules) == list(found.modules)
    for module, parts in found.modules.items():
        for part in parts:
            assert all(write_key(module, part, dialect) for dialect in OUTPUT_DIALECTS)


def test_modules_come_in_the_models_order():
    shuffled = [
        "blocks.10.ffn.0",
        "head.head",
        "blocks.9.cross_attn.k_img",
        "vace_blocks.0.self_attn.q",
        "blocks.9.ffn.2",
    ]
    shuffled += [
        "patch_embedding",
        "blocks.9.self_attn.v",
        "blocks.9.self_attn.q",
        "blocks.9.cross_attn.o",
        "blocks.9.ffn.0",
    ]
    found = read_keys([f"diffusion_model.{module}.diff" for module in shuffled])
    assert list(found.modules) == [
        *("patch_embedding", "blocks.9.self_attn.q", "blocks.9.self_attn.v", "blocks.9.cross_attn.o"),
        *("blocks.9.cross_attn.k_img", "blocks.9.ffn.0", "blocks.9.ffn.2", "blocks.10.ffn.0", "head.head"),
        "vace_blocks.0.self_attn.q",
    ]
    others = [
        "single_blocks.10.linear1",
        "double_blocks.2.img_mlp.0",
        "single_blocks.9.linear1",
        "double_blocks.11.img_mlp.0",
    ]
    assert list(read_keys([f"transformer.{m}.lora_A.weight" for m in others]).modules) == [
        others[i] for i in (1, 3, 2, 0)
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "lora_unet_blocks_0_self_attn_q.lora_down.weight"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.lora_down.weight"),
        ("unet.blocks.0.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_q.lora_A.weight"),
        ("blocks.0.ffn.0.lora_A.detailed.weight", "blocks.0.ffn.0.lora_A.sparse.weight"),
        ("diffusion_model.blocks.1.diff_m", "diffusion_model.blocks.1.modulation.diff"),
        ("transformer.x.y.lora_A.weight", "diffusion_model.x.y.lora_A.weight"),
    ],
)
def test_two_keys_of_one_part_are_an_error_that_names_both(one, other):
    with pytest.raises(FileError) as error:
        read_keys([one, other])
    assert one in str(error.value) and other in str(error.value)
    assert "\n" not in str(error.value)


WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module", "_forward_module")


@pytest.mark.parametrize("wrapper", [*WRAPPERS, "_orig_mod._fsdp_wrapped_module._checkpoint_wrapped_module"])
@pytest.mark.parametrize(
    "key",
    [
        "<>.blocks.0.self_attn.q.lora_A.weight",
        "diffusion_model.<>.blocks.0.self_attn.q.lora_A.weight",
        "blocks.<>.0.self_attn.q.lora_A.weight",
        "diffusion_model.blocks.0.<>.self_attn.q.lora_A.weight",
        "transformer.blocks.0.<>.attn1.to_q.lora_down.weight",
        "base_model.model.<>.blocks.0.self_attn.<>.q.lora_A.default.weight",
        "base_model.model.blocks.0.self_attn.q.<>.lora_A.default.weight",
        "base_model.model.blocks.0.self_attn.q.lora_A.default.<>.weight",
        "module.<>.blocks.0.self_attn.q.lora_A",
        "lora_unet_<flat>_blocks_0_self_attn_q.lora_down.weight",
        "lora_unet__<flat>_blocks_0_self_attn_q.lora_down.weight",
        "lora_unet_blocks_0_<flat>_self_attn_q.lora_down.weight",
        "lora_unet_blocks_0_<flat>_attn1_to_q.lora_down.weight",
        "lora_unet_blocks_0_self_attn_q_<flat>.lora_down.weight",
        "blocks_0_<flat>_self_attn_q.lora_down.weight",
        "<flat>_blocks_0_self_attn_q.lora_down.weight",
        "lycoris_<flat>_blocks_0_self_attn_q.lora_down.weight",
        "lora_unet_<flat>_blocks_0_<flat>_self_attn_<flat>_q.lora_down.weight",
        "lora_unet_<>.blocks.0.self_attn.q.lora_down.weight",
    ],
)
def test_what_torch_wraps_around_a_module_is_no_part_of_its_name(key, wrapper):
    key = key.replace("<>", wrapper).replace("<flat>", wrapper.replace(".", "_"))
    found = read_keys([key])
    assert found.modules == {Q: {"down": key}}
    assert not found.strangers


@pytest.mark.parametrize(
    "front",
    """module. module.module. net. generator.model. generator. generator_ema.model. model.net. diffusion_model.net.
    base_model.model.generator.model. transformer.module. _forward_module.module. lora_unet_module_ lora_unet_net_
    lora_unet_generator_model_ lora_unet_model_ lora_unet__module_ lycoris_module_ lora_unet_base_model_model_ module_
    net_ generator_model_ _module.""".split(),
)
def test_what_stands_in_front_is_no_part_of_a_name(front):
    flat = front.endswith("_")
    module = "blocks_0_self_attn_q" if flat else Q
    key = f"{front}{module}.lora_down.weight"
    assert read_keys([key]).modules == {Q: {"down": key}}
    # The same words inside are names.
    inside = f"{front}{'blocks_0_ffn_net_0_proj' if flat else 'blocks.0.ffn.net.0.proj'}.lora_down.weight"
    assert read_keys([inside]).modules == {"blocks.0.ffn.0": {"down": inside}}


@pytest.mark.parametrize(
    "front",
    "wan. student. backbone. vdm. ema.student. model.fake_score. real_score.inner. lora_wan_ lora_dit_ lokr_ wan_".split(),
)
def test_a_front_that_no_model_has_is_told(front):
    """Such a slider would move nothing, and its report looks as if all was well."""
    modules = ["blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.39.cross_attn.k_img"]
    flat = front.endswith("_")
    keys = [f"{front}{module.replace('.', '_') if flat else module}.lora_down.weight" for module in modules]
    assert read_keys(keys).front == front
    known = "lora_unet_blocks_0_ffn_2.alpha" if flat else "blocks.0.ffn.2.alpha"
    assert not read_keys([*keys, known]).front
    assert not read_keys([*keys, *(key.replace("blocks", f"layers_{n}") for n in range(9) for key in keys)]).front


def test_names_of_other_models_have_no_front():
    for keys in (
        ["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.alpha"],
        ["x.net.0.alpha", "encoder.module.proj.alpha"],
        ["transformer.layers.0.attention.qkv.alpha"],
        ["model.y.proj_out.alpha"],
        [],
    ):
        assert not read_keys(keys).front


def test_words_that_stand_in_front_stay_names_elsewhere():
    keys = [f"{name}.lora_A.weight" for name in ("x.net.0", "encoder.module.proj", "a.generator.model.q")]
    assert sorted(read_keys(keys).modules) == sorted(key.removesuffix(".lora_A.weight") for key in keys)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_blocks_0_self_attn_q_.lora_down.weight",
        "lora_unet_blocks_0_self_attn_q__.alpha",
        "lora_unet__blocks_0_self_attn_q_.lora_up.weight",
        "lora_unet_blocks_0__self_attn_q.lora_up.weight",
        "lycoris_blocks_0_attn1_to_q_.lokr_w1",
        "lora_unet_blocks_0_self_attn_q_.diff_b",
    ],
)
def test_a_stray_underscore_is_no_part_of_a_name(key):
    assert list(read_keys([key]).modules) == [Q]


def test_a_stray_underscore_is_no_part_of_another_models_name():
    key = "lora_unet_double_blocks_0_img_mlp_0_.lora_down.weight"
    assert list(read_keys([key]).modules) == ["double_blocks.0.img_mlp.0"]
    key = "lora_unet_double_blocks_0__orig_mod_img_mlp_0.lora_down.weight"
    assert list(read_keys([key]).modules) == ["double_blocks.0.img_mlp.0"]


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("blocks.0.self_attn.zz", True),
        ("blocks.0.attn.to_w", True),
        ("extra.layer", True),
        ("blocks.0.self_attn.o", False),
        ("vace_blocks.0.after_proj", False),
        # Layers that models built on Wan have beside its own
        ("face_adapter.fuser_blocks.0.linear1_kv", False),
        ("pose_patch_embedding", False),
        ("audio_injector.injector.3.q", False),
        ("blocks.0.audio_cross_attn.q_linear", False),
        ("control_adapter.conv", False),
    ],
)
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_modules_that_wan_does_not_have_are_told_in_a_file_that_is_otherwise_wans(prefix, module, missing):
    name = module.replace(".", "_") if prefix == "lora_unet_" else module
    keys = [f"{prefix}{name}.lora_down.weight", "diffusion_model.blocks.0.ffn.0.lora_A.weight"]
    found = read_keys(keys)
    assert len(found.strangers) == missing and len(found.modules) == 2
    assert not read_keys(["lora_unet_double_blocks_0_img_mlp_0.alpha", "diffusion_model.x.y.alpha"]).strangers


def test_text_encoder_keys_are_set_apart():
    keys = ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "lora_te2_text_model_x.alpha"]
    keys += [
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "text_encoders.umt5xxl.shared.lora_A.weight",
    ]
    keys += ["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "text_encoder_2.encoder.q.lora_B.weight"]
    inside = "encoder.layers.0.self_attn.q_proj.lora_A.weight"
    keys += [
        f"base_model.model.text_model.{inside}",
        f"text_model.{inside}",
        f"base_model.model.text_encoder.text_model.{inside}",
        f"cond_stage_model.transformer.text_model.{inside}",
        f"model.cond_stage_model.{inside}",
        f"conditioner.embedders.0.transformer.{inside}",
        "te.encoder.block.0.layer.0.SelfAttention.q.lora_B.default.weight",
        "te2.text_projection.alpha",
        "pipe.te.shared.diff",
    ]
    encoders = (
        "clip_l clip_g clip_h t5 t5xxl t5_xxl umt5 umt5xxl llm clip byt5 llama qwen2_5_vl gemma2_2b mistral3".split()
    )
    for name in encoders:
        keys += [f"{name}.encoder.block.0.layer.1.DenseReluDense.wo.lora_A.weight", f"{name}.layers.0.mlp.fc1.alpha"]
        keys += [
            f"base_model.model.{name}.transformer.mlp.fc1.lora_B.weight",
            f"_orig_mod.{name}.mlp.fc1.lora_B.weight",
        ]
        keys += [f"lora_{name}_encoder_block_0_mlp_fc1.lora_down.weight", f"lycoris_{name}_x_mlp.lokr_w1"]
    keys += ["lora_text_encoder_layers_0_mlp_fc1.lora_down.weight", "lora_text_encoder_2_layers_0_mlp_fc1.alpha"]
    keys += [
        "encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
        "lora_te_one_mlp.alpha",
        "language_model.mlp.alpha",
    ]
    others = (
        "T5 CLIP_L TEXT_ENCODER t5_encoder t5_model umt5-xxl clipl clip_model openclip t5gemma glm bert llama_model"
    )
    for name in [*others.split(), "text-encoder", "textencoder", "text_encoder_model"]:
        keys += [f"{name}.layers.0.mlp.fc1.lora_A.weight", f"pipe.{name}.layers.0.mlp.fc1.lora_B.weight"]
    keys += [
        "lora_textencoder_layers_0_mlp_fc1.alpha",
        "lora_clipl_layers_0_mlp_fc1.alpha",
        "LORA_TE_layers_0_mlp.alpha",
    ]
    for name in ("siglip", "siglip2", "visual", "vision_model", "vision_tower", "image_encoder"):
        keys += [
            f"{name}.encoder.layers.0.self_attn.q_proj.lora_A.weight",
            f"base_model.model.{name}.blocks.0.mlp.fc1.alpha",
        ]
        keys += [f"lora_{name}_encoder_layers_0_mlp_fc1.lora_down.weight"]
    found = read_keys([*keys, "diffusion_model.blocks.0.ffn.0.lora_A.weight"])
    assert found.text_encoder == sorted(keys)
    assert list(found.modules) == ["blocks.0.ffn.0"]


def test_what_a_model_takes_of_an_image_encoder_is_its_own():
    keys = ["vision_in.proj.1.alpha", "context_embedder.image_embedder.linear_1.alpha", "img_emb.proj.1.alpha"]
    assert not read_keys(keys).text_encoder


@pytest.mark.parametrize(
    "module",
    """llm_adapter.blocks.0.mlp.layer1 clip_text_pooled_proj byt5_in.fc1 text_embedding.0 t5_projector llama_layers.0.x
    context_embedder text_transformer_blocks.0.mlp text_embeddings.in_layer clip_mapper llm_cond_proj""".split(),
)
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_", ""])
def test_layers_of_a_model_that_are_called_after_its_text_encoder_are_no_text_encoder(prefix, module):
    key = f"{prefix}{module.replace('.', '_') if prefix == 'lora_unet_' else module}.lora_up.weight"
    found = read_keys([key])
    assert not found.text_encoder and len(found.modules) == 1


@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "base_model.model.", "lora_unet_", "transformer.", "lycoris_", ""]
)
def test_a_text_encoder_is_one_behind_every_prefix(prefix):
    """Found by fuzzing: what was a module of the model behind one prefix was written behind another, and then left out."""
    key = f"{prefix}text_model.encoder.fc1.lora_up.weight"
    assert read_keys([key]).text_encoder == [key]


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.blocks.0.self_attn.q.lora_C.weight",
        "diffusion_model.blocks.0.self_attn.q.lora_A.bias",
        "lora_A.weight",
        ".diff",
        "weight",
        "",
    ],
)
def test_what_is_not_understood_is_said(key):
    found = read_keys([key])
    assert found.unknown == [key] and not found.modules


LORA = ["diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.lora_B.weight"]


@pytest.mark.parametrize(
    "end",
    """lora_A.weight_scale_2 lora_A.weight_scale_inv scale weight_scale scale_weight lora_scale lora_C.weight multiplier
    lora_A.default.quant_state hada_w1_a.scale_weight weight.absmax lora_A.zero_point strength foo lora_A.foo.bar""".split(),
)
def test_a_number_beside_a_module_cannot_be_ignored(end):
    key = f"diffusion_model.blocks.0.self_attn.q.{end}"
    found = read_keys([*LORA, key])
    assert found.changing == [key] and not found.unknown and not found.foreign
    # Under another spelling of the module's name, too, where the word says what it is.
    if "scale" in end:
        key = f"lora_unet_blocks_0_self_attn_q.{end}"
        assert read_keys([*LORA, key]).changing == [key]


def test_numbers_that_belong_to_no_module_are_told_apart():
    assert read_keys([*LORA, "alpha"]).changing == ["alpha"]
    assert read_keys([*LORA, "lora_scale"]).changing == ["lora_scale"]
    assert read_keys([*LORA, "scaled_fp8", "diffusion_model.scaled_fp8"]).markers == [
        "diffusion_model.scaled_fp8",
        "scaled_fp8",
    ]
    whole = ["extra.proj.weight", "extra.proj.scale_weight", "extra.proj.weight_scale"]
    assert [*read_keys([*LORA, *whole]).foreign.values()] == [sorted(whole)]
    assert read_keys([*LORA, "something.else"]).unknown == ["something.else"]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("diffusion_model.blocks.0.self_attn.q_loras.down.weight", "Stand-In"),
        ("blocks.39.self_attn.v_loras.up.weight", "Stand-In"),
        ("dwpose_embedding.0.weight", "UniAnimate"),
        ("randomref_embedding_pose.2.bias", "UniAnimate"),
        ("diffusion_model.patch_embedding.lora_A.weight", "control LoRA"),
        ("patch_embedding.lora_B.weight", "control LoRA"),
        ("blocks.0.self_attn.q.weight", "whole weights"),
        ("model.diffusion_model.head.head.bias", "whole weights"),
        ("lora_unet_blocks_0_self_attn_q.oft_blocks", "OFT"),
        ("base_model.model.blocks.0.self_attn.q.vera_lambda_d", "VeRA"),
        ("lycoris_blocks_0_self_attn_q.a1.weight", "GLoRA"),
        ("lycoris_blocks_0_self_attn_q.on_input", "IA3"),
    ],
)
def test_what_is_no_weight_difference_is_recognised(key, reason):
    found = read_keys([key])
    assert [reason in found_reason for found_reason in found.foreign] == [True]
    assert list(found.foreign.values()) == [[key]]
    assert not found.modules and not found.unknown


def test_dialect_is_that_of_the_majority():
    kohya = [f"lora_unet_blocks_{n}_ffn_0.lora_up.weight" for n in range(3)]
    assert read_keys([*kohya, "diffusion_model.blocks.9.ffn.0.lora_A.weight"]).dialect == "kohya"


def test_shared_names_are_wans_only_in_a_wan_file():
    head = "transformer.proj_out.lora_A.weight"
    assert list(read_keys([head]).modules) == ["head.head"]
    assert list(read_keys([head, "transformer.blocks.0.attn1.to_q.lora_A.weight"]).modules)[-1] == "head.head"
    assert "proj_out" in read_keys([head, "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"]).modules
    assert list(read_keys([head], {"modelspec.architecture": "Flux.1-dev/lora"}).modules) == ["final_layer.linear"]
    assert list(read_keys([head], {"modelspec.architecture": "sd3/lora"}).modules) == ["proj_out"]


OTHER_MODELS = [
    # key, module, what it is a part of, shape of the model's own, model
    ("diffusion_model.double_blocks.0.img_mlp.0", "double_blocks.0.img_mlp.0", (12288, 3072), "Flux or HunyuanVideo"),
    ("transformer.single_transformer_blocks.37.attn.to_q", "single_blocks.37.linear1", (21504, 3072), "Flux"),
    ("diffusion_model.single_blocks.37.linear1", "single_blocks.37.linear1", (21504, 3072), "Flux"),
    ("transformer.single_transformer_blocks.0.attn.to_out", "single_blocks.0.linear2", (6144, 24576), "FLUX.2 dev"),
    ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", "single_blocks.0.linear1", (36864, 4096), "FLUX.2 Klein 9B"),
    ("diffusion_model.double_stream_modulation_img.lin", "double_stream_modulation_img.lin", (36864, 6144), "FLUX.2"),
    ("lora_unet_double_blocks_0_img_mlp_fc1", "double_blocks.0.img_mlp.0", (12288, 3072), "HunyuanVideo"),
    ("lora_unet_double_blocks_53_img_attn_q", "double_blocks.53.img_attn.qkv", (6144, 2048), "HunyuanVideo-1.5"),
    ("transformer.single_blocks.39.modulation.linear", "single_blocks.39.modulation.lin", (9216, 3072), "HunyuanVideo"),
    ("transformer.single_blocks.7.linear1", "single_blocks.7.linear1", (21504, 3072), "Flux or HunyuanVideo"),
    ("diffusion_model.transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_q", (2048, 2048), "LTX-Video"),
    ("diffusion_model.transformer_blocks.0.audio_attn1.to_q", "transformer_blocks.0.audio_attn1.to_q", (2048, 2048), "LTX-2"),
    ("transformer.transformer_blocks.59.img_mlp.net.2", "transformer_blocks.59.img_mlp.net.2", (3072, 12288), "Qwen-Image"),
    ("lora_unet_transformer_blocks_5_txt_mod_1", "transformer_blocks.5.txt_mod.1", (18432, 3072), "Qwen-Image"),
    ("lora_unet_blocks_0_attn_wq", "blocks.0.attn.wq", (6144, 6144), "Krea 2"),
    ("diffusion_model.text_fusion.refiner_blocks.1.ff.up", "txtfusion.refiner_blocks.1.mlp.up", (6912, 2560), "Krea 2"),
    ("lora_unet_layers_29_attention_to_out_0", "layers.29.attention.out", (3840, 3840), "Z-Image"),
    ("lora_unet_blocks_3_self_attn_q_proj", "blocks.3.self_attn.q_proj", (2048, 2048), "Anima"),
    ("lora_unet_blocks_3_mlp_fc1", "blocks.3.mlp.fc1", (28672, 5376), "MiniMax H3"),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", "input_blocks.4.1.transformer_blocks.0.attn2.to_k", (640, 2048), "SDXL"),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v", "input_blocks.4.1.transformer_blocks.0.attn2.to_v", (640, 2048), "SDXL"),
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", "input_blocks.4.1.transformer_blocks.0.attn2.to_k", (640, 768), "SD 1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "module", "shape", "model"), OTHER_MODELS)
def test_other_models_have_their_own_names(key, module, shape, model):
    found = read_keys([f"{key}.lora_down.weight"])
    ((name, parts),) = found.modules.items()
    assert parts == {"down": f"{key}.lora_down.weight"}
    assert {piece.module for piece in found.pieces.get(name, ())} or {name} == {module}
    assert base_model({module: shape}, narrowed(found.families, {module: Spec(shape, (1,))})) == model


def test_the_first_attention_processors_of_diffusers():
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_v_lora.down.weight"
    assert list(read_keys([key]).modules) == ["input_blocks.4.1.transformer_blocks.0.attn2.to_v"]


def shapes(modules, width, feed_forward):
    known = {"ffn.0": (feed_forward, width), "ffn.2": (width, feed_forward)}
    found = {}
    for module in modules:
        inside = module.split(".", 2)[-1]
        if "blocks." in module and "norm" not in module and "modulation" not in module:
            found[module] = known.get(inside, (width, width))
    return found


@pytest.mark.parametrize(
    ("modules", "width", "feed_forward", "model"),
    [
        (MODELS["T2V-14B"], 5120, 13824, "Wan2.1/2.2 14B"),
        (MODELS["I2V-14B"], 5120, 13824, "Wan2.1-I2V-14B"),
        (MODELS["T2V-1.3B"], 1536, 8960, "Wan2.1-T2V-1.3B"),
        (MODELS["VACE"], 5120, 13824, "Wan2.1-VACE-14B"),
        (MODELS["VACE"], 1536, 8960, "Wan2.1-VACE-1.3B"),
        (MODELS["5B"], 3072, 14336, "Wan2.2-5B"),
        (["blocks.3.self_attn.q", "blocks.3.cross_attn.k"], 5120, 13824, "Wan2.1/2.2 14B (T2V or I2V)"),
        (["blocks.3.ffn.2"], 5120, 13824, "Wan2.1/2.2 14B (T2V or I2V)"),
        ([f"blocks.7.{name}" for name in MATRICES], 5120, 13824, "Wan2.1/2.2 14B"),
        (["blocks.3.cross_attn.k_img"], 5120, 13824, "Wan2.1-I2V-14B"),
        (["blocks.3.self_attn.q"], 1536, 8960, "Wan2.1 1.3B"),
        (["blocks.3.self_attn.q"], 3072, 14336, "Wan2.2-5B"),
        (MODELS["T2V-1.3B"], 192, 256, "Wan of width 192"),
        (["blocks.3.ffn.2"], 5120, 8960, "Wan of width 5120"),
    ],
)
def test_base_model_says_what_shapes_tell(modules, width, feed_forward, model):
    assert base_model(shapes(modules, width, feed_forward)) == model


def test_base_model_says_nothing_where_there_is_nothing_to_say():
    assert base_model({}) is None
    assert base_model({"some.layer": (4, 4)}) is None
    assert base_model({"blocks.0.self_attn.q": (5120, 5120), "blocks.1.self_attn.q": (1536, 1536)}) is None
    assert base_model({"head.head": (64, 5120), "blocks.0.norm3": (5120,)}) == "Wan2.1/2.2 14B (T2V or I2V)"


def test_reading_takes_time_in_proportion():
    def seconds(modules):
        keys = [
            f"lora_unet_blocks_{n // 10}_{MATRICES[n % 10].replace('.', '_')}.{end}"
            for n in range(modules)
            for end in ENDS
        ]
        start = time.process_time()
        assert len(read_keys(keys).modules) == modules
        return time.process_time() - start

    short, long = (min(seconds(modules) for _ in range(3)) for modules in (512, 4096))
    assert long < 24 * short  # 8 times the work; anything quadratic takes 64 times as long


ENDS = ("alpha", "lora_down.weight", "lora_up.weight")
