"""Copies that could not be taken are taken again soon; an offer is not lost; a copy on its way holds no node that stops."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock

import pytest
from tests.unit.cluster_kit import A, B, now_s, run

from tickwheel.server.copies import AGAIN_S, AT_A_TIME, OFFER_AGAIN_S, Copies
from tickwheel.server.errors import FailedPrecondition, TickwheelError, Unavailable


class World:
    """Everything around the copies of a follower; `errors` end its fetches, the first one next."""

    def __init__(self, *errors: TickwheelError) -> None:
        self.errors = list(errors)
        self.fetched: list[tuple[int, str, float]] = []
        self.under_way = self.most = 0
        self.fetch_s = 0.1
        self.tasks: list[asyncio.Task[None]] = []
        self.store = self
        slots = dict.fromkeys(range(8))
        self.replica = MagicMock()
        self.host = MagicMock(replicas={3: self.replica})
        self.copies = Copies(
            cast("Any", self), cast("Any", slots), cast("Any", self), cast("Any", None),
            cast("Any", self.host), reopen=cast("Any", None),
        )  # fmt: skip
        self.copies.peers = cast("Any", self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def query(self, work: Callable[[], Any]) -> Any:
        return work()

    def stage(self, shard: int) -> Path:
        return Path(f"in-{shard}")

    async def fetch_snapshot(self, leader: str, shard: int, _directory: Path) -> bytes:
        self.fetched.append((shard, leader, now_s()))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.fetch_s)
        self.under_way -= 1
        raise self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]


GONE = Unavailable("the stream broke")


def test_what_failed_is_taken_again_ever_more_seldom_and_then_the_leader_has_to_offer_it() -> None:
    async def story() -> None:
        world = World(GONE)
        world.copies.take(3, B)
        await asyncio.sleep(60)
        starts = [at_s for _, _, at_s in world.fetched]
        pauses = [round(b - a - 0.1, 3) for a, b in pairwise(starts)]
        assert pauses == list(AGAIN_S)
        assert sum(AGAIN_S) < 30, "the leader's own patience"
        world.copies.take(3, B)
        await asyncio.sleep(60)
        assert len(world.fetched) == 2 * (1 + len(AGAIN_S))

    run(story())


def test_who_leads_no_more_is_not_asked_again() -> None:
    async def story() -> None:
        world = World(GONE, FailedPrecondition("not here", reason="NOT_LEADER"))
        world.copies.take(3, B)
        await asyncio.sleep(60)
        assert len(world.fetched) == 2
        world.copies.take(3, A)
        await asyncio.sleep(0.2)
        assert world.fetched[-1][1] == A

    run(story())


def test_no_more_than_two_at_a_time_whatever_fails() -> None:
    async def story() -> None:
        world = World(GONE)
        for shard in range(8):
            world.copies.take(shard, B)
        await asyncio.sleep(60)
        assert world.most == AT_A_TIME
        assert {shard for shard, _, _ in world.fetched} == set(range(8))

    run(story())


@pytest.mark.parametrize("after_s", [0.05, 0.3])
def test_a_node_that_stops_takes_nothing_again(after_s: float) -> None:
    async def story() -> None:
        world = World(GONE)
        world.copies.take(3, B)
        await asyncio.sleep(after_s)
        world.copies.stop()
        await asyncio.sleep(60)
        assert len(world.fetched) == 1

    run(story())


def test_a_stop_does_not_wait_for_a_copy_that_does_not_come() -> None:
    """A leader may be silent, or its copy take hours: the copy is let go, and begun again after the next start."""

    async def story() -> None:
        world = World(GONE)
        world.fetch_s = 1e9
        world.copies.take(3, B)
        await asyncio.sleep(1)
        world.copies.stop()
        await asyncio.gather(*world.tasks)
        world.copies.take(3, B)
        await asyncio.sleep(60)
        assert len(world.fetched) == 1

    run(story())


def test_what_the_next_leader_offers_is_taken_when_the_copy_of_the_last_one_failed() -> None:
    """It is offered once in half a minute, so it must not be forgotten; what the same leader repeats may be."""

    async def story() -> None:
        world = World(GONE)
        world.copies.take(3, B)
        await asyncio.sleep(0.05)
        for leader in (B, A):
            world.copies.take(3, leader)
        await asyncio.sleep(0.1)
        assert [leader for _, leader, _ in world.fetched] == [B, A]

    run(story())


def test_an_offer_of_what_this_node_does_not_hold_yet_is_refused() -> None:
    """Etcd tells it later that it holds the shard; an offer that was answered would come again in half a minute."""
    with pytest.raises(Unavailable, match="does not hold shard 9 yet"):
        World(GONE).copies.take(9, B)


def test_an_offer_that_does_not_arrive_is_said_so() -> None:
    """So that it is made again soon, and not after half a minute."""

    async def story() -> None:
        world = World(GONE)
        unheard = AsyncMock(side_effect=Unavailable("no way to it"))
        world.copies.peers = cast("Any", SimpleNamespace(forward=unheard))
        await world.copies.offer(3, B)
        assert now_s() >= OFFER_AGAIN_S
        world.replica.not_offered.assert_called_once_with(B)
        world.host.poke.assert_called_once_with(3)

    run(story())
