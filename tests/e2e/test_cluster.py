"""Three nodes and an etcd, from outside: one service, whoever is asked, and whoever dies."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from bench import calls
from bench.checker import Job, Outage
from bench.cluster import Cluster, ClusterNode
from bench.etcd import find_etcd
from bench.node import Sink, wait_until
from tests.e2e.harness import SETTLE_S, assert_clean, create_all, judge

from tickwheel.v1 import job_service_pb2 as js
from tickwheel.v1.cluster_service_pb2 import DrainNodeRequest, MoveShardRequest
from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceStub

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        find_etcd() is None, reason="no etcd on this machine, and none in the environment"
    ),
]
FAIL_OVER_S = 15.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, options=["--shards", "16"]) as running:
        running.start()
        yield running


def most(cluster: Cluster) -> ClusterNode:
    leads = cluster.leads()
    return max(cluster.running(), key=lambda node: leads[node.name])


async def test_any_node_answers_any_call(cluster: Cluster, sink: Sink) -> None:
    """Jobs made through one node are read, listed, counted and cancelled through the others."""
    apis = [calls.Api(node.target) for node in cluster.nodes]
    due = calls.now_ms() + 60_000
    jobs = [Job(f"j{k}", "", due + k) for k in range(30)]
    await create_all(apis[0], jobs[:15], [calls.once(sink.url(), job.due_ms) for job in jobs[:15]])
    requests = [calls.request(job.name, calls.once(sink.url(), job.due_ms)) for job in jobs[15:]]
    for job, uid in zip(jobs[15:], await apis[1].create_many(requests), strict=True):
        job.uid = uid
    for api in apis:
        assert [(await api.get(job.name)).uid for job in jobs] == [job.uid for job in jobs]
        assert await api.count() == len(jobs)
    again = await apis[2].create_many(requests)
    assert again == [job.uid for job in jobs[15:]], (
        "a repeated create is the same job, whoever is asked"
    )
    listed: list[str] = []
    token = ""
    for turn in range(100):
        page = js.ListJobsRequest(
            parent=calls.PARENT, page_size=7, page_token=token, consistent=True
        )
        answer = await apis[turn % 3].jobs.ListJobs(page, timeout=10)
        listed += [job.uid for job in answer.jobs]
        token = answer.next_page_token
        if not token:
            break
    assert sorted(listed) == sorted(job.uid for job in jobs)
    assert await apis[2].cancel("j3") == "CANCELLED_BEFORE_DISPATCH"
    for api in apis:
        await api.close()


async def test_a_leader_is_killed_and_nothing_is_lost(cluster: Cluster, sink: Sink) -> None:
    """Jobs due before, during and after the fail-over; the dead node comes back."""
    victim = most(cluster)
    other = next(node for node in cluster.nodes if node is not victim)
    api = calls.Api(other.target)
    start = calls.now_ms()
    jobs = [Job(f"j{k}", "", start + 2_000 + 60 * k) for k in range(120)]
    await create_all(api, jobs, [calls.once(sink.url(), job.due_ms) for job in jobs])
    taken = jobs[-1]
    answer = await api.cancel(taken.name)
    taken.operations.append(calls.operation("cancel", start, answer))
    assert answer == "CANCELLED_BEFORE_DISPATCH"
    await asyncio.sleep(max(start + 4_000 - calls.now_ms(), 0) / 1_000)
    dead_ms = calls.now_ms()
    victim.kill()
    wait_until(lambda: sink.count() >= len(jobs) - 1, SETTLE_S, "all requests")
    outage = Outage(dead_ms, calls.now_ms())
    cluster.wait_served(FAIL_OVER_S)
    wait_until(lambda: calls.now_ms() > jobs[-1].due_ms + 1_500, SETTLE_S, "the horizon")
    report = judge(jobs, sink, [outage])
    assert_clean(report)
    assert report.executions == len(jobs) - 1
    victim.start()
    back = calls.Api(victim.target)
    for job in jobs:
        assert (await back.get(job.name)).uid == job.uid
    await api.close()
    await back.close()


async def test_shards_move_and_nodes_leave_without_a_second_request(
    cluster: Cluster, sink: Sink
) -> None:
    """Moves, a drain and an orderly stop, while jobs fire: every one arrives once, none late by much."""
    api = calls.Api(cluster.nodes[0].target)
    start = calls.now_ms()
    jobs = [Job(f"j{k}", "", start + 3_000 + 25 * k) for k in range(240)]
    requests = [calls.request(job.name, calls.once(sink.url(), job.due_ms)) for job in jobs]
    for job, uid in zip(jobs, await api.create_many(requests), strict=True):
        job.uid = uid
    await asyncio.to_thread(move_all, cluster)
    leaving = cluster.nodes[1]
    assert leaving.terminate() == 0
    cluster.wait_served(FAIL_OVER_S)
    wait_until(lambda: sink.count() >= len(jobs), SETTLE_S, "all requests")
    wait_until(lambda: calls.now_ms() > jobs[-1].due_ms + 1_500, SETTLE_S, "the horizon")
    report = judge(jobs, sink)
    assert_clean(report)
    assert report.executions == report.arrivals == len(jobs)
    await api.close()


def move_all(cluster: Cluster) -> None:
    """Every shard to another of its voters, one after the other; then the second node is drained, and is empty."""
    with grpc.insecure_channel(cluster.nodes[0].target) as channel:
        stub: Any = ClusterServiceStub(channel)
        shown = cluster.map()
        for shard in shown.shards:
            other = next(voter for voter in shard.voters if voter != shard.leader)
            moved = stub.MoveShard(MoveShardRequest(name=shard.name, node=other), timeout=30)
            assert moved.leader == other
            assert moved.epoch > shard.epoch
        name = next(node.name for node in shown.nodes if node.host == "node-2")
        stub.DrainNode(DrainNodeRequest(name=name), timeout=10)
    wait_until(lambda: cluster.leads()["node-2"] == 0, FAIL_OVER_S, "the node to be empty")
