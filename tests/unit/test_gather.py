"""Lists and counts over all leaders: merged in order, whole or an error."""

import asyncio
import gc
from typing import Any

import pytest
from tests.fake_scheduler import NOW_MS
from tests.unit.route_kit import PARENT, SHARDS, Nodes, create_of, names_on, run

from tickwheel.server.api import limits
from tickwheel.server.api.route import PATIENCE_S
from tickwheel.server.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotLeader,
    ResourceExhausted,
    Unavailable,
)
from tickwheel.server.placement import shard_of
from tickwheel.v1 import execution_pb2, job_pb2
from tickwheel.v1 import job_service_pb2 as pb


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def pages(nodes: Nodes, size: int, **more: Any) -> list[str]:
    """The whole list, each page asked at the next node."""
    found: list[str] = []
    token, turn = "", 0
    order = list(nodes.values())
    while True:
        request = pb.ListJobsRequest(parent=PARENT, page_size=size, page_token=token, **more)
        response = await order[turn % len(order)].call("ListJobs", request)
        assert len(response.jobs) <= size
        found += [job.name for job in response.jobs]
        token, turn = response.next_page_token, turn + 1
        if not token:
            return found


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_pages_go_on_at_another_node_in_the_order_of_the_whole_list(
    names: tuple[str, ...], size: int
) -> None:
    async def story() -> None:
        nodes = Nodes(*names)
        made = await nodes.fill(23)
        assert await pages(nodes, size) == made

    run(story())


def test_a_token_holds_whoever_leads_by_then() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        made = await nodes.fill(20)
        first = await nodes["a"].call("ListJobs", pb.ListJobsRequest(parent=PARENT, page_size=5))
        nodes.leaders.update(dict.fromkeys(range(SHARDS), "b"))
        nodes["b"].scheduler.jobs.update(nodes["a"].scheduler.jobs)
        request = pb.ListJobsRequest(parent=PARENT, page_size=50, page_token=first.next_page_token)
        rest = await nodes["a"].call("ListJobs", request)
        assert [job.name for job in (*first.jobs, *rest.jobs)] == made

    run(story())


def test_a_list_is_as_old_as_its_oldest_part() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes["b"].read_ms = NOW_MS - 700
        for method, request in (
            ("ListJobs", pb.ListJobsRequest(parent=PARENT)),
            ("CountJobs", pb.CountJobsRequest(parent=PARENT)),
            ("ListExecutions", pb.ListExecutionsRequest(parent=f"{PARENT}/jobs/-")),
        ):
            response = await nodes["a"].call(method, request)
            assert response.read_time.ToMilliseconds() == NOW_MS - 700

    run(story())


@pytest.mark.parametrize("consistent", [True, False])
def test_consistent_reaches_all(consistent: bool) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b", "c")
        for method, request in (
            ("ListJobs", pb.ListJobsRequest(parent=PARENT, consistent=consistent)),
            ("CountJobs", pb.CountJobsRequest(parent=PARENT, consistent=consistent)),
            (
                "ListExecutions",
                pb.ListExecutionsRequest(parent=f"{PARENT}/jobs/-", consistent=consistent),
            ),
        ):
            await nodes["b"].call(method, request)
        for node in nodes.values():
            assert node.scheduler.consistent == [consistent] * 3

    run(story())


def test_a_node_alone_asks_nobody() -> None:
    async def story() -> None:
        nodes = Nodes("a")
        made = await nodes.fill(5)
        await run_jobs(nodes, made)
        request = pb.ListExecutionsRequest(parent=f"{PARENT}/jobs/-")
        assert len((await nodes["a"].call("ListExecutions", request)).executions) == 5
        assert (await count(nodes)).total_count == 5
        assert nodes["a"].forwarded == []

    run(story())


@pytest.mark.parametrize("method", ["ListJobs", "CountJobs", "ListExecutions"])
def test_a_node_that_loses_a_shard_while_it_looks_asks_who_has_it(method: str) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes.leaders.update(dict.fromkeys(range(SHARDS), "a"))
        await nodes.fill(5)
        asyncio.get_running_loop().call_soon(nodes.leaders.update, {3: "b"})
        real = nodes["a"].scheduler.list_executions

        async def slow(*args: Any, **more: Any) -> Any:
            await asyncio.sleep(0)
            return await real(*args, **more)

        nodes["a"].scheduler.list_executions = slow  # type: ignore[method-assign]
        parent = f"{PARENT}/jobs/-" if method == "ListExecutions" else PARENT
        await nodes["a"].call(method, getattr(pb, f"{method}Request")(parent=parent))
        assert nodes["a"].forwarded == [("b", f"scatter/{method}")]

    run(story())


# --- whole or an error ---


def test_a_shard_that_nobody_leads_is_waited_for() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        made = await nodes.fill(16)
        nodes.leaders[3] = ""
        nodes.later(2.0, s3="b")
        assert await pages(nodes, 100) == made
        assert 2.0 <= now_s() < 2.2

    run(story())


@pytest.mark.parametrize("method", ["ListJobs", "CountJobs", "ListExecutions"])
@pytest.mark.parametrize("names", [("a", "b"), ("a",)])
def test_and_then_an_error(method: str, names: tuple[str, ...]) -> None:
    """Also when no other node leads anything: what this one has is not the whole list."""

    async def story() -> None:
        nodes = Nodes(*names)
        nodes.leaders[3] = ""
        parent = f"{PARENT}/jobs/-" if method == "ListExecutions" else PARENT
        kind = getattr(pb, f"{method}Request")
        with pytest.raises(NotLeader) as caught:
            await nodes["a"].call(method, kind(parent=parent))
        assert caught.value.reason == "LEADERLESS"
        assert "[3]" in caught.value.message
        assert PATIENCE_S <= now_s() < PATIENCE_S + 0.2

    run(story())


def test_a_leader_that_does_not_serve_yet_is_waited_for() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        made = await nodes.fill(16)
        nodes.late.add(1)
        asyncio.get_running_loop().call_later(1.0, nodes.late.clear)
        assert await pages(nodes, 100) == made

    run(story())


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("gone", reason="PEER_UNREACHABLE"),
        DeadlineExceeded("no answer"),
        NotLeader("not any more"),
    ],
)
def test_of_a_list_nothing_remains_so_it_is_asked_again(error: Exception) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        made = await nodes.fill(16)
        nodes["b"].faults = [error] * 3  # type: ignore[list-item]
        assert await pages(nodes, 100) == made

    run(story())


def test_other_errors_are_raised_at_once() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes["b"].faults = [ResourceExhausted("busy", reason="QUERIES", retry_after_ms=3)]
        with pytest.raises(ResourceExhausted) as caught:
            await nodes["a"].call("ListJobs", pb.ListJobsRequest(parent=PARENT))
        assert (caught.value.reason, caught.value.retry_after_ms) == ("QUERIES", 3)
        with pytest.raises(InvalidArgument):
            await nodes["a"].call("ListJobs", pb.ListJobsRequest(parent=PARENT, filter="what"))
        with pytest.raises(InvalidArgument):
            await nodes["a"].call("ListJobs", pb.ListJobsRequest(parent="acme"))

    run(story())


def test_errors_of_both_ends_are_both_heard() -> None:
    """What another node answered meanwhile is not left unread."""

    async def story() -> None:
        nodes = Nodes("a", "b", "c")
        nodes["b"].faults = [ResourceExhausted("busy")]
        nodes["c"].faults = [ResourceExhausted("busy, too")]
        heard: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, what: heard.append(what))

        async def slow(*_: object, **__: object) -> Any:
            await asyncio.sleep(0.1)
            raise ResourceExhausted("slow, and busy")

        nodes["a"].scheduler.list_jobs = slow  # type: ignore[method-assign]
        with pytest.raises(ResourceExhausted):
            await nodes["a"].call("ListJobs", pb.ListJobsRequest(parent=PARENT))
        await asyncio.sleep(1)
        gc.collect()
        assert heard == []

    run(story())


# --- counts ---


async def count(nodes: Nodes, **more: Any) -> pb.CountJobsResponse:
    found = await nodes["a"].call("CountJobs", pb.CountJobsRequest(parent=PARENT, **more))
    assert isinstance(found, pb.CountJobsResponse)
    return found


def test_counts_are_summed() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b", "c")
        await nodes.fill(23)
        response = await count(nodes)
        assert response.total_count == 23
        assert [group.count for group in response.counts] == [23]

    run(story())


@pytest.mark.parametrize(
    ("more", "parts", "groups"),
    [
        (
            {"group_by": pb.COUNT_GROUPING_STATE},
            ({1: 2, 3: 1}, {1: 5, 2: 4}),
            [(job_pb2.JobState.ValueType(n), c) for n, c in ((1, 7), (2, 4), (3, 1))],
        ),
        (
            {"group_by": pb.COUNT_GROUPING_LAST_OUTCOME},
            ({3: 2}, {0: 1, 3: 1}),
            [(execution_pb2.ExecutionState.ValueType(n), c) for n, c in ((0, 1), (3, 3))],
        ),
        (
            {"group_by": pb.COUNT_GROUPING_LABEL, "label_key": "team"},
            ({"b": 1, "aaa": 1}, {"a": 1, "aaa": 2, "ba": 1}),
            [("a", 1), ("aaa", 3), ("b", 1), ("ba", 1)],
        ),
    ],
)
def test_groups_are_summed_in_the_order_of_their_keys(
    more: dict[str, Any], parts: tuple[dict[Any, int], ...], groups: list[tuple[Any, int]]
) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        for node, part in zip(nodes.values(), parts, strict=True):
            node.scheduler.counts = part
        response = await count(nodes, **more)
        found = [(getattr(g, str(g.WhichOneof("key"))), g.count) for g in response.counts]
        assert found == groups
        assert response.total_count == sum(number for _, number in groups)

    run(story())


def test_buckets_of_time_are_in_the_order_of_time() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        hours = [NOW_MS // 3_600_000 * 3_600_000 + 3_600_000 * n for n in range(300)]
        nodes["a"].scheduler.counts = dict.fromkeys(hours[::2], 1)
        nodes["b"].scheduler.counts = dict.fromkeys(hours, 2)
        response = await count(nodes, group_by=pb.COUNT_GROUPING_NEXT_TIME)
        assert [g.bucket_time.ToMilliseconds() for g in response.counts] == hours
        assert [g.count for g in response.counts][:4] == [3, 2, 3, 2]

    run(story())


def test_too_many_groups_are_too_many_over_all_nodes() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        half = limits.COUNT_GROUPS_MAX // 2 + 1
        nodes["a"].scheduler.counts = {f"a{n}": 1 for n in range(half)}
        nodes["b"].scheduler.counts = {f"b{n}": 1 for n in range(half)}
        with pytest.raises(InvalidArgument) as caught:
            await count(nodes, group_by=pb.COUNT_GROUPING_LABEL, label_key="team")
        assert caught.value.reason == "TOO_MANY_GROUPS"

    run(story())


def test_a_shard_that_changes_hands_is_not_counted_twice() -> None:
    """Its old leader had counted it when the new one did."""

    async def story() -> None:
        nodes = Nodes("a", "b")
        await nodes.fill(16)
        (job,) = names_on(1)
        await nodes["a"].call("CreateJob", create_of(job))
        gone = {k: v for k, v in nodes["b"].scheduler.jobs.items() if shard_of(*k, SHARDS) == 1}
        slow = nodes["b"].scheduler.count_jobs

        async def counted(*args: Any, **more: Any) -> Any:
            found = await slow(*args, **more)
            nodes["a"].scheduler.jobs.update(gone)
            nodes.leaders[1] = "a"
            return found

        nodes["b"].scheduler.count_jobs = counted  # type: ignore[method-assign]
        here = nodes["a"].scheduler.count_jobs

        async def later(*args: Any, **more: Any) -> Any:
            await asyncio.sleep(0.01)
            return await here(*args, **more)

        nodes["a"].scheduler.count_jobs = later  # type: ignore[method-assign]
        assert (await count(nodes)).total_count == 17

    run(story())


def test_two_nodes_that_both_speak_for_a_shard_are_asked_again() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        await nodes.fill(16)
        real = nodes["b"].led
        nodes["b"].led = lambda: (*real(), 0)  # type: ignore[method-assign]
        asyncio.get_running_loop().call_later(2.0, lambda: setattr(nodes["b"], "led", real))
        assert (await count(nodes)).total_count == 16
        assert now_s() >= 2.0

    run(story())


# --- executions ---


async def run_jobs(nodes: Nodes, jobs: list[str]) -> None:
    for number, job in enumerate(jobs):
        await nodes["a"].call("RunJob", pb.RunJobRequest(name=job, request_id=f"r{number}"))


def test_executions_of_one_job_are_asked_of_one_node() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b", "c")
        made = await nodes.fill(8)
        await run_jobs(nodes, made)
        for node in nodes.values():
            node.forwarded.clear()
        for asked, job in enumerate(made):
            short = job.rpartition("/")[2]
            leader = nodes.leaders[shard_of("acme", short, SHARDS)]
            node = list(nodes.values())[asked % 3]
            response = await node.call("ListExecutions", pb.ListExecutionsRequest(parent=job))
            assert [e.name.startswith(job + "/") for e in response.executions] == [True]
            expected = [] if node.name == leader else [(leader, "ListExecutions")]
            assert node.forwarded == expected
            node.forwarded.clear()
        assert sum(len(node.scheduler.execution_queries) for node in nodes.values()) == 8

    run(story())


@pytest.mark.parametrize("size", [1, 3, 100])
def test_executions_of_all_jobs_come_of_all_newest_first(size: int) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        made = await nodes.fill(11)
        await run_jobs(nodes, made)
        found: list[str] = []
        token, order = "", list(nodes.values())
        while True:
            request = pb.ListExecutionsRequest(
                parent=f"{PARENT}/jobs/-", page_size=size, page_token=token
            )
            response = await order[len(found) % 2].call("ListExecutions", request)
            found += [e.name.partition("/executions/")[0] for e in response.executions]
            token = response.next_page_token
            if not token:
                break
        assert found == made[::-1]

    run(story())


# --- bytes ---


def test_parts_of_large_jobs_fit_between_nodes_and_nothing_is_passed_over() -> None:
    """A message between nodes has at most 8 MiB; a thousand whole jobs have up to 250."""

    async def story() -> None:
        nodes = Nodes("a", "b")
        for number in range(60):
            request = create_of(f"n{number}")
            request.job.http_target.body = b"x" * (250_000 if number % 7 else 10)
            await nodes["a"].call("CreateJob", request)
        for node in nodes.values():
            node.answer_bytes.clear()
        found = await pages(nodes, 1_000, view=job_pb2.JOB_VIEW_FULL)
        assert found == [f"{PARENT}/jobs/n{number}" for number in range(60)]
        sizes = [size for node in nodes.values() for size in node.answer_bytes]
        assert max(sizes) < limits.PAGE_BYTES_MAX + 600_000

    run(story())
