"""One seed's story: lives with crashes in between, a quiet end, and the judgement."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.sim.disk import PowerCut
from tests.sim.faults import End, Fate, draw_fate
from tests.sim.ledger import Books, judge
from tests.sim.loop import VirtualLoop
from tests.sim.mirror import check_flushed
from tests.sim.users import NAMESPACE, Users
from tests.sim.world import World

from tickwheel.server import codec, node
from tickwheel.server.errors import Fatal, NotFound
from tickwheel.server.model import Execution, ExecutionState, JobState, Ms, Status
from tickwheel.server.query import ExecutionQuery, GroupBy, Grouping, JobQuery

USERS = 4
LIVES_MAX = 4
QUIET_S = 40.0
MARGIN_MS = 8_000
STUCK_MS = 10_000
CHECK_EVERY_S = 0.9
DRAIN_MS = 3_000

Mutate = Callable[[World, node.Started], None]


@dataclass
class Verdict:
    """What a seed showed. `trace` is equal for equal seeds, to the byte."""

    seed: int
    wrong: list[str]
    lives: int
    promises: int
    arrivals: int
    answered: int
    marks: dict[str, int] = field(repr=False)
    trace: str = field(repr=False)


def run_seed(seed: int, mutate: Mutate | None = None) -> Verdict:
    """Live through one seed."""
    world = World(seed)
    if mutate is not None:
        world.mutate = mutate
    fates = Random(f"{seed}:fates")
    with _listening(world):
        for _ in range(world.rng.randint(1, LIVES_MAX)):
            _live(world, draw_fate(fates, world.weather))
        _live_to_the_end(world)
    return _verdict(world)


def _verdict(world: World) -> Verdict:
    ledger = world.ledger
    lines = [f"{a.at_ms} {a.id} {a.attempt} {a.epoch}" for a in ledger.arrivals]
    marks = {name: count for name, count in sorted(world.marks.items()) if count}
    lines.append(f"{ledger.answered} {ledger.refused} {world.disk.steps} {marks} {world.wrong}")
    return Verdict(
        seed=world.seed,
        wrong=world.wrong,
        lives=world.life,
        promises=len(ledger.promises),
        arrivals=len(ledger.arrivals),
        answered=ledger.answered,
        marks=marks,
        trace="\n".join(lines),
    )


class _Listener(logging.Handler):
    """An error that the server only logged is an error all the same."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, PowerCut | Fatal):
            self._world.wrong.append(f"log: {record.getMessage()} {error!r}")


@contextmanager
def _listening(world: World) -> Generator[None, None, None]:
    root = logging.getLogger("tickwheel")
    listener, propagate = _Listener(world), root.propagate
    root.addHandler(listener)
    root.propagate = False
    try:
        yield
    finally:
        root.removeHandler(listener)
        root.propagate = propagate


# --- lives with users ----------------------------------------------------------------------------


def _live(world: World, fate: Fate) -> None:
    """One life, from its start to the end that fate has for it, or an earlier one that a fault brings."""
    loop, _clock = world.begin()
    world.arm(fate)
    world.marks["crash in recovery"] += not _run(world, loop, _day(world, fate))
    world.crash(fate)


def _run(world: World, loop: VirtualLoop, day: Coroutine[Any, Any, None]) -> bool:
    """Let the day pass until it ends or the node dies; False if the node did not even come up."""
    try:
        loop.live(day)
    except (PowerCut, Fatal) as error:
        world.die(error)
    finally:
        loop.abandon()
    return world.booted


async def _day(world: World, fate: Fate) -> None:
    started = await world.boot()
    users = Users(world, started.node)
    tasks = [asyncio.ensure_future(users.live()) for _ in range(USERS)]
    half_s = max(fate.after_s / 2, 0.02)
    await _watch(world, started, half_s)
    if fate.step_ms:
        world.step_clock(fate.step_ms)
    if fate.end == End.FULL:
        world.disk.left = 0
    _fill_stores(world, full=world.weather.store_full and fate.after_s > 2)
    await _watch(world, started, half_s)
    if fate.end == End.STOP:
        _fill_stores(world, full=False)
        await _stop(world, started, tasks)


def _fill_stores(world: World, *, full: bool) -> None:
    for store in world.stores:
        store.full = full


async def _watch(world: World, started: node.Started, seconds: float) -> None:
    """Let time pass; hold the state against the log now and then, and at the end."""
    until_s, succeeded = world.loop.now_s + seconds, 0
    while (left_s := until_s - world.loop.now_s) > 0:
        await asyncio.sleep(min(left_s, CHECK_EVERY_S))
        world.check_state(started)
        world.marks["store full"] += started.runner.store_full
        if started.wal.space_low:
            world.marks["ended while full"] += world.succeeded > succeeded
        succeeded = world.succeeded


async def _stop(
    world: World, started: node.Started, users: "Sequence[asyncio.Future[None]]"
) -> None:
    """As the application does it: the doors close, dispatch ends, the node stops, then the journal and the stores."""
    world.closing = True
    await asyncio.wait(users, timeout=30)
    if not all(user.done() for user in users):
        world.wrong.append("a user's call was never answered")
    started.runner.stop_firing()
    await world.dispatcher.drain(DRAIN_MS)
    await node.stop(started)
    await started.wal.close()
    world.check_state(started)
    for store, content in zip(world.stores, world.mirror.content, strict=True):
        store.close()
        world.wrong += check_flushed(content, store)
    world.marks["clean stop"] += 1


# --- the quiet end -------------------------------------------------------------------------------


def _live_to_the_end(world: World) -> None:
    """A last life without users: everything that is due arrives, then the books are compared."""
    loop, _clock = world.begin()

    async def life() -> None:
        started = await world.boot()
        users = Users(world, started.node)
        for promise in list(world.ledger.promises.values()):
            if promise.name in world.ledger.pauses and world.ledger.is_firm(promise.uid):
                await users.resume(promise)
        await _watch(world, started, QUIET_S + _ahead_s(world, started))
        await _compare(world, started)
        await _stop(world, started, [asyncio.ensure_future(asyncio.sleep(0))])

    _run(world, loop, life())


def _ahead_s(world: World, started: node.Started) -> float:
    """How far the shards' stamped time is before a clock that was set back: retries wait for it."""
    last_ms = max(slot.shard.last_ms for slot in started.runner.slots.values())
    return max(last_ms - world.clock.now_ms(), 0) / 1000


async def _compare(world: World, started: node.Started) -> None:
    end_ms = world.clock.now_ms() - MARGIN_MS
    executions = await _executions(started.node)
    statuses = {
        job.uid: codec.decode_status(job.status)
        for content in world.mirror.content
        for job in content.jobs.values()
    }
    books = Books(executions, statuses, end_ms, clock_stepped=bool(world.steps))
    world.wrong += judge(world.ledger, books)
    world.wrong += await _missing(world, started.node)
    world.wrong += await _miscounted(world, started.node)
    world.check_state(started)
    world.wrong += _dangling(world, end_ms)
    _mark_ends(world, executions)


async def _executions(scheduler: node.Node) -> dict[bytes, list[Execution]]:
    found: dict[bytes, list[Execution]] = defaultdict(list)
    query = ExecutionQuery(namespace=NAMESPACE, limit=1000)
    while True:
        hits, _ = await scheduler.list_executions(query, consistent=True)
        for _, execution in hits:
            found[execution.uid].append(execution)
        if len(hits) < query.limit:
            return found
        query = ExecutionQuery(namespace=NAMESPACE, limit=1000, after=hits[-1][0].key)


async def _missing(world: World, scheduler: node.Node) -> list[str]:
    """Acknowledged jobs that nobody disturbed and that can't be found any more."""
    wrong: list[str] = []
    for promise in world.ledger.promises.values():
        if promise.brief or not world.ledger.is_firm(promise.uid):
            continue
        try:
            view = await scheduler.get_job(NAMESPACE, promise.name)
        except NotFound:
            wrong.append(f"I1 {promise.name}: acknowledged, but not found")
            continue
        if view.job.uid != promise.uid:
            wrong.append(f"I9 {promise.name}: another uid than the acknowledged one")
    return wrong


async def _miscounted(world: World, scheduler: node.Node) -> list[str]:
    """Counts by state, against the log."""
    counts, _ = await scheduler.count_jobs(JobQuery(), Grouping(GroupBy.STATE), consistent=True)
    world_counts: dict[int | str, int] = defaultdict(int)
    # Nothing is due in the moment between the flush and the answer that could change what is compared:
    # so the log is taken up to what the store has applied.
    for store in world.stores:
        for _, job in store.stored_jobs():
            world_counts[int(codec.decode_status(job.status).state)] += 1
    if dict(counts) != dict(world_counts):
        return [f"I10 counts by state are {counts}, the jobs themselves say {dict(world_counts)}"]
    return []


def _dangling(world: World, end_ms: Ms) -> list[str]:
    """A job's live executions exist and are its own, each live execution is some job's, and none is forgotten."""
    wrong: list[str] = []
    for content in world.mirror.content:
        owned: set[int] = set()
        for row, job in content.jobs.items():
            status = codec.decode_status(job.status)
            owned.update(status.live)
            for live in status.live:
                data = content.live.get(live)
                if data is None or codec.decode_execution(data).job_row != row:
                    wrong.append(f"I11 {job.name}: its live execution {live} is not its own")
                elif _is_stuck(codec.decode_execution(data), status, end_ms):
                    wrong.append(f"I1 {job.name}: execution {live} should have been sent long ago")
        wrong += [
            f"I11 execution {row} is live and no job's" for row in content.live.keys() - owned
        ]
    return wrong


def _is_stuck(execution: Execution, status: Status, end_ms: Ms) -> bool:
    return status.state == JobState.SCHEDULED and execution.due_ms < end_ms - STUCK_MS


def _mark_ends(world: World, executions: dict[bytes, list[Execution]]) -> None:
    for of_job in executions.values():
        failed = (execution.state == ExecutionState.FAILED for execution in of_job)
        world.marks["dead letter"] += sum(failed)
    attempts = Counter((arrival.id, arrival.attempt) for arrival in world.ledger.arrivals)
    world.marks["repeated attempt"] += sum(count > 1 for count in attempts.values())
