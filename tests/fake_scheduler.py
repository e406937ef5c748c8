"""A `Scheduler` of a dict: enough for tests of the doors, which must not care how the real one works."""

import asyncio
from collections.abc import Mapping, Sequence

from tickwheel.server.api.validate import TargetChecks
from tickwheel.server.command import (
    Cancel,
    Cancellation,
    ChangeReply,
    Create,
    Delete,
    Get,
    JobView,
    NamedCommand,
    Pause,
    Redrive,
    Reply,
    Resume,
    Run,
    Update,
    etag,
)
from tickwheel.server.errors import (
    Aborted,
    AlreadyExists,
    InvalidArgument,
    NotFound,
    TickwheelError,
    Violation,
)
from tickwheel.server.model import (
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    Ms,
    Row,
    Status,
)
from tickwheel.server.query import (
    ExecutionHit,
    ExecutionQuery,
    Grouping,
    JobCounts,
    JobHit,
    JobQuery,
    Key,
    Read,
)


def _no_url_faults(_url: str, _field: str) -> list[Violation]:
    return []


def _no_header_faults(_headers: Sequence[tuple[str, str]], _field: str) -> list[Violation]:
    return []


TAKES_ALL = TargetChecks(_no_url_faults, _no_header_faults)
"""Checks of targets that find nothing wrong."""

NOW_MS = 1_800_000_000_000


class FakeScheduler:
    """Keeps jobs by name; remembers what it was asked."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str], JobView] = {}
        self.executions: list[Execution] = []
        self.commands: list[NamedCommand] = []
        self.job_queries: list[JobQuery] = []
        self.execution_queries: list[ExecutionQuery] = []
        self.groupings: list[Grouping] = []
        self.counts: JobCounts = {}
        self.fault: Exception | None = None
        self.log: list[Execution] = []
        self.floor = 0

    def now_ms(self) -> Ms:
        return NOW_MS

    async def call(self, command: NamedCommand) -> Reply:
        (reply,) = await self.call_many([command])
        if isinstance(reply, TickwheelError):
            raise reply
        return reply

    async def call_many(self, commands: Sequence[NamedCommand]) -> list[Reply | TickwheelError]:
        if self.fault is not None:
            raise self.fault
        self.commands += commands
        replies: list[Reply | TickwheelError] = []
        for command in commands:
            try:
                replies.append(self._answer(command))
            except TickwheelError as error:
                replies.append(error)
        return replies

    def _answer(self, command: NamedCommand) -> Reply:
        key = (command.namespace, command.name)
        if isinstance(command, Create):
            return self._create(key, command)
        view = self._find(*key)
        if isinstance(command, Get):
            return view
        if isinstance(command, Run | Redrive):
            return self._start(view, command)
        if command.etag and command.etag != etag(view.status):
            raise Aborted("the etag does not match")
        if isinstance(command, Delete):
            del self.jobs[key]
            return None
        if isinstance(command, Update):
            return self._update(key, view, command)
        states: dict[type, JobState] = {
            Pause: JobState.PAUSED,
            Resume: JobState.SCHEDULED,
            Cancel: JobState.CANCELLED,
        }
        view = view._replace(status=view.status._replace(state=states[type(command)]))
        self.jobs[key] = view
        if isinstance(command, Cancel):
            return ChangeReply(view, Cancellation.ALREADY_DISPATCHED, 3)
        return view

    def _create(self, key: tuple[str, str], command: Create) -> JobView:
        prepared = command.prepared
        found = self.jobs.get(key)
        if found is not None:
            if found.status.origin != prepared.digest:
                raise AlreadyExists("other content")
            return found
        next_ms = prepared.plan.next_after(0 if prepared.once else NOW_MS)
        if next_ms is None:
            raise InvalidArgument.of([Violation("job.schedule", "nothing ahead", "NEVER_FIRES")])
        if prepared.once and not prepared.past_ok and next_ms < NOW_MS:
            raise InvalidArgument.of([Violation("job.schedule.once", "it passed", "PAST_TIME")])
        status = Status(JobState.SCHEDULED, 1, NOW_MS, NOW_MS, next_ms, origin=prepared.digest)
        row = JobRow(*key, bytes(15) + b"\1", prepared.spec, b"", prepared.labels)
        view = JobView(len(self.jobs) + 1, row, status)
        if not command.validate_only:
            self.jobs[key] = view
        return view

    def _update(self, key: tuple[str, str], view: JobView, command: Update) -> ChangeReply:
        prepared = command.merge(view.job.spec)
        status = view.status._replace(generation=view.status.generation + 1)
        view = view._replace(job=view.job._replace(spec=prepared.spec), status=status)
        if not command.validate_only:
            self.jobs[key] = view
        return ChangeReply(view, Cancellation.BEFORE_DISPATCH)

    def _start(self, view: JobView, command: Run | Redrive) -> JobView:
        if isinstance(command, Redrive):
            ended = self.executions[command.row]
            self.executions[command.row] = ended._replace(state=ExecutionState.PENDING)
            return view
        job = view.job
        self.executions.append(
            Execution(
                view.row,
                job.uid,
                job.namespace,
                job.name,
                ExecutionKind.MANUAL,
                NOW_MS,
                command.request_id,
                ExecutionState.PENDING,
                NOW_MS,
                due_ms=NOW_MS,
            )
        )
        return view

    def _find(self, namespace: str, name: str) -> JobView:
        view = self.jobs.get((namespace, name))
        if view is None:
            raise NotFound("no such job", reason="JOB_NOT_FOUND", metadata={"job": name})
        return view

    async def get_job(self, namespace: str, name: str) -> JobView:
        return self._find(namespace, name)

    async def list_jobs(
        self, query: JobQuery, *, consistent: bool
    ) -> tuple[list[JobView], list[JobHit], Ms]:
        self.job_queries.append(query)
        rows = [
            view for view in self.jobs.values() if query.after is None or view.row > query.after.row
        ]
        views = rows[: query.limit]
        hits = [JobHit(Key(view.status.create_ms, view.row, 0), view.job) for view in views]
        return views, hits, NOW_MS + consistent

    async def count_jobs(
        self, query: JobQuery, grouping: Grouping, *, consistent: bool
    ) -> tuple[JobCounts, Ms]:
        self.job_queries.append(query)
        self.groupings.append(grouping)
        return self.counts, NOW_MS + consistent

    async def list_executions(
        self, query: ExecutionQuery, *, consistent: bool
    ) -> tuple[list[tuple[ExecutionHit, Execution]], Ms]:
        self.execution_queries.append(query)
        after = -1 if query.after is None else query.after.row
        found = [
            (ExecutionHit(Key(execution.create_ms, row, 0), b""), execution)
            for row, execution in enumerate(self.executions)
            if row > after
        ]
        return found[: query.limit], NOW_MS + consistent

    def log_of(self, shard: int) -> list[Execution] | None:
        """What happened to the executions of a shard, an entry each; None: it is another node's."""
        return self.log if shard == 0 else []

    async def changes(
        self, query: ExecutionQuery, after: Mapping[int, int | None], *, wait_ms: int
    ) -> tuple[list[Execution], list[Read]]:
        self.execution_queries.append(query)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_ms / 1000
        while True:
            found: list[Execution] = []
            reads: list[Read] = []
            for shard, index in after.items():
                log = self.log_of(shard)
                if log is None:
                    continue
                start = len(log) if index is None else index
                if start < self.floor:
                    raise Aborted("too long ago", reason="RESUME_TOKEN_EXPIRED")
                found += [
                    e
                    for e in log[start:]
                    if query.holds(e.namespace, e.job, e.state, e.scheduled_ms)
                ]
                reads.append(Read(shard, len(log), NOW_MS))
            if found or not reads or None in after.values() or loop.time() >= until_s:
                return found, reads
            await asyncio.sleep(0.01)

    async def get_execution(
        self, namespace: str, name: str, execution_id: str
    ) -> tuple[Row, Execution]:
        for row, execution in enumerate(self.executions):
            if (execution.namespace, execution.job, execution.id) == (
                namespace,
                name,
                execution_id,
            ):
                return row, execution
        raise NotFound("no such execution", reason="EXECUTION_NOT_FOUND")
