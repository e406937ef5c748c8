"""A node that runs alone, as a cluster of one."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from tickwheel.server.alone import Alone
from tickwheel.server.errors import FailedPrecondition, Unavailable
from tickwheel.server.slot import Slot
from tickwheel.server.topology import NodeInfo, ShardInfo, Standing

A, B = "a" * 32, "b" * 32
ME = NodeInfo(A, "active", True, "g:1", "h:2", "anna", "", "1.2", "2026a")


def alone() -> Alone:
    slots = {n: cast("Slot", SimpleNamespace(shard=SimpleNamespace(epoch=5))) for n in (1, 0)}
    return Alone("c" * 32, ME, slots, lambda: 77)


def test_it_leads_every_shard() -> None:
    port = alone()
    found = port.topology()
    assert (found.cluster, found.shard_count, found.nodes, found.read_ms) == (
        "c" * 32,
        2,
        (ME,),
        77,
    )
    assert found.shards == tuple(ShardInfo(n, 5, A, (A,), (), Standing.SERVING) for n in (0, 1))
    assert sorted(port.led()) == [0, 1]
    assert (port.shard_count, port.leader_of(1), port.others()) == (2, "", ())


async def test_there_is_nowhere_to_go() -> None:
    port = alone()
    for work in (port.drain(A, undo=False), port.drain(A, undo=True), port.move(0, A, 0)):
        with pytest.raises(FailedPrecondition) as caught:
            await work
        assert caught.value.reason == "NOWHERE_TO_GO"
    with pytest.raises(Unavailable):
        await port.forward(B, "m", b"")


@pytest.mark.parametrize(("after", "maps"), [(0, 1), (1, 0), (9, 0)])
async def test_the_map_is_shown_once_to_who_lacks_it(after: int, maps: int) -> None:
    found: list[int] = []

    async def watch() -> None:
        async for topology in alone().watch(after):
            found.append(topology.revision)  # noqa: PERF401 - the watch has no end

    task = asyncio.create_task(watch())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done(), "a watch does not end by itself"
    task.cancel()
    assert found == [1] * maps
