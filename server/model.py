"""Floor 0. The values that all rooms share: plain, frozen, no behaviour beyond small derivations.

Conventions: every time is an integer of UTC milliseconds since the epoch and ends in `_ms`; 0 means "none" where a
field is documented so. A `row` is a number that a shard gives to each job and each execution, in the order of their
creation, never used twice: the wheel, the store and the log speak of rows, the API speaks of names and ids.

Must never import: anything of this project but `errors`; no I/O, no clock, no protobuf.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

Ms = int
Row = int

MS_PER_DAY = 86_400_000


# --- enums: numbers are stored and sent, so they never change meaning (they equal the API's, proto/tickwheel/v1) -----


class JobState(IntEnum):
    """Where a job stands."""

    SCHEDULED = 1
    PAUSED = 2
    COMPLETED = 3
    CANCELLED = 4
    DISABLED = 5


class ExecutionState(IntEnum):
    """Where one execution stands. Those after RETRYING are ends."""

    PENDING = 1
    RUNNING = 2
    RETRYING = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6
    SKIPPED = 7
    MISSED = 8
    UNKNOWN = 9

    @property
    def ended(self) -> bool:
        """True when nothing more will happen to it by itself."""
        return self >= ExecutionState.SUCCEEDED


class ExecutionKind(IntEnum):
    """Why an execution exists."""

    OCCURRENCE = 1
    MANUAL = 2
    BACKFILL = 3
    CALLBACK = 4


class Reason(IntEnum):
    """Why an occurrence was not attempted, or an execution ended as it did."""

    NONE = 0
    OVERLAP = 1
    MISFIRE_POLICY = 2
    CATCHUP_WINDOW = 3
    EXPIRED = 4
    PAUSED = 5
    JOB_CANCELLED = 6
    JOB_DELETED = 7
    JOB_DISABLED = 8
    ATTEMPTS_EXHAUSTED = 9
    RETRY_DURATION_EXHAUSTED = 10
    TARGET_REFUSED_RETRY = 11
    LIVE_LIMIT = 12


class MisfirePolicy(IntEnum):
    """What becomes of the occurrences that fell due while nobody could fire them."""

    LATEST = 1
    ALL = 2
    SKIP = 3


class OverlapPolicy(IntEnum):
    """What becomes of an occurrence that falls due while an earlier execution of the job lives."""

    SKIP = 1
    BUFFER_ONE = 2
    ALLOW_ALL = 3


class Delivery(IntEnum):
    """How often an attempt may be made when nobody saw its end."""

    AT_LEAST_ONCE = 1
    AT_MOST_ONCE = 2


class DstGap(IntEnum):
    """A civil time that does not exist: drop the occurrence, or fire at the first instant after the gap."""

    SKIP = 1
    FIRE_AFTER = 2


class DstOverlap(IntEnum):
    """A civil time that exists twice."""

    FIRST = 1
    SECOND = 2
    BOTH = 3


class CronDialect(IntEnum):
    """What the fields of a cron expression are; stated by the user, never guessed."""

    FIVE_FIELDS = 1
    SECONDS_FIRST = 2


# --- schedules -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Once:
    """One occurrence: at an instant (`time_ms`), or at a civil time (`civil` = `2026-03-29T02:30:00[.mmm]`) of a zone."""

    time_ms: Ms = 0
    civil: str = ""
    time_zone: str = ""
    dst_gap: DstGap = DstGap.FIRE_AFTER
    dst_overlap: DstOverlap = DstOverlap.FIRST


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a zone (`UTC` unless said)."""

    expression: str
    time_zone: str = "UTC"
    dialect: CronDialect = CronDialect.FIVE_FIELDS
    dst_gap: DstGap = DstGap.FIRE_AFTER
    dst_overlap: DstOverlap = DstOverlap.FIRST


@dataclass(frozen=True, slots=True)
class Every:
    """anchor + k x period on absolute time, k any integer. `period_ms` >= 1000."""

    period_ms: int
    anchor_ms: Ms = 0


Schedule = Once | Cron | Every


@dataclass(frozen=True, slots=True)
class Window:
    """What narrows a schedule. `start_ms` and `end_ms` are inclusive, 0 = open.

    `excluded_dates` are civil dates `YYYY-MM-DD` in the schedule's zone (UTC if it has none), `excluded_ms` instants.
    """

    start_ms: Ms = 0
    end_ms: Ms = 0
    excluded_dates: frozenset[str] = frozenset()
    excluded_ms: frozenset[Ms] = frozenset()


# --- specs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts and pauses; whichever limit comes first ends the execution. 0 = no limit for `max_retry_duration_ms`."""

    max_attempts: int = 5
    max_retry_duration_ms: int = 0
    min_backoff_ms: int = 1_000
    max_backoff_ms: int = 300_000
    max_doublings: int = 16


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """One HTTP request. `success` and `retry_on` are ranges [(low, high)] of status codes; empty = the default rule."""

    url: str
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    timeout_ms: int = 30_000
    max_redirects: int = 0
    success: tuple[tuple[int, int], ...] = ()
    retry_on: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """What a user said a job should be, decoded from its stored bytes (`spec.decode_spec`)."""

    schedule: Schedule
    target: HttpTarget
    window: Window = field(default_factory=Window)
    max_executions: int = 0
    jitter_ms: int = 0
    misfire: MisfirePolicy = MisfirePolicy.LATEST
    misfire_max: int = 0
    catchup_window_ms: int = 0
    expire_after_ms: int = 0
    overlap: OverlapPolicy = OverlapPolicy.SKIP
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    retention_ms: int = 7 * MS_PER_DAY
    retention_count: int = 1_000


# --- what a shard keeps ----------------------------------------------------------------------------------------------


class Status(NamedTuple):
    """The part of a job that changes as it runs; about 100 bytes encoded (`record.encode_status`).

    `next_ms` is the next scheduled time and `due_ms` the instant it fires (jitter added); both 0 when none is left.
    `origin` is the hash of the request that created the job (idempotent creates). `buffered_ms` is the occurrence that
    waits for the live one (BUFFER_ONE). `run` counts the occurrences started, for `max_executions` and for display.
    `skip` is the run of skipped or missed occurrences that the next one would lengthen. `live` are the rows of its
    executions that have not ended, oldest first. `requests` are the last 64 (hash of request_id, execution row) of
    RunJob and RetryExecution. `cancel` is what the cancel was answered (`decide.pack_answer`), for its repetition.
    """

    state: JobState
    generation: int
    create_ms: Ms
    update_ms: Ms
    next_ms: Ms = 0
    due_ms: Ms = 0
    last_ms: Ms = 0
    last_outcome: int = 0
    run: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    buffered_ms: Ms = 0
    origin: bytes = bytes(16)
    skip: "SkipRun | None" = None
    live: tuple[Row, ...] = ()
    requests: tuple[tuple[bytes, Row], ...] = ()
    cancel: int = 0


class SkipRun(NamedTuple):
    """Consecutive occurrences that were not attempted for one reason: one record {first, last, count, reason}."""

    row: Row
    create_ms: Ms
    first_ms: Ms
    last_ms: Ms
    length: int
    reason: Reason


class JobRow(NamedTuple):
    """A job as table and store keep it: identity, the user's spec as bytes, and the encoded `Status`.

    `labels` is `codec.encode_labels`' text, empty when there are none.
    """

    namespace: str
    name: str
    uid: bytes
    spec: bytes
    status: bytes
    labels: str = ""


JobParts = tuple[str, str, bytes, bytes, bytes, str]
"""A `JobRow` as a plain tuple. Where many are kept: of these the garbage collector lets go at its first look, while it
would visit each named tuple again and again."""


class Attempt(NamedTuple):
    """One try. `status` is the HTTP code, 0 when no response came; `error` is a short class of failure."""

    number: int
    epoch: int
    generation: int
    start_ms: Ms
    end_ms: Ms
    status: int
    error: str
    body: bytes


class Execution(NamedTuple):
    """One occurrence being carried out, or carried out. `due_ms` is when its next attempt may start (0: none).

    `attempt` is the number of the last attempt that ended; `base` what it was when the present budget of attempts
    began (a redrive starts a new one). For a run of skipped or missed occurrences `scheduled_ms` is the first,
    `last_ms` the last and `length` how many.
    """

    job_row: Row
    uid: bytes
    namespace: str
    job: str
    kind: ExecutionKind
    scheduled_ms: Ms
    request_id: str
    state: ExecutionState
    create_ms: Ms
    due_ms: Ms = 0
    end_ms: Ms = 0
    attempt: int = 0
    base: int = 0
    first_attempt_ms: Ms = 0
    reason: Reason = Reason.NONE
    last_ms: Ms = 0
    length: int = 1
    attempts: tuple[Attempt, ...] = ()

    @property
    def id(self) -> str:
        """`{uid}:{scheduled time in ms}` or `{uid}:r:{request_id}`: the same whoever computes it, after any crash."""
        if self.kind == ExecutionKind.MANUAL:
            return f"{self.uid.hex()}:r:{self.request_id}"
        return f"{self.uid.hex()}:{self.scheduled_ms}"


class Effects(NamedTuple):
    """What one batch does to one shard: after-images, so that applying them needs no reading and decides nothing.

    Every row is at most once in `jobs`, `statuses` and `drops` together, and at most once in `live` and `ended`
    together; so the order inside a batch carries no meaning. `next_row` is the first row number not yet given away.
    A drop is (row, namespace, name).
    """

    time_ms: Ms
    next_row: Row
    jobs: list[tuple[Row, JobParts]]
    statuses: list[tuple[Row, bytes]]
    drops: list[tuple[Row, str, str]]
    live: list[tuple[Row, bytes]]
    ended: list[tuple[Row, bytes]]
