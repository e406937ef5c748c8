"""The contract's files: their numbers are the server's, their routing is computable, nothing lacks a comment."""

import re
import zlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor

from tickwheel.internal.v1 import effects_pb2, unread_pb2
from tickwheel.server import model
from tickwheel.server.command import Cancellation
from tickwheel.server.query import GroupBy
from tickwheel.v1 import execution_pb2, job_pb2, job_service_pb2, schedule_pb2

PROTO = Path(__file__).resolve().parents[2] / "proto" / "tickwheel"
DECLARATION = re.compile(
    r"(rpc|message|enum|service|oneof) \w+|(repeated |optional )?[\w.<>, ]+ \w+ = \d+|[A-Z_\d]+ = \d+;"
)


@pytest.mark.parametrize(
    ("file", "name", "server"),
    [
        (job_pb2.DESCRIPTOR, "JobState", model.JobState),
        (job_pb2.DESCRIPTOR, "MisfirePolicy", model.MisfirePolicy),
        (job_pb2.DESCRIPTOR, "OverlapPolicy", model.OverlapPolicy),
        (job_pb2.DESCRIPTOR, "Delivery", model.Delivery),
        (execution_pb2.DESCRIPTOR, "ExecutionState", model.ExecutionState),
        (execution_pb2.DESCRIPTOR, "ExecutionKind", model.ExecutionKind),
        (execution_pb2.DESCRIPTOR, "Reason", model.Reason),
        (schedule_pb2.DESCRIPTOR, "DstGap", model.DstGap),
        (schedule_pb2.DESCRIPTOR, "DstOverlap", model.DstOverlap),
        (schedule_pb2.DESCRIPTOR, "CronDialect", model.CronDialect),
        (job_service_pb2.DESCRIPTOR, "CountGrouping", GroupBy),
    ],
)
def test_the_api_and_the_server_give_an_enum_the_same_numbers(
    file: FileDescriptor, name: str, server: type[IntEnum]
) -> None:
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper() + "_"
    spoken = {
        value.name.removeprefix(prefix): value.number
        for value in file.enum_types_by_name[name].values
    }
    assert spoken.pop("UNSPECIFIED") == 0
    assert spoken == {kind.name: kind.value for kind in server if kind.value}


def test_a_cancellation_has_the_servers_numbers() -> None:
    spoken = dict(job_service_pb2.Cancellation.items())
    assert spoken == {
        "CANCELLATION_UNSPECIFIED": 0,
        "CANCELLATION_CANCELLED_BEFORE_DISPATCH": Cancellation.BEFORE_DISPATCH.value,
        "CANCELLATION_ALREADY_DISPATCHED": Cancellation.ALREADY_DISPATCHED.value,
        "CANCELLATION_DISPATCH_UNKNOWN": Cancellation.DISPATCH_UNKNOWN.value,
    }


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (effects_pb2.Execution.DESCRIPTOR, model.Execution._fields),
        (effects_pb2.Attempt.DESCRIPTOR, model.Attempt._fields),
        (effects_pb2.Effects.DESCRIPTOR, model.Effects._fields),
        (effects_pb2.JobPuts.DESCRIPTOR, ("row", *model.JobRow._fields)),
    ],
)
def test_the_journal_mirrors_the_model(message: Descriptor, fields: tuple[str, ...]) -> None:
    assert tuple(field.name for field in message.fields) == fields


@pytest.mark.parametrize(
    ("unread", "read"),
    [
        (unread_pb2.UnreadCreate.DESCRIPTOR, job_service_pb2.CreateJobRequest.DESCRIPTOR),
        (unread_pb2.UnreadBatch.DESCRIPTOR, job_service_pb2.BatchCreateJobsRequest.DESCRIPTOR),
        (
            unread_pb2.UnreadStreamMessage.DESCRIPTOR,
            job_service_pb2.StreamCreateJobsRequest.DESCRIPTOR,
        ),
    ],
)
def test_what_is_not_read_yet_has_the_fields_of_what_is(
    unread: Descriptor, read: Descriptor
) -> None:
    """In number, name and form on the wire; of two creates the jobs alone are bytes."""

    def form(message: Descriptor) -> list[tuple[str, int, bool, str]]:
        return [
            (
                f.name,
                f.number,
                f.is_repeated,
                "message" if f.type in {f.TYPE_MESSAGE, f.TYPE_BYTES} else str(f.type),
            )
            for f in message.fields
        ]

    assert form(unread) == form(read)


def test_the_routing_formula_stands_with_a_vector_that_holds() -> None:
    text = (PROTO / "v1" / "cluster_service.proto").read_text("utf-8")
    text = " ".join(line.removeprefix("//").strip() for line in text.splitlines())
    vector = re.search(
        r'crc32\("([^"]+)"\) = (0x[0-9A-F]{8}) = (\d+), so with (\d+) shards it is on shard (\d+)',
        text,
    )
    assert vector is not None
    crc = zlib.crc32(vector[1].encode())
    assert (int(vector[2], 16), int(vector[3]), int(vector[5])) == (crc, crc, crc % int(vector[4]))


def uncommented(text: str) -> Iterator[str]:
    """Yield each declaration that no comment stands before."""
    before = ""
    for line in (line.strip() for line in text.splitlines()):
        if DECLARATION.match(line) and not before.startswith("//"):
            yield line
        before = line


def test_every_declaration_has_a_comment() -> None:
    files = sorted(PROTO.rglob("*.proto"))
    assert files
    assert {f.name: list(uncommented(f.read_text("utf-8"))) for f in files} == {
        f.name: [] for f in files
    }


def test_a_missing_comment_is_found() -> None:
    text = "// A.\nmessage A {\n  // B.\n  int32 b = 1;\n  repeated C c = 2 [(x) = Y];\n  map<string, C> d = 3;\n}\n"
    assert list(uncommented(text)) == ["repeated C c = 2 [(x) = Y];", "map<string, C> d = 3;"]
