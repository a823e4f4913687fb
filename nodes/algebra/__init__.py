"""From files to a small LoRA and back to a file: load, subtract, select, re-rank, analyze, save."""
