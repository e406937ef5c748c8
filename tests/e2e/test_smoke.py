"""One node, from outside: it fires on time, survives `kill -9`, and ends when asked to."""

import asyncio
from functools import partial

import pytest
from bench import calls
from bench.checker import Job, name_of
from bench.node import Node, Sink, wait_until
from tests.e2e.harness import SETTLE_S, assert_clean, create_all, judge, restart

from tickwheel.v1.execution_pb2 import EXECUTION_STATE_SUCCEEDED
from tickwheel.v1.job_pb2 import JOB_STATE_COMPLETED

pytestmark = pytest.mark.timeout(120)
DRAIN_S = 15.0


async def test_a_one_off_fires_on_time_and_is_listed(node: Node, sink: Sink) -> None:
    api = calls.Api(node.target)
    due = calls.now_ms() + 1_500
    job = Job("hello", "", due)
    await create_all(api, [job], [calls.once(sink.url(), due, body=b"hi")])
    wait_until(lambda: sink.count() == 1, SETTLE_S, "the request")
    report = judge([job], sink)
    assert report.summary()["lag_ms"]["max"] < 1_000
    listed = [e async for e in api.executions("hello")]
    assert [(e.job_uid, calls.to_ms(e.scheduled_time)) for e in listed] == [(job.uid, due)]
    assert listed[0].state == EXECUTION_STATE_SUCCEEDED
    assert (await api.get("hello")).state == JOB_STATE_COMPLETED
    await api.close()


async def test_what_waits_survives_a_kill_and_fires_once(node: Node, sink: Sink) -> None:
    """Some are due while the node is dead, some after; one is cancelled, one moved."""
    api = calls.Api(node.target)
    start = calls.now_ms()
    jobs = [Job(f"j{k}", "", start + 1_000 + 100 * k) for k in range(40)]
    await create_all(api, jobs, [calls.once(sink.url(), job.due_ms) for job in jobs])
    taken, moved = jobs[-1], jobs[-2]
    answer = await api.cancel(taken.name)
    assert answer == "CANCELLED_BEFORE_DISPATCH"
    taken.operations.append(calls.operation("cancel", start, answer))
    answer = await api.move(moved.name, start + 7_000)
    moved.operations.append(calls.operation("update", start, answer, start + 7_000))
    await asyncio.sleep(max(start + 2_000 - calls.now_ms(), 0) / 1_000)
    outage = restart(node)
    wait_until(lambda: sink.count() >= len(jobs) - 1, SETTLE_S, "all requests")
    wait_until(lambda: calls.now_ms() > start + 8_500, SETTLE_S, "the horizon")
    report = judge(jobs, sink, [outage])
    assert_clean(report)
    assert report.executions == len(jobs) - 1
    for job in jobs:
        assert (await api.get(job.name)).uid == job.uid
    await api.close()


async def test_a_cancel_in_the_last_moment_tells_the_truth(node: Node, sink: Sink) -> None:
    """Cancels that race with the dispatch: whatever is answered, the target must agree with it (I4)."""
    api = calls.Api(node.target)
    due = calls.now_ms() + 2_500
    jobs = [Job(f"j{k}", "", due + 3 * k) for k in range(300)]
    requests = [calls.request(j.name, calls.once(sink.url(), j.due_ms)) for j in jobs]
    for job, uid in zip(jobs, await api.create_many(requests), strict=True):
        job.uid = uid

    async def cancel(number: int, job: Job) -> None:
        early = {0: 1_500, 1: -500}.get(number % 10, 60 - number % 64)
        sent = job.due_ms - early
        await asyncio.sleep(max(sent - calls.now_ms(), 0) / 1_000)
        job.operations.append(calls.operation("cancel", sent, await api.cancel(job.name)))

    async def crowd(number: int) -> None:
        """Other work, so that cancels wait for their batch while their job falls due."""
        far = due + 3_600_000
        await asyncio.sleep(max(due - 100 - calls.now_ms(), 0) / 1_000)
        for k in range(8):
            names = [f"w{number}-{k}-{n}" for n in range(500)]
            await api.create_many([calls.request(n, calls.once(sink.url(), far)) for n in names])

    cancels = [cancel(number, job) for number, job in enumerate(jobs)]
    crowds = [crowd(number) for number in range(4)]
    await asyncio.gather(*cancels, *crowds)
    wait_until(lambda: calls.now_ms() > jobs[-1].due_ms + 2_000, SETTLE_S, "the horizon")
    answers = {job.operations[0].answer for job in jobs}
    assert "CANCELLED_BEFORE_DISPATCH" in answers
    assert len(answers) > 1, "no cancel raced with a dispatch: the test has shown nothing"
    assert_clean(judge(jobs, sink))
    await api.close()


async def test_a_retry_keeps_its_id(node: Node, sink: Sink) -> None:
    api = calls.Api(node.target)
    job = Job("again", "", calls.now_ms() + 200)
    await create_all(api, [job], [calls.once(sink.url("/fail?times=2"), job.due_ms)])
    wait_until(lambda: sink.count() == 3, SETTLE_S, "three attempts")
    arrivals = sink.records()
    assert len({a.id for a in arrivals}) == 1
    assert [a.attempt for a in arrivals] == [1, 2, 3]
    assert [a.status for a in arrivals] == [503, 503, 200]
    await api.close()


async def test_the_epoch_rises_with_each_start(node: Node, sink: Sink) -> None:
    """A kill right after an arrival may send it again, under the next epoch: the first arrival of each counts."""
    api = calls.Api(node.target)
    for name in ("e1", "e2"):
        await api.create(name, calls.once(sink.url(), calls.now_ms()))
        wait_until(partial(arrived, sink, name), SETTLE_S, "the request")
        restart(node)
    first = {name_of(arrival): arrival.epoch for arrival in reversed(sink.records())}
    assert first["e1"] < first["e2"]
    await api.close()


def arrived(sink: Sink, name: str) -> bool:
    return any(name_of(arrival) == name for arrival in sink.records())


async def test_it_drains_and_ends_when_asked(node: Node, sink: Sink) -> None:
    """SIGTERM: the request under way is answered and its outcome kept; then exit code 0, soon."""
    api = calls.Api(node.target)
    job = Job("slow", "", calls.now_ms() + 100)
    await create_all(api, [job], [calls.once(sink.url("/slow?ms=700"), job.due_ms)])
    wait_until(lambda: sink.count() == 1, SETTLE_S, "the request")
    await api.close()
    assert node.terminate(DRAIN_S) == 0
    node.start()
    again = calls.Api(node.target)
    assert (await again.get("slow")).state == JOB_STATE_COMPLETED
    await again.close()
    assert sink.count() == 1


async def test_two_nodes_do_not_share_a_directory(node: Node) -> None:
    with Node(node.data_dir) as second:
        second.log = node.data_dir.with_name("second.log")
        second.spawn()
        assert second.wait_exit() != 0
    assert node.ready()
