"""Floor 3. The port to the journal: submit records, get a future that is done when they are durable.

    loop ──submit──► queue (bounded in bytes) ──► writer thread: take what waits, one write, one fdatasync
      ▲                                                │
      └──────── one call_soon_threadsafe a group ◄─────┘      keeper thread: makes the reserve, deletes old segments

`WalThread` is that; `InlineWal` is its twin without threads for simulations: the same order, the same errors, and what
is submitted in one turn of the loop gathers into one batch as well.

After the first error of the disk nothing is acknowledged any more and `on_fatal` is called once, on the loop.

Must never import: `store`, `shard`, `runner`, the doors.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from tickwheel.server.errors import Fatal, ResourceExhausted, TickwheelError, WalFailed
from tickwheel.server.journal import Counters, Journal
from tickwheel.server.record import Record

SPACE_CHECK_SECONDS = 1.0
"""How often the keeper thread looks how full the disk is."""

RETRY_AFTER_MS = 100

OnFatal = Callable[[TickwheelError], None]


class Wal(Protocol):
    """What the runner knows of the journal. All calls are made on the event loop."""

    @property
    def space_low(self) -> bool:
        """True while creates have to be refused."""
        ...

    @property
    def record_bytes_max(self) -> int:
        """The longest payload that a record may have."""
        ...

    @property
    def counters(self) -> Counters:
        """For metrics; read only."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """What waits for the disk."""
        ...

    def submit(self, records: Sequence[Record]) -> "asyncio.Future[None]":
        """Queue records. The future is done when they are durable; if it fails, nobody knows whether they are.

        Raises ResourceExhausted (nothing was queued) and WalFailed.
        """
        ...

    async def truncate_through(self, durable: Mapping[int, int]) -> list[str]:
        """Delete the old segments whose every entry is durable in the stores; answers their names."""
        ...

    async def close(self) -> None:
        """Make what was submitted durable, answer it, and give the files back."""
        ...


class Submission(NamedTuple):
    """Records that wait, with who waits for them."""

    records: Sequence[Record]
    size: int
    future: "asyncio.Future[None]"


class Queue:
    """What waits for the disk, bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_held = 0
        self._bytes_max = bytes_max
        self._waiting: deque[Submission] = deque()  # bounded: by bytes_max

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, submission: Submission) -> None:
        """Raises ResourceExhausted when full; one submission is taken whatever its size if nothing else waits."""
        if self._waiting and self.bytes_held + submission.size > self._bytes_max:
            raise ResourceExhausted(
                "the journal's queue is full: the disk is slower than what comes in",
                reason="WAL_QUEUE_FULL",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self._waiting.append(submission)
        self.bytes_held += submission.size

    def take(self, bytes_max: int) -> list[Submission]:
        """The oldest submissions that fit one batch; at least one if any waits."""
        taken: list[Submission] = []
        size = 0
        while self._waiting and (not taken or size + self._waiting[0].size <= bytes_max):
            taken.append(self._waiting.popleft())
            size += taken[-1].size
        self.bytes_held -= size
        return taken

    def take_all(self) -> list[Submission]:
        """Everything."""
        taken = list(self._waiting)
        self._waiting.clear()
        self.bytes_held = 0
        return taken


def _gather(group: list[Submission]) -> Sequence[Record]:
    if len(group) == 1:
        return group[0].records
    return [record for submission in group for record in submission.records]


def _resolve(group: list[Submission], error: TickwheelError | None) -> None:
    for submission in group:
        if submission.future.done():
            continue  # whoever waited has gone
        if error is None:
            submission.future.set_result(None)
        else:
            submission.future.set_exception(error)


def _as_fatal(error: Exception) -> Fatal:
    """What an error in a thread means to the node: the journal can't be trusted to go on."""
    if isinstance(error, Fatal):
        return error
    failed = WalFailed(f"the journal's thread failed: {error!r}")
    failed.__cause__ = error
    return failed


# --- with threads ----------------------------------------------------------------------------


class WalThread:
    """The journal behind one writer thread, and one that keeps the reserve ready. The journal needs a lock."""

    def __init__(
        self, journal: Journal, loop: asyncio.AbstractEventLoop, on_fatal: OnFatal
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._on_fatal = on_fatal
        self._queue = Queue(journal.options.queue_bytes_max)
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._failed: Fatal | None = None
        self._closing = False
        self._keeper = _Keeper(journal, loop, self._fail)
        self._writer = threading.Thread(target=self._write, name="wal-writer", daemon=True)
        self._writer.start()

    @property
    def space_low(self) -> bool:
        """True while creates have to be refused."""
        return self._journal.space_low

    @property
    def record_bytes_max(self) -> int:
        """The longest payload that a record may have."""
        return self._journal.options.record_bytes_max

    @property
    def counters(self) -> Counters:
        """For metrics; read only."""
        return self._journal.counters

    @property
    def waiting_bytes(self) -> int:
        """What waits for the disk."""
        return self._queue.bytes_held

    def submit(self, records: Sequence[Record]) -> "asyncio.Future[None]":
        """Queue records; the future is done when they are durable."""
        future: asyncio.Future[None] = self._loop.create_future()
        submission = Submission(records, self._journal.check(records), future)
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._closing:
                raise WalFailed("the journal is closed")
            if not self._queue:
                self._ready.notify()
            self._queue.put(submission)
        return future

    async def truncate_through(self, durable: Mapping[int, int]) -> list[str]:
        """Delete old segments, in the keeper's thread."""
        return await self._keeper.truncate_through(durable)

    async def close(self) -> None:
        """Make what was submitted durable, then stop the threads."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        await self._loop.run_in_executor(None, self._join)
        self._journal.close()

    def _join(self) -> None:
        self._writer.join()
        self._keeper.stop()

    def _write(self) -> None:
        """The writer thread."""
        batch_limit = self._journal.options.batch_limit
        while group := self._take(batch_limit):
            try:
                self._journal.append(_gather(group))
            except Exception as error:  # noqa: BLE001 - a writer that dies must not leave its callers waiting
                self._fail(_as_fatal(error), group)
                return
            self._loop.call_soon_threadsafe(_resolve, group, None)
            if not self._journal.reserve_ready:
                self._keeper.wake()

    def _take(self, bytes_max: int) -> list[Submission]:
        """Wait for work; nothing when closed and drained, or failed."""
        with self._ready:
            while not self._queue and not self._closing:
                self._ready.wait()
            return self._queue.take(bytes_max)

    def _fail(self, error: Fatal, group: Sequence[Submission] = ()) -> None:
        """Refuse everything from now on. From either thread; the first one speaks."""
        with self._ready:
            first = self._failed is None
            self._failed = self._failed or error
            failed = self._failed
            stranded = [*group, *self._queue.take_all()]
        self._loop.call_soon_threadsafe(_resolve, stranded, failed)
        if first:
            self._loop.call_soon_threadsafe(self._on_fatal, failed)


class _Job(NamedTuple):
    """A truncation to be done, and who waits for it."""

    durable: Mapping[int, int]
    future: "asyncio.Future[list[str]]"


class _Keeper:
    """The thread beside the writer: the reserve, the space, the old segments."""

    def __init__(
        self, journal: Journal, loop: asyncio.AbstractEventLoop, fail: Callable[[Fatal], None]
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._fail = fail
        self._jobs: list[_Job] = []
        self._ready = threading.Condition()
        self._woken = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="wal-keeper", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """The reserve was taken: make the next."""
        with self._ready:
            self._woken = True
            self._ready.notify()

    def stop(self) -> None:
        """End the thread; a truncation that still waits is answered with nothing done."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        self._thread.join()

    async def truncate_through(self, durable: Mapping[int, int]) -> list[str]:
        """Have the thread delete old segments."""
        job = _Job(dict(durable), self._loop.create_future())
        with self._ready:
            if self._stopping:
                return []
            self._jobs.append(job)
            self._ready.notify()
        return await job.future

    def _run(self) -> None:
        """The keeper thread."""
        failed = self._work()
        while failed is None and self._wait():
            failed = self._work()
        with self._ready:
            self._stopping = True
            left = list(self._jobs)
        nothing: list[str] = []
        for job in left:
            self._loop.call_soon_threadsafe(_answer, job.future, nothing)
        if failed is not None:
            self._fail(failed)

    def _wait(self) -> bool:
        """Until there is work, or it is time to look at the disk; False when stopped."""
        with self._ready:
            if not (self._jobs or self._woken or self._stopping):
                self._ready.wait(SPACE_CHECK_SECONDS)
            self._woken = False
            return not self._stopping

    def _work(self) -> Fatal | None:
        try:
            self._journal.prepare_next()
            while self._jobs:
                gone = self._journal.truncate_through(self._jobs[0].durable)
                self._loop.call_soon_threadsafe(_answer, self._jobs.pop(0).future, gone)
        except Exception as error:  # noqa: BLE001 - a thread that dies must not do so in silence
            return _as_fatal(error)
        return None


def _answer(future: "asyncio.Future[list[str]]", gone: list[str]) -> None:
    if not future.done():
        future.set_result(gone)


# --- without threads -------------------------------------------------------------------------


class InlineWal:
    """The twin: appends in a callback of the loop, so that one turn's submissions gather and runs repeat exactly."""

    def __init__(
        self, journal: Journal, loop: asyncio.AbstractEventLoop, on_fatal: OnFatal
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._on_fatal = on_fatal
        self._queue = Queue(journal.options.queue_bytes_max)
        self._failed: Fatal | None = None
        self._scheduled = False
        self._guard(journal.prepare_next)

    @property
    def space_low(self) -> bool:
        """True while creates have to be refused."""
        return self._journal.space_low

    @property
    def record_bytes_max(self) -> int:
        """The longest payload that a record may have."""
        return self._journal.options.record_bytes_max

    @property
    def counters(self) -> Counters:
        """For metrics; read only."""
        return self._journal.counters

    @property
    def waiting_bytes(self) -> int:
        """What waits for the disk."""
        return self._queue.bytes_held

    def submit(self, records: Sequence[Record]) -> "asyncio.Future[None]":
        """Queue records; the future is done when they are durable."""
        size = self._journal.check(records)
        if self._failed is not None:
            raise self._failed
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put(Submission(records, size, future))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._write)
        return future

    def _write(self) -> None:
        """One group; what is left or comes meanwhile has the next turn."""
        group = self._queue.take(self._journal.options.batch_limit)
        self._scheduled = False
        if not group:
            return
        self._guard(lambda: self._journal.append(_gather(group)))
        _resolve(group, self._failed)
        if self._queue:
            self._scheduled = True
            self._loop.call_soon(self._write)
        if self._failed is None and not self._journal.reserve_ready:
            self._guard(self._journal.prepare_next)

    def _guard(self, work: Callable[[], object]) -> None:
        """Do work of the journal; its first failure strands all that waits."""
        try:
            work()
        except Fatal as error:
            if self._failed is None:
                self._failed = error
                self._loop.call_soon(self._on_fatal, error)
            _resolve(self._queue.take_all(), self._failed)

    async def truncate_through(self, durable: Mapping[int, int]) -> list[str]:
        """Look at the space, delete old segments."""
        gone: list[str] = []
        if self._failed is None:
            self._guard(self._journal.prepare_next)
            self._guard(lambda: gone.extend(self._journal.truncate_through(durable)))
        return gone

    async def close(self) -> None:
        """Write what waits, give the files back."""
        while self._queue:
            self._write()
        self._failed = self._failed or WalFailed("the journal is closed")
        self._journal.close()
