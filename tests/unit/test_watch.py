"""What happened after a place in the log, as a node answers it: real feeds on virtual time."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.route_kit import run

from tickwheel.server import watch
from tickwheel.server.codec import encode_execution
from tickwheel.server.errors import Aborted
from tickwheel.server.feed import Feed, Feeds
from tickwheel.server.model import Execution, ExecutionKind, ExecutionState
from tickwheel.server.query import ExecutionQuery, Range, Read
from tickwheel.server.watch import Watch

NOW = 50_000
ALL = ExecutionQuery("acme")


def image(
    number: int, state: ExecutionState = ExecutionState.SUCCEEDED, job: str = "j"
) -> tuple[int, bytes]:
    execution = Execution(
        1, bytes(16), "acme", job, ExecutionKind.OCCURRENCE, number, "", state, create_ms=number
    )
    return number, encode_execution(execution)


class World:
    """A runner that leads some shards."""

    def __init__(self, *shards: int, bytes_max: int = 1 << 20) -> None:
        self.feeds = Feeds(bytes_max)
        self.slots = {number: self._slot(number) for number in shards}
        self.acting = set(shards)
        runner = SimpleNamespace(
            slots=self.slots, feeds=self.feeds, may_act=self.acting.__contains__,
            clock=SimpleNamespace(now_ms=lambda: NOW),
        )  # fmt: skip
        self.watch = Watch(cast("Any", runner))

    def _slot(self, number: int) -> Any:
        shard = SimpleNamespace(number=number, last_ms=NOW - 5)
        return SimpleNamespace(feed=self.feeds.open(0), applied=0, busy=False, shard=shard)

    def put(self, shard: int, *numbers: int) -> None:
        """An entry that ends these executions."""
        slot = self.slots[shard]
        slot.applied += 1
        feed: Feed = slot.feed
        feed.put(slot.applied, NOW + slot.applied, [], [image(number) for number in numbers])

    async def ask(
        self, after: dict[int, int | None], wait_ms: int = 1_000, query: ExecutionQuery = ALL
    ) -> tuple[list[int], list[Read]]:
        executions, reads = await self.watch.changes(query, after, wait_ms)
        return [execution.scheduled_ms for execution in executions], reads


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_from_now_on_is_answered_at_once() -> None:
    async def story() -> None:
        world = World(0, 1)
        world.put(1, 7)
        found = await world.ask({0: None, 1: None})
        assert found == ([], [Read(0, 0, NOW), Read(1, 1, NOW)])
        assert now_s() == 0

    run(story())


def test_what_is_new_is_answered_at_once_in_the_order_of_the_log() -> None:
    async def story() -> None:
        world = World(0, 1)
        world.put(0, 3)
        world.put(0, 1, 2)
        world.put(1, 9)
        assert await world.ask({1: 0, 0: 0}) == ([9, 3, 1, 2], [Read(1, 1, NOW), Read(0, 2, NOW)])
        assert await world.ask({0: 1, 1: 1}) == ([1, 2], [Read(0, 2, NOW), Read(1, 1, NOW)])

    run(story())


def test_it_waits_for_something_that_was_asked_for_and_takes_along_what_comes_right_behind() -> (
    None
):
    async def story() -> None:
        world = World(0)
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, world.put, 0)
        loop.call_later(0.3, world.put, 0, 5)
        loop.call_later(0.31, world.put, 0, 6)
        loop.call_later(0.9, world.put, 0, 7)
        assert await world.ask({0: 0}) == ([5, 6], [Read(0, 3, NOW)])
        assert 0.3 < now_s() < 0.4
        assert await world.ask({0: 3}) == ([7], [Read(0, 4, NOW)])
        begun_s = now_s()
        assert await world.ask({0: 4}) == ([], [Read(0, 4, NOW)])
        assert now_s() - begun_s == pytest.approx(1)
        assert not world.feeds.listeners

    run(story())


def test_a_change_that_was_not_asked_for_ends_no_wait_and_moves_the_place_on() -> None:
    async def story() -> None:
        world = World(0)
        failed = ExecutionQuery("acme", states=(ExecutionState.FAILED,))
        asyncio.get_running_loop().call_later(0.3, world.put, 0, 5)
        assert await world.ask({0: 0}, query=failed) == ([], [Read(0, 1, NOW)])
        assert now_s() == pytest.approx(1)

    run(story())


def test_shards_that_others_lead_are_left_out() -> None:
    async def story() -> None:
        world = World(0, 1)
        world.put(0, 1)
        world.acting.discard(1)
        assert await world.ask({1: 0, 0: 0, 5: 0}) == ([1], [Read(0, 1, NOW)])
        assert await world.ask({1: 0}) == ([], [])
        assert now_s() == 0, "nobody waits for what is not here"

    run(story())


def test_what_is_forgotten_is_not_passed_over() -> None:
    async def story() -> None:
        world = World(0, bytes_max=700)
        for number in range(3):
            world.put(0, number)
        with pytest.raises(Aborted) as caught:
            await world.ask({0: 0})
        assert caught.value.reason == "RESUME_TOKEN_EXPIRED"
        assert caught.value.metadata == {"shard": "0"}
        with pytest.raises(Aborted):
            await world.ask({0: 99})
        assert not world.feeds.listeners

    run(story())


def test_an_answer_is_bounded_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr(watch, "ANSWER_BYTES_MAX", 3 * len(image(1)[1]))
        monkeypatch.setattr(watch, "SLICE", 2)
        world = World(0, 1)
        for number in range(5):
            world.put(0, number)
        world.put(1, 7)
        found, reads = await world.ask({0: 0, 1: 0})
        assert (found, reads) == ([0, 1], [Read(0, 2, NOW + 2)]), "one slice, and not all of it"
        found, reads = await world.ask({0: 2, 1: 0})
        assert found == [2, 3]
        assert (await world.ask({0: 4, 1: 0}))[0] == [4, 7]

    run(story())


def test_an_answer_holds_so_many_executions_and_whole_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        monkeypatch.setattr(watch, "ANSWER_EXECUTIONS_MAX", 2)
        monkeypatch.setattr(watch, "DECODED", 2)
        world = World(0)
        world.put(0, 1)
        world.put(0, 2, 3, 4)
        world.put(0, 5)
        assert (await world.ask({0: 0}))[0] == [1, 2, 3, 4]
        assert (await world.ask({0: 2}))[0] == [5]

    run(story())


def test_many_changes_that_nobody_asked_for_are_looked_through_in_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        monkeypatch.setattr(watch, "SLICE", 2)
        world = World(0)
        for number in range(9):
            world.put(0, number)
        last = ExecutionQuery("acme", scheduled=Range(8))
        assert await world.ask({0: 0}, query=last) == ([8], [Read(0, 9, NOW)])

    run(story())


def test_a_batch_under_way_may_be_stamped_with_the_last_time() -> None:
    async def story() -> None:
        world = World(0)
        world.slots[0].busy = True
        assert (await world.ask({0: None}))[1] == [Read(0, 0, NOW - 6)]

    run(story())
