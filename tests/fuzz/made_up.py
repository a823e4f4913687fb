"""Adapter files from a fuzzer's bytes: of every kind and naming, nearly sound, then damaged.

Bytes alone would never get past the JSON of a header. Here they choose what is in the file and what is wrong with it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, Protocol

MODULES = ["blocks.0.self_attn.q", "blocks.1.ffn.0", "patch_embedding", "x", "blocks.0.norm3", "blocks.0.modulation",
           "blocks.39.cross_attn.k_img", "head.head", "vace_blocks.1.ffn.2", "double_blocks.0.img_attn.qkv",
           "down_blocks.1.attentions.0.proj_in", "text_model.encoder.layers.0.mlp.fc1",
           "x\x1b[31m\n\u202e<b>", "x\x1b\n" + "y" * 5000, "a." * 300 + "q"]  # fmt: skip
PREFIXES = ["diffusion_model.", "lora_unet_", "", "base_model.model.", "transformer.", "lycoris_", "model.diffusion_model.",
            "lora_te1_", "lora_unet__", "pipe.dit."]  # fmt: skip
DTYPES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "U8": 1, "BOOL": 1}
METADATA = ["ss_network_dim", "ss_base_model_version", "adapter_config", "lora_alpha", "use_rslora", "difflora.recipe",
            "config", "lora_adapter_metadata", "modelspec.architecture", "sshs_model_hash"]  # fmt: skip
VALUES = ["", "nan", "1e999", "-1", "4", "[[[[", "{}", "null", "[]", "\u202e<b>&\x00\n", "x" * 5000, "{" * 3000,
          '{"lora_alpha": "nan", "r": 4}', '{"lora_alpha": {}}', '{"lora_alpha": 8, "r": 4, "use_rslora": true}',
          '{"lora_alpha": 2, "alpha_pattern": {"q": "x"}}', '{"lora_alpha": 2, "alpha_pattern": [1]}',
          json.dumps({"lora_alpha": 2, "alpha_pattern": {f"x{place}.q": 1 for place in range(300)}}),
          json.dumps({"lora_alpha": 2, "alpha_pattern": {f"(.?){{200}}x{place}": 1 for place in range(90)}}),
          json.dumps({"lora_alpha": 2, "alpha_pattern": {f".*x{place}": 1 for place in range(101)}}),
          '{"version": 1, "of": {}, "dtype": "float32", "dialect": "native"}', '{"version": 2}', '{"version": {}}',
          '{"version": 1, "of": {"op": "load", "file": "a", "sha256": "b"}, "dtype": "float32", "dialect": "native"}',
          '{"version": 1, "of": {"op": "combine", "unmatched": 1, "terms": [{"weight": "x", "of": 3}]}, "dtype": "", "dialect": ""}',
          '{"version": 1, "of": {"op": "rerank", "rule": {"kind": "fixed", "rank": -1}, "max_rank": [], "of": {"op": "load", '
          '"file": [], "sha256": 1}}, "dtype": "float32", "dialect": "native"}',
          '{"version": 1, "of": {"op": "extract", "base": {"file": 1, "sha256": [{}]}, "tuned": 3}, "dtype": "float32", '
          '"dialect": "native"}']  # fmt: skip
STRANGE = [None, True, -1, 0, 1.5, "x", [], {}, [[]], 2**31, 2**63, 2**64, 10**30, [0, 2**64], [2**40, 2**40], [0, -1],
           {"dtype": "F32"}]  # fmt: skip
CLAIMS = [10_000_000_000, 2_500_000_000, 2**31 + 1, 70_000]


class Choices(Protocol):
    """What atheris.FuzzedDataProvider offers."""

    def ConsumeIntInRange(self, low: int, high: int) -> int: ...
    def ConsumeUnicode(self, count: int) -> str: ...
    def ConsumeBytes(self, count: int) -> bytes: ...
    def PickValueInList(self, values: list[Any]) -> Any: ...
    def remaining_bytes(self) -> int: ...


@dataclass
class MadeUp:
    """A file: its first bytes, and how long it claims to be (the rest is a hole that takes no room)."""

    content: bytes
    size: int
    entries: list[tuple[str, Any]] = field(default_factory=list)


def made_up(choose: Choices) -> MadeUp:
    way = choose.ConsumeIntInRange(0, 31)
    if way == 0:
        content = choose.ConsumeBytes(choose.remaining_bytes())
        return MadeUp(content, len(content))
    if way == 1:
        header = choose.ConsumeBytes(choose.ConsumeIntInRange(0, 200))
        content = struct.pack("<Q", len(header)) + header + choose.ConsumeBytes(choose.remaining_bytes())
        return MadeUp(content, len(content))
    return _structured(choose)


def _structured(choose: Choices) -> MadeUp:
    entries: list[tuple[str, Any]] = []
    end = 0
    for _ in range(choose.ConsumeIntInRange(1, 4)):
        stem = choose.PickValueInList(PREFIXES) + choose.PickValueInList(MODULES)
        if choose.ConsumeIntInRange(0, 1):
            stem = stem.replace(".", "_")
        code = choose.PickValueInList(sorted(DTYPES))
        for ending, shape in _adapter(choose).items():
            size = DTYPES[code]
            for side in shape:
                size *= side
            entries.append((stem + ending, {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}))
            end += size
    for _ in range(choose.ConsumeIntInRange(0, 2)):
        end = _damage(choose, entries, end)
    metadata = {}
    for _ in range(choose.ConsumeIntInRange(0, 3)):
        value = choose.PickValueInList(VALUES) if choose.ConsumeIntInRange(0, 3) else choose.ConsumeUnicode(30)
        metadata[choose.PickValueInList(METADATA)] = value
    if metadata:
        entries.append(
            ("__metadata__", metadata if choose.ConsumeIntInRange(0, 15) else choose.PickValueInList(STRANGE))
        )
    # Put together by hand, so that a key can be there twice.
    header = ("{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries) + "}").encode()
    size = 8 + len(header) + end + (0 if choose.ConsumeIntInRange(0, 15) else choose.ConsumeIntInRange(-9, 9))
    data = choose.ConsumeBytes(choose.remaining_bytes()) or b"\0"
    data = (data * (min(end, 100_000) // len(data) + 1))[:end]
    content = struct.pack("<Q", len(header)) + header + data
    return MadeUp(content[: max(0, size)], max(0, size), entries)


def _adapter(choose: Choices) -> dict[str, list[int]]:
    """The endings and shapes of one module's adapter, which fit together."""
    out, inside, rank, other = (choose.ConsumeIntInRange(1, 6) for _ in range(4))
    kernel = choose.PickValueInList([[], [], [], [1, 1], [3, 3], [1, 2, 2]])
    point = [1] * len(kernel)
    plain = {".lora_up.weight": [out, rank, *point], ".lora_down.weight": [rank, inside, *kernel]}
    kinds: list[dict[str, list[int]]] = [
        plain,
        plain | {".alpha": []},
        {".lora_B.weight": [out, rank], ".lora_A.weight": [rank, inside]},
        {".lora_B.default.weight": [out, rank], ".lora_A.default.weight": [rank, inside], ".lora_B.bias": [out]},
        {".lora.up.weight": [out, rank], ".lora.down.weight": [rank, inside], ".alpha": [1]},
        {".diff": [out, inside, *kernel], ".diff_b": [out]},
        {".diff": choose.PickValueInList([[out], [1, 6, out], [], [0]])},
        {".diff_m": [1, 6, out]},
        {".lora_up.weight": [out, rank], ".lora_mid.weight": [rank, rank, 3, 3], ".lora_down.weight": [rank, inside], ".alpha": []},
        {".hada_w1_a": [out, rank], ".hada_w1_b": [rank, inside], ".hada_w2_a": [out, other], ".hada_w2_b": [other, inside],
         ".alpha": []},
        {".hada_w1_a": [rank, out], ".hada_w1_b": [rank, inside], ".hada_w2_a": [rank, out], ".hada_w2_b": [rank, inside],
         ".hada_t1": [rank, rank, 3, 3], ".hada_t2": [rank, rank, 3, 3]},
        {".lokr_w1": [out, inside], ".lokr_w2": [rank, other, *kernel]},
        {".lokr_w1": [out, inside], ".lokr_w2_a": [rank, other], ".lokr_w2_b": [other, inside], ".alpha": []},
        {".lokr_w1_a": [out, rank], ".lokr_w1_b": [rank, inside], ".lokr_w2": [other, out]},
        {".lokr_w1": [out, inside], ".lokr_t2": [rank, other, 3, 3], ".lokr_w2_a": [rank, out], ".lokr_w2_b": [other, inside]},
        {".weight": [out, inside], ".scale_weight": choose.PickValueInList([[], [1], [out]]), ".bias": [out]},
        plain | {".dora_scale": [out, 1]},
        {"." + choose.ConsumeUnicode(8): [out]},
    ]  # fmt: skip
    return choose.PickValueInList(kinds)


def _damage(choose: Choices, entries: list[tuple[str, Any]], end: int) -> int:
    """One thing goes wrong with the table; returns where the data end now."""
    place = choose.ConsumeIntInRange(0, len(entries) - 1)
    key, entry = entries[place]
    match choose.ConsumeIntInRange(0, 8):
        case 0:
            del entries[place]
            entries.append(("x.junk", {"dtype": "U8", "shape": [], "data_offsets": [end, end + 1]}))
            return end + 1
        case 1:
            entries.append((key, entry))  # twice
        case 2 if isinstance(entry, dict):
            entry["dtype"] = choose.PickValueInList([*DTYPES, "F4", "C64", "", None, 1, []])
        case 3 if isinstance(entry, dict):
            entry["shape"] = choose.PickValueInList(
                [*STRANGE, [1], [0, 4], [4, 0], [2, 2, 2, 2, 2, 2], [1] * 33, [2**63 - 1] * 3000]
            )
        case 4 if isinstance(entry, dict):
            entry["data_offsets"] = [end + choose.ConsumeIntInRange(-9, 9), end + choose.ConsumeIntInRange(-9, 9)]
        case 5 if isinstance(entry, dict):
            entry[choose.PickValueInList(["dtype", "shape", "data_offsets", "more"])] = choose.PickValueInList(STRANGE)
        case 6:
            entries[place] = (key, choose.PickValueInList(STRANGE))
        case 7:
            entries[place] = (choose.ConsumeUnicode(20), entry)
        case 8:  # more than anybody's memory, in a file that takes no room
            claim = choose.PickValueInList(CLAIMS)
            shape = [claim] if choose.ConsumeIntInRange(0, 1) else [claim // 1000, 1000]
            size = 1
            for side in shape:
                size *= side
            entries[place] = (
                key,
                {
                    "dtype": "U8" if choose.ConsumeIntInRange(0, 1) else "F8_E4M3",
                    "shape": shape,
                    "data_offsets": [end, end + size],
                },
            )
            return end + size
    return end
