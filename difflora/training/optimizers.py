"""Lion and AdamW for a list of tensors, with a state that can be saved and restored bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Lion:
    """The sign of a blend of gradient and momentum (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms)."""

    def __init__(self, parameters: Sequence[Tensor], betas: tuple[float, float] = (0.9, 0.99)):
        self.parameters, self.betas = list(parameters), betas
        self.state = {"momentum": [torch.zeros_like(parameter) for parameter in self.parameters]}

    @torch.no_grad()
    def step(self, rate: float, number: int) -> None:
        """Move every parameter by `rate`. `number` counts steps from 1."""
        fast, slow = self.betas
        for parameter, momentum in zip(self.parameters, self.state["momentum"], strict=True):
            gradient = _gradient(parameter)
            parameter.sub_(torch.sign(momentum.lerp(gradient, 1 - fast)), alpha=rate)
            momentum.lerp_(gradient, 1 - slow)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    def __init__(
        self, parameters: Sequence[Tensor], betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.01
    ):
        self.parameters, self.betas, self.weight_decay = list(parameters), betas, weight_decay
        self.state = {
            "mean": [torch.zeros_like(parameter) for parameter in self.parameters],
            "square": [torch.zeros_like(parameter) for parameter in self.parameters],
        }

    @torch.no_grad()
    def step(self, rate: float, number: int) -> None:
        """Move every parameter. `number` counts steps from 1, for the correction of the first steps' bias."""
        slow, slower = self.betas
        for parameter, mean, square in zip(self.parameters, self.state["mean"], self.state["square"], strict=True):
            gradient = _gradient(parameter)
            mean.lerp_(gradient, 1 - slow)
            square.lerp_(gradient.square(), 1 - slower)
            root = (square / (1 - slower**number)).sqrt_().add_(1e-8)
            parameter.mul_(1 - rate * self.weight_decay).addcdiv_(mean, root, value=-rate / (1 - slow**number))


OPTIMIZERS = {"lion": Lion, "adamw": AdamW}


def _gradient(parameter: Tensor) -> Tensor:
    # A layer that was not used for this step's prediction has no gradient.
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def clip(parameters: Sequence[Tensor], largest: float) -> float:
    """Scale the gradients so that their joint norm is at most `largest`; returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    factor = (largest / (norm + 1e-12)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return float(norm)
