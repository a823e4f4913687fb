"""Gives a slider's strength a unit: scales it so that ±1 means the same for every slider.

By norm, only the factors are needed: the mean Frobenius norm of the modules becomes a given number. By prediction, ±1 changes
what a model predicts by a given share; whoever has the model passes a function that measures it. By response, ±1 changes the
slider's target by a given amount, or ±3 is as far as it can go without harm; the measured curve is passed as plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from ..errors import PairError
from ..lora.lora import CombinedLora, Lora, Recipe, label
from ..progress import Progress
from ..sentence import Sentence
from ..storage.reader import FileIdentity
from .factorisation import factorisation_of

REACH = 3.0  # the strength at which the recommended range should end
SMALLEST, LARGEST = 1e-6, 1e6  # factors beyond these are a mistake in the unit
CLOSE_ENOUGH = 0.01  # of the change that a prediction is to have
MOST_TRIES = 10
# By prediction, if nothing else is said: the change at ±1, the noise level at which it is measured, and from how many noises.
SHARE, NOISE, SAMPLES = 0.05, 0.75, 4


class CalibratedLora(CombinedLora):
    """Another LoRA times `factor`, whose strength 1 means `unit`."""

    def __init__(self, of: Lora, factor: float, unit: str):
        super().__init__([(factor, of)])
        self.factor, self._unit = float(factor), unit

    @property
    def unit(self) -> str | None:
        return self._unit

    def describe(self, sha256: Callable[[FileIdentity], str]) -> Recipe:
        return {"op": "calibrate", "factor": self.factor, "unit": self._unit, "of": self.parts[0][1].describe(sha256)}


def calibrate(lora: Lora, factor: float, unit: str) -> CalibratedLora:
    """`lora` times `factor`, with what its strength 1 then means.

    raises  PairError if the factor is not a sensible number
    """
    if not (math.isfinite(factor) and SMALLEST <= abs(factor) <= LARGEST):
        raise PairError(f"{label(lora)} would be multiplied by {factor:.3g} to fit the unit. Choose another unit.")
    return CalibratedLora(lora, factor, unit)


def mean_norm(lora: Lora, progress: Progress | None = None) -> float:
    """Mean over the weight matrices of the Frobenius norm of their change, from the spectra alone.

    For a matrix that is stored in full, this is the norm of the whole matrix.
    """
    lora.check_faults()
    factorisation = factorisation_of(lora)
    total = len(lora.matrices)
    factorisation.run(progress=progress and (lambda done, _: progress(done, total)))
    norms = [math.sqrt(factorisation[name].energy) for name in lora.factored]
    for done, name in enumerate(lora.dense, len(norms) + 1):
        norms.append(float(lora[name].dense().norm()))
        if progress:
            progress(done, total)
    return math.fsum(norms) / len(norms) if norms else 0.0


def calibrate_norm(lora: Lora, norm: float, progress: Progress | None = None) -> CalibratedLora:
    """Scaled so that `mean_norm` is `norm`.

    raises  PairError if `norm` is not above zero, or the LoRA changes no matrix
    """
    if not (math.isfinite(norm) and norm > 0):
        raise PairError(f"The norm is {norm}; it must be a number above zero, such as 1.")
    now = mean_norm(lora, progress)
    if now == 0:
        raise PairError(f"{label(lora)}: no weight matrix is changed, so there is no norm to scale.")
    return calibrate(lora, norm / now, Sentence("a mean norm of {0} a module", f"{norm:g}"))


def way_to(noise: float, steps: int = 4) -> list[float]:
    """Noise levels from 1, noise alone, to `noise`: a model's own Euler steps to where its prediction is compared."""
    return [1 + (noise - 1) * step / steps for step in range(steps)] + [noise] if noise < 1 else [1.0]


def prediction_change(plain: Tensor, plus: Tensor, minus: Tensor) -> float:
    """How much a slider changes a model's prediction: half the difference between + and −, as a share of the plain prediction.

    Root mean squares over all values of tensors of one shape, in float64.

    plain        without the slider
    plus, minus  with it at equal strengths of either sign
    """
    size = plain.double().square().mean().sqrt()
    return float((plus.double() - minus.double()).square().mean().sqrt() / 2 / size)


def factor_for_prediction(measured: Callable[[float], float], share: float) -> float:
    """The strength at which a slider changes a model's prediction by `share`.

    The change is nearly proportional to the strength while both are small, so two measurements are enough for most sliders.

    measured  called with a strength above zero: the change at ± that strength, as of `prediction_change`
    raises    PairError if the slider changes nothing, never that much, or makes something that is no number
    """
    if not (math.isfinite(share) and share > 0):
        raise PairError(f"The change is {share}; it must be a number above zero, in the unit that is measured.")
    factor, power = 1.0, 1.0
    low, high = 0.0, math.inf  # factors with too small and too large a change
    found: dict[float, float] = {}
    last: tuple[float, float] | None = None
    while len(found) < MOST_TRIES and SMALLEST <= factor <= LARGEST:
        change = found[factor] = measured(factor)
        if change == 0:
            raise PairError("The slider does not change what the model predicts, so there is nothing to scale.")
        if abs(change / share - 1) <= CLOSE_ENOUGH:
            return factor
        low, high = (factor, high) if change < share else (low, factor)
        if math.isfinite(change):
            if last is not None and change != last[1]:
                # Where the change levels off, it grows with a power of the strength below 1.
                power = min(max(math.log(change / last[1]) / math.log(factor / last[0]), 0.5), 2.0)
            last = factor, change
            factor *= (share / change) ** (1 / power)
        else:
            factor /= 8  # nothing tells how much too strong it was
        if not low < factor < high:
            factor = math.sqrt(low * high)
    most = max((change for change in found.values() if math.isfinite(change)), default=math.nan)
    raise PairError(
        f"Multiplied by {min(found):.3g} to {max(found):.3g}, the slider changes what the "
        f"model predicts by up to {most:.3%}, but nowhere by {share:.3%}. Choose another change."
    )


def factor_for_change(strengths: Sequence[float], values: Sequence[float], change: float) -> float:
    """The strength at which a slider changes a measured value by `change`, on average of + and −.

    strengths   ascending, some on either side of 0
    values      measured at them, in the unit of `change`; interpolated linearly
    raises      PairError if the slider never changes it that much
    """
    if not (math.isfinite(change) and change > 0):
        raise PairError(f"The change is {change}; it must be a number above zero, in the unit that is measured.")
    at, measured = np.asarray(strengths, dtype=float), np.asarray(values, dtype=float)
    reach = min(-at[0], at[-1]) if len(at) > 1 else 0.0
    if reach <= 0:
        raise PairError(
            "The sweep has strengths on one side of 0 only. Calibrate with one that goes both ways, such as -3 to 3."
        )
    # Between the strengths on either side, the change from − to + is linear, too.
    corners = np.unique([0.0, reach, *(abs(one) for one in at if 0 < abs(one) <= reach)])
    grown = np.abs(np.interp(corners, at, measured) - np.interp(-corners, at, measured)) / 2
    for low, high, before, after in zip(corners, corners[1:], grown, grown[1:], strict=False):
        if after >= change:
            return float(low + (high - low) * (change - before) / (after - before)) if after > before else float(high)
    raise PairError(
        f"Between −{reach:g} and +{reach:g} the slider changes it by {grown.max():.3g} at most, not by {change:g}. Give a smaller "
        "change, or sweep further."
    )


def factor_for_range(low: float, high: float) -> float:
    """The factor that puts the nearer end of a recommended range at ±3.

    raises  PairError if the range does not reach to both sides of 0
    """
    if not low < 0 < high:
        raise PairError(f"The recommended range is {low:g} to {high:g}; it must reach below and above 0.")
    return min(-low, high) / REACH
