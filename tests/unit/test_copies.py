"""A copy that is on its way does not keep a node from stopping."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tickwheel.server.copies import Copies
from tickwheel.server.store.threads import InlineStore


class _Silent:
    """A peer that accepts, and sends nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def fetch_snapshot(self, _leader: str, _shard: int, _directory: Path) -> bytes:
        self.asked.set()
        never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        return await never


async def test_a_stop_does_not_wait_for_a_copy_that_does_not_come(tmp_path: Path) -> None:
    """A leader may be silent, or its copy take hours: the copy is let go, and begun again after the next start."""
    tasks: list[asyncio.Future[None]] = []

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.ensure_future(work))

    def stage(_shard: int) -> Path:
        return tmp_path

    runner = SimpleNamespace(store=InlineStore(asyncio.get_running_loop()), spawn=spawn)
    shelves = SimpleNamespace(stage=stage)
    nobody = cast("Any", None)
    copies = Copies(
        cast("Any", shelves), {0: nobody}, cast("Any", runner), nobody, nobody, reopen=nobody
    )
    silent = _Silent()
    copies.peers = cast("Any", silent)
    copies.take(0, "a" * 32)
    async with asyncio.timeout(10):
        await silent.asked.wait()
        copies.stop()
        await asyncio.gather(*tasks)
    copies.take(0, "a" * 32)
    assert len(tasks) == 1
