"""Floor 3, pure. The response contract: what a target's answer means (docs/design/dispatch.md).

    status                            outcome
    `success` ranges, else 2xx        SUCCEEDED, whatever the headers say
    410                               DISABLE
    any, with Tickwheel-Retry: no     FAIL
    outside `retry_on`, if given      FAIL
    all else                          RETRY, not before Retry-After

A 3xx arrives here only when it was not followed, and is then a failure like any other. No response at all is RETRY, but
where our own guard refused the address: trying that again helps nobody.

Must never import: asyncio, a clock; time is an argument.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

from tickwheel.server.dispatch.transport import ErrorKind, Response, TransportError
from tickwheel.server.fire import Outcome, OutcomeKind
from tickwheel.server.model import HttpTarget, Ms

RETRY_AFTER_MS_MAX = 3_600_000
"""A target may ask for at most this pause: one wrong header must not stop a job for a year."""

BODY_STORED_BYTES_MAX = 4_096

_SUCCESS = ((200, 299),)
_GONE = 410
_SECONDS_DIGITS_MAX = 9


def judge(target: HttpTarget, response: Response, start_ms: Ms, end_ms: Ms) -> Outcome:
    """The outcome of an attempt that got a response at `end_ms`."""
    kind = _kind(target, response)
    pause = kind == OutcomeKind.RETRY
    return Outcome(
        kind=kind,
        status=response.status,
        error="" if kind == OutcomeKind.SUCCEEDED else "status",
        body=response.body[:BODY_STORED_BYTES_MAX],
        start_ms=start_ms,
        end_ms=end_ms,
        retry_after_ms=retry_after_ms(response.headers, end_ms) if pause else 0,
    )


def judge_error(error: TransportError, start_ms: Ms, end_ms: Ms) -> Outcome:
    """The outcome of an attempt that got none."""
    return Outcome(
        kind=OutcomeKind.FAIL if error.kind == ErrorKind.BLOCKED else OutcomeKind.RETRY,
        status=0,
        error=error.kind.value,
        body=b"",
        start_ms=start_ms,
        end_ms=end_ms,
        sent=error.sent,
    )


def _kind(target: HttpTarget, response: Response) -> OutcomeKind:
    status = response.status
    if _within(status, target.success or _SUCCESS):
        return OutcomeKind.SUCCEEDED
    if status == _GONE:
        return OutcomeKind.DISABLE
    if response.headers.get("tickwheel-retry", "").strip().lower() == "no":
        return OutcomeKind.FAIL
    if target.retry_on and not _within(status, target.retry_on):
        return OutcomeKind.FAIL
    return OutcomeKind.RETRY


def _within(status: int, ranges: Sequence[tuple[int, int]]) -> bool:
    for low, high in ranges:  # noqa: SIM110 - asked at every response, and a generator costs more than its answer
        if low <= status <= high:
            return True
    return False


def retry_after_ms(headers: Mapping[str, str], now_ms: Ms) -> int:
    """The pause that `Retry-After` asks for, 0 if none or nonsense, at most an hour.

    A date is read against the response's own `Date`, so that a target whose clock is wrong still says what it means.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        seconds = int(text[: _SECONDS_DIGITS_MAX + 1])
        return min(seconds * 1000, RETRY_AFTER_MS_MAX)
    until_ms = _http_date_ms(text)
    if until_ms is None:
        return 0
    from_ms = _http_date_ms(headers.get("date", ""))
    pause_ms = until_ms - (now_ms if from_ms is None else from_ms)
    return max(0, min(pause_ms, RETRY_AFTER_MS_MAX))


def _http_date_ms(text: str) -> Ms | None:
    """An HTTP date (RFC 9110 §5.6.7, all three forms) as UTC milliseconds."""
    try:
        parsed = parsedate_to_datetime(text)
        return int(parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp()) * 1000
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
