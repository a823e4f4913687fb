"""What several tests of the library share."""

from collections.abc import Callable

import pytest

from difflora.cli.commands import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must succeed, and gives its stdout; what it wrote to stderr is in `run.errors`."""

    def run(*arguments: object) -> str:
        code = main([str(argument) for argument in arguments])
        out, run.errors = capsys.readouterr()
        assert code == 0, run.errors
        return out

    return run
