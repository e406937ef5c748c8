"""What every transport must do, against real servers on loopback that behave as badly as servers can.

`TRANSPORTS` lists the implementations; a new one earns its place by passing all of this.
"""

import asyncio
import shutil
import ssl
import subprocess
from asyncio import selector_events
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from tickwheel.server.dispatch.guard import Guard
from tickwheel.server.dispatch.http import HttpTransport
from tickwheel.server.dispatch.transport import (
    BODY_READ_BYTES_MAX,
    ErrorKind,
    Request,
    Response,
    Transport,
    TransportError,
    Withdrawn,
)

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


pytestmark = pytest.mark.parametrize("make", TRANSPORTS)

# --- what is sent ----------------------------------------------------------------------------


def test_the_request_arrives_as_it_was_given(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make) as transport:
            request = get(
                f"{server.url}/a%2Fb/../c?x=1&y=%20",
                method="POST",
                headers=(("X-One", "1"), ("x-one", "2"), ("webhook-id", "i")),
                body=b"\x00body",
            )
            response = await transport.send(request, may)
            assert (response.status, response.body, response.truncated) == (200, b"ok", False)
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            assert lines[0] == "POST /a%2Fb/../c?x=1&y=%20 HTTP/1.1"
            assert sorted(lines[1:]) == sorted(
                [
                    f"Host: 127.0.0.1:{server.port}",
                    "X-One: 1",
                    "x-one: 2",
                    "webhook-id: i",
                    "Content-Length: 5",
                ]
            )
            assert body == b"\x00body"

    run(scenario())


@pytest.mark.parametrize(("method", "length"), [("GET", False), ("POST", True), ("DELETE", None)])
def test_an_empty_body(make: Callable[..., Transport], method: str, length: bool | None) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make) as transport:
            await transport.send(get(server.url, method=method), may)
            sent = b"content-length: 0" in server.requests[0].lower()
            assert length is None or sent is length

    run(scenario())


def test_head_has_no_body_to_wait_for(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        answer = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        async with serving(answer) as server, opened(make) as transport:
            response = await transport.send(get(server.url, method="HEAD"), may)
            assert (response.status, response.body) == (200, b"")

    run(scenario())


def test_a_large_body_is_answered_before_it_is_read(make: Callable[..., Transport]) -> None:
    async def answer(peer: Peer, _: bytes) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await peer.reader.read()

    async def scenario() -> None:
        async with serving(answer, RawServer) as server, opened(make) as transport:
            request = get(server.url, method="POST", body=b"x" * 262_144)
            assert (await transport.send(request, may)).status == 413

    run(scenario())


# --- the gate --------------------------------------------------------------------------------


def test_a_closed_gate_sends_nothing(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make) as transport:
            with pytest.raises(Withdrawn):
                await transport.send(get(server.url, method="POST", body=b"x"), may_not)
            await server.all_closed()
            assert server.requests == []
            assert server.connections == 1, "the gate is asked after connecting, not before"

    run(scenario())


@pytest.mark.parametrize("body", [b"", b"body"])
def test_nothing_runs_between_gate_and_write(make: Callable[..., Transport], body: bytes) -> None:
    """A callback that the gate schedules runs only after the bytes went to the socket."""

    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make) as transport:
            loop = asyncio.get_running_loop()
            seen: list[int] = []

            async def gate() -> bool:
                await asyncio.sleep(0)
                loop.call_soon(seen.append, -1)
                return True

            with pytest.MonkeyPatch.context() as patch:
                _spy(patch, seen)
                await transport.send(get(server.url, method="POST", body=body), gate)
            assert seen == [len(server.requests[0]), -1], "one write, before anything else ran"

    run(scenario())


def _spy(patch: pytest.MonkeyPatch, seen: list[int]) -> None:
    """Record the sizes of the requests that the loop's transports write."""
    write = selector_events._SelectorSocketTransport.write  # type: ignore[attr-defined]

    def spy(self: Any, data: bytes) -> None:
        if data.startswith(b"POST"):
            seen.append(len(data))
        write(self, data)

    patch.setattr(selector_events._SelectorSocketTransport, "write", spy)  # type: ignore[attr-defined]


def test_a_connection_that_dies_while_the_gate_waits(make: Callable[..., Transport]) -> None:
    """Nothing is sent, and it says so."""

    async def scenario() -> None:
        async def abort(peer: Peer, _: bytes) -> None:
            peer.writer.transport.abort()

        async with serving(abort, RawServer) as server, opened(make) as transport:

            async def gate() -> bool:
                await server.all_closed()
                await asyncio.sleep(0.05)  # the reset travels through the kernel to our end
                return True

            with pytest.raises(TransportError) as caught:
                await transport.send(get(server.url), gate)
            assert (caught.value.kind, caught.value.sent) == (ErrorKind.RESET, False)

    run(scenario())


# --- connections -----------------------------------------------------------------------------


def test_connections_are_kept_and_used_again(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make) as transport:
            for _ in range(5):
                await transport.send(get(server.url), may)
            assert (server.connections, len(server.requests)) == (1, 5)

    run(scenario())


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
def test_a_dead_pooled_connection_is_never_sent_on_again(
    make: Callable[..., Transport], method: str
) -> None:
    """The server reads the second request of a connection and closes it: the client must not repeat it by itself."""

    async def scenario() -> None:
        async def answer(peer: Peer, _: bytes) -> None:
            if len(server.requests) == 2:
                peer.writer.transport.abort()
            else:
                await peer.say(OK)

        async with serving(answer) as server, opened(make) as transport:
            await transport.send(get(server.url, method=method), may)
            assert await failure(transport, get(server.url, method=method)) == (
                ErrorKind.RESET,
                True,
            )
            await server.all_closed()
            assert (server.connections, len(server.requests)) == (1, 2)

    run(scenario())


def test_with_too_many_sockets_connections_are_not_kept(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make, sockets_max=0) as transport:
            await transport.send(get(server.url), may)
            await transport.send(get(server.url), may)
            await transport.send(get(server.url), may)
            assert server.connections >= 2

    run(scenario())


def test_no_cookie_is_kept(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        answer = says(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
        async with serving(answer) as server, opened(make) as transport:
            await transport.send(get(server.url), may)
            await transport.send(get(server.url), may)
            assert b"cookie" not in server.requests[1].lower()

    run(scenario())


def test_no_proxy_of_the_environment_is_used(
    make: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make) as transport:
            assert (await transport.send(get(server.url), may)).status == 200

    run(scenario())


# --- answers ---------------------------------------------------------------------------------

BIG = BODY_READ_BYTES_MAX + 1


@pytest.mark.parametrize(
    ("data", "close", "expected"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, (204, b"", False)),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", False, (304, b"", False)),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", True, (200, b"until the end", False)),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n",
            False,
            (200, b"abcde", False),
        ),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, False, (200, b"ok", False)),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08",
            False,
            (200, b"\x1f\x8b\x08", False),
        ),
        (
            b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % (BIG - 1) + b"x" * (BIG - 1),
            False,
            (500, b"x" * (BIG - 1), False),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG + b"x" * BIG,
            False,
            (200, b"x" * (BIG - 1), True),
        ),
        (
            b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
            True,
            (101, b"", False),
        ),
    ],
)
def test_answers(
    make: Callable[..., Transport], data: bytes, close: bool, expected: tuple[int, bytes, bool]
) -> None:
    async def scenario() -> None:
        async with serving(says(data, close=close)) as server, opened(make) as transport:
            response = await transport.send(get(server.url), may)
            assert (response.status, response.body, response.truncated) == expected

    run(scenario())


def test_headers_are_found_by_lower_case_names(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        answer = says(b"HTTP/1.1 503 No\r\nRetry-AFTER: 7\r\nContent-Length: 0\r\n\r\n")
        async with serving(answer) as server, opened(make) as transport:
            response = await transport.send(get(server.url), may)
            assert response.headers["retry-after"] == "7"
            assert "tickwheel-retry" not in response.headers

    run(scenario())


@pytest.mark.parametrize("chunked", [True, False])
def test_an_endless_body_is_cut_and_dropped(make: Callable[..., Transport], chunked: bool) -> None:
    async def endless(peer: Peer, _: bytes) -> None:
        await peer.say(b"HTTP/1.1 200 OK\r\n")
        await peer.say(b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        piece = b"1000\r\n" + b"x" * 4096 + b"\r\n" if chunked else b"x" * 4096
        while True:
            await peer.say(piece)

    async def scenario() -> None:
        async with serving(endless) as server, opened(make) as transport:
            response = await transport.send(get(server.url), may)
            assert response == Response(
                200, response.headers, b"x" * BODY_READ_BYTES_MAX, truncated=True
            )
            await server.all_closed()

    run(scenario())


@pytest.mark.parametrize(
    "data",
    [
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header line\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(2_000)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_malformed_answers_are_errors(make: Callable[..., Transport], data: bytes) -> None:
    async def scenario() -> None:
        async with serving(says(data, close=True)) as server, opened(make) as transport:
            kind, sent = await failure(transport, get(server.url))
            assert kind in {ErrorKind.PROTOCOL, ErrorKind.RESET}
            assert sent

    run(scenario())


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (b"", {ErrorKind.RESET}),
        (b"HTTP/1.1 200 OK\r\nContent-Le", {ErrorKind.RESET, ErrorKind.PROTOCOL}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", {ErrorKind.PROTOCOL}),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            {ErrorKind.PROTOCOL},
        ),
    ],
)
def test_an_answer_that_ends_early(
    make: Callable[..., Transport], data: bytes, kinds: set[ErrorKind]
) -> None:
    async def scenario() -> None:
        async with serving(says(data, close=True)) as server, opened(make) as transport:
            kind, sent = await failure(transport, get(server.url))
            assert kind in kinds
            assert sent

    run(scenario())


# --- time-outs -------------------------------------------------------------------------------


async def _drip_headers(peer: Peer, _: bytes) -> None:
    await peer.say(b"HTTP/1.1 200 OK\r\n")
    while True:
        await peer.say(b"X: 1\r\n")
        await asyncio.sleep(0.05)


async def _drip_body(peer: Peer, _: bytes) -> None:
    await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        await peer.say(b"x")
        await asyncio.sleep(0.05)


async def _endless_hints(peer: Peer, _: bytes) -> None:
    while True:
        await peer.say(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("answer", [silent, _drip_headers, _drip_body, _endless_hints])
def test_slow_answers_end_with_the_time_out(make: Callable[..., Transport], answer: Answer) -> None:
    async def scenario() -> None:
        async with serving(answer) as server, opened(make) as transport:
            loop = asyncio.get_running_loop()
            begin = loop.time()
            assert await failure(transport, get(server.url, timeout_ms=300)) == (
                ErrorKind.TIMEOUT,
                True,
            )
            assert 0.29 < loop.time() - begin < 3
            await server.all_closed()

    run(scenario())


def test_the_time_out_covers_the_gate(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async def never() -> bool:
            await asyncio.Event().wait()
            return True

        async with serving(says(OK)) as server, opened(make) as transport:
            with pytest.raises(TransportError) as caught:
                await transport.send(get(server.url, timeout_ms=200), never)
            assert (caught.value.kind, caught.value.sent) == (ErrorKind.TIMEOUT, False)
            assert server.requests == []

    run(scenario())


def test_nobody_listens(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server:
            pass
        async with opened(make) as transport:
            assert await failure(transport, get(server.url)) == (ErrorKind.CONNECT, False)

    run(scenario())


# --- the guard -------------------------------------------------------------------------------


class Names(AbstractResolver):
    """A resolver that gives one answer after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        if not self.answers:
            raise OSError("no such name")
        return [
            ResolveResult(hostname=host, host=ip, port=port, family=family, proto=0, flags=0)
            for ip in self.answers.pop(0)
        ]

    async def close(self) -> None: ...


ONE = Guard(allow=["127.0.0.1/32"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_the_guard_stands_at_the_socket(make: Callable[..., Transport], host: str) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make, guard=Guard()) as transport:
            url = f"http://{host}:{server.port}"
            assert await failure(transport, get(url)) == (ErrorKind.BLOCKED, False)
            assert server.connections == 0

    run(scenario())


def test_a_name_that_resolves_anew_gains_nothing(make: Callable[..., Transport]) -> None:
    """DNS rebinding: first an allowed address, then a denied one."""

    async def scenario() -> None:
        answer = says(LAST, close=True)
        names = Names(["127.0.0.1"], ["127.0.0.2"], ["169.254.169.254"])
        async with (
            serving(answer) as server,
            opened(make, guard=ONE, resolver=names, dns_cache_s=0) as transport,
        ):
            url = f"http://rebind.example:{server.port}"
            assert (await transport.send(get(url), may)).status == 200
            await server.all_closed()
            assert await failure(transport, get(url)) == (ErrorKind.BLOCKED, False)
            assert await failure(transport, get(url)) == (ErrorKind.BLOCKED, False)
            assert await failure(transport, get(url)) == (ErrorKind.DNS, False)
            assert server.connections == 1

    run(scenario())


def test_of_several_addresses_only_the_allowed_are_tried(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        names = Names(["10.0.0.1", "127.0.0.1"], ["10.0.0.1", "10.0.0.2"])
        options = {"guard": ONE, "resolver": names, "dns_cache_s": 0}
        async with serving(says(LAST, close=True)) as server, opened(make, **options) as transport:
            url = f"http://both.example:{server.port}"
            assert (await transport.send(get(url), may)).status == 200
            await server.all_closed()
            assert await failure(transport, get(url)) == (ErrorKind.BLOCKED, False)

    run(scenario())


def test_a_down_address_beside_a_denied_one_is_not_called_blocked(
    make: Callable[..., Transport],
) -> None:
    """Blocked ends the retries; a target that is merely down deserves them."""

    async def scenario() -> None:
        async with serving(says(OK)) as server:
            pass
        options = {"guard": ONE, "resolver": Names(["127.0.0.1", "10.0.0.1"])}
        async with opened(make, **options) as transport:
            url = f"http://both.example:{server.port}"
            assert await failure(transport, get(url)) == (ErrorKind.CONNECT, False)

    run(scenario())


# --- redirects -------------------------------------------------------------------------------


def redirects(status: int, location: str) -> Answer:
    async def answer(peer: Peer, request: bytes) -> None:
        if b" /end" in request.partition(b"\r\n")[0]:
            await peer.say(OK)
        else:
            line = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
            await peer.say(line.encode())

    return answer


def test_redirects_are_not_followed_unless_asked(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(redirects(302, "/end")) as server, opened(make) as transport:
            assert (await transport.send(get(server.url), may)).status == 302
            assert len(server.requests) == 1

    run(scenario())


def test_a_redirect_is_followed_when_asked(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(redirects(307, "/end")) as server, opened(make) as transport:
            request = get(
                server.url + "/x",
                method="POST",
                body=b"b",
                max_redirects=1,
                headers=(("Authorization", "secret"),),
            )
            assert (await transport.send(request, may)).status == 200
            assert server.requests[1].startswith(b"POST /end ")
            assert server.requests[1].endswith(b"\r\n\r\nb")
            assert b"secret" in server.requests[1]

    run(scenario())


def test_a_redirect_elsewhere_leaves_the_users_headers_behind(
    make: Callable[..., Transport],
) -> None:
    async def scenario() -> None:
        async with (
            serving(says(OK)) as other,
            serving(redirects(302, f"{other.url}/end")) as server,
            opened(make) as transport,
        ):
            headers = (("X-Key", "secret"), ("webhook-id", "i"), ("Content-Type", "a/b"))
            request = get(server.url, method="POST", body=b"b", max_redirects=3, headers=headers)
            assert (await transport.send(request, may)).status == 200
            assert other.requests[0].startswith(b"GET /end ")
            assert b"webhook-id: i" in other.requests[0]
            assert b"secret" not in other.requests[0]
            assert b"Content-" not in other.requests[0]

    run(scenario())


def test_redirects_in_a_circle_end(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(redirects(302, "/again")) as server, opened(make) as transport:
            request = get(server.url, max_redirects=3)
            assert await failure(transport, request) == (ErrorKind.TOO_MANY_REDIRECTS, True)
            assert len(server.requests) == 4

    run(scenario())


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/",
        "http://[fd00:ec2::254]/",
        "http://2130706433/",
        "http://user:pw@127.0.0.1/",
        "file:///etc/passwd",
        "http://[bad/",
    ],
)
def test_a_redirect_is_checked_as_the_first_url_was(
    make: Callable[..., Transport], location: str
) -> None:
    async def scenario() -> None:
        async with serving(redirects(302, location)) as server, opened(make) as transport:
            request = get(server.url, max_redirects=3)
            assert await failure(transport, request) == (ErrorKind.BLOCKED, True)

    run(scenario())


def test_a_redirect_to_a_denied_name_is_blocked_at_the_socket(
    make: Callable[..., Transport],
) -> None:
    async def scenario() -> None:
        names = Names(["127.0.0.2"])
        answer = redirects(302, "http://inner.example/end")
        options = {"guard": ONE, "resolver": names}
        async with serving(answer) as server, opened(make, **options) as transport:
            request = get(server.url, max_redirects=3)
            assert await failure(transport, request) == (ErrorKind.BLOCKED, True)

    run(scenario())


def test_a_gate_that_closes_after_the_first_request_ends_the_redirects(
    make: Callable[..., Transport],
) -> None:
    async def scenario() -> None:
        answers = iter([True, False])

        async def gate() -> bool:
            return next(answers)

        async with serving(redirects(302, "/end")) as server, opened(make) as transport:
            response = await transport.send(get(server.url, max_redirects=3), gate)
            assert response.status == 302
            assert len(server.requests) == 1

    run(scenario())


# --- TLS -------------------------------------------------------------------------------------

openssl = shutil.which("openssl")


def _make(directory: Path, *arguments: str) -> None:
    assert openssl is not None
    subprocess.run([openssl, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and certificates of it for localhost: a good one, an expired one."""
    if openssl is None:
        pytest.skip("makes its certificates with the openssl command, which is not here")
    directory = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _make(directory, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=CA",
          "-days", "2", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    (directory / "san").write_text("subjectAltName=DNS:localhost\n")
    _make(
        directory,
        "req",
        *key,
        "-keyout",
        "key.pem",
        "-out",
        "request.pem",
        "-subj",
        "/CN=localhost",
    )
    sign = (
        "x509",
        "-req",
        "-in",
        "request.pem",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-extfile",
        "san",
    )
    _make(directory, *sign, "-CAcreateserial", "-out", "good.pem", "-days", "2")
    _make(directory, *sign, "-CAcreateserial", "-out", "expired.pem", "-days", "-1")
    return directory


def _context(certificates: Path, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / name, certificates / "key.pem")
    return context


@pytest.mark.parametrize(
    ("certificate", "host", "trusted", "expected"),
    [
        ("good.pem", "localhost", True, None),
        ("good.pem", "127.0.0.1", True, (ErrorKind.TLS, False)),
        ("good.pem", "localhost", False, (ErrorKind.TLS, False)),
        ("expired.pem", "localhost", True, (ErrorKind.TLS, False)),
    ],
)
def test_certificates_are_verified(
    make: Callable[..., Transport],
    certificates: Path,
    certificate: str,
    host: str,
    trusted: bool,
    expected: tuple[ErrorKind, bool] | None,
) -> None:
    async def scenario() -> None:
        options: dict[str, Any] = {"ca_file": str(certificates / "ca.pem")} if trusted else {}
        context = _context(certificates, certificate)
        async with serving(says(OK), ssl=context) as server, opened(make, **options) as transport:
            request = get(f"https://{host}:{server.port}", method="POST", body=b"b")
            if expected is None:
                assert (await transport.send(request, may)).body == b"ok"
                assert (await transport.send(request, may)).body == b"ok"
                assert server.connections == 1
            else:
                assert await failure(transport, request) == expected

    run(scenario())


def test_tls_with_a_server_that_speaks_none(make: Callable[..., Transport]) -> None:
    async def answer(peer: Peer, _: bytes) -> None:
        await peer.reader.read(1)
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def scenario() -> None:
        async with serving(answer, RawServer) as server, opened(make) as transport:
            kind, sent = await failure(transport, get(f"https://127.0.0.1:{server.port}"))
            assert kind in {ErrorKind.TLS, ErrorKind.CONNECT}
            assert not sent

    run(scenario())


def test_a_redirect_out_of_tls_is_refused(
    make: Callable[..., Transport], certificates: Path
) -> None:
    async def scenario() -> None:
        context = _context(certificates, "good.pem")
        async with (
            serving(says(OK)) as plain,
            serving(redirects(302, f"{plain.url}/end"), ssl=context) as server,
            opened(make, ca_file=str(certificates / "ca.pem")) as transport,
        ):
            request = get(f"https://localhost:{server.port}", max_redirects=3)
            assert await failure(transport, request) == (ErrorKind.BLOCKED, True)
            assert plain.requests == []

    run(scenario())
