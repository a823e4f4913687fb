"""The command line: ``python -m difflora``."""
