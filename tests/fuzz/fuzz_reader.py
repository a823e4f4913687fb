"""Coverage-guided fuzzing of the reader: `pip install atheris`, then

    python -m tests.fuzz.fuzz_reader FOLDER_FOR_THE_CORPUS -max_total_time=600

Stops at the first exception that is no DiffLoraError and leaves the input that caused it.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["difflora"]):
    import difflora  # noqa: F401
    from tests.fuzz.target import read_like_a_user

_PATH = Path(tempfile.mkdtemp()) / "a.safetensors"


def test_one_input(data: bytes) -> None:
    """Half of the inputs get a right length in front, or nearly all would end there."""
    if data[:1] < b"\x80":
        header, _, rest = data[1:].partition(b"\n")
        data = len(header).to_bytes(8, "little") + header + rest
    read_like_a_user(_PATH, data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
