"""Files of what the player shows: their frames, their speed, and what ComfyUI finds in them."""

import json

import numpy as np
import pytest
from PIL import Image

from difflora.clips.export import FORMATS, view_of, write_view
from difflora.clips.mosaic import Label
from difflora.clips.video import read_metadata, read_video
from difflora.errors import OutputError

av = pytest.importorskip("av")

METADATA = {"prompt": {"1": {"class_type": "X"}}, "workflow": {"nodes": []}, "more": 3}


def clip(*values, width=48, height=32):
    return [np.full((height, width, 3), value, np.uint8) for value in values]


def moving(frames=9):
    """A white bar that is in another place in each frame."""
    made = clip(*[40] * frames)
    for number, frame in enumerate(made):
        frame[:, 4 * number : 4 * number + 4] = 250
    return made


def read(path):
    if path.suffix == ".mp4":
        return list(read_video(path))
    with Image.open(path) as picture:
        frames = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
        return frames


@pytest.mark.parametrize("format", ["mp4", "webp", "gif"])
def test_every_frame_is_in_the_file_in_order(tmp_path, format):
    path = tmp_path / f"clip.{format}"
    write_view(path, iter(moving()), format, 16, METADATA)
    found = read(path)
    assert len(found) == 9
    for number, (frame, wanted) in enumerate(zip(found, moving(), strict=True)):
        assert np.abs(frame.astype(int) - wanted).mean() < 12, number


@pytest.mark.parametrize(("format", "fps"), [("webp", 16), ("gif", 16), ("gif", 30), ("gif", 8), ("gif", 12)])
def test_pictures_that_move_last_as_long_as_the_clip(tmp_path, format, fps):
    path = tmp_path / f"clip.{format}"
    write_view(path, iter(moving()), format, fps, {})
    lasts = 0
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
        for number in range(picture.n_frames):
            picture.seek(number)
            picture.load()
            lasts += picture.info["duration"]
    assert lasts == pytest.approx(1000 * 9 / fps, abs=9 if format == "webp" else 5)


def test_a_png_is_the_frame_itself(tmp_path):
    frame = np.random.default_rng(0).integers(0, 255, (31, 47, 3), dtype=np.uint8)
    write_view(tmp_path / "frame.png", [frame], "png", 16, METADATA)
    assert (read(tmp_path / "frame.png")[0] == frame).all()


@pytest.mark.parametrize("format", FORMATS)
def test_the_workflow_is_where_comfyui_looks(tmp_path, format):
    path = tmp_path / f"clip.{format}"
    write_view(path, iter(moving()), format, 16, METADATA)
    if format == "mp4":
        found = read_metadata(path)
        assert {key: json.loads(text) for key, text in found.items()} == {
            k: METADATA[k] for k in ("prompt", "workflow")
        }
        return
    with Image.open(path) as picture:
        if format == "png":
            found = picture.text
        else:
            found = dict(text.split(":", 1) for text in picture.getexif().values())
    if format != "gif":
        assert {key: json.loads(text) for key, text in found.items()} == METADATA


@pytest.mark.parametrize("format", FORMATS)
def test_no_frames_are_an_error_and_a_cancel_stops(tmp_path, format):
    with pytest.raises(OutputError, match="no frames"):
        write_view(tmp_path / f"clip.{format}", [], format, 16, {})

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_view(tmp_path / f"clip.{format}", moving(), format, 16, {}, stop)


def test_views_show_what_the_player_shows():
    a, b = clip(10, 20), clip(40, 15)
    labels = [Label("a"), Label("b")]

    def shown(clips, view, **options):
        return list(view_of(clips, view, labels, **{"wipe": 0.25, "gain": 4.0, "font": None} | options))

    assert [int(frame.mean()) for frame in shown([a], "one")] == [10, 20]
    first = shown([a, b], "wipe")[0]
    assert first[0, 5, 0] == 10 and first[0, 40, 0] == 40 and first[0, 12, 0] == 255
    assert [int(frame.mean()) for frame in shown([a, b], "difference")] == [120, 20]
    assert shown([a, clip(200, 200)], "difference")[0].max() == 255, "not beyond white, nor round to black"
    whole = shown([iter(a), iter(b)], "all")
    assert len(whole) == 2 and whole[0].shape[1] > 2 * 48 and {10, 40} <= set(np.unique(whole[0]))
