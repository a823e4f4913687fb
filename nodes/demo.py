"""The small trained models in `demo/models`, offered to ComfyUI's loaders so that the demo workflow just runs."""

from __future__ import annotations

from pathlib import Path

import folder_paths

_MODELS = Path(__file__).resolve().parent.parent / "demo" / "models"


def offer_demo_models() -> None:
    """Adds the folders after the existing ones, so that files are still saved where they always were."""
    for kind in ("diffusion_models", "vae", "loras"):
        if (_MODELS / kind).is_dir():
            folder_paths.add_model_folder_path(kind, str(_MODELS / kind))
