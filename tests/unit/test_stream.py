"""StreamCreateJobs: credits, answers, and the rules that a client must keep."""

from collections.abc import AsyncIterator

import pytest
from tests.bad_input import PARENT, good_job
from tests.door import Door

from tickwheel.internal.v1.unread_pb2 import UnreadStreamMessage
from tickwheel.server.api import limits
from tickwheel.server.api.creates import Creator
from tickwheel.server.api.stream import CreateStream
from tickwheel.server.errors import (
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from tickwheel.v1 import job_service_pb2 as pb


@pytest.fixture
def door() -> Door:
    return Door()


# --- bulk load -------------------------------------------------------------------------------


class Written:
    """The writing half of a stream."""

    def __init__(self) -> None:
        self.messages: list[pb.StreamCreateJobsResponse] = []

    async def write(self, message: pb.StreamCreateJobsResponse, /) -> None:
        self.messages.append(message)


async def stream(
    door: Door, *messages: pb.StreamCreateJobsRequest
) -> list[pb.StreamCreateJobsResponse]:
    async def sent() -> AsyncIterator[UnreadStreamMessage]:
        for message in messages:
            yield UnreadStreamMessage.FromString(message.SerializeToString())

    written = Written()
    creator = Creator(door.scheduler, door.converter)
    await CreateStream(creator, written).serve(sent())
    return written.messages


def message(sequence: int, *job_ids: str, parent: str = "") -> pb.StreamCreateJobsRequest:
    requests = [pb.CreateJobRequest(job_id=job_id, job=good_job()) for job_id in job_ids]
    return pb.StreamCreateJobsRequest(sequence=sequence, parent=parent, requests=requests)


async def test_a_stream_opens_with_a_window_and_answers_each_message(door: Door) -> None:
    window, *answers = await stream(door, message(7, "a", "B", parent=PARENT), message(9, "c"))
    assert window.window.messages == limits.STREAM_WINDOW_MESSAGES
    kinds = {
        answer.result.sequence: [result.WhichOneof("result") for result in answer.result.results]
        for answer in answers
    }
    assert kinds == {7: ["handle", "error"], 9: ["handle"]}


async def test_a_full_queue_is_an_answer_and_not_the_end(door: Door) -> None:
    door.scheduler.fault = ResourceExhausted("full", retry_after_ms=100)
    _, answer = await stream(door, message(1, "a", "b", parent=PARENT))
    assert [result.error.message for result in answer.result.results] == ["full", "full"]
    door.scheduler.fault = Unavailable("moving")
    _, answer = await stream(door, message(1, "a", parent=PARENT))
    assert [result.error.message for result in answer.result.results] == ["moving"]


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        ([message(1, "a")], "parent", "REQUIRED"),
        ([message(1, parent=PARENT)], "requests", "BATCH_SIZE"),
        (
            [message(1, "a", parent=PARENT), message(2, "b", parent="namespaces/b")],
            "parent",
            "PARENT_MISMATCH",
        ),
        ([message(1, "a", parent=PARENT), message(1, "b")], "sequence", "SEQUENCE_IN_USE"),
        ([message(n, "a", parent=PARENT) for n in range(9)], "sequence", "WINDOW_EXCEEDED"),
    ],
)
async def test_a_stream_that_breaks_the_rules_ends(
    door: Door, messages: list[pb.StreamCreateJobsRequest], field: str, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await stream(door, *messages)
    violation = raised.value.violations[0]
    assert (violation.field, violation.reason) == (field, reason)
