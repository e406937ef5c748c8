"""Floor 0. What a shard can be asked, what it answers, and the `Scheduler` that the doors call.

A command is a value: a door makes it, the runner carries it to its shard, `decide` turns it into effects and a reply
(or a refusal, an exception of `errors`). What the leader does on its own (a due occurrence, an attempt's end) comes back
as a command too, so there is one order of things in a shard.

Must never import: any room but `model`, `errors`, `query`, `fire`; no I/O, no clock, no protobuf.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from tickwheel.server.errors import TickwheelError
from tickwheel.server.fire import Fire, Outcome
from tickwheel.server.model import Execution, JobParts, JobRow, Ms, Reason, Row, Status
from tickwheel.server.query import (
    ExecutionHit,
    ExecutionQuery,
    Grouping,
    JobCounts,
    JobHit,
    JobQuery,
    Read,
)


class Plan(Protocol):
    """A compiled schedule (`schedule.compile`). All times are UTC ms; occurrences are strictly increasing."""

    def next_after(self, ms: Ms, /) -> Ms | None:
        """The first occurrence after `ms`, or None when there is none."""
        ...

    def prev_at_or_before(self, ms: Ms, /) -> Ms | None:
        """The last occurrence that is not after `ms`, or None."""
        ...

    def count_between(self, after_ms: Ms, until_ms: Ms, limit: int, /) -> int:
        """How many occurrences lie in (after, until]; counting stops at `limit`."""
        ...


class Prepared(NamedTuple):
    """A spec that a door has validated and normalised.

    `digest` hashes what the user sent (idempotent creates compare it); `past_ok` says that a one-off whose time has
    passed fires at once instead of being refused.
    """

    spec: bytes
    digest: bytes
    plan: Plan
    once: bool
    jitter_ms: int
    labels: str
    past_ok: bool


# --- commands of users -----------------------------------------------------------------------------------------------


class Moved(NamedTuple):
    """What a job keeps that comes from another server. Of `status` the times of creation and of falling due are made anew."""

    uid: bytes
    status: Status


class Create(NamedTuple):
    """Make a job. `fresh`: the server chose the name at random, so it cannot exist yet."""

    namespace: str
    name: str
    prepared: Prepared
    fresh: bool = False
    validate_only: bool = False
    moved: Moved | None = None

    @property
    def origin(self) -> bytes:
        """What the job is known by when the create is repeated."""
        return self.moved.status.origin if self.moved else self.prepared.digest


class Update(NamedTuple):
    """Change a job's spec. `merge` makes the new spec from the stored bytes and may raise InvalidArgument."""

    namespace: str
    name: str
    etag: str
    merge: Callable[[bytes], Prepared]
    validate_only: bool = False


class Delete(NamedTuple):
    """Remove a job; its waiting executions end as CANCELLED."""

    namespace: str
    name: str
    etag: str = ""


class Pause(NamedTuple):
    """Stop firing until Resume."""

    namespace: str
    name: str
    etag: str = ""


class Resume(NamedTuple):
    """Fire again; what fell due meanwhile becomes one SKIPPED record."""

    namespace: str
    name: str
    etag: str = ""


class Cancel(NamedTuple):
    """End a job for good, with a definite answer about the request that may be on its way."""

    namespace: str
    name: str
    etag: str = ""


class Run(NamedTuple):
    """Start one execution now. Repeating it with the same request_id answers with the same execution."""

    namespace: str
    name: str
    request_id: str


class Redrive(NamedTuple):
    """Give an ended execution (a dead letter) a new budget of attempts."""

    namespace: str
    name: str
    row: Row
    request_id: str


class Get(NamedTuple):
    """Look at a job. Never logged: it only says what must be read."""

    namespace: str
    name: str


# --- commands of the leader itself -----------------------------------------------------------------------------------


class Missed(NamedTuple):
    """Consecutive occurrences that nobody will attempt, and why."""

    first_ms: Ms
    last_ms: Ms
    length: int
    reason: Reason


class Due(NamedTuple):
    """An occurrence fell due. `fired_ms` is the one being attempted (0: none), as execution `execution_row`.

    `buffered_ms` is one that must wait for the live execution; `missed` those that are given up.
    """

    job_row: Row
    due_ms: Ms
    fired_ms: Ms
    execution_row: Row
    buffered_ms: Ms = 0
    missed: Missed | None = None


class Expire(NamedTuple):
    """A finished job's retention is over: forget it."""

    job_row: Row
    due_ms: Ms


class Abandon(NamedTuple):
    """A live execution of a job that was cancelled or disabled; whoever had sent it is gone. It is not sent again."""

    job_row: Row
    execution_row: Row


class Ended(NamedTuple):
    """An attempt ended."""

    fire: Fire
    outcome: Outcome


NamedCommand = Create | Update | Delete | Pause | Resume | Cancel | Run | Redrive | Get
LeaderCommand = Due | Expire | Abandon | Ended
Command = NamedCommand | LeaderCommand


# --- replies ---------------------------------------------------------------------------------------------------------


class Cancellation(IntEnum):
    """What became of the request that a cancel or an update raced with."""

    BEFORE_DISPATCH = 1
    ALREADY_DISPATCHED = 2
    DISPATCH_UNKNOWN = 3


class JobView(NamedTuple):
    """A job as its leader sees it. `running` counts the attempts in flight, from memory."""

    row: Row
    job: JobRow
    status: Status
    running: int = 0


class ChangeReply(NamedTuple):
    """Reply to Cancel and Update. `attempt` is the attempt that was already on its way, 0 if none."""

    view: JobView
    cancellation: Cancellation
    attempt: int = 0


Reply = JobView | JobParts | ChangeReply | Execution | None
"""A job that was made together with others is answered with its parts: of a thousand, few are looked at as a whole."""


def etag(status: Status) -> str:
    """Changes with each change of the spec and of the state; and a job made anew under an old name shares none."""
    return f'"{status.create_ms:x}.{status.generation}.{int(status.state)}"'


class Scheduler(Protocol):
    """What the doors may do. Raises `errors`; every call is safe to repeat where its command says so."""

    def now_ms(self) -> Ms:
        """The node's wall time."""
        ...

    async def call(self, command: NamedCommand) -> Reply:
        """Carry one command to its shard; returns after it is durable."""
        ...

    async def call_many(self, commands: Sequence[NamedCommand]) -> list[Reply | TickwheelError]:
        """Carry many, in one batch a shard; one answer each, in order."""
        ...

    async def get_job(self, namespace: str, name: str) -> JobView:
        """Linearizable. NotFound."""
        ...

    async def list_jobs(
        self, query: JobQuery, *, consistent: bool
    ) -> tuple[list[JobView], list[JobHit], Ms]:
        """A page over all shards: views, their keys, and the time it speaks of."""
        ...

    async def count_jobs(
        self, query: JobQuery, grouping: Grouping, *, consistent: bool
    ) -> tuple[JobCounts, Ms]:
        """Counts over all shards, and the time they speak of."""
        ...

    async def list_executions(
        self, query: ExecutionQuery, *, consistent: bool
    ) -> tuple[list[tuple[ExecutionHit, Execution]], Ms]:
        """A page over the shards concerned, newest first, and the time it speaks of."""
        ...

    async def changes(
        self, query: ExecutionQuery, after: Mapping[int, int | None], *, wait_ms: int
    ) -> tuple[list[Execution], list[Read]]:
        """What happened to executions after an entry of each shard's log; None stands for what is applied now.

        Waits a while for something to happen. Each shard that this node answers for has a place to go on from. Aborted
        (RESUME_TOKEN_EXPIRED) when that is too long ago.
        """
        ...

    async def get_execution(
        self, namespace: str, name: str, execution_id: str
    ) -> tuple[Row, Execution]:
        """Linearizable. NotFound."""
        ...
