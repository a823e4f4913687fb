"""Bytes: safetensors files, read without trust and written whole or not at all. Knows nothing of LoRAs."""
