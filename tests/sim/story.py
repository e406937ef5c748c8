"""One seed's story: lives with crashes in between, a quiet end, and the judgement."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.ledger import judge
from tests.sim.users import NAMESPACE, Users
from tests.sim.world import World

from tickwheel.server import node
from tickwheel.server.errors import NotFound
from tickwheel.server.model import Execution
from tickwheel.server.query import ExecutionQuery

USERS = 4
LIVES_MAX = 4
QUIET_S = 40.0

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
    trace: str = field(repr=False)


def run_seed(seed: int, mutate: Mutate | None = None) -> Verdict:
    """Live through one seed."""
    world = World(seed)
    if mutate is not None:
        world.mutate = mutate
    for _ in range(world.rng.randint(1, LIVES_MAX)):
        _live_and_crash(world)
    wrong = _live_to_the_end(world)
    ledger = world.ledger
    trace = "\n".join(f"{a.at_ms} {a.id} {a.attempt} {a.epoch}" for a in ledger.arrivals)
    return Verdict(
        seed, wrong, world.life, len(ledger.promises), len(ledger.arrivals), ledger.answered, trace
    )


def _live_and_crash(world: World) -> None:
    loop, _clock = world.begin()
    end_s = loop.now_s + world.rng.choice((0.05, 0.7, 3.0, 11.0)) * (0.5 + world.rng.random())

    async def life() -> None:
        started = await world.boot()
        users = Users(world, started.node)
        for _ in range(USERS):
            loop.create_task(users.live())
        await asyncio.sleep(max(end_s - loop.now_s, 0))

    loop.run_until_complete(life())
    loop.abandon()
    world.crash()


def _live_to_the_end(world: World) -> list[str]:
    """A last life without users: everything that is due arrives, then the books are compared."""
    loop, clock = world.begin()
    wrong: list[str] = []

    async def life() -> None:
        started = await world.boot()
        await asyncio.sleep(QUIET_S)
        end_ms = clock.now_ms() - 8_000
        executions = await _executions(started.node)
        wrong.extend(judge(world.ledger, executions, end_ms))
        wrong.extend(await _missing(world, started.node))
        await node.stop(started)

    loop.run_until_complete(life())
    loop.abandon()
    return wrong + [f"fatal: {error!r}" for error in world.fatal]


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
        if not promise.firm:
            continue
        try:
            view = await scheduler.get_job(NAMESPACE, promise.name)
        except NotFound:
            wrong.append(f"I1 {promise.name}: acknowledged, but not found")
            continue
        if view.job.uid != promise.uid:
            wrong.append(f"I9 {promise.name}: another uid than the acknowledged one")
    return wrong
