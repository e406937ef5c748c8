"""Floor 3. An error ↔ google.rpc.Status, so that a forwarded call fails with the same error as one that was not.

What the leader refuses comes out of `Peers.forward` as the same class, reason, metadata, violations and retry time. An
error that nobody foresaw is told in the leader's log; the other node hears only that there was one.

Must never import: gRPC, another room of the cluster.
"""

from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tickwheel.server import errors
from tickwheel.server.errors import Fatal, TickwheelError, Violation

DOMAIN: Final = "tickwheel"

_CLASSES: Final[dict[str, type[TickwheelError]]] = {
    kind.code: kind for kind in TickwheelError.__subclasses__() if kind is not Fatal
}
assert errors.NotFound in _CLASSES.values()


def encode(error: TickwheelError) -> bytes:
    """The status of an error that callers may see."""
    details: list[Message] = [
        ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    if error.violations:
        violations = [
            BadRequest.FieldViolation(field=v.field, description=v.description, reason=v.reason)
            for v in error.violations
        ]
        details.append(BadRequest(field_violations=violations))
    if error.retry_after_ms is not None:
        info = RetryInfo()
        info.retry_delay.FromMilliseconds(error.retry_after_ms)
        details.append(info)
    status = Status(code=Code.Value(error.code), message=error.message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status.SerializeToString()


def decode(data: bytes) -> TickwheelError:
    """The error of a status."""
    try:
        status = Status.FromString(data)
        code = Code.Name(status.code)
    except (DecodeError, ValueError):
        return TickwheelError("the other node answered with what is no status")
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        for kind in (info, bad, retry):
            detail.Unpack(kind)  # leaves alone what is of another kind
    return _CLASSES.get(code, TickwheelError)(
        status.message,
        reason=info.reason or None,
        metadata=dict(info.metadata),
        violations=[Violation(v.field, v.description, v.reason) for v in bad.field_violations],
        retry_after_ms=retry.retry_delay.ToMilliseconds()
        if retry.HasField("retry_delay")
        else None,
    )
