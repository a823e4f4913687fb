"""Clips in files: colours, sizes, order, and a store that is never half full."""

import errno
import json
import os
import sys
import time

import numpy as np
import pytest
from PIL import Image

import difflora.clips.store as module
from difflora.clips.mosaic import (
    Label,
    columns_for,
    fitted,
    fitting,
    grid_frames,
    grid_of,
    sheet_frames,
    sheet_of,
    signed,
)
from difflora.clips.store import About, ClipStore
from difflora.clips.strengths import sweep_strengths
from difflora.clips.video import read_video, write_video
from difflora.errors import FileError, OutputError, UnsupportedError
from tests import savers

av = pytest.importorskip("av")


def soft(width=96, height=64, seed=0):
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def npy_head(shape):
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def grey(value, width=32, height=24):
    return np.full((height, width, 3), value, np.uint8)


def test_a_text_as_long_as_a_book_is_cut_to_its_label_at_once():
    layout = grid_of(2, 96, 64, "row")
    clips = [[soft()], [soft()]]
    start = time.perf_counter()
    [long] = grid_frames(layout, clips, [Label("+1", "word " * 200_000), Label("0")], None)
    assert time.perf_counter() - start < 2
    [cut] = grid_frames(layout, clips, [Label("+1", "word " * 20), Label("0")], None)
    assert np.array_equal(long, cut)


class TestVideo:
    @pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (255, 255, 255)])
    def test_colours_survive(self, tmp_path, colour):
        write_video(tmp_path / "a.mp4", [np.full((64, 64, 3), colour, np.uint8)] * 3, 16)
        for frame in read_video(tmp_path / "a.mp4"):
            assert np.abs(frame.astype(int) - colour).max() <= 2

    def test_the_file_says_which_colours_it_has(self, tmp_path):
        write_video(tmp_path / "a.mp4", [soft()], 16)
        with av.open(str(tmp_path / "a.mp4")) as file:
            context = file.streams.video[0].codec_context
            assert (context.colorspace, context.color_range, context.pix_fmt) == (1, 1, "yuv420p")

    @pytest.mark.parametrize("size", [(96, 64), (97, 65), (97, 64), (33, 35)])
    def test_odd_sizes_come_back_whole_and_in_order(self, tmp_path, size):
        frames = [np.clip(soft(*size) // 2 + 12 * number, 0, 255).astype(np.uint8) for number in range(9)]
        write_video(tmp_path / "a.mp4", frames, 16)
        back = list(read_video(tmp_path / "a.mp4", size=size))
        assert len(back) == 9
        for before, after in zip(frames, back, strict=True):
            assert after.shape == before.shape and np.abs(after.astype(int) - before).mean() < 5  # a step is 12

    def test_chosen_frames_are_those_frames(self, tmp_path):
        write_video(tmp_path / "a.mp4", [grey(20 * number) for number in range(10)], 16)
        assert [int(frame.mean().round(-1)) for frame in read_video(tmp_path / "a.mp4", {3, 7})] == [60, 140]

    def test_scaled_frames_are_averages_and_the_same_size_is_the_frame_itself(self, tmp_path):
        board = np.zeros((64, 64, 3), np.uint8)
        board[::2] = 200
        [small] = write_video(tmp_path / "a.mp4", [board], 16, scaled=(32, 32))
        assert np.abs(small.astype(int) - 100).max() <= 2
        [same] = write_video(tmp_path / "a.mp4", [board], 16, scaled=(64, 64))
        assert (same == board).all()

    @pytest.mark.parametrize("size", [(64, 48), (63, 47)])
    def test_frames_that_nobody_may_write_to_are_encoded_alike_and_none_is_changed(self, tmp_path, size):
        frames = [np.clip(soft(*size) // 2 + 12 * number, 0, 255).astype(np.uint8) for number in range(3)]
        kept = [frame.copy() for frame in frames]
        for frame in kept:
            frame.flags.writeable = False
        found = [
            write_video(tmp_path / f"{which[0].flags.writeable}.mp4", which, 16, scaled=(32, 24))
            for which in (frames, kept)
        ]
        assert (np.stack(found[0]) == np.stack(found[1])).all()
        for path in tmp_path.glob("*.mp4"):
            back = list(read_video(path, size=size))
            assert np.abs(np.stack(back).astype(int) - np.stack(frames)).mean() < 5  # a step is 12
        assert all((one == other).all() for one, other in zip(frames, kept, strict=True))

    def test_metadata_is_json_as_comfyui_writes_it(self, tmp_path):
        write_video(tmp_path / "a.mp4", [soft()], 16, {"workflow": {"nodes": ["é"]}})
        with av.open(str(tmp_path / "a.mp4")) as file:
            assert json.loads(file.metadata["workflow"]) == {"nodes": ["é"]}

    def test_nothing_to_write_and_nothing_to_read_are_errors(self, tmp_path):
        with pytest.raises(OutputError, match="no frames"):
            write_video(tmp_path / "a.mp4", [], 16)
        (tmp_path / "b.mp4").write_bytes(b"not a video")
        with pytest.raises(FileError, match="b.mp4"):
            list(read_video(tmp_path / "b.mp4"))


class TestMosaic:
    def test_cells_lie_in_rows_in_order_and_short_clips_hold_their_last_frame(self):
        clips = [[grey(50), grey(60)], [grey(100)], [grey(150), grey(160)]]
        layout = sheet_of(3, 32, 24)
        frames = list(sheet_frames(layout, clips))
        assert len(frames) == 2

        def seen(frame, index):
            left, top = layout.corner(index)
            return set(frame[top : top + 24, left : left + 32].ravel())

        assert [seen(frames[1], index) for index in range(3)] == [{60}, {100}, {160}]

    @pytest.mark.parametrize(
        ("count", "arrange", "columns"), [(7, "row", 7), (7, "column", 1), (1, "grid", 1), (4, "grid", 2)]
    )
    def test_arrangements(self, count, arrange, columns):
        assert columns_for(count, 640, 480, arrange) == columns

    @pytest.mark.parametrize("count", range(1, 40))
    def test_a_sheet_is_never_more_than_decoders_take(self, count):
        layout = sheet_of(count, 1280, 720)
        assert max(layout.size) <= 4096 + 1 and layout.size[0] * layout.size[1] <= 4096 * 2304 * 1.01
        assert all(side % 2 == 0 for side in layout.size)

    def test_the_baseline_is_framed_and_only_it(self):
        layout = grid_of(3, 64, 48, "row")
        labels = [Label("−1"), Label("0", "", True), Label("+1")]
        [frame] = grid_frames(layout, [[grey(0, 64, 48)]] * 3, labels, None)
        edges = [frame[layout.corner(index)[1] + 20, layout.corner(index)[0] - 1] for index in range(3)]
        assert (edges[1] == (245, 166, 35)).all() and (edges[0] == edges[2]).all() and edges[0].max() < 60
        heads = frame[: layout.head + layout.gap]
        assert all(heads[:, layout.corner(i)[0] : layout.corner(i)[0] + 40].max() > 200 for i in range(3))

    def test_another_shape_is_fitted_whole_with_black_edges(self):
        picture = fitted(grey(200, 64, 32), 64, 64)
        assert picture.shape == (64, 64, 3) and (picture[:16] == 0).all() and (picture[16:48] == 200).all()

    def test_nothing_is_enlarged(self):
        assert fitting(64, 48, 384) == (64, 48) and fitting(640, 480, 384) == (384, 288)

    def test_signs(self):
        assert [signed(strength) for strength in (-1.5, 0.0, 2.0, 0.25)] == ["−1.5", "0", "+2", "+0.25"]


class TestStore:
    @pytest.fixture
    def store(self, tmp_path):
        return ClipStore(tmp_path / "clips", name="user/sweeps")

    def add(self, store, key, frames=3):
        return store.add(key, [soft(seed=number) for number in range(frames)], About(frames, 96, 64), 16, 48)

    def test_a_clip_comes_back_with_its_cells(self, store):
        self.add(store, "a")
        clip = ClipStore(store.folder).get("a")
        assert clip.about.shape == (3, 96, 64)
        assert clip.cells(48).shape == (3, 32, 48, 3)
        assert store.get("b") is None

    @pytest.mark.parametrize("key", ["../a", "/tmp", "a/b", "..", "", "A b", "con.", "a" * 65, None])
    def test_a_key_leads_nowhere_else(self, store, key):
        with pytest.raises(FileError, match="names no clip"):
            store.get(key)
        with pytest.raises(FileError, match="names no clip"):
            self.add(store, key)
        assert not store.folder.exists()

    def test_cells_of_another_size_are_made_from_the_clip(self, store):
        self.add(store, "a")
        direct, later = store.get("a").cells(48), store.get("a").cells(24)
        assert later.shape == (3, 16, 24, 3)
        halved = direct.reshape(3, 16, 2, 24, 2, 3).mean((2, 4))
        assert np.abs(halved - later).mean() < 3
        assert store.get("a").cells(500).shape == (3, 64, 96, 3)

    def test_what_fails_leaves_nothing(self, store):
        def frames():
            yield soft()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.add("a", frames(), About(2, 96, 64), 16, 48)
        assert store.get("a") is None and list(store.folder.iterdir()) == []

    def test_a_folder_without_its_last_part_is_no_clip(self, store):
        clip = self.add(store, "a")
        (clip.folder / "about.json").write_text("{")
        assert store.get("a") is None
        assert self.add(store, "a").cells(48).shape == (3, 32, 48, 3)

    @pytest.mark.parametrize(
        ("part", "damage"),
        [
            ("clip.mp4", b""),
            ("clip.mp4", b"\0" * 5000),
            ("clip.mp4", "the first half"),
            ("about.json", b""),
            ("about.json", b"[]"),
            ("about.json", b"null"),
            ("about.json", b'{"frames": "3", "width": 96, "height": 64}'),
            ("about.json", b'{"frames": 3.0, "width": 96, "height": 64}'),
            ("about.json", b'{"frames": true, "width": 96, "height": 64}'),
            ("about.json", b'{"frames": 4, "width": 96, "height": 64}'),
            ("about.json", b'{"frames": 3, "width": 98, "height": 64}'),
            ("about.json", b'{"frames": -3, "width": 96, "height": 64}'),
            ("about.json", b"[" * 100_000),
        ],
        ids=str,
    )
    def test_a_damaged_clip_is_missing_and_a_new_one_takes_its_place(self, store, part, damage):
        path = self.add(store, "a").folder / part
        store.get("a")  # it was sound
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if isinstance(damage, str) else damage)
        for fresh in (store, ClipStore(store.folder)):
            assert fresh.get("a") is None and not fresh.has("a")
        assert self.add(store, "a").cells(48).shape == (3, 32, 48, 3)
        assert (
            store.get("a").about == About(3, 96, 64, store.get("a").about.brightest)
            and len(list(store.get("a").frames())) == 3
        )

    @pytest.mark.parametrize("make", ["file", "empty folder", "link to nowhere", "link to a folder"])
    def test_what_is_no_folder_of_a_clip_gives_way_to_one(self, store, make, tmp_path):
        store.folder.mkdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "precious").write_text("x")
        place = store.folder / "a"
        if make == "file":
            place.write_text("what is this")
        elif make == "empty folder":
            place.mkdir()
        else:
            place.symlink_to(elsewhere if make == "link to a folder" else tmp_path / "nowhere")
        assert store.get("a") is None
        assert self.add(store, "a").cells(48).shape == (3, 32, 48, 3) and store.has("a")
        assert (elsewhere / "precious").read_text() == "x"
        assert [path.name for path in store.folder.iterdir()] == ["a"]

    @pytest.mark.parametrize(
        "damage",
        [
            b"",
            b"no array",
            b"\x93NUMPY\x01\x00v\x00{",
            b"\x93NUMPY\x01\x00\x20\x00{('descr': '|u1'" + b" " * 16,
            npy_head("(1099511627776, 32, 48, 3)"),
            npy_head("(99999999999999999999999,)"),
            b"PK\x03\x04" + bytes(200),
            "the first half",
            "another shape",
            "an object",
            "a folder",
            "a pipe",
        ],
    )
    def test_damaged_cells_are_made_again_from_the_clip(self, store, damage):
        clip = self.add(store, "a")
        before = np.array(clip.cells(48))
        [path] = clip.folder.glob("*.npy")
        if damage == "the first half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif damage == "another shape":
            np.save(path, np.zeros((2, 32, 48, 3), np.uint8))
        elif damage == "an object":
            np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        elif damage == "a folder":
            path.unlink()
            path.mkdir()
        elif damage == "a pipe":
            if os.name == "nt":
                pytest.skip("pipes are no files there")
            path.unlink()
            os.mkfifo(path)
        else:
            path.write_bytes(damage)
        after = clip.cells(48)
        assert after.shape == before.shape and np.abs(after.astype(int) - before).mean() < 3

    def test_two_processes_that_make_the_same_clip_end_with_one_that_is_whole(self, store):
        """Whoever comes last takes the clip that is there, and takes nothing away from who reads it."""
        first = self.add(store, "a")
        inode = first.video.stat().st_ino
        second = ClipStore(store.folder).add("a", [soft(seed=number) for number in range(3)], About(3, 96, 64), 16, 48)
        assert second.video.stat().st_ino == inode and [path.name for path in store.folder.iterdir()] == ["a"]

    def test_many_processes_at_once(self, store):
        running = [savers.processes().Process(target=savers.add_the_same_clips, args=(store.folder,)) for _ in range(3)]
        for each in running:
            each.start()
        for each in running:
            each.join(120)
        assert [each.exitcode for each in running] == [0, 0, 0]
        assert {path.name for path in store.folder.iterdir()} == {"a", "b", "c"} and all(map(store.has, "abc"))

    def test_the_brightest_pixel_is_remembered(self, store):
        dark = store.add("dark", [np.zeros((64, 96, 3), np.uint8)] * 2, About(2, 96, 64), 16, 48)
        light = store.add("light", [grey(0, 96, 64), grey(70, 96, 64)], About(2, 96, 64), 16, 48)
        assert dark.about.is_black and not light.about.is_black
        assert ClipStore(store.folder).get("light").about.brightest == 70

    @pytest.mark.parametrize("what", ["video", "cells", "other cells"])
    def test_a_full_disk_is_called_one_and_names_the_folder(self, store, what, monkeypatch):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        if what == "other cells":
            clip = self.add(store, "a")
        monkeypatch.setattr(module, "write_video" if what == "video" else "_write_frames", full)
        with pytest.raises(OutputError, match=r"folder of clips \(user/sweeps\): the disk is full"):
            clip.cells(24) if what == "other cells" else self.add(store, "a")
        left = [path.name for path in store.folder.rglob("*") if "tmp" in path.name or "making" in path.name]
        assert not left and str(store.folder.parent.parent) not in str(store.folder.name)

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
    def test_numpys_own_words_for_a_full_disk_are_never_heard(self, tmp_path):
        """A limit on the size of files ends the write behind the header, where numpy has words of its own."""
        import resource

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(OSError) as failure:
                module._write_frames(tmp_path / "cells.npy", np.zeros((9, 64, 64, 3), np.uint8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert failure.value.errno == errno.EFBIG

    def test_shrinking_to_another_size_can_be_cancelled_and_leaves_no_half_a_file(self, store):
        clip = self.add(store, "a")
        seen = []

        def cancel(done, total):
            seen.append((done, total))
            if done == 1:
                raise KeyboardInterrupt

        before = sorted(clip.folder.iterdir())
        with pytest.raises(KeyboardInterrupt):
            clip.cells(24, cancel)
        assert seen == [(0, 3), (1, 3)] and sorted(clip.folder.iterdir()) == before
        assert clip.cells(24).shape == (3, 16, 24, 3)

    def test_the_longest_unused_goes_first_and_what_is_needed_stays(self, store):
        for age, key in enumerate(("new", "needed", "old", "used")):
            clip = self.add(store, key)
            os.utime(clip.folder, (time.time() - 7200 * (1 + age),) * 2)
        store.get("used")
        one = sum(file.stat().st_size for file in (store.folder / "new").iterdir())
        ClipStore(store.folder, budget=2 * one + one // 2).prune(keep=["needed"])
        assert {folder.name for folder in store.folder.iterdir()} == {"used", "needed"}
        store.budget = 0  # this one has written them all: what it needs, it says
        store.prune(keep=["needed"])
        assert [folder.name for folder in store.folder.iterdir()] == ["needed"]

    def test_unfinished_folders_go_when_they_are_old(self, store):
        self.add(store, "a")
        for name, age in ((".making-1", 0), (".making-2", 90_000), (".making-3", -90_000)):
            (store.folder / name).mkdir()
            os.utime(store.folder / name, (time.time() - age,) * 2)
        store.prune()
        assert {folder.name for folder in store.folder.iterdir()} == {"a", ".making-1", ".making-3"}


class TestStrengths:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ((-3, 3, 7), [-3, -2, -1, 0, 1, 2, 3]),
            ((-0.3, 0.3, 3), [-0.3, 0, 0.3]),
            ((1, 2, 2), [0, 1, 2]),
            ((2, 1, 2), [2, 1, 0]),
            ((-1, 2, 2), [-1, 0, 2]),
            ((0, 0.3, 4), [0, 0.1, 0.2, 0.3]),
            ((1, 3, 1), [0, 1]),
            ((0, 0, 1, "2, -2; 2\n−1.5"), [0, 2, -2, 2, -1.5]),
            ((0, 0, 1, "2 -0 -2"), [2, 0, -2]),
        ],
    )
    def test_strengths(self, given, expected):
        assert sweep_strengths(*given) == expected

    def test_minus_zero_is_zero(self):
        assert str(sweep_strengths(0, 0, 1, "-0.0", False)) == "[0.0]"

    @pytest.mark.parametrize("typed", ["much", "1,,x", "nan", "inf", "10.5", ", ".join(map(str, [1] * 65))])
    def test_what_is_no_sweep(self, typed):
        with pytest.raises(UnsupportedError):
            sweep_strengths(0, 0, 1, typed, False)
