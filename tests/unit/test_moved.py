"""A job that comes from another server: what it keeps, what is made anew, and what is refused."""

from typing import Any

import pytest
from tests.bad_input import good_create
from tests.door import Door
from tests.unit import shard_kit as kit
from tests.unit.shard_kit import HOUR, NOW, Bench

from tickwheel.server import codec
from tickwheel.server.api import moved as room
from tickwheel.server.command import (
    Cancel,
    Cancellation,
    ChangeReply,
    Create,
    JobView,
    Moved,
    Resume,
)
from tickwheel.server.errors import AlreadyExists, InvalidArgument
from tickwheel.server.model import ExecutionState, JobState, Status
from tickwheel.v1 import job_pb2
from tickwheel.v1 import job_service_pb2 as pb

UID = bytes(range(16))
ORIGIN = b"what-was-sent-in"


def request(**changes: Any) -> pb.CreateJobRequest:
    made = good_create()
    made.job_id = "nightly"
    made.moved = True
    job = made.job
    job.uid, job.origin, job.generation = UID.hex(), ORIGIN, 3
    job.state = job_pb2.JOB_STATE_SCHEDULED
    job.started_count, job.succeeded_count, job.failed_count, job.skipped_count = 7, 5, 1, 2
    job.last_outcome = int(ExecutionState.FAILED)  # type: ignore[assignment]  # equal numbers
    job.next_time.FromMilliseconds(NOW + HOUR)
    job.last_time.FromMilliseconds(NOW - HOUR)
    for name, value in changes.items():
        if name == "job_id":
            made.job_id = value
        elif name.endswith("_time"):
            getattr(job, name).seconds, getattr(job, name).nanos = value
        else:
            setattr(job, name, value)
    return made


def test_the_output_only_fields_hold() -> None:
    found = room.take(request())
    assert found.uid == UID
    assert found.status == Status(
        JobState.SCHEDULED, 3, 0, 0, next_ms=NOW + HOUR, last_ms=NOW - HOUR, last_outcome=int(ExecutionState.FAILED),
        run=7, succeeded=5, failed=1, skipped=2, origin=ORIGIN,
    )  # fmt: skip
    bare = request(state=job_pb2.JOB_STATE_COMPLETED, last_outcome=0)
    bare.job.ClearField("next_time")
    bare.job.ClearField("last_time")
    status = room.take(bare).status
    assert (status.state, status.next_ms, status.last_ms, status.last_outcome) == (3, 0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"job_id": ""}, "job_id"),
        ({"uid": ""}, "job.uid"),
        ({"uid": "zz" * 16}, "job.uid"),
        ({"uid": "00" * 15}, "job.uid"),
        ({"origin": b""}, "job.origin"),
        ({"origin": bytes(17)}, "job.origin"),
        ({"state": 0}, "job.state"),
        ({"state": 77}, "job.state"),
        ({"last_outcome": 77}, "job.last_outcome"),
        ({"generation": 0}, "job.generation"),
        ({"generation": 1 << 32}, "job.generation"),
        ({"skipped_count": -1}, "job.skipped_count"),
        ({"started_count": 1 << 32}, "job.started_count"),
        ({"next_time": (-5, 0)}, "job.next_time"),
        ({"next_time": (1 << 40, 0)}, "job.next_time"),
        ({"last_time": (5, -1)}, "job.last_time"),
        ({"last_time": (5, 1_000_000_000)}, "job.last_time"),
    ],
)
def test_what_no_server_says_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        room.take(request(**changes))
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_the_door_hands_it_on() -> None:
    door = Door()
    command = room_command(door, request())
    assert command.moved == room.take(request())
    assert command.origin == ORIGIN
    plain = request()
    plain.moved = False
    command = room_command(door, plain)
    assert command.moved is None
    assert command.origin == command.prepared.digest != ORIGIN


def room_command(door: Door, made: pb.CreateJobRequest) -> Create:
    from tickwheel.server.api.creates import Creator  # noqa: PLC0415

    return Creator(door.scheduler, door.converter).command("default", made, NOW)


# --- the machine -----------------------------------------------------------------------------


def command(state: JobState, next_ms: int = 0, **fields: Any) -> Create:
    when = fields.pop("when", kit.every(HOUR, NOW))
    prepared = kit.prepare(kit.spec_message(when, **fields))
    status = Status(state, 3, 0, 0, next_ms=next_ms, last_ms=NOW - HOUR, run=7, origin=ORIGIN)
    return Create("default", "nightly", prepared, moved=Moved(UID, status))


def made(bench: Bench, create: Create) -> tuple[JobView, Status]:
    view = bench.call(create)
    assert isinstance(view, JobView)
    assert view.job.uid == UID
    return view, view.status


def test_a_scheduled_job_goes_on_where_it_was() -> None:
    bench = Bench()
    _, status = made(bench, command(JobState.SCHEDULED, NOW + HOUR, jitter_ms=60_000))
    assert (status.state, status.generation, status.run) == (JobState.SCHEDULED, 3, 7)
    assert (status.create_ms, status.update_ms) == (bench.now_ms, bench.now_ms)
    assert (status.next_ms, status.last_ms, status.origin) == (NOW + HOUR, NOW - HOUR, ORIGIN)
    assert NOW + HOUR <= status.due_ms <= NOW + HOUR + 60_000
    again = bench.call(command(JobState.SCHEDULED, NOW + 2 * HOUR, jitter_ms=60_000))
    assert isinstance(again, JobView)
    assert again.status == status
    other = command(JobState.SCHEDULED)
    other = other._replace(moved=Moved(UID, other.moved.status._replace(origin=bytes(16))))  # type: ignore[union-attr]
    with pytest.raises(AlreadyExists):
        bench.call(other)


def test_one_with_nothing_left_is_over() -> None:
    _, status = made(Bench(), command(JobState.SCHEDULED, 0, when=kit.once(NOW - HOUR)))
    assert status.state is JobState.COMPLETED
    assert status.due_ms > NOW


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.CANCELLED, JobState.DISABLED])
def test_one_that_ended_is_kept_for_its_retention(state: JobState) -> None:
    bench = Bench()
    _, status = made(bench, command(state))
    assert status.state is state
    assert status.due_ms == bench.now_ms + kit.DAY
    if state is JobState.CANCELLED:
        reply = bench.call(Cancel("default", "nightly"))
        assert isinstance(reply, ChangeReply)
        assert reply.cancellation is Cancellation.DISPATCH_UNKNOWN
    if state is JobState.DISABLED:
        view = bench.call(Resume("default", "nightly"))
        assert isinstance(view, JobView)
        assert (view.status.state, view.status.next_ms) == (JobState.SCHEDULED, NOW + HOUR)


def test_a_paused_one_waits() -> None:
    _, status = made(Bench(), command(JobState.PAUSED, NOW + HOUR))
    assert (status.state, status.due_ms, status.next_ms) == (JobState.PAUSED, 0, NOW + HOUR)
    assert codec.decode_status(codec.encode_status(status)) == status
