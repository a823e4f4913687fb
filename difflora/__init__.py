"""Exact LoRA algebra: subtract, select, re-rank, inspect and save LoRAs without ever forming a full matrix.

A slider from a pair:

    import difflora

    difference = difflora.subtract(difflora.load("dense.safetensors"), difflora.load("sparse.safetensors"))
    slider = difflora.rerank(difference.select("attn"), difflora.FixedRank(4))
    difflora.save(slider, "density.safetensors")
"""

import sys

try:
    from .errors import DiffLoraError
    from .lora.algebra import combine, subtract
    from .lora.file import load
    from .lora.lora import Lora
    from .rank.analysis import Analysis, analyze
    from .rank.calibrate import calibrate, calibrate_norm
    from .rank.purify import independent, purify
    from .rank.rerank import rerank
    from .rank.rules import Energy, FixedRank, Knee, Ratio
    from .saving.save import save
    from .version import __version__
except KeyboardInterrupt:
    if sys.argv[0] != "-m":
        raise
    # `python -m difflora` interrupted while it imports torch, which takes most of the time of many commands.
    sys.stderr.write("difflora: interrupted; nothing was written.\n")
    raise SystemExit(2) from None

__all__ = [
    "Analysis",
    "DiffLoraError",
    "Energy",
    "FixedRank",
    "Knee",
    "Lora",
    "Ratio",
    "__version__",
    "analyze",
    "calibrate",
    "calibrate_norm",
    "combine",
    "independent",
    "load",
    "purify",
    "rerank",
    "save",
    "subtract",
]
