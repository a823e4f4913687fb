"""Numbers that tell a good pair from a bad one, all exact and computed from the small factors.

⟨ΔA, ΔB⟩ = trace((U_AᵀU_B)(D_B D_Aᵀ)): norms, the cosine and what cancelled come from the k × k Gram matrices that
the factorisation computes anyway.
"""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora.algebra import subtract
from ..lora.lora import CombinedLora, Lora, label
from ..progress import Progress
from ..sentence import Sentence, printable
from .factorisation import Factorisation, factorisation_of
from .krylov import Approximation
from .rules import FixedRank

DENSE_VALUES = 16  # singular values that are computed for a module stored in full


@dataclass(frozen=True)
class ModuleNumbers:
    """One module of a pair.

    norm_a, norm_b, norm   Frobenius norms of A, of B and of the (weighted) difference
    cosine                 between A and B: 1 the same direction, 0 unrelated
    cancelled              share of both sides' energy that the subtraction removed: 1 − ‖a·A − b·B‖² / (‖a·A‖² + ‖b·B‖²),
                           a and b the weights; below 0 where the two add up
    stable_rank            ‖Δ‖² / σ₁²: how many directions the difference really has
    spectrum               its singular values, from large to small, float64; the first ones of a module stored in full
    """

    norm_a: float
    norm_b: float
    norm: float
    cosine: float
    cancelled: float
    stable_rank: float
    spectrum: Tensor

    def energy(self, rank: int) -> float:
        """Share of the difference's energy in its `rank` largest singular values."""
        kept = float(self.spectrum[:rank].square().sum())
        return min(1.0, kept / self.norm**2) if self.norm > 0 else 1.0


@dataclass(frozen=True)
class Analysis:
    """All modules of a pair, and sums over them. Norms of the whole are the root of summed squares.

    weight_a, weight_b     of the difference, ``weight_a * a - weight_b * b``
    """

    modules: dict[str, ModuleNumbers]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    slow: int
    weight_a: float = 1.0
    weight_b: float = 1.0

    @property
    def norm_a(self) -> float:
        return math.hypot(*(numbers.norm_a for numbers in self.modules.values()))

    @property
    def norm_b(self) -> float:
        return math.hypot(*(numbers.norm_b for numbers in self.modules.values()))

    @property
    def norm(self) -> float:
        return math.hypot(*(numbers.norm for numbers in self.modules.values()))

    @property
    def _product(self) -> float:
        return math.fsum(n.cosine * n.norm_a * n.norm_b for n in self.modules.values())

    @property
    def cosine(self) -> float:
        """Between A and B as whole LoRAs."""
        return _divided(self._product, self.norm_a * self.norm_b)

    @property
    def cancelled(self) -> float:
        """Share of both sides' weighted energy that cancelled, over all modules."""
        return cancelled_share(self.norm_a**2, self._product, self.norm_b**2, self.weight_a, self.weight_b)

    def energy(self, rank: int) -> float:
        """Share of the difference's energy that is left if every module is cut to `rank`."""
        kept = math.fsum(n.energy(rank) * n.norm**2 for n in self.modules.values())
        return kept / self.norm**2 if self.norm > 0 else 1.0

    @property
    def warnings(self) -> list[Sentence]:
        """What looks wrong with the pair, for the user to judge."""
        if not (self.weight_a and self.weight_b):  # a side with weight 0 cannot be measured
            return []
        lines = []
        small, large = sorted((self.norm_a, self.norm_b))
        if small == 0 or large / small > 2:
            lines.append(
                Sentence(
                    "The two sides differ in size: ‖A‖ is {0}, ‖B‖ is {1}. Were they trained with the same "
                    "settings and steps?",
                    f"{self.norm_a:.4g}",
                    f"{self.norm_b:.4g}",
                )
            )
        if abs(self.cosine) < 0.05:
            lines.append(
                Sentence(
                    "A and B hardly have anything in common (cosine {0}), so little cancels. A pair that starts "
                    "from the same seed and data order usually shares much more.",
                    f"{self.cosine:.3f}",
                )
            )
        if self.cancelled > 0.995:
            lines.append(
                Sentence(
                    "A and B are nearly the same (cosine {0}): the difference is small, and may be noise of "
                    "the training.",
                    f"{self.cosine:.4f}",
                )
            )
        return lines

    def csv(self) -> str:
        """The table for a spreadsheet, one line per module."""
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(
            [
                "module",
                "norm_a",
                "norm_b",
                "norm_difference",
                "cosine",
                "cancelled",
                "stable_rank",
                "energy_rank_1",
                "energy_rank_4",
                "energy_rank_16",
                "sigma_1",
            ]
        )
        for name, n in self.modules.items():
            numbers = (
                n.norm_a,
                n.norm_b,
                n.norm,
                n.cosine,
                n.cancelled,
                n.stable_rank,
                n.energy(1),
                n.energy(4),
                n.energy(16),
                float(n.spectrum[0]),
            )
            writer.writerow([name, *(f"{number:.6g}" for number in numbers)])
        return out.getvalue()


def analyze(
    a: Lora, b: Lora, weight_a: float = 1.0, weight_b: float = 1.0, progress: Progress | None = None
) -> Analysis:
    """Compare two LoRAs module by module, without forming a full matrix.

    Norms and cosine are those of A and B as they are; `norm`, `cancelled`, spectrum and stable rank those of
    ``weight_a * a - weight_b * b``.

    raises  PairError if they do not fit together or are the same
    """
    return analyze_difference(subtract(a, b, weight_a, weight_b), progress)


def analyze_difference(lora: Lora, progress: Progress | None = None) -> Analysis:
    """The same for an existing difference, including one that was selected from or re-ranked."""
    pair = lora.difference
    if pair is None:
        raise ValueError("not a difference of two LoRAs")
    measured = lora.before_cut
    measured.check_faults()
    factorisation = factorisation_of(measured)
    progress = progress or (lambda done, total: None)
    total = len(measured.matrices)
    factorisation.run(progress=functools.partial(_of_all, progress, total))
    modules = dict(_numbers(measured, pair, factorisation))
    for done, name in enumerate(measured.dense, total - len(measured.dense)):
        tick = functools.partial(progress, done, total)
        approximation = factorisation.approximation(name, FixedRank(DENSE_VALUES), DENSE_VALUES, tick)
        tick()
        modules[name] = _dense_numbers(pair, name, approximation)
        progress(done + 1, total)
    modules = {name: modules[name] for name in measured.matrices if name in modules}
    sides = {side: tuple(name for name, where in pair.one_sided.items() if where == (side,)) for side in (0, 1)}
    return Analysis(modules, sides[0], sides[1], factorisation.slow, pair.parts[0][0], -pair.parts[1][0])


def _of_all(progress: Progress, total: int, done: int, _: int) -> None:
    progress(done, total)


def training_warnings(a: Lora, b: Lora) -> list[Sentence]:
    """What looks doubtful in the metadata of two LoRAs, before anything is computed."""
    lines = []
    if a.base_model and b.base_model and a.base_model != b.base_model:
        lines.append(
            Sentence(
                "Base models seem to differ: {0} ({1}) and {2} ({3}).", label(a), a.base_model, label(b), b.base_model
            )
        )
    if a.rank_text != b.rank_text:
        lines.append(Sentence("Ranks differ: {0} and {1}.", a.rank_text, b.rank_text))
    for key, what in _SETTINGS.items():
        one, other = a.metadata.get(key), b.metadata.get(key)
        if one is not None and other is not None and one != other:
            lines.append(Sentence("{0} differ: {1} and {2}.", what, printable(one, 60), printable(other, 60)))
    datasets = [lora.metadata.get("ss_datasets") for lora in (a, b)]
    if datasets[0] is not None and datasets[0] == datasets[1]:
        lines.append(Sentence("Both name the same dataset. The two sides of a pair are trained on different data."))
    return lines


_SETTINGS = {
    "ss_base_model_version": Sentence("Base models"),
    "ss_sd_model_name": Sentence("Base model files"),
    "ss_network_module": Sentence("Network types"),
    "ss_network_dim": Sentence("Network ranks"),
    "ss_network_alpha": Sentence("Network alphas"),
    "ss_steps": Sentence("Training steps"),
    "ss_max_train_steps": Sentence("Planned steps"),
    "ss_learning_rate": Sentence("Learning rates"),
    "ss_optimizer": Sentence("Optimizers"),
    "ss_lr_scheduler": Sentence("Schedules"),
    "ss_seed": Sentence("Seeds"),
}


def _numbers(lora: Lora, pair: CombinedLora, factorisation: Factorisation) -> Iterator[tuple[str, ModuleNumbers]]:
    (weight_a, a), (weight_b, b) = pair.parts
    for name in lora.factored:
        known = factorisation[name]
        terms_a = len(a.specs[name].ranks) if name in a else 0
        terms_b = len(b.specs[name].ranks) if name in b else 0
        products = known.products
        scale = lora.weight_of(name)
        if products.shape[0] != terms_a + terms_b:  # left out by nullify: replaced by zeros
            continue
        inside = products[:terms_a, :terms_a].sum(), products[terms_a:, terms_a:].sum()
        norm_a = _divided(math.sqrt(max(0.0, float(inside[0]))), abs(weight_a * scale))
        norm_b = _divided(math.sqrt(max(0.0, float(inside[1]))), abs(weight_b * scale))
        product = _divided(float(products[:terms_a, terms_a:].sum()), weight_a * weight_b * scale**2)
        values = known.singular_values
        norm = math.sqrt(known.energy)
        yield (
            name,
            ModuleNumbers(
                norm_a=norm_a,
                norm_b=norm_b,
                norm=norm,
                cosine=max(-1.0, min(1.0, _divided(product, norm_a * norm_b))),
                cancelled=cancelled_share(norm_a**2, product, norm_b**2, weight_a, -weight_b),
                stable_rank=_divided(known.energy, float(values[0]) ** 2),
                spectrum=values,
            ),
        )


def _dense_numbers(pair: CombinedLora, name: str, approximation: Approximation) -> ModuleNumbers:
    """The same for a module that one side stores in full."""
    a, b = (part[name].dense().double().flatten() if name in part else torch.zeros(1) for _, part in pair.parts)
    norm_a, norm_b = float(a.norm()), float(b.norm())
    product = float((a * b).sum())
    return ModuleNumbers(
        norm_a=norm_a,
        norm_b=norm_b,
        norm=math.sqrt(approximation.energy),
        cosine=max(-1.0, min(1.0, _divided(product, norm_a * norm_b))),
        cancelled=cancelled_share(norm_a**2, product, norm_b**2, pair.parts[0][0], -pair.parts[1][0]),
        stable_rank=_divided(approximation.energy, float(approximation.values[0]) ** 2),
        spectrum=approximation.values,
    )


def cancelled_share(a: float, product: float, b: float, weight_a: float, weight_b: float) -> float:
    """What cancels in ``weight_a * A - weight_b * B``, as a share of both sides' energy.

    a, product, b   ‖A‖², ⟨A, B⟩ and ‖B‖², without the weights
    """
    return _divided(2 * weight_a * weight_b * product, weight_a**2 * a + weight_b**2 * b)


def _divided(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def average_spectrum(spectra: list[Tensor]) -> Tensor:
    """Root mean square of the singular values over modules; shorter spectra count as zero where they end."""
    longest = max(len(values) for values in spectra)
    padded = torch.stack([torch.nn.functional.pad(values, (0, longest - len(values))) for values in spectra])
    return padded.square().mean(0).sqrt()


def nothing_cancels(share: float) -> bool:
    """Whether `cancelled` is below 0, beyond rounding: the difference has more energy than both sides together."""
    return share < -0.0005


def cancelled_text(share: float, digits: int = 1) -> Sentence:
    """What `cancelled` means, in words."""
    if nothing_cancels(share):
        return Sentence("nothing cancels: the two point in opposite directions")
    return Sentence("{0} cancelled", f"{abs(share):.{digits}%}")
