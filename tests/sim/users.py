"""The users of a simulated node: they create, cancel, pause, change and delete, and believe what they are told."""

import asyncio
from random import Random

from tests.sim.ledger import Promise
from tests.sim.world import NAMES, World, prepared

from tickwheel.server import node
from tickwheel.server.command import (
    Cancel,
    Cancellation,
    ChangeReply,
    Create,
    Delete,
    JobView,
    NamedCommand,
    Pause,
    Resume,
    Run,
    Update,
)
from tickwheel.server.errors import TickwheelError

NAMESPACE = "acme"


class Users:
    """A few of them, each doing one thing after the other until the life ends."""

    def __init__(self, world: World, scheduler: node.Node) -> None:
        self._world = world
        self._node = scheduler
        self._rng = Random(f"{world.seed}:{world.life}:users")

    async def live(self) -> None:
        """One user's day."""
        while True:
            await asyncio.sleep(self._rng.choice((0.0, 0.005, 0.05, 0.4)))
            chance = self._rng.random()
            if chance < 0.55:
                await self._create()
            else:
                await self._disturb(chance)

    async def _create(self) -> None:
        rng, now_ms = self._rng, self._world.clock.now_ms()
        once = rng.random() < 0.8
        once_ms = now_ms + rng.choice((0, 1, 40, 900, 3_000, 20_000)) + 1 if once else 0
        period_ms = 0 if once else rng.choice((1_000, 2_000, 7_000))
        name = f"job-{rng.randrange(10_000)}" if once else f"every-{rng.randrange(NAMES)}"
        command = Create(NAMESPACE, name, prepared(once_ms, period_ms, rng.randrange(1 << 30)))
        for _ in range(rng.choice((1, 1, 2))):  # a client repeats what it is not sure of
            reply = await self._call(command)
            if isinstance(reply, JobView):
                self._promise(reply, once_ms, period_ms)

    def _promise(self, view: JobView, once_ms: int, period_ms: int) -> None:
        known = self._world.ledger.promises
        uid = view.job.uid
        if uid not in known:
            known[uid] = Promise(
                NAMESPACE, view.job.name, uid, once_ms, period_ms, view.status.create_ms
            )

    async def _disturb(self, chance: float) -> None:
        promises = list(self._world.ledger.promises.values())
        if not promises:
            return
        promise = self._rng.choice(promises[-40:])
        command = self._change(promise, chance)
        disturbing = not isinstance(command, Run)
        self._disturbed(promise.name, disturbing)
        reply = await self._call(command)
        self._disturbed(promise.name, disturbing)
        if not isinstance(command, Cancel) or not isinstance(reply, ChangeReply):
            return
        uid = promise.uid.hex()
        first = not any(a.id.startswith(uid) for a in self._world.ledger.arrivals)
        same = reply.view.job.uid == promise.uid
        if same and first and reply.cancellation == Cancellation.BEFORE_DISPATCH:
            promise.cancelled_before = True

    def _disturbed(self, name: str, disturbing: bool) -> None:
        """A name may have been given anew while the call was on its way: whoever bears it is not firm any more."""
        for promise in self._world.ledger.promises.values():
            if promise.name == name and disturbing:
                promise.firm = False

    def _change(self, promise: Promise, chance: float) -> NamedCommand:
        name = promise.name
        if chance < 0.75:
            return Cancel(NAMESPACE, name)
        if chance < 0.80:
            return Pause(NAMESPACE, name)
        if chance < 0.85:
            return Resume(NAMESPACE, name)
        if chance < 0.90:
            return Run(NAMESPACE, name, f"r{self._rng.randrange(50)}")
        if chance < 0.95:
            later_ms = self._world.clock.now_ms() + self._rng.choice((500, 5_000))
            fresh = prepared(later_ms, 0, self._rng.randrange(1 << 30))
            return Update(NAMESPACE, name, "", lambda _spec: fresh)
        return Delete(NAMESPACE, name)

    async def _call(self, command: NamedCommand) -> object:
        try:
            reply = await self._node.call(command)
        except TickwheelError as error:
            self._world.ledger.refused += 1
            return error
        self._world.ledger.answered += 1
        return reply
