"""Free the memory of a finished clip before ComfyUI's cache does."""

from __future__ import annotations

import gc
import types
from weakref import ReferenceType

import torch


def let_go(pictures: ReferenceType[torch.Tensor]) -> None:
    """Free the pixels of a finished clip if nothing else uses them.

    ComfyUI's classic cache keeps the output of every node until the next prompt, so all clips of a sweep would be in memory
    at once. No prompt asks for these again, because their signature contains the gate's `run`. Nothing else uses them if
    only one cached list holds them (no other node passed the same pictures on or keeps them) and no other tensor shares
    their memory.
    """
    count = getattr(torch._C, "_storage_Use_Count", None)
    images = pictures()
    if count is None or images is None:
        return
    # Do not count the frames of this call and the arguments of the cell's call.
    holders = [
        holder
        for holder in gc.get_referrers(images)
        if not isinstance(holder, types.FrameType)
        and not (isinstance(holder, dict) and {"images", "key", "run"} <= holder.keys())
    ]
    storage = images.untyped_storage()
    # Two references to the memory: the tensor and the name in the line above.
    if (
        all(type(holder) is list for holder in holders)
        and len(holders) <= 1
        and count(storage._cdata) <= 2
        and storage.resizable()
    ):
        storage.resize_(0)
