"""``python -m difflora``."""

from .cli.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
