"""What a fuzzer feeds: everything that the pack does with a file somebody else made."""

from pathlib import Path

import difflora
from difflora.deltas import LowRank

MOST = 4_000_000  # values of one delta that are still multiplied out


def read_like_a_user(path: Path, content: bytes | None) -> bool:
    """Load, read every module, re-rank and save. True if that worked; False if it was refused properly.

    Any other exception than a DiffLoraError with a one-line message gets through, and is the find.
    """
    if content is not None:
        path.write_bytes(content)
    try:
        lora = difflora.load(path)
        for name in lora:
            spec = lora.specs[name]
            if spec.out_features * spec.in_features <= MOST:
                assert lora[name].dense().shape == spec.shape
        if lora.matrices and all(isinstance(lora[name], LowRank) for name in lora.matrices):
            small = difflora.rerank(lora, difflora.Energy(0.9))
            difflora.save(small, path.with_name("out.safetensors"), overwrite=True)
            assert difflora.load(path.with_name("out.safetensors")).names
        _ = lora.recipe, lora.base_model, lora.warnings
    except difflora.DiffLoraError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 2000, message
        assert message.isprintable(), repr(message)
        return False
    return True
