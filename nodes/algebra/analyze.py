"""Analyze: what a pair has in common and where it differs, as pictures, text and a table."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from comfy_api.v0_0_2 import io, ui

from ...difflora import Analysis, Lora, analyze
from ...difflora.lora.lora import label
from ...difflora.rank.analysis import cancelled_text
from ...difflora.sentence import Sentence, with_minus
from ..common import plots
from ..common.inputs import one_of
from ..common.messages import analysis_modules, report
from ..common.messages import ui as messages
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta

# What was computed for the pairs on the wires: another picture or rank reuses it.
_analyses: WeakKeyDictionary[Lora, WeakKeyDictionary[Lora, Analysis]] = WeakKeyDictionary()


class Analyze(io.ComfyNode):
    """Runs on the small factors; no full matrix is formed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraAnalyze",
            display_name="Analyze Pair",
            category="Differential LoRA",
            **found_by("compare lora", "difference", "svd", "spectrum", "heatmap", "cosine"),
            description="Compares two LoRAs module by module: sizes, cosine, what cancels, how many directions the difference "
            "has and how much of it a small rank keeps.",
            inputs=[
                LoraDelta.Input("a", tooltip="The LoRA that has more of the property."),
                LoraDelta.Input("b", tooltip="The LoRA that has less of it."),
                io.Int.Input("rank", default=4, min=1, max=4096, tooltip="The rank that the energy is given for."),
                io.Combo.Input(
                    "show", options=list(plots.QUANTITIES), default="difference", tooltip="What the heat map shows."
                ),
            ],
            outputs=[
                io.Image.Output("heatmap", display_name="heatmap", tooltip="Blocks down, projections across."),
                io.Image.Output(
                    "spectrum",
                    display_name="spectrum",
                    tooltip="Singular values of the difference, and the energy that ranks keep.",
                ),
                io.String.Output("report", display_name="report", tooltip="The numbers of the whole pair, as text."),
                io.String.Output("csv", display_name="csv", tooltip="One line per module, for a spreadsheet."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, a: Lora, b: Lora, rank: int, show: str) -> io.NodeOutput:
        one_of("show", show, plots.QUANTITIES)
        analysis = _analysis(a, b)
        heatmap, spectrum = plots.heatmap(analysis, show, rank), plots.spectrum(analysis, rank)
        lines = summary(analysis, a, b, rank)
        text = "\n".join([*lines, *(f"! {line}" for line in analysis.warnings)])
        preview = ui.PreviewImage(heatmap, cls=cls).as_dict()
        shown = messages(report(Sentence("Pair"), lines, analysis.warnings), analysis_modules(analysis))
        return io.NodeOutput(heatmap, spectrum, text, analysis.csv(), ui={**preview, **shown})


def _analysis(a: Lora, b: Lora) -> Analysis:
    known = _analyses.setdefault(a, WeakKeyDictionary())
    if b not in known:
        known[b] = analyze(a, b, progress=progress_bar())
    return known[b]


def summary(analysis: Analysis, a: Lora, b: Lora, rank: int) -> list[Sentence]:
    """The pair in a few lines."""
    lines = [
        Sentence("A: {0}, size {1}", label(a), f"{analysis.norm_a:.4g}"),
        Sentence("B: {0}, size {1}", label(b), f"{analysis.norm_b:.4g}"),
        Sentence("A − B: size {0}, {1} modules", f"{analysis.norm:.4g}", len(analysis.modules)),
        Sentence("cosine {0}, {1}", with_minus(f"{analysis.cosine:.4f}"), cancelled_text(analysis.cancelled)),
        Sentence("rank {0} keeps {1} of the energy", rank, f"{analysis.energy(rank):.1%}"),
    ]
    for side, names in (("A", analysis.only_a), ("B", analysis.only_b)):
        if names:
            some = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            lines.append(Sentence("{0} modules only in {1}: {2}", len(names), side, some))
    return lines


NODES = [Analyze]
