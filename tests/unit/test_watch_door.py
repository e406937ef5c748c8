"""WatchExecutions over all leaders: at least once, no end left out, whoever leads; and the ends of a watch."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from tests.fake_scheduler import NOW_MS
from tests.unit.route_kit import PARENT, SHARDS, Nodes, names_on, run

from tickwheel.server.api import watch
from tickwheel.server.api.limits import WATCHES_MAX
from tickwheel.server.api.route import PATIENCE_S
from tickwheel.server.api.watch import ANSWER_S, SILENCE_S, SLOW_S
from tickwheel.server.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    NotLeader,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from tickwheel.server.model import Execution, ExecutionKind, ExecutionState
from tickwheel.v1 import job_service_pb2 as pb

ALL = f"{PARENT}/jobs/-"


def now_s() -> float:
    return asyncio.get_running_loop().time()


def ended(
    number: int, job: str = "j", state: ExecutionState = ExecutionState.SUCCEEDED
) -> Execution:
    return Execution(
        1, bytes(16), "acme", job, ExecutionKind.OCCURRENCE, NOW_MS + number, "", state, NOW_MS
    )


def number_of(message: pb.WatchExecutionsResponse) -> int | None:
    """Which execution it shows."""
    if not message.HasField("execution"):
        return None
    return message.execution.scheduled_time.ToMilliseconds() - NOW_MS


class Watcher:
    """A watch at a node, and what it was told."""

    def __init__(self, nodes: Nodes, node: str, *, write: Any = None, **request: str) -> None:
        self.messages: list[pb.WatchExecutionsResponse] = []
        self.watches = nodes[node].exchange.watches
        message = pb.WatchExecutionsRequest(**{"parent": ALL, **request})
        self.task = asyncio.create_task(self.watches.serve(message, write or self.write))

    async def write(self, message: pb.WatchExecutionsResponse) -> None:
        self.messages.append(message)

    @property
    def numbers(self) -> list[int | None]:
        return [number_of(message) for message in self.messages]

    async def until(self, *numbers: int | None, within_s: float = 60.0) -> None:
        """Wait until all these were told, in any order."""
        until_s = now_s() + within_s
        while not set(numbers) <= set(self.numbers):
            assert not self.task.done(), self.task.exception()
            assert now_s() < until_s, self.numbers
            await asyncio.sleep(0.01)

    async def error(self) -> BaseException:
        """What it ended with."""
        await asyncio.wait([self.task])
        found = self.task.exception()
        assert found is not None
        return found

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
def test_changes_of_all_shards_come_through_any_node(names: tuple[str, ...]) -> None:
    async def story() -> None:
        nodes = Nodes(*names)
        watcher = Watcher(nodes, names[-1])
        await watcher.until(None)
        for number in range(2 * SHARDS):
            nodes.logs[number % SHARDS].append(ended(number))
        await watcher.until(*range(2 * SHARDS), within_s=0.5)
        assert len(watcher.messages) == 1 + 2 * SHARDS, "in quiet times each comes once"
        assert {m.read_time.ToMilliseconds() for m in watcher.messages} == {NOW_MS}
        await watcher.stop()

    run(story())


def test_a_token_goes_on_after_its_message_at_any_node() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        for number in range(30):
            nodes.logs[number % SHARDS].append(ended(number))
            await asyncio.sleep(0.02)
        await watcher.until(*range(30))
        await watcher.stop()
        for place, message in enumerate(watcher.messages):
            later = {n for n in watcher.numbers[place + 1 :] if n is not None}
            resumed = Watcher(nodes, "b", resume_token=message.resume_token)
            await resumed.until(None, *later)
            assert resumed.numbers[0] is None, "an opening comes first"
            await resumed.stop()

    run(story())


def test_within_an_answer_the_token_is_the_one_before() -> None:
    async def story() -> None:
        nodes = Nodes("a")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        nodes.logs[0] += [ended(1), ended(2), ended(3)]
        await watcher.until(3)
        opening, first, second, last = [message.resume_token for message in watcher.messages]
        assert opening == first == second != last
        await watcher.stop()

    run(story())


def test_one_job_is_watched_at_its_leader_alone() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        (job,) = names_on(1)
        watcher = Watcher(nodes, "a", parent=f"{PARENT}/jobs/{job}", filter="state = FAILED")
        await watcher.until(None)
        nodes.logs[1] += [ended(1, "other"), ended(2, job)]
        nodes.logs[1].append(ended(3, job, ExecutionState.FAILED))
        await watcher.until(3)
        assert watcher.numbers == [None, 3]
        assert {who for who, _ in nodes["a"].forwarded} == {"b"}
        await watcher.stop()

    run(story())


def test_a_watch_goes_over_a_fail_over_and_a_time_without_a_leader() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b", "c")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        dead = [shard for shard, leader in nodes.leaders.items() if leader == "b"]
        for number in range(400):
            nodes.logs[number % SHARDS].append(ended(number))
            await asyncio.sleep(0.05)
            if number == 100:
                nodes.leaders.update(dict.fromkeys(dead, ""))
                nodes["b"].faults += [Unavailable("gone", reason="PEER_UNREACHABLE")] * 3
            if number == 300:  # after longer than the patience with calls
                nodes.leaders.update(dict.fromkeys(dead, "c"))
                nodes.late.update(dead)
            if number == 320:
                nodes.late.clear()
        await watcher.until(*range(400))
        await watcher.stop()
        assert now_s() > PATIENCE_S

    run(story())


@pytest.mark.parametrize(
    "fault",
    [DeadlineExceeded("slow"), ResourceExhausted("full"), NotLeader("not me"), Unavailable("bye")],
)
def test_what_passes_is_asked_again(fault: Any) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes["b"].faults.append(fault)
        watcher = Watcher(nodes, "a")
        await watcher.until(None, within_s=1)
        nodes.logs[1].append(ended(1))
        await watcher.until(1, within_s=1)
        await watcher.stop()

    run(story())


def test_what_does_not_pass_ends_the_watch() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes["b"].faults.append(Unimplemented("an older node"))
        assert isinstance(await Watcher(nodes, "a").error(), Unimplemented)

    run(story())


def test_a_leader_that_is_silent_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        forward = nodes["a"].forward

        async def silent(*_: Any) -> bytes:
            await asyncio.sleep(3600)
            return b""

        monkeypatch.setattr(nodes["a"], "forward", silent)
        await asyncio.sleep(2)
        monkeypatch.setattr(nodes["a"], "forward", forward)
        nodes.logs[1].append(ended(1))
        await watcher.until(1, within_s=ANSWER_S + 1)
        await watcher.stop()

    run(story())


def test_a_beginning_without_a_leader_waits_and_then_says_so() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes.leaders[3] = ""
        nodes.later(3.0, s3="b")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        assert 3.0 < now_s() < 3.2
        await watcher.stop()
        nodes.leaders[3] = ""
        error = await Watcher(nodes, "a").error()
        assert isinstance(error, NotLeader)
        assert error.reason == "LEADERLESS"

    run(story())


def test_silence_is_broken_every_fifteen_seconds() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        watcher = Watcher(nodes, "b")
        await asyncio.sleep(4 * SILENCE_S + 1)
        assert watcher.numbers == [None] * 5
        nodes.logs[0].append(ended(1))
        await watcher.until(1)
        spoke_s = now_s()
        await asyncio.sleep(SILENCE_S - 1)
        assert len(watcher.messages) == 6
        await asyncio.sleep(1.5)
        assert len(watcher.messages) == 7
        assert now_s() - spoke_s < SILENCE_S + 1
        await watcher.stop()

    run(story())


def test_a_token_that_is_too_old_is_refused_with_the_remedy() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        await watcher.stop()
        nodes["b"].scheduler.floor = 1
        resumed = Watcher(nodes, "a", resume_token=watcher.messages[0].resume_token)
        error = await resumed.error()
        assert isinstance(error, Aborted)
        assert error.reason == "RESUME_TOKEN_EXPIRED"

    run(story())


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"parent": ""}, "REQUIRED"),
        ({"parent": "namespaces/-/jobs/-"}, "NAME_INVALID"),
        ({"filter": "colour = RED"}, "FILTER"),
        ({"resume_token": "x"}, "RESUME_TOKEN_INVALID"),
    ],
)
def test_what_can_not_be_meant_is_refused(request_: dict[str, str], reason: str) -> None:
    async def story() -> None:
        error = await Watcher(Nodes("a"), "a", **request_).error()
        assert isinstance(error, InvalidArgument)
        assert error.reason == reason

    run(story())


def test_a_token_is_bound_to_its_watch() -> None:
    async def story() -> None:
        nodes = Nodes("a")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        await watcher.stop()
        token = watcher.messages[0].resume_token
        error = await Watcher(nodes, "a", resume_token=token, filter="state = FAILED").error()
        assert isinstance(error, InvalidArgument)
        assert error.reason == "RESUME_TOKEN_MISMATCH"

    run(story())


def test_a_slow_reader_is_ended_and_goes_on_from_its_last_token() -> None:
    async def story() -> None:
        nodes = Nodes("a")
        taken: list[pb.WatchExecutionsResponse] = []

        async def slow(message: pb.WatchExecutionsResponse) -> None:
            if len(taken) == 3:
                await asyncio.sleep(3600)
            taken.append(message)

        watcher = Watcher(nodes, "a", write=slow)
        await asyncio.sleep(1)
        for number in range(5):
            nodes.logs[number].append(ended(number))
        begun_s = now_s()
        error = await watcher.error()
        assert isinstance(error, ResourceExhausted)
        assert (error.reason, error.retry_after_ms) == ("READER_TOO_SLOW", 1_000)
        assert now_s() - begun_s == pytest.approx(SLOW_S, abs=0.2)
        resumed = Watcher(nodes, "a", resume_token=taken[-1].resume_token)
        await resumed.until(*({0, 1, 2, 3, 4} - {number_of(m) for m in taken}))
        await resumed.stop()

    run(story())


def test_a_node_has_so_many_watches_and_no_more() -> None:
    async def story() -> None:
        nodes = Nodes("a")
        watchers = [Watcher(nodes, "a") for _ in range(WATCHES_MAX)]
        for watcher in watchers:
            await watcher.until(None)
        error = await Watcher(nodes, "a").error()
        assert isinstance(error, ResourceExhausted)
        assert (error.reason, error.retry_after_ms) == ("WATCHES_MAX", 5_000)
        await watchers[0].stop()
        another = Watcher(nodes, "a")
        await another.until(None)
        for watcher in [*watchers[1:], another]:
            await watcher.stop()

    run(story())


def left() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def nothing(_nodes: Nodes) -> None:
    """Nobody interferes."""


def broken(nodes: Nodes) -> None:
    """A leader will answer with something that nobody is there to hear."""
    nodes["b"].faults += [Unimplemented("older")] * 9


@pytest.mark.parametrize("meanwhile", [nothing, broken])
def test_a_watch_that_is_cancelled_leaves_nothing_behind(
    meanwhile: Callable[[Nodes], None],
) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b", "c")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        await asyncio.sleep(0.3)
        meanwhile(nodes)
        await watcher.stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not left()

    run(story())


def test_an_answer_that_nobody_hears_any_more_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        request = pb.WatchExecutionsRequest(parent=ALL)
        async with aclosing(nodes["a"].exchange.watches.watch(request)) as messages:
            await anext(messages)
            nodes["b"].faults += [Unimplemented("older")] * 9
            nodes.logs[0].append(ended(1))
            await anext(messages)
            await asyncio.sleep(3)

    run(story())
    assert not caplog.records


def test_watches_end_with_their_node() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        watcher, other = Watcher(nodes, "a"), Watcher(nodes, "b")
        await watcher.until(None)
        await other.until(None)
        begun_s = now_s()
        watcher.watches.close()
        error = await watcher.error()
        assert isinstance(error, Unavailable)
        assert error.reason == "NODE_STOPPING"
        assert now_s() - begun_s < 0.1
        assert not other.task.done()
        await other.stop()

    run(story())


def test_the_bounds_fit_each_other() -> None:
    assert watch.WAIT_MS / 1000 < ANSWER_S
    assert SLOW_S < SILENCE_S < 60


def test_a_node_hears_so_many_questions_of_others_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        monkeypatch.setattr(watch, "QUESTIONS_MAX", 2)
        nodes = Nodes("a", "b")
        watchers = [Watcher(nodes, "a") for _ in range(5)]
        for number in range(20):
            nodes.logs[1].append(ended(number))
            await asyncio.sleep(0.3)
        for watcher in watchers:
            await watcher.until(19)
            await watcher.stop()

    run(story())


def test_a_great_batch_lets_others_have_the_loop() -> None:
    async def story() -> None:
        nodes = Nodes("a")
        watcher = Watcher(nodes, "a")
        await watcher.until(None)
        nodes.logs[0] += [ended(number) for number in range(1_000)]
        await watcher.until(*range(1_000))
        assert watcher.numbers == [None, *range(1_000)]
        await watcher.stop()

    run(story())
