"""Every error of the client, in one tree that mirrors the codes of the API.

    TickwheelError           code                  what to do
    ├── InvalidArgument      INVALID_ARGUMENT      mend the fields that `violations` name
    ├── NotFound             NOT_FOUND
    ├── AlreadyExists        ALREADY_EXISTS        the name is taken by other content
    ├── FailedPrecondition   FAILED_PRECONDITION   the resource's state forbids it
    ├── Aborted              ABORTED               the etag is old: read again, then decide
    ├── ResourceExhausted    RESOURCE_EXHAUSTED    come again after `retry_after_s`
    ├── Unavailable          UNAVAILABLE           nobody was there until the deadline
    ├── DeadlineExceeded     DEADLINE_EXCEEDED     unknown whether it was done; repeat with the same request_id
    ├── Unauthenticated      UNAUTHENTICATED
    ├── PermissionDenied     PERMISSION_DENIED
    ├── Unimplemented        UNIMPLEMENTED         the server is older than this call
    └── InternalError        INTERNAL              and every code that has no name above

`reason` is stable and made for programs (`ETAG_MISMATCH`); the text is for people and may change.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, cast

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN: Final = "tickwheel"
_DETAILS_KEY: Final = "grpc-status-details-bin"


class Violation(NamedTuple):
    """One wrong field: its path as the API spells it, what to do, and a stable reason."""

    field: str
    description: str
    reason: str


class TickwheelError(Exception):
    """The root. `from_server` tells whether a Tickwheel server said it, or the way to one broke."""

    code: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
        from_server: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.from_server = from_server

    def __str__(self) -> str:
        """The message, and every wrong field but one that the message already names."""
        rest = [
            f"{field}: {description}"
            for field, description, _ in self.violations
            if description not in self.message
        ]
        return "; ".join([self.message, *rest])


class InvalidArgument(TickwheelError):
    """A field of the request is wrong; `violations` name each."""

    code = "INVALID_ARGUMENT"


class NotFound(TickwheelError):
    """There is no such job, execution or namespace."""

    code = "NOT_FOUND"


class AlreadyExists(TickwheelError):
    """The name is taken, by a job with other content."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(TickwheelError):
    """The resource's state does not allow the call."""

    code = "FAILED_PRECONDITION"


class Aborted(TickwheelError):
    """The etag is not the resource's any more."""

    code = "ABORTED"


class ResourceExhausted(TickwheelError):
    """A bound of the server is reached; `retry_after_s` says when to come again."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(TickwheelError):
    """No server could be reached, or the one that was is starting or stopping."""

    code = "UNAVAILABLE"


class DeadlineExceeded(TickwheelError):
    """The time was over; whether it was done is unknown."""

    code = "DEADLINE_EXCEEDED"


class Unauthenticated(TickwheelError):
    """No API key, or one that the server does not know."""

    code = "UNAUTHENTICATED"


class PermissionDenied(TickwheelError):
    """The API key does not reach that far."""

    code = "PERMISSION_DENIED"


class Unimplemented(TickwheelError):
    """The server does not have this method."""

    code = "UNIMPLEMENTED"


class InternalError(TickwheelError):
    """The server failed; `metadata["incident"]` finds it in the server's log."""

    code = "INTERNAL"


_NAMED: Final[dict[str, type[TickwheelError]]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        InternalError,
    )
}
_NUMBERED: Final[dict[int, type[TickwheelError]]] = {
    code.value[0]: _NAMED[code.name] for code in grpc.StatusCode if code.name in _NAMED
}


def from_status(status: Status) -> TickwheelError:
    """The error that a `google.rpc.Status` means: that of a call, or of one item of a batch."""
    info, violations, retry_after_s = ErrorInfo(), list[Violation](), None
    for detail in status.details:
        retry = RetryInfo()
        request = BadRequest()
        if detail.Unpack(request):
            violations += [
                Violation(v.field, v.description, v.reason) for v in request.field_violations
            ]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        else:
            detail.Unpack(info)
    return _NUMBERED.get(status.code, InternalError)(
        status.message,
        reason=info.reason,
        metadata=info.metadata,
        violations=violations,
        retry_after_s=retry_after_s,
        from_server=info.domain == DOMAIN,
    )


def from_call(error: grpc.aio.AioRpcError) -> TickwheelError:
    """The error of a call that gRPC ended. The answer's details, if any, tell more than the code."""
    packed = _details(error)
    if packed is not None:
        return from_status(Status.FromString(packed))
    kind = _NAMED.get(error.code().name, InternalError)
    text = error.details() or error.code().name
    return kind(text if kind.code == error.code().name else f"{error.code().name}: {text}")


def _details(error: grpc.aio.AioRpcError) -> bytes | None:
    for key, value in cast("Any", error.trailing_metadata() or ()):
        if key == _DETAILS_KEY:
            return bytes(value)
    return None
