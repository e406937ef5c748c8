"""`pytest tests/golden --rewrite` writes what the machine says into the transcripts; read the difference before it is kept."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="rewrite the golden transcripts")
