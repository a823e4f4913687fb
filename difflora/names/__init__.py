"""The names that trainers give a model's modules, and the names used here."""
