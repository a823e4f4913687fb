"""The attack on saving: killed, raced, without room. There is the old file or the new one, never a torn one, and no rest."""

import contextlib
import errno
import hashlib
import io
import os
import platform
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import difflora
from difflora.errors import FileError, OutputError
from difflora.storage import reader, writer
from tests import savers
from tests.lora_files import Q, factors, write

KILLS = 6 if os.name == "nt" else 100
MODULES = [f"blocks.{block}.self_attn.q" for block in range(10)]


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight LoRAs that differ in every value, 40 kB each."""
    folder = tmp_path_factory.mktemp("loras")
    return [
        write(
            folder / f"{side}.safetensors",
            {name: factors(rank=16, seed=100 * side + place) for place, name in enumerate(MODULES)},
        )
        for side in range(8)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def bytes_of(loras: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Which LoRA a saved file is, by its SHA-256."""
    monkeypatch.setattr("difflora.saving.save.now", difflora.saving.save.now)
    savers.same_bytes_every_time()
    out = tmp_path / "slider.safetensors"
    return {
        sha256(difflora.save(difflora.load(path), out, overwrite=True)): number for number, path in enumerate(loras)
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


@contextlib.contextmanager
def process(target: Callable[..., None], *arguments: object) -> Iterator[tuple[object, object]]:
    """A process that is killed at the end, and the connection to it."""
    context = savers.processes()
    here, there = context.Pipe()
    running = context.Process(target=target, args=(*arguments, there), daemon=True)
    running.start()
    try:
        yield running, here
    finally:
        running.kill()
        running.join()


def leftover_of(source: Path, out: Path) -> Path:
    """What a save leaves that is killed in the middle."""
    before = set(hidden(out.parent))
    with process(savers.save_when_told, source, out) as (_, connection):
        assert connection.recv() == "in the middle"
    [left] = set(hidden(out.parent)) - before
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))  # Windows has no other sign that nobody uses it
    return left


# Killed


@pytest.mark.slow
def test_a_hundred_kills_leave_the_old_file_or_the_new_one(
    loras: list[Path], bytes_of: dict[str, int], folder: Path
) -> None:
    out = folder / "slider.safetensors"
    difflora.save(difflora.load(loras[0]), out)
    with process(savers.save_for_ever, loras[:2], out) as (_, connection):
        connection.recv()
        begun = time.monotonic()
        connection.recv()
        one_save = time.monotonic() - begun
    found, left = Counter(), Counter()
    for kill in range(KILLS):
        with process(savers.save_for_ever, loras[kill % 2 : kill % 2 + 2], out) as (_, connection):
            connection.recv()
            time.sleep(4 * one_save * kill / KILLS)  # two saves, also if each takes twice as long by now
        found[bytes_of[sha256(out)]] += 1  # a torn one is not in the table
        rest = hidden(folder)
        assert len(rest) <= 1  # the next save removes what the killed one has left
        for path in rest:
            left["complete" if sha256(path) in bytes_of else "partial"] += 1
            os.utime(path, (0, 0))
    assert len(found) == 3
    if KILLS == 100:
        assert left["partial"] >= 10 and left["complete"] >= 10  # in the middle, and between the last byte and the name
    difflora.save(difflora.load(loras[2]), out, overwrite=True)
    assert [path.name for path in folder.iterdir()] == [out.name]


# What killed saves leave


def test_the_next_save_removes_what_killed_ones_have_left(loras: list[Path], folder: Path) -> None:
    out = folder / "[x]*.safetensors"
    for _ in range(3):
        leftover_of(loras[0], out)
    difflora.save(difflora.load(loras[1]), out)
    assert [path.name for path in folder.iterdir()] == [out.name]


def test_what_is_left_makes_room_before_room_is_missed(
    loras: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "slider.safetensors"
    left = leftover_of(loras[0], out)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: SimpleNamespace(free=0 if left.exists() else 10**9))
    difflora.save(difflora.load(loras[1]), out)
    assert list(folder.iterdir()) == [out]


def test_what_saves_to_other_names_have_left_stays(loras: list[Path], folder: Path) -> None:
    one, other = folder / ("x" * 40 + "1.safetensors"), folder / ("x" * 40 + "2.safetensors")
    left = leftover_of(loras[0], one)
    difflora.save(difflora.load(loras[1]), other)
    assert hidden(folder) == [left]
    mine = folder / f".{one.stem[:40]}.tmp"
    mine.touch()
    difflora.save(difflora.load(loras[1]), one)
    assert hidden(folder) == [mine]


def test_what_another_machine_has_left_stays(loras: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be running: locks on a network share do not show everywhere."""
    out = folder / "slider.safetensors"
    left = leftover_of(loras[0], out)
    monkeypatch.setattr(platform, "node", lambda: "another")
    difflora.save(difflora.load(loras[1]), out)
    assert hidden(folder) == [left]


@pytest.mark.parametrize("where", ["in this thread", "in another process"])
def test_a_save_that_runs_is_left_alone(where: str, loras: list[Path], bytes_of: dict[str, int], folder: Path) -> None:
    out = folder / "slider.safetensors"

    def another(done: int = 1, total: int = 0) -> None:
        if done == 1:
            [running] = hidden(folder)
            difflora.save(difflora.load(loras[1]), out, overwrite=True)
            assert hidden(folder) == [running] and bytes_of[sha256(out)] == 1

    if where == "in this thread":
        difflora.save(difflora.load(loras[0]), out, progress=another, overwrite=True)
        assert bytes_of[sha256(out)] == 0
    else:
        with process(savers.save_when_told, loras[0], out) as (running, connection):
            assert connection.recv() == "in the middle"
            another()
            connection.send("go on")
            running.join(60)
            assert running.exitcode == 0
        torch.testing.assert_close(values(out), values(loras[0]))
    assert not hidden(folder)


def test_a_save_that_only_lacks_its_name_is_left_alone(
    loras: list[Path], bytes_of: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = folder / "slider.safetensors", os.replace

    def another_first(*paths: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        difflora.save(difflora.load(loras[1]), out, overwrite=True)
        replace(*paths)

    monkeypatch.setattr(os, "replace", another_first)
    difflora.save(difflora.load(loras[0]), out, overwrite=True)
    assert bytes_of[sha256(out)] == 0 and list(folder.iterdir()) == [out]


@pytest.mark.skipif(os.name == "nt", reason="Windows needs no locks")
def test_locks_that_there_are_not_and_locks_that_come_too_late(
    loras: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    out = folder / "slider.safetensors"
    left = leftover_of(loras[0], out)

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    difflora.save(difflora.load(loras[1]), out)
    assert hidden(folder) == [left]  # nobody knows whether it is in use
    left.unlink()

    def late(*_: object) -> None:
        if len(removed) < 2:
            removed.extend(hidden(folder))
            removed[-1].unlink()

    removed: list[Path] = []
    monkeypatch.setattr(fcntl, "flock", late)
    difflora.save(difflora.load(loras[2]), out, overwrite=True)
    assert len(removed) == 2 and not hidden(folder)
    torch.testing.assert_close(values(out), values(loras[2]))


def values(path: Path) -> dict[str, torch.Tensor]:
    return {name: delta.dense() for name, delta in difflora.load(path).items()}


# At the same moment


@pytest.fixture(params=["hard links", "no hard links"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refuse)


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def contested(folder: Path) -> list[Path]:
    """Files of the same name, which is in them, too."""
    outs = [folder / f"{place}" / "slider.safetensors" for place in range(8)]
    for out in outs:
        out.parent.mkdir()
    return outs


def check_contest(won: list[list[bool]], outs: list[Path], overwrite: bool, bytes_of: dict[str, int]) -> None:
    for place, out in enumerate(outs):
        winners = [number for number, one in enumerate(won) if one[place]]
        assert len(winners) == (len(won) if overwrite else 1)
        assert bytes_of[sha256(out)] in winners
        assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("overwrite", [True, False])
def test_eight_threads_save_to_one_name(
    overwrite: bool, loras: list[Path], bytes_of: dict[str, int], folder: Path, file_system: None
) -> None:
    outs = contested(folder)
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda path: savers.contest(path, outs, overwrite, barrier), loras))
    check_contest(won, outs, overwrite, bytes_of)


@pytest.mark.parametrize("overwrite", [True, False])
def test_three_processes_save_to_one_name(
    overwrite: bool, loras: list[Path], bytes_of: dict[str, int], folder: Path
) -> None:
    outs = contested(folder)
    context = savers.processes()
    barrier = context.Barrier(3)
    pipes, running = [context.Pipe() for _ in range(3)], []
    for (_, there), path in zip(pipes, loras, strict=False):
        running.append(
            context.Process(target=savers.contest_and_tell, args=(there, path, outs, overwrite, barrier), daemon=True)
        )
        running[-1].start()
    won = [here.recv() for here, _ in pipes]
    for one in running:
        one.join()
    check_contest(won, outs, overwrite, bytes_of)


@pytest.mark.skipif(os.name == "nt", reason="Windows needs no hard links")
def test_a_claimed_name_is_given_back_after_an_error(
    loras: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "slider.safetensors"

    def full(*_: object) -> None:
        assert out.stat().st_size == 0
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="the disk is full"):
        difflora.save(difflora.load(loras[0]), out)
    assert not list(folder.iterdir())


# Read meanwhile


def test_a_reader_sees_the_old_file_or_the_new_one(loras: list[Path], folder: Path) -> None:
    out = folder / "slider.safetensors"
    difflora.save(difflora.load(loras[0]), out)
    candidates = [values(path) for path in loras[:2]]
    found = Counter()
    with process(savers.save_for_ever, loras[:2], out) as (_, connection):
        connection.recv()
        until = time.monotonic() + 60
        while min(found["0"], found["1"], found["refused"]) < 5:
            assert time.monotonic() < until, found
            try:
                read = values(out)
            except FileError as error:
                assert "changed after it was loaded" in str(error)
                found["refused"] += 1
                continue
            [same] = [
                number
                for number, candidate in enumerate(candidates)
                if all(torch.allclose(read[name], candidate[name]) for name in MODULES)
            ]
            found[str(same)] += 1


def test_a_file_replaced_while_its_header_is_read(
    loras: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header of the old file is never taken for that of the new one."""
    out = folder / "slider.safetensors"
    difflora.save(difflora.load(loras[0]), out)
    readable = reader._readable

    @contextlib.contextmanager
    def replaced(path: Path) -> Iterator[object]:
        with readable(path) as file:
            monkeypatch.setattr(reader, "_readable", readable)
            difflora.save(difflora.load(loras[1]), out, overwrite=True)
            yield file

    monkeypatch.setattr(reader, "_readable", replaced)
    header = reader.read_header(out)
    with pytest.raises(FileError, match="changed after it was loaded"):
        reader.read_tensors(header, list(header.entries))


def test_a_folder_that_became_a_file(loras: list[Path], folder: Path) -> None:
    path = folder / "slider.safetensors"
    path.write_bytes(loras[0].read_bytes())
    lora = difflora.load(path)
    path.unlink()
    folder.rmdir()
    folder.touch()
    with pytest.raises(FileError, match="slider.safetensors: "):
        _ = lora.sha256


@pytest.mark.parametrize("size", [0, 4, 1000, 20_000])
@pytest.mark.parametrize("what", ["header", "tensors"])
def test_a_file_cut_off_while_it_is_read(
    what: str, size: int, loras: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is missing in the middle of the read: no crash, no zeros."""
    out = folder / "slider.safetensors"
    out.write_bytes(loras[0].read_bytes())
    header = reader.read_header(out)
    identify = reader.FileIdentity.of

    def cut(path: Path, *more: object) -> reader.FileIdentity:
        identity = identify(path, *more)
        os.truncate(out, size)
        return identity

    monkeypatch.setattr(reader.FileIdentity, "of", cut)
    with pytest.raises(FileError, match="slider.safetensors: "):
        if what == "header":
            found = reader.read_header(out)
            monkeypatch.setattr(reader.FileIdentity, "of", identify)
            reader.read_tensors(found, list(found.entries))
        else:
            reader.read_tensors(header, list(header.entries))


# No room


class SmallDisk(io.FileIO):
    room = 0

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_disk_that_is_full_after_any_number_of_bytes(
    overwrite: bool, loras: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "slider.safetensors"
    whole = difflora.save(difflora.load(loras[0]), out).stat().st_size
    before = out.read_bytes() if overwrite else None
    if not overwrite:
        out.unlink()
    monkeypatch.setattr(
        writer,
        "open",
        lambda path, mode, **_: io.BufferedRandom(SmallDisk(path, "x+")) if mode == "x+b" else io.FileIO(path, "r"),
        raising=False,
    )
    for room in (0, 1, 5000, whole // 2, whole - 1):
        monkeypatch.setattr(SmallDisk, "room", room)
        with pytest.raises(OutputError, match="the disk is full"):
            difflora.save(difflora.load(loras[1]), out, overwrite=overwrite)
        assert [path.read_bytes() for path in folder.iterdir()] == ([before] if overwrite else [])
    monkeypatch.setattr(SmallDisk, "room", whole)
    difflora.save(difflora.load(loras[1]), out, overwrite=overwrite)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="test_bad_input has it for those who are not root")
def test_a_folder_that_may_not_be_written_into(loras: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders can be entered by nobody else
        folder = Path(name)
        source, out = folder / "source.safetensors", folder / "locked" / "slider.safetensors"
        source.write_bytes(loras[0].read_bytes())
        out.parent.mkdir()
        out.write_bytes(b"the old one")
        folder.chmod(0o755)
        with process(savers.save_as_nobody, source, out) as (_, connection):
            assert "you may not write into this folder. Nothing was changed." in connection.recv()
        assert [path.read_bytes() for path in out.parent.iterdir()] == [b"the old one"]


def test_values_copied_from_inputs_are_of_the_length_of_names(tmp_path):
    """Two inputs whose values fill a header each: what is written can be read back."""
    long = "x" * 60_000_000
    entries = {"ss_base_model_version": long, "modelspec.architecture": long, "ss_network_module": "networks.lora_wan"}
    path = write(
        tmp_path / "a.safetensors",
        {Q: factors()},
        metadata={"modelspec.implementation": "mine", **{key: value[:30_000_000] for key, value in entries.items()}},
    )
    difflora.save(difflora.load(path).scaled(2), tmp_path / "out.safetensors")
    metadata = difflora.load(tmp_path / "out.safetensors").metadata
    assert max(map(len, metadata.values())) < 5000
    assert metadata["ss_network_module"] == "networks.lora_wan" and metadata["modelspec.implementation"] == "mine"
    with pytest.raises(OutputError, match="no reader takes more"):
        difflora.save(difflora.load(path), tmp_path / "more.safetensors", metadata={"mine": long, "yours": long})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "out.safetensors"]
