"""Select Blocks and Re-rank: which modules of a difference to keep, and at which rank."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ...difflora import Lora, rerank
from ...difflora.lora.cache import deltas_of
from ...difflora.rank.analysis import analyze_difference, cancelled_text
from ...difflora.rank.rerank import check_something_left
from ...difflora.rank.rules import RULES, rule_of
from ...difflora.sentence import Sentence, with_minus
from ..common.inputs import one_of
from ..common.messages import lora_modules, report, reranked_modules, ui
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta

KEPT_RANK = 8  # 150 MB of factors for a 14B model; larger ones are made when a slider needs them


class SelectBlocks(io.ComfyNode):
    """Keeps some modules, each with a weight."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSelectBlocks",
            display_name="Select Blocks",
            category="Differential LoRA",
            **found_by("block weight", "lora layers", "lora block", "attention only"),
            description="Keeps the modules that a line of text, or the grid, picks. Attention alone is often the cleaner "
            "slider.",
            inputs=[
                LoraDelta.Input("lora", tooltip="Any LoRA, such as a difference."),
                io.String.Input(
                    "selection",
                    default="attn",
                    tooltip="For example: attn · blocks 0-10,20-29 & cross_attn · ffn=0.5 · attn, !blocks 39 · /regex/. "
                    "Commas join terms, ! removes, & narrows, =0.5 weighs.",
                ),
                io.Combo.Input(
                    "rest",
                    options=["leave out", "write zeros"],
                    default="leave out",
                    tooltip="What happens to modules that are not picked. Zeros make a larger file that does the same.",
                ),
            ],
            outputs=[LoraDelta.Output("selected", display_name="lora", tooltip="The picked modules.")],
        )

    @classmethod
    def execute(cls, lora: Lora, selection: str, rest: str) -> io.NodeOutput:
        one_of("rest", rest, ["leave out", "write zeros"])
        selected = lora.select(selection, nullify=rest == "write zeros")
        lines = [Sentence("{0} of {1} modules", len(selected.weights), len(lora))]
        return io.NodeOutput(
            selected,
            ui=ui(
                report(Sentence("Selection"), lines, selected.warnings), lora_modules(lora), {"selection": selection}
            ),
        )


class Rerank(io.ComfyNode):
    """Cuts every module to a small rank with the smallest possible error."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraRerank",
            display_name="Re-rank (SVD)",
            category="Differential LoRA",
            **found_by("resize lora", "reduce rank", "shrink lora", "compress", "low rank"),
            description="The best approximation at a small rank, exactly, in about a second: the same as a full SVD of every "
            "matrix. Another rank afterwards is instant.",
            inputs=[
                LoraDelta.Input("lora", tooltip="Usually a difference, with or without a selection."),
                io.Combo.Input(
                    "rule",
                    options=list(RULES),
                    default="rank",
                    tooltip=" ".join(f"{word}: {rule.says}." for word, rule in RULES.items()),
                ),
                io.Int.Input(
                    "rank",
                    default=4,
                    min=1,
                    max=4096,
                    tooltip="For the rules rank and budget. 4 is enough for most sliders.",
                ),
                io.Float.Input(
                    "energy",
                    default=0.9,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="For the rule energy: the share of the squared singular values to keep.",
                ),
                io.Float.Input(
                    "ratio",
                    default=10.0,
                    min=1.0,
                    max=1e6,
                    step=1.0,
                    tooltip="For the rule ratio: 10 keeps σ > σ₁ / 10.",
                ),
                io.Int.Input(
                    "max_rank",
                    default=64,
                    min=1,
                    max=4096,
                    tooltip="An upper limit for every rule but rank.",
                ),
            ],
            outputs=[
                LoraDelta.Output("small", display_name="lora", tooltip="The small LoRA."),
                io.Float.Output(
                    "retained_energy",
                    display_name="retained_energy",
                    tooltip="Share of the difference that is left, 0 to 1.",
                ),
            ],
        )

    @classmethod
    def execute(cls, lora: Lora, rule: str, rank: int, energy: float, ratio: float, max_rank: int) -> io.NodeOutput:
        one_of("rule", rule, RULES)
        chosen = rule_of(rule, {"rank": rank, "energy": energy, "ratio": ratio})
        small = rerank(lora, chosen, None if rule == "rank" else max_rank)
        bar = progress_bar()
        if rule == "rank" and rank <= KEPT_RANK and not small.factorisation.complete:
            small.prepare(bar)
            deltas_of(small, bar)  # one pass through the files gives the spectra and the factors that a slider needs
            check_something_left(small)
        else:
            small.measure(bar)
        kept = f"{small.retained_energy:.1%}"
        lines = [Sentence("rank {0} → {1}, {2} of the energy kept", lora.rank_text, small.rank_text, kept)]
        warnings = list(lora.warnings)
        if lora.difference:
            numbers = analyze_difference(lora)
            lines.append(
                Sentence(
                    "cosine of A and B {0}, {1}",
                    with_minus(f"{numbers.cosine:.3f}"),
                    cancelled_text(numbers.cancelled, 0),
                )
            )
            warnings += numbers.warnings
        ran = {"rule": rule, "rank": rank, "energy": energy, "ratio": ratio, "max_rank": max_rank}
        shown = ui(report(Sentence("Re-rank"), lines, warnings), reranked_modules(small), {"ran": ran})
        return io.NodeOutput(small, small.retained_energy, ui=shown)


NODES = [SelectBlocks, Rerank]
