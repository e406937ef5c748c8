"""Floor 4. What happened to executions after a place in the log: asked by watches, answered from the feeds.

    asked {shard: 41, shard: None}, wait_ms        None: from now on, answered at once
    nothing new ──► wait for a feed to be told something, at most `wait_ms` ──► a moment more, so that changes travel together
    answered: executions in the order of each shard's log, and how far each shard was read

A look stops after `SLICE` executions to let others have the loop, and an answer ends at `ANSWER_BYTES_MAX`: the rest is
asked for next time. Shards that this node may not answer for are left out.

Must never import: the doors, `node`.
"""

import asyncio
from collections.abc import Mapping

from tickwheel.server import codec
from tickwheel.server.errors import Aborted
from tickwheel.server.feed import Change
from tickwheel.server.model import Execution, Ms
from tickwheel.server.query import ExecutionQuery, Read
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot

SLICE = 1_000
"""Executions looked at in one go: about 2 ms."""

DECODED = 100
"""Executions decoded in one go: less than 1 ms."""

ANSWER_BYTES_MAX = 128 << 10
"""Of executions as stored; those of one batch stay together. Small, for who goes on after a break begins at an answer."""

ANSWER_EXECUTIONS_MAX = 500
"""Of an answer; those of one batch stay together."""

GATHER_S = 0.02
"""How long the first change waits for others: a watch is woken 50 times a second at most, however much happens."""


class Pile:
    """What one question has brought together so far."""

    def __init__(self, query: ExecutionQuery, after: Mapping[int, int | None]) -> None:
        self.query = query
        self.at = dict(after)
        self.images: list[bytes] = []
        self.reads: dict[int, Read] = {}
        self.size_bytes = 0
        self.looked = 0

    @property
    def full(self) -> bool:
        """True when the rest has to be asked for again."""
        return self.size_bytes >= ANSWER_BYTES_MAX or len(self.images) >= ANSWER_EXECUTIONS_MAX

    def take(self, change: Change) -> None:
        """Take the executions of a change that were asked for."""
        self.looked += change.touched
        for data in change.images():
            _, state, _, scheduled_ms, _, _, namespace, job = codec.execution_columns(data)
            if self.query.holds(namespace, job, state, scheduled_ms):
                self.images.append(data)
                self.size_bytes += len(data)

    async def decoded(self) -> list[Execution]:
        """The executions, decoded a few at a time: what is due must not wait for them."""
        found: list[Execution] = []
        for data in self.images:
            found.append(codec.decode_execution(data))
            if not len(found) % DECODED:
                await asyncio.sleep(0)
        return found

    def read(self, shard: int, index: int, read_ms: Ms) -> None:
        """A shard was read up to there."""
        self.at[shard] = index
        self.reads[shard] = Read(shard, index, read_ms)


class Watch:
    """Answers for the shards that this node leads."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def changes(
        self, query: ExecutionQuery, after: Mapping[int, int | None], wait_ms: int
    ) -> tuple[list[Execution], list[Read]]:
        """See `command.Scheduler`. Raises Aborted."""
        until_s = asyncio.get_running_loop().time() + wait_ms / 1000
        news = asyncio.Event()
        pile = Pile(query, after)
        listeners = self._runner.feeds.listeners
        listeners.add(news.set)
        try:
            async with asyncio.timeout_at(until_s):
                while not await self._look_through(pile) and pile.reads:
                    await news.wait()
                    await asyncio.sleep(GATHER_S)
                    news.clear()
        except TimeoutError:
            pass
        finally:
            listeners.discard(news.set)
        return await pile.decoded(), list(pile.reads.values())

    async def _look_through(self, pile: Pile) -> bool:
        """Look until there is something, or nothing more to look at. True: that is an answer."""
        began = None in pile.at.values()
        while not self._look(pile):
            if pile.images:
                return True
            await asyncio.sleep(0)
        return began or bool(pile.images)

    def _look(self, pile: Pile) -> bool:
        """Look at every shard, in the order asked. False: stopped on the way."""
        pile.looked = 0
        slots = self._runner.slots
        for shard, index in list(pile.at.items()):
            slot = slots.get(shard)
            if slot is None or not self._runner.may_act(shard):
                continue
            if index is not None and not self._look_at(pile, slot, index):
                return False
            pile.read(shard, slot.applied, self._read_ms(slot))
        return True

    def _look_at(self, pile: Pile, slot: Slot, index: int) -> bool:
        number = slot.shard.number
        changes = slot.feed.since(index) if index <= slot.applied else None
        if changes is None:
            raise _expired(number)
        for change in changes:
            if pile.full or pile.looked >= SLICE:
                pile.read(number, index, change.time_ms - 1)
                return False
            pile.take(change)
            index = change.entry
        return True

    def _read_ms(self, slot: Slot) -> Ms:
        """The time up to which everything is applied: a batch under way is stamped with the shard's last time."""
        last_ms = slot.shard.last_ms
        return last_ms - 1 if slot.busy else max(last_ms, self._runner.clock.now_ms())


def _expired(shard: int) -> Aborted:
    return Aborted(
        "what happened since the resume token was given is not known in full any more; list the executions, then "
        "watch anew, without a token",
        reason="RESUME_TOKEN_EXPIRED",
        metadata={"shard": str(shard)},
    )
