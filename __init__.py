"""Differential LoRA: exact LoRA sliders for Wan2.1 in ComfyUI."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint() -> object:
    # Imported here, not above: pytest imports this file on machines without ComfyUI.
    from .nodes import DifferentialLora

    return DifferentialLora()
