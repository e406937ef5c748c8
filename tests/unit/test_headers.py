"""The headers of a request: what a user may say, and what the server says."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.server.dispatch.headers import (
    build_headers,
    check_headers,
    encode_id,
    kept_across_origins,
    rfc3339,
    traceparent,
)
from tickwheel.server.fire import Fire
from tickwheel.server.model import HttpTarget

UID = "0198c0ffee00400080000123456789ab"
FIRE = Fire(
    shard=3,
    execution_row=1,
    job_row=2,
    id=f"{UID}:1767225600000",
    namespace="acme",
    job="nightly",
    generation=4,
    epoch=7,
    scheduled_ms=1_767_225_600_000,
    due_ms=1_767_225_600_123,
    attempt=2,
    target=HttpTarget("http://example.com", headers=(("X-A", "b"),), body=b"x"),
    late=False,
)


def decode_id(encoded: str) -> str:
    """The way back, as a receiver would write it."""
    raw = re.sub(
        r"~([0-9A-F]{2})|_", lambda m: ":" if m[1] is None else chr(int(m[1], 16)), encoded
    )
    return raw.encode("latin-1").decode()


def test_all_headers_of_an_attempt() -> None:
    assert build_headers(FIRE, 1_767_225_601_999, "1.2") == (
        ("X-A", "b"),
        ("webhook-id", f"{UID}_1767225600000"),
        ("webhook-timestamp", "1767225601"),
        ("Idempotency-Key", f"{UID}_1767225600000"),
        ("Tickwheel-Job", "namespaces/acme/jobs/nightly"),
        ("Tickwheel-Scheduled-Time", "2026-01-01T00:00:00.000Z"),
        ("Tickwheel-Attempt", "2"),
        ("Tickwheel-Epoch", "7"),
        ("traceparent", traceparent(FIRE.id, 2, 7)),
        ("User-Agent", "tickwheel/1.2"),
        ("Content-Type", "application/octet-stream"),
    )


def test_a_users_agent_and_type_stand() -> None:
    headers = (("user-AGENT", "mine"), ("content-TYPE", "application/json"))
    fire = FIRE._replace(target=HttpTarget("http://example.com", headers=headers, body=b"{}"))
    names = [name.lower() for name, _ in build_headers(fire, 0, "1.2")]
    assert names.count("user-agent") == names.count("content-type") == 1


def test_no_type_without_a_body() -> None:
    fire = FIRE._replace(target=HttpTarget("http://example.com"))
    assert "Content-Type" not in dict(build_headers(fire, 0, "1.2"))


def test_what_we_say_passes_our_own_check() -> None:
    """A receiver's library sees tokens and printable values only."""
    ours = build_headers(FIRE._replace(id=f"{UID}:r:ä\r\n.x"), 0, "1.2")
    reasons = {violation.reason for violation in check_headers(ours)}
    assert reasons == {"HEADER_RESERVED"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{UID}:1767225600000", f"{UID}_1767225600000"),
        ("u:r:req-1", "u_r_req-1"),
        ("u:r:a.b_c~d", "u_r_a~2Eb~5Fc~7Ed"),
        ("u:r:ä", "u_r_~C3~A4"),
    ],
)
def test_ids_are_encoded(text: str, expected: str) -> None:
    assert encode_id(text) == expected


@given(st.text(max_size=50))
def test_an_encoded_id_can_be_read_back(text: str) -> None:
    encoded = encode_id(text)
    assert re.fullmatch(r"[A-Za-z0-9_~-]*", encoded)
    assert decode_id(encoded) == text


def test_one_trace_an_execution_one_span_an_attempt() -> None:
    first, second, zombie = (
        traceparent("a", 1, 1).split("-"),
        traceparent("a", 2, 1).split("-"),
        traceparent("a", 1, 2).split("-"),
    )
    assert first[1] == second[1] == zombie[1]
    assert len({first[2], second[2], zombie[2]}) == 3
    assert traceparent("b", 1, 1).split("-")[1] != first[1]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", traceparent("a", 1, 1))


@pytest.mark.parametrize(
    ("time_ms", "expected"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_767_225_600_007, "2026-01-01T00:00:00.007Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times(time_ms: int, expected: str) -> None:
    assert rfc3339(time_ms) == expected


# --- what a user may say ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-A", "b"), ("Authorization", "Bearer x"), ("x!#$%&'*+-.^_`|~", ""), ("A", "a\tb é")],
)
def test_headers_that_pass(name: str, value: str) -> None:
    assert check_headers([(name, value)]) == []


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "Connection",
        "TE",
        "Upgrade",
        "Proxy-Authorization",
        "proxy-x",
        "Keep-Alive",
        "Trailer",
        "Expect",
        "webhook-id",
        "Webhook-Signature",
        "Tickwheel-Job",
        "tickwheel-x",
        "Idempotency-Key",
        "traceparent",
    ],
)
def test_reserved_names(name: str) -> None:
    (violation,) = check_headers([("X", "y"), (name, "x")])
    assert (violation.field, violation.reason) == ("http_target.headers[1].name", "HEADER_RESERVED")


@pytest.mark.parametrize("name", ["", " ", "a b", "a:", "a\r\nb", "é", "a\0", "(x)"])
def test_names_that_are_no_tokens(name: str) -> None:
    (violation,) = check_headers([(name, "x")])
    assert (violation.field, violation.reason) == ("http_target.headers[0].name", "HEADER_NAME")


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0", "\x7f", "€", " a", "a ", "\ta", "a\n"])
def test_values_that_are_refused(value: str) -> None:
    (violation,) = check_headers([("X", value)], "h")
    assert (violation.field, violation.reason) == ("h[0].value", "HEADER_VALUE")


def test_too_many_and_too_large() -> None:
    assert check_headers([("X", "y")] * 64) == []
    assert [v.reason for v in check_headers([("X", "y")] * 65)] == ["HEADERS_TOO_MANY"]
    assert check_headers([("X", "y" * (16_384 - 5))]) == []
    assert [v.reason for v in check_headers([("X", "y" * 16_380)])] == ["HEADERS_TOO_LARGE"]


def test_only_our_own_headers_go_to_another_origin() -> None:
    kept = {name for name, _ in build_headers(FIRE, 0, "1") if kept_across_origins(name)}
    assert kept == {name for name, _ in build_headers(FIRE, 0, "1")} - {"X-A"}
    assert not kept_across_origins("Authorization")
    assert not kept_across_origins("Cookie")
    assert not kept_across_origins("webhook-signature")
