"""A slider with a map on a ComfyUI model: several predictions per step, mixed by position.

The mixing wraps PREDICT_NOISE, which sees the whole latent, after CFG and with context windows inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ...difflora.errors import UnsupportedError
from ...difflora.names.families import frames_per_latent
from ...difflora.sentence import Sentence
from ...difflora.steering.passes import Passes, kept_between_passes, passes_told, second_map
from ...difflora.steering.schedule import percent_of
from ...difflora.steering.slider_map import SliderMap
from .bypass import Beside

# Keys that step-skipping packs put into a model's options, and the packs' names.
STEP_CACHES = {
    "lazycache": "LazyCache",
    "easycache": "EasyCache",
    "teacache": "TeaCache",
    "rel_l1_thresh": "TeaCache",
    "magcache": "MagCache",
}


class MappedPrediction:
    """Wraps a guider's prediction: sets the slider's strength, predicts, and mixes by position in the latent.

    tell  is called with a sentence about the passes at the start of every run
    """

    def __init__(
        self, beside: Beside, slider_map: SliderMap, strength: float, outside: float, tell: Callable[[Sentence], None]
    ) -> None:
        self._beside = beside
        self._map = slider_map
        self._ends = strength, outside
        self._tell = tell
        self._field: tuple[tuple[int, ...], torch.Tensor] | None = None
        self._told: list[float] | None = None

    def __call__(
        self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: Any, *rest: Any
    ) -> torch.Tensor:
        guider = executor.class_obj
        model = guider.model_patcher.model
        field = self._field_of(x, model)
        sampling = model.model_sampling

        def passes_at(sigma: float) -> Passes:
            weight = self._map.steps.at(percent_of(sigma, sampling.percent_to_sigma))
            return Passes.of(field, weight, *self._ends)

        sigma = float(timestep.flatten()[0])
        schedule = model_options.get("transformer_options", {}).get("sample_sigmas")
        if schedule is not None and ((sigmas := schedule.tolist()) != self._told or sigma == sigmas[0]):
            counts = [len(passes_at(sigma).strengths) for sigma in sigmas[:-1]]
            if max(counts, default=1) > 1:
                refuse_step_caches(model_options)
            self._tell(passes_told(counts))
            self._told = sigmas
        passes = passes_at(sigma)
        predictions = []
        for strength in passes.strengths:
            self._beside.set_strength(guider.model_patcher, strength)
            predictions.append(executor(x, timestep, model_options, *rest))
        return passes.mix(predictions)

    def _field_of(self, x: torch.Tensor, model: Any) -> torch.Tensor:
        if x.ndim not in (4, 5):
            raise UnsupportedError(
                f"map: this model packs its latent into shape {tuple(x.shape)}, in which places cannot be told apart. "
                "Use the slider without a map."
            )
        frames = x.shape[2] if x.ndim == 5 else 1
        size = frames, int(x.shape[-2]), int(x.shape[-1])
        if self._field is None or self._field[0] != size:
            self._field = size, self._map.field(*size, stride_of(model.latent_format))
        return self._field[1]


def put_map(
    patcher: Any,
    key: str,
    beside: Beside,
    slider_map: SliderMap,
    strength: float,
    outside: float,
    tell: Callable[[Sentence], None],
) -> None:
    """Make `patcher` sample with a map. `beside` is adjustable and already on the patcher."""
    mapped = MappedPrediction(beside, slider_map, strength, outside, tell)
    patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, mapped)


def check_no_map(patcher: Any) -> None:
    """Raise UnsupportedError for a model that already has a slider with a map."""
    wrappers = patcher.wrappers.get(WrappersMP.PREDICT_NOISE, {})  # in the options only during sampling
    if any(isinstance(wrapper, MappedPrediction) for group in wrappers.values() for wrapper in group):
        raise second_map()


def refuse_step_caches(model_options: Any) -> None:
    """Raise UnsupportedError if something skips steps: it would reuse results of one pass in another."""
    options = model_options.get("transformer_options", {})
    names = [str(key) for key in options]
    names += [str(key) for group in options.get("wrappers", {}).values() for key in group]
    function = model_options.get("model_function_wrapper")
    names += [getattr(function, "__module__", "") or "", getattr(function, "__qualname__", "") or ""]
    if name := getattr(options.get("easycache"), "name", ""):
        names.insert(0, name)
    for text in names:
        for part, cache in STEP_CACHES.items():
            if part in text.lower():
                raise kept_between_passes(cache)


def stride_of(latent_format: Any) -> int:
    """Clip frames per latent frame, after the first."""
    said = getattr(latent_format, "temporal_downscale_ratio", None)  # from ComfyUI 0.33 on
    return int(said) if said else frames_per_latent(type(latent_format).__name__)
