"""Floor 3. The transport: aiohttp's connector, our own pool and `wire`; HTTP/1.1 with keep-alive.

    send ─► [pool, or DNS ─► guard ─► connect ─► TLS] ─► gate ─► one write ─► status, headers, body ≤ 64 KiB

aiohttp resolves, connects (several addresses of a name at once) and shakes hands. Its `ClientSession` and its request
and response objects are left out: they cost more than all else of a fire together, and what they add (cookies, proxies,
redirects, header merging, a silent second send on a dead pooled connection, a body written a turn of the loop after its
head) is what must not be here. What is ours:
- The guard is asked where sockets are made, with the very address that is connected to. A name that resolves anew, a
  redirect, an address literal: all pass there. A pooled connection has passed it.
- The gate, then head and body in one write, with no suspension in between. The head holds what the request says, Host
  and Content-Length.

Must never import: a room above; the dispatcher.
"""

import asyncio
import errno
import socket
import ssl
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection
from yarl import URL

from tickwheel.server.dispatch import redirect
from tickwheel.server.dispatch.guard import Blocked, Guard
from tickwheel.server.dispatch.transport import (
    REDIRECTS_MAX,
    ErrorKind,
    Gate,
    Request,
    Response,
    TransportError,
    Withdrawn,
)
from tickwheel.server.dispatch.wire import Wire

KEEPALIVE_S = 15
DNS_CACHE_S = 10
SOCKETS_MAX = 4_096
"""Open sockets above which connections are not kept: with many targets, idle ones would use up all descriptors."""

ORIGINS_MAX = 1_024
"""Origins whose connection key is kept at hand."""

_AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""As `socket.getaddrinfo` gives it: family, type, protocol, name, address."""

_WITH_BODY = frozenset(["POST", "PUT", "PATCH"])
"""Methods whose empty body is said with a Content-Length of 0 (RFC 9110 §8.6)."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None)


class _Flight:
    """What one `send` must know at places that aiohttp calls: the gate in, `sent` and `permitted` out."""

    __slots__ = ("crowded", "gate", "permitted", "sent")

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.crowded = False
        self.sent = False
        self.permitted = False


_current: ContextVar[_Flight] = ContextVar("flight")


class _Refused(OSError):
    """The guard refused an address. An OSError, so that the other addresses of the name are still tried."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "refused by the guard")


class _Origin(ClientRequest):
    """Where to: what aiohttp's connector wants to know of a request. Made once for all requests to an origin."""

    def __init__(self, url: URL, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__("GET", url, loop=loop)
        self._key = super().connection_key

    @property
    def connection_key(self) -> ConnectionKey:
        return self._key


class _Connector(aiohttp.TCPConnector):
    """Makes our connections."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        handler: Callable[..., ResponseHandler] = Wire
        self._factory = partial(handler, self._loop)


class _Place(NamedTuple):
    """A URL, taken apart. `key` names what shares connections: the origin as text."""

    key: str
    origin: URL
    path: str
    host: str


@lru_cache(maxsize=4_096)
def _place(url: str) -> _Place:
    """Raises aiohttp.InvalidURL for what admission would not have let in."""
    try:
        parsed = URL(url, encoded=True)
        if parsed.scheme not in {"http", "https"} or not parsed.raw_host:
            raise aiohttp.InvalidURL(url)
        origin = parsed.origin()
        host = parsed.host_port_subcomponent or ""
        return _Place(str(origin), origin, parsed.raw_path_qs, host)
    except ValueError as error:
        raise aiohttp.InvalidURL(url) from error


def _message(request: Request, place: _Place) -> bytes:
    lines = [f"{request.method} {place.path} HTTP/1.1", f"Host: {place.host}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if request.body or request.method in _WITH_BODY:
        lines.append(f"Content-Length: {len(request.body)}")
    head = "\r\n".join(lines)
    assert head.count("\n") == len(lines) - 1, "headers are checked at admission"
    return f"{head}\r\n\r\n".encode("latin-1") + request.body


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
        connector = _Connector(
            limit=0,  # the dispatcher bounds what is under way
            ssl=_tls(ca_file),
            resolver=resolver or aiohttp.ThreadedResolver(),
            use_dns_cache=dns_cache_s > 0,
            ttl_dns_cache=dns_cache_s,
            keepalive_timeout=KEEPALIVE_S,
            socket_factory=self._open_socket,
        )
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self._idle: dict[str, list[tuple[Connection, float]]] = {}  # bounded: by `sockets_max`
        self._sweeper: asyncio.TimerHandle | None = None
        self._origin = lru_cache(maxsize=ORIGINS_MAX)(self._make_origin)

    def _make_origin(self, url: URL) -> _Origin:
        return _Origin(url, self._loop)

    async def send(self, request: Request, gate: Gate) -> Response:
        """Send it when the gate lets it. Raises TransportError, Withdrawn."""
        flight = _Flight(gate)
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
        if self._sweeper is not None:
            self._sweeper.cancel()
        for idle in self._idle.values():
            for connection, _ in idle:
                connection.close()
        self._idle.clear()
        await self._connector.close()

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
        flight.permitted = False
        flight.crowded = len(self._sockets) > self._sockets_max
        try:
            place = _place(request.url)
            message = _message(request, place)
            connection = self._idle_to(place.key)
            if connection is None:
                origin = self._origin(place.origin)
                connection = await self._connector.connect(origin, [], _NO_TIMEOUT)
        except aiohttp.ClientError as error:
            raise _transport_error(error, flight) from error
        try:
            response = await _converse(connection, request, message, flight)
        except BaseException:
            if connection.protocol is not None:
                connection.protocol.abort()  # what the target does not read is not waited for
            connection.close()
            raise
        self._keep(place.key, connection, flight)
        return response

    # --- connections that wait for their next request ---

    def _idle_to(self, key: str) -> Connection | None:
        """The one that was used last, so that those too many come to rest."""
        idle = self._idle.get(key)
        oldest_s = self._loop.time() - KEEPALIVE_S
        while idle:
            connection, since_s = idle.pop()
            protocol = connection.protocol
            if since_s >= oldest_s and protocol is not None and protocol.is_connected():
                return connection
            connection.close()
        self._idle.pop(key, None)
        return None

    def _keep(self, key: str, connection: Connection, flight: _Flight) -> None:
        wire = connection.protocol
        assert isinstance(wire, Wire)
        if flight.crowded or not wire.reusable or not wire.is_connected():
            connection.close()
            return
        self._idle.setdefault(key, []).append((connection, self._loop.time()))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEPALIVE_S, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody has used for a while; come again if anything is left."""
        oldest_s = self._loop.time() - KEEPALIVE_S
        for key, idle in list(self._idle.items()):
            kept = [one for one in idle if one[1] > oldest_s]
            for connection, _ in idle[: len(idle) - len(kept)]:
                connection.close()
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]
        self._sweeper = self._loop.call_later(KEEPALIVE_S, self._sweep) if self._idle else None

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


async def _converse(
    connection: Connection, request: Request, message: bytes, flight: _Flight
) -> Response:
    """Ask the gate, send, and wait for the response."""
    wire = connection.protocol
    assert isinstance(wire, Wire)
    if not await flight.gate():
        raise Withdrawn
    # From here to the write nothing may suspend: what the gate saw must still hold.
    if not wire.is_connected():
        raise TransportError(ErrorKind.RESET, sent=False)
    flight.sent = True
    response = await wire.ask(message, bodiless=request.method == "HEAD")
    wire.rest()
    return response


def _tls(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        context.load_verify_locations(ca_file)
    return context
