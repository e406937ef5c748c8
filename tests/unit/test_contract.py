"""The response contract: every rule, and which wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.server.dispatch.contract import (
    BODY_STORED_BYTES_MAX,
    RETRY_AFTER_MS_MAX,
    judge,
    judge_error,
    retry_after_ms,
)
from tickwheel.server.dispatch.transport import ErrorKind, Response, TransportError
from tickwheel.server.fire import Outcome, OutcomeKind
from tickwheel.server.model import HttpTarget

PLAIN = HttpTarget("http://example.com")
SUCCEEDED, RETRY, FAIL, DISABLE = (
    OutcomeKind.SUCCEEDED,
    OutcomeKind.RETRY,
    OutcomeKind.FAIL,
    OutcomeKind.DISABLE,
)
NOW_MS = 784_111_777_000  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


def kind(status: int, target: HttpTarget = PLAIN, **headers: str) -> OutcomeKind:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(target, Response(status, named, b""), 0, 0).kind


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, SUCCEEDED),
        (204, SUCCEEDED),
        (299, SUCCEEDED),
        (101, RETRY),
        (199, RETRY),
        (300, RETRY),
        (302, RETRY),
        (400, RETRY),
        (404, RETRY),
        (408, RETRY),
        (409, RETRY),
        (410, DISABLE),
        (425, RETRY),
        (429, RETRY),
        (500, RETRY),
        (503, RETRY),
        (599, RETRY),
    ],
)
def test_the_default_rule(status: int, expected: OutcomeKind) -> None:
    assert kind(status) == expected


def test_success_ranges_take_the_place_of_2xx() -> None:
    target = _target(success=((201, 202), (410, 410)))
    assert [kind(status, target) for status in (200, 201, 202, 203, 410)] == [
        RETRY,
        SUCCEEDED,
        SUCCEEDED,
        RETRY,
        SUCCEEDED,
    ]


def _target(
    success: tuple[tuple[int, int], ...] = (), retry_on: tuple[tuple[int, int], ...] = ()
) -> HttpTarget:
    return HttpTarget("http://example.com", success=success, retry_on=retry_on)


def test_outside_of_retry_on_it_fails() -> None:
    target = _target(retry_on=((429, 429), (500, 599)))
    assert [kind(status, target) for status in (200, 404, 410, 429, 503)] == [
        SUCCEEDED,
        FAIL,
        DISABLE,
        RETRY,
        RETRY,
    ]


@pytest.mark.parametrize("value", ["no", "No", " NO "])
def test_the_target_may_end_the_retries(value: str) -> None:
    assert kind(503, tickwheel_retry=value) == FAIL
    assert kind(200, tickwheel_retry=value) == SUCCEEDED
    assert kind(410, tickwheel_retry=value) == DISABLE


@pytest.mark.parametrize("value", ["yes", "", "none"])
def test_any_other_word_ends_nothing(value: str) -> None:
    assert kind(503, tickwheel_retry=value) == RETRY


def test_what_is_stored() -> None:
    response = Response(500, {"retry-after": "7"}, b"x" * (BODY_STORED_BYTES_MAX + 1))
    assert judge(PLAIN, response, 5, 9) == Outcome(
        RETRY, 500, "status", b"x" * BODY_STORED_BYTES_MAX, 5, 9, retry_after_ms=7_000
    )
    assert judge(PLAIN, Response(200, {"retry-after": "7"}, b"ok"), 5, 9) == Outcome(
        SUCCEEDED, 200, "", b"ok", 5, 9
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("0", 0),
        ("120", 120_000),
        (" 3 ", 3_000),
        ("3600", 3_600_000),
        ("3601", RETRY_AFTER_MS_MAX),
        ("9" * 5_000, RETRY_AFTER_MS_MAX),
        ("-1", 0),
        ("1.5", 0),
        ("\u0663", 0),
        ("soon", 0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10_000),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10_000),
        ("Sun Nov  6 08:49:47 1994", 10_000),
        ("Sun, 06 Nov 1994 08:49:47 -0000", 10_000),
        ("Sun, 06 Nov 1994 08:49:27 GMT", 0),
        ("Sun, 06 Nov 2094 08:49:37 GMT", RETRY_AFTER_MS_MAX),
        ("Sun, 99 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 06 Nov 99999999 08:49:37 GMT", 0),
    ],
)
def test_retry_after(text: str, expected: int) -> None:
    assert retry_after_ms({"retry-after": text}, NOW_MS) == expected


def test_a_date_is_read_against_the_responses_own() -> None:
    """The target's clock is a day slow, and it still asks for ten seconds."""
    headers = {
        "retry-after": "Sat, 05 Nov 1994 08:49:47 GMT",
        "date": "Sat, 05 Nov 1994 08:49:37 GMT",
    }
    assert retry_after_ms(headers, NOW_MS) == 10_000
    assert retry_after_ms({**headers, "date": "nonsense"}, NOW_MS) == 0


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_makes_it_fall_over(text: str, date: str) -> None:
    pause = retry_after_ms({"retry-after": text, "date": date}, NOW_MS)
    assert 0 <= pause <= RETRY_AFTER_MS_MAX


@pytest.mark.parametrize("error", list(ErrorKind))
@pytest.mark.parametrize("sent", [True, False])
def test_errors_retry_unless_our_guard_said_no(error: ErrorKind, sent: bool) -> None:
    expected = FAIL if error == ErrorKind.BLOCKED else RETRY
    assert judge_error(TransportError(error, sent=sent), 5, 9) == Outcome(
        expected, 0, error.value, b"", 5, 9, sent=sent
    )
