"""A peer in a process of its own that is stopped: bounded memory, no delay for the others, and it comes back."""

import asyncio
import resource
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from tests.conformance.peer_worlds import (
    CLUSTER,
    OPTIONS,
    QUEUE_BYTES,
    Node,
    acks,
    entry,
    store_of,
    until,
)

from tickwheel.server.cluster.peer_port import Member
from tickwheel.server.cluster.peers import GrpcPeers
from tickwheel.server.message import Acked

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """One of `peer_process`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, address: str) -> None:
        self.store = store_of(name)
        self.process = process
        self.member = Member(address, 1)

    async def came(self) -> int:
        """How many messages it has."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        line = await asyncio.wait_for(self.process.stdout.readline(), 10)
        return int(line.split()[0])


@asynccontextmanager
async def running(name: str) -> AsyncGenerator[Process]:
    """Until the test ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.e2e.peer_process", name, cwd=ROOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        address = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        yield Process(name, process, address)
    finally:
        process.kill()
        await process.wait()


async def reach(a: Node, peer: Process, more_than: int) -> None:
    """Send until something new is there."""
    while await peer.came() <= more_than:
        a.peers.send(peer.store, acks(1))
        await asyncio.sleep(0.02)


async def test_a_stopped_peer_costs_bounded_memory_and_nobody_elses_time() -> None:
    a = Node("a", CLUSTER)
    a.peers = peers = GrpcPeers(a.me, a.owner, OPTIONS, Random(1))
    await peers.start()
    peers.set_session(1)
    async with running("b") as b, running("c") as c:
        peers.set_members({b.store: b.member, c.store: c.member})
        await until(lambda: len(a.events) == 2)
        b.process.send_signal(signal.SIGSTOP)
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        longest_s = 0.0
        loop = asyncio.get_running_loop()
        for sent in range(1, 41):
            peers.send(b.store, [entry(1, 250_000)] * 8)
            peers.send(c.store, [Acked(1, 1, sent)])
            start_s = loop.time()
            while await c.came() < sent:
                pass
            longest_s = max(longest_s, loop.time() - start_s)
        assert peers.counters.resets >= 1
        assert longest_s < 1.0
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert grown_kib < 8 * QUEUE_BYTES // 1024, "80 MB were sent to it"
        b.process.send_signal(signal.SIGCONT)
        await until(lambda: peers.connected(b.store))
        await reach(a, b, await b.came())
    await peers.close()
