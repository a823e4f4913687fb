"""A slider with a map on a WanVideoWrapper model: several predictions per step, mixed by position. Needs no ComfyUI.

The wrapper has no hook around a prediction, but it passes the options of the patcher being sampled to every call of its
transformer. So the transformer's `forward` is wrapped, and passes a call on unless its options contain a map. Unmerged
LoRAs have their strength in a buffer of each layer, which the sampler fills when it starts; each pass overwrites it.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...difflora.errors import InputError, UnsupportedError
from ...difflora.sentence import Sentence
from ...difflora.steering.passes import Passes, kept_between_passes, passes_told
from ...difflora.steering.schedule import flow_percent
from ...difflora.steering.slider_map import SliderMap

SLIDER_MAP = "difflora_slider_map"
STRIDE = 4  # clip frames per latent frame
STEP_CACHES = {"enable_teacache": "TeaCache", "enable_magcache": "MagCache", "enable_easycache": "EasyCache"}
# Inputs of the transformer that carry something from one call to the next.
KEEPERS = {"standin_input": "Stand-In", "x_ovi": "Ovi"}


class MappedForward:
    """How one patcher's predictions are made. It is in the patcher's transformer options.

    places    path of a layer, without torch.compile's part -> index of our LoRA among those of the layer
    strength  that the layers start with, and `outside` where the map's weight is 0
    shift     of the sampler's schedule
    frames    latent frames of the clip, if the map has to know them
    tell      is called with a sentence about the passes at the last step of a run
    """

    def __init__(
        self,
        places: Mapping[str, int],
        slider_map: SliderMap,
        strength: float,
        outside: float,
        shift: float,
        frames: int | None,
        tell: Callable[[Sentence], None],
    ) -> None:
        self._places = dict(places)
        self._map = slider_map
        self._ends = strength, outside
        self._shift = shift
        self._frames = frames
        self._tell = tell
        self._written = strength
        self._field: tuple[tuple[int, int, int], Tensor] | None = None
        self._counts: dict[int, int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> MappedForward:
        return self  # The sampler copies its options.

    def predict(self, transformer: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """The wrapper's own call, once for each pass. Returns what it returns, mixed."""
        frames, height, width = kwargs["x"][0].shape[-3:]
        field = self._field_of((frames, height, width))
        if kwargs.get("reverse_time"):
            field = field.flip(0)
        if float(field.min()) != float(field.max()):
            _refuse_keepers(transformer, kwargs)
        sigma = float(kwargs["t"].max()) / 1000
        passes = Passes.of(field, self._map.steps.at(flow_percent(sigma, self._shift)), *self._ends)
        self._count(kwargs, len(passes.strengths))
        layers = self._layers_of(transformer)
        results = []
        for strength in passes.strengths:
            self._write(layers, strength)
            results.append(forward(*args, **kwargs))
        if len(results) == 1:
            return results[0]
        clips = zip(*(result[0] for result in results), strict=True)
        return ([passes.mix([clip[None] for clip in clip_of_passes])[0] for clip_of_passes in clips], *results[0][1:])

    def _field_of(self, size: tuple[int, int, int]) -> Tensor:
        if self._frames is not None and size[0] != self._frames:
            raise UnsupportedError(
                f"map: the sampler computes {size[0]} latent frames at a time, but the clip has {self._frames}. "
                "WanVideoWrapper does not say which part of the clip they are. Sample without context windows, or leave "
                "frames empty in Slider Map and give it one picture as mask."
            )
        if self._field is None or self._field[0] != size:
            self._field = size, self._map.field(*size, STRIDE)
        return self._field[1]

    def _count(self, kwargs: dict[str, Any], passes: int) -> None:
        """Report at the last step how many passes each took. A step is several calls: with CFG, and for every window."""
        step = int(kwargs.get("current_step", 0))
        if any(later > step for later in self._counts):
            self._counts.clear()  # another run
        self._counts[step] = passes
        # At every call of it: a run of one step cannot be told from the second call of the run before.
        if kwargs.get("last_step"):
            self._tell(passes_told(self._counts.values()))

    def _layers_of(self, transformer: nn.Module) -> list[tuple[nn.Module, str]]:
        """The layers, and the name of the buffer in each that holds the strength of our LoRA."""
        found = []
        for path, layer in transformer.named_modules():
            place = self._places.get(path.replace("_orig_mod.", ""))
            if place is not None:
                found.append((layer, f"_lora_strength_{place}"))
        strengths = [getattr(layer, name, None) for layer, name in found]
        if not (len(found) == len(self._places) and all(self._is_ours(one) for one in strengths[:1])) or not all(
            isinstance(one, Tensor) and one.numel() == 1 for one in strengths
        ):
            raise UnsupportedError(
                "map: the slider's LoRA is not where this node put it on the model. Update WanVideoWrapper, or put WanVideo "
                "Set LoRAs in front of the mapped slider and nothing behind it."
            )
        return found

    def _is_ours(self, strength: Any) -> bool:
        """Whether a layer's strength is the one the sampler started with, or the one we wrote last."""
        if not isinstance(strength, Tensor) or strength.numel() != 1:
            return False
        known = torch.tensor([self._ends[0], self._written], dtype=strength.dtype)
        return float(strength) in known.tolist()

    def _write(self, layers: list[tuple[nn.Module, str]], strength: float) -> None:
        for layer, name in layers:
            getattr(layer, name).fill_(strength)
        self._written = strength


class _Door:
    """Stands in for the transformer's `forward`, and lets a call pass unless its options hold a map."""

    def __init__(self, transformer: nn.Module) -> None:
        self.run = transformer.forward
        self.transformer = transformer
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mapped = kwargs.get("transformer_options", {}).get(SLIDER_MAP)
        if mapped is None:
            return self.run(*args, **kwargs)
        return mapped.predict(self.transformer, self.run, args, kwargs)

    def leave(self) -> None:
        self.users -= 1
        if self.users == 0 and self.transformer.__dict__.get("forward") is self:
            del self.transformer.forward


def put_map(transformer: nn.Module, options: dict[str, Any], mapped: MappedForward) -> None:
    """Make a patcher with these transformer options sample with a map. The wrap is removed with the last map.

    raises  UnsupportedError for a wrapper that does not pass its options to the transformer
    """
    if "transformer_options" not in inspect.signature(type(transformer).forward).parameters:
        raise UnsupportedError(
            "model: this version of WanVideoWrapper does not tell its transformer which model it runs for, so a map "
            "cannot act on it. Update WanVideoWrapper."
        )
    door = transformer.__dict__.get("forward")
    if not isinstance(door, _Door):
        door = transformer.forward = _Door(transformer)
    door.users += 1
    weakref.finalize(mapped, door.leave).atexit = False
    options[SLIDER_MAP] = mapped


def latent_frames(image_embeds: Mapping[str, Any] | None) -> int:
    """Latent frames of the clip that a sampler with these embeds makes. Raises InputError if they do not say."""
    shape = (image_embeds or {}).get("target_shape")
    if shape is not None:
        return int(shape[1])
    frames = (image_embeds or {}).get("num_frames")
    if frames is None:
        raise InputError(
            "map: a map over the frames has to know how many the clip has. Wire the sampler's image_embeds into image_embeds "
            "as well."
        )
    return (int(frames) - 1) // STRIDE + 1


def _refuse_keepers(transformer: nn.Module, kwargs: Mapping[str, Any]) -> None:
    names = [name for flag, name in STEP_CACHES.items() if getattr(transformer, flag, False)]
    names += [name for key, name in KEEPERS.items() if kwargs.get(key) is not None]
    unianimate = kwargs.get("unianim_data") is not None and kwargs.get("y") is not None
    names += ["UniAnimate"] if unianimate else []
    if names:
        raise kept_between_passes(names[0])
