"""One way to the servers: several addresses, one of them in use; deadlines, repeats, fail-over.

    call ──► ready? ──no──► next address (nothing was sent) ──► pause ──┐
               │yes                                                     │
               ▼                                                        │
             send ──► UNAVAILABLE, or RESOURCE_EXHAUSTED with RetryInfo ┘ until the deadline
               │
               ▼ any other end: the answer, or its error

What may be repeated: a call that was never sent; one that a Tickwheel server refused with UNAVAILABLE or
RESOURCE_EXHAUSTED, for then it did nothing; and one that broke on the way, if the method is `repeatable`, which is so
for reads and for what carries a request_id. The pause doubles from 50 ms to 2 s, drawn evenly between half and all of
it; a server's RetryInfo is its floor. When no time is left for the pause, the last error is raised: it says more than
"deadline exceeded".
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
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
from tickwheel.v1.job_service_pb2_grpc import JobServiceStub

if TYPE_CHECKING:
    from tickwheel.v1.job_service_pb2_grpc import JobServiceAsyncStub

PORT: Final = 7070
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
CONNECT_TIMEOUT_S: Final = 3.0
BACKOFF_S: Final = 0.05
BACKOFF_S_MAX: Final = 2.0
ADDRESSES_MAX: Final = 64
_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_READY: Final = grpc.ChannelConnectivity.READY
_BROKEN: Final = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
_CHANCE: Final = random.SystemRandom()

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
    """The channels to all addresses, made when first needed; all calls go to the one that is in use.

    Used on one event loop only. `metadata` goes with every call.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._addresses = tuple(addresses)
        self._credentials = credentials
        self._metadata = tuple(metadata)
        self._open: dict[int, tuple[grpc.aio.Channel, JobServiceAsyncStub]] = {}
        self._used = 0
        self._closed = False

    async def call(
        self,
        pick: "Callable[[JobServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]]",
        request: Request,
        *,
        timeout_s: float,
        repeatable: bool = True,
    ) -> Answer:
        """Send until there is an answer, an error that a repeat does not mend, or no time left."""
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_s
        failures = 0
        while True:
            index = self._used
            if self._closed:
                raise _closed()
            try:
                stub = await self._ready(index, deadline)
                return await pick(stub)(
                    request, timeout=max(deadline - now(), 0.001), metadata=self._metadata
                )
            except grpc.aio.AioRpcError as broken:
                error = from_call(broken)
                self._judge(index, error)
                if not may_repeat(error, repeatable=repeatable):
                    raise error from None
            except Unavailable as unreachable:  # nothing was sent
                self._judge(index, unreachable)
                error = unreachable
            failures += 1
            pause_s = self.pause_s(error, failures)
            if now() + pause_s >= deadline:
                raise error from None
            await asyncio.sleep(pause_s)

    async def follow(
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
            index = self._used
            try:
                async with aclosing(
                    self._stream(index, pick, request, deadline, silence_s)
                ) as answers:
                    async for answer in answers:
                        failures = 0
                        yield answer
                raise Unavailable("the server ended the stream", reason="STREAM_ENDED")
            except TickwheelError as broken:
                error = broken
            self._judge(index, error)
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
        index: int,
        pick: "Callable[[JobServiceAsyncStub], grpc.aio.UnaryStreamMultiCallable[Request, Answer]]",
        request: Request,
        deadline: float,
        silence_s: float,
    ) -> AsyncGenerator[Answer]:
        """One stream to one address. Raises TickwheelError."""
        if self._closed:
            raise _closed()
        stub = await self._ready(index, deadline)
        call = pick(stub)(request, metadata=self._metadata)
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
            if not self._closed or task is None or task.cancelling():
                raise
            raise _closed() from None  # gRPC cancels what it reads when a channel is closed
        finally:
            call.cancel()

    async def _ready(self, index: int, deadline: float) -> "JobServiceAsyncStub":
        """Connect if need be; Unavailable if that fails, or takes too long. `deadline` is in the loop's time."""
        channel, stub = self._open.get(index) or self._connect(index)
        if channel.get_state() is _READY:
            return stub
        limit = asyncio.get_running_loop().time() + CONNECT_TIMEOUT_S
        try:
            async with asyncio.timeout_at(min(deadline, limit)):
                while (state := channel.get_state(try_to_connect=True)) is not _READY:
                    if state in _BROKEN:
                        raise self._unreachable(index)
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            raise self._unreachable(index) from None
        return stub

    def _unreachable(self, index: int) -> Unavailable:
        address = self._addresses[index]
        text = f"no server answers at {address}; is it running, and is this its gRPC port?"
        return Unavailable(text, reason="NOT_CONNECTED", metadata={"address": address})

    def _connect(self, index: int) -> "tuple[grpc.aio.Channel, JobServiceAsyncStub]":
        address = self._addresses[index]
        if self._credentials is None:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            channel = grpc.aio.secure_channel(address, self._credentials, options=_OPTIONS)
        self._open[index] = channel, JobServiceStub(channel)
        return self._open[index]

    def _judge(self, index: int, error: TickwheelError) -> None:
        """Leave an address that cannot be reached or is silent, unless another call did so before."""
        gone = isinstance(error, Unavailable | DeadlineExceeded)
        if gone and self._used == index:
            self._used = (index + 1) % len(self._addresses)

    def pause_s(self, error: TickwheelError, failures: int) -> float:
        """How long to wait after so many failures; not at all while there is an address that was not tried."""
        if not error.from_server and failures < len(self._addresses):
            return 0.0
        most = min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(failures - 1, 16))
        return (error.retry_after_s or 0.0) + _CHANCE.uniform(most / 2, most)

    async def close(self) -> None:
        """End all calls and connections."""
        self._closed = True
        for channel, _ in self._open.values():
            await channel.close()
        self._open.clear()


def _closed() -> Unavailable:
    return Unavailable("this client is closed", reason="CLIENT_CLOSED")


def may_repeat(error: TickwheelError, *, repeatable: bool) -> bool:
    """Whether sending the same request again is safe, and may help."""
    if isinstance(error, ResourceExhausted):
        return error.retry_after_s is not None
    return isinstance(error, Unavailable) and (repeatable or error.from_server)
