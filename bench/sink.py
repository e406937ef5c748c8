"""A real HTTP/1.1 target in a process of its own, which records every request that reaches it.

It answers as the path says, so that a test can have any kind of target by its URL:

    /ok                 200                              /gone             410
    /status/{code}      that code                        /hang             never an answer
    /slow?ms=           200 after so long                /close            the connection is cut
    /fail?times=        503 so often, by execution id    /retry-after?s=   503 with Retry-After once, then 200
    /__count            how many were recorded           /__records?from=  the records as NDJSON, one array a line
    /__reset            forget them

A record holds what a receiver of a webhook can see (`Arrival`). The arrival time is taken from the wall clock when the
bytes are read, before anything else is done with them, so that an early request cannot look punctual.

Run: `python -m bench.sink --port 0`; the first line on stdout is the port. It ends on SIGTERM, SIGINT or, with
`--with-stdin`, when its stdin closes (so that it never outlives whoever started it).
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs

import httptools

RECORDS_MAX = 20_000_000  # about 8 GB: a run that needs more is not one run
SLICE = 5_000
BACKLOG = 4_096
_REASONS = {200: b"OK", 204: b"No Content", 410: b"Gone", 429: b"Too Many", 503: b"Unavailable"}


class Arrival(NamedTuple):
    """One request as the target saw it. `status` is the answer (0 = none), given `delay_ms` after `arrival_us`."""

    id: str
    job: str
    scheduled: str
    attempt: int
    epoch: int
    arrival_us: int
    path: str
    method: str
    status: int
    delay_ms: int
    body_crc: int


class Answer(NamedTuple):
    """What the target does: `status` after `delay_ms`; 0 = silence, or a cut connection if `cut`."""

    status: int
    delay_ms: int = 0
    cut: bool = False
    headers: bytes = b""


OK = Answer(200)


def _slow(query: dict[str, int], _: int) -> Answer:
    return Answer(200, query.get("ms", 1_000))


def _fail(query: dict[str, int], earlier: int) -> Answer:
    return Answer(503) if earlier < query.get("times", 1) else OK


def _retry_after(query: dict[str, int], earlier: int) -> Answer:
    if earlier:
        return OK
    return Answer(503, headers=b"Retry-After: %d\r\n" % query.get("s", 1))


_BEHAVIOURS: dict[str, Callable[[dict[str, int], int], Answer]] = {
    "ok": lambda _query, _earlier: OK,
    "slow": _slow,
    "fail": _fail,
    "retry-after": _retry_after,
    "gone": lambda _query, _earlier: Answer(410),
    "hang": lambda _query, _earlier: Answer(0),
    "close": lambda _query, _earlier: Answer(0, cut=True),
}


def behave(target: str, earlier: int) -> Answer:
    """The answer to a request for `target` (path and query) whose execution id was seen `earlier` times. Pure.

    >>> behave("/fail?times=1", 0).status, behave("/fail?times=1", 1).status
    (503, 200)
    """
    path, _, query = target.partition("?")
    name, _, rest = path.lstrip("/").partition("/")
    if name == "status":
        return Answer(int(rest))
    behaviour = _BEHAVIOURS.get(name)
    if behaviour is None:
        return Answer(404)
    return behaviour({k: int(v[-1]) for k, v in parse_qs(query).items()}, earlier)


def response(status: int, body: bytes = b"", headers: bytes = b"") -> bytes:
    """The bytes of a small HTTP/1.1 response that keeps the connection."""
    return b"HTTP/1.1 %d %s\r\n%sContent-Length: %d\r\n\r\n%s" % (
        status,
        _REASONS.get(status, b"Status"),
        headers,
        len(body),
        body,
    )


class Book:
    """Everything that arrived, in order, and how often each execution id did."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.seen: dict[bytes, int] = {}

    def add(self, row: tuple[Any, ...]) -> None:
        assert len(self.rows) < RECORDS_MAX, "the sink is full"
        self.rows.append(row)

    def reset(self) -> None:
        self.rows.clear()
        self.seen.clear()

    def ndjson(self, start: int = 0) -> Iterator[bytes]:
        """The records from number `start` on, some thousands a piece."""
        for low in range(start, len(self.rows), SLICE):
            lines = (json.dumps(arrival(row)) for row in self.rows[low : low + SLICE])
            yield ("\n".join(lines) + "\n").encode()


def arrival(row: tuple[Any, ...]) -> Arrival:
    """The readable form of a raw row: the hot path keeps bytes as they came."""
    headers: dict[bytes, bytes] = row[0]

    def text(name: bytes) -> str:
        return headers.get(name, b"").decode("latin-1")

    def number(name: bytes) -> int:
        return int(headers.get(name, b"0") or b"0")

    return Arrival(
        text(b"webhook-id"),
        text(b"tickwheel-job"),
        text(b"tickwheel-scheduled-time"),
        number(b"tickwheel-attempt"),
        number(b"tickwheel-epoch"),
        row[1] // 1_000,
        row[2].decode("latin-1"),
        row[3].decode("latin-1"),
        row[4],
        row[5],
        row[6],
    )


_KEPT = frozenset(
    (b"webhook-id", b"tickwheel-job", b"tickwheel-scheduled-time", b"tickwheel-attempt", b"tickwheel-epoch")
)  # fmt: skip
_OK_BYTES = response(200)


class Receiver(asyncio.Protocol):
    """One connection. llhttp is strict, so a request that is no HTTP/1.1 is answered 400 and shows in no record."""

    transport: asyncio.Transport

    def __init__(self, book: Book) -> None:
        self.book = book
        self.parser = httptools.HttpRequestParser(self)
        self.now_ns = 0
        self.url = b""
        self.body = b""
        self.headers: dict[bytes, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        self.now_ns = time.time_ns()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as fault:
            print(f"sink: {fault!r} in {data[:200]!r}", file=sys.stderr, flush=True)
            self.transport.write(response(400))
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url = self.body = b""
        self.headers = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _KEPT:
            self.headers[name] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.url.startswith(b"/__"):
            self.control(self.url.decode("latin-1"))
            return
        answer = OK if self.url == b"/ok" else self.look_up()
        self.book.add(
            (self.headers, self.now_ns, self.url, self.parser.get_method(), answer.status,
             answer.delay_ms, zlib.crc32(self.body))
        )  # fmt: skip
        if answer is OK:
            self.transport.write(_OK_BYTES)
        else:
            self.respond(answer)

    def look_up(self) -> Answer:
        key = self.headers.get(b"webhook-id", b"")
        earlier = self.book.seen.get(key, 0)
        self.book.seen[key] = earlier + 1
        try:
            return behave(self.url.decode("latin-1"), earlier)
        except ValueError:
            return Answer(404)

    def respond(self, answer: Answer) -> None:
        if answer.cut:
            self.transport.abort()
        elif answer.status:
            data = response(answer.status, headers=answer.headers)
            if answer.delay_ms:
                asyncio.get_running_loop().call_later(answer.delay_ms / 1_000, self.write, data)
            else:
                self.write(data)

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def control(self, target: str) -> None:
        name, _, query = target.partition("?")
        if name == "/__records":
            self.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            for piece in self.book.ndjson(int((parse_qs(query).get("from") or ["0"])[-1])):
                self.write(piece)
            self.transport.close()
        elif name == "/__count":
            self.write(response(200, b"%d\n" % len(self.book.rows)))
        elif name == "/__reset":
            self.book.reset()
            self.write(response(200))
        else:
            self.write(response(404))


async def serve(port: int, *, with_stdin: bool, out: Path | None) -> None:
    """Serve on 127.0.0.1 until told to end; then write the records to `out`, if asked."""
    loop = asyncio.get_running_loop()
    book = Book()
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    if with_stdin:
        loop.add_reader(sys.stdin.fileno(), _read_or_end, done)
    server = await loop.create_server(lambda: Receiver(book), "127.0.0.1", port, backlog=BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)
    await done.wait()
    server.close()
    if out is not None:
        with out.open("wb") as file:
            file.writelines(book.ndjson())


def _read_or_end(done: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4_096):
        done.set()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 = a free one (default)")
    parser.add_argument("--out", type=Path, help="write the records there at the end")
    parser.add_argument("--with-stdin", action="store_true", help="end when stdin closes")
    asked = parser.parse_args()
    run: Callable[..., Any] = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 — asyncio's own loop does as well, only slower

        run = uvloop.run
    run(serve(asked.port, with_stdin=asked.with_stdin, out=asked.out))


if __name__ == "__main__":
    main()
