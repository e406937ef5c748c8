"""Floor 3. A watch that goes on: over lost connections, other members, restarts of etcd, and compaction.

    list ─► Reset ─► stream from the next revision ─► Batch, Batch, ...
      ▲                 ▲          │
      │                 ╰── lost ──┤ broken, silent, no leader: the next member, from the revision after the last event
      ╰───── compacted ────────────╯ also: another cluster, or one set back to a backup

Only events move the revision that a stream begins at: what etcd says of its progress can be ahead of events that are
still to come (before 3.4.25 and 3.5.8), so it only proves that somebody is there. Nothing is read ahead: a slow consumer
slows the stream, and etcd keeps what waits.

Must never import: other rooms of floor 3.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from tickwheel.etcd import rpc_service_pb2 as rpc
from tickwheel.server.cluster.etcd_link import EtcdOptions, Member, NotConnected, metadata
from tickwheel.server.cluster.etcd_wire import Keys, Verdict, judge, refusal
from tickwheel.server.cluster.ports import Batch, Event, Listing, Reset
from tickwheel.server.errors import DeadlineExceeded, PermissionDenied, Unavailable
from tickwheel.server.logs import get_logger

log = get_logger(__name__)

EVENTS_MAX: Final = 100_000
"""Of one batch. More are not collected: the listing is shorter."""

_WATCH_ID: Final = 1
_PAUSE_MIN_S: Final = 0.05
_PAUSE_MAX_S: Final = 1.0
_STALE_MAX: Final = 2
_BROKEN: Final = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError)


class StreamLost(Exception):
    """The stream is of no use any more; another goes on where it was."""


class HistoryLost(Exception):
    """What came between is not to be had: list anew."""


class _Denied(Exception):
    """Etcd doesn't let us watch; the token may be old."""


class Client(Protocol):
    """What a watch needs of the client that it belongs to."""

    options: EtcdOptions
    keys: Keys
    closed: bool

    @property
    def member(self) -> Member:
        """Who is asked now."""
        ...

    def leave(self, member: Member) -> None:
        """Ask the next one from now on."""
        ...

    async def token(self, member: Member) -> str:
        """Return a token, empty if none is needed. Raises NotConnected, AioRpcError."""
        ...

    def forget_token(self) -> None:
        """Log in again before the next call."""
        ...

    async def list(self, prefix: str) -> Listing:
        """See `ports.Etcd`."""
        ...


async def follow(
    client: Client, prefix: str, from_revision: int
) -> AsyncGenerator[Batch | Reset, None]:
    """See `ports.Etcd.watch`."""
    follower = _Follower(client, prefix, from_revision)
    while True:
        if follower.revision == 0:
            yield Reset(await follower.list_patiently())
        try:
            async with contextlib.aclosing(follower.stream()) as batches:
                async for batch in batches:
                    yield batch
        except HistoryLost as error:
            log.warning("watch begins anew: %s", error, extra={"prefix": prefix})
            follower.revision = 0
        except StreamLost as error:
            await follower.pause(str(error))


class _Follower:
    """Where a watch is. `revision` is the next one to be told of; 0: list first."""

    def __init__(self, client: Client, prefix: str, revision: int) -> None:
        self.revision = revision
        self._client = client
        self._prefix = prefix
        self._cluster = 0
        self._pause_s = _PAUSE_MIN_S
        self._denied = 0

    async def pause(self, reason: str) -> None:
        """Wait longer each time that nothing came of it; say it the first time."""
        level = logging.INFO if self._pause_s == _PAUSE_MIN_S else logging.DEBUG
        log.log(level, "watch lost: %s", reason, extra={"prefix": self._prefix})
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, _PAUSE_MAX_S)

    async def list_patiently(self) -> Listing:
        """What is there now, as soon as etcd says it."""
        while True:
            try:
                listing = await self._client.list(self._prefix)
            except (Unavailable, DeadlineExceeded) as error:
                if self._client.closed:
                    raise
                await self.pause(error.message)
            else:
                self.revision = listing.revision + 1
                return listing

    async def stream(self) -> AsyncGenerator[Batch, None]:
        """One stream at one member, to its end. Raises StreamLost, HistoryLost, and what `follow` may raise."""
        member = self._client.member
        try:
            call = await self._open(member)
            reader = _Reader(call, self._client.options)
            try:
                await self._greeted(await reader.next())
                while True:
                    events = await self._collect(reader)
                    self.revision = events[-1].revision + 1
                    yield Batch(tuple(events), events[-1].revision)
            finally:
                await reader.close()
        except _BROKEN as error:
            self._client.leave(member)
            raise self._lost(error) from error
        except StreamLost:
            self._client.leave(member)
            raise
        except _Denied as error:
            raise self._lost_by_denial(str(error)) from error

    async def _open(self, member: Member) -> Any:
        client = self._client
        if client.closed:
            raise Unavailable("the client of etcd is closed", reason="ETCD_CLOSED")
        try:
            await member.connect(client.options.connect_timeout_ms / 1_000)
            token = await client.token(member)
        except NotConnected as error:
            raise StreamLost(f"{member.address} can't be reached") from error
        call = member.watch.Watch(metadata=metadata(token))
        create = rpc.WatchCreateRequest(
            key=client.keys.full(self._prefix),
            range_end=client.keys.end(self._prefix),
            start_revision=self.revision,
            progress_notify=True,
            watch_id=_WATCH_ID,
            fragment=True,
        )
        await call.write(rpc.WatchRequest(create_request=create))
        return call

    async def _greeted(self, response: rpc.WatchResponse) -> None:
        """The first answer says whether this is still the store that the revision is of."""
        _refuse(response)
        self._pause_s = _PAUSE_MIN_S
        self._denied = 0
        cluster = response.header.cluster_id
        if self._cluster not in (0, cluster):
            self._cluster = cluster
            raise HistoryLost("another cluster answers")
        self._cluster = cluster
        if response.header.revision < self.revision - 1:
            try:
                listing = await self._client.list(self._prefix)
            except Unavailable as error:
                raise StreamLost(error.message) from error
            if listing.revision < self.revision - 1:
                raise HistoryLost("etcd was set back to an earlier revision")

    async def _collect(self, reader: "_Reader") -> list[Event]:
        """Return the events of one answer, however many pieces it comes in."""
        events: list[Event] = []
        while True:
            response = await reader.next()
            _refuse(response)
            events += self._client.keys.events(response.events)
            if len(events) > EVENTS_MAX:
                raise HistoryLost(f"more than {EVENTS_MAX} events at once")
            if events and not response.fragment:
                return events

    def _lost(self, error: Exception) -> Exception:
        """What a broken stream means: mostly that another is needed."""
        if self._client.closed:
            return Unavailable("the client of etcd is closed", reason="ETCD_CLOSED")
        if isinstance(error, grpc.aio.AioRpcError):
            details = error.details() or ""
            verdict = judge(error.code(), details)
            if verdict == Verdict.STALE:
                return self._lost_by_denial(details)
            if verdict == Verdict.REFUSED:
                return refusal(error.code(), details)
            return StreamLost(f"{error.code().name}: {details}")
        return StreamLost(str(error))

    def _lost_by_denial(self, reason: str) -> Exception:
        """An old token looks like a lack of rights: believe it when a new one does not help."""
        self._denied += 1
        if self._denied >= _STALE_MAX:
            return PermissionDenied(f"etcd: {reason}", reason="ETCD_PERMISSION_DENIED")
        self._client.forget_token()
        return StreamLost(reason)


def _refuse(response: rpc.WatchResponse) -> None:
    """Raise what an answer says against the watch."""
    if response.compact_revision:
        raise HistoryLost(f"compacted up to {response.compact_revision}")
    if response.canceled:
        reason = response.cancel_reason
        if not reason or "permission denied" in reason or "auth token" in reason:
            raise _Denied(reason or "watch refused")
        raise StreamLost(reason)


class _Reader:
    """Reads a stream, and asks whether somebody is there when it is silent."""

    def __init__(self, call: Any, options: EtcdOptions) -> None:
        self._call = call
        self._probe_s = options.watch_probe_ms / 1_000
        self._patience_s = (options.watch_silence_ms - options.watch_probe_ms) / 1_000
        self._probing: asyncio.Future[None] | None = None

    async def next(self) -> rpc.WatchResponse:
        """Return the next answer. Raises StreamLost when none comes though asked for."""
        reading = asyncio.ensure_future(self._call.read())
        try:
            if not await _wait(reading, self._probe_s):
                self._probe()
                if not await _wait(reading, self._patience_s):
                    raise StreamLost("silent")
            response = await reading
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise StreamLost("the connection was closed") from None
        finally:
            await _drop(reading)
        if response is grpc.aio.EOF:
            raise StreamLost("ended")
        assert isinstance(response, rpc.WatchResponse), "the stub knows its messages"
        return response

    async def close(self) -> None:
        """End the stream."""
        self._call.cancel()
        if self._probing is not None:
            await _drop(self._probing)

    def _probe(self) -> None:
        """Ask, unless the last question is still on its way: to cancel a write would cancel the stream."""
        if self._probing is None or self._probing.done():
            progress = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())
            self._probing = asyncio.ensure_future(_quietly(self._call.write(progress)))


async def _quietly(writing: Awaitable[None]) -> None:
    """What is wrong with a stream is told to who reads it."""
    with contextlib.suppress(*_BROKEN):
        await writing


async def _wait(task: "asyncio.Future[Any]", timeout_s: float) -> bool:
    done, _ = await asyncio.wait({task}, timeout=timeout_s)
    return bool(done)


async def _drop(task: "asyncio.Future[Any]") -> None:
    """Await a task that nobody needs any more; whatever it says was said elsewhere."""
    if not task.done():
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError, *_BROKEN):
        await task
