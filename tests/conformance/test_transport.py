"""What every transport must do: what it sends and when, and what it makes of answers.

Against real servers on loopback. What it may reach is in `test_transport_reach.py`.
"""

import asyncio
from asyncio import selector_events
from collections.abc import Callable
from typing import Any

import pytest
from tests.conformance.peers import (
    OK,
    TRANSPORTS,
    Answer,
    Peer,
    RawServer,
    failure,
    get,
    may,
    may_not,
    opened,
    run,
    says,
    serving,
    silent,
)

from tickwheel.server.dispatch.transport import (
    BODY_READ_BYTES_MAX,
    ErrorKind,
    Response,
    Transport,
    TransportError,
    Withdrawn,
)

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


def test_head_leaves_the_connection_in_order(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        answer = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        async with serving(answer) as server, opened(make) as transport:
            for _ in range(3):
                assert (await transport.send(get(server.url, method="HEAD"), may)).status == 200
            assert (server.connections, len(server.requests)) == (1, 3)

    run(scenario())


def test_a_body_sent_to_head_is_not_taken_for_the_next_answer(
    make: Callable[..., Transport],
) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make) as transport:
            for method, body in (("HEAD", b""), ("GET", b"ok"), ("HEAD", b""), ("GET", b"ok")):
                response = await transport.send(get(server.url, method=method), may)
                assert (response.status, response.body) == (200, body)

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


@pytest.mark.parametrize("later", [False, True])
def test_what_a_server_says_unasked_answers_nothing(
    make: Callable[..., Transport], later: bool
) -> None:
    async def scenario() -> None:
        unasked = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
        first: list[Peer] = []

        async def answer(peer: Peer, _: bytes) -> None:
            await peer.say(OK if later or len(server.requests) > 1 else OK + unasked)
            first.append(peer)

        async with serving(answer) as server, opened(make) as transport:
            assert (await transport.send(get(server.url), may)).status == 200
            if later:
                await first[0].say(unasked)
            await server.all_closed()
            assert (await transport.send(get(server.url), may)).status == 200
            assert server.connections == 2

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
    ("head", "piece"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n" * 1_000),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a" * 4_096),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: 1\r\n" * 1_000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a=b;" * 1_000),
    ],
)
def test_a_head_without_end_is_an_error(
    make: Callable[..., Transport], head: bytes, piece: bytes
) -> None:
    async def endless(peer: Peer, _: bytes) -> None:
        await peer.say(head)
        while True:
            await peer.say(piece)

    async def scenario() -> None:
        async with serving(endless) as server, opened(make) as transport:
            assert await failure(transport, get(server.url)) == (ErrorKind.PROTOCOL, True)
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
