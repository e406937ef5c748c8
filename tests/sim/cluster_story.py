"""One seed's story of a cluster: acts of trouble with calm in between, a quiet end, and the judgement.

founded ──► act: users, and up to two troubles at a time ──► heal ──► whole again within 10 s (I12) ──► the next act
        ──► no users any more: what is due arrives ──► the books are compared, the nodes stop in order
"""

import asyncio
import gc
import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from unittest.mock import patch

from tests.sim.cluster_door import ClusterUsers, Door
from tests.sim.cluster_faults import Trouble
from tests.sim.cluster_world import ClusterWorld, make_scratch
from tests.sim.disk import PowerCut
from tests.sim.ledger import Books, judge
from tests.sim.lives import LIFE
from tests.sim.mirror import check_flushed
from tests.sim.users import NAMESPACE

from tickwheel.server import codec, handover, keeper
from tickwheel.server.cluster import host
from tickwheel.server.errors import Fatal, NotFound, TickwheelError
from tickwheel.server.model import Execution, JobState, Ms
from tickwheel.server.node import Node
from tickwheel.server.query import ExecutionHit, ExecutionQuery

USERS = 3
ACTS_MAX = 3
ACT_S = (4.0, 12.0)
FOUNDED_S = 60.0
WHOLE_S = 10.0
CALM_S = 1.5
HANDED_OVER_S = 2.0
"""At any time somebody may be handing a shard over, in order."""

MARGIN_MS = 8_000
STUCK_MS = 10_000
CHECK_EVERY_S = 0.9
LATE_MS = 3_000
LATE_AFTER_MS = 12_000


@dataclass
class ClusterVerdict:
    """What a seed showed. `trace` is equal for equal seeds, to the byte."""

    seed: int
    wrong: list[str]
    lives: int
    promises: int
    arrivals: int
    answered: int
    seconds: float
    marks: dict[str, int] = field(repr=False)
    trace: str = field(repr=False)


def run_cluster_seed(seed: int, *, collect: bool = True) -> ClusterVerdict:
    """Live through one seed. Without `collect` what it leaves in memory, some megabytes, is left there."""
    with make_scratch() as scratch, _silently(collect=collect):
        return _run(seed, Path(scratch))


def _run(seed: int, scratch: Path) -> ClusterVerdict:
    world = ClusterWorld(seed, scratch)
    with _listening(world), _paced(world.weather.pace):
        try:
            world.loop.live(_story(world))
        except _Over:
            world.tell("the story ends here")
        finally:
            world.loop.abandon()
    return _verdict(world)


@contextmanager
def _silently(*, collect: bool) -> Generator[None, None, None]:
    """Coroutines of dead lives are freed at the end, and what their `finally` complains of concerns nobody."""
    hook, last_resort = sys.unraisablehook, logging.lastResort
    sys.unraisablehook = lambda _: None
    logging.lastResort = logging.NullHandler()
    _freeze()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
            if collect:
                gc.collect()
    finally:
        if collect:
            gc.enable()
        sys.unraisablehook, logging.lastResort = hook, last_resort


@contextmanager
def _paced(pace: int) -> Generator[None, None, None]:
    """Nodes look so many times more seldom whether something is to be done."""
    with (
        patch.object(host, "TICK_S", host.TICK_S * pace),
        patch.object(keeper, "READ_AHEAD_EVERY_MS", keeper.READ_AHEAD_EVERY_MS * pace),
        patch.object(handover, "LOOK_S", handover.LOOK_S * pace),
    ):
        yield


@cache
def _freeze() -> None:
    """The program itself need not be looked through again after each seed."""
    gc.collect()
    gc.freeze()


class _Over(Exception):
    """The story ends early, and what is wrong is written down."""


def _verdict(world: ClusterWorld) -> ClusterVerdict:
    ledger = world.ledger
    lines = [f"{a.at_ms} {a.id} {a.attempt} {a.epoch} n{a.life}" for a in ledger.arrivals]
    marks = {name: count for name, count in sorted(world.marks.items()) if count}
    lengths = [len(log) for log in world.log.committed]
    lines.append(f"{ledger.answered} {ledger.refused} {lengths} {marks} {world.wrong}")
    return ClusterVerdict(
        seed=world.seed,
        wrong=world.wrong,
        lives=sum(node.lives for node in world.nodes),
        promises=len(ledger.promises),
        arrivals=len(ledger.arrivals),
        answered=ledger.answered,
        seconds=world.loop.now_s,
        marks=marks,
        trace="\n".join([*world.story, *lines]),
    )


class _Listener(logging.Handler):
    """An error that a node only logged is an error all the same; what it says otherwise belongs to the story."""

    def __init__(self, world: ClusterWorld) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        life = LIFE.get()
        name = life.name if life else "nobody"
        error = record.exc_info[1] if record.exc_info else None
        more = {
            k: record.__dict__[k]
            for k in ("shard", "epoch", "to", "peer", "index")
            if k in record.__dict__
        }
        self._world.tell(f"{name}: {record.getMessage()} {more or ''}")
        if error is not None and not isinstance(error, PowerCut | Fatal):
            self._world.blame(f"log of {name}: {record.getMessage()} {error!r}")


@contextmanager
def _listening(world: ClusterWorld) -> Generator[None, None, None]:
    root = logging.getLogger("tickwheel")
    listener, propagate, level = _Listener(world), root.propagate, root.level
    root.addHandler(listener)
    root.propagate = False
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(listener)
        root.propagate = propagate
        root.setLevel(level)


# --- acts ----------------------------------------------------------------------------------------


async def _story(world: ClusterWorld) -> None:
    for node in world.nodes:
        node.boot()
    await _until_whole(world, FOUNDED_S)
    rng = Random(f"{world.seed}:story")
    users = [asyncio.ensure_future(_user(world, number)) for number in range(USERS)]
    for act in range(rng.randint(1, ACTS_MAX)):
        await _act(world, rng, act)
    world.closing = True
    await _end_users(world, users)
    world.closing = False
    await _end(world)


async def _user(world: ClusterWorld, number: int) -> None:
    await ClusterUsers(world, number).live()


async def _end_users(world: ClusterWorld, users: "Sequence[asyncio.Future[None]]") -> None:
    await asyncio.wait(users, timeout=120)
    if not all(user.done() for user in users):
        world.blame("a user's call was never answered")
        raise _Over
    for user in users:
        user.result()


async def _act(world: ClusterWorld, rng: Random, act: int) -> None:
    """Trouble for a while, and the way back."""
    world.tell(f"act {act}")
    world.healed_s = 1e9
    world.network.hurry(copies=False)
    troubles = [
        asyncio.ensure_future(Trouble(world, Random(f"{world.seed}:{act}:{n}")).run())
        for n in range(world.weather.troubles)
    ]
    await _watch(world, rng.uniform(*ACT_S))
    for trouble in troubles:
        trouble.cancel()
    for outcome in await asyncio.gather(*troubles, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    world.heal()
    await _until_whole(world, WHOLE_S)
    await _watch(world, CALM_S)


async def _watch(world: ClusterWorld, seconds: float) -> None:
    """Let time pass, and hold every state against the log now and then."""
    until_s = world.loop.now_s + seconds
    while (left_s := until_s - world.loop.now_s) > 0:
        await asyncio.sleep(min(left_s, CHECK_EVERY_S))
        for node in world.nodes:
            world.log.check_node(node)
        if world.wrong:
            raise _Over


async def _until_whole(world: ClusterWorld, within_s: float) -> None:
    """Every shard is served again."""
    begin_s = world.loop.now_s
    everything = list(range(world.shards))
    while (served := world.served()) != everything:
        await asyncio.sleep(0.1)
        if world.loop.now_s - begin_s > within_s:
            missing = sorted(set(everything) - set(served))
            world.blame(
                f"I12 shards {missing} are not served after {within_s} s: {world.records()}"
            )
            raise _Over
    world.tell(f"whole after {world.loop.now_s - begin_s:.1f} s")
    world.marks["whole slowly"] += world.loop.now_s - begin_s > 5


# --- the quiet end -------------------------------------------------------------------------------


async def _end(world: ClusterWorld) -> None:
    door = Door(world, USERS, pause_s=0.01)
    users = ClusterUsers(world, USERS)
    for promise in list(world.ledger.promises.values()):
        if promise.name in world.ledger.pauses and world.ledger.is_firm(promise.uid):
            await users.resume(promise)
    await _watch(world, world.weather.quiet_s + _ahead_s(world))
    await _until_whole(world, HANDED_OVER_S)
    await _compare(world, door)
    world.closing = True
    for node in world.nodes:
        await node.stop()
    _check_stores(world)


def _ahead_s(world: ClusterWorld) -> float:
    """How far the shards' stamped time is before a clock: retries wait for it."""
    last_ms = max(
        (
            slot.shard.last_ms
            for node in world.nodes
            if node.node
            for slot in node.node.slots.values()
        ),
        default=0,
    )
    return max(last_ms - min(node.clock.now_ms() for node in world.nodes), 0) / 1000


async def _compare(world: ClusterWorld, door: Door) -> None:
    end_ms = min(node.clock.now_ms() for node in world.nodes) - MARGIN_MS
    contents = [world.log.truth(shard) for shard in range(world.shards)]
    statuses = {
        job.uid: codec.decode_status(job.status)
        for content in contents
        for job in content.jobs.values()
    }
    try:
        executions = await _executions_of_all(world, door)
        wrong = await _missing(world, door)
    except TickwheelError as error:
        world.blame(f"I12 a read at the end is refused: {error!r}")
        raise _Over from None
    books = Books(executions, statuses, end_ms, clock_stepped=bool(world.steps))
    for what in [*judge(world.ledger, books), *wrong, *_stuck(world, end_ms)]:
        world.blame(what)
    _judge_late(world)
    _judge_repeats(world)
    _check_followers(world)


async def _executions_of_all(world: ClusterWorld, door: Door) -> dict[bytes, list[Execution]]:
    """While leaders are asked one after the other, a shard may be handed over and be in nobody's part: ask again."""
    while True:
        before = world.records()
        found = await _executions(door)
        await _until_whole(world, HANDED_OVER_S)
        if world.records() == before:
            return found


async def _executions(door: Door) -> dict[bytes, list[Execution]]:
    found: dict[bytes, list[Execution]] = defaultdict(list)
    for node in door.leaders():
        query = ExecutionQuery(namespace=NAMESPACE, limit=1000)
        while True:
            hits = await door.ask_node(node, partial(_list, query))
            for _, execution in hits:
                found[execution.uid].append(execution)
            if len(hits) < query.limit:
                break
            query = ExecutionQuery(namespace=NAMESPACE, limit=1000, after=hits[-1][0].key)
    return found


async def _list(query: ExecutionQuery, scheduler: Node) -> list[tuple[ExecutionHit, Execution]]:
    hits, _ = await scheduler.list_executions(query, consistent=True)
    return hits


async def _missing(world: ClusterWorld, door: Door) -> list[str]:
    """Acknowledged jobs that nobody disturbed and that can't be found any more."""
    wrong: list[str] = []
    for promise in world.ledger.promises.values():
        if promise.brief or not world.ledger.is_firm(promise.uid):
            continue
        try:
            view = await door.get_job(NAMESPACE, promise.name)
        except NotFound:
            wrong.append(f"I1 {promise.name}: acknowledged, but not found")
            continue
        if view.job.uid != promise.uid:
            wrong.append(f"I9 {promise.name}: another uid than the acknowledged one")
    return wrong


def _stuck(world: ClusterWorld, end_ms: Ms) -> list[str]:
    """A job's live executions exist and are its own, each live execution is some job's, and none is forgotten."""
    wrong: list[str] = []
    for shard in range(world.shards):
        content = world.log.truth(shard)
        owned: set[int] = set()
        for row, job in content.jobs.items():
            status = codec.decode_status(job.status)
            owned.update(status.live)
            for live in status.live:
                data = content.live.get(live)
                if data is None or codec.decode_execution(data).job_row != row:
                    wrong.append(f"I11 {job.name}: its live execution {live} is not its own")
                    continue
                due_ms = codec.decode_execution(data).due_ms
                if status.state == JobState.SCHEDULED and due_ms < end_ms - STUCK_MS:
                    wrong.append(f"I1 {job.name}: execution {live} should have been sent long ago")
        wrong += [
            f"I11 execution {row} is live and no job's" for row in content.live.keys() - owned
        ]
    return wrong


def _judge_late(world: ClusterWorld) -> None:
    """I3: what falls due after the last heal, and some time for what piled up, is not late."""
    if world.steps or world.weather.target_trouble:
        return
    from_ms = world.clock.offset_ms + int(world.healed_s * 1000) + LATE_AFTER_MS
    first: dict[str, tuple[Ms, Ms]] = {}
    for arrival in world.ledger.arrivals:
        first.setdefault(arrival.id, (arrival.scheduled_ms, arrival.at_ms))
    for name, (scheduled_ms, at_ms) in first.items():
        promise = world.ledger.promises.get(bytes.fromhex(name[:32]))
        once = promise is not None and promise.firm and bool(promise.once_ms)
        if once and ":r:" not in name and scheduled_ms > from_ms and at_ms - scheduled_ms > LATE_MS:
            world.blame(f"I3 {name} came {at_ms - scheduled_ms} ms late, long after the heal")


def _judge_repeats(world: ClusterWorld) -> None:
    """I6: the same attempt comes twice only where another leader began."""
    epochs: dict[tuple[str, int], set[int]] = defaultdict(set)
    for arrival in world.ledger.arrivals:
        epochs[arrival.id, arrival.attempt].add(arrival.epoch)
    world.marks["repeated attempt"] += sum(len(seen) > 1 for seen in epochs.values())
    if not world.weather.troubles and any(len(seen) > 1 for seen in epochs.values()):
        world.marks["repeated in calm"] += 1


def _check_followers(world: ClusterWorld) -> None:
    """After the quiet every voter has applied (nearly) everything: what is committed reaches all of them."""
    by_id = {node.id: node for node in world.nodes}
    for shard, record in world.records().items():
        log = world.log.committed[shard]
        for voter in record.voters:
            sim = by_id.get(voter)
            if sim is None or sim.node is None:
                if world.weather.replace_ms < 10_000:
                    world.blame(f"I12 shard {shard} still has the lost voter {voter[:4]}")
                continue
            applied = sim.node.slots[shard].applied
            if applied < len(log) - 200:
                world.blame(f"I11 {sim.name} has applied {applied} of shard {shard} of {len(log)}")


def _check_stores(world: ClusterWorld) -> None:
    """What stopped in order has all that it applied in its store."""
    for node in world.nodes:
        for shard, store in sorted(node.stores.items()):
            log = world.log.committed[shard]
            if store.applied.index == len(log):
                for what in check_flushed(world.log.truth(shard), store):
                    world.blame(f"{node.name} shard {shard}: {what}")
