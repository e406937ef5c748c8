"""Errors as statuses: code, details, bounds, and what callers must not see."""

import asyncio
import inspect
import logging
from typing import TypeVar

import pytest
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tickwheel.server import errors
from tickwheel.server.api.errors import to_status
from tickwheel.server.errors import (
    Fatal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TickwheelError,
    Violation,
    WalRot,
)

T = TypeVar("T", bound=Message)

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, TickwheelError)
]


def details(status: Status, kind: type[T]) -> list[T]:
    found: list[T] = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_a_code_and_one_info(kind: type[TickwheelError]) -> None:
    status = to_status(kind("text"))
    (info,) = details(status, ErrorInfo)
    assert Code.Name(status.code) == kind.code
    assert info.domain == "tickwheel"
    assert info.reason == info.reason.upper()


def test_metadata_and_reason_come_through() -> None:
    error = NotFound("no job 'a'", reason="JOB_NOT_FOUND", metadata={"job": "a"})
    status = to_status(error)
    (info,) = details(status, ErrorInfo)
    assert status.message == "no job 'a'"
    assert (info.reason, dict(info.metadata)) == ("JOB_NOT_FOUND", {"job": "a"})
    assert not details(status, BadRequest)
    assert not details(status, RetryInfo)


def test_every_violation_is_named() -> None:
    error = InvalidArgument.of(
        [Violation("a.b", "must be set", "REQUIRED"), Violation("c", "is odd")]
    )
    (bad,) = details(to_status(error), BadRequest)
    assert [(v.field, v.description, v.reason) for v in bad.field_violations] == [
        ("a.b", "must be set", "REQUIRED"),
        ("c", "is odd", "INVALID"),
    ]


def test_a_pause_is_told() -> None:
    (info,) = details(to_status(ResourceExhausted("full", retry_after_ms=1_500)), RetryInfo)
    assert info.retry_delay.ToMilliseconds() == 1_500


def test_a_status_is_bounded_whatever_is_wrong() -> None:
    many = [Violation("f" * 10_000, "d" * 10_000) for _ in range(1_000)]
    status = to_status(InvalidArgument.of(many))
    assert status.ByteSize() < 8_192


@pytest.mark.parametrize(
    "error", [RuntimeError("/srv/secret"), KeyError("token"), WalRot("/srv/secret"), Fatal("token")]
)
def test_what_nobody_foresaw_is_logged_and_not_told(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        status = to_status(error)
    (info,) = details(status, ErrorInfo)
    assert status.code == Code.INTERNAL
    assert b"secret" not in status.SerializeToString()
    assert b"token" not in status.SerializeToString()
    assert info.metadata["incident"] in status.message
    assert info.metadata["incident"] in caplog.text
    assert str(error) in caplog.text


def test_a_cancelled_call_has_no_status() -> None:
    with pytest.raises(AssertionError):
        to_status(asyncio.CancelledError())
