"""Floor 3, pure. The headers of a request to a target: what a user may say, and what we say ourselves.

    Tickwheel-Job: namespaces/acme/jobs/nightly           webhook-id: 0198...c4_1767225600000
    Tickwheel-Scheduled-Time: 2026-01-01T00:00:00.000Z    Idempotency-Key: 0198...c4_1767225600000
    Tickwheel-Attempt: 1                                  webhook-timestamp: 1767225600
    Tickwheel-Epoch: 7                                    traceparent: 00-<of the id>-<of id, attempt, epoch>-01

Everything but `webhook-timestamp` follows from the fire alone, so the same attempt, sent again after a crash, says the
same.

Must never import: asyncio, a clock; time is an argument.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256

from tickwheel.server.errors import Violation
from tickwheel.server.fire import Fire
from tickwheel.server.model import Ms

HEADERS_MAX = 64
HEADERS_BYTES_MAX = 16_384

FORBIDDEN = frozenset(
    [
        "connection",
        "content-length",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "te",
        "traceparent",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
FORBIDDEN_PREFIXES = ("proxy-", "tickwheel-", "webhook-")

_OURS = frozenset(["idempotency-key", "traceparent", "webhook-id", "webhook-timestamp"])
_KEPT_ACROSS_ORIGINS = _OURS | {"content-type", "user-agent"}

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_SPECIAL = re.compile(r"[^A-Za-z0-9-]")
_OCCURRENCE_ID = re.compile(r"[0-9a-f]+:[0-9]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPAN_MASK = (1 << 64) - 1


def check_headers(
    headers: Sequence[tuple[str, str]], field: str = "http_target.headers"
) -> list[Violation]:
    """What is wrong with a user's headers; empty when nothing is."""
    violations: list[Violation] = []
    if len(headers) > HEADERS_MAX:
        violations.append(
            Violation(field, f"must have at most {HEADERS_MAX} entries", "HEADERS_TOO_MANY")
        )
    if sum(len(name) + len(value) + 4 for name, value in headers) > HEADERS_BYTES_MAX:
        violations.append(
            Violation(field, f"must have at most {HEADERS_BYTES_MAX} bytes", "HEADERS_TOO_LARGE")
        )
    for i, (name, value) in enumerate(headers[:HEADERS_MAX]):
        violations += _check_header(name, value, f"{field}[{i}]")
    return violations


def _check_header(name: str, value: str, field: str) -> list[Violation]:
    violations: list[Violation] = []
    lower = name.lower()
    if not _TOKEN.fullmatch(name):
        text = "must be an HTTP token: letters, digits and !#$%&'*+-.^_`|~"
        violations.append(Violation(f"{field}.name", text, "HEADER_NAME"))
    elif lower in FORBIDDEN or lower.startswith(FORBIDDEN_PREFIXES):
        violations.append(
            Violation(f"{field}.name", f"{name} is set by the server", "HEADER_RESERVED")
        )
    if not _VALUE.fullmatch(value):
        text = "must be printable Latin-1 without line breaks"
        violations.append(Violation(f"{field}.value", text, "HEADER_VALUE"))
    elif value != value.strip(" \t"):
        text = "must not begin or end with a space"
        violations.append(Violation(f"{field}.value", text, "HEADER_VALUE"))
    return violations


def encode_id(execution_id: str) -> str:
    """An execution's id as `webhook-id` and `Idempotency-Key` carry it: only `A-Z a-z 0-9 - _ ~`.

    `:` becomes `_`; every other byte of the UTF-8 text that is no letter, digit or `-` becomes `~` and two hexadecimal
    digits. So it holds no `.` (Standard Webhooks signs `id.timestamp.body`), two ids are never encoded alike, and the
    id can be read back.
    """
    if _OCCURRENCE_ID.fullmatch(execution_id):
        return execution_id.replace(":", "_")
    return _SPECIAL.sub(_encode_char, execution_id)


def _encode_char(match: re.Match[str]) -> str:
    char = match[0]
    return "_" if char == ":" else "".join(f"~{byte:02X}" for byte in char.encode())


def traceparent(execution_id: str, attempt: int, epoch: int) -> str:
    """W3C Trace Context: one trace an execution, one span an attempt of a leader; sampled, so that it is kept."""
    digest = sha256(execution_id.encode()).digest()
    which = epoch << 32 | attempt
    span = (int.from_bytes(digest[16:24], "big") ^ which) & _SPAN_MASK
    return f"00-{digest[:16].hex()}-{span:016x}-01"


def rfc3339(time_ms: Ms) -> str:
    """`2026-01-01T00:00:00.000Z`."""
    return f"{_rfc3339_second(time_ms // 1000)}.{time_ms % 1000:03d}Z"


@lru_cache(maxsize=1_024)
def _rfc3339_second(time_s: int) -> str:
    """Without fraction and zone: what is due in one second says it once."""
    return (_EPOCH + timedelta(seconds=time_s)).isoformat()[:19]


def build_headers(fire: Fire, now_ms: Ms, version: str) -> tuple[tuple[str, str], ...]:
    """All headers of one attempt but Host and Content-Length: the user's, then ours."""
    target = fire.target
    key = encode_id(fire.id)
    return (
        *target.headers,
        ("webhook-id", key),
        ("webhook-timestamp", str(now_ms // 1000)),
        ("Idempotency-Key", key),
        ("Tickwheel-Job", f"namespaces/{fire.namespace}/jobs/{fire.job}"),
        ("Tickwheel-Scheduled-Time", rfc3339(fire.scheduled_ms)),
        ("Tickwheel-Attempt", str(fire.attempt)),
        ("Tickwheel-Epoch", str(fire.epoch)),
        ("traceparent", traceparent(fire.id, fire.attempt, fire.epoch)),
        *_unsaid(target.headers, bool(target.body), version),
    )


@lru_cache(maxsize=1_024)
def _unsaid(
    user: tuple[tuple[str, str], ...], has_body: bool, version: str
) -> tuple[tuple[str, str], ...]:
    """What a user may say, and we do if he does not: the same for all requests of a target."""
    named = {name.lower() for name, _ in user}
    ours: list[tuple[str, str]] = []
    if "user-agent" not in named:
        ours.append(("User-Agent", f"tickwheel/{version}"))
    if has_body and "content-type" not in named:
        ours.append(("Content-Type", "application/octet-stream"))
    return tuple(ours)


def kept_across_origins(name: str) -> bool:
    """May this header follow a redirect to another origin? What a user wrote may be a credential: it stays behind."""
    lower = name.lower()
    return lower in _KEPT_ACROSS_ORIGINS or lower.startswith("tickwheel-")
