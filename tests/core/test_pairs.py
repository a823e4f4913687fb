"""Pairs of images on disk: what is found, saved and said about them."""

import csv
import io
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from difflora.errors import FileError, OutputError, PairError
from difflora.sentence import Sentence
from difflora.training import pairs
from difflora.training.pairs import Dataset, Limits

SIZE = (160, 96)


def scene(seed: int, boxes: int = 24, cast: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """A smooth background of its own with `boxes` small things in it; the same seed gives the same background."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 200, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(boxes):
        x, y = generator.integers(0, SIZE[0] - 12), generator.integers(0, SIZE[1] - 12)
        draw.rectangle((x, y, x + 8, y + 8), tuple(int(c) for c in generator.integers(0, 256, 3)))
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.int16) + cast, 0, 255).astype(np.uint8))


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Four sound pairs."""
    made = Dataset(tmp_path / "density")
    for seed in range(4):
        pairs.save_pair(made, f"frame_{seed}", (scene(seed), scene(seed, boxes=6)), ("", ""))
    return made


def problems(dataset: Dataset, **limits: float) -> dict[str, list[str]]:
    return {check.stem: check.problems for check in pairs.check_pairs(dataset, Limits(**limits)) if check.problems}


# Saving


def test_a_saved_pair_is_read_back_to_the_pixel(tmp_path):
    dataset = Dataset(tmp_path / "new", ("more", "less"))
    a, b = scene(1), scene(2)
    written = pairs.save_pair(dataset, "名前 1", (a, b), ("", "one\ntwo"))
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "new/more/名前 1.png",
        "new/more/名前 1.txt",
        "new/less/名前 1.png",
        "new/less/名前 1.txt",
    ]
    for side, image in (("more", a), ("less", b)):
        assert np.array_equal(np.asarray(pairs.read_image(dataset.images(side)["名前 1"][0])), np.asarray(image))
    assert written[1].read_bytes() == b""
    assert written[3].read_bytes() == b"one\ntwo"
    assert dataset.done() == {"名前 1"}
    assert len(list((tmp_path / "new").rglob("*"))) == 6, "no partial files are left"


@given(st.integers(0, 255))
def test_pixels_survive_the_way_through_a_tensor(value):
    image = Image.new("RGB", (2, 1), (value, 255 - value, 7))
    pixels = pairs.to_tensor(image)
    assert pixels.shape == (1, 2, 3)
    assert np.array_equal(np.asarray(pairs.to_image(pixels)), np.asarray(image))


def test_values_out_of_range_are_clipped_and_alpha_is_dropped():
    pixels = torch.tensor([[[-0.5, 1.5, 0.5, 0.25]]])
    assert pairs.to_image(pixels).getpixel((0, 0)) == (0, 255, 128)


def test_twin_of_another_size_but_the_same_shape_is_brought_to_the_first_ones_size(tmp_path):
    dataset = Dataset(tmp_path)
    pairs.save_pair(dataset, "x", (scene(1), scene(1).resize((320, 192))), ("", ""))
    assert pairs.read_image(dataset.images("sparse")["x"][0]).size == SIZE


def test_twin_of_another_shape_is_refused_and_nothing_is_written(tmp_path):
    dataset = Dataset(tmp_path)
    with pytest.raises(PairError, match="160 x 96 and 100 x 96: their aspect ratios differ"):
        pairs.save_pair(dataset, "x", (scene(1), scene(1).resize((100, 96))), ("", ""))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked(dataset):
    a, b = scene(0), scene(0, boxes=6)
    pairs.save_pair(dataset, "frame_0", (a, b), ("", ""))  # the same again
    before = {path: path.read_bytes() for path in dataset.folder.rglob("*.*")}
    with pytest.raises(OutputError, match=r"sparse/frame_0\.png is already there and differs"):
        pairs.save_pair(dataset, "frame_0", (a, scene(9)), ("", ""))
    with pytest.raises(OutputError, match=r"detailed/frame_0\.txt is already there and differs"):
        pairs.save_pair(dataset, "frame_0", (a, b), ("word", "word"))
    assert {path: path.read_bytes() for path in dataset.folder.rglob("*.*")} == before
    pairs.save_pair(dataset, "frame_0", (a, scene(9)), ("w", "w"), overwrite=True)
    assert np.array_equal(np.asarray(pairs.read_image(dataset.images("sparse")["frame_0"][0])), np.asarray(scene(9)))


def test_an_interrupted_pair_is_not_done_and_can_be_finished(dataset):
    (dataset.folder / "sparse" / "frame_2.png").unlink()
    (dataset.folder / "sparse" / "frame_3.txt").unlink()
    assert dataset.done() == {"frame_0", "frame_1"}
    for seed in (2, 3):
        pairs.save_pair(dataset, f"frame_{seed}", (scene(seed), scene(seed, boxes=6)), ("", ""))
    assert len(dataset.done()) == 4


def test_a_second_file_of_the_same_stem_is_not_made(dataset):
    scene(0).save(dataset.folder / "detailed" / "other.jpg")
    with pytest.raises(OutputError, match=r"detailed/other\.jpg is already there"):
        pairs.save_pair(dataset, "other", (scene(0), scene(0, 6)), ("", ""))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("empty", ("", "")),
        ("same for both", ("A street.", "A street.")),
        ("one per side", ("dense", "bare")),
        ("caption and side word", ("A street, dense", "A street, bare")),
    ],
)
def test_captions(kind, expected):
    assert pairs.captions(kind, "frame", "A street.", ("dense", "bare")) == expected


def test_unique_ids_join_a_pair_and_part_it_from_all_others():
    ids = {stem: pairs.captions("unique id", stem, "", ("", "")) for stem in map(str, range(200))}
    assert all(a == b and a.isalnum() for a, b in ids.values())
    assert len(set(ids.values())) == 200


def test_caption_of_an_unknown_kind_is_refused():
    with pytest.raises(PairError, match="use one of empty"):
        pairs.captions("poem", "x", "", ("", ""))


# Reading


def test_sixteen_bit_and_turned_and_transparent_images_are_read_as_they_look(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert list(pairs.read_image(tmp_path / "deep.png").get_flattened_data()) == [
        (0, 0, 0),
        (100, 100, 100),
        (255, 255, 255),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    scene(1).save(tmp_path / "turned.jpg", exif=exif)
    assert pairs.read_image(tmp_path / "turned.jpg").size == (SIZE[1], SIZE[0])
    Image.new("RGBA", (4, 4), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    assert pairs.read_image(tmp_path / "clear.png").getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(FileError, match=r"bad\.png cannot be read as an image") as failure:
        pairs.read_image(tmp_path / "bad.png")
    assert str(tmp_path) not in str(failure.value)


def test_only_images_are_found_in_the_order_of_training(tmp_path):
    for name in ("b.png", "a.JPG", "a.txt", ".hidden.part", "._a.png", "c.webp", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list(pairs.find_images(tmp_path)) == ["a", "b", "c"]
    assert pairs.find_images(tmp_path / "missing") == {}


# Checking


def test_sound_pairs_have_no_problem(dataset):
    assert problems(dataset) == {}
    for check in pairs.check_pairs(dataset):
        assert 0.3 < check.similarity < 0.95
        assert check.drift < 2
        assert 0.02 < check.changed < 0.4


def test_each_defect_is_found_and_named(dataset):
    folder = dataset.folder
    detailed, sparse = folder / "detailed", folder / "sparse"
    (sparse / "frame_0.png").unlink()
    (sparse / "frame_1.txt").unlink()
    scene(2).save(sparse / "frame_2.png")
    scene(3, 6, cast=(40, 10, -30)).save(sparse / "frame_3.png")
    pairs.save_pair(dataset, "frame_4", (scene(4), scene(5)), ("", ""))
    pairs.save_pair(dataset, "frame_5", (scene(0), scene(6, 6)), ("", ""))
    pairs.save_pair(dataset, "frame_6", (scene(7), scene(7, 6)), ("", ""))
    scene(7, 6).crop((0, 0, 100, 96)).save(sparse / "frame_6.png")
    pairs.save_pair(dataset, "frame_7", (scene(8), scene(8, 6)), ("", ""))
    (detailed / "frame_7.png").write_bytes(b"torn")
    scene(9).save(detailed / "frame_8.png")
    scene(10).save(detailed / "frame_8.jpg")
    found = problems(dataset, least_similar=0.5)
    assert found["frame_0"] == ["no image in sparse"]
    assert found["frame_1"] == ["no caption in sparse"]
    assert found["frame_2"] == ["nearly unchanged"]
    assert found["frame_3"] == ["colours drifted"]
    assert "changed too much" in found["frame_4"]
    assert "like frame_0 in detailed" in found["frame_5"]
    assert "size 160x96 / 100x96" in found["frame_6"]
    assert found["frame_7"] == ["unreadable in detailed"]
    assert found["frame_8"] == ["2 files in detailed", "no caption in detailed", "no image in sparse"]


def test_equal_images_compare_as_equal_and_a_cast_is_measured_in_lab():
    similarity, drift, changed = pairs.compare(scene(1), scene(1))
    assert similarity == pytest.approx(1, abs=1e-6)
    assert (drift, changed) == (0, 0)
    grey, darker = Image.new("RGB", SIZE, (119, 119, 119)), Image.new("RGB", SIZE, (94, 94, 94))
    _, drift, changed = pairs.compare(grey, darker)
    lightness = [116 * (((value / 255 + 0.055) / 1.055) ** 2.4) ** (1 / 3) - 16 for value in (119, 94)]
    assert drift == pytest.approx(lightness[0] - lightness[1], abs=0.01)
    assert changed == 0, "a cast of all the picture is drift, not change"


def test_similarity_is_the_published_measure():
    a, b = (np.asarray(scene(s).convert("L").resize((64, 64)), dtype=np.float64) / 255 for s in (1, 2))
    # Wang et al. 2004, with a Gaussian window of 11 and deviation 1.5, written out with numpy.
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()

    def blur(image):
        padded = np.pad(image, 5, mode="reflect")
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(padded, (11, 11)), window)

    ma, mb = blur(a), blur(b)
    va, vb, vab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    expected = np.mean(
        (2 * ma * mb + 0.01**2) * (2 * vab + 0.03**2) / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2))
    )
    images = [Image.fromarray((each * 255).round().astype(np.uint8)).convert("RGB") for each in (a, b)]
    assert pairs.compare(*images)[0] == pytest.approx(expected, abs=2e-3)


def test_an_empty_or_misnamed_dataset_says_so(tmp_path):
    with pytest.raises(FileError, match="no images in detailed and sparse"):
        pairs.check_pairs(Dataset(tmp_path))


def test_progress_counts_to_the_end(dataset):
    seen = []
    pairs.check_pairs(dataset, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_table_and_summary_say_the_same(dataset):
    (dataset.folder / "sparse" / "frame_0.png").unlink()
    checks = pairs.check_pairs(dataset)
    rows = list(csv.DictReader(io.StringIO(pairs.to_csv(checks, dataset.sides))))
    assert [row["pair"] for row in rows] == ["frame_0", "frame_1", "frame_2", "frame_3"]
    assert rows[0]["problems"] == "no image in sparse"
    assert rows[0]["size_sparse"] == "" and rows[1]["size_sparse"] == "160x96"
    assert float(rows[1]["similarity"]) == pytest.approx(checks[1].similarity, abs=1e-4)
    assert pairs.overview(checks)[0] == "4 pairs, 3 good, 1 suspect"
    assert pairs.suspects(checks) == ["frame_0: no image in sparse"]


def test_the_summary_says_how_many_good_pairs_can_be_enough():
    def said(good, suspect):
        spoilt = [
            pairs.PairCheck(f"bad_{i}", (None, None), problems=[Sentence("changed too much")]) for i in range(suspect)
        ]
        return pairs.overview([pairs.PairCheck(f"good_{i}", (None, None)) for i in range(good)] + spoilt)[-1]

    enough = "about 20 good pairs can be enough for a slider; more make it more reliable"
    assert said(20, 0) == said(126, 5) == enough
    assert said(19, 4) == "19 good pairs are few for a slider: about 20 can be enough, more make it more reliable"


def test_contact_sheets_show_all_pairs_suspect_ones_first(tmp_path):
    dataset = Dataset(tmp_path)
    for seed in range(20):
        a, b = Image.new("RGB", SIZE, (0, 10 * seed, 0)), Image.new("RGB", SIZE, (10 * seed, 0, 255))
        pairs.save_pair(dataset, f"{seed:02}", (a, b), ("", ""))
    (tmp_path / "sparse" / "19.png").unlink()
    checks = pairs.check_pairs(dataset, Limits(least_similar=-1, most_similar=1, colour_drift=1000))
    sheets = pairs.contact_sheets(checks, "density")
    assert len(sheets) == 2
    assert sheets[0].size == sheets[1].size
    pitch = 120 + 44 + 12  # pictures of 160 × 96 are drawn 120 high
    left, top = 12 + 100, 44 + 60  # the middle of the first picture
    assert sheets[0].getpixel((left, top)) == (0, 190, 0), "pair 19 has no twin, so it comes first"
    assert sheets[0].getpixel((left + 200, top + 30)) == pairs._MISSING
    colours = {
        sheet.getpixel((left + column * 412, top + row * pitch))
        for sheet in sheets
        for column in range(3)
        for row in range(6)
    }
    assert {(0, 10 * seed, 0) for seed in range(20)} <= colours


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_that_leave_the_folder_are_neither_read_nor_written_through(tmp_path):
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 8), "red").save(outside)
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    assert list(pairs.find_images(folder)) == ["a", "b"]
    for target in (outside, tmp_path / "frames2" / "x.png", folder / "c.png"):
        (folder / "c.png").symlink_to(target)
        with pytest.raises(FileError, match="c.png in frames is a link that leads out"):
            pairs.find_images(folder)
        (folder / "c.png").unlink()
    dataset = pairs.Dataset(tmp_path / "set")
    (tmp_path / "set" / "sparse").mkdir(parents=True)
    secret = tmp_path / "secret.txt"
    (tmp_path / "set" / "sparse" / "a.txt").symlink_to(secret)
    images = (Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)))
    with pytest.raises(OutputError, match="already there and differs"):
        pairs.save_pair(dataset, "a", images, ("", "x"))
    pairs.save_pair(dataset, "a", images, ("", "x"), overwrite=True)
    assert not secret.exists() and (tmp_path / "set" / "sparse" / "a.txt").read_text() == "x"
