"""One store of clips and several machines: who deletes what, who may read it, whose clock counts, and what looking costs."""

import collections
import json
import os
import random
import stat
import time

import numpy as np
import pytest

import difflora.clips.store as module
from difflora.clips.arrivals import Arrivals
from difflora.clips.place import store_at
from difflora.clips.store import About, ClipStore
from difflora.clips.strengths import Share
from difflora.errors import InputError, OutputError, UnsupportedError

pytest.importorskip("av")
HOUR = 3600
posix = pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")


def add(store, key, value=90):
    return store.add(key, [np.full((16, 16, 3), value, np.uint8)] * 2, About(2, 16, 16), 16, 16)


def aged(store, key, hours):
    os.utime(store.folder / key, (time.time() - hours * HOUR,) * 2)


def names(store):
    return {path.name for path in store.folder.iterdir()}


class TestShare:
    @pytest.mark.parametrize(
        ("text", "share"),
        [
            ("all", (1, 1)),
            (" All ", (1, 1)),
            ("1 of 1", (1, 1)),
            ("2 of 3", (2, 3)),
            ("2/3", (2, 3)),
            ("64 OF 64", (64, 64)),
        ],
    )
    def test_what_people_write(self, text, share):
        assert Share.read(text) == Share(*share)

    @pytest.mark.parametrize(
        "text", ["", "0 of 2", "3 of 2", "1 of 0", "-1 of 2", "1 of 65", "one of two", "1 of 2 of 3", None]
    )
    def test_what_is_no_share(self, text):
        with pytest.raises(UnsupportedError, match="share is "):
            Share.read(text)

    @pytest.mark.parametrize("machines", [1, 2, 3, 64])
    @pytest.mark.parametrize("count", [1, 7, 64])
    def test_shares_are_disjoint_and_together_all(self, count, machines):
        keys = [f"k{number}" for number in range(count)]
        lanes = Share(1, machines).lanes([*keys, keys[0]])
        assert sorted(key for lane in lanes for key in lane) == sorted(keys) and len(lanes) == machines
        assert max(map(len, lanes)) - min(map(len, lanes)) <= 1


class TestWhoDeletesWhat:
    def test_what_others_wrote_within_the_hour_stays_and_older_clips_go(self, tmp_path):
        mine, theirs = ClipStore(tmp_path, budget=0), ClipStore(tmp_path)
        for key, hours in (("fresh", 0.5), ("old", 2)):
            add(theirs, key)
            aged(theirs, key, hours)
        add(mine, "mine")
        mine.prune()
        assert names(mine) == {"fresh"}

    def test_a_clock_that_is_hours_ahead_deletes_nothing_that_is_new(self, tmp_path, monkeypatch):
        """The time is that of the folder, not of the machine that cleans up."""
        mine, theirs = ClipStore(tmp_path, budget=0), ClipStore(tmp_path)
        add(theirs, "fresh")
        (tmp_path / ".making-theirs").mkdir()
        monkeypatch.setattr(module.time, "time", lambda: 4e9)
        mine.prune()
        assert names(mine) == {"fresh", ".making-theirs"}

    def test_what_a_plan_names_stays_until_the_sweep_is_complete_or_given_up(self, tmp_path):
        mine, theirs = ClipStore(tmp_path, budget=0), ClipStore(tmp_path)
        for key in ("done", "other"):
            add(theirs, key)
            aged(theirs, key, 5)
        theirs.plan(["done", "missing"])
        ClipStore(tmp_path).plan(["missing", "done", "done"])  # another machine's share of the same sweep
        assert len(list((tmp_path / ".plans").iterdir())) == 1
        mine.prune()
        assert names(mine) == {"done", ".plans"}
        theirs.complete(["missing", "done"])
        mine.prune()
        assert names(mine) == {".plans"}

        add(theirs, "done")
        aged(theirs, "done", 5)
        theirs.plan(["done", "missing"])
        aged(ClipStore(tmp_path / ".plans"), next((tmp_path / ".plans").iterdir()).name, 24 * 15)
        mine.prune()
        assert names(mine) == {".plans"} and not list((tmp_path / ".plans").iterdir())

    @pytest.mark.parametrize("content", [b"", b"{", b"null", b"3", b"[[1]]", b"\xff\xfe"])
    def test_a_damaged_plan_protects_nothing_and_stops_nobody(self, tmp_path, content):
        mine, theirs = ClipStore(tmp_path, budget=0), ClipStore(tmp_path)
        add(theirs, "a")
        aged(theirs, "a", 5)
        theirs.plan(["b"])
        next((tmp_path / ".plans").iterdir()).write_bytes(content)
        mine.prune()
        assert names(mine) == {".plans"}

    def test_a_reader_never_finds_half_a_clip(self, tmp_path, monkeypatch):
        """A clip that is deleted loses its name first, in one step."""
        store, seen = ClipStore(tmp_path, budget=0), []
        add(store, "a")
        monkeypatch.setattr(module.shutil, "rmtree", lambda path, **_: seen.append((path.name, store.has("a"))))
        store.prune()
        assert [(name.startswith(".making-"), there) for name, there in seen] == [(True, False)]


@posix
class TestWhoMayRead:
    @pytest.mark.parametrize("mode", [0o755, 0o775, 0o2770, 0o700])
    def test_clips_and_plans_are_as_open_as_the_folder(self, tmp_path, mode):
        folder = tmp_path / "clips"
        folder.mkdir()
        folder.chmod(mode)
        store = ClipStore(folder)
        clip = add(store, "a")
        clip.cells(8)
        store.plan(["a", "b"])
        for path in folder.rglob("*"):
            expected = mode & 0o777 if path.is_dir() else mode & 0o666
            assert stat.S_IMODE(path.stat().st_mode) & 0o777 == expected, path
        if mode & 0o2000:
            assert clip.folder.stat().st_mode & 0o2000

    def test_cells_of_another_size_are_made_where_nothing_may_be_written(self, tmp_path, monkeypatch):
        clip = add(ClipStore(tmp_path), "a")
        monkeypatch.setattr(module, "_write_frames", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
        assert clip.cells(8).shape == (2, 8, 8, 3)
        assert [path.name for path in clip.folder.glob("cells*")] == ["cells 16x16.npy"]


class TestWhereClipsLive:
    def test_beside_the_file_as_long_as_there_is_none(self, tmp_path):
        store = store_at(tmp_path, "user/x")
        assert (store.folder, store.budget) == (tmp_path / "sweeps", 4 << 30)
        add(store, "a")

    @pytest.mark.parametrize(
        ("text", "gigabytes"),
        [("{}", 4), ("\n# a comment\n  {}  \n", 4), ('"{}"\r\nlimit 50 GB\r\n', 50), ("\ufeff{}\nLimit 2.5 gb", 2.5)],
    )
    def test_where_the_file_says(self, tmp_path, text, gigabytes):
        folder = tmp_path / "über there"
        folder.mkdir()
        (tmp_path / "clips_folder.txt").write_text(text.format(folder), "utf-8")
        store = store_at(tmp_path, "user/x")
        assert store.folder == folder
        assert store.budget == gigabytes * 2**30
        store.check_writable()
        add(store, "a")
        assert names(store) == {"a"}

    @pytest.mark.parametrize("text", ["", "# nothing", "sweeps", "../sweeps", "/a\n/b", "/a\nlimit 1 GB\nlimit 2 GB"])
    def test_what_names_no_folder_is_said_without_a_path(self, tmp_path, text):
        (tmp_path / "clips_folder.txt").write_text(text, "utf-8")
        with pytest.raises(InputError, match=r"user/x/clips_folder.txt") as failure:
            store_at(tmp_path, "user/x")
        assert str(tmp_path) not in str(failure.value)

    def test_a_share_that_is_not_connected_does_not_become_a_local_folder(self, tmp_path):
        (tmp_path / "clips_folder.txt").write_text(str(tmp_path / "not mounted"), "utf-8")
        store = store_at(tmp_path, "user/x")
        with pytest.raises(OutputError, match="is not there. Connect"):
            store.check_writable()
        with pytest.raises(OutputError):
            add(store, "a")
        assert not store.folder.exists()


def lanes_of(keys, machines):
    return [keys[number::machines] for number in range(machines)]


class TestArrivals:
    def test_clips_of_others_are_seen_in_whatever_order_they_come(self, tmp_path):
        keys = [f"k{number}" for number in range(30)]
        theirs, arrivals = ClipStore(tmp_path), Arrivals(ClipStore(tmp_path), lanes_of(keys, 3))
        come = keys[:]
        random.Random(0).shuffle(come)
        versions = {arrivals.version}
        for key in come:
            add(theirs, key)
            arrivals.look()
            versions.add(arrivals.version)
        for _ in range(30):
            arrivals.look()
        assert arrivals.seen.keys() == set(keys) and len(versions) > 5
        before = arrivals.version
        arrivals.look()
        arrivals.look_for_all()
        assert arrivals.version == before

    def test_what_is_gone_is_missing_again(self, tmp_path):
        store = ClipStore(tmp_path)
        for key in "abc":
            add(store, key)
        arrivals = Arrivals(store, [["a", "b", "c"]])
        arrivals.look()
        assert set(arrivals.seen) == set("abc")
        ClipStore(tmp_path).remove("b")
        arrivals.look_for_all()
        assert set(arrivals.seen) == {"a", "c"}
        arrivals.forget("a")
        assert set(arrivals.seen) == {"c"}
        for _ in range(4):
            arrivals.look()
        assert set(arrivals.seen) == {"a", "c"}


@pytest.fixture
def counted(monkeypatch):
    """How often the file system was asked for what, and how many names listings gave. Encoding and decoding are left out."""
    calls = collections.Counter()

    def watch(holder, name, says):
        own = getattr(holder, name)

        def asked(*values, **options):
            calls[says] += 1
            return own(*values, **options)

        monkeypatch.setattr(holder, name, asked)

    for name in ("stat", "lstat", "utime", "rename", "replace", "mkdir", "unlink", "open", "chmod"):
        watch(os, name, name)

    def listing(own, made):
        def listed(path="."):
            found = list(own(path))
            calls["listings"] += 1
            calls["listed"] += len(found)
            return made(found)

        return listed

    monkeypatch.setattr(os, "scandir", listing(os.scandir, iter))
    monkeypatch.setattr(os, "listdir", listing(os.listdir, list))
    watch(module.About, "read", "open")

    def encode(path, frames, fps, scaled):
        path.write_bytes(bytes(64))
        return [np.zeros((2, 2, 3), np.uint8) for _ in frames]

    monkeypatch.setattr(module, "write_video", encode)
    monkeypatch.setattr(module, "plays", lambda *_: True)
    monkeypatch.setattr(module, "_sync", lambda path: None)
    return calls


def simulated(folder, machines, strengths, calls):
    """Every machine keeps a clip, looks around, and so on, until all have all. Returns calls of each machine for each clip."""
    keys = [f"k{number}" for number in range(strengths)]
    lanes = lanes_of(keys, machines)
    stores = [ClipStore(folder) for _ in lanes]
    views = [Arrivals(store, lanes) for store in stores]
    calls.clear()
    frames = [np.full((2, 2, 3), 90, np.uint8)]
    for store, view in zip(stores, views, strict=True):
        store.plan(keys)
        view.look_for_all()
    rendered = rounds = 0
    waiting = [list(reversed(lane)) for lane in lanes]
    while any(len(view.seen) < strengths for view in views):
        for store, view, lane in zip(stores, views, waiting, strict=True):
            if lane:
                key = lane.pop()
                view.add(key, store.add(key, frames, About(1, 2, 2), 16, 2))
                rendered += 1
            view.look()
        rounds += 1
        assert rounds < 4 * strengths
    for store, view in zip(stores, views, strict=True):
        view.look_for_all()
        store.complete(keys)
        store.prune()
    assert rendered == strengths
    total = sum(calls[name] for name in calls if name != "listed")
    return total / machines / strengths, calls["listings"] / machines, calls["listed"] / machines / strengths


@pytest.mark.slow
def test_the_cost_of_a_clip_stays_flat_up_to_64_machines_and_1000_strengths(tmp_path, counted):
    costs = {}
    for machines, strengths in ((1, 10), (1, 100), (1, 1000), (8, 100), (64, 1000)):
        folder = tmp_path / f"{machines} {strengths}"
        start = time.perf_counter()
        calls, listings, listed = costs[machines, strengths] = simulated(folder, machines, strengths, counted)
        print(
            f"{machines:3} machines, {strengths:4} strengths: {calls:5.1f} calls for each clip on each machine, "
            f"{listings:6.1f} listings that give {listed:4.1f} names for each clip; "
            f"{1e6 * (time.perf_counter() - start) / machines / strengths:.0f} µs"
        )
    for calls, _, listed in costs.values():
        assert calls < 40 and listed < 8
    assert costs[1, 1000][0] < 1.2 * costs[1, 100][0] and costs[64, 1000][0] < 1.2 * costs[8, 100][0]


def test_plans_are_plain_lists_of_keys(tmp_path):
    store = ClipStore(tmp_path)
    store.plan(["b", "a"])
    [plan] = (tmp_path / ".plans").iterdir()
    assert json.loads(plan.read_text()) == ["a", "b"]
