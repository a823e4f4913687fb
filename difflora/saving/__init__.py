"""From a LoRA to a file, and from the recipe in a file back to the LoRA."""
