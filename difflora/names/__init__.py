"""What trainers call a model's modules, and what those are called here."""
