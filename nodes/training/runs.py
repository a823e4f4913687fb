"""The checkpoints of two trainings: take a pair at one step, and see how the two diverge."""

from collections.abc import Iterable
from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ...difflora import load
from ...difflora.errors import FileError
from ...difflora.lora.file import FileLora
from ...difflora.rank.analysis import training_warnings
from ...difflora.sentence import Sentence, joined, printable
from ...difflora.training.runs import (
    Moment,
    Run,
    common_numbers,
    compare_runs,
    find_runs,
    pair_of_files,
    to_csv,
    to_text,
)
from ..common import plots
from ..common.fingerprints import fingerprint_of_files
from ..common.inputs import listed_file
from ..common.messages import report
from ..common.messages import ui as messages
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta


def _runs() -> dict[str, Run]:
    return find_runs(folder_paths.get_filename_list("loras"))


def _run(name: object) -> Run:
    run = _runs().get(name) if isinstance(name, str) else None
    if run is None:
        raise FileError(
            f"There are no checkpoints called {printable(name, 60)} in the loras folders. Reload the page to see which there are."
        )
    return run


def _listed(files: Iterable[str]) -> list[Path]:
    return [listed_file("loras", file) for file in files]


def _all_files(*names: str) -> list[Path]:
    return _listed(file for name in names for file in _run(name).all_files)


def _load(file: str) -> FileLora:
    return load(listed_file("loras", file))


def _inputs() -> list[io.Combo.Input]:
    names = list(_runs())
    return [
        io.Combo.Input("run_a", options=names, tooltip="The training of the side with more of the property."),
        io.Combo.Input("run_b", options=names, tooltip="The training of the side with less of it."),
    ]


class LoadCheckpoints(io.ComfyNode):
    """Loads two files of one step. Nothing is read until it is needed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraLoadCheckpoints",
            display_name="Load Pair at a Step",
            category="Differential LoRA",
            **found_by("checkpoints", "training steps", "epochs", "open lora"),
            description="Opens the checkpoints of two trainings at the same step, or at one for each. Lists what is below the loras folders as "
            "name-step00000500.safetensors or name-000010.safetensors.",
            inputs=[
                *_inputs(),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="The step of both, or the epoch, as in the files' names. 0: the end of the training.",
                ),
                io.Int.Input(
                    "step_b",
                    default=-1,
                    min=-1,
                    max=10_000_000,
                    optional=True,
                    tooltip="Another step for side B. -1: the same as side A's, usually the better choice.",
                ),
            ],
            outputs=[
                LoraDelta.Output("a", display_name="a", tooltip="Side A at this step."),
                LoraDelta.Output("b", display_name="b", tooltip="Side B at this step."),
            ],
        )

    @classmethod
    def files_read(cls, run_a: str, run_b: str, step: int, step_b: int = -1) -> list[Path]:
        """For Sweep Grid, which names clips by what these files hold."""
        return _listed(pair_of_files(_run(run_a), _run(run_b), step, step_b))

    @classmethod
    def fingerprint_inputs(
        cls, run_a: str | None = None, run_b: str | None = None, step: int | None = None, step_b: int | None = -1
    ) -> object:
        return fingerprint_of_files(cls.files_read, run_a, run_b, step, step_b)

    @classmethod
    def execute(cls, run_a: str, run_b: str, step: int, step_b: int = -1) -> io.NodeOutput:
        one, other = _run(run_a), _run(run_b)
        steps = common_numbers(one, other)
        a, b = map(_load, pair_of_files(one, other, step, step_b))
        numbers = joined([Sentence("{0}", each) if each else Sentence("the end") for each in steps], ", ")
        lines = [
            f"A: {a.name}",
            f"B: {b.name}",
            Sentence("both have the epochs {0}", numbers)
            if one.unit == "epoch"
            else Sentence("both have the steps {0}", numbers),
        ]
        return io.NodeOutput(a, b, ui=messages(report(Sentence("Pair"), lines, training_warnings(a, b))))


class CompareCheckpoints(io.ComfyNode):
    """Analyzes the pair at each step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraCompareCheckpoints",
            display_name="Compare Checkpoints",
            category="Differential LoRA",
            **found_by("checkpoints", "training steps", "epochs", "over training"),
            description="Follows two trainings step by step: how similar they still are, how large their difference is, and "
            "whether its direction still changes. Shows at which step to subtract.",
            inputs=_inputs(),
            outputs=[
                io.Image.Output("chart", display_name="chart", tooltip="Sizes and cosines over the steps."),
                io.String.Output("report", display_name="report", tooltip="The numbers, as text."),
                io.String.Output("csv", display_name="csv", tooltip="The numbers, for a spreadsheet."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, run_a: str | None = None, run_b: str | None = None) -> object:
        return fingerprint_of_files(_all_files, run_a, run_b)

    @classmethod
    def execute(cls, run_a: str, run_b: str) -> io.NodeOutput:
        a, b = _run(run_a), _run(run_b)
        moments = compare_runs(a, b, _load, progress_bar())
        picture = chart(moments, a.unit)
        text = to_text(moments, a.unit)
        printable = ui.PreviewImage(picture, cls=cls).as_dict() | messages(
            report(Sentence("Steps"), [_line(moment, a.unit) for moment in moments])
        )
        return io.NodeOutput(picture, text, to_csv(moments, a.unit), ui=printable)


def _line(moment: Moment, unit: str) -> Sentence:
    when = Sentence("the end")
    if moment.number:
        when = Sentence("epoch {0}", moment.number) if unit == "epoch" else Sentence("step {0}", moment.number)
    if moment.repeats is not None:
        return Sentence("{0}: the same weights as {1} {2}, saved once more", when, unit, moment.repeats)
    sizes = (f"{size:.4g}" for size in (moment.norm_a, moment.norm_b, moment.norm))
    line = Sentence(
        "{0}: A {1}, B {2}, A − B {3}, cosine {4}, rank 4 keeps {5}",
        when,
        *sizes,
        f"{moment.cosine:.4f}",
        f"{moment.energy:.1%}",
    )
    return line if moment.direction is None else Sentence("{0}, direction {1}", line, f"{moment.direction:.4f}")


def chart(moments: list[Moment], unit: str) -> Tensor:
    """Sizes to the left, cosines to the right, over the steps; (1, height, width, 3). Repeated steps are not drawn."""
    moments = [moment for moment in moments if moment.repeats is None]
    places = range(len(moments))
    labels = [str(moment.number or "end") for moment in moments]
    figure = plots.new_figure(10, 4.2)
    sizes, cosines = figure.subplots(1, 2)
    for values, title, colour in (
        ([m.norm_a for m in moments], "A", "#8a93a3"),
        ([m.norm_b for m in moments], "B", "#c3c8d2"),
        ([m.norm for m in moments], "A − B", "#c2571a"),
    ):
        sizes.plot(places, values, "o-", color=colour, linewidth=2, markersize=4, label=title)
    cosines.plot(places, [m.cosine for m in moments], "o-", color="#3b6fb6", linewidth=2, markersize=4, label="A and B")
    turned = [(place, m.direction) for place, m in zip(places, moments, strict=True) if m.direction is not None]
    if turned:
        cosines.plot(
            *zip(*turned, strict=True),
            "o-",
            color="#c2571a",
            linewidth=2,
            markersize=4,
            label="A − B and the one before",
        )
    sizes.set_title("size", loc="left", color=plots.INK, fontsize=11, fontweight="bold")
    sizes.set_ylim(bottom=0)
    cosines.set_title("cosine", loc="left", color=plots.INK, fontsize=11, fontweight="bold")
    cosines.set_ylim(min(0, *(m.cosine for m in moments), *(value for _, value in turned)) - 0.02, 1.02)
    for axes in (sizes, cosines):
        every = max(1, len(labels) // 8)
        axes.set_xticks(list(places)[::every], labels[::every])
        axes.set_xlabel(unit, color=plots.INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=plots.INK, labelsize=9)
        axes.grid(color="#e7e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return plots.to_image(figure)


NODES = [LoadCheckpoints, CompareCheckpoints]
