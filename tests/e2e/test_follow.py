"""The client library on three nodes: it finds the leaders by itself, and loses nothing when one of them dies."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bench import calls
from bench.checker import Job, Outage
from bench.cluster import Cluster
from bench.etcd import find_etcd
from bench.node import Sink, counted, wait_until
from tests.e2e.harness import SETTLE_S, assert_clean, judge

from tickwheel.client import AsyncClient
from tickwheel.client.follow import LEARN_AFTER_CALLS

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        find_etcd() is None, reason="no etcd on this machine, and none in the environment"
    ),
]
FORWARDED = "tickwheel_cluster_calls_forwarded_total"
FAIL_OVER_S = 15.0
USERS = 8


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, options=["--shards", "16"]) as running:
        running.start()
        yield running


def forwarded(cluster: Cluster) -> int:
    """How many calls the nodes that live passed on so far."""
    return sum(int(counted(node, FORWARDED)) for node in cluster.running())


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1_000, UTC)


async def know_all(client: AsyncClient, cluster: Cluster) -> None:
    """Make calls until the client knows every node that lives."""
    follower = client._core.links._follower
    assert follower is not None
    async with asyncio.timeout(20):
        while len(follower.usable) != len(cluster.running()):
            await client.count()
            await asyncio.sleep(0.02)


async def test_once_the_leaders_are_known_nothing_is_passed_on(
    cluster: Cluster, sink: Sink
) -> None:
    far = at(calls.now_ms() + 3_600_000)
    leads = cluster.leads()
    asked = min(cluster.nodes, key=lambda node: leads[node.name])

    async def use(client: AsyncClient, prefix: str) -> int:
        before = forwarded(cluster)
        names = [f"{prefix}{k}" for k in range(60)]
        for name in names:
            await client.create(sink.url(), job_id=name, at=far)
        for name in names:
            await client.get(name)
        await asyncio.gather(*(client.create(sink.url(), at=far) for _ in range(200)))
        return forwarded(cluster) - before

    async with AsyncClient(asked.target, follow=False) as client:
        assert await use(client, "a") > 120 * 2 / 3 * 0.6, "most of what other nodes lead"
    async with AsyncClient(asked.target) as client:
        await know_all(client, cluster)
        assert await use(client, "b") <= 2, "but for a shard that just now changes hands"


async def test_a_leader_is_killed_while_jobs_are_made(cluster: Cluster, sink: Sink) -> None:
    """Every create that was answered is carried out; creates go on, also of the dead leader's shards."""
    leads = cluster.leads()
    victim = max(cluster.running(), key=lambda node: leads[node.name])
    jobs: list[Job] = []
    stop = asyncio.Event()
    # The victim is the only address that is given: the others are known from the map.
    async with AsyncClient(victim.target, timeout_s=30) as client:
        await know_all(client, cluster)
        users = [asyncio.create_task(make(client, sink, user, jobs, stop)) for user in range(USERS)]
        await asyncio.sleep(2)
        made = len(jobs)
        assert made > LEARN_AFTER_CALLS
        dead_ms = calls.now_ms()
        victim.kill()
        await asyncio.to_thread(cluster.wait_served, FAIL_OVER_S)
        served_ms = calls.now_ms()
        made = len(jobs)
        await asyncio.sleep(2)
        stop.set()
        await asyncio.gather(*users)
        assert len(jobs) > made + USERS, "creates go on"
        before = forwarded(cluster)
        await know_all(client, cluster)
        last = [Job(f"last{k}", "", calls.now_ms() + 1_000) for k in range(60)]
        for job in last:
            handle = await client.create(sink.url(), job_id=job.name, at=at(job.due_ms))
            job.uid = handle.uid
        assert forwarded(cluster) - before <= 2, "the new leaders are known"
    jobs += last
    await asyncio.to_thread(arrive, sink, jobs, Outage(dead_ms, served_ms))


async def make(
    client: AsyncClient, sink: Sink, user: int, jobs: list[Job], stop: asyncio.Event
) -> None:
    """One user, who makes a job, waits for the answer, and makes the next."""
    for number in range(100_000):
        job = Job(f"u{user}-{number}", "", calls.now_ms() + 3_000)
        handle = await client.create(sink.url(), job_id=job.name, at=at(job.due_ms))
        job.uid = handle.uid
        jobs.append(job)
        if stop.is_set():
            return
        await asyncio.sleep(0.02)


def arrive(sink: Sink, jobs: list[Job], outage: Outage) -> None:
    """Wait until all is over, and hold what arrived against what was promised."""
    wait_until(lambda: sink.count() >= len(jobs), SETTLE_S, "all requests")
    last_ms = max(job.due_ms for job in jobs)
    wait_until(lambda: calls.now_ms() > last_ms + 1_500, SETTLE_S, "the horizon")
    report = judge(jobs, sink, [outage])
    assert_clean(report)
    assert report.executions == len(jobs)
