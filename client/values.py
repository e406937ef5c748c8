"""What the client hands out: small frozen values where a message would be a burden.

A whole job is the message `tickwheel.v1.job_pb2.Job` itself, an execution `execution_pb2.Execution`: they have many
fields, and what was read can be changed and sent back. Everything smaller is one of these values. All instants are
`datetime` in UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from google.protobuf.descriptor import EnumDescriptor

from tickwheel.client.times import from_timestamp
from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1.execution_pb2 import Execution, ExecutionState
from tickwheel.v1.job_pb2 import Job, JobState

ANY: Final = "-"  # `namespaces/-`, `jobs/-`: all of them


@dataclass(frozen=True, slots=True)
class JobHandle:
    """The least that the maker of a job wants to know."""

    name: str
    uid: str
    next_time: datetime | None

    @property
    def job_id(self) -> str:
        """The job's own part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Change:
    """An execution as a change left it, or None: nothing happened for a while, or the watch has begun.

    `token` goes on after it. Changes up to `read_time` were seen; None while that is not known of all jobs yet.
    """

    execution: Execution | None
    token: str
    read_time: datetime | None


JobRef = str | JobHandle | Job
"""How methods take a job: `nightly`, `namespaces/default/jobs/nightly`, a handle, or the message."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancelled job, and what became of the occurrence that the cancel raced with.

    `outcome` is CANCELLED_BEFORE_DISPATCH (nothing was or will be sent), ALREADY_DISPATCHED (attempt `attempt` of
    `execution` was on its way; 0: of a one-off, and it has ended) or DISPATCH_UNKNOWN (only after a fail-over).
    """

    job: Job
    outcome: str
    attempt: int
    execution: str


@dataclass(frozen=True, slots=True)
class Updated:
    """A changed job, and whether anything was sent as it was before: see `Cancelled`."""

    job: Job
    outcome: str
    attempt: int
    execution: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs there are: in all, and in each group if groups were asked for, in the server's order.

    The key of a group is a state (`SCHEDULED`), an outcome (`FAILED`), a label's value, or a bucket's start.
    """

    total: int
    groups: Mapping[str | datetime, int]
    read_time: datetime


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An instant that a schedule names, with the civil time and the offset of its zone then.

    `dst_note` is empty, MOVED_AFTER_GAP, FIRST_OF_TWO or SECOND_OF_TWO. With jitter it fires by `latest_due_time`.
    """

    scheduled_time: datetime
    utc_offset: str
    local_time: str
    dst_note: str
    latest_due_time: datetime


@dataclass(frozen=True, slots=True)
class Dropped:
    """A civil time that the schedule matches and that is no occurrence: DST_GAP or EXCLUDED."""

    local_time: str
    reason: str


@dataclass(frozen=True, slots=True)
class Preview:
    """The next occurrences of a schedule, and the civil times among them that are none."""

    occurrences: tuple[Occurrence, ...]
    dropped: tuple[Dropped, ...]
    tzdata_version: str


@dataclass(frozen=True, slots=True)
class Criterion:
    """Something that must hold of a job, and whether it does."""

    field: str
    reason: str
    met: bool
    description: str


@dataclass(frozen=True, slots=True)
class Validation:
    """Every criterion of a job; `valid` if all are met."""

    valid: bool
    criteria: tuple[Criterion, ...]


def word(kind: EnumDescriptor, number: int, prefix: str) -> str:
    """The name of an enum's value without its prefix; its number if a newer server knows more values."""
    value = kind.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix)


def handle_of(made: pb.JobHandle | Job) -> JobHandle:
    """The handle in an answer. A `next_time` of the epoch is none: no job is older than this project."""
    stamp = made.next_time
    return JobHandle(
        made.name, made.uid, from_timestamp(stamp) if stamp.seconds or stamp.nanos else None
    )


def cancelled_of(answer: pb.CancelJobResponse) -> Cancelled:
    return Cancelled(answer.job, _outcome(answer.cancellation), answer.attempt, answer.execution)


def updated_of(answer: pb.UpdateJobResponse) -> Updated:
    return Updated(answer.job, _outcome(answer.cancellation), answer.attempt, answer.execution)


def _outcome(value: int) -> str:
    name = word(pb.Cancellation.DESCRIPTOR, value, "CANCELLATION_")
    return "" if name == "UNSPECIFIED" else name


def counts_of(answer: pb.CountJobsResponse) -> Counts:
    groups = {_group_key(count): count.count for count in answer.counts if count.WhichOneof("key")}
    return Counts(answer.total_count, groups, from_timestamp(answer.read_time))


def _group_key(count: pb.JobCount) -> str | datetime:
    match count.WhichOneof("key"):
        case "state":
            return word(JobState.DESCRIPTOR, count.state, "JOB_STATE_")
        case "last_outcome":
            return word(ExecutionState.DESCRIPTOR, count.last_outcome, "EXECUTION_STATE_")
        case "bucket_time":
            return from_timestamp(count.bucket_time)
        case _:
            return count.label_value


def preview_of(answer: pb.PreviewScheduleResponse) -> Preview:
    occurrences = tuple(_occurrence_of(item) for item in answer.occurrences)
    dropped = tuple(
        Dropped(item.local_time, word(pb.DropReason.DESCRIPTOR, item.reason, "DROP_REASON_"))
        for item in answer.dropped
    )
    return Preview(occurrences, dropped, answer.tzdata_version)


def _occurrence_of(item: pb.Occurrence) -> Occurrence:
    note = word(pb.DstNote.DESCRIPTOR, item.dst_note, "DST_NOTE_")
    return Occurrence(
        from_timestamp(item.scheduled_time),
        item.utc_offset,
        item.local_time,
        "" if note == "UNSPECIFIED" else note,
        from_timestamp(item.latest_due_time),
    )


def validation_of(answer: pb.ValidateJobResponse) -> Validation:
    criteria = (Criterion(c.field, c.reason, c.met, c.description) for c in answer.criteria)
    return Validation(answer.valid, tuple(criteria))


def change_of(message: pb.WatchExecutionsResponse) -> Change:
    """What a message of a watch says."""
    return Change(
        execution=message.execution if message.HasField("execution") else None,
        token=message.resume_token,
        read_time=from_timestamp(message.read_time) if message.HasField("read_time") else None,
    )
