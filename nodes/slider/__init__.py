"""A LoRA on a model: the slider nodes, and the other nodes that act on a model."""
