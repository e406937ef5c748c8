"""Floor 3. Heartbeats between nodes: one a pair every 250 ms, for all shards; the lease, suspicion and clocks live by them.

    every BEAT_S   Rights.beat ──► Beat to every registered node
    a Beat         Holds.beat  ──► BeatAcked: for L from now no fence against what it speaks of
    a BeatAcked    Rights.acked: the right to act reaches L behind the moment of sending
    silence        a majority does not hear a node for 1.2 s ──► its lease in etcd is revoked, once
    wall clocks    ours is more than 1 s from the majority's ──► this node leads nothing until it is right again

Must never import: gRPC, protobuf, `runner`, `store`, the doors.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.cluster.ports import Etcd
from tickwheel.server.cluster.tasks import Tasks
from tickwheel.server.cluster.view import View
from tickwheel.server.errors import TickwheelError
from tickwheel.server.lease import WALL_ODD_MS_MAX, Clocks, Holds, Rights, Suspicions
from tickwheel.server.logs import get_logger
from tickwheel.server.message import Beat, BeatAcked, Message, NodeId
from tickwheel.server.ports import Clock

log = get_logger(__name__)

BEAT_S: Final = 0.25
SOON_S: Final = 0.005
"""Several leaderships begin together."""


class Beats:
    """The heart of one node."""

    def __init__(  # noqa: PLR0913 - what beats and what lives by it
        self, me: NodeId, view: View, holds: Holds, rights: Rights, *, clock: Clock, etcd: Etcd,
        tasks: Tasks,
    ) -> None:  # fmt: skip
        self.clocks = Clocks()
        self.wall_off_ms = 0
        """How far the majority's wall clock is ahead of ours."""
        self.wall_wrong = False
        """True while this node must not lead."""
        self._wall_odd = False
        self._me = me
        self._view = view
        self._holds = holds
        self._rights = rights
        self._clock = clock
        self._etcd = etcd
        self._tasks = tasks
        self._suspicions = Suspicions(me)
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._watch: Callable[[], None]
        self._peers: Peers

    def start(self, peers: Peers, watch: Callable[[], None]) -> None:
        """Begin to beat; `watch` is called with each beat."""
        self._peers, self._watch = peers, watch
        self._beat()

    def stop(self) -> None:
        """Fall silent."""
        if self._timer is not None:
            self._timer.cancel()

    def soon(self) -> None:
        """A leadership began, and its right begins with the acks of a beat that speaks of it: do not wait for the next."""
        if not self._soon and self._timer is not None:
            self._soon = True
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(SOON_S, self._beat)

    def _beat(self) -> None:
        self._soon = False
        now_ms = self._clock.monotonic_ms()
        lives = ((node, seen.session) for node, seen in self._view.nodes.items())
        self._suspicions.registered(lives, now_ms)
        unheard = self._suspicions.unheard(now_ms)
        beat = self._rights.beat(now_ms, self._clock.now_ms(), unheard)
        for node in self._view.nodes:
            if node != self._me:
                self._peers.send(node, [beat])
        for node in self._suspicions.due(now_ms):
            self._tasks.spawn(self._revoke(node))
        self._look_at_wall(now_ms)
        self._watch()
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _look_at_wall(self, now_ms: int) -> None:
        """Compare wall clocks; what changes is said once."""
        was_wrong, was_odd = self.wall_wrong, self._wall_odd
        self.wall_off_ms = off_ms = self.clocks.off_ms(now_ms)
        self.wall_wrong = self.clocks.wrong(now_ms)
        self._wall_odd = abs(off_ms) > WALL_ODD_MS_MAX
        extra = {"majority_ahead_ms": off_ms}
        if self.wall_wrong and not was_wrong:
            log.error("the wall clock is not the majority's: this node leads nothing", extra=extra)
        elif was_wrong and not self.wall_wrong:
            log.info("the wall clock is right again", extra=extra)
        elif self._wall_odd and not was_odd:
            log.warning("the wall clock differs from the majority's", extra=extra)

    async def _revoke(self, node: NodeId) -> None:
        """A hint that comes true: its session ends now rather than when its lease does. Safe, for no right rests on it."""
        seen = self._view.nodes.get(node)
        if seen is None:
            return
        log.warning("nobody hears a node: its session is revoked", extra={"node": node})
        try:
            await self._etcd.revoke(seen.lease)
        except TickwheelError as error:
            log.warning("revoking failed: %s", error)

    def receive(self, sender: NodeId, messages: Sequence[Message]) -> list[Message]:
        """Take the beats and acks out of what arrived; what is left is for the replicas."""
        rest: list[Message] = []
        for message in messages:
            match message:
                case Beat():
                    now_ms = self._clock.monotonic_ms()
                    self._suspicions.heard(sender, message, now_ms)
                    self.clocks.heard(sender, message, self._clock.now_ms(), now_ms)
                    self._peers.send(sender, [self._holds.beat(message, now_ms)])
                case BeatAcked():
                    self.clocks.acked(sender, message, self._clock.monotonic_ms())
                    self._rights.acked(sender, message)
                case _:
                    rest.append(message)
        return rest
