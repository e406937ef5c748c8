"""What is pure about redirects, and what only the aiohttp transport can get wrong.

All else about it is in tests/conformance/test_transport.py, which every transport must pass.
"""

import asyncio
import errno
import time

import aiohttp
import pytest

from tickwheel.server.dispatch import http
from tickwheel.server.dispatch.guard import Blocked, Guard
from tickwheel.server.dispatch.http import HttpTransport
from tickwheel.server.dispatch.redirect import follow
from tickwheel.server.dispatch.transport import ErrorKind, Request, Response, TransportError

GUARD = Guard()
HEADERS = (
    ("Authorization", "secret"),
    ("Content-Type", "a/b"),
    ("Content-Encoding", "gzip"),
    ("webhook-id", "i"),
)


def request(method: str = "POST", url: str = "https://a.example/x/y?q") -> Request:
    return Request(method, url, HEADERS, b"body", 1_000, 3)


def following(status: int, location: str, first: Request | None = None) -> Request | None:
    return follow(first or request(), Response(status, {"location": location}, b""), GUARD)


# --- redirects -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "method", "expected"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (301, "PUT", "PUT"),
        (302, "GET", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
        (303, "GET", "GET"),
        (307, "POST", "POST"),
        (308, "PATCH", "PATCH"),
    ],
)
def test_method_and_body(status: int, method: str, expected: str) -> None:
    found = following(status, "/z", request(method))
    assert found is not None
    assert found.method == expected
    kept = expected == method
    assert found.body == (b"body" if kept else b"")
    assert ("Content-Type" in dict(found.headers)) is kept
    assert ("Content-Encoding" in dict(found.headers)) is kept
    assert "Authorization" in dict(found.headers)


@pytest.mark.parametrize("status", [200, 300, 304, 305, 306, 400])
def test_what_is_no_redirect(status: int) -> None:
    assert following(status, "/z") is None


def test_without_a_location_there_is_nothing_to_follow() -> None:
    assert following(302, "") is None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("z", "https://a.example/x/z"),
        ("../z#part", "https://a.example/z"),
        ("?r", "https://a.example/x/y?r"),
        ("//b.example/", "https://b.example/"),
        ("https://a.example:443/z", "https://a.example:443/z"),
    ],
)
def test_the_address_is_resolved(location: str, expected: str) -> None:
    found = following(307, location)
    assert found is not None
    assert found.url == expected


@pytest.mark.parametrize(
    ("location", "same"),
    [
        ("https://A.example:443/", True),
        ("https://a.example:444/", False),
        ("https://b.example/", False),
        ("https://a.example.b.example/", False),
    ],
)
def test_the_users_headers_stay_with_their_origin(location: str, same: bool) -> None:
    found = following(307, location)
    assert found is not None
    assert ("Authorization" in dict(found.headers)) is same
    assert "webhook-id" in dict(found.headers)


@pytest.mark.parametrize(
    "location",
    [
        "http://a.example/",
        "http://169.254.169.254/",
        "https://127.0.0.1/",
        "javascript:alert(1)",
        "https://u:p@a.example/",
        "https://a.example:x/",
        "https://[/",
        "https://a.example/\u00e9",
    ],
)
def test_redirects_that_are_refused(location: str) -> None:
    with pytest.raises(Blocked):
        following(307, location)


# --- aiohttp ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (aiohttp.ServerDisconnectedError(), ErrorKind.RESET),
        (aiohttp.ClientOSError(errno.EPIPE, "pipe"), ErrorKind.RESET),
        (aiohttp.ClientPayloadError(), ErrorKind.PROTOCOL),
        (aiohttp.InvalidURL("x"), ErrorKind.PROTOCOL),
    ],
)
def test_errors_have_a_kind(error: aiohttp.ClientError, expected: ErrorKind) -> None:
    async def gate() -> bool:
        return True

    flight = http._Flight(gate)
    found = http._transport_error(error, flight)
    assert (found.kind, found.sent) == (expected, False)


def test_a_broken_header_is_never_written() -> None:
    """Headers are checked at admission; should one slip through, the request is not sent."""

    async def scenario() -> None:
        async def gate() -> bool:
            raise AssertionError("the gate must not be asked")

        transport = HttpTransport(Guard(allow=["127.0.0.1/32"]))
        bad = Request("GET", "http://127.0.0.1:9", (("A", "b\r\nC: d"),), b"", 1_000)
        with pytest.raises(AssertionError, match="admission"):
            await transport.send(bad, gate)
        await transport.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http:///x", "/x", "http://127.0.0.1:x/"])
def test_a_url_that_admission_would_refuse_is_not_tried(url: str) -> None:
    async def scenario() -> None:
        async def gate() -> bool:
            raise AssertionError("the gate must not be asked")

        transport = HttpTransport(Guard(allow=["127.0.0.1/32"]))
        with pytest.raises(TransportError) as caught:
            await transport.send(Request("GET", url, (), b"", 1_000), gate)
        assert (caught.value.kind, caught.value.sent) == (ErrorKind.PROTOCOL, False)
        await transport.close()

    asyncio.run(scenario())


def test_a_ca_file_that_is_not_there() -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match="No such file"):
            HttpTransport(Guard(), ca_file="/nowhere/ca.pem")

    asyncio.run(scenario())


@pytest.mark.parametrize("swept", [True, False])
def test_an_idle_connection_is_closed_after_a_while(
    monkeypatch: pytest.MonkeyPatch, swept: bool
) -> None:
    """By the sweep, or by whoever would have used it."""
    monkeypatch.setattr(http, "KEEPALIVE_S", 0.02)

    async def scenario() -> None:
        ends: list[asyncio.Event] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            end = asyncio.Event()
            ends.append(end)
            while await reader.readline():
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            end.set()

        async def gate() -> bool:
            return True

        listener = await asyncio.start_server(handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        transport = HttpTransport(Guard(allow=["127.0.0.1/32"]))
        for _ in range(2):
            assert (await transport.send(Request("GET", url, (), b"", 1_000), gate)).status == 200
            if swept:
                await ends[-1].wait()
            else:
                time.sleep(0.03)  # noqa: ASYNC251 - so that no sweep comes between
        assert len(ends) == 2
        await transport.close()
        for end in ends:
            await end.wait()
        listener.close()

    asyncio.run(scenario())
