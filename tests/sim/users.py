"""The users of a simulated node: they create, cancel, pause, run, change and delete, and believe what they are told."""

import asyncio
from collections.abc import Callable
from random import Random

from tests.sim import probes, specs
from tests.sim.ledger import Promise
from tests.sim.specs import Wish, prepared
from tests.sim.world import World

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
    Prepared,
    Redrive,
    Resume,
    Run,
    Update,
)
from tickwheel.server.errors import TickwheelError, Unavailable
from tickwheel.server.model import ExecutionState
from tickwheel.server.query import ExecutionQuery

NAMESPACE = "acme"
NAMES = 24
OPEN_MS = 1 << 60
CANCELLATIONS = {
    Cancellation.BEFORE_DISPATCH: "cancelled before",
    Cancellation.ALREADY_DISPATCHED: "already dispatched",
    Cancellation.DISPATCH_UNKNOWN: "dispatch unknown",
}


def _replaced_by(fresh: Prepared) -> Callable[[bytes], Prepared]:
    def merge(_spec: bytes) -> Prepared:
        return fresh

    return merge


class Users:
    """A few of them, each doing one thing after the other until the life ends."""

    def __init__(self, world: World, scheduler: node.Node) -> None:
        self._world = world
        self._node = scheduler
        self._rng = Random(f"{world.seed}:{world.life}:users")

    async def live(self) -> None:
        """One user's day."""
        while not self._world.closing:
            await asyncio.sleep(self._rng.choice((0.0, 0.005, 0.05, 0.4)))
            chance = self._rng.random()
            if chance < 0.5:
                await self._create()
            elif chance < 0.6:
                await self._cancel_in_time()
            else:
                await self._touch(chance)

    # --- creating ---

    async def _create(self) -> None:
        rng, now_ms = self._rng, self._world.clock.now_ms()
        once = rng.random() < 0.8
        wish = specs.draw_once(rng, now_ms) if once else specs.draw_recurring(rng)
        name = f"job-{rng.randrange(10_000)}" if once else f"every-{rng.randrange(NAMES)}"
        command = Create(NAMESPACE, name, prepared(wish))
        self._world.marks["cron"] += wish.cron
        for repeat in range(rng.choice((1, 1, 2))):  # a client repeats what it is not sure of
            reply = await self._call(command)
            if isinstance(reply, JobView):
                self._promise(reply, wish)
                self._world.marks["repeated create"] += repeat

    def _promise(self, view: JobView, wish: Wish) -> None:
        known = self._world.ledger.promises
        uid = view.job.uid
        if uid not in known:
            known[uid] = Promise(
                NAMESPACE,
                view.job.name,
                uid,
                wish.once_ms,
                wish.period_ms,
                view.status.create_ms,
                brief=wish.retention_s < specs.HOUR_S,
            )

    # --- touching what is there ---

    async def _cancel_in_time(self) -> None:
        """Race with a dispatch: cancel a one-off within some milliseconds of its time."""
        now_ms = self._world.clock.now_ms()
        soon = [
            p
            for p in list(self._world.ledger.promises.values())[-30:]
            if p.firm and 20 < p.once_ms - now_ms < 1_500
        ]
        if soon:
            promise = self._rng.choice(soon)
            ahead_ms = promise.once_ms - now_ms - self._rng.randrange(-3, 20)
            await asyncio.sleep(max(ahead_ms, 0) / 1000)
            await self._disturb(promise, Cancel(NAMESPACE, promise.name))

    async def _touch(self, chance: float) -> None:
        promises = list(self._world.ledger.promises.values())
        if not promises:
            return
        promise = self._rng.choice(promises[-40:])
        if chance < 0.72:
            await self._pause_or_resume(promise, resume=chance < 0.67)
        elif chance < 0.80:
            await self._run(promise)
        elif chance < 0.85:
            await self._redrive(promise)
        else:
            await self._disturb(promise, self._change(promise, chance))

    def _change(self, promise: Promise, chance: float) -> NamedCommand:
        if chance < 0.92:
            return Cancel(NAMESPACE, promise.name)
        if chance < 0.96:
            later_ms = self._world.clock.now_ms() + self._rng.choice((500, 5_000))
            fresh = prepared(Wish(later_ms, 0, salt=self._rng.randrange(1 << 30)))
            return Update(NAMESPACE, promise.name, "", _replaced_by(fresh))
        return Delete(NAMESPACE, promise.name)

    async def _disturb(self, promise: Promise, command: NamedCommand) -> None:
        arrivals, uid = self._world.ledger.arrivals, promise.uid.hex()
        self._loosen(promise.name, moved=isinstance(command, Update))
        untouched = not any(arrival.id.startswith(uid) for arrival in arrivals)
        reply = await self._call(command)
        self._loosen(promise.name)
        if not isinstance(command, Cancel) or not isinstance(reply, ChangeReply):
            return
        self._world.marks[CANCELLATIONS[reply.cancellation]] += 1
        if reply.view.job.uid == promise.uid and reply.cancellation == Cancellation.BEFORE_DISPATCH:
            promise.cancelled_at = len(arrivals)
            promise.never_sent = untouched and bool(promise.once_ms) and not promise.moved

    def _loosen(self, name: str, *, moved: bool = False) -> None:
        """A name may have been given anew while the call was on its way: whoever bears it is not firm any more."""
        for promise in self._world.ledger.promises.values():
            if promise.name == name:
                promise.firm = False
                promise.moved = promise.moved or moved

    # --- pausing ---

    async def _pause_or_resume(self, promise: Promise, *, resume: bool) -> None:
        if resume:
            await self.resume(promise)
            return
        pauses = self._world.ledger.pauses[promise.name]
        pauses.append((self._world.unhandled_since_ms(), OPEN_MS))
        under_way = self._world.ledger.pauses_under_way
        under_way[promise.name] += 1
        reply = await self._call(Pause(NAMESPACE, promise.name))
        if not isinstance(reply, Unavailable):  # otherwise it may still be carried out
            under_way[promise.name] -= 1
        self._world.marks["paused"] += isinstance(reply, JobView)

    async def resume(self, promise: Promise) -> None:
        """Whatever its state; a pause that was answered before is over once this is, unless one came since."""
        pauses = self._world.ledger.pauses[promise.name]
        asked = len(pauses)
        alone = not self._world.ledger.pauses_under_way[promise.name]
        reply = await self._call(Resume(NAMESPACE, promise.name))
        if isinstance(reply, JobView):
            self._world.marks["resumed"] += 1
            if alone and asked == len(pauses):
                # the shard's time, by which it skipped, may be ahead of the clock that is asked here; what falls due in
                # the very millisecond is skipped
                end_ms = 1 + max(self._world.clock.now_ms(), reply.status.update_ms)
                pauses[:] = [(start, min(end, end_ms)) for start, end in pauses]

    # --- running by hand ---

    async def _run(self, promise: Promise) -> None:
        request = f"r{self._rng.randrange(50)}"
        reply = await self._call(Run(NAMESPACE, promise.name, request))
        if isinstance(reply, JobView):
            uid = reply.job.uid
            self._world.marks["run"] += 1
            self._world.ledger.started.append((uid, f"{uid.hex()}:r:{request}", 0))

    async def _redrive(self, promise: Promise) -> None:
        """What a user does with a dead letter: look it up, and have it sent again."""
        query = ExecutionQuery(
            namespace=NAMESPACE,
            job=promise.name,
            states=(ExecutionState.FAILED,),
            limit=5,
        )
        try:
            hits, _ = await self._node.list_executions(query, consistent=True)
        except TickwheelError:
            return
        if not hits:
            return
        hit, ended = self._rng.choice(hits)
        request = f"d{self._rng.getrandbits(32)}"
        command = Redrive(NAMESPACE, promise.name, hit.key.row, request)
        reply = await self._call(command)
        if isinstance(reply, JobView):
            self._world.marks["redriven"] += 1
            if reply.job.uid == ended.uid:
                self._world.ledger.started.append((ended.uid, ended.id, ended.attempt))

    async def _call(self, command: NamedCommand) -> object:
        try:
            reply = await self._node.call(command)
        except TickwheelError as error:
            self._world.ledger.refused += 1
            probes.count_refusal(self._world.marks, error)
            return error
        self._world.ledger.answered += 1
        return reply
