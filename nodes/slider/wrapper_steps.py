"""The noise levels of a WanVideoWrapper sampler's steps, read from the values on its wires. Needs no ComfyUI."""

from __future__ import annotations

from typing import Any

from ...difflora.errors import InputError
from ...difflora.sentence import printable
from ...difflora.steering.schedule import sampled


def steps_of(scheduler: Any, sigmas: Any, start_step: int, end_step: int, shift: float) -> tuple[list[float], float]:
    """The noise level at which each step of the sampler begins, and the schedule's shift.

    scheduler  output of WanVideo Scheduler, which has cut off the steps before its start_step and after its end_step
    sigmas     a whole schedule, one more than there are steps
    raises     InputError if there is neither, or if the scheduler is only a name
    """
    if isinstance(scheduler, dict) and "sample_scheduler" in scheduler:
        own, timesteps = scheduler["sample_scheduler"], scheduler["timesteps"]
        levels = own.sigmas if len(own.sigmas) >= len(timesteps) else timesteps / 1000
        return [float(level) for level in levels[: len(timesteps)]], _shift_of(own, shift)
    if sigmas is not None:
        return sampled(sigmas.tolist(), start_step, end_step), shift
    if scheduler is not None:
        raise InputError(
            f"scheduler is {printable(scheduler, 40)}, which does not say how many steps there are. Wire the scheduler of a "
            "WanVideo Scheduler node into the slider and into the sampler."
        )
    raise InputError(
        "map: the slider has to know the sampler's steps. Wire the scheduler of a WanVideo Scheduler node into scheduler (and "
        "into the sampler), or the sampler's sigmas into sigmas."
    )


def _shift_of(scheduler: Any, otherwise: float) -> float:
    """Some of the wrapper's schedulers store their shift directly, some in their configuration."""
    for holder in (scheduler, getattr(scheduler, "config", None)):
        for name in ("shift", "flow_shift"):
            shift = getattr(holder, name, None)
            if isinstance(shift, (int, float)) and shift > 0:
                return float(shift)
    return otherwise
