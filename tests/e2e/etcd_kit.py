"""What the end-to-end tests of etcd share: clients, a watch that believes, sessions, a process that holds one."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from bench.etcd import EtcdCluster, Member
from bench.node import ROOT, environment, wait_until
from tests.sim.etcd import SimMemory

from tickwheel.server.clock import SystemClock
from tickwheel.server.cluster.etcd import EtcdClient
from tickwheel.server.cluster.etcd_link import EtcdOptions
from tickwheel.server.cluster.ports import (
    Batch,
    Etcd,
    Held,
    OutcomeUnknown,
    Put,
    Registration,
    Reset,
    Session,
    absent,
    revision_is,
)
from tickwheel.server.errors import (
    Unavailable,
)

PREFIX = "/tickwheel/test/"
SETTLE_S = 30.0


@asynccontextmanager
async def client_of(*endpoints: str, **more: object) -> AsyncGenerator[EtcdClient]:
    client = EtcdClient(EtcdOptions(endpoints=endpoints, prefix=PREFIX, **more))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


class Believer:
    """Knows of the keys below `k/` what a watch says."""

    def __init__(self, etcd: Etcd) -> None:
        self.state: dict[str, bytes] = {}
        self.resets = 0
        self.revisions: list[int] = []
        self._task = asyncio.create_task(self._run(etcd))

    async def _run(self, etcd: Etcd) -> None:
        async with aclosing(etcd.watch("k/")) as watch:
            async for news in watch:
                self._take(news)

    def _take(self, news: Batch | Reset) -> None:
        if isinstance(news, Reset):
            self.resets += 1
            self.state = {item.key: item.value for item in news.listing.items}
            return
        self.revisions += [event.revision for event in news.events]
        for event in news.events:
            if event.item is None:
                self.state.pop(event.key, None)
            else:
                self.state[event.key] = event.item.value

    async def knows(self, key: str, value: bytes | None) -> None:
        await until(lambda: self.state.get(key) == value)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def believer_of(etcd: Etcd) -> AsyncGenerator[Believer]:
    believer = Believer(etcd)
    try:
        await until(lambda: bool(believer.resets))
        yield believer
    finally:
        await believer.close()


async def put(etcd: Etcd, key: str, value: bytes) -> int:
    """Write until it is known to be written; the revision.

    Each try compares: a write of an unknown outcome can come late, after the next one (a leader that was stopped hands
    on what it had in its buffers), and must then be refused.
    """
    async with asyncio.timeout(SETTLE_S):
        while True:
            try:
                found = await etcd.get(key)
                if found is not None and found.item.value == value:
                    return found.item.mod_revision
                await etcd.transact(
                    [revision_is(found.item) if found else absent(key)], [Put(key, value)]
                )
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(0.05)


async def start_session(client: EtcdClient, ttl_s: int = 3) -> tuple[Session, list[Held]]:
    """A session that is registered, and the list of its losses."""
    lost: list[Held] = []
    held = asyncio.Event()
    session = client.session(
        Registration(
            key="nodes/1",
            value=b"here",
            ttl_s=ttl_s,
            healthy=lambda: True,
            on_held=lambda _: held.set(),
            on_lost=lost.append,
            memory=SimMemory(),
        )
    )
    async with asyncio.timeout(SETTLE_S):
        await held.wait()
    return session, lost


async def outlive(boot_ms: int) -> None:
    await until(lambda: SystemClock().monotonic_ms() >= boot_ms)


def member_at(cluster: EtcdCluster, address: str) -> Member:
    return next(m for m in cluster.members if m.endpoint.endswith(address))


@asynccontextmanager
async def client_at_default(cluster: EtcdCluster) -> AsyncGenerator[EtcdClient]:
    """A client of the prefix that the holder uses."""
    client = EtcdClient(EtcdOptions(endpoints=cluster.endpoints))
    try:
        yield client
    finally:
        await client.close()


class Holder:
    """A `tests.e2e.etcd_holder` process."""

    def __init__(self, cluster: EtcdCluster, directory: Path, ttl_s: int) -> None:
        directory.mkdir(exist_ok=True)
        path = f"{ROOT}{os.pathsep}{environment()['PYTHONPATH']}"
        self.log = directory / "holder.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.e2e.etcd_holder",
                    cluster.members[0].endpoint, str(directory), str(ttl_s),
                ],
                stdin=subprocess.PIPE, stdout=out, cwd=ROOT, env={**environment(), "PYTHONPATH": path},
            )  # fmt: skip
        self.seen = len(self.lines())

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    async def says(self, word: str) -> int:
        """Wait for its next line, which begins so; the number behind."""
        await asyncio.to_thread(
            wait_until, lambda: len(self.lines()) > self.seen, SETTLE_S, f"the holder to say {word}"
        )
        said, number = self.lines()[self.seen].split()
        assert said == word, self.lines()
        self.seen += 1
        return int(number)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
