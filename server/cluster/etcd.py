"""Floor 3. etcd over gRPC, for the event loop: the port of `ports`, on stubs generated from etcd's API.

One member at a time is asked. A call that surely did nothing goes on to the next member, until its time is over; a read
goes on whatever happened. A write of which nothing is known is never repeated here: OutcomeUnknown says so.

    call ─► a slot ─► connected? ─► send ─► answer
              ▲           │ no         │ error ─► judge ─► NOT_DONE, or a read: the next member
              ╰───────────┴────────────┴─────────────────► REFUSED, or a write that is UNKNOWN: raise

Must never import: other rooms of floor 3.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import grpc.aio

from tickwheel.etcd import rpc_service_pb2 as rpc
from tickwheel.server.clock import Clock, SystemClock
from tickwheel.server.cluster import etcd_watch
from tickwheel.server.cluster.etcd_link import (
    EtcdOptions,
    Member,
    Metadata,
    NotConnected,
    Rotation,
    metadata,
)
from tickwheel.server.cluster.etcd_session import LeaseThread
from tickwheel.server.cluster.etcd_wire import (
    AUTH_OFF,
    COMPACTED,
    FUTURE,
    RECOMMENDED,
    Keys,
    Verdict,
    judge,
    outdated,
    refusal,
)
from tickwheel.server.cluster.ports import (
    Batch,
    Change,
    Compare,
    Done,
    Found,
    Item,
    Lease,
    Listing,
    OutcomeUnknown,
    Refused,
    Registration,
    Reset,
)
from tickwheel.server.errors import ResourceExhausted, TickwheelError, Unavailable
from tickwheel.server.logs import get_logger

log = get_logger(__name__)
T = TypeVar("T")

CALLS_MAX: Final = 64
PAGE_KEYS: Final = 256
LISTING_KEYS_MAX: Final = 100_000
LISTING_TRIES: Final = 3
_ROUND_PAUSE_S: Final = 0.05
_LEASE_ID_BITS: Final = 63


Send = Callable[[Member, float, Metadata], Awaitable[T]]


class EtcdClient:
    """Implements `ports.Etcd`. Made and used in one event loop. Raises OSError for TLS files that can't be read."""

    def __init__(self, options: EtcdOptions, clock: Clock | None = None) -> None:
        self.options = options
        self.keys = Keys(options.prefix)
        self.closed = False
        self._clock = clock or SystemClock()
        credentials = options.credentials()
        self._members = [Member(address, credentials) for address in options.addresses]
        self._rotation = Rotation(len(self._members), secrets.randbits(32))
        self._slots = asyncio.Semaphore(CALLS_MAX)
        self._token: str | None = None  # empty: etcd asks for none
        self._login = asyncio.Lock()
        self._greetings: set[asyncio.Task[None]] = set()

    # --- keys ---

    async def get(self, key: str) -> Found | None:
        """See `ports.Etcd`."""
        request = rpc.RangeRequest(key=self.keys.full(key))
        response = await self._read(lambda member: member.kv.Range, request)
        return next(
            (Found(self.keys.item(pair), response.header.revision) for pair in response.kvs), None
        )

    async def list(self, prefix: str) -> Listing:
        """See `ports.Etcd`. Raises ResourceExhausted beyond 100,000 keys."""
        for _ in range(LISTING_TRIES):
            listing = await self._list_once(prefix)
            if listing is not None:
                return listing
        raise Unavailable("etcd compacts faster than it can be listed", reason="ETCD_UNAVAILABLE")

    async def _list_once(self, prefix: str) -> Listing | None:
        """All pages as of the first one's revision; None if that was compacted, or another cluster answered."""
        request = rpc.RangeRequest(
            key=self.keys.full(prefix), range_end=self.keys.end(prefix), limit=PAGE_KEYS
        )
        items: list[Item] = []
        while len(items) <= LISTING_KEYS_MAX:
            try:
                response = await self._read(lambda member: member.kv.Range, request)
            except TickwheelError as error:
                if COMPACTED in error.message or FUTURE in error.message:
                    return None
                raise
            request.revision = request.revision or response.header.revision
            items += [self.keys.item(pair) for pair in response.kvs]
            if not response.more:
                return Listing(tuple(items), request.revision)
            request.key = response.kvs[-1].key + b"\0"
        raise ResourceExhausted(
            f"more than {LISTING_KEYS_MAX} keys below {prefix!r}", reason="ETCD_LISTING"
        )

    async def transact(self, compares: Sequence[Compare], then: Sequence[Change]) -> Done | Refused:
        """See `ports.Etcd`."""
        request = self.keys.transaction(compares, then)
        call = self._read if not then else self._write
        response: rpc.TxnResponse = await call(lambda member: member.kv.Txn, request)
        return self.keys.outcome(response)

    # --- leases ---

    async def grant(self, ttl_s: int) -> Lease:
        """See `ports.Etcd`."""
        request = rpc.LeaseGrantRequest(ttl=ttl_s)
        response = await self._write(lambda member: member.lease.LeaseGrant, request)
        return Lease(response.id, response.ttl)

    async def revoke(self, lease: int) -> bool:
        """See `ports.Etcd`."""
        request = rpc.LeaseRevokeRequest(id=lease)
        try:
            await self._write(lambda member: member.lease.LeaseRevoke, request)
        except TickwheelError as error:
            if error.reason == "ETCD_LEASE_GONE":
                return False
            raise
        return True

    def session(self, registration: Registration) -> LeaseThread:
        """See `ports.Etcd`."""
        thread = LeaseThread(
            self.options,
            registration,
            self._clock,
            asyncio.get_running_loop(),
            lambda: secrets.randbits(_LEASE_ID_BITS) | 1,
        )
        thread.start()
        return thread

    # --- watches ---

    async def watch(
        self, prefix: str, from_revision: int = 0
    ) -> AsyncGenerator[Batch | Reset, None]:
        """See `ports.Etcd`."""
        async for news in etcd_watch.follow(self, prefix, from_revision):
            yield news

    # --- calls ---

    async def close(self) -> None:
        """See `ports.Etcd`."""
        self.closed = True
        for task in self._greetings:
            task.cancel()
        for member in self._members:
            await member.close()

    @property
    def member(self) -> Member:
        """Who is asked now."""
        return self._members[self._rotation.index]

    def leave(self, member: Member) -> None:
        """Ask the next one from now on."""
        self._rotation.leave(self._members.index(member))

    async def _read(self, method: Callable[[Member], Any], request: Any) -> Any:
        try:
            return await self.call(partial(_unary, method, request), repeatable=True)
        except OutcomeUnknown as error:
            raise Unavailable(error.message, reason="ETCD_UNAVAILABLE") from error

    async def _write(self, method: Callable[[Member], Any], request: Any) -> Any:
        return await self.call(partial(_unary, method, request), repeatable=False)

    async def call(self, send: Send[T], *, repeatable: bool) -> T:
        """Send it to one member after the other, as far as that is safe, within the time that a call has."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.options.timeout_ms / 1_000
        try:
            async with asyncio.timeout_at(until_s):
                await self._slots.acquire()
        except TimeoutError:
            raise Unavailable("too many calls wait for etcd", reason="ETCD_BUSY") from None
        try:
            return await self._call(send, until_s, repeatable=repeatable)
        finally:
            self._slots.release()

    async def _call(self, send: Send[T], until_s: float, *, repeatable: bool) -> T:
        tries, renewals = 0, 0
        last = "no time was left"
        while (left_s := until_s - asyncio.get_running_loop().time()) > 0 and not self.closed:
            member = self.member
            try:
                return await self._send(send, member, left_s, repeatable=repeatable)
            except NotConnected:
                verdict, last = Verdict.NOT_DONE, f"{member.address} can't be reached"
            except grpc.aio.AioRpcError as error:
                verdict, last = judge(error.code(), error.details() or ""), _text(member, error)
                if verdict == Verdict.REFUSED or (verdict == Verdict.STALE and renewals > 1):
                    raise refusal(error.code(), error.details() or "") from error
            if verdict == Verdict.STALE:
                renewals += 1
                self.forget_token()
                continue
            self.leave(member)
            if verdict == Verdict.UNKNOWN and not repeatable:
                raise OutcomeUnknown(f"etcd: {last}")
            tries += 1
            if tries % len(self._members) == 0:
                await asyncio.sleep(min(_ROUND_PAUSE_S, left_s))
        if self.closed:
            raise Unavailable("the client of etcd is closed", reason="ETCD_CLOSED")
        raise Unavailable(f"etcd: {last}", reason="ETCD_UNAVAILABLE")

    async def _send(self, send: Send[T], member: Member, left_s: float, *, repeatable: bool) -> T:
        """One try. A read shares its time among the members, since one of them may be there and not answer."""
        begun_s = asyncio.get_running_loop().time()
        await member.connect(min(self.options.connect_timeout_ms / 1_000, left_s))
        token = await self.token(member)
        self._greet(member)
        left_s -= asyncio.get_running_loop().time() - begun_s
        share_s = self.options.timeout_ms / 1_000 / len(self._members)
        timeout_s = max(min(left_s, share_s) if repeatable else left_s, 0.001)
        try:
            return await send(member, timeout_s, metadata(token))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and task is not None and not task.cancelling():
                raise OutcomeUnknown("the client of etcd was closed meanwhile") from None
            raise

    # --- who we are, and who they are ---

    async def token(self, member: Member) -> str:
        """Return a token, empty if none is needed. Raises NotConnected, AioRpcError."""
        if not self.options.user:
            return ""
        async with self._login:
            if self._token is None:
                self._token = await self._authenticate(member)
            return self._token

    async def _authenticate(self, member: Member) -> str:
        request = rpc.AuthenticateRequest(name=self.options.user, password=self.options.password)
        timeout_s = self.options.connect_timeout_ms / 1_000
        try:
            response = await member.auth.Authenticate(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            if AUTH_OFF in details:
                log.warning("etcd asks for no user, though one is configured")
                return ""
            if judge(error.code(), details) == Verdict.REFUSED:
                raise
            raise NotConnected(member.address) from error
        return response.token

    def forget_token(self) -> None:
        """Log in again before the next call."""
        self._token = None

    def _greet(self, member: Member) -> None:
        """Ask once for the version, beside the calls."""
        if not member.greeted:
            member.greeted = True
            task = asyncio.create_task(self._ask_version(member))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    async def _ask_version(self, member: Member) -> None:
        try:
            response = await member.maintenance.Status(
                rpc.StatusRequest(),
                timeout=self.options.timeout_ms / 1_000,
                metadata=metadata(self._token or ""),
            )
        except grpc.aio.AioRpcError:
            member.greeted = False
            return
        fields = {"endpoint": member.address, "version": response.version}
        if outdated(response.version):
            log.warning(
                "etcd is older than %s: after a change of its leader it may end leases early, or keep dead ones",
                RECOMMENDED,
                extra=fields,
            )
        else:
            log.info("etcd connected", extra=fields)


async def _unary(
    method: Callable[[Member], Any], request: Any, member: Member, timeout_s: float, meta: Metadata
) -> Any:
    return await method(member)(request, timeout=timeout_s, metadata=meta)


def _text(member: Member, error: grpc.aio.AioRpcError) -> str:
    return f"{member.address}: {error.code().name}: {error.details()}"
