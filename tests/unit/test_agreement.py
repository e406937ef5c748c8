"""The comparing of replicas lets others run, whatever this node holds."""

import asyncio
from typing import Any, cast

import pytest

from tickwheel.server import agreement
from tickwheel.server.agreement import Agreement


async def test_a_node_without_a_shard_yet_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that never waits would stop the whole node before it got its first shard."""
    monkeypatch.setattr(agreement, "PAUSE_S", 0.001)
    nobody = cast("Any", None)
    comparing = Agreement(nobody, {}, nobody, nobody, nobody)
    async with asyncio.timeout(10):
        running = asyncio.create_task(comparing.run(nobody))
        await asyncio.sleep(0.01)
        comparing.stop()
        await running
    assert comparing.compared == 0
