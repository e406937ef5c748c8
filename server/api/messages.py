"""Floor 5. Bytes → messages of the API, for whoever gets bytes: the gRPC door, and the door between nodes.

A request that can't be read gets a status with details, and so does one with a field that this version does not know:
what is not honoured is refused. Between nodes of two versions that holds as well, so it is asked again where a
forwarded call is carried out.

Must never import: rooms below but `errors`; nothing of a transport.
"""

from typing import Any, Final, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from tickwheel.internal.v1.unread_pb2 import UnreadBatch
from tickwheel.server.errors import InvalidArgument, Unimplemented
from tickwheel.v1 import job_service_pb2

M = TypeVar("M", bound=Message)

SERVICE: Final = "tickwheel.v1.JobService."
BATCH: Final = SERVICE + "BatchCreateJobs"


def read_message(kind: type[M], data: bytes) -> M:
    """The message of its bytes. Raises InvalidArgument, also for a field that this version would not honour."""
    try:
        message = kind.FromString(data)
    except DecodeError:
        raise InvalidArgument(
            "the request is no message of this method", reason="MESSAGE_MALFORMED"
        ) from None
    size_bytes = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size_bytes:
        raise InvalidArgument(
            "the request holds a field that this version of the server does not know, and would "
            "not honour; leave it out, or upgrade the server",
            reason="FIELD_UNKNOWN",
        )
    return message


def request_class(method: str) -> type[Any]:
    """The class that a request of a method is read with, `tickwheel.v1.JobService.GetJob`. Raises Unimplemented."""
    if method == BATCH:
        return UnreadBatch
    return GetMessageClass(_method(method).input_type)


def response_class(method: str) -> type[Any]:
    """The class of its response. Raises Unimplemented."""
    return GetMessageClass(_method(method).output_type)


def _method(method: str) -> MethodDescriptor:
    service = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]
    found = service.methods_by_name.get(method.removeprefix(SERVICE))
    if found is None:
        raise unknown_method(method)
    return found


def unknown_method(method: str) -> Unimplemented:
    """What a node of a later version is told that forwards what this one does not have."""
    return Unimplemented(
        f"this version of the server does not have {method}", metadata={"method": method}
    )
