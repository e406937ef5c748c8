"""What the real threads do to the order of things, without threads: work takes time, and others run meanwhile.

    submit ──► (the journal's write) ──► reply        `delayed`: a loop whose call_soon comes later
    read, flush, query ──► run ──► answer             `SlowStore`: each kind in its order, the kinds beside each other

A read may see the store before a flush and be answered after it: that is the race that the table's `thaws` is for.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from tests.sim.loop import VirtualLoop

from tickwheel.server.store.threads import attempt, settle

T = TypeVar("T")
Delay = Callable[[], float]


class SlowLoop:
    """What `InlineWal` asks of a loop; a write comes `delay` seconds after it was asked for."""

    def __init__(self, loop: VirtualLoop, delay: Delay) -> None:
        self._loop = loop
        self._delay = delay

    def create_future(self) -> "asyncio.Future[Any]":
        """As the loop's."""
        return self._loop.create_future()

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> asyncio.Handle:
        """A write takes its time; everything else comes at once."""
        if arguments:
            return self._loop.call_soon(callback, *arguments)
        return self._loop.call_later(self._delay(), callback)


class _Lane:
    """One of the store's threads: work is begun and answered in the order in which it came."""

    def __init__(self, loop: VirtualLoop, delay: Delay) -> None:
        self._loop = loop
        self._delay = delay
        self._free_s = 0.0

    def submit(self, work: Callable[[], T]) -> Awaitable[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        begin_s = max(self._loop.now_s, self._free_s) + self._delay()
        self._free_s = begin_s + self._delay()
        self._loop.call_at(begin_s, self._run, work, future, self._free_s)
        return future

    def _run(self, work: Callable[[], T], future: "asyncio.Future[T]", end_s: float) -> None:
        result, error = attempt(work)
        self._loop.call_at(end_s, settle, cast("asyncio.Future[object]", future), result, error)


class SlowStore:
    """Implements `StorePort`."""

    def __init__(self, loop: VirtualLoop, delay: Delay) -> None:
        self._reads, self._flushes, self._queries = (_Lane(loop, delay) for _ in range(3))

    def read(self, work: Callable[[], T]) -> Awaitable[T]:
        """See `StorePort`."""
        return self._reads.submit(work)

    def flush(self, work: Callable[[], T]) -> Awaitable[T]:
        """See `StorePort`."""
        return self._flushes.submit(work)

    def query(self, work: Callable[[], T]) -> Awaitable[T]:
        """See `StorePort`."""
        return self._queries.submit(work)
