"""The models in comfyui_keys.py, and the family of each. Imports nothing: ComfyUI's Python reads it, too."""

FAMILY_OF = {
    "wan": "Wan", "wan-i2v": "Wan", "wan-5b": "Wan", "wan-vace": "Wan", "wan-animate": "Wan", "wan-s2v": "Wan",
    "wan-fun-control": "Wan", "wan-camera": "Wan",
    "krea2": "Krea 2", "z-image": "Z-Image", "flux2": "FLUX.2", "flux2-klein": "FLUX.2", "ltx2": "LTX-2",
    "qwen-image": "Qwen-Image", "anima": "Anima", "flux": "Flux", "hunyuan": "HunyuanVideo",
    "hunyuan15": "HunyuanVideo-1.5", "minimax-h3": "MiniMax H3", "ltx": "LTX-Video", "lumina2": "Lumina 2", "sdxl": "SDXL",
}  # fmt: skip
