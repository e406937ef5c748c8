"""Fixtures of the end-to-end tests. Everything in this directory starts real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.node import Node, Sink
from tests.e2e.harness import running_node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running_node(tmp_path) as running:
        yield running
