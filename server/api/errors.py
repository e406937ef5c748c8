"""Floor 5. Errors as the API shows them: a gRPC status with `google.rpc` details (AIP-193).

    ErrorInfo    always: reason, domain, metadata
    BadRequest   the wrong fields, each with its path, what to do, and a reason
    RetryInfo    where waiting helps

What nobody foresaw, and what stops the node, becomes INTERNAL with an incident number and nothing else: the log holds
the rest under that number. Texts are bounded, because all this travels as metadata.

Must never import: rooms below but `errors`.
"""

import asyncio
import secrets
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tickwheel.server.api.limits import (
    ERROR_MESSAGE_CHARS_MAX,
    ERROR_TEXT_CHARS_MAX,
    ERROR_VIOLATIONS_MAX,
)
from tickwheel.server.errors import Fatal, TickwheelError
from tickwheel.server.logs import get_logger

log = get_logger(__name__)

DOMAIN: Final = "tickwheel"

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: BaseException) -> Status:
    """The status of any error; one that callers must not see in full is logged here, once."""
    if isinstance(error, TickwheelError) and not isinstance(error, Fatal):
        return _known(error)
    return _internal(error)


async def abort_with(context: "grpc.aio.ServicerContext[Any, Any]", status: Status) -> NoReturn:
    """End the call with a status and its details (`grpc-status-details-bin`, as grpcio-status reads it)."""
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(_CODES[status.code], status.message, details)


def _known(error: TickwheelError) -> Status:
    metadata = {key: _cut(value) for key, value in error.metadata.items()}
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.violations:
        shown = error.violations[:ERROR_VIOLATIONS_MAX]
        details.append(
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(
                        field=_cut(v.field), description=_cut(v.description), reason=v.reason
                    )
                    for v in shown
                ]
            )
        )
    if error.retry_after_ms is not None:
        info = RetryInfo()
        info.retry_delay.FromMilliseconds(error.retry_after_ms)
        details.append(info)
    return _status(error.code, error.message[:ERROR_MESSAGE_CHARS_MAX], details)


def _internal(error: BaseException) -> Status:
    assert not isinstance(error, asyncio.CancelledError), "a cancelled call has no status to send"
    incident = secrets.token_hex(8)
    log.error("incident %s: a call failed", incident, exc_info=error)
    text = f"internal error; the server's log tells more under incident {incident}"
    info = ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"incident": incident})
    return _status("INTERNAL", text, [info])


def _status(code: str, message: str, details: list[Message]) -> Status:
    status = Status(code=Code.Value(code), message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(text: str) -> str:
    limit = ERROR_TEXT_CHARS_MAX
    return text if len(text) <= limit else text[: limit - 1] + "…"
