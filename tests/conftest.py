"""What tests in several folders ask for."""

import re

import pytest


@pytest.fixture
def kdlab():
    """Run the command; gives exit code and all it printed, with single spaces."""
    from typer.testing import CliRunner

    from kdlab import cli

    def call(*words):
        result = CliRunner().invoke(cli.app, list(map(str, words)))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, re.sub(r"\s+", " ", result.output)

    return call
