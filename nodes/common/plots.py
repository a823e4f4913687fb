"""Pictures of numbers, as ComfyUI images: (1, height, width, 3) float32 in 0…1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...difflora.lora.selection import stack_of
from ...difflora.names import families
from ...difflora.names.keys import model_order, natural_order
from ...difflora.rank.analysis import Analysis, average_spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the heat map can show: title, value, colour map (one hue path for sizes, two for signed numbers).
QUANTITIES = {
    "difference": ("size of A − B", lambda n, rank: n.norm, "viridis"),
    "size of A": ("size of A", lambda n, rank: n.norm_a, "viridis"),
    "size of B": ("size of B", lambda n, rank: n.norm_b, "viridis"),
    "cosine": ("cosine of A and B", lambda n, rank: n.cosine, "RdBu"),
    "cancelled": ("share that cancelled", lambda n, rank: n.cancelled, "RdBu"),
    "stable rank": ("stable rank of A − B", lambda n, rank: n.stable_rank, "viridis"),
    "energy": ("energy kept at rank {rank}", lambda n, rank: n.energy(rank), "viridis"),
}
INK, FAINT = "#1f2430", "#8a93a3"


def heatmap(analysis: Analysis, quantity: str, rank: int) -> Tensor:
    """Heat map of one number per module of a pair."""
    title, value, colours = QUANTITIES[quantity]
    values = {name: value(numbers, rank) for name, numbers in analysis.modules.items()}
    return module_map(values, title.format(rank=rank), (-1.0, 1.0) if colours == "RdBu" else (0.0, None), colours)


def module_map(
    values: Mapping[str, float], title: str, limits: tuple[float, float | None], colours: str = "viridis"
) -> Tensor:
    """Blocks × projections. Missing modules stay blank; modules outside the blocks are not drawn.

    limits   of the colour scale; None: up to the largest value
    """
    rows, columns, cells = _grid(values)
    table = np.full((len(rows), len(columns)), np.nan)
    for name, (row, column) in cells.items():
        table[row, column] = values[name]
    figure = new_figure(max(6.0, 1.1 + 0.62 * len(columns)), 1.8 + 0.23 * len(rows))
    axes = figure.add_subplot()
    low, high = limits
    image = axes.imshow(table, aspect="auto", cmap=colours, interpolation="nearest", vmin=low, vmax=high)
    axes.set_facecolor("#eef0f3")
    axes.set_xticks(range(len(columns)), [label.replace("_attn.", "\n") for label in columns], fontsize=9)
    step = max(1, len(rows) // 20)
    axes.set_yticks(range(0, len(rows), step), rows[::step], fontsize=9)
    axes.set_ylabel("block", color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=INK)
    figure.suptitle(title, fontsize=13, color=INK, x=0.02, ha="left", fontweight="bold")
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    return to_image(figure)


def _grid(modules: Iterable[str]) -> tuple[list[str], list[str], dict[str, tuple[int, int]]]:
    """Row labels, column labels, and the place of each module. Each block of a stack is a row, in the model's order."""
    places = {name: place for name in modules if (place := stack_of(name))}
    at = {name: (f"{stack} {block}".removeprefix("blocks "), rest) for name, (stack, block, rest) in places.items()}
    if not at:
        at = {name: (name, "") for name in modules}
    ordered = sorted(at, key=model_order)
    rows = list(dict.fromkeys(at[name][0] for name in ordered))
    columns = sorted({column for _, column in at.values()}, key=_column_order(ordered, at))
    return rows, columns, {name: (rows.index(row), columns.index(column)) for name, (row, column) in at.items()}


def _column_order(ordered: list[str], at: Mapping[str, tuple[str, str]]) -> Callable[[str], tuple[int, object]]:
    """Columns in the order of the first block; those that only later blocks have are put where the model has them."""
    ranks: dict[str, tuple[int, object]] = {}
    for name in ordered:
        known = families.own(name)
        ranks.setdefault(at[name][1], (0, known[0].order) if known else (1, natural_order(at[name][1])))
    return lambda column: ranks[column]


def spectrum(analysis: Analysis, rank: int) -> Tensor:
    """Singular values of A − B: the average module with the range over modules, and the energy that ranks keep."""
    spectra = [numbers.spectrum for numbers in analysis.modules.values()]
    longest = max(len(values) for values in spectra)
    padded = torch.stack([torch.nn.functional.pad(values, (0, longest - len(values))) for values in spectra]).numpy()
    ranks = np.arange(1, longest + 1)
    figure = new_figure(9, 4.2)
    values_axes, energy_axes = figure.subplots(1, 2)
    values_axes.fill_between(
        ranks,
        *np.quantile(padded, (0.1, 0.9), axis=0),
        color="#3b6fb6",
        alpha=0.18,
        linewidth=0,
        label="8 of 10 modules",
    )
    values_axes.plot(ranks, average_spectrum(spectra), color="#3b6fb6", linewidth=2, label="average")
    values_axes.set_title("singular values of A − B", loc="left", color=INK, fontsize=11, fontweight="bold")
    energy_axes.plot(ranks, [analysis.energy(int(r)) for r in ranks], color="#c2571a", linewidth=2)
    energy_axes.set_ylim(0, 1.02)
    energy_axes.set_title("share of the energy kept", loc="left", color=INK, fontsize=11, fontweight="bold")
    if rank <= longest:
        energy_axes.plot([rank], [analysis.energy(rank)], "o", color="#c2571a")
        energy_axes.annotate(
            f"rank {rank}: {analysis.energy(rank):.1%}",
            (rank, analysis.energy(rank)),
            xytext=(8, -14),
            textcoords="offset points",
            color=INK,
            fontsize=10,
        )
    for axes in (values_axes, energy_axes):
        axes.set_xlabel("rank", color=INK)
        axes.set_xlim(1, max(2, longest))
        axes.axvline(rank, color=FAINT, linewidth=1, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(color="#e7e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
    values_axes.set_ylim(bottom=0)
    values_axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return to_image(figure)


def new_figure(width: float, height: float) -> Figure:
    # Imported with the first picture: matplotlib takes longer to import than the rest of the pack.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, facecolor="white")


def to_image(figure: Figure) -> Tensor:
    """Render a figure. Agg needs no screen and no global state, so nodes may draw from any thread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]
