"""Checkpoints of a training: which files belong together, and how the two trainings of a pair diverge step by step.

musubi-tuner and sd-scripts call them ``name-step00000500.safetensors`` and ``name-000010.safetensors`` (an epoch), and
the end of the training ``name.safetensors``.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import FileError, PairError
from ..lora.algebra import same_content, subtract
from ..lora.lora import Lora
from ..progress import Progress
from ..rank.analysis import analyze, analyze_difference

_CHECKPOINT = re.compile(r"(?P<name>.*?)-(?:step(?P<step>\d{8,})|(?P<epoch>\d{6,7}))\.safetensors")


@dataclass(frozen=True)
class Run:
    """The checkpoints of one training.

    name        what the files' names have in common, folder included: ``density/detailed/slider_detailed``
    unit        what is counted: "step" or "epoch"
    files       number -> file name, ascending
    final       the file of the end of the training, whose name contains no number
    """

    name: str
    unit: str
    files: dict[int, str] = field(default_factory=dict)
    final: str | None = None

    @property
    def all_files(self) -> list[str]:
        """Every checkpoint, the end of the training last."""
        return [*self.files.values(), *([self.final] if self.final else [])]

    def file(self, number: int) -> str:
        """The file of a step or an epoch; 0 means the end of the training, or the last checkpoint.

        raises      FileError if there is no such checkpoint
        """
        if number == 0:
            return self.final or self.files[max(self.files)]
        if number not in self.files:
            there = ", ".join(map(str, self.files))
            raise FileError(
                f"{self.name} has no checkpoint of {self.unit} {number}. It has {there}. Choose one of these."
            )
        return self.files[number]


def find_runs(files: Iterable[str]) -> dict[str, Run]:
    """Name -> run, from file names with either slash. Files that are not checkpoints of a run are left out.

    A training that was saved by steps and by epochs gives two runs; the second is called ``name (epochs)``.
    """
    names = list(files)
    found: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        read = _CHECKPOINT.fullmatch(name)
        if read:
            unit = "step" if read["step"] else "epoch"
            found.setdefault((read["name"], unit), {})[int(read["step"] or read["epoch"])] = name
    runs = {}
    for (name, unit), numbered in sorted(found.items()):
        final = f"{name}.safetensors"
        shown = f"{name} (epochs)" if unit == "epoch" and (name, "step") in found else name
        runs[shown] = Run(shown, unit, dict(sorted(numbered.items())), final if final in names else None)
    return runs


def common_numbers(a: Run, b: Run) -> list[int]:
    """The steps (or epochs) for which both runs have a checkpoint; 0, the end, comes last if both have it.

    raises      PairError if there is none
    """
    both = sorted(a.files.keys() & b.files.keys()) if a.unit == b.unit else []
    if a.final and b.final:
        both.append(0)
    if not both:
        numbers = [f"{run.name}: {run.unit} {', '.join(map(str, run.files))}" for run in (a, b)]
        raise PairError(
            f"The two runs have no checkpoint in common ({'; '.join(numbers)}). Save both at the same steps."
        )
    return both


def pair_of_files(a: Run, b: Run, number: int, number_b: int = -1) -> tuple[str, str]:
    """The two files of one moment: a step, an epoch, or 0 for the end of both.

    number_b    a different moment for `b`; -1 for the same
    raises      FileError if there is no such checkpoint, PairError if the two ends are not the same moment
    """
    if number == 0 and number_b == -1:
        ends = [max(run.files, default=0) if run.final is None else None for run in (a, b)]
        if ends[0] != ends[1]:
            each = " and ".join(
                f"{run.name} {'its end' if end is None else f'{run.unit} {end}'}"
                for run, end in zip((a, b), ends, strict=True)
            )
            raise PairError(
                f"The last checkpoints are not of the same moment: {each}. Choose a step that both have "
                f"({', '.join(map(str, common_numbers(a, b)))}), or one for each side."
            )
    return a.file(number), b.file(number if number_b == -1 else number_b)


@dataclass(frozen=True)
class Moment:
    """A pair of trainings at one step.

    number          the step or epoch; 0 for the end
    norm_a, norm_b  Frobenius norms of the two LoRAs, over all modules
    norm            of their difference
    cosine          between the two: 1 while they learn the same
    direction       cosine between this difference and that of the previous moment: near 1, the difference only grows;
                    None for the first moment
    energy          share of the difference that rank 4 keeps
    repeats         the number of the previous moment, if both files hold exactly its weights: trainers write their last
                    checkpoint again as the end
    """

    number: int
    norm_a: float
    norm_b: float
    norm: float
    cosine: float
    direction: float | None
    energy: float
    repeats: int | None = None


def compare_runs(a: Run, b: Run, read: Callable[[str], Lora], progress: Progress | None = None) -> list[Moment]:
    """Follow a pair through its checkpoints. Only two moments are held at a time, and both are lazy.

    read        opens a file by its name in the run
    raises      PairError if the runs have nothing in common, or a moment's two files are the same
    """
    numbers = common_numbers(a, b)
    moments: list[Moment] = []
    before: Lora | None = None
    sides_before: tuple[Lora, Lora] | None = None
    for position, number in enumerate(numbers):
        sides = read(a.file(number)), read(b.file(number))
        if number == 0 and sides_before and all(map(same_content, sides, sides_before)):
            moments.append(dataclasses.replace(moments[-1], number=0, direction=None, repeats=moments[-1].number))
            if progress:
                progress(position + 1, len(numbers))
            continue
        difference = subtract(*sides)
        sides_before = sides
        pair = analyze_difference(difference)
        # The sum, not the difference: subtracting two equal moments would be an error.
        direction = analyze(before, difference, 1.0, -1.0).cosine if before is not None else None
        moments.append(Moment(number, pair.norm_a, pair.norm_b, pair.norm, pair.cosine, direction, pair.energy(4)))
        before = difference
        if progress:
            progress(position + 1, len(numbers))
    return moments


_COLUMNS = ("norm_a", "norm_b", "difference", "cosine", "direction", "energy_rank_4")


def _row(moment: Moment) -> Sequence[float | None]:
    return (moment.norm_a, moment.norm_b, moment.norm, moment.cosine, moment.direction, moment.energy)


def to_csv(moments: Iterable[Moment], unit: str) -> str:
    """One line per moment, for a spreadsheet."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([unit, *_COLUMNS])
    for moment in moments:
        numbers = ("" if value is None else f"{value:.6g}" for value in _row(moment))
        table.writerow([moment.number or "end", *numbers])
    return text.getvalue()


def to_text(moments: Iterable[Moment], unit: str) -> str:
    """The same, as a text for the user."""
    lines = [
        f"{unit:>8} {'size A':>9} {'size B':>9} {'size A-B':>9} {'cosine':>8} {'direction':>10} {'rank 4 keeps':>13}"
    ]
    for moment in moments:
        direction = "" if moment.direction is None else f"{moment.direction:.4f}"
        direction = direction if moment.repeats is None else f"as {moment.repeats}"
        lines.append(
            f"{moment.number or 'end':>8} {moment.norm_a:>9.4g} {moment.norm_b:>9.4g} {moment.norm:>9.4g} "
            f"{moment.cosine:>8.4f} {direction:>10} {moment.energy:>13.1%}"
        )
    return "\n".join(lines)
