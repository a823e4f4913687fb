"""Coverage-guided fuzzing of the reader: `pip install atheris`, then

    python -m tests.fuzz.fuzz_reader FOLDER_FOR_THE_CORPUS -max_total_time=600

Stops at the first exception that is no DiffLoraError and leaves the input that caused it;
`python -m tests.fuzz.fuzz_reader THAT_FILE` runs it again.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["difflora"]):
    import difflora  # noqa: F401
    from tests.fuzz.made_up import made_up
    from tests.fuzz.target import read_like_a_user

_MEMORY = Path("/dev/shm")  # where there is one: a thousand files a second are nothing for a disk
_FOLDER = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None))


def test_one_input(data: bytes) -> None:
    file = made_up(atheris.FuzzedDataProvider(data))
    read_like_a_user(_FOLDER / "a.safetensors", file.content, file.size)


if __name__ == "__main__":
    torch.set_num_threads(1)
    atheris.Setup(sys.argv, test_one_input)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(_FOLDER, ignore_errors=True)
