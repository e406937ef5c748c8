"""How the users of a simulated cluster reach it: any node, another one if that does not lead, and again if in doubt.

call ──► a node ──► NOT_LEADER, LEADERLESS ──► another        refused: nothing was done
              └──► no answer in time, OUTCOME_UNKNOWN ──► the same once more, as it was (same request_id)
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from tests.sim.ledger import Promise
from tests.sim.users import Users

from tickwheel.server.command import JobView, NamedCommand, Reply
from tickwheel.server.errors import NotLeader, TickwheelError, Unavailable
from tickwheel.server.model import Execution, Ms
from tickwheel.server.node import Node
from tickwheel.server.query import ExecutionHit, ExecutionQuery

if TYPE_CHECKING:
    from tests.sim.cluster_node import SimNode
    from tests.sim.cluster_world import ClusterWorld

T = TypeVar("T")

TRIES = 40
QUICK_TRIES = 10
ANSWER_S = 2.0
PAUSE_S = 0.15


class Door:
    """What `Users` take for a node."""

    def __init__(self, world: "ClusterWorld", number: int, pause_s: float = PAUSE_S) -> None:
        self.arrived_before = -1
        """What had arrived when the last call was first taken by a node, or may have been."""
        self._world = world
        self._pause_s = pause_s
        self._rng = Random(f"{world.seed}:door:{number}")

    async def call(self, command: NamedCommand) -> Reply:
        """See `Node.call`."""
        return await self._ask(lambda node: node.call(command))

    async def get_job(self, namespace: str, name: str) -> JobView:
        """See `Node.get_job`."""
        return await self._ask(lambda node: node.get_job(namespace, name))

    async def list_executions(
        self, query: ExecutionQuery, *, consistent: bool
    ) -> tuple[list[tuple[ExecutionHit, Execution]], Ms]:
        """See `Node.list_executions`."""
        return await self._ask(lambda node: node.list_executions(query, consistent=consistent))

    def leaders(self) -> list["SimNode"]:
        """Who leads something."""
        return [node for node in self._world.nodes if node.running and node.leads()]

    async def ask_node(self, sim: "SimNode", work: Callable[[Node], Awaitable[T]]) -> T:
        """Ask this one. Raises TickwheelError; TimeoutError: nobody answered."""
        if not sim.up:
            raise NotLeader("the connection is refused", reason="NOT_UP")
        node, life = sim.node, sim.life
        assert node is not None
        assert life is not None
        async with asyncio.timeout(ANSWER_S):
            return await life.ask(_done(work(node.node)))

    async def _ask(self, work: Callable[[Node], Awaitable[T]]) -> T:
        last: TickwheelError = Unavailable("nobody was asked")
        doubt = False
        for attempt in range(TRIES):
            if not doubt:
                self.arrived_before = len(self._world.ledger.arrivals)
            try:
                return await self.ask_node(self._pick(attempt), work)
            except (NotLeader, Unavailable) as error:
                last = error
                doubt = doubt or not isinstance(error, NotLeader)
                self._world.marks[f"asked again: {error.reason}"] += 1
            except TimeoutError:
                last, doubt = Unavailable("no answer", reason="NO_ANSWER"), True
                self._world.marks["asked again: no answer"] += 1
            pause_s = self._pause_s if attempt < QUICK_TRIES else PAUSE_S
            await asyncio.sleep(self._rng.random() * pause_s)
        raise last

    def _pick(self, attempt: int) -> "SimNode":
        """Anybody that takes connections, which a paused process does; late attempts go from one to the next.

        Of five nodes the one that leads may be missed by chance even in dozens of attempts.
        """
        up = [node for node in self._world.nodes if node.up]
        if attempt > QUICK_TRIES and up:
            return up[attempt % len(up)]
        return self._rng.choice(up or self._world.nodes)


class ClusterUsers(Users):
    """A user of a cluster, with chance of its own."""

    def __init__(self, world: "ClusterWorld", number: int) -> None:
        self._door = Door(world, number)
        super().__init__(world, self._door)  # type: ignore[arg-type]
        self._rng = Random(f"{world.seed}:user:{number}")

    async def _disturb(self, promise: Promise, command: NamedCommand) -> None:
        """What arrived while nodes said that they do not lead came before the cancel."""
        await super()._disturb(promise, command)
        before = self._world.ledger.arrivals[: self._door.arrived_before]
        if any(arrival.id.startswith(promise.uid.hex()) for arrival in before):
            promise.never_sent = False


async def _done(answer: Awaitable[Any]) -> Any:
    return await answer
