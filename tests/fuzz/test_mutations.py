"""Damaged and hostile LoRA files: always a DiffLoraError in one line, or a LoRA that can be read; nothing else.

The number of examples grows with DIFFLORA_FUZZ (a factor); `tests/fuzz/fuzz_reader.py` goes on for as long as you like,
guided by coverage.
"""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from difflora.errors import TensorError
from difflora.lora.file import load
from tests.conftest import absent
from tests.fuzz.made_up import METADATA, MODULES, PREFIXES, VALUES, made_up
from tests.fuzz.target import read_like_a_user

EXAMPLES = 150 * int(os.environ.get("DIFFLORA_FUZZ", "1"))
fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)

ENDINGS = [
    "lora_down.weight", "lora_up.weight", "alpha", "lora_mid.weight", "diff", "diff_b", "lora_A.weight", "lora_B.weight",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "dora_scale", "lora_B.bias", "junk",
]  # fmt: skip
keys = st.one_of(
    st.builds(
        lambda p, m, e: f"{p}{m}.{e}", st.sampled_from(PREFIXES), st.sampled_from(MODULES), st.sampled_from(ENDINGS)
    ),
    st.text(max_size=30),
)
sizes = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I64": 8, "BOOL": 1}
whole = st.one_of(st.integers(0, 12), st.sampled_from([-1, 2**31, 2**63, 2**64, 10**30]))
anything = st.recursive(
    st.none() | st.booleans() | whole | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


class Drawn:
    """Hypothesis in the place of atheris.FuzzedDataProvider."""

    def __init__(self, data):
        self.draw = data.draw

    def ConsumeIntInRange(self, low, high):
        return self.draw(st.integers(low, high))

    def ConsumeUnicode(self, count):
        return self.draw(st.text(st.characters(), max_size=count))

    def ConsumeBytes(self, count):
        return self.draw(st.binary(max_size=count))

    def PickValueInList(self, values):
        return self.draw(st.sampled_from(values))

    def remaining_bytes(self):
        return 60


@fuzzed
@given(st.data())
def test_adapters_of_every_kind_with_damage(tmp_path_factory, data):
    file = made_up(Drawn(data))
    read_like_a_user(tmp_path_factory.mktemp("f") / "a.safetensors", file.content, file.size)


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
            st.sampled_from(METADATA), st.text(max_size=20) | st.sampled_from(VALUES), max_size=3))  # fmt: skip
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
    table = {
        "__metadata__": {"adapter_config": "[" * depth},
        "x.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    read_like_a_user(tmp_path / "a.safetensors", pack(table, bytes(4)))


SIDE = 50_000
SPARSE = {
    "one matrix": {"blocks.0.self_attn.q.diff": [SIDE, SIDE]},
    "one vector": {"blocks.0.norm3.diff": [SIDE * SIDE]},
    "one checkpoint weight": {"blocks.0.self_attn.q.weight": [SIDE, SIDE]},
    "two factors": {
        "blocks.0.ffn.0.lora_up.weight": [SIDE // 2, SIDE],
        "blocks.0.ffn.0.lora_down.weight": [SIDE, SIDE // 2],
    },
    "a factor without its partner": {"blocks.0.ffn.0.lora_up.weight": [SIDE, SIDE]},
    "many": {f"blocks.{block}.ffn.0.diff": [2500, 25_000] for block in range(40)},
}


@pytest.mark.skipif(os.name == "nt", reason="a sparse file takes its room on Windows")
@pytest.mark.parametrize("what", SPARSE)
def test_sparse_files_of_ten_gigabytes_are_refused_or_read_without_their_memory(what, tmp_path):
    table, end = {}, 0
    for key, shape in SPARSE[what].items():
        table[f"diffusion_model.{key}"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [end, end + 4 * shape[0] * (shape[1] if shape[1:] else 1)],
        }
        end += 4 * shape[0] * (shape[1] if shape[1:] else 1)
    assert end == 10_000_000_000
    import resource  # not on Windows

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_like_a_user(tmp_path / "a.safetensors", pack(table, b""), len(pack(table, b"")) + end)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": [3000, 3000], "lokr_w2": [3000, 3000]},
        {"lokr_w1": [90_000, 2], "lokr_w2_a": [90_000, 1], "lokr_w2_b": [1, 2]},
        {"hada_w1_a": [90_000, 1], "hada_w1_b": [1, 90_000], "hada_w2_a": [90_000, 1], "hada_w2_b": [1, 90_000]},
    ],
    ids=["full lokr", "tall lokr", "loha"],
)
def test_small_files_that_would_be_weights_of_no_model_are_refused(parts, tmp_path):
    """A Kronecker product of two matrices of 36 MB has 81 million millions of values."""
    table, end = {}, 0
    for part, shape in parts.items():
        table[f"diffusion_model.x.{part}"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [end, end + 4 * shape[0] * shape[1]],
        }
        end += 4 * shape[0] * shape[1]
    (tmp_path / "a.safetensors").write_bytes(pack(table, bytes(end)))
    with pytest.raises(TensorError, match="no model has"):
        load(tmp_path / "a.safetensors")


def test_the_coverage_guided_fuzzer_runs(tmp_path):
    if importlib.util.find_spec("atheris") is None:
        absent("atheris is not installed; it has wheels for Linux on x86-64")
    import resource

    # A process begins with the peak of the one that starts it, and libFuzzer looks at the peak.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.fuzz_reader",
        str(tmp_path),
        "-runs=1500",
        "-max_len=400",
        "-timeout=100",
        f"-rss_limit_mb={own + 2048}",
        f"-artifact_prefix={tmp_path}/",
    ]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0 and "Done 1500 runs" in done.stderr, done.stderr[-3000:]
    assert len(list(tmp_path.iterdir())) > 5  # it found inputs that lead further than the last ones
