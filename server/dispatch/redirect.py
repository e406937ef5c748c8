"""Floor 3, pure. The request that a redirect asks for, or none.

Method and body follow RFC 9110 §15.4 and the habit of all clients: 303, and 301 or 302 after a POST, turn into a GET
without a body; 307 and 308 change nothing. To another origin only what the server itself said goes along (`headers`):
a user's header may be a credential. From https to http never: the body would travel in the clear.

Must never import: asyncio, aiohttp.
"""

from urllib.parse import urldefrag, urljoin, urlsplit

from tickwheel.server.dispatch.guard import DEFAULT_PORTS, Blocked, Guard
from tickwheel.server.dispatch.headers import kept_across_origins
from tickwheel.server.dispatch.transport import Request, Response

REDIRECTS = frozenset([301, 302, 303, 307, 308])

_OF_BODY = ("content-type", "content-encoding", "content-language", "content-location")


def follow(request: Request, response: Response, guard: Guard) -> Request | None:
    """The next request; None when the response is no redirect. Raises Blocked when it may not be followed."""
    location = response.headers.get("location", "")
    if response.status not in REDIRECTS or not location:
        return None
    try:
        url = urldefrag(urljoin(request.url, location)).url
        same_origin = _origin(url) == _origin(request.url)
    except ValueError:
        raise Blocked("malformed redirect") from None
    if guard.check_url(url):
        raise Blocked("redirect not allowed")
    if request.url.lower().startswith("https:") and not url.lower().startswith("https:"):
        raise Blocked("redirect out of TLS")
    request = request._replace(url=url)
    if not same_origin:
        kept = tuple(pair for pair in request.headers if kept_across_origins(pair[0]))
        request = request._replace(headers=kept)
    return _as_get(request) if _turns_into_get(request.method, response.status) else request


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme)


def _turns_into_get(method: str, status: int) -> bool:
    if status == 303:  # noqa: PLR2004 - See Other
        return method not in {"GET", "HEAD"}
    return status in {301, 302} and method == "POST"


def _as_get(request: Request) -> Request:
    kept = tuple(pair for pair in request.headers if pair[0].lower() not in _OF_BODY)
    return request._replace(method="GET", body=b"", headers=kept)
