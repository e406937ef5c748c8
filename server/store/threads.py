"""Floor 3. How the event loop reaches the stores: `read`, `flush` and `query` take a function and give a future.

    loop ── read(fn) ──► one thread of point reads      (find, jobs, live, due)
         ── flush(fn) ─► one thread of writing          (flush, checkpoint, expire, trim)
         ── query(fn) ─► one thread of lists            (lists, counts, sizes)
         ◄─ call_soon_threadsafe(result)

A function closes over the shards it wants; in its thread it owns their connections of that kind, so nothing is locked.
Each kind is done in the order it was asked for. What waits is bounded: beyond `waiting_max` the call is refused.

`InlineStore` is the twin for simulations: no threads, the function runs in the loop's next turn.

Must never import: other rooms of floor 3 or higher.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from threading import Thread
from typing import Final, Protocol, TypeVar, cast

from tickwheel.server.errors import ResourceExhausted, Unavailable
from tickwheel.server.store.sqlite import translate

T = TypeVar("T")

WAITING_MAX: Final = 1024
_RETRY_AFTER_MS: Final = 100


class StorePort(Protocol):
    """What the runner needs of the store's threads. A fatal SQLite error arrives as StoreFailed."""

    def read(self, work: Callable[[], T]) -> Awaitable[T]:
        """Point reads, on the connection for them."""
        ...

    def flush(self, work: Callable[[], T]) -> Awaitable[T]:
        """Flush, checkpoint, expire, trim, on the connection that writes."""
        ...

    def query(self, work: Callable[[], T]) -> Awaitable[T]:
        """Lists and counts, which may take long."""
        ...


class _Job:
    """A function on its way to a thread, and where its result goes."""

    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[], object], future: asyncio.Future[object]) -> None:
        self.work = work
        self.future = future


class _Worker:
    """One thread and its queue. `submit` and `close` belong to the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, waiting_max: int) -> None:
        self._loop = loop
        self._name = name
        self._waiting = 0
        self._waiting_max = waiting_max
        self._closed = False
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()  # bounded: by waiting_max
        # A daemon: when the process must go at once (a failed fsync), a long list does not hold it.
        self._thread = Thread(target=self._run, name=f"store-{name}", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[object] = self._loop.create_future()
        if self._closed:
            future.set_exception(Unavailable("the store is closed", reason="STORE_CLOSED"))
        elif self._waiting >= self._waiting_max:
            future.set_exception(
                ResourceExhausted(
                    f"{self._waiting} calls wait for the store ({self._name})",
                    reason="STORE_BUSY",
                    retry_after_ms=_RETRY_AFTER_MS,
                )
            )
        else:
            self._waiting += 1
            self._queue.put(_Job(work, future))
        return cast("asyncio.Future[T]", future)

    def close(self) -> Thread:
        """Let what waits be done, then end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        return self._thread

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            result, error = attempt(job.work)
            try:
                self._loop.call_soon_threadsafe(self._done, job.future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _done(
        self, future: asyncio.Future[object], result: object, error: BaseException | None
    ) -> None:
        self._waiting -= 1
        settle(future, result, error)


class StoreThreads:
    """The port over three threads. One for all shards of a node; made and closed in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, waiting_max: int = WAITING_MAX) -> None:
        assert waiting_max > 0, "something may wait"
        self._reads = _Worker(loop, "reads", waiting_max)
        self._flushes = _Worker(loop, "flushes", waiting_max)
        self._queries = _Worker(loop, "queries", waiting_max)

    def read(self, work: Callable[[], T]) -> Awaitable[T]:
        """See `StorePort`."""
        return self._reads.submit(work)

    def flush(self, work: Callable[[], T]) -> Awaitable[T]:
        """See `StorePort`."""
        return self._flushes.submit(work)

    def query(self, work: Callable[[], T]) -> Awaitable[T]:
        """See `StorePort`."""
        return self._queries.submit(work)

    async def close(self) -> None:
        """Do what waits, then end the threads. The stores themselves are closed by who opened them."""
        for thread in [worker.close() for worker in (self._reads, self._flushes, self._queries)]:
            await asyncio.to_thread(thread.join)


class InlineStore:
    """The port without threads: each function runs in the loop's next turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def read(self, work: Callable[[], T]) -> Awaitable[T]:
        """See `StorePort`."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._loop.call_soon(self._run, work, future)
        return future

    flush = read
    query = read

    async def close(self) -> None:
        """Nothing to end: what was asked for before runs before whoever waits for this."""

    @staticmethod
    def _run(work: Callable[[], T], future: "asyncio.Future[T]") -> None:
        result, error = attempt(work)
        settle(cast("asyncio.Future[object]", future), result, error)


def attempt(work: Callable[[], object]) -> tuple[object, BaseException | None]:
    """Run it; what it raises comes back as a value, SQLite's fatal errors as StoreFailed."""
    try:
        return work(), None
    except sqlite3.Error as error:
        fatal = translate(error)
        fatal.__cause__ = error if fatal is not error else error.__cause__
        return None, fatal
    except Exception as error:  # noqa: BLE001 - handed to whoever waits for it
        return None, error


def settle(future: asyncio.Future[object], result: object, error: BaseException | None) -> None:
    """Give the future its end, unless whoever waited has gone."""
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
