"""Bugs made on purpose: a simulation that does not find them is not worth running.

Each is a patch of the server's classes while it is held.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from tests.sim.disk import SimHandle

from tickwheel.server import node
from tickwheel.server.fire import Fire, TargetKey
from tickwheel.server.keeper import Keeper
from tickwheel.server.model import Effects, Ms
from tickwheel.server.runner import Runner
from tickwheel.server.shard import Crowded, Fired, Shard, never_crowded
from tickwheel.server.slot import Slot, Work
from tickwheel.server.table import Table
from tickwheel.server.wal import InlineWal
from tickwheel.server.wheel import Wheel

Patches = list[Any]


class Mutant(NamedTuple):
    """`guarantees`: how the fault that gives it away may begin. `seeds_max`: found within so many seeds, from 0 on."""

    name: str
    guarantees: tuple[str, ...]
    seeds_max: int
    patches: Callable[[], Patches]


@contextmanager
def planted(mutant: Mutant) -> Generator[None, None, None]:
    """The server with the bug in it."""
    patches = mutant.patches()
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()


def _no_sync() -> Patches:
    """The journal writes and never syncs."""

    def fdatasync(handle: SimHandle) -> None:
        handle._disk.step()

    return [patch.object(SimHandle, "fdatasync", fdatasync)]


def _early_reply() -> Patches:
    """What is submitted is called durable at once."""
    submit = InlineWal.submit

    def hasty(wal: InlineWal, records: Any) -> Any:
        submit(wal, records)
        future = wal._loop.create_future()
        future.set_result(None)
        return future

    return [patch.object(InlineWal, "submit", hasty)]


def _no_hold() -> Patches:
    """Dispatch does not wait for the batch that names the job, nor does what falls due."""
    decide = Shard.decide

    def loose(shard: Shard, *arguments: Any) -> Any:
        batch = decide(shard, *arguments)
        shard.held = set()
        return batch

    return [patch.object(Shard, "decide", loose)]


def _truncate_applied() -> Patches:
    """A journal segment goes when its entries are applied, not when the stores hold them durably."""

    async def checkpoint(keeper: Keeper) -> None:
        slots = keeper._runner.slots.values()
        await keeper._wal.truncate_through({s.shard.number: s.applied for s in slots})

    return [patch.object(Keeper, "checkpoint", checkpoint)]


def _early_fire() -> Patches:
    """The clock is believed to be 5 ms ahead when what is due is taken."""
    fire, next_ms = Shard.fire, Wheel.next_ms

    def hasty(shard: Shard, now_ms: Ms, limit: int, crowded: Crowded) -> Fired:
        return fire(shard, now_ms + 5, limit, crowded)

    def sooner(wheel: Wheel) -> Ms | None:
        found_ms = next_ms(wheel)
        return None if found_ms is None else found_ms - 5

    return [patch.object(Shard, "fire", hasty), patch.object(Wheel, "next_ms", sooner)]


def _id_of_firing() -> Patches:
    """The execution's id is made from when it was fired."""
    launch = Shard._launch

    def fresh(shard: Shard, row: int, execution: Any, *rest: Any) -> Fire:
        flight = launch(shard, row, execution, *rest)
        held = shard.flights[row]
        held.fire = flight._replace(id=f"{execution.uid.hex()}:{execution.create_ms}")
        return held.fire

    return [patch.object(Shard, "_launch", fresh)]


def _no_due() -> Patches:
    """That an occurrence was fired is not logged."""

    def forgetful(runner_: Runner, slot: Slot, now_ms: Ms, limit: int) -> int:
        fired = slot.shard.fire(now_ms, limit, never_crowded)
        for fire in fired.fires:
            runner_._dispatch.submit(fire, runner_._gate, runner_._done)
        slot.next_ms = slot.shard.wheel.next_ms()
        return fired.entries

    return [patch.object(Runner, "_fire_slot", forgetful)]


def _no_return() -> Patches:
    """What was put off for want of a place stays on the shelf."""

    def deaf(_runner: Runner, _key: TargetKey) -> None:
        return None

    return [patch.object(Runner, "_on_room", deaf)]


def _stale_cache() -> Patches:
    """Rows that were read are kept, though a change set knows them better."""

    def trusting(table: Table, jobs: Any, live: Any) -> None:
        table._jobs.update(jobs)
        table._live.update(live)

    return [patch.object(Table, "admit", trusting)]


def _landed_late() -> Patches:
    """The end of an attempt is applied while dispatch still counts as holding it: its retry finds it in flight."""

    def settle(shard: Shard, commands: Any, effects: Effects) -> None:
        held, shard.held = shard.held, set()
        shard.apply(effects)
        shard._release(commands)
        for row in held:
            shard._unpark(row)

    return [patch.object(Shard, "settle", settle)]


def _no_catch_up() -> Patches:
    """A cancel does not see what fell due while its rows were read."""

    def blind(_work: Work) -> None:
        return None

    return [patch.object(Work, "join_leading", blind)]


def _short_replay() -> Patches:
    """Recovery stops one entry short of the log's end."""
    replay = node.replay

    def short(slots: Any, records: Any, bytes_max: int) -> tuple[int, int]:
        return replay(slots, list(records)[:-1], bytes_max)

    return [patch.object(node, "replay", short)]


MUTANTS = [
    Mutant("the journal never syncs", ("I11", "fatal: WalRot"), 5, _no_sync),
    Mutant("replies before the batch is durable", ("I1", "I4"), 5, _early_reply),
    Mutant("held is ignored", ("I4",), 10, _no_hold),
    Mutant("the journal is cut at the applied index", ("fatal: WalRot",), 5, _truncate_applied),
    Mutant("fires 5 ms early", ("I2",), 5, _early_fire),
    Mutant("the id is made from the time of firing", ("I10",), 5, _id_of_firing),
    Mutant("Due is not logged", ("I1",), 5, _no_due),
    Mutant("what was put off does not return", ("I1",), 60, _no_return),
    Mutant("stale rows are admitted to the cache", ("I11",), 60, _stale_cache),
    Mutant("landed only after the end is applied", ("I1",), 5, _landed_late),
    Mutant("a cancel misses what fell due meanwhile", ("I4",), 40, _no_catch_up),
    Mutant("recovery stops one entry short", ("I11",), 5, _short_replay),
]
