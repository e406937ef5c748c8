"""What the shards of a cluster's node go through: they follow, lead, and are let go. A real shard; the rest is told."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.sim.store import DictStore
from tests.unit.shard_kit import NOW, SHARD, Bench, creation, once

from tickwheel.server.codec import encode_effects
from tickwheel.server.feed import Feeds
from tickwheel.server.leading import Leaderships
from tickwheel.server.message import LogEntry
from tickwheel.server.model import Effects
from tickwheel.server.shard import Shard
from tickwheel.server.slot import Slot
from tickwheel.server.table import Table
from tickwheel.server.turn import Event, Leading, Released

EPOCH = 7


class World:
    """A node that follows one shard. `loading` is called while the first ten seconds are read."""

    def __init__(self) -> None:
        shard = Shard(SHARD, 0, start_ms=0, next_row=1, table=Table(1 << 20), rng=Random(1))
        self.slot = Slot(shard, cast("Any", DictStore(SHARD)), 0, 0)
        self.told: list[str] = []
        self.more: list[Event] = []
        self.tasks: list[Awaitable[None]] = []
        self.replica = SimpleNamespace(leads=True, epoch=EPOCH)
        self.runner = SimpleNamespace(
            table_bytes=0, clock=SimpleNamespace(now_ms=lambda: NOW), spawn=self.tasks.append,
            begin=self.begin, resign=self.resign,
        )  # fmt: skip
        self.loading: Callable[[], object] = bool
        self.host = SimpleNamespace(replicas={SHARD: self.replica}, serve=self.serve)
        self.room = Leaderships(
            {SHARD: self.slot}, cast("Any", self.runner), cast("Any", self),
            cast("Any", self.host), lambda _, event: self.more.append(event),
        )  # fmt: skip
        self.room.on_change = lambda: self.told.append("changed")

    async def load_first(self, slot: Slot) -> None:
        """What `Leaderships` asks of the keeper."""
        assert slot.shard.epoch == EPOCH
        self.told.append("load")
        self.loading()

    def begin(self, slot: Slot) -> None:
        self.told.append(f"begin {slot.shard.epoch}")

    def resign(self, number: int) -> None:
        self.told.append(f"resign {number}")

    def serve(self, number: int) -> None:
        self.told.append(f"serve {number}")

    async def lead(self) -> None:
        self.room.event(SHARD, Leading(EPOCH))
        await self.tasks.pop()


def created(name: str) -> Effects:
    """The effects of a create, as a leader logs them."""
    bench = Bench()
    effects = bench.begin(creation(name, once(NOW + 60_000))).batch.effects
    assert effects is not None
    return effects


def entry(index: int, payload: bytes, epoch: int = 5) -> LogEntry:
    return LogEntry(index, epoch, payload)


def test_a_follower_applies_entries_and_weighs_what_they_hold() -> None:
    world = World()
    payload = encode_effects(created("a"))
    world.room.apply(SHARD, [entry(1, b""), entry(2, payload)])
    assert (world.slot.applied, world.slot.index, world.slot.shard.epoch) == (2, 2, 5)
    assert world.slot.shard.table.find("acme", "a") == 1
    assert world.runner.table_bytes == world.slot.shard.table.bytes_held > 0
    assert len(world.slot.shard.wheel) == 0


def test_entries_are_applied_once_and_without_a_gap() -> None:
    world = World()
    world.room.apply(SHARD, [entry(1, b"")])
    for index in (1, 3):
        with pytest.raises(AssertionError, match="in order"):
            world.room.apply(SHARD, [entry(index, b"")])


def test_entries_of_a_shard_whose_store_is_being_replaced_are_in_the_copy() -> None:
    world = World()
    world.room.apply(SHARD + 1, [entry(9, b"")])
    assert world.slot.applied == 0


def test_a_leader_loads_what_is_due_next_before_it_serves() -> None:
    world = World()
    asyncio.run(world.lead())
    assert world.told == ["load", f"serve {SHARD}", f"begin {EPOCH}", "changed"]
    assert world.slot.shard.start_ms == NOW
    assert world.more == [Leading(EPOCH)]


@pytest.mark.parametrize(("leads", "epoch"), [(False, EPOCH), (True, EPOCH + 1)])
def test_a_leadership_that_ended_while_it_loaded_serves_nothing(leads: bool, epoch: int) -> None:
    world = World()

    def ended() -> None:
        world.replica.leads, world.replica.epoch = leads, epoch

    world.loading = ended
    asyncio.run(world.lead())
    assert world.told == ["load"]


def test_a_shard_is_let_go_and_whoever_routes_is_told() -> None:
    world = World()
    world.room.resign(SHARD)
    assert world.told == [f"resign {SHARD}", "changed"]


def test_what_is_for_others_is_passed_on() -> None:
    world = World()
    world.room.event(SHARD, Released(EPOCH))
    assert world.more == [Released(EPOCH)]
    assert world.tasks == []


def test_a_follower_remembers_what_happened_to_executions() -> None:
    """So that a watch goes on at it when it leads."""
    world = World()
    world.slot.feed = Feeds(1 << 20).open(0)
    ran = Effects(NOW, 9, [], [], [], [], [(7, b"ended")])
    world.room.apply(SHARD, [entry(1, b""), entry(2, encode_effects(ran))])
    found = world.slot.feed.since(0)
    assert found is not None
    assert [(change.entry, change.time_ms, [*change.images()]) for change in found] == [
        (2, NOW, [b"ended"])
    ]
