"""The version, in one place besides pyproject.toml; a test compares the two."""

__version__ = "0.1.0"
