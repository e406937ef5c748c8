"""A bench for the machine: `Shard` driven as the runner drives it, by a clock that the test moves.

    call / batch    collect → read → decide → settle, at once        begin … commit   the same in two steps
    tick            move the clock, fire what is due, log what the leader told itself
    may_send, answer, give_back                                      what dispatch would do
    flush, crash    the store catches up; a new leader takes over from the store and the log

The test plays dispatch: what was fired waits in `outbox` until the test sends and answers it.
"""

from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TypedDict, Unpack

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.sim.store import DictStore

from tickwheel.server import codec, schedule
from tickwheel.server.command import (
    ChangeReply,
    Command,
    Create,
    Ended,
    Get,
    JobView,
    NamedCommand,
    Prepared,
    Reply,
    Update,
)
from tickwheel.server.draft import Rows
from tickwheel.server.errors import TickwheelError
from tickwheel.server.fire import Fire, Outcome, OutcomeKind
from tickwheel.server.model import (
    Effects,
    Execution,
    JobRow,
    MisfirePolicy,
    Ms,
    Once,
    OverlapPolicy,
    Row,
    Status,
)
from tickwheel.server.query import Applied, ExecutionQuery
from tickwheel.server.reading import Found, merge
from tickwheel.server.shard import Batch, Entry, Shard
from tickwheel.server.spec import decode_spec, encode_spec
from tickwheel.server.table import GONE, Changes, Table
from tickwheel.v1 import job_pb2, schedule_pb2

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW: Ms = 1_800_000_000_000
"""2027-01-15T08:00:00Z: a whole hour."""

NAMESPACE = "acme"
CACHE_BYTES = 1 << 20
FAR_MS = 400 * DAY
SLICES_MAX = 1_000
ROWS_MAX = 1_000
SHARD = 3


# --- specs -----------------------------------------------------------------------------------


def timestamp(ms: Ms) -> Timestamp:
    return Timestamp(seconds=ms // 1_000, nanos=ms % 1_000 * 1_000_000)


def duration(ms: int) -> Duration:
    return Duration(seconds=ms // 1_000, nanos=ms % 1_000 * 1_000_000)


def once(time_ms: Ms) -> schedule_pb2.Schedule:
    return schedule_pb2.Schedule(once=schedule_pb2.Once(scheduled_time=timestamp(time_ms)))


def every(period_ms: int, anchor_ms: Ms = 0) -> schedule_pb2.Schedule:
    anchor = timestamp(anchor_ms)
    return schedule_pb2.Schedule(
        every=schedule_pb2.Every(period=duration(period_ms), anchor_time=anchor)
    )


def cron(expression: str, time_zone: str = "UTC") -> schedule_pb2.Schedule:
    fields = schedule_pb2.Cron(
        expression=expression,
        time_zone=time_zone,
        dialect=schedule_pb2.CRON_DIALECT_FIVE_FIELDS,
        dst_gap=schedule_pb2.DST_GAP_FIRE_AFTER,
        dst_overlap=schedule_pb2.DST_OVERLAP_FIRST,
    )
    return schedule_pb2.Schedule(cron=fields)


class Said(TypedDict, total=False):
    """What a test says about a job; anything else has the doors' default."""

    overlap: OverlapPolicy
    misfire: MisfirePolicy
    misfire_max: int
    catchup_window_ms: int
    expire_after_ms: int
    max_executions: int
    jitter_ms: int
    max_attempts: int
    max_retry_duration_ms: int
    end_ms: Ms
    url: str
    labels: dict[str, str]


def spec_message(when: schedule_pb2.Schedule, **said: Unpack[Said]) -> job_pb2.Job:
    """A job as the doors normalise it: every default explicit."""
    overlap = OverlapPolicy.ALLOW_ALL if when.HasField("once") else OverlapPolicy.SKIP
    misfire = said.get("misfire", MisfirePolicy.LATEST)
    job = job_pb2.Job(
        schedule=when,
        max_executions=said.get("max_executions", 0),
        jitter=duration(said.get("jitter_ms", 0)),
        expire_after=duration(said.get("expire_after_ms", 0)),
        overlap_policy=job_pb2.OverlapPolicy.ValueType(said.get("overlap", overlap)),
        delivery=job_pb2.DELIVERY_AT_LEAST_ONCE,
        labels=said.get("labels", {}),
    )
    job.http_target.url = said.get("url", "http://127.0.0.1/hook")
    job.http_target.method = "POST"
    job.http_target.timeout.CopyFrom(duration(30 * SECOND))
    job.misfire.policy = job_pb2.MisfirePolicy.ValueType(misfire)
    job.misfire.max_count = said.get("misfire_max", 0)
    job.misfire.catchup_window.CopyFrom(duration(said.get("catchup_window_ms", 0)))
    job.retry_policy.max_attempts = said.get("max_attempts", 3)
    job.retry_policy.max_retry_duration.CopyFrom(duration(said.get("max_retry_duration_ms", 0)))
    job.retry_policy.min_backoff.CopyFrom(duration(SECOND))
    job.retry_policy.max_backoff.CopyFrom(duration(5 * MINUTE))
    job.retry_policy.max_doublings = 16
    job.retention.duration.CopyFrom(duration(DAY))
    job.retention.max_executions = 1_000
    if "end_ms" in said:
        job.window.end_time.CopyFrom(timestamp(said["end_ms"]))
    return job


def prepare(message: job_pb2.Job, *, past_ok: bool = False) -> Prepared:
    """What a door hands to the machine."""
    data = encode_spec(message)
    spec = decode_spec(data)
    return Prepared(
        spec=data,
        digest=blake2b(data, digest_size=16).digest(),
        plan=schedule.compile(spec.schedule, spec.window),
        once=isinstance(spec.schedule, Once),
        jitter_ms=spec.jitter_ms,
        labels=codec.encode_labels(dict(message.labels)),
        past_ok=past_ok,
    )


def creation(
    name: str,
    when: schedule_pb2.Schedule,
    *,
    past_ok: bool = False,
    validate_only: bool = False,
    **said: Unpack[Said],
) -> Create:
    prepared = prepare(spec_message(when, **said), past_ok=past_ok)
    return Create(NAMESPACE, name, prepared, validate_only=validate_only)


def change(
    name: str,
    when: schedule_pb2.Schedule,
    *,
    etag: str = "",
    validate_only: bool = False,
    **said: Unpack[Said],
) -> Update:
    """An update that replaces the whole spec."""
    prepared = prepare(spec_message(when, **said))

    def merge(stored: bytes) -> Prepared:
        assert stored, "an update begins from the stored spec"
        return prepared

    return Update(NAMESPACE, name, etag, merge, validate_only)


def succeeded(start_ms: Ms = NOW) -> Outcome:
    return Outcome(OutcomeKind.SUCCEEDED, 200, "", b"ok", start_ms, start_ms + 5)


def failed(
    kind: OutcomeKind = OutcomeKind.RETRY, status: int = 500, *, retry_after_ms: int = 0
) -> Outcome:
    return Outcome(kind, status, "", b"no", NOW, NOW + 5, retry_after_ms)


# --- the bench -------------------------------------------------------------------------------


@dataclass
class Pending:
    """A batch between its decision and its commit."""

    commands: list[Command]
    batch: Batch


class Bench:
    """One shard, its store, its log, and a clock."""

    def __init__(self, now_ms: Ms = NOW, *, store: DictStore | None = None) -> None:
        self.now_ms = now_ms
        self.store = store or DictStore(SHARD)
        self.log: list[Effects] = []
        self.index = 0
        self.outbox: list[Fire] = []
        self.leading: list[Command] = []
        self.shard = self._lead(epoch=1, next_row=1)

    def _lead(self, epoch: int, next_row: Row) -> Shard:
        table = Table(CACHE_BYTES)
        shard = Shard(
            SHARD, epoch, start_ms=self.now_ms, next_row=next_row, table=table, rng=Random(epoch)
        )
        for effects in self.log:
            shard.apply(effects)
        from_ms, until_ms = shard.widen(self.now_ms + FAR_MS), self.now_ms + FAR_MS
        shard.load(self.store.due(from_ms, until_ms, ROWS_MAX))
        return shard

    # --- commands ---

    def call(self, command: NamedCommand) -> Reply:
        """Carry out one command; a refusal is raised."""
        (reply,) = self.batch(command)
        if isinstance(reply, TickwheelError):
            raise reply
        return reply

    def view(self, command: NamedCommand) -> JobView:
        """Carry out a command that answers with the job."""
        reply = self.call(command)
        assert isinstance(reply, JobView)
        return reply

    def changed(self, command: NamedCommand) -> ChangeReply:
        """Carry out a command that answers with what it raced with."""
        reply = self.call(command)
        assert isinstance(reply, ChangeReply)
        return reply

    def create(
        self,
        name: str,
        when: schedule_pb2.Schedule,
        *,
        past_ok: bool = False,
        **said: Unpack[Said],
    ) -> JobView:
        return self.view(creation(name, when, past_ok=past_ok, **said))

    def batch(self, *commands: Command) -> list[Reply | TickwheelError]:
        """One batch, at once; what the leader told itself before goes first."""
        pending = self.begin(*commands)
        self.commit(pending)
        return pending.batch.replies[len(pending.commands) - len(commands) :]

    def begin(self, *commands: Command) -> Pending:
        """Read and decide. The jobs concerned are held until `commit`."""
        leading, self.leading = self.leading, []
        together = [*leading, *commands]
        return Pending(together, self.shard.decide(together, self.read(together), self.now_ms))

    def read(self, commands: list[Command]) -> Rows:
        rows = Rows()
        while wants := self.shard.collect(commands, rows):
            store = self.store
            names, jobs = store.find(wants.names), store.jobs(wants.jobs)
            ended = {row: store.execution(row) for row in wants.ended}
            letters = {row: data for row, data in ended.items() if data is not None}
            merge(rows, wants, Found(names, jobs, store.live(wants.live), letters))
        return rows

    def commit(self, pending: Pending) -> None:
        effects = pending.batch.effects
        if effects is None:
            return
        effects = codec.decode_effects(codec.encode_effects(effects))
        self.index += 1
        self.log.append(effects)
        self.shard.settle(pending.commands, effects)

    # --- time and dispatch ---

    def tick(self, by_ms: int = 0, *, log: bool = True) -> list[Fire]:
        """Move the clock, fire all that is due, and log it unless told not to. Answers with what was fired."""
        self.now_ms += by_ms
        fires: list[Fire] = []
        for _ in range(SLICES_MAX):
            fired = self.shard.fire(self.now_ms, 16)
            fires += fired.fires
            self.outbox += fired.fires
            self.leading += fired.commands
            self._warm(fired.cold)
            if log and self.leading:
                self.batch()
            elif not (fired.fires or fired.commands or fired.cold):
                return fires
        raise AssertionError("firing does not come to an end")

    def _warm(self, entries: list[Entry]) -> None:
        table = self.shard.table
        jobs = [row for _, row, generation in entries if generation > 0]
        live = self.store.live([row for _, row, generation in entries if generation < 0])
        known = [row for _, row, generation in entries if generation < 0]
        here = [data for row in known if isinstance(data := table.execution(row), bytes)]
        jobs += [codec.decode_execution(data).job_row for data in (*live.values(), *here)]
        table.admit(self.store.jobs(jobs).items(), live.items())
        self.shard.load([entry for entry in entries if self._exists(entry)])

    def _exists(self, entry: Entry) -> bool:
        _, row, generation = entry
        table = self.shard.table
        found = table.job(row) if generation > 0 else table.execution(row)
        return isinstance(found, JobRow | bytes)

    def fire_one(self, by_ms: int = 0) -> Fire:
        """Tick; exactly one request must go out, and its first byte leaves."""
        (fire,) = self.tick(by_ms)
        assert self.shard.may_send(fire)
        return fire

    def answer(self, fire: Fire, outcome: Outcome | None = None) -> None:
        """The attempt ended."""
        self.outbox.remove(fire)
        self.leading.append(Ended(fire, outcome or succeeded(self.now_ms)))
        self.batch()

    def give_back(self, fire: Fire) -> None:
        """The gate said no."""
        self.outbox.remove(fire)
        self.shard.landed(fire, withdrawn=True)

    # --- the store, and the end of a leadership ---

    def flush(self, keep_ms: int = 0) -> None:
        """Write what changed to the store, and forget it in memory but for what is due within `keep_ms`."""
        table = self.shard.table
        applied = Applied(self.index, self.shard.epoch, self.shard.next_row, self.shard.last_ms)
        keys = self.store.flush(table.freeze(), applied)
        self.log.clear()
        table.thaw(self.now_ms + keep_ms, keys)

    def crash(self, by_ms: int = 0) -> None:
        """The leader dies; `by_ms` later another one leads, from the store and the log."""
        self.now_ms += by_ms
        self.outbox.clear()
        self.leading.clear()
        self.shard = self._lead(self.shard.epoch + 1, self.store.applied.next_row)

    # --- what a test looks at ---

    def row(self, name: str) -> Row:
        """The row of a job that exists."""
        found = self.shard.table.find(NAMESPACE, name)
        if isinstance(found, int):
            return found
        rows = {} if found is GONE else self.store.find([(NAMESPACE, name)])
        return rows.get((NAMESPACE, name), 0)

    def status(self, name: str) -> Status:
        """The job as applied; it must exist."""
        look = Get(NAMESPACE, name)
        job = self.read([look]).jobs[self.row(name)]
        assert job is not None, f"no job {name}"
        return codec.decode_status(job.status)

    def live(self) -> dict[Row, Execution]:
        """The executions that have not ended, of all jobs."""
        found = dict(self.store.live(range(1, self.shard.next_row)))
        for changes in self._sets():
            found |= changes.live
            found = {row: data for row, data in found.items() if row not in changes.ended}
        return {row: codec.decode_execution(found[row]) for row in sorted(found)}

    def ended(self) -> list[Execution]:
        """The executions that ended and the records of those that were not attempted, in order of their rows."""
        hits = self.store.list_executions(ExecutionQuery(limit=ROWS_MAX))
        found = {hit.key.row: hit.data for hit in hits}
        for changes in self._sets():
            found |= changes.ended
            found = {row: data for row, data in found.items() if row not in changes.live}
        decoded = {row: codec.decode_execution(found[row]) for row in sorted(found)}
        return [e for e in decoded.values() if e.state.ended]

    def _sets(self) -> list[Changes]:
        table = self.shard.table
        return [table.active] if table.frozen is None else [table.frozen, table.active]
