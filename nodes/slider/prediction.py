"""How much a slider changes a model's prediction, measured on the connected model, called as a sampler calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ...difflora import Lora
from ...difflora.errors import UnsupportedError
from ...difflora.rank.calibrate import prediction_change, way_to
from ..common.progress import interruptible
from .model_weights import Targets
from .native import applied


class PredictionMeter:
    """Measures how much a slider changes the predictions on the way from noise to a picture.

    The model itself takes the first part of the way, from noise alone to `noise`, in Euler steps as a sampler does. There
    its predictions with the slider at + and − are compared. One latent at a time, so that memory is that of one render.

    model         ComfyUI's; it is left as it was
    conditioning  ComfyUI's, as a sampler takes it
    latent        (batch, channels, …): only its size counts
    noise         noise level, above 0; 1 is noise alone
    samples       starts, from seeds 0, 1, …
    tick          called before each pass through the model
    raises        UnsupportedError if the model is not a flow-matching model, PairError if the LoRA does not fit it
    """

    def __init__(
        self, model: Any, lora: Lora, conditioning: Any, latent: Tensor, noise: float, samples: int, tick: Callable[[], None]
    ):  # fmt: skip
        if not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
            raise UnsupportedError(
                f"model: {type(model.model).__name__} is not a flow-matching model. A slider is calibrated by prediction on such "
                "models only: Wan, Flux, SD3 and their like. Choose norm or change."
            )
        if getattr(latent, "is_nested", False):
            raise UnsupportedError(
                "latent: it holds latents of several kinds, such as picture and sound. Choose norm or change."
            )
        self.targets = Targets(model, lora)
        self._model, self._lora, self._conditioning = model, lora, conditioning
        self._noise, self._tick = noise, tick
        size = comfy.sample.fix_empty_latent_channels(model, torch.zeros_like(latent[:1], device="cpu"))
        starts = [torch.randn(size.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(samples)]
        self._starts, self._plain = self._asked(model, starts, way_to(noise))
        self._found: dict[float, float] = {}

    def change_at(self, strength: float) -> float:
        """Half the difference of the predictions at + and − `strength`, as a share of those without the slider."""
        if strength not in self._found:
            sides = []
            for signed in (strength, -strength):
                changed = applied(self._model, self._lora, self.targets, signed, bypass=True)
                sides.append(self._asked(changed, self._starts, [self._noise])[1])
            self._found[strength] = prediction_change(self._plain, *sides)
        return self._found[strength]

    def _asked(self, patcher: Any, latents: Sequence[Tensor], way: Sequence[float]) -> tuple[list[Tensor], Tensor]:
        """Each latent at the end of the way, and the predictions there, (samples, …); on the CPU."""
        look = _Look(latents, way, self._tick)
        guider = comfy.samplers.CFGGuider(patcher)
        guider.inner_set_conds({"positive": self._conditioning})
        empty = torch.zeros_like(latents[0])
        with interruptible(patcher.model, throw_exception_if_processing_interrupted):
            guider.sample(empty, empty, look, torch.tensor([*way, 0.0]), disable_pbar=True, seed=0)
        return look.ends, torch.cat(look.velocities)


class _Look(comfy.samplers.Sampler):
    """In a sampler's place: notes predictions of noise − picture, and goes no further than they are wanted."""

    def __init__(self, latents: Sequence[Tensor], way: Sequence[float], tick: Callable[[], None]):
        self._latents, self._way, self._tick = latents, way, tick
        self.ends: list[Tensor] = []
        self.velocities: list[Tensor] = []

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any, **__: Any
    ) -> Tensor:  # fmt: skip
        for latent in self._latents:
            x = latent.to(noise)
            for now, then in zip(self._way, [*self._way[1:], None], strict=True):
                self._tick()
                denoised = model_wrap(x, x.new_full((len(x),), now), **extra_args)
                velocity = (x - denoised) / now
                if then is not None:
                    x = x + (then - now) * velocity
            self.ends.append(x.cpu())
            self.velocities.append(velocity.float().cpu())
        return noise
