"""Purify LoRA and Independent Sliders: a slider without the directions of other LoRAs."""

from __future__ import annotations

from comfy_api.v0_0_2 import io, ui

from ...difflora import Lora, independent, purify
from ...difflora.lora.lora import label
from ...difflora.rank.purify import MOST_AGAINST, PurifiedLora
from ...difflora.sentence import Sentence, joined
from ..common import plots
from ..common.inputs import within
from ..common.messages import lora_modules, report, with_pictures
from ..common.messages import ui as messages
from ..common.progress import progress_bar
from ..common.search import found_by
from ..common.types import LoraDelta

MORE = tuple(f"against_{number}" for number in range(2, MOST_AGAINST + 1))


def _directions() -> io.Input:
    return io.Int.Input(
        "directions",
        default=2,
        min=1,
        max=64,
        tooltip="How many of each LoRA's strongest directions are removed from every module. Usually 2 to 4: with fewer, "
        "more of the side effect stays; with more, you lose more of the slider.",
    )


class PurifyLora(io.ComfyNode):
    """A left projection on the small factors, module by module."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraPurify",
            display_name="Purify LoRA",
            category="Differential LoRA",
            **found_by("remove concept", "orthogonal", "disentangle", "clean lora", "side effect"),
            description="Removes a side effect from a slider: a colour cast, a style, another slider. Wire a LoRA of that "
            "side effect into against. Exact, on the small factors; the rank does not grow.",
            inputs=[
                LoraDelta.Input("lora", tooltip="The slider: a difference, or a LoRA file."),
                LoraDelta.Input(
                    "against",
                    tooltip="A LoRA of what you want to remove, trained from a different seed than the slider.",
                ),
                _directions(),
                *(
                    LoraDelta.Input(name, optional=True, tooltip="Another LoRA whose directions are removed.")
                    for name in MORE
                ),
            ],
            outputs=[
                LoraDelta.Output("pure", display_name="lora", tooltip="The slider without these directions."),
                io.Image.Output(
                    "heatmap", display_name="heatmap", tooltip="The share of every module that was removed."
                ),
                io.Float.Output(
                    "share", display_name="share_gone", tooltip="Share of the slider's energy that was removed, 0 to 1."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, lora: Lora, against: Lora, directions: int, **more: Lora | None) -> io.NodeOutput:
        within(1, 64, directions=directions)
        pure = purify(lora, [against, *(other for name in MORE if (other := more.get(name)) is not None)], directions)
        pure.measure(progress_bar())
        shares = {name: removed.share for name, removed in pure.removed.items()}
        picture = plots.module_map(shares, "share of the slider that went", (0.0, None))
        preview = ui.PreviewImage(picture, cls=cls).as_dict()
        told = report(Sentence("Purified"), _report(pure), [*pure.warnings, *pure.conclusions])
        return io.NodeOutput(pure, picture, pure.share, ui=with_pictures(preview, told, lora_modules(pure)))


def _report(pure: PurifiedLora) -> list[Sentence]:
    removed = pure.removed
    most = max(removed, key=lambda name: removed[name].share)
    lines = [
        Sentence("{0} of the slider removed, {1} left", f"{pure.share:.1%}", f"{1 - pure.share:.1%}"),
        Sentence("removed: {0}", joined([Sentence("{0}", label(other)) for other in pure.against], ", ")),
        Sentence("most in {0}: {1}", most, f"{removed[most].share:.0%}"),
    ]
    if alone := len(pure.matrices) - len(pure.touched):
        lines.append(
            Sentence("{0} of {1} modules are in the slider only and stay as they are", alone, len(pure.matrices))
        )
    return lines


class IndependentSliders(io.ComfyNode):
    """Purifies each slider of those before it, and scales it back to its original size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraIndependent",
            display_name="Independent Sliders",
            category="Differential LoRA",
            **found_by("orthogonal", "disentangle", "several sliders", "merge lora"),
            description="Makes several sliders independent, so that using one does not change what another does: each loses "
            "the strongest directions of those before it, and is scaled back to its own size. The first stays as "
            "it is.",
            inputs=[
                LoraDelta.Input("lora_1", tooltip="The slider that stays as it is: the one that matters most."),
                LoraDelta.Input("lora_2", tooltip="Made independent of the first."),
                _directions(),
                LoraDelta.Input("lora_3", optional=True, tooltip="Made independent of the first two."),
                LoraDelta.Input("lora_4", optional=True, tooltip="Made independent of the first three."),
            ],
            outputs=[
                LoraDelta.Output(
                    f"independent_{number}",
                    display_name=f"lora_{number}",
                    tooltip="This slider, independent of those before it.",
                )
                for number in range(1, MOST_AGAINST + 1)
            ],
        )

    @classmethod
    def execute(
        cls, lora_1: Lora, lora_2: Lora, directions: int, lora_3: Lora | None = None, lora_4: Lora | None = None
    ) -> io.NodeOutput:
        within(1, 64, directions=directions)
        given = [lora_1, lora_2, lora_3, lora_4]
        made = iter(independent([lora for lora in given if lora is not None], directions, progress_bar()))
        outputs = [next(made) if lora is not None else None for lora in given]
        lines, warnings = [Sentence("unchanged: {0}", label(lora_1))], []
        for lora, out in zip(given[1:], outputs[1:], strict=True):
            if lora is None or out is None:
                continue
            pure = out if isinstance(out, PurifiedLora) else out.parents[0]
            assert isinstance(pure, PurifiedLora)
            factor = f"{(1 - pure.share) ** -0.5:.2f}"
            lines.append(Sentence("{0}: {1} removed, the rest times {2}", label(lora), f"{pure.share:.1%}", factor))
            warnings += pure.conclusions
        return io.NodeOutput(
            *outputs, ui=messages(report(Sentence("Independent"), lines, warnings), lora_modules(lora_1))
        )


NODES = [PurifyLora, IndependentSliders]
