"""Floor 3. Who leads which shard: watches the records, stands when a leader is gone, writes down what was won.

    leader's session over ──► wait rank x 50 ms ──► transact {epoch + 1, leader: me} ──► Replica.led ──► fence, adopt, ...
    released by its leader ─┘                            │ refused: look again
                                                         │ unknown: read, and believe what is there
    no quorum within 3 s ──► give up, stay away for a while, so that a better connected voter may try
    wall clock is wrong ──► give up at once, and stand no more until it is right

The record is the truth: whoever it names leads, and a node that finds itself named under its present session begins,
even if it never learnt how its own transaction ended.

Must never import: gRPC, protobuf, `runner`, `store`, the doors.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any

from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.ports import Done, Etcd, Held, Item, OutcomeUnknown, Put, Refused
from tickwheel.server.cluster.registry import (
    ShardRecord,
    leader_guards,
    shard_key,
    take_over_guards,
)
from tickwheel.server.cluster.view import ShardSeen, View
from tickwheel.server.errors import TickwheelError, Unavailable
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.placement import preference
from tickwheel.server.ports import Clock
from tickwheel.server.replica import Role
from tickwheel.server.turn import Event, FenceFailed, Leadership, Released

log = get_logger(__name__)

STAGGER_S = 0.05
"""Between the first in rank and the next: time to win, so that they do not get in each other's way."""

WISHED_S = 0.75
"""Behind a leader that gave a shard to somebody: on a busy machine that one is late by more than a rank or two, and a
shard that another one took would be handed over again, and again."""

DRAINING_S = 2.0
"""A node that is to be empty stands only when nobody else did for so long."""

STAY_AWAY_S = (2.0, 5.0)
"""After a leadership that found no quorum."""

RETRY_S = 0.2
RELEASE_POLL_S = 0.01
QUORUMLESS_MS = 3_000
"""A leader without the right to act for so long lets others try."""

TWO = 2
OVER = frozenset({Role.FOLLOWER, Role.RELEASED})
"""What a replica is at when its leadership is over, though the record may still name it."""

Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Election:
    """The leaderships of one node."""

    def __init__(  # noqa: PLR0913 - what it listens to and what it moves
        self, me: NodeId, etcd: Etcd, view: View, host: Host, *, clock: Clock, rng: Random,
        spawn: Spawn,
    ) -> None:  # fmt: skip
        self.held: Held | None = None
        self._me = me
        self._etcd = etcd
        self._view = view
        self._host = host
        self._clock = clock
        self._rng = rng
        self.spawn = spawn
        self.barred: Callable[[], bool] = lambda: False
        """True while this node must not lead."""
        self._was_barred = False
        self._loop = asyncio.get_running_loop()
        self._busy: set[int] = set()
        self._standing: dict[int, asyncio.TimerHandle] = {}
        self._away_until_ms: dict[int, int] = {}
        self._lapsed_ms: dict[int, int] = {}
        self.stopped = False

    # --- looking ---

    def consider_all(self) -> None:
        """The view changed, or this node's session did."""
        for number in list(self._view.shards):
            self.consider(number)

    def consider(self, number: int) -> None:
        """Bring this node's part in a shard into line with its record."""
        seen = self._view.shards.get(number)
        replica = self._host.replicas.get(number)
        if seen is None or replica is None or self.stopped:
            return
        record, held = seen.record, self.held
        if number in self._standing and not self._view.is_leaderless(record):
            self._standing.pop(
                number
            ).cancel()  # somebody won; the next time has an order of its own
        if record.leader != self._me and (replica.leads or replica.stands):
            replica.following(leadership(record), self._clock.monotonic_ms())
            self._host.poke(number)
        if held is None or number in self._busy:
            return
        if record.leader == self._me and record.session == held.create_revision:
            self._begin(number, record)
        elif record.leader == self._me and replica.leads and replica.epoch == record.epoch:
            self._run(number, self._renew(seen, held))
        elif self._may_stand(record):
            self._stand_later(number, record)

    def _may_stand(self, record: ShardRecord) -> bool:
        leaderless = self._me in record.voters and self._view.is_leaderless(record)
        return leaderless and not self.barred()

    def _begin(self, number: int, record: ShardRecord) -> None:
        """This node is named: lead, unless it does already; or, if that is over, see that the record says so."""
        replica = self._host.replicas[number]
        if replica.epoch < record.epoch and not self.barred():
            replica.led(leadership(record), self._clock.monotonic_ms())
            self._host.poke(number)
        elif replica.role in OVER:
            released = replica.role == Role.RELEASED and replica.epoch == record.epoch
            self._run(number, self._give_up(number, released=released))

    def _stand_later(self, number: int, record: ShardRecord) -> None:
        if number in self._standing:
            return
        away_ms = self._away_until_ms.get(number, 0) - self._clock.monotonic_ms()
        delay_s = max(self._delay_s(number, record), away_ms / 1000)
        self._standing[number] = self._loop.call_later(delay_s, self._stand, number)

    def _delay_s(self, number: int, record: ShardRecord) -> float:
        """The first in rank stands at once: who is wished for, then who wants the shard most, then who drains."""
        order = preference(number, self._view.sites(record.voters.__contains__))
        wish = self._view.moves.get(number, "")
        order.sort(key=lambda node: (not self._view.may_lead(node), node != wish))
        rank = order.index(self._me) if self._me in order else len(order)
        delay_s = rank * STAGGER_S + (0 if self._view.may_lead(self._me) else DRAINING_S)
        return delay_s + (WISHED_S if self._is_given(record, wish) else 0)

    def _is_given(self, record: ShardRecord, wish: NodeId) -> bool:
        """True if the last leader let go of the shard so that another node gets it, and that node is there."""
        others = wish not in ("", self._me) and wish in record.voters
        return others and record.released and not record.leader and self._view.may_lead(wish)

    def _stand(self, number: int) -> None:
        self._standing.pop(number, None)
        seen, held = self._view.shards.get(number), self.held
        if seen is None or held is None or self.stopped or number in self._busy:
            return
        if self._may_stand(seen.record):
            self._run(number, self._take_over(number, seen, held))

    # --- changing records ---

    def _run(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        """One change of a record at a time; afterwards its record is looked at again."""
        self._busy.add(number)

        async def run() -> None:
            try:
                await work
            except TickwheelError as error:
                log.warning("etcd: %s", error, extra={"shard": number})
                await asyncio.sleep(RETRY_S)
            finally:
                self._busy.discard(number)
            self.consider(number)

        self.spawn(run())

    async def _take_over(self, number: int, seen: ShardSeen, held: Held) -> None:
        record = seen.record
        new = record.taken_over(self._me, held.create_revision, self._voters(record))
        guards = take_over_guards(seen.item, record, self._me, held.create_revision)
        if await self._swap(seen.item, new, guards):
            log.info("took over", extra={"shard": number, "epoch": new.epoch})
        else:
            await asyncio.sleep(
                RETRY_S
            )  # while the view is behind, the next try would be refused too

    def _voters(self, record: ShardRecord) -> tuple[NodeId, ...]:
        """With two voters every commit is on both; so the dead one may be left out, or nobody could ever commit again."""
        others = [node for node in record.voters if node != self._me]
        if len(record.voters) == TWO and others[0] not in self._view.nodes:
            return (self._me,)
        return record.voters

    async def _renew(self, seen: ShardSeen, held: Held) -> None:
        """The session was lost and is new, and nobody took the shard meanwhile: the leadership goes on under it."""
        new = seen.record.with_session(held.create_revision)
        await self._swap(seen.item, new, leader_guards(seen.item, self._me, held.create_revision))

    async def _give_up(self, number: int, *, released: bool) -> None:
        seen, held = self._view.shards.get(number), self.held
        if seen is None or seen.record.leader != self._me or held is None:
            return
        low_s, high_s = STAY_AWAY_S
        away_ms = 0 if released else round(1000 * self._rng.uniform(low_s, high_s))
        self._away_until_ms[number] = self._clock.monotonic_ms() + away_ms
        new = seen.record.given_up(released=released)
        await self._swap(seen.item, new, leader_guards(seen.item, self._me, held.create_revision))

    async def swap(self, number: int, change: Callable[[ShardRecord], ShardRecord]) -> bool:
        """Change the record of a shard that this node leads. True: it is so. Raises OutcomeUnknown, Unavailable."""
        seen, held = self._view.shards[number], self.held
        if held is None or seen.record.leader != self._me:
            return False
        guards = leader_guards(seen.item, self._me, held.create_revision)
        return await self._swap(seen.item, change(seen.record), guards)

    async def _swap(self, item: Item, new: ShardRecord, guards: list[Any]) -> bool:
        """Compare and swap one record; the view learns the result. After an unknown outcome the record itself is asked."""
        number = int(item.key.partition("/")[2])
        value = new.encode()
        try:
            answer = await self._etcd.transact(guards, [Put(item.key, value)])
        except OutcomeUnknown:
            found = await self._etcd.get(item.key)
            if found is None:
                raise Unavailable(
                    f"{item.key} is gone from etcd", reason="ETCD_RECORD_LOST"
                ) from None
            self._view.took(number, found.item)
            if found.item.mod_revision == item.mod_revision:
                raise  # not done, but it may still be: nothing may rest on either
            return found.item.value == value
        match answer:
            case Done(revision):
                written = item._replace(
                    value=value, mod_revision=revision, version=item.version + 1
                )
                self._view.took(number, written)
                return True
            case Refused():
                found_item = answer.find(shard_key(number))
                if found_item is not None:
                    self._view.took(number, found_item)
                return False

    # --- events and time ---

    def event(self, number: int, event: Event) -> None:
        """What the shard's replica found out."""
        if isinstance(event, FenceFailed | Released) and self.stopped:
            self._last_word(number, released=isinstance(event, Released))
        elif isinstance(event, FenceFailed) and self._may_give_up(number, event.epoch):
            self._run(number, self._give_up(number, released=False))
        else:
            self.consider(number)

    def _may_give_up(self, number: int, epoch: int) -> bool:
        """A replica that takes a copy just now fails without ever having begun: told to lead again, it would fail again."""
        seen = self._view.shards.get(number)
        return seen is not None and seen.record.epoch == epoch and number not in self._busy

    def _last_word(self, number: int, *, released: bool) -> None:
        """While the node stops, records are not looked at any more, but what it leads is still given up."""
        if number in self._busy:
            self._loop.call_later(
                RELEASE_POLL_S, partial(self._last_word, number, released=released)
            )
        else:
            self._run(number, self._give_up(number, released=released))

    def watch_rights(self) -> None:
        """A leader that must not, or could not for a while, gives the shard up, so that another may try.

        Called a few times a second.
        """
        was_barred, self._was_barred = self._was_barred, self.barred()
        if was_barred and not self._was_barred:
            self.consider_all()
        now_ms = self._clock.monotonic_ms()
        for number, replica in self._host.replicas.items():
            if replica.leads and self._was_barred:
                self._step_down(number, "the wall clock is wrong")
            elif not replica.leads or self._host.may_act(number):
                self._lapsed_ms.pop(number, None)
            elif now_ms - self._lapsed_ms.setdefault(number, now_ms) > QUORUMLESS_MS:
                self._step_down(number, "no quorum of voters")

    def _step_down(self, number: int, why: str) -> None:
        if number not in self._busy:
            self._lapsed_ms.pop(number, None)
            self._host.replicas[number].step_down(why)
            self._host.poke(number)
            self._run(number, self._give_up(number, released=False))

    async def release_all(self, timeout_s: float) -> None:
        """Stop leading, in order, so that the next leaders wait for nothing; what takes too long is left as it is."""
        self.stopped = True
        for timer in self._standing.values():
            timer.cancel()
        until_s = self._loop.time() + timeout_s
        for number, replica in self._host.replicas.items():
            if replica.leads:
                replica.release()
                self._host.poke(number)
        while self._leads_any() and self._loop.time() < until_s:  # noqa: ASYNC110 - bounded, and at the very end
            await asyncio.sleep(RELEASE_POLL_S)

    def _leads_any(self) -> bool:
        return bool(self._busy) or any(
            seen.record.leader == self._me for seen in self._view.shards.values()
        )

    def session_held(self, held: Held) -> None:
        """This node is registered (anew)."""
        self.held = held
        self.consider_all()

    def session_lost(self) -> None:
        """It is not registered for now. What it leads it goes on leading, as long as the voters let it."""
        self.held = None


def leadership(record: ShardRecord) -> Leadership:
    """What a replica is told of a record."""
    return Leadership(
        epoch=record.epoch,
        leader=record.leader,
        voters=record.voters,
        learners=record.learners,
        config=record.config,
        released=record.released,
    )
