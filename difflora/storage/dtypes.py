"""The dtypes of safetensors files: their codes, and which of them are numbers or can be written."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
METADATA_KEY = "__metadata__"

# In the order in which the safetensors library lays tensors out: last first.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
FLOATS = {code for code in DTYPES if "F" in code}
OUTPUT_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())
