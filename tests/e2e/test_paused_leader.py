"""A leader that is stopped in the midst of firing, until others serve its shards, and then goes on.

It must send nothing any more: its right had ended before theirs began. What had left it already cannot be called back;
such a request carries the older epoch, so that a receiver that remembers the highest can refuse it.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from bench import calls
from bench.checker import Change, History, Job, check, name_of, scheduled_ms
from bench.cluster import Cluster, ClusterNode
from bench.etcd import find_etcd
from bench.node import Sink, wait_until
from bench.proxy import Mode
from bench.sink import Arrival
from tests.e2e.chaos_net import Net
from tests.e2e.harness import SETTLE_S, create_all

from tickwheel.server.placement import shard_of

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="callers are told apart by /proc"),
    pytest.mark.skipif(
        find_etcd() is None, reason="no etcd on this machine, and none in the environment"
    ),
]
SHARDS = 16
JOBS = 120
EVERY_MS = 20
LEAD_MS = 3_000
AFTER_MS = 1_500


class Stage(NamedTuple):
    """Who leads what; each node reaches the target over a link of its own."""

    cluster: Cluster
    sink: Sink
    net: Net
    leader: ClusterNode
    epochs: dict[int, int]
    url: str

    def jobs(self, count: int) -> list[Job]:
        """Of the leader's shards, one due every 20 ms, from three seconds on."""
        names = (f"j{k}" for k in range(100 * count))
        mine = [name for name in names if shard_of("default", name, SHARDS) in self.epochs]
        start_ms = calls.now_ms() + LEAD_MS
        return [Job(name, "", start_ms + EVERY_MS * k) for k, name in enumerate(mine[:count])]

    async def create(self, jobs: list[Job]) -> None:
        """Through another node."""
        other = next(node for node in self.cluster.nodes if node is not self.leader)
        api = calls.Api(other.target)
        await create_all(api, jobs, [calls.once(self.url, job.due_ms) for job in jobs])
        await api.close()

    def old(self, arrival: Arrival) -> bool:
        """Whether the stopped leader sent it."""
        return arrival.epoch == self.epochs[shard_of("default", name_of(arrival), SHARDS)]

    def stop(self) -> int:
        """SIGSTOP; the moment when every thread stands still."""
        self.leader.pause()
        os.waitid(os.P_PID, self.leader.pid, os.WSTOPPED)
        return calls.now_ms()

    def wake(self) -> int:
        """SIGCONT, and wait until it knows that it leads nothing of the old epochs, and a while more."""
        woken_ms = calls.now_ms()
        self.leader.resume()
        wait_until(self.deposed, SETTLE_S, "the leader to learn of its successors")
        wait_until(lambda: calls.now_ms() > woken_ms + AFTER_MS, SETTLE_S, "what it may send yet")
        return woken_ms

    def deposed(self) -> bool:
        """By its own map."""
        if not self.leader.ready():
            return False
        shown = self.leader.map()
        return all(s.epoch > self.epochs[s.number] for s in shown.shards if s.number in self.epochs)


@pytest.fixture
def stage(tmp_path: Path, sink: Sink) -> Iterator[Stage]:
    with Net() as net, Cluster(tmp_path, options=["--shards", str(SHARDS)]) as cluster:
        cluster.start()
        names = [node.name for node in cluster.nodes]
        door = net.say("door", "target", f"127.0.0.1:{sink.port}", *names)
        for node in cluster.nodes:
            net.say("pid", node.name, node.pid)
        shown = cluster.map()
        leads = cluster.leads()
        leader = max(cluster.nodes, key=lambda node: leads[node.name])
        me = next(node.name for node in shown.nodes if node.host == leader.name)
        epochs = {s.number: s.epoch for s in shown.shards if s.leader == me}
        yield Stage(cluster, sink, net, leader, epochs, f"http://127.0.0.1:{door}/ok")
        if leader.code() is None:
            os.kill(leader.pid, signal.SIGCONT)


async def test_a_leader_that_slept_sends_nothing_any_more(stage: Stage) -> None:
    jobs = stage.jobs(JOBS)
    await stage.create(jobs)
    wait_until(lambda: calls.now_ms() > jobs[JOBS // 4].due_ms, SETTLE_S, "a quarter to be due")
    stopped_ms = stage.stop()
    wait_until(lambda: len(arrived(stage.sink)) >= JOBS, SETTLE_S, "every job, by whoever leads")
    woken_ms = stage.wake()
    arrivals = stage.sink.records()
    report = check(
        History(jobs, arrivals, jobs[-1].due_ms, changes=[Change(stopped_ms, woken_ms, "pause")])
    )
    assert report.clean, (report.counts, dict(report.examples))
    before = [a for a in arrivals if stage.old(a)]
    asleep = [a for a in arrivals if scheduled_ms(a) > stopped_ms]
    assert before, "it fired while it led"
    assert len(asleep) > JOBS // 4, "and much was due while it slept"
    assert not [a for a in asleep if stage.old(a)], "none of it was sent by who slept"
    assert len(asleep) == len({a.id for a in asleep}), "nor twice"


async def test_what_had_left_it_already_carries_the_older_epoch(stage: Stage) -> None:
    """The request is on its way when the leader stops, and arrives behind its successor's."""
    (job,) = stage.jobs(1)
    await stage.create([job])
    stage.net.set(stage.leader.name, "target", Mode.THERE)
    wait_until(lambda: calls.now_ms() > job.due_ms + 200, SETTLE_S, "the request to be sent")
    stage.stop()
    wait_until(lambda: stage.sink.count() == 1, SETTLE_S, "the successor's request")
    stage.net.heal()
    wait_until(lambda: stage.sink.count() == 2, SETTLE_S, "the request that was on its way")
    stage.wake()
    successors, olds = stage.sink.records()
    assert olds.id == successors.id, "one occurrence, one id: a receiver knows it again"
    assert stage.old(olds)
    assert olds.epoch < successors.epoch


def arrived(sink: Sink) -> set[str]:
    """The executions that the target saw."""
    return {arrival.id for arrival in sink.records()}
