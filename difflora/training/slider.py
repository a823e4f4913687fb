"""Training a slider on pairs: one LoRA that leads to A with + and to B with −, or a LoRA for each side.

On the straight line ``x = (1 − σ) picture + σ noise`` a flow-matching model predicts ``noise − picture``. With one noise
ε and one σ for both sides of a pair, the objective is

    direct   |v(x_A; +½ UD) − (ε − A)|² + |v(x_B; −½ UD) − (ε − B)|²
    pair     |v(x_A; U_A D_A) − (ε − A)|² + |v(x_B; U_B D_B) − (ε − B)|²

so that strength 1 of the slider is all of A − B in both. Noise, σ, order and initial factors are the same on both sides;
otherwise their difference is mostly random. Independent of ComfyUI: a model is a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from .draws import Draw, Draws
from .factors import Factors, TrainedFactors
from .latents import SliderPairs
from .magnitude import best_multiplier
from .optimizers import OPTIMIZERS, clip

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents (n, …), sigma (n,)) -> noise − picture (n, …), with the hooks of `TrainedFactors` in effect."""

MODES = ("direct", "pair")
SIGMAS = {"composition": (0.75, 1.0), "style": (0.0, 0.75), "all": (0.0, 1.0)}
"""Noise levels by what they decide: composition, style, or both."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is learnt, apart from the pairs and the model.

    sigma    lowest and highest noise level; σ is uniform between them, not shifted
    warmup   steps over which the rate rises
    average  share of the old value in the running mean of the factors, which is the result; 0: use the last factors
    clip     largest norm of a side's gradient
    raises   TrainingError if a value makes no sense
    """

    mode: str = "direct"
    rank: int = 4
    steps: int = 100
    batch: int = 4
    learning_rate: float = 1e-3
    optimizer: str = "lion"
    warmup: int = 15
    sigma: tuple[float, float] = SIGMAS["composition"]
    seed: int = 0
    average: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name, value, options in (("mode", self.mode, MODES), ("optimizer", self.optimizer, tuple(OPTIMIZERS))):
            if value not in options:
                raise TrainingError(f"{name} is {value!r}: use one of {', '.join(options)}.")
        for name, least in (("rank", 1), ("steps", 1), ("batch", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name} is {getattr(self, name)}: use {least} or more.")
        low, high = self.sigma
        if not 0 <= low < high <= 1:
            raise TrainingError(
                f"The noise levels are {low} to {high}: the first must be smaller, and both from 0 to 1."
            )
        if not (0 < self.learning_rate < 1 and self.clip > 0 and 0 <= self.average < 1):
            raise TrainingError(
                f"learning_rate is {self.learning_rate}, clip {self.clip}, average {self.average}: use a rate between 0 "
                "and 1, a clip above 0 and an average from 0 to below 1."
            )

    @property
    def sides(self) -> int:
        return 1 if self.mode == "direct" else 2

    def identity(self) -> dict[str, Any]:
        """As JSON data, without the number of steps: a training can be continued for longer."""
        found = asdict(self) | {"sigma": list(self.sigma)}
        del found["steps"]
        return found

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: it rises, then stays constant."""
        return self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1))


@dataclass
class SliderTrainer:
    """Takes one step at a time. Between two steps the state is consistent and can be saved and restored.

    pairs     latents as the model sees them (after `process_latent_in`)
    velocity  the model
    layers    module name -> linear layer of that model
    shapes    module name -> (out, in)
    """

    settings: Settings
    pairs: SliderPairs
    velocity: Velocity
    layers: Mapping[str, nn.Module]
    shapes: Mapping[str, tuple[int, int]]
    device: torch.device | str = "cpu"
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        s = self.settings
        self.factors = TrainedFactors(self.layers, self.shapes, s.rank, s.sides, s.seed, self.device)
        self.optimizers = [OPTIMIZERS[s.optimizer](self.factors.parameters(side)) for side in range(s.sides)]
        self.means = [factor.detach().clone() for factor in self.factors.parameters()] if s.average else []
        self.draws = Draws([tuple(latent.shape) for latent in self.pairs.a], s.batch, s.sigma, s.seed)

    @property
    def done(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def step(self) -> float:
        """Take a step; returns its loss. If an exception is raised, the state is as before the step.

        raises  TrainingError if the loss is not a number
        """
        number = self.done
        for parameter in self.factors.parameters():
            parameter.grad = None
        with torch.enable_grad():
            loss = self.loss(self.draws.at(number))
            loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} at step {number + 1}. Lower the learning rate, or use a model in a wider dtype."
            )
        for side, optimizer in enumerate(self.optimizers):
            clip(self.factors.parameters(side), self.settings.clip)
            optimizer.step(self.settings.rate(number), number + 1)
        if self.means:
            # At first a mean over all steps so far, so that the initial zeros do not stay in it.
            keep = min(self.settings.average, number / (number + 1))
            with torch.no_grad():
                for mean, parameter in zip(self.means, self.factors.parameters(), strict=True):
                    mean.lerp_(parameter, 1 - keep)
        self.losses.append(value)
        return value

    def loss(self, draw: Draw) -> Tensor:
        """The objective on one draw, the mean over pairs and values of each side, summed over the two sides."""
        one, none = torch.ones(len(draw.indices)), torch.zeros(len(draw.indices))
        if self.settings.mode == "direct":
            return self._loss(draw, torch.cat([0.5 * one, -0.5 * one])[None])
        return self._loss(draw, torch.stack([torch.cat([one, none]), torch.cat([none, one])]))

    def slider_loss(self, draw: Draw, multiplier: float) -> Tensor:
        """The same with the finished slider, at +½ on A's pictures and −½ on B's; `multiplier`: of the slider.

        In pair mode the slider is A − B: what both sides learned, which `loss` measures too, is not in it.
        """
        half = 0.5 * multiplier * torch.ones(len(draw.indices))
        return self._loss(draw, self._slider_rows(torch.cat([half, -half])))

    def _slider_rows(self, strengths: Tensor) -> Tensor:
        """What each side is multiplied by in each row of a batch, for the slider at these strengths."""
        return torch.stack([strengths] if self.settings.mode == "direct" else [strengths, -strengths])

    def _loss(self, draw: Draw, multipliers: Tensor) -> Tensor:
        """Loss with the sides' changes times `multipliers` (sides, 2 × pairs): A's pictures first, then B's."""
        clean = torch.stack([side[index] for side in (self.pairs.a, self.pairs.b) for index in draw.indices])
        clean, noise = clean.to(self.device), torch.cat([draw.noise] * 2).to(self.device)
        sigma = torch.cat([draw.sigma] * 2).to(self.device)
        line = sigma.view(-1, *[1] * (clean.ndim - 1))
        # It stays set until the next loss: a checkpointed block is computed again during `backward`.
        self.factors.multipliers = multipliers.to(self.device)
        predicted = self.velocity(clean * (1 - line) + noise * line, sigma)
        return 2 * (predicted - (noise - clean)).square().mean()

    def check_gradient(self) -> None:
        """Compare the gradient with finite differences of the loss, before the first step: three to eleven passes.

        A model may use kernels that have no backward, or reuse memory that autograd relies on; the training
        would then run but learn nothing.
        raises  TrainingError if the two do not agree
        """
        parameters, draw = self.factors.parameters(), self.draws.at(0)
        for parameter in parameters:
            parameter.grad = None
        with torch.enable_grad():
            loss = self.loss(draw)
            loss.backward()  # type: ignore[no-untyped-call]
        own = [parameter.detach().clone() for parameter in parameters]
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        norm = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
        found: list[float] = []
        with torch.no_grad():
            # Steps that should change the loss by 2 %, then others: a small change is lost in the rounding of a narrow dtype,
            # and a large one is not linear, above all with large pictures.
            for share in (0.02, 0.005, 0.1, 0.001, 0.0002) if 0 < norm < math.inf else ():
                length, losses = share * float(loss.detach()) / norm, []
                for sign in (1, -1):
                    for parameter, start, slope in zip(parameters, own, slopes, strict=True):
                        parameter.copy_(start + sign * length / norm * slope)
                    losses.append(float(self.loss(draw)))
                found.append((losses[0] - losses[1]) / (2 * length * norm))
                if abs(found[-1] - 1) < 0.2:
                    break
            for parameter, start in zip(parameters, own, strict=True):
                parameter.copy_(start)
        if not found or abs(found[-1] - 1) >= 0.2:
            said = ", ".join(f"{ratio:.2f}" for ratio in found) or "none"
            raise TrainingError(
                f"The model's gradient is not the slope of its loss (measured over computed: {said}; 1 is right), so "
                "training on it would teach nothing. Use another file of this model: bf16, fp16, fp8 or GGUF."
            )

    def applied(self, strengths: list[float]) -> None:
        """Make the model use the slider, at one strength for each row of the next batch."""
        self.factors.multipliers = self._slider_rows(torch.tensor(strengths)).to(self.device)

    def best_multiplier(self, most: int = 16, tick: Callable[[], None] = lambda: None) -> float:
        """The scale at which the slider fits the pairs best; forward passes only.

        most  pairs of each shape that are used, with the same noise for every multiplier
        tick  called before each pass; may raise to cancel
        """
        draws = self.draws.fixed(most)
        own = [factor.detach().clone() for factor in self.factors.parameters()]

        def loss(multiplier: float) -> float:
            total = 0.0
            for draw in draws:
                tick()
                total += float(self.slider_loss(draw, multiplier)) * len(draw.indices)
            return total

        with torch.no_grad():
            try:
                for factor, mean in zip(self.factors.parameters(), self.means or own, strict=True):
                    factor.copy_(mean)
                return best_multiplier(loss)
            finally:
                for factor, before in zip(self.factors.parameters(), own, strict=True):
                    factor.copy_(before)

    def result(self) -> list[Factors]:
        """The factors of each side, or their running means if these are used. Views, not copies."""
        if not self.means:
            return self.factors.sides
        means = iter(self.means)
        return [{name: (next(means), next(means)) for name in side} for side in self.factors.sides]

    def tensors(self) -> dict[str, Tensor]:
        """The whole state except the losses: by name, shared with the trainer."""
        found: dict[str, Tensor] = {}
        for side, factors in enumerate(self.factors.sides):
            names = [f"{side}.{name}.{which}" for name in factors for which in ("up", "down")]
            found |= {f"factor.{n}": p.detach() for n, p in zip(names, self.factors.parameters(side), strict=True)}
            for kind, values in self.optimizers[side].state.items():
                found |= {f"{kind}.{n}": value for n, value in zip(names, values, strict=True)}
        return found | {f"average.{place}": mean for place, mean in enumerate(self.means)}

    def restore(self, tensors: Mapping[str, Tensor], losses: list[float]) -> None:
        """Resume from a state. raises TrainingError, before anything changes, if it belongs to another training."""
        own = self.tensors()
        if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
            raise TrainingError("The checkpoint is of another training: its tensors differ. Delete it and start anew.")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self.losses = list(losses)
