"""Floor 3. One connection, as HTTP/1.1 sees it: a message goes out in one write, one response comes back.

    ask(message) ─► write ─► status, headers ─► body ≤ 64 KiB ─► Response, and whether the connection may be used again

aiohttp's connector makes these (DNS, guard, connect, TLS) in place of its own `ResponseHandler`, which turns each
response into a queue, a stream and a parser of its own: two thirds of what a request cost. llhttp (by httptools) reads
here, one parser a connection, as lenient as aiohttp is towards servers.

Invariants: a response is what follows the request: bytes that come unasked close the connection, and so does everything
that leaves a doubt where the next response would begin. What a target may make us hold is bounded.

Must never import: a room above; the rest of dispatch but `transport`.
"""

import asyncio

import httptools
from aiohttp.client_proto import ResponseHandler

from tickwheel.server.dispatch.transport import (
    BODY_READ_BYTES_MAX,
    ErrorKind,
    Response,
    TransportError,
)

HEADERS_MAX = 128
HEAD_BYTES_MAX = 65_536
"""Of a response's headers, those of interim responses included."""

RESPONSE_BYTES_MAX = 1 << 20
"""Of all that one response may send: the body's limit, and room for how it is chunked."""

_INTERIM = frozenset(range(100, 200)) - {101}
"""Status codes of responses that another one follows."""

_EMPTY = frozenset([204, 304])


class TooMuch(Exception):
    """A response's head is beyond all measure."""


class Wire(ResponseHandler):
    """One connection. `ask` when it `is_connected`, and only once the last response has come."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.reusable = False
        self._asked: asyncio.Future[Response] | None = None
        self._http = self._parser_of_responses()
        self._begin(bodiless=False)

    def _parser_of_responses(self) -> httptools.HttpResponseParser:
        parser = httptools.HttpResponseParser(self)
        parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        return parser

    def _begin(self, *, bodiless: bool) -> None:
        self.reusable = False
        self._bodiless = bodiless
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._status = 0
        self._head_bytes = 0
        self._bytes = 0

    def ask(self, message: bytes, *, bodiless: bool) -> "asyncio.Future[Response]":
        """Write a request at once; its response, or TransportError. `bodiless`: the response has no body (HEAD)."""
        assert self._asked is None, "one request at a time"
        assert self.transport is not None, "only while it is connected"
        self._begin(bodiless=bodiless)
        self._asked = self._loop.create_future()
        self.transport.write(message)
        return self._asked

    # --- bytes in ---

    def data_received(self, data: bytes) -> None:
        if self._asked is None:
            self._hang_up()
            return
        self._bytes += len(data)
        try:
            self._http.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.reusable = False
        except httptools.HttpParserError:
            self._fail(ErrorKind.PROTOCOL)
        else:
            limit = RESPONSE_BYTES_MAX if self._status else HEAD_BYTES_MAX
            if self._bytes > limit:
                self._fail(ErrorKind.PROTOCOL)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.reusable = False
        if not self._status:
            self._fail(ErrorKind.RESET)
        elif exc is None and not self._is_framed():
            self._finish(truncated=False)
        else:
            self._fail(ErrorKind.PROTOCOL)

    def _is_framed(self) -> bool:
        """True if the head says where the body ends; else the end of the connection does (RFC 9112 §6.3)."""
        coding = self._headers.get("transfer-encoding", "")
        if coding:
            return coding.rpartition(",")[2].strip().lower() == "chunked"
        return "content-length" in self._headers

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        """Another response begins: an interim one came before, or the server says more than it was asked."""
        if self._asked is None or self._asked.done():
            self.reusable = False
            raise TooMuch

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or, after the body, a trailer: those are not kept."""
        if self._status:
            return
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX or len(self._headers) >= HEADERS_MAX:
            raise TooMuch
        self._headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        status = self._http.get_status_code()
        if status not in _INTERIM:
            self._status = status
            if self._bodiless:
                self.reusable = self._http.should_keep_alive()
                self._finish(truncated=False)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._bodiless:
            self.reusable = False
        elif len(self._body) <= BODY_READ_BYTES_MAX:
            self._body += body
            if len(self._body) > BODY_READ_BYTES_MAX:
                self._finish(truncated=True)

    def on_message_complete(self) -> None:
        """The response is whole."""
        if not self._status:
            self._headers = {}
        elif self._asked is not None and not self._asked.done():
            self.reusable = self._http.should_keep_alive() and not self._http.should_upgrade()
            self._finish(truncated=False)

    # --- the end ---

    def _finish(self, *, truncated: bool) -> None:
        if self._asked is not None and not self._asked.done():
            body = bytes(self._body[:BODY_READ_BYTES_MAX]) if self._body else b""
            self._asked.set_result(Response(self._status, self._headers, body, truncated))

    def _fail(self, kind: ErrorKind) -> None:
        self.reusable = False
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(TransportError(kind, sent=True))
        self._hang_up()

    def rest(self) -> None:
        """The response was taken: whatever comes from now on was not asked for."""
        self._asked = None
        self._headers, self._body = {}, bytearray()  # an idle connection holds nothing
        if self._bodiless and self.reusable:
            self._http = self._parser_of_responses()  # that one waits for a body

    def _hang_up(self) -> None:
        self.reusable = False
        if self.transport is not None:
            self.transport.close()
