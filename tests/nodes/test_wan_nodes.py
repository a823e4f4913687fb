"""Whole blocks out of a selection, and what the wrapper's wires carry. Runs without ComfyUI."""

import copy
import gc

import pytest
import torch

from tests.pack_modules import pack_module

followers = pack_module("nodes.slider.followers")
wires = pack_module("nodes.slider.wrapper_wires")
whole_blocks = pack_module("nodes.slider.whole_blocks")
errors = pack_module("difflora.errors")

IN_BLOCK = [f"{attention}.{p}" for attention in ("self_attn", "cross_attn") for p in "qkvo"] + ["ffn.0", "ffn.2"]
MODULES = [
    "patch_embedding",
    *(f"blocks.{i}.{name}" for i in range(4) for name in [*IN_BLOCK, "norm3", "self_attn.norm_q"]),
    *(f"vace_blocks.{i}.{name}" for i in range(2) for name in IN_BLOCK),
    "head.head",
]


class TestWholeBlocks:
    @pytest.mark.parametrize(
        ("text", "blocks"),
        [
            ("", []),
            ("none", []),
            ("blocks 2", [2]),
            ("blocks 0-1,3", [0, 1, 3]),
            ("block 3, block 1", [1, 3]),
            ("!blocks 1-2", [0, 3]),
            ("all", [0, 1, 2, 3]),
            ("attn, ffn", [0, 1, 2, 3]),
            ("blocks 1 & attn, blocks 1 & ffn", [1]),
            ("/blocks\\.[02]\\./", [0, 2]),
            ("blocks 2-", [2, 3]),
        ],
    )
    def test_a_selection_of_whole_blocks_gives_their_numbers(self, text, blocks):
        assert whole_blocks.blocks_named(text, MODULES) == blocks

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("attn", "picks a part of block 0 only .blocks.0.ffn.0 is not in it"),
            ("blocks 2 & q", "picks a part of block 2"),
            ("blocks 2, blocks 3 & ffn.0", "picks a part of block 3"),
            ("blocks 1=0.5", "the weight 0.5, but a block is either on or off"),
            ("blocks 1=-1", "the weight -1"),
            ("blocks 1,9-12, blocks 40", r"nothing in this model fits blocks 40. It has blocks 0-3\."),
            ("blocks 7", "selects nothing"),
            ("head", "selects nothing"),
            ("blocks 3-1", "runs backwards"),
        ],
    )
    def test_anything_else_is_an_error_that_says_why(self, text, reason):
        with pytest.raises(errors.SelectionError, match=reason):
            whole_blocks.blocks_named(text, MODULES)


def entry(**changes):
    return wires.lora_entry("/temp/x.safetensors", -2.0, "x", merge_loras=False, low_mem_load=False) | changes


class TestLoraWire:
    def test_an_entry_has_every_field_of_the_contract_and_no_other(self):
        assert entry() == {
            "path": "/temp/x.safetensors",
            "strength": -2.0,
            "name": "x",
            "blocks": {},
            "layer_filter": "",
            "low_mem_load": False,
            "merge_loras": False,
        }

    def test_low_memory_loading_is_for_merging_only(self):
        assert wires.lora_entry("p", 1.0, "n", merge_loras=True, low_mem_load=True)["low_mem_load"] is True
        assert wires.lora_entry("p", 1.0, "n", merge_loras=False, low_mem_load=True)["low_mem_load"] is False

    def test_a_chain_keeps_order_and_leaves_the_list_before_it_alone(self):
        style, distill = entry(name="style"), entry(name="distill")
        before = [style, distill]
        assert [lora["name"] for lora in wires.chained(before, entry())] == ["style", "distill", "x"]
        assert before == [style, distill]
        assert wires.chained(None, entry()) == wires.chained([], entry()) == [entry()]

    @pytest.mark.parametrize("ours", [True, False])
    def test_merged_and_unmerged_do_not_mix(self, ours):
        before = [entry(name="fits", merge_loras=ours), entry(name="style", merge_loras=not ours)]
        with pytest.raises(errors.PairError, match="but style is"):
            wires.chained(before, entry(merge_loras=ours))

    def test_an_entry_that_does_not_say_counts_as_merged_as_in_the_wrapper(self):
        silent = {"path": "p", "strength": 1.0, "name": "old"}
        with pytest.raises(errors.PairError, match="x is not merged, but old is merged"):
            wires.chained([silent], entry())
        assert len(wires.chained([silent], entry(merge_loras=True))) == 2

    def test_a_model_that_merged_loras_is_refused(self):
        wires.check_unmerged({"merge_loras": False})
        wires.check_unmerged({})
        with pytest.raises(errors.UnsupportedError, match="would do nothing"):
            wires.check_unmerged({"merge_loras": True})


def test_text_is_a_list_of_two_dimensional_embeddings_for_both_prompts():
    embedding = torch.randn(1, 512, 4096)
    made = wires.text_embeds(embedding)
    for key in ("prompt_embeds", "negative_prompt_embeds"):
        assert len(made[key]) == 1
        assert torch.equal(made[key][0], embedding[0])


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x, x_ip=None, lynx_ref_feature=None, x_ovi=None, transformer_options={}):  # noqa: B006
        return x + self.linear(x), x_ip, lynx_ref_feature, x_ovi


class VaceBlock(Block):
    def forward(self, x, **kwargs):
        return super().forward(x, **kwargs)


class Transformer(torch.nn.Module):
    """Loops over its blocks as the wrapper's does, and hands them the options of the call."""

    def __init__(self, blocks=5, kind=Block):
        super().__init__()
        self.blocks = torch.nn.ModuleList(kind() for _ in range(blocks))

    def forward(self, x, transformer_options):
        feature = "feature"
        for block in self.blocks:
            x, x_ip, feature, x_ovi = block(
                x, x_ip=None, lynx_ref_feature=feature, x_ovi="sound", transformer_options=transformer_options
            )
            assert (x_ip, feature, x_ovi) == (None, "feature", "sound")
        return x


@pytest.fixture
def x():
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def without(transformer, blocks):
    cut = copy.deepcopy(transformer)
    cut.blocks = torch.nn.ModuleList(block for i, block in enumerate(cut.blocks) if i not in blocks)
    return cut


class TestSwitchOff:
    @pytest.mark.parametrize("kind", [Block, VaceBlock])
    @pytest.mark.parametrize("blocks", [[0], [4], [1, 2], [0, 1, 2, 3, 4]])
    def test_equals_a_model_without_these_blocks(self, x, kind, blocks):
        transformer = Transformer(kind=kind)
        expected = without(transformer, blocks)(x, {})
        off = wires.switch_off(transformer, blocks)
        assert torch.equal(transformer(x, {wires.BLOCKS_OFF: off}), expected)

    def test_only_calls_with_the_options_see_it_in_any_order(self, x):
        transformer = Transformer()
        whole = transformer(x, {})
        expected = {blocks: without(transformer, blocks)(x, {}) for blocks in [(1,), (1, 3), (4,)]}
        options = {blocks: {wires.BLOCKS_OFF: wires.switch_off(transformer, blocks)} for blocks in expected}
        for blocks in [(1,), (4,), (1, 3), (4,), (1,)]:
            assert torch.equal(transformer(x, options[blocks]), expected[blocks])
            assert torch.equal(transformer(x, {}), whole)

    def test_the_options_may_be_copied_as_the_sampler_does(self, x):
        transformer = Transformer()
        expected = without(transformer, [2])(x, {})
        options = copy.deepcopy({wires.BLOCKS_OFF: wires.switch_off(transformer, [2])})
        gc.collect()
        assert torch.equal(transformer(x, options), expected)

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, type("Cancelled", (BaseException,), {})])
    def test_an_error_or_a_cancel_in_the_middle_leaves_the_model_as_it_was(self, x, error):
        transformer = Transformer()
        whole = transformer(x, {})
        off = wires.switch_off(transformer, [1])

        def fail(*_):
            raise error

        failing = transformer.blocks[3].register_forward_pre_hook(fail)
        with pytest.raises(error):
            transformer(x, {wires.BLOCKS_OFF: off})
        failing.remove()
        assert torch.equal(transformer(x, {}), whole)

    def test_the_gates_go_with_the_last_set_that_needs_them(self):
        transformer = Transformer()
        first, second = wires.switch_off(transformer, [1, 2]), wires.switch_off(transformer, [2, 3])
        assert gates(transformer) == [1, 2, 3]
        del first
        gc.collect()
        assert gates(transformer) == [2, 3]
        del second
        gc.collect()
        assert gates(transformer) == []

    def test_a_compiled_block_is_gated_inside(self, x):
        transformer = Transformer()
        expected = without(transformer, [1, 2])(x, {})
        whole = transformer(x, {})
        for i, block in enumerate(transformer.blocks):
            transformer.blocks[i] = torch.compile(block, backend="eager")
        options = {wires.BLOCKS_OFF: wires.switch_off(transformer, [1, 2])}
        for _ in range(2):
            assert torch.equal(transformer(x, options), expected)
            assert torch.equal(transformer(x, {}), whole)

    def test_a_wrapper_whose_blocks_are_not_told_their_options_is_refused(self):
        class Old(torch.nn.Module):
            def forward(self, x, **kwargs):
                return x, None, None, None

        with pytest.raises(errors.UnsupportedError, match="Update WanVideoWrapper"):
            wires.switch_off(Transformer(kind=Old), [0])


def gates(transformer):
    return [i for i, block in enumerate(transformer.blocks) if "forward" in block.__dict__]


def test_nodes_behind_that_take_only_the_weights_are_found_however_far_behind():
    def prompt(*nodes):
        return {name: {"class_type": kind, "inputs": {"a": [source, 0], "b": 1}} for name, kind, source in nodes}

    chain = prompt(
        ("s", "Slider", "m"), ("t", "ModelSamplingSD3", "s"), ("u", "ModelSave", "t"), ("v", "KSampler", "s")
    )
    assert followers.takers_of_weights(chain, "s") == ["ModelSave"]
    assert followers.takers_of_weights(chain, "v") == []
    beside = prompt(("s", "Slider", "m"), ("u", "ModelMergeSimple", "m"), ("w", "CheckpointSave", "u"))
    assert followers.takers_of_weights(beside, "s") == []
    assert followers.takers_of_weights(beside, "m") == ["CheckpointSave", "ModelMergeSimple"]
    circle = prompt(("s", "Slider", "t"), ("t", "ModelMergeBlocks", "s"))
    assert followers.takers_of_weights(circle, "s") == ["ModelMergeBlocks"]
