"""Widgets that several nodes have."""

from __future__ import annotations

from comfy_api.v0_0_2 import io


def ignore_unknown_input() -> io.Input:
    """The switch of the nodes that open LoRA files."""
    return io.Boolean.Input(
        "ignore_unknown",
        default=False,
        optional=True,
        tooltip="Continue although some keys are not understood. They are left out, and listed on the node.",
    )
