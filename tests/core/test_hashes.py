"""Hashes of files, remembered for as long as the files are what they were."""

import hashlib
import json
import os
import time

import pytest

from difflora.errors import FileError
from difflora.storage.hashes import ContentHashes


def old(path, data, age=100):
    path.write_bytes(data)
    os.utime(path, (time.time() - age,) * 2)
    return path


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def reads(path):
    """How many bytes hashing has read."""
    seen = []
    return seen, lambda done, total: seen.append(done)


def test_a_file_is_read_once_also_after_a_restart(tmp_path):
    path, kept = old(tmp_path / "model.bin", b"weights" * 1000), tmp_path / "state/hashes.json"
    for number, hashes in enumerate((ContentHashes(kept), ContentHashes(kept))):
        for again in range(2):
            seen, progress = reads(path)
            assert hashes.of(path, progress) == sha256(b"weights" * 1000)
            assert bool(seen) == (number == again == 0)


@pytest.mark.parametrize("change", ["bytes", "time only", "length"])
def test_a_file_that_changed_is_read_again(tmp_path, change):
    path, hashes = old(tmp_path / "model.bin", b"one"), ContentHashes(tmp_path / "hashes.json")
    hashes.of(path)
    data = {"bytes": b"two", "time only": b"one", "length": b"longer"}[change]
    old(path, data, age=50)
    seen, progress = reads(path)
    assert hashes.of(path, progress) == sha256(data) and seen


def test_a_file_written_just_now_is_not_remembered(tmp_path):
    """Written twice within one tick of the clock, it would keep its size and time."""
    path, hashes = tmp_path / "model.bin", ContentHashes(tmp_path / "hashes.json")
    path.write_bytes(b"one")
    state = path.stat()
    assert hashes.of(path) == sha256(b"one")
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert hashes.of(path) == sha256(b"two")


def test_a_copy_of_the_same_name_elsewhere_has_its_own_hash(tmp_path):
    hashes = ContentHashes()
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    now = time.time() - 100
    paths = [tmp_path / str(number) / "model.bin" for number in range(2)]
    for number, path in enumerate(paths):
        path.write_bytes(b"12"[number : number + 1])
        os.utime(path, (now, now))
    assert [hashes.of(path) for path in paths] == [sha256(b"1"), sha256(b"2")]


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"a": 1}', b'{"a": [1, 2, 3]}', b"null", b"\xff\xfe"])
def test_a_damaged_memory_is_an_empty_one(tmp_path, damage):
    kept = tmp_path / "hashes.json"
    kept.write_bytes(damage)
    assert ContentHashes(kept).of(old(tmp_path / "m", b"x")) == sha256(b"x")
    assert len(json.loads(kept.read_text())) == 1


def test_nothing_in_it_says_where_files_are(tmp_path):
    folder = tmp_path / "secret folder"
    folder.mkdir()
    ContentHashes(tmp_path / "hashes.json").of(old(folder / "secret.bin", b"x"))
    assert "secret" not in (tmp_path / "hashes.json").read_text()


def test_a_cancel_leaves_nothing_and_what_cannot_be_read_is_said(tmp_path):
    path, hashes = old(tmp_path / "m", b"x" * 10), ContentHashes(tmp_path / "hashes.json")

    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hashes.of(path, cancel)
    assert not (tmp_path / "hashes.json").exists() and hashes.of(path) == sha256(b"x" * 10)
    with pytest.raises(FileError, match="gone.bin: cannot be read") as failure:
        hashes.of(tmp_path / "gone.bin")
    assert str(tmp_path) not in str(failure.value)


def test_two_servers_of_one_machine_keep_what_each_has_read(tmp_path):
    kept = tmp_path / "hashes.json"
    one, other = ContentHashes(kept), ContentHashes(kept)
    paths = [old(tmp_path / name, name.encode()) for name in ("a", "b", "c")]
    one.of(paths[0])
    other.of(paths[1])
    one.of(paths[2])
    seen, progress = reads(paths[0])
    fresh = ContentHashes(kept)
    assert [fresh.of(path, progress) for path in paths] == [sha256(b"a"), sha256(b"b"), sha256(b"c")] and not seen
