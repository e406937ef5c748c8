"""The node's routing of commands to its shards, while leaderships begin and end under way."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tickwheel.server.codec import encode_effects
from tickwheel.server.command import Cancel
from tickwheel.server.errors import NotLeader
from tickwheel.server.feed import Feeds
from tickwheel.server.model import Effects
from tickwheel.server.node import Node, replay
from tickwheel.server.placement import shard_of
from tickwheel.server.record import Record, RecordType
from tickwheel.server.slot import Slot

SHARDS = 4
NAMES = {shard_of("n", f"j{k}", SHARDS): f"j{k}" for k in range(40)}


class Runner:
    """Answers each command with its name, after something happened."""

    def __init__(self, led: set[int], meanwhile: Callable[[dict[int, Any]], object]) -> None:
        self.slots: dict[int, Any] = dict.fromkeys(led)
        self._meanwhile = meanwhile

    async def call(self, commands: Sequence[tuple[int, Cancel]]) -> list[str]:
        await asyncio.sleep(0)
        self._meanwhile(self.slots)
        return [command.name for _, command in commands]


def began(slots: dict[int, Any]) -> None:
    slots[1] = None


def ended(slots: dict[int, Any]) -> None:
    del slots[0]


def stayed(_: dict[int, Any]) -> None:
    """Nothing happened."""


@pytest.mark.parametrize("meanwhile", [began, ended, stayed])
async def test_each_answer_goes_to_its_command_whoever_leads_meanwhile(
    meanwhile: Callable[[dict[int, Any]], object],
) -> None:
    runner = Runner({0, 2}, meanwhile)
    config = SimpleNamespace(shards=SHARDS)
    node = Node(cast("Any", config), cast("Any", runner), cast("Any", None))
    commands = [Cancel("n", NAMES[number]) for number in range(3)]
    answers: list[Any] = list(await node.call_many(commands))
    assert answers[0] == NAMES[0]
    assert isinstance(answers[1], NotLeader)
    assert answers[2] == NAMES[2]


def test_what_the_journal_still_has_is_news_after_a_restart() -> None:
    """The store ends at entry 3; the journal begins at 2 and goes on to 5: a watch that stands at 1 misses nothing."""
    applied: list[int] = []

    def apply(effects: Effects) -> None:
        applied.append(effects.ended[0][0])

    table = SimpleNamespace(bytes_held=0)
    shard = SimpleNamespace(apply=apply, epoch=0, table=table)
    slot = Slot(cast("Any", shard), cast("Any", None), 3, 3, feed=Feeds(1 << 20).open(3))
    records = [
        Record(RecordType.ENTRY, 0, 1, index, encode_effects(ran(index))) for index in range(2, 6)
    ]
    records.insert(1, Record(RecordType.PROMISE, 0, 7, 0, b""))
    assert replay({0: slot}, records, 1 << 30) == (7, 2)
    assert (applied, slot.applied, slot.index) == ([4, 5], 5, 5)
    found = slot.feed.since(1)
    assert found is not None
    assert [(change.entry, change.ended) for change in found] == [
        (index, ((index, b"x"),)) for index in range(2, 6)
    ]
    assert slot.feed.since(0) is None


def ran(row: int) -> Effects:
    return Effects(1_000, 9, [], [], [], [], [(row, b"x")])
