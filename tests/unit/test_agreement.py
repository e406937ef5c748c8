"""The comparing of replicas lets others run, whatever this node holds."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from tickwheel.server import agreement
from tickwheel.server.agreement import Agreement
from tickwheel.server.errors import Unavailable
from tickwheel.server.store.threads import InlineStore


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


async def test_a_voter_without_a_store_yet_says_so() -> None:
    """It is named in the record before it has heard of the shard: no error, the next round asks again."""
    nobody = cast("Any", None)
    with pytest.raises(Unavailable) as refused:
        await Agreement(nobody, {}, nobody, nobody, nobody).answer(0)
    assert refused.value.reason == "NO_STORE"


async def test_a_store_that_is_being_replaced_is_no_error() -> None:
    """A copy takes its place just now."""

    def gone(_number: int) -> Any:
        raise FileNotFoundError
        yield

    loop, something = asyncio.get_running_loop(), cast("Any", None)
    runner = SimpleNamespace(store=InlineStore(loop))
    keeper = SimpleNamespace(flush=AsyncMock())
    comparing = Agreement(gone, {0: something}, cast("Any", runner), cast("Any", keeper), something)
    with pytest.raises(Unavailable):
        await comparing.answer(0)
