"""Servers that behave as badly as servers can, for the conformance suite of transports; and its few words.

`TRANSPORTS` lists the implementations; a new one earns its place by passing all of `test_transport*.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tickwheel.server.dispatch.guard import Guard
from tickwheel.server.dispatch.http import HttpTransport
from tickwheel.server.dispatch.transport import ErrorKind, Request, Transport, TransportError

TRANSPORTS: list[Callable[..., Transport]] = [HttpTransport]
LOOPBACK = Guard(allow=["127.0.0.0/8", "::1/128"])
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Answer = Callable[["Peer", bytes], Awaitable[None]]


class Peer:
    """One connection as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def request(self) -> bytes:
        """Head and body of the next request; empty at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return head + await self.reader.readexactly(int(line.partition(b":")[2]))
        return head


class Server:
    """Answers each request with `answer`, and keeps what it saw."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.closed = 0
        self.changed = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        return len(self.writers)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        self.writers.append(writer)
        try:
            await self.serve(Peer(reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self.closed += 1
            async with self.changed:
                self.changed.notify_all()

    async def serve(self, peer: Peer) -> None:
        while request := await peer.request():
            self.requests.append(request)
            await self.answer(peer, request)

    async def all_closed(self) -> None:
        """Wait until every connection has ended."""
        async with self.changed:
            await self.changed.wait_for(
                lambda: self.connections and self.closed == self.connections
            )

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in self.writers:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


class RawServer(Server):
    """Gives `answer` each connection as it is, before any request was read."""

    async def serve(self, peer: Peer) -> None:
        await self.answer(peer, b"")


@asynccontextmanager
async def serving(
    answer: Answer, make_server: type[Server] = Server, **options: Any
) -> AsyncGenerator[Server, None]:
    server = make_server(answer)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, **options)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await server.stop()


@asynccontextmanager
async def opened(make: Callable[..., Transport], **options: Any) -> AsyncGenerator[Transport, None]:
    transport = make(options.pop("guard", LOOPBACK), **options)
    try:
        yield transport
    finally:
        await transport.close()


def says(data: bytes, *, close: bool = False) -> Answer:
    async def answer(peer: Peer, _: bytes) -> None:
        await peer.say(data)
        if close:
            peer.writer.close()

    return answer


async def silent(peer: Peer, _: bytes) -> None:
    await peer.reader.read()


async def may() -> bool:
    return True


async def may_not() -> bool:
    return False


def get(url: str, **options: Any) -> Request:
    fields: dict[str, Any] = {
        "method": "GET",
        "headers": (),
        "body": b"",
        "timeout_ms": 5_000,
        **options,
    }
    return Request(url=url, **fields)


def run(scenario: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


async def failure(transport: Transport, request: Request) -> tuple[ErrorKind, bool]:
    with pytest.raises(TransportError) as caught:
        await transport.send(request, may)
    return caught.value.kind, caught.value.sent
