"""Floor 5. Handing a shard to another node while both live: nobody waits for a time-out, nothing is sent twice.

    pause      nothing more is fired, nothing new is taken; calls that come wait for a moment
    land       what is in flight ends, its outcomes are logged and committed
    release    the last entry is committed, the record says `released`; the next leader waits for nothing
    (back)     if something stays in flight too long: go on leading, try again later

Why a shard is handed over: an operator wished for it, this node is draining, or another voter should lead it and has been
well for a while. Two at a time at most.

Must never import: the doors.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.view import View
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.placement import preference
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot

log = get_logger(__name__)

LOOK_S: Final = 0.1
AT_A_TIME: Final = 2
LAND_S: Final = 0.15
"""How long a shard stands still, at most, while what is in flight lands."""

POLL_S: Final = 0.002
AGAIN_MS: Final = 1_000
AGAIN_MS_MAX: Final = 300_000
AGAIN_FACTOR: Final = 4
"""A shard that comes back, because the other one did not take it or lost it, is offered again ever more seldom."""

RELEASE_S: Final = 2.0
SETTLED_MS: Final = 30_000
"""A node is given shards back only when it has been there for so long: one that comes and goes gets none."""

BEHIND_MAX: Final = 1_000
"""Entries that the next leader may lack when it begins."""


class HandOver:
    """Watches the shards that this node leads, and hands over those that another should lead."""

    def __init__(
        self, me: NodeId, view: View, host: Host, runner: Runner, now_ms: Callable[[], int]
    ) -> None:
        self._me = me
        self._view = view
        self._host = host
        self._runner = runner
        self._now_ms = now_ms
        self._since_ms: dict[NodeId, tuple[int, int]] = {}
        self._under_way: set[int] = set()
        self._tried_ms: dict[int, int] = {}
        self._pause_ms: dict[int, int] = {}
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stop.is_set():
            self._look()
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """Hand nothing over any more."""
        self._stop.set()

    def _look(self) -> None:
        now_ms = self._now_ms()
        self._observe(now_ms)
        for number in list(self._runner.slots):
            if len(self._under_way) >= AT_A_TIME:
                return
            if number in self._under_way or self._waits(number, now_ms):
                continue
            target = self._target(number, now_ms)
            if target:
                self._under_way.add(number)
                self._runner.spawn(self._hand_over(number, target))

    def _waits(self, number: int, now_ms: int) -> bool:
        """True when the shard was tried a moment ago; of one's own accord, when it came back lately."""
        urgent = number in self._view.moves or not self._view.may_lead(self._me)
        pause_ms = AGAIN_MS if urgent else self._pause_ms.get(number, 0)
        return now_ms - self._tried_ms.get(number, -AGAIN_MS) < pause_ms

    def _observe(self, now_ms: int) -> None:
        """Since when each node is there, in its present life."""
        nodes = self._view.nodes
        self._since_ms = {
            node: known
            if (known := self._since_ms.get(node)) is not None and known[0] == seen.session
            else (seen.session, now_ms)
            for node, seen in nodes.items()
        }
        for number in list(self._pause_ms):
            if now_ms - self._tried_ms[number] > 2 * AGAIN_MS_MAX:
                del self._pause_ms[number]

    # --- who should lead ---

    def _target(self, number: int, now_ms: int) -> NodeId:
        """Who should lead the shard instead of this node, and can; "" for nobody."""
        seen = self._view.shards.get(number)
        if seen is None or seen.record.leader != self._me:
            return ""
        wish = self._view.moves.get(number, "")
        if wish:
            may = wish != self._me and wish in seen.record.voters
            return wish if may and self._is_ready(number, wish) else ""
        candidates = [node for node in self._order(number) if self._may_have(node, now_ms)]
        for node in candidates:
            if node == self._me and self._view.may_lead(self._me):
                return ""
            if node != self._me and self._is_ready(number, node):
                return node
        return ""

    def _order(self, number: int) -> list[NodeId]:
        voters = self._view.shards[number].record.voters
        return preference(number, self._view.sites(voters.__contains__))

    def _may_have(self, node: NodeId, now_ms: int) -> bool:
        if node == self._me:
            return True
        settled = now_ms - self._since_ms[node][1] >= SETTLED_MS
        return self._view.may_lead(node) and (settled or not self._view.may_lead(self._me))

    def _is_ready(self, number: int, node: NodeId) -> bool:
        """True if it lacks next to nothing of the log."""
        replica = self._host.replicas[number]
        matches = replica.matches()
        return node in self._view.nodes and matches.get(node, 0) >= replica.commit - BEHIND_MAX

    # --- one hand-over ---

    async def _hand_over(self, number: int, target: NodeId) -> None:
        slot = self._runner.slots.get(number)
        try:
            if slot is not None:
                await self._stand_still(number, slot, target)
        finally:
            self._under_way.discard(number)
            self._tried_ms[number] = self._now_ms()
            pause_ms = self._pause_ms.get(number, AGAIN_MS // AGAIN_FACTOR)
            self._pause_ms[number] = min(pause_ms * AGAIN_FACTOR, AGAIN_MS_MAX)

    async def _stand_still(self, number: int, slot: Slot, target: NodeId) -> None:
        epoch, replica = slot.shard.epoch, self._host.replicas[number]
        self._runner.pause(slot)
        if await self._lands(slot) and slot.leads(epoch) and replica.accepts:
            log.info("handing over", extra={"shard": number, "epoch": epoch, "to": target})
            replica.release()
            self._host.poke(number)
            await self._until(lambda: not slot.leads(epoch), RELEASE_S)
        if slot.leads(epoch) and replica.accepts:
            self._runner.resume(
                slot
            )  # otherwise nothing could be written: it waits for its end, which is near

    async def _lands(self, slot: Slot) -> bool:
        """Wait, but not long, until nothing is in flight or on its way to the log."""
        return await self._until(
            lambda: not slot.shard.flights and not slot.busy and not slot.leading, LAND_S
        )

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while not holds():
            if loop.time() > until_s:
                return False
            await asyncio.sleep(POLL_S)
        return True
