"""Floor 3. The transport on aiohttp: one shared session, HTTP/1.1 with keep-alive.

    send ─► [pool, or DNS ─► guard ─► connect ─► TLS] ─► gate ─► one write ─► status, headers, body ≤ 64 KiB

What is ours here, beyond options:
- The guard is asked where sockets are made, with the very address that is connected to. A name that resolves anew, a
  redirect, an address literal: all pass there. A pooled connection has passed it.
- `_GatedRequest.send` replaces aiohttp's: the gate, then head and body in one write, with no suspension in between
  (aiohttp's own writes the body in a task of its own on Python 3.11, a turn of the loop later). The head holds what the
  request says, Host and Content-Length, and nothing that aiohttp would add or merge.
- aiohttp sends an idempotent request again, silently, when a pooled connection turns out dead. `_translate` runs
  inside its retry loop and turns the errors that it would retry on into ours, which it does not know.

Must never import: a room above; the dispatcher.
"""

import asyncio
import errno
import socket
import ssl
import weakref
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_reqrep import ClientRequest, ClientResponse
from aiohttp.connector import Connection
from aiohttp.http_writer import StreamWriter
from yarl import URL

from tickwheel.server.dispatch import redirect
from tickwheel.server.dispatch.guard import Blocked, Guard
from tickwheel.server.dispatch.transport import (
    BODY_READ_BYTES_MAX,
    REDIRECTS_MAX,
    ErrorKind,
    Gate,
    Request,
    Response,
    TransportError,
    Withdrawn,
)

KEEPALIVE_S = 15
DNS_CACHE_S = 10
SOCKETS_MAX = 4_096
"""Open sockets above which connections are not kept: with many targets, idle ones would use up all descriptors."""

_AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""As `socket.getaddrinfo` gives it: family, type, protocol, name, address."""

_WITH_BODY = frozenset(["POST", "PUT", "PATCH"])
"""Methods whose empty body is said with a Content-Length of 0 (RFC 9110 §8.6)."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None)


class _Flight:
    """What one `send` must know at places that aiohttp calls: request and gate in, `sent` and `permitted` out."""

    __slots__ = ("crowded", "gate", "permitted", "request", "sent")

    def __init__(self, request: Request, gate: Gate) -> None:
        self.request = request
        self.gate = gate
        self.crowded = False
        self.sent = False
        self.permitted = False


_current: ContextVar[_Flight] = ContextVar("flight")


class _Refused(OSError):
    """The guard refused an address. An OSError, so that the other addresses of the name are still tried."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "refused by the guard")


class _GatedRequest(ClientRequest):
    """A request that asks the gate right before its first byte leaves."""

    async def send(self, conn: Connection) -> ClientResponse:
        flight = _current.get()
        protocol = conn.protocol
        assert protocol is not None
        message = self._head(flight.request) + flight.request.body
        if not await flight.gate():
            raise Withdrawn
        # From here to the write nothing may suspend: what the gate saw must still hold.
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("closed while the gate was asked")
        flight.sent = True
        transport.write(message)
        if flight.crowded:
            protocol.force_close()
        self.response = self._response(StreamWriter(protocol, self.loop))
        return self.response

    def _head(self, request: Request) -> bytes:
        lines = [
            f"{request.method} {self.url.raw_path_qs} HTTP/1.1",
            f"Host: {self.url.host_port_subcomponent}",
        ]
        lines += [f"{name}: {value}" for name, value in request.headers]
        if request.body or request.method in _WITH_BODY:
            lines.append(f"Content-Length: {len(request.body)}")
        head = "\r\n".join(lines)
        assert head.count("\n") == len(lines) - 1, "headers are checked at admission"
        return f"{head}\r\n\r\n".encode("latin-1")

    def _response(self, writer: StreamWriter) -> ClientResponse:
        return ClientResponse(
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=[],
            loop=self.loop,
            session=self.session,
            stream_writer=writer,
        )


async def _translate(request: ClientRequest, handler: aiohttp.ClientHandlerType) -> ClientResponse:
    try:
        return await handler(request)
    except aiohttp.ClientError as error:
        raise _transport_error(error, _current.get()) from error


def _transport_error(error: aiohttp.ClientError, flight: _Flight) -> TransportError:
    return TransportError(_kind(error, flight), sent=flight.sent)


def _kind(error: aiohttp.ClientError, flight: _Flight) -> ErrorKind:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return ErrorKind.DNS
        case aiohttp.ClientSSLError():
            return ErrorKind.TLS
        case aiohttp.ClientConnectorError(os_error=_Refused()) if not flight.permitted:
            return ErrorKind.BLOCKED
        case aiohttp.ClientConnectorError():
            return ErrorKind.CONNECT
        case aiohttp.ClientConnectionError():
            return ErrorKind.RESET
        case _:
            return ErrorKind.PROTOCOL


class HttpTransport:
    """See `Transport`. Make it inside the running loop that it will live on."""

    def __init__(
        self,
        guard: Guard,
        *,
        ca_file: str = "",
        sockets_max: int = SOCKETS_MAX,
        dns_cache_s: int = DNS_CACHE_S,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """`ca_file` is trusted beside the system's certificates. Raises OSError when it cannot be read."""
        self._guard = guard
        self._sockets_max = sockets_max
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        connector = aiohttp.TCPConnector(
            limit=0,  # the dispatcher bounds what is under way
            ssl=_tls(ca_file),
            resolver=resolver or aiohttp.ThreadedResolver(),
            use_dns_cache=dns_cache_s > 0,
            ttl_dns_cache=dns_cache_s,
            keepalive_timeout=KEEPALIVE_S,
            socket_factory=self._open_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=_GatedRequest,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=_NO_TIMEOUT,
            middlewares=(_translate,),
        )

    async def send(self, request: Request, gate: Gate) -> Response:
        """Send it when the gate lets it. Raises TransportError, Withdrawn."""
        flight = _Flight(request, gate)
        _current.set(flight)
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                if request.max_redirects:
                    return await self._follow(request, flight)
                return await self._exchange(request, flight)
        except TimeoutError:
            raise TransportError(ErrorKind.TIMEOUT, sent=flight.sent) from None

    async def close(self) -> None:
        """Drop every connection."""
        await self._session.close()

    async def _follow(self, request: Request, flight: _Flight) -> Response:
        """Follow redirects. The gate is asked at each; one that it refuses after the first request is not followed."""
        response = await self._exchange(request, flight)
        for _ in range(min(request.max_redirects, REDIRECTS_MAX)):
            following = self._following(request, response)
            if following is None:
                return response
            request = following
            try:
                response = await self._exchange(request, flight)
            except Withdrawn:
                return response
        if self._following(request, response) is not None:
            raise TransportError(ErrorKind.TOO_MANY_REDIRECTS, sent=True)
        return response

    def _following(self, request: Request, response: Response) -> Request | None:
        try:
            return redirect.follow(request, response, self._guard)
        except Blocked as blocked:
            raise TransportError(ErrorKind.BLOCKED, sent=True) from blocked

    async def _exchange(self, request: Request, flight: _Flight) -> Response:
        """One request and its response."""
        flight.request = request
        flight.permitted = False
        flight.crowded = len(self._sockets) > self._sockets_max
        try:
            response = await self._session.request(
                request.method,
                URL(request.url, encoded=True),
                allow_redirects=False,
            )
            return await _read(response)
        except aiohttp.ClientError as error:
            raise _transport_error(error, flight) from error

    def _open_socket(self, address: _AddrInfo) -> socket.socket:
        """Where every connection begins, whatever led to it."""
        family, kind, proto, _, (ip, port, *_) = address
        try:
            self._guard.check_address(ip, port)
        except Blocked as blocked:
            raise _Refused from blocked
        _current.get().permitted = True
        opened = socket.socket(family, kind, proto)
        self._sockets.add(opened)
        return opened


async def _read(response: ClientResponse) -> Response:
    """Read the body up to the limit. A connection that still has something to say is dropped, not kept."""
    body = bytearray()
    try:
        while len(body) <= BODY_READ_BYTES_MAX:
            chunk = await response.content.read(BODY_READ_BYTES_MAX + 1 - len(body))
            if not chunk:
                break
            body += chunk
    finally:
        response.close()
    truncated = len(body) > BODY_READ_BYTES_MAX
    return Response(response.status, response.headers, bytes(body[:BODY_READ_BYTES_MAX]), truncated)


def _tls(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        context.load_verify_locations(ca_file)
    return context
