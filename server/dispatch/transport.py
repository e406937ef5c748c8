"""Floor 3. What dispatch needs of an HTTP client, and no more: so that a faster one can take its place.

A transport sends one request and gives back one response, or says in one word why there is none. It follows redirects
only as far as the request allows, checks every address with the guard, never sends anything twice, and is done within
`timeout_ms` whatever the target does.

The gate is asked right before the first byte leaves: after DNS, connect and TLS, which can take seconds. Between its
True and the write there is no suspension, so that what it saw still holds.

Must never import: a room above, nor the rest of dispatch.
"""

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

Gate = Callable[[], Awaitable[bool]]

BODY_READ_BYTES_MAX = 65_536
"""Of a response; what is beyond is not read, and the connection is dropped."""

REDIRECTS_MAX = 3


class Request(NamedTuple):
    """One HTTP request, complete but for Host and Content-Length."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeout_ms: int
    max_redirects: int = 0


class Response(NamedTuple):
    """What came back. `headers` answers to lower-case names. `truncated`: the body went on beyond the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False


class ErrorKind(StrEnum):
    """Why there is no response."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    RESET = "reset"
    PROTOCOL = "protocol"
    BLOCKED = "blocked"
    TOO_MANY_REDIRECTS = "too_many_redirects"


class TransportError(Exception):
    """No response. `sent` is False when certainly no byte of the request left."""

    def __init__(self, kind: ErrorKind, *, sent: bool) -> None:
        super().__init__(kind.value)
        self.kind = kind
        self.sent = sent


class Withdrawn(Exception):
    """The gate said no; nothing was sent."""


class Transport(Protocol):
    """An HTTP client."""

    async def send(self, request: Request, gate: Gate) -> Response:
        """Send it when the gate lets it. Raises TransportError, Withdrawn."""
        ...

    async def close(self) -> None:
        """Drop every connection."""
        ...
