"""The memory of a finished clip, before ComfyUI's cache would give it back."""

from __future__ import annotations

import gc
import types
from weakref import ReferenceType

import torch


def let_go(pictures: ReferenceType[torch.Tensor]) -> None:
    """Free the pixels of a finished clip if they are nobody else's.

    ComfyUI's classic cache keeps what each node gave until the next prompt: all clips of a sweep, one beside the other. No
    prompt will ask for these again, because their signature has the gate's `run` in it. They are nobody else's if only one
    cached list holds them (no other node handed the same pictures on, or keeps them), and no other tensor shares their
    memory.
    """
    count = getattr(torch._C, "_storage_Use_Count", None)
    images = pictures()
    if count is None or images is None:
        return
    # Not counted: the frames of this call, and the arguments that the cell was called with.
    holders = [
        holder
        for holder in gc.get_referrers(images)
        if not isinstance(holder, types.FrameType)
        and not (isinstance(holder, dict) and {"images", "key", "run"} <= holder.keys())
    ]
    storage = images.untyped_storage()
    # Two users of the memory: the tensor, and the name in the line above.
    if (
        all(type(holder) is list for holder in holders)
        and len(holders) <= 1
        and count(storage._cdata) <= 2
        and storage.resizable()
    ):
        storage.resize_(0)
