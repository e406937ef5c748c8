"""One way to the servers: several addresses, one of them in use; deadlines, repeats, fail-over.

    call ──► ready? ──no──► next address (nothing was sent) ──► pause ──┐
               │yes                                                     │
               ▼                                                        │
             send ──► UNAVAILABLE, or RESOURCE_EXHAUSTED with RetryInfo ┘ until the deadline
               │
               ▼ any other end: the answer, or its error

A call for one job tries its leader first, if `follow` knows one that is connected; whatever comes of that, a repeat goes
the way that is drawn above.

What may be repeated: a call that was never sent; one that a Tickwheel server refused with UNAVAILABLE or
RESOURCE_EXHAUSTED, for then it did nothing; and one that broke on the way, if the method is `repeatable`, which is so
for reads and for what carries a request_id. The pause doubles from 50 ms to 2 s, drawn evenly between half and all of
it; a server's RetryInfo is its floor. When no time is left for the pause, the last error is raised: it says more than
"deadline exceeded".
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TypeVar, cast

import grpc
import grpc.aio

from tickwheel.client.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    TickwheelError,
    Unavailable,
    from_call,
)
from tickwheel.client.follow import Follower
from tickwheel.client.link import CHANCE, CONNECT_TIMEOUT_S, Link

if TYPE_CHECKING:
    from tickwheel.v1.job_service_pb2_grpc import JobServiceAsyncStub

PORT: Final = 7070
BACKOFF_S: Final = 0.05
BACKOFF_S_MAX: Final = 2.0
ADDRESSES_MAX: Final = 64
CLOSE_GRACE_S: Final = 600.0
"""What a call may still take on a connection that is not needed any more."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def addresses_of(servers: str | Sequence[str]) -> tuple[str, ...]:
    """Read `host:port` or `host`, several parted by commas or in a list. InvalidArgument for none, or too many."""
    parts = servers.split(",") if isinstance(servers, str) else servers
    found = tuple(_with_port(part.strip()) for part in parts if part.strip())
    if not 0 < len(found) <= ADDRESSES_MAX:
        raise InvalidArgument(
            f"give 1 to {ADDRESSES_MAX} addresses as host:port, for example 127.0.0.1:{PORT}",
            reason="INVALID_ADDRESS",
        )
    return found


def _with_port(address: str) -> str:
    """Add the port that Tickwheel has by default, unless there is one or the address has a scheme of gRPC's."""
    if "://" in address or address.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
        return address.removeprefix("grpc://")
    host, _, port = address.rpartition(":")
    if ":" in host and not host.startswith("["):  # an IPv6 address, and nothing beside it
        return f"[{address}]:{PORT}"
    return address if host and port.isdecimal() else f"{address}:{PORT}"


class Links:
    """The connections to all addresses, made when first needed; calls go to the one that is in use, or to a job's leader.

    Used on one event loop only. `metadata` goes with every call.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        follow: bool = False,
    ) -> None:
        self._addresses = tuple(addresses)
        self._credentials = credentials
        self._metadata = tuple(metadata)
        self._open: dict[str, Link] = {}
        self._used = self._addresses[0]
        self._closed = False
        self._retired: dict[asyncio.Task[None], Link] = {}
        self._follower = Follower(self, self._metadata) if follow else None

    async def call(
        self,
        pick: "Callable[[JobServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]]",
        request: Request,
        *,
        timeout_s: float,
        repeatable: bool = True,
        leader: str = "",
        count: int = 1,
    ) -> Answer:
        """Send until there is an answer, an error that a repeat does not mend, or no time left.

        `leader` is asked first, if it can be asked at once. `count` is how many calls it is worth to know the leaders.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_s
        failures = 0
        self._called(count)
        while True:
            if self._closed:
                raise _closed()
            link = self._leader(leader) or self.link(self._used)
            leader, is_detour = "", link.address != self._used
            try:
                await link.connect(min(CONNECT_TIMEOUT_S, max(deadline - now(), 0.001)))
                return await pick(link.jobs)(
                    request, timeout=max(deadline - now(), 0.001), metadata=self._metadata
                )
            except grpc.aio.AioRpcError as broken:
                error = from_call(broken)
                self._judge(link.address, error)
                if not may_repeat(error, repeatable=repeatable):
                    raise error from None
            except (Unavailable, grpc.aio.UsageError) as unsent:
                error = unsent if isinstance(unsent, Unavailable) else link.unreachable()
                self._judge(link.address, error)
            failures += not is_detour
            pause_s = self.pause_s(error, failures)
            if now() + pause_s >= deadline:
                raise error from None
            await asyncio.sleep(pause_s)

    async def watch(
        self,
        pick: "Callable[[JobServiceAsyncStub], grpc.aio.UnaryStreamMultiCallable[Request, Answer]]",
        request: Request,
        *,
        patience_s: float,
        silence_s: float,
    ) -> AsyncGenerator[Answer]:
        """The messages of a stream that never ends; whoever reads writes into `request` where to go on.

        A stream that breaks, or says nothing for `silence_s`, is asked for again, until for `patience_s` no message came.
        """
        now = asyncio.get_running_loop().time
        deadline, failures = now() + patience_s, 0
        while True:
            address = self._used
            try:
                async with aclosing(self._stream(address, pick, request, silence_s)) as answers:
                    async for answer in answers:
                        failures = 0
                        yield answer
                raise Unavailable("the server ended the stream", reason="STREAM_ENDED")
            except TickwheelError as broken:
                error = broken
            self._judge(address, error)
            if self._closed or not may_repeat(error, repeatable=True):
                raise error
            if not failures:
                deadline = now() + patience_s
            failures += 1
            pause_s = self.pause_s(error, failures)
            if now() + pause_s >= deadline:
                raise error
            await asyncio.sleep(pause_s)

    async def _stream(
        self,
        address: str,
        pick: "Callable[[JobServiceAsyncStub], grpc.aio.UnaryStreamMultiCallable[Request, Answer]]",
        request: Request,
        silence_s: float,
    ) -> AsyncGenerator[Answer]:
        """One stream to one address. Raises TickwheelError."""
        if self._closed:
            raise _closed()
        link = self.link(address)
        await link.connect(CONNECT_TIMEOUT_S)
        try:
            call = pick(link.jobs)(request, metadata=self._metadata)
        except grpc.aio.UsageError:
            raise link.unreachable() from None
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                yield cast("Answer", answer)
        except grpc.aio.AioRpcError as broken:
            raise from_call(broken) from None
        except TimeoutError:
            raise Unavailable(f"nothing was heard for {silence_s} s", reason="SILENT") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: gRPC does so with what it reads when the channel is closed under it.
            raise self._cut(link) from None
        finally:
            call.cancel()

    def _cut(self, link: Link) -> Unavailable:
        """The error of a stream whose channel was closed: with the client, or because it is not needed any more."""
        return _closed() if self._closed else link.unreachable()

    # --- who leads ---

    @property
    def follows(self) -> bool:
        """True once there is a map of leaders."""
        return self._follower is not None and self._follower.map is not None

    def leader_of(self, key: str) -> str:
        """The address of the leader of a job's shard, if it can be asked at once; otherwise ""."""
        return self._follower.leader_of(key) if self._follower is not None else ""

    def _called(self, count: int) -> None:
        if self._follower is not None and not self._closed:
            self._follower.called(count)

    def _leader(self, address: str) -> Link | None:
        if not address or self._follower is None:
            return None
        return self._follower.link(address)

    # --- connections ---

    def link(self, address: str) -> Link:
        """The connection to an address, made now if there is none."""
        link = self._open.get(address)
        if link is None:
            link = self._open[address] = Link(address, self._credentials)
        return link

    def keep(self, addresses: Collection[str]) -> None:
        """Of leaders' connections only those are needed from now on; what is under way on others may end."""
        needed = {*addresses, *self._addresses, self._used}
        for address in [address for address in self._open if address not in needed]:
            link = self._open.pop(address)
            closing = asyncio.get_running_loop().create_task(link.channel.close(CLOSE_GRACE_S))
            self._retired[closing] = link
            closing.add_done_callback(lambda task: self._retired.pop(task, None))

    @property
    def around(self) -> tuple[str, ...]:
        """Every address that stands in for one that is gone, the one in use first."""
        known = self._addresses
        if self._follower is not None:
            known = tuple(dict.fromkeys((*known, *self._follower.usable)))
        at = known.index(self._used) if self._used in known else 0
        return (*known[at:], *known[:at])

    def _judge(self, address: str, error: TickwheelError) -> None:
        """Leave an address that cannot be reached or is silent, unless another call did so before."""
        gone = isinstance(error, Unavailable | DeadlineExceeded)
        if gone and self._follower is not None:
            self._follower.failed(address, error)
        if gone and self._used == address:
            around = self.around
            self._used = around[1 % len(around)] if around[0] == address else around[0]

    def pause_s(self, error: TickwheelError, failures: int) -> float:
        """How long to wait after so many failures; not at all while there is an address that was not tried."""
        if not error.from_server and failures < len(self._addresses):
            return 0.0
        most = min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(max(failures - 1, 0), 16))
        return (error.retry_after_s or 0.0) + CHANCE.uniform(most / 2, most)

    async def close(self) -> None:
        """End all calls and connections."""
        self._closed = True
        if self._follower is not None:
            await self._follower.stop()
        links = [*self._open.values(), *self._retired.values()]
        retired = list(self._retired)
        for closing in retired:
            closing.cancel()
        await asyncio.gather(*retired, return_exceptions=True)
        for link in links:
            await link.channel.close()
        self._open.clear()


def _closed() -> Unavailable:
    return Unavailable("this client is closed", reason="CLIENT_CLOSED")


def may_repeat(error: TickwheelError, *, repeatable: bool) -> bool:
    """Whether sending the same request again is safe, and may help."""
    if isinstance(error, ResourceExhausted):
        return error.retry_after_s is not None
    return isinstance(error, Unavailable) and (repeatable or error.from_server)
