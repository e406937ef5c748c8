"""The node's routing of commands to its shards, while leaderships begin and end under way."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tickwheel.server.command import Cancel
from tickwheel.server.errors import NotLeader
from tickwheel.server.node import Node
from tickwheel.server.placement import shard_of

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
