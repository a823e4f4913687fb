"""Damaged and hostile LoRA files: always a DiffLoraError in one line, or a LoRA that can be read; nothing else.

The number of examples grows with DIFFLORA_FUZZ (a factor); `tests/fuzz/fuzz_reader.py` goes on for as long as you like,
guided by coverage.
"""

import json
import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.target import read_like_a_user

EXAMPLES = 150 * int(os.environ.get("DIFFLORA_FUZZ", "1"))
fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)

MODULES = ["blocks.0.self_attn.q", "blocks.1.ffn.0", "patch_embedding", "x", "blocks.0.norm3"]
PREFIXES = ["diffusion_model.", "lora_unet_", "", "base_model.model.", "transformer."]
ENDINGS = [
    "lora_down.weight", "lora_up.weight", "alpha", "lora_mid.weight", "diff", "diff_b", "lora_A.weight", "lora_B.weight",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "dora_scale", "lora_B.bias", "junk",
]  # fmt: skip
keys = st.one_of(
    st.builds(lambda p, m, e: f"{p}{m}.{e}", st.sampled_from(PREFIXES), st.sampled_from(MODULES), st.sampled_from(ENDINGS)),
    st.text(max_size=30),
)
sizes = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I64": 8, "BOOL": 1}
whole = st.one_of(st.integers(0, 12), st.sampled_from([-1, 2**31, 2**63, 2**64, 10**30]))
anything = st.recursive(
    st.none() | st.booleans() | whole | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def sound_headers(draw):
    """A table whose offsets are right, with any keys, shapes and dtypes."""
    table, end = {}, 0
    for key in draw(st.lists(keys, max_size=7, unique=True)):
        code = draw(st.sampled_from(sorted(sizes)))
        shape = draw(st.lists(st.integers(0, 6), max_size=5))
        size = sizes[code]
        for side in shape:
            size *= side
        table[key] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        table["__metadata__"] = draw(st.dictionaries(
            st.sampled_from(["ss_network_dim", "adapter_config", "lora_alpha", "use_rslora", "difflora.recipe", "config"]),
            st.text(max_size=20) | st.sampled_from(['{"lora_alpha": "nan", "r": 4}', "[[[[", '{"lora_alpha": {}}', "1e999"]),
            max_size=3))  # fmt: skip
    return table, end


def pack(table, data):
    text = json.dumps(table).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


@fuzzed
@given(sound_headers(), st.randoms(use_true_random=False))
def test_any_keys_shapes_and_values(tmp_path_factory, header, random):
    table, end = header
    read_like_a_user(tmp_path_factory.mktemp("f") / "a.safetensors", pack(table, random.randbytes(end)))


@fuzzed
@given(sound_headers(), st.data())
def test_one_entry_is_anything(tmp_path_factory, header, data):
    table, end = header
    if table:
        key = data.draw(st.sampled_from(sorted(table)))
        part = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "whole"]))
        if part == "whole" or key == "__metadata__":
            table[key] = data.draw(anything)
        else:
            table[key][part] = data.draw(st.one_of(anything, st.lists(whole, min_size=2, max_size=2)))
    read_like_a_user(tmp_path_factory.mktemp("f") / "a.safetensors", pack(table, bytes(end)))


@fuzzed
@given(st.binary(max_size=200), st.integers(-4, 4))
def test_any_bytes_and_lengths(tmp_path_factory, body, off):
    length = max(0, len(body) + off)
    read_like_a_user(tmp_path_factory.mktemp("f") / "a.safetensors", struct.pack("<Q", length) + body)
    read_like_a_user(tmp_path_factory.mktemp("f") / "a.safetensors", body)


@pytest.mark.parametrize("depth", [10, 10_000, 400_000])
def test_deep_metadata(tmp_path, depth):
    text = ('{"__metadata__":' + "[" * depth + "]" * depth + "}").encode()
    read_like_a_user(tmp_path / "a.safetensors", struct.pack("<Q", len(text)) + text)
    table = {"__metadata__": {"adapter_config": "[" * depth}, "x.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}
    read_like_a_user(tmp_path / "a.safetensors", pack(table, bytes(4)))


def test_a_sparse_file_of_ten_gigabytes_is_read_without_its_memory(tmp_path):
    side = 50_000
    size = side * side * 4
    key = "diffusion_model.blocks.0.self_attn.q"
    table = {f"{key}.lora_up.weight": {"dtype": "F32", "shape": [side, side], "data_offsets": [0, size]},
             f"{key}.alpha": {"dtype": "F32", "shape": [], "data_offsets": [size, size + 4]}}  # fmt: skip
    path = tmp_path / "a.safetensors"
    head = pack(table, b"")
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + size + 4)
    read_like_a_user(path, None)
