"""Paired images: two folders with the same pictures under the same names, except for one property.

A dataset is a folder with one folder for each side, such as ``detailed`` and ``sparse``. A pair is an image in
each of them with the same stem, and a caption (``.txt``, usually empty) next to each: musubi-tuner silently skips an
image without one.

The checks use kornia (structural similarity, Lab colours) and Pillow, which both come with ComfyUI.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageOps, ImageSequence, UnidentifiedImageError

from ..errors import FileError, OutputError, PairError
from ..fonts import Font, font_of
from ..progress import Progress
from ..sentence import Sentence, joined, printable
from ..storage.writer import is_same_file, make_folder, write_whole
from .latents import ENOUGH

IMAGE_EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif"}  # what musubi-tuner reads as well
CLIP_EXTENSIONS = {".mp4", ".webm", ".mov", ".mkv", ".webp", ".gif"}
COMPARED_AT = 384  # pixels on the longer side: the checks are about content, not about grain
SAME_PICTURE = 0.008  # mean difference of two 16 x 16 grey thumbnails, for values from 0 to 1

Thumbnail = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Dataset:
    """A folder with two sides. The first side is A, the one with more of the property."""

    folder: Path
    sides: tuple[str, str] = ("detailed", "sparse")

    def images(self, side: str) -> dict[str, list[Path]]:
        """Stem -> image files of a side, in the order of training."""
        return find_images(self.folder / side)

    def done(self) -> set[str]:
        """Stems that have both images and both captions."""
        return set.intersection(
            *({stem for stem in self.images(side) if self.caption(side, stem).is_file()} for side in self.sides)
        )

    def state(self) -> list[tuple[str, str, int]]:
        """Every file of both sides and when it was written: changes whenever one of them changes."""
        folders = [self.folder / side for side in self.sides]
        files = [file for folder in folders if folder.is_dir() for file in _files_in(folder)]
        return [(file.parent.name, file.name, file.stat().st_mtime_ns) for file in files]

    def caption(self, side: str, stem: str) -> Path:
        """The caption file that belongs to an image."""
        return self.folder / side / f"{stem}.txt"


def find_images(folder: Path) -> dict[str, list[Path]]:
    """Stem -> image files, sorted. A stem has two files if, say, a .png and a .jpg have the same name."""
    return _found(folder, IMAGE_EXTENSIONS)


def find_clips(folder: Path) -> dict[str, list[Path]]:
    """Name -> clips, sorted: videos, animated pictures, and folders whose images are the frames."""
    return _found(folder, CLIP_EXTENSIONS, folders=True)


def _found(folder: Path, kinds: set[str], folders: bool = False) -> dict[str, list[Path]]:
    if not folder.is_dir():
        return {}
    found: dict[str, list[Path]] = {}
    root = folder.resolve()
    for path in _files_in(folder):
        is_folder = folders and path.is_dir()
        if path.name.startswith(".") or not (is_folder or path.suffix.lower() in kinds):
            continue
        if path.is_symlink() and not _resolved(path).is_relative_to(root):
            raise FileError(
                f"{printable(path.name)} in {printable(folder.name)} is a link that leads out of this folder. Put a copy of "
                "the image there."
            )
        if is_folder or path.is_file():
            found.setdefault(path.name if is_folder else path.stem, []).append(path)
    return found


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise FileError(f"{printable(folder.name)}: the folder cannot be read ({error.strerror}).") from error


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop of links: RuntimeError before Python 3.13
        return Path(path.anchor)


def read_image(path: Path) -> Image.Image:
    """An image as RGB, upright, its transparency dropped as ComfyUI does."""
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):  # 16 bits a pixel: Pillow's own conversion would clip
                values = np.asarray(upright, dtype=np.float64)
                return Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8)).convert("RGB")
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        # Pillow's own message for a file of unknown type contains the whole path.
        unknown = isinstance(problem, UnidentifiedImageError)
        reason = "no known kind of image" if unknown else getattr(problem, "strerror", None) or problem
        raise FileError(f"{path.name} cannot be read as an image: {reason}. Replace it or leave it out.") from problem


def read_animation(path: Path, most: int) -> list[Image.Image]:
    """The first frames of an animated picture, as RGB."""
    try:
        with Image.open(path) as image:
            return [frame.convert("RGB") for frame in itertools.islice(ImageSequence.Iterator(image), most)]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise FileError(f"{path.name} cannot be read as an animated picture. Replace it or leave it out.") from problem


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, upright, without reading its pixels."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise FileError(f"{path.name} cannot be read as an image: {problem}. Replace it or leave it out.") from problem


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(height, width, 3), float32 from 0 to 1: one image in ComfyUI's format."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """The opposite of `to_tensor`, rounded to 8 bits."""
    return Image.fromarray((pixels[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


TINT = 0.2  # share of the colour in a tinted picture


def tinted(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """A picture with a fifth of one colour mixed in: everything else stays as it is. colour: red, green, blue, 0…255."""
    return Image.blend(image.convert("RGB"), Image.new("RGB", image.size, colour), TINT)


# Captions

CAPTIONS = ("empty", "same for both", "one per side", "caption and side word", "unique id")


def captions(kind: str, stem: str, caption: str, words: tuple[str, str]) -> tuple[str, str]:
    """The captions of a pair, one per side.

    kind        empty: nothing at all, so that the training sees only the picture
                same for both: `caption`
                one per side: each side's word alone
                caption and side word: `caption`, a comma, and the side's word
                unique id: a made-up word of this pair, the same on both sides
    """
    if kind == "empty":
        return "", ""
    if kind == "same for both":
        return caption, caption
    if kind == "one per side":
        return words
    if kind == "caption and side word":
        first, second = (", ".join(filter(None, (caption.strip().rstrip(".,"), word))) for word in words)
        return first, second
    if kind == "unique id":
        unique = f"id{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
        return unique, unique
    raise PairError(f"captions is {kind!r}: use one of {', '.join(CAPTIONS)}.")


# Saving


def same_size(a: Image.Image, b: Image.Image) -> Image.Image:
    """B at the size of A. Both must have the same aspect ratio: an edit that crops or pads moves everything."""
    if a.size == b.size:
        return b
    if abs(a.width / a.height * b.height / b.width - 1) > 0.02:
        raise PairError(
            f"The images of this pair are {a.width} x {a.height} and {b.width} x {b.height}: their aspect ratios differ, "
            "so one of them was cropped or padded. Scale the image before it is edited, and use the scaled one for both."
        )
    return b.resize(a.size, Image.Resampling.LANCZOS)


def save_pair(
    dataset: Dataset,
    stem: str,
    images: tuple[Image.Image, Image.Image],
    texts: tuple[str, str],
    overwrite: bool = False,
) -> list[Path]:
    """Write both images (PNG) and both captions. Equal existing files stay; different ones are an error.

    raises      PairError if the aspect ratios differ; OutputError if a file exists with other content and
                `overwrite` is off, or if writing fails
    """
    images = (images[0], same_size(*images))
    wanted: dict[Path, bytes] = {}
    for side, image, text in zip(dataset.sides, images, texts, strict=True):
        for other in dataset.images(side).get(stem, []):
            if other.suffix != ".png":
                raise OutputError(
                    f"{side}/{other.name} is already there. Move it away, or give the new pair another name."
                )
        wanted[dataset.folder / side / f"{stem}.png"] = _png(image)
        wanted[dataset.caption(side, stem)] = text.encode()
    for path, content in wanted.items():
        if not overwrite and os.path.lexists(path) and not is_same_file(path, content):
            place = f"{path.parent.name}/{path.name}"
            raise OutputError(
                f"{place} is already there and differs. Allow overwriting, or give the pair another name."
            )
    # Captions first: a pair counts as done when its images exist, so an interrupted one is made again as a whole.
    for path in sorted(wanted, key=lambda path: path.suffix != ".txt"):
        _write(path, wanted[path])
    return list(wanted)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write the file completely or not at all."""
    make_folder(path.parent)
    write_whole(path, content)


# Checking


@dataclass(frozen=True)
class Limits:
    """When a pair is suspect."""

    least_similar: float = 0.30
    most_similar: float = 0.985
    colour_drift: float = 8.0


@dataclass
class PairCheck:
    """What was measured on one pair, and what is wrong with it.

    similarity      structural similarity of the grey images, 1 for equal ones (Wang et al. 2004)
    drift           how far the colours moved as a whole: length of the median Lab difference (CIE76; 2 is just visible)
    changed         share of pixels whose colour is clearly different, apart from the drift
    """

    stem: str
    files: tuple[Path | None, Path | None]
    sizes: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None)
    similarity: float | None = None
    drift: float | None = None
    changed: float | None = None
    problems: list[Sentence] = field(default_factory=list)


def check_pairs(dataset: Dataset, limits: Limits | None = None, progress: Progress | None = None) -> list[PairCheck]:
    """Measure every pair, in the order of their names."""
    limits = limits or Limits()
    sides = [dataset.images(side) for side in dataset.sides]
    stems = sorted(set(sides[0]) | set(sides[1]))
    if not stems:
        names = " and ".join(dataset.sides)
        raise FileError(f"{dataset.folder.name}: there are no images in {names}. Check the names of the two folders.")
    checks, thumbnails = [], []
    for position, stem in enumerate(stems):
        check, thumbnail = _check_pair(dataset, stem, [side.get(stem, []) for side in sides], limits)
        checks.append(check)
        thumbnails.append(thumbnail)
        if progress:
            progress(position + 1, len(stems))
    for side, name in enumerate(dataset.sides):
        _note_duplicates(checks, [pair[side] for pair in thumbnails], name)
    return checks


def _check_pair(
    dataset: Dataset, stem: str, found: list[list[Path]], limits: Limits
) -> tuple[PairCheck, list[Thumbnail | None]]:
    first = [files[0] if files else None for files in found]
    check = PairCheck(stem, (first[0], first[1]))
    images: list[Image.Image | None] = []
    for side, files in zip(dataset.sides, found, strict=True):
        image = None
        if not files:
            check.problems.append(Sentence("no image in {0}", side))
        else:
            if len(files) > 1:
                check.problems.append(Sentence("{0} files in {1}", len(files), side))
            if not dataset.caption(side, stem).is_file():
                check.problems.append(Sentence("no caption in {0}", side))
            try:
                image = read_image(files[0])
            except FileError:
                check.problems.append(Sentence("unreadable in {0}", side))
        images.append(image)
    a, b = images
    check.sizes = (a.size if a else None, b.size if b else None)
    if a and b:
        if a.size != b.size:
            check.problems.append(Sentence("size {0} / {1}", f"{a.width}x{a.height}", f"{b.width}x{b.height}"))
        check.similarity, check.drift, check.changed = compare(a, b)
        if check.similarity > limits.most_similar:
            check.problems.append(Sentence("nearly unchanged"))
        if check.similarity < limits.least_similar:
            check.problems.append(Sentence("changed too much"))
        if check.drift > limits.colour_drift:
            check.problems.append(Sentence("colours drifted"))
    return check, [_thumbnail(image) if image else None for image in images]


def compare(a: Image.Image, b: Image.Image) -> tuple[float, float, float]:
    """Structural similarity, colour drift and changed share of two images; B is resized to A first."""
    # Imported here: it loads all of kornia, which takes as long as the rest of the pack.
    import kornia.color
    import kornia.metrics

    scale = min(1.0, COMPARED_AT / max(a.size))
    size = (max(16, round(a.width * scale)), max(16, round(a.height * scale)))
    both = torch.stack([to_tensor(image.resize(size, Image.Resampling.BOX)) for image in (a, b)]).permute(0, 3, 1, 2)
    grey = kornia.color.rgb_to_grayscale(both)
    similarity = kornia.metrics.ssim(grey[:1], grey[1:], window_size=11).mean().item()
    lab = kornia.color.rgb_to_lab(both)
    difference = (lab[1] - lab[0]).flatten(1)
    # The median, not the mean: what was removed covers less than half of the picture, a cast covers all of it.
    shift = difference.median(dim=1, keepdim=True).values
    changed = ((difference - shift).norm(dim=0) > 10).float().mean().item()
    return similarity, shift.norm().item(), changed


def _thumbnail(image: Image.Image) -> Thumbnail:
    return np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float64).ravel() / 255


def _note_duplicates(checks: list[PairCheck], thumbnails: list[Thumbnail | None], side: str) -> None:
    """Note each picture that looks like an earlier one of its side."""
    there = [(check, thumbnail) for check, thumbnail in zip(checks, thumbnails, strict=True) if thumbnail is not None]
    if not there:
        return
    flat = torch.from_numpy(np.stack([thumbnail for _, thumbnail in there]))
    alike = torch.cdist(flat, flat, p=1) / flat.shape[1] < SAME_PICTURE
    for later, (check, _) in enumerate(there):
        earlier = alike[later, :later].nonzero()
        if len(earlier):
            check.problems.append(Sentence("like {0} in {1}", there[int(earlier[0])][0].stem, side))


def to_csv(checks: Iterable[PairCheck], sides: tuple[str, str]) -> str:
    """A table of all pairs."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["pair", f"size_{sides[0]}", f"size_{sides[1]}", "similarity", "colour_drift", "changed", "problems"]
    )
    for check in checks:
        sizes = [f"{size[0]}x{size[1]}" if size else "" for size in check.sizes]
        numbers = ["" if value is None else f"{value:.4f}" for value in (check.similarity, check.drift, check.changed)]
        table.writerow([check.stem, *sizes, *numbers, "; ".join(check.problems)])
    return text.getvalue()


def write_csv(checks: Iterable[PairCheck], dataset: Dataset) -> Path:
    """Write the table next to the sides, replacing an earlier one. Starts with a byte order mark so that Excel reads UTF-8."""
    path = dataset.folder / "check.csv"
    _write(path, to_csv(checks, dataset.sides).encode("utf-8-sig"))
    return path


def overview(checks: list[PairCheck]) -> list[Sentence]:
    """What a user wants to know first."""
    suspect = sum(1 for check in checks if check.problems)
    good = len(checks) - suspect
    lines = [Sentence("{0} pairs, {1} good, {2} suspect", len(checks), good, suspect)]
    measured = [check for check in checks if check.similarity is not None]
    if measured:
        for title, values in (
            (Sentence("similarity"), [check.similarity for check in measured]),
            (Sentence("colour drift"), [check.drift for check in measured]),
            (Sentence("changed share"), [check.changed for check in measured]),
        ):
            low, middle, high = np.quantile(np.array(values, dtype=np.float64), [0, 0.5, 1])
            lines.append(Sentence("{0}: {1} to {2}, median {3}", title, f"{low:.3f}", f"{high:.3f}", f"{middle:.3f}"))
    if good < ENOUGH:
        lines.append(
            Sentence(
                "{0} good pairs are few for a slider: about {1} can be enough, more make it more reliable", good, ENOUGH
            )
        )
    else:
        lines.append(Sentence("about {0} good pairs can be enough for a slider; more make it more reliable", ENOUGH))
    return lines


def suspects(checks: list[PairCheck]) -> list[Sentence]:
    """One line for each suspect pair."""
    return [Sentence("{0}: {1}", check.stem, joined(check.problems, "; ")) for check in checks if check.problems]


# Looking

_CELL, _GAP, _TEXT, _COLUMNS, _ROWS = 200, 12, 44, 3, 6
_INK, _PAPER, _WARNING, _MISSING = (225, 225, 225), (28, 28, 30), (255, 96, 80), (60, 60, 64)


def contact_sheets(checks: list[PairCheck], title: str, font: Path | None = None) -> list[Image.Image]:
    """Pages of pairs side by side, suspect ones first and framed in red. All pages have the same size.

    font    a TrueType file; None for Pillow's own, which has few characters
    """
    ordered = sorted(checks, key=lambda check: not check.problems)
    a_page = _COLUMNS * _ROWS
    rows = min(_ROWS, -(-len(ordered) // _COLUMNS))
    columns = min(_COLUMNS, len(ordered))
    shapes = [size for check in checks for size in check.sizes if size]
    height = max([_CELL // 4, *(round(_CELL * min(1.0, tall / wide)) for wide, tall in shapes)])
    pair = _Pair(height, font_of(font, 14))
    below = height + _TEXT + _GAP
    size = (columns * (2 * _CELL + _GAP) + _GAP, rows * below + 3 * _GAP + 20)
    pages = []
    for start in range(0, len(ordered), a_page):
        page = Image.new("RGB", size, _PAPER)
        number = f", page {start // a_page + 1} of {-(-len(ordered) // a_page)}" if len(ordered) > a_page else ""
        ImageDraw.Draw(page).text((_GAP, _GAP), f"{title}{number}", _INK, font_of(font, 18))
        for position, check in enumerate(ordered[start : start + a_page]):
            row, column = divmod(position, columns)
            pair.draw(page, check, _GAP + column * (2 * _CELL + _GAP), 2 * _GAP + 20 + row * below)
        pages.append(page)
    return pages


@dataclass(frozen=True)
class _Pair:
    """The picture of a pair. height: of its two images, in pixels."""

    height: int
    font: Font

    def draw(self, page: Image.Image, check: PairCheck, left: int, top: int) -> None:
        draw = ImageDraw.Draw(page)
        for position, file in enumerate(check.files):
            box = (left + position * _CELL, top)
            try:
                picture = ImageOps.contain(read_image(file), (_CELL - 2, self.height - 2)) if file else None
            except FileError:
                picture = None
            if picture:
                page.paste(
                    picture, (box[0] + (_CELL - picture.width) // 2, box[1] + (self.height - picture.height) // 2)
                )
            else:
                draw.rectangle((*box, box[0] + _CELL - 3, box[1] + self.height - 3), _MISSING)
                middle = (box[0] + 12, box[1] + self.height // 2)
                draw.text(middle, "unreadable" if file else "missing", _INK, self.font, anchor="lm")
        bottom = top + self.height
        if check.problems:
            draw.rectangle((left - 3, top - 3, left + 2 * _CELL + 1, bottom + _TEXT + 1), outline=_WARNING, width=2)
        numbers = (
            ""
            if check.similarity is None
            else f"  similarity {check.similarity:.2f}, drift {check.drift:.1f}, changed {check.changed:.0%}"
        )
        self._line(draw, (left + 2, bottom + 2), f"{check.stem}{numbers}", _INK)
        verdict = "; ".join(check.problems) or "good"
        self._line(draw, (left + 2, bottom + 21), verdict, _WARNING if check.problems else _INK)

    def _line(self, draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
        while draw.textlength(text, self.font) > 2 * _CELL - 6 and len(text) > 4:
            text = text[:-4] + "..."
        draw.text(place, text, colour, self.font)
