"""Bytes: safetensors files, which are checked when read and written completely or not at all. Knows nothing about LoRAs."""
