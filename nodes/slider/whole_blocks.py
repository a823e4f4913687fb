"""Which whole blocks a selection names. Needs no ComfyUI."""

from collections.abc import Sequence

from ...difflora.errors import SelectionError
from ...difflora.lora.selection import Selection
from ...difflora.names import families


def blocks_of(modules: Sequence[str]) -> dict[str, int]:
    """Module -> index of the block it is in, for the projections in the main stack of blocks of a Wan model."""
    found = {module: families.own(module) for module in modules}
    return {
        module: int(at[1][0])
        for module, at in found.items()
        if at and at[0].stack == families.WAN.main_stack and at[0].roles and not families.is_norm(module)
    }


def blocks_named(text: str, modules: Sequence[str]) -> list[int]:
    """Indices of the blocks that a selection picks as a whole, out of a model's `modules`, in ascending order.

    Raises SelectionError for an entry that fits nothing, for one that picks a part of a block, and for a weight.
    """
    if text.strip() in ("", "none"):
        return []
    block = blocks_of(modules)
    selection = Selection.parse(text)
    chosen = selection.weights(block)
    unmatched = selection.unmatched(block)
    if unmatched:
        raise SelectionError(
            f"blocks: nothing in this model fits {', '.join(unmatched)}. It has blocks 0-{max(block.values())}."
        )
    weighed = next((module for module, weight in chosen.items() if weight != 1), None)
    if weighed:
        raise SelectionError(
            f"blocks: {text!r} gives {weighed} the weight {chosen[weighed]:g}, but a block is either on or off here. "
            f"Leave the weight out."
        )
    blocks = {block[module] for module in chosen}
    left = next((module for module in block if block[module] in blocks and module not in chosen), None)
    if left:
        raise SelectionError(
            f"blocks: {text!r} picks a part of block {block[left]} only ({left} is not in it). This node switches whole "
            f"blocks: write blocks {block[left]}. For parts of blocks, see Select Blocks."
        )
    return sorted(blocks)
