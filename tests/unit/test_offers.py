"""Offers of copies: made again when they were not heard, and kept while a copy of a former leader is under way."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock

import pytest

from tickwheel.server import copies as room
from tickwheel.server.copies import Copies
from tickwheel.server.errors import Unavailable
from tickwheel.server.store.threads import InlineStore


class _Silent:
    """Peers that accept, and send nothing until they `fail`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._waiting: list[asyncio.Future[bytes]] = []

    async def fetch_snapshot(self, leader: str, _shard: int, _directory: Path) -> bytes:
        never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.asked.append(leader)
        self._waiting.append(never)
        return await never

    def fail(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(Unavailable("gone"))


class _World:
    """A node with one shard that takes copies."""

    def __init__(self, directory: Path) -> None:
        self.tasks: list[asyncio.Future[None]] = []
        self.peers = _Silent()
        self._directory = directory
        runner = SimpleNamespace(store=InlineStore(asyncio.get_running_loop()), spawn=self._spawn)
        shelves = SimpleNamespace(stage=self._stage)
        nobody = cast("Any", None)
        self.host = MagicMock(replicas={0: MagicMock()})
        self.copies = Copies(
            cast("Any", shelves),
            {0: nobody},
            cast("Any", runner),
            nobody,
            self.host,
            reopen=nobody,
        )
        self.copies.peers = cast("Any", self.peers)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def _stage(self, _shard: int) -> Path:
        return self._directory

    async def asked(self, *leaders: str) -> None:
        """Wait until these were asked for a copy, in this order, and nobody else."""
        async with asyncio.timeout(10):
            while self.peers.asked != list(leaders):  # noqa: ASYNC110 - bounded
                await asyncio.sleep(0)


async def test_what_the_next_leader_offers_is_taken_when_the_copy_of_the_last_one_failed(
    tmp_path: Path,
) -> None:
    """It is offered once in half a minute, so it must not be forgotten; what the same leader repeats may be."""
    world = _World(tmp_path)
    world.copies.take(0, "a" * 32)
    await world.asked("a" * 32)
    world.copies.take(0, "a" * 32)
    world.copies.take(0, "b" * 32)
    world.copies.take(1, "b" * 32)
    world.peers.fail()
    await world.asked("a" * 32, "b" * 32)
    assert len(world.tasks) == 2
    world.copies.stop()
    async with asyncio.timeout(10):
        await asyncio.gather(*world.tasks)


async def test_an_offer_that_does_not_arrive_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is made again soon, and not after half a minute."""
    monkeypatch.setattr(room, "OFFER_AGAIN_S", 0.0)
    world = _World(tmp_path)
    unheard = AsyncMock(side_effect=Unavailable("no way to it"))
    world.copies.peers = cast("Any", SimpleNamespace(forward=unheard))
    await world.copies.offer(0, "c" * 32)
    world.host.replicas[0].not_offered.assert_called_once_with("c" * 32)
    world.host.poke.assert_called_once_with(0)
