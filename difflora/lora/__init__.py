"""A LoRA as a value: read lazily from a file, combined, selected, extracted from checkpoints."""
