"""What happened in a seed, so that a campaign can say that each rare branch was reached at all.

A probe wraps a method of one node's parts, changes nothing, and counts. Without them a simulation that never gets near
a race says "all well" for ever.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

from tickwheel.server import node
from tickwheel.server.command import Due
from tickwheel.server.errors import TickwheelError
from tickwheel.server.fire import Fire, Outcome
from tickwheel.server.model import Ms, Reason
from tickwheel.server.shard import Crowded, Fired, Shard, never_crowded

if TYPE_CHECKING:
    from tests.sim.world import World

SOMETIMES = frozenset(
    {
        "parked", "cold", "put off", "withdrawn", "stale", "buffered", "thaw race", "torn tail", "replayed",
        "segment deleted", "fsync failed", "disk full", "journal full", "store full", "table full",
        "crash in recovery", "clean stop", "killed", "power cut in a call", "long outage", "clock back",
        "clock forward", "firing held", "disabled", "retried", "dead letter", "redriven", "run", "cancelled before",
        "already dispatched", "dispatch unknown", "missed", "overlap", "paused", "resumed", "repeated create",
        "ended while full", "expired", "repeated attempt", "cron",
    }
)  # fmt: skip
"""Each of these is hit at least once in any block of 100 seeds, or the simulation has lost its teeth."""


def attach(world: "World", started: node.Started) -> None:
    """Watch one life."""
    runner = started.runner
    for slot in runner.slots.values():
        _watch_shard(world, slot.shard)
    admit = runner.admit

    async def watched_admit(slot: Any, entries: Any) -> bool:
        admitted = await admit(slot, entries)
        world.marks["thaw race"] += not admitted
        return admitted

    runner.admit = watched_admit  # type: ignore[method-assign]
    truncate = started.wal.truncate_through

    async def watched_truncate(durable: Any) -> list[str]:
        gone = await truncate(durable)
        world.marks["segment deleted"] += len(gone)
        return gone

    started.wal.truncate_through = watched_truncate  # type: ignore[method-assign]


def _watch_shard(world: "World", shard: Shard) -> None:
    take, may_send = shard.fire, shard.may_send
    marks = world.marks

    def watched_fire(now_ms: Ms, limit: int, crowded: Crowded = never_crowded) -> Fired:
        fired = take(now_ms, limit, crowded)
        marks["cold"] += len(fired.cold)
        marks["put off"] += len(fired.crowded)
        marks["parked"] += bool(shard._parked)
        _count_dues(marks, fired)
        world.judge_hold(fired)
        return fired

    def watched_may_send(fire: Fire) -> bool:
        flight = shard.flights.get(fire.execution_row)
        marks["stale"] += flight is not None and flight.stale
        return may_send(fire)

    shard.fire = watched_fire  # type: ignore[method-assign]
    shard.may_send = watched_may_send  # type: ignore[method-assign]


def _count_dues(marks: Counter[str], fired: Fired) -> None:
    for command in fired.commands:
        if not isinstance(command, Due):
            marks["expired"] += 1
            continue
        marks["buffered"] += bool(command.buffered_ms)
        if command.missed is not None:
            overlap = command.missed.reason == Reason.OVERLAP
            marks["overlap" if overlap else "missed"] += 1


def count_outcome(marks: Counter[str], _fire: Fire, outcome: Outcome) -> None:
    """Dispatch reports an end."""
    names = {"WITHDRAWN": "withdrawn", "DISABLE": "disabled", "RETRY": "retried"}
    marks[names.get(outcome.kind.name, outcome.kind.name)] += 1


REFUSALS = {"DISK_FULL": "disk full", "TABLE_FULL": "table full"}


def count_refusal(marks: Counter[str], error: TickwheelError) -> None:
    """A user was refused."""
    marks[REFUSALS.get(error.reason, error.reason)] += 1
