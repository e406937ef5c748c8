"""Floor 2, pure. THE machine: one shard's state and everything that may happen to it.

    collect(commands) ──► Wants (read them from the store) ──► decide(commands, rows) ──► Batch{effects, replies}
    apply(effects)        the only way the state changes; replay of the log uses it too
    fire(now)             what is due ──► Fire (send it) and Due (log it)
    may_send(fire)        asked right before the first byte: may it still go?

From `decide` to `apply` the jobs of a batch are **held**: nothing of them is sent, and what falls due waits, so that an
acknowledged cancel is true. `decide` always sees applied state: no second batch begins before the first is applied.

In memory only, gone with the leadership: `flights` (what dispatch holds), `held`, `parked`. After a crash a live
execution whose outcome was not logged is due again, under the same id.

Must never import: any driver, `store`, `wal`; no I/O, no clock; time is an argument, chance is `self.rng`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from tickwheel.server import codec, decide, misfire, schedule
from tickwheel.server.command import Abandon, Command, Due, Ended, Expire, JobView, Missed, Reply
from tickwheel.server.draft import Draft, Flight, Rows, Stamp
from tickwheel.server.errors import TickwheelError
from tickwheel.server.fire import Fire, TargetKey
from tickwheel.server.model import (
    Effects,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    MisfirePolicy,
    Ms,
    Once,
    OverlapPolicy,
    Reason,
    Row,
    Spec,
    Status,
)
from tickwheel.server.reading import Wants, collect
from tickwheel.server.spec import decode_spec
from tickwheel.server.steps import LIVE_MAX
from tickwheel.server.table import GONE, STATUS, Partly, Table
from tickwheel.server.wheel import Wheel

LATE_MS = 5_000
"""What is later than this takes the catch-up lane, so that on-time work goes first."""

Entry = tuple[Ms, Row, int]
"""What the wheel holds: due, row, and the job's generation (>= 1) or minus the execution's next attempt (<= -1)."""


Crowded = Callable[[str], TargetKey | None]
"""Of a target's URL: None if dispatch has a place for one more, which is sent then; else the key to ask for one with."""

_LOGGED_DUE = (Due, Expire)


def never_crowded(_url: str) -> None:
    """Dispatch takes everything."""


class Batch(NamedTuple):
    """What `decide` made: effects to log (None: nothing changes), one answer a command, and what ended, for counting."""

    effects: Effects | None
    replies: list[Reply | TickwheelError]
    ended: Sequence[tuple[Row, ExecutionState]] = ()


@dataclass(slots=True)
class Fired:
    """What one call of `fire` found, of `entries` that it took.

    Requests to send, commands to log, entries whose rows must be read first, and those whose target is crowded: it is
    as if they had not fallen due yet, nothing is logged of them.
    """

    entries: int = 0
    fires: list[Fire] = field(default_factory=list[Fire])
    commands: list[Command] = field(default_factory=list[Command])
    cold: list[Entry] = field(default_factory=list[Entry])
    crowded: list[tuple[TargetKey, Entry]] = field(default_factory=list[tuple[TargetKey, Entry]])


class _Slice(NamedTuple):
    """One call of `fire`: its time, whom it asks, and what it found so far."""

    now_ms: Ms
    crowded: Crowded
    fired: Fired

    def late(self, due_ms: Ms) -> bool:
        return self.now_ms - due_ms > LATE_MS

    def put_off(self, spec: Spec, entry: Entry) -> bool:
        """True if the target has no place: then the entry comes back when it has."""
        key = self.crowded(spec.target.url)
        if key is not None:
            self.fired.crowded.append((key, entry))
        return key is not None


class Shard:
    """One shard under one leadership. `start_ms` is when this node began to lead it, `next_row` from the log."""

    def __init__(
        self, number: int, epoch: int, *, start_ms: Ms, next_row: Row, table: Table, rng: Random
    ) -> None:
        self.number = number
        self.epoch = epoch
        self.start_ms = start_ms
        self.last_ms = start_ms
        self.next_row = next_row
        self.table = table
        self.rng = rng
        self.wheel = Wheel(start_ms)
        self.horizon_ms = 0
        self.held: set[Row] = set()
        self.flights: dict[Row, Flight] = {}
        self._flights_of: dict[Row, list[Flight]] = {}
        self._parked: dict[Row, list[Entry]] = {}
        self._logging: set[Row] = set()
        self._awaiting: set[Row] = set()

    # --- leaderships ---

    def lead(self, epoch: int, start_ms: Ms) -> None:
        """Begin a leadership on what is applied. The wheel is empty: `widen` and `load` fill it."""
        self.epoch = epoch
        self.start_ms = max(start_ms, self.last_ms)
        self.wheel = Wheel(start_ms)
        self.horizon_ms = 0

    def resign(self) -> None:
        """End it: flights, holds and the wheel were this leadership's own."""
        self.held = set()
        self.flights, self._flights_of, self._parked = {}, {}, {}
        self._logging, self._awaiting = set(), set()
        self.wheel = Wheel(self.last_ms)
        self.horizon_ms = 0

    # --- batches ---

    def collect(self, commands: Sequence[Command], rows: Rows) -> Wants:
        """Fill `rows` with what the table knows; the answer is what must be read from the store."""
        return collect(self.table, commands, rows)

    def decide(self, commands: Sequence[Command], rows: Rows, now_ms: Ms) -> Batch:
        """Turn commands into effects and answers. The jobs concerned are held until `apply`."""
        assert not self.held, "no second batch before the first is applied"
        self.last_ms = max(now_ms, self.last_ms)
        stamp = Stamp(self.last_ms, self.epoch, self.start_ms)
        draft = Draft(rows, stamp, next_row=self.next_row, rng=self.rng, flights=self._flights_of)
        replies = decide.decide(draft, commands)
        self.next_row = draft.next_row
        for row in draft.withdrawn:
            if (flight := self.flights.get(row)) is not None:
                flight.withdrawn = True
        effects = draft.effects()
        if effects is None:
            self._release(commands)
        else:
            self.held = draft.touched
        return Batch(effects, replies, draft.ended())

    def settle(self, commands: Sequence[Command], effects: Effects) -> None:
        """The batch is committed: apply it, let go of its jobs, and look again at what fell due meanwhile.

        Of its commands only the leader's own are asked for: with them ends what `fire` began.
        """
        held, self.held = self.held, set()
        for command in commands:
            if isinstance(command, Ended):
                self.landed(command.fire, withdrawn=False)
        self.apply(effects)
        self._release(commands)
        if self._parked:
            for row in held:
                self._unpark(row)

    def _release(self, commands: Sequence[Command]) -> None:
        """The commands that the leader gave itself are done with, whether they changed anything or not."""
        for command in commands:
            if isinstance(command, _LOGGED_DUE):
                self._logging.discard(command.job_row)
                self._unpark(command.job_row)
            elif isinstance(command, Ended):
                self.landed(command.fire, withdrawn=False)

    def _unpark(self, row: Row) -> None:
        for due_ms, entry_row, generation in self._parked.pop(row, ()):
            self.wheel.add(due_ms, entry_row, generation)

    def apply(self, effects: Effects) -> None:
        """Take the after-images. Deterministic, reads nothing; the same on a leader, a follower and in replay."""
        self.last_ms = max(self.last_ms, effects.time_ms)
        self.next_row = max(self.next_row, effects.next_row)
        for row, namespace, name in effects.drops:
            self.table.drop_job(row, namespace, name)
            self._awaiting.discard(row)
        if effects.jobs:
            for row, job in effects.jobs:
                self._arm_job(row, job[STATUS])
            self.table.put_jobs(effects.jobs)
        for row, status in effects.statuses:
            self._arm_job(row, status)
            self.table.put_status(row, status)
        for row, data in effects.live:
            self.table.put_live(row, data)
            self._arm_execution(row, data)
        for row, data in effects.ended:
            self.table.put_ended(row, data)

    def _arm_job(self, row: Row, status: bytes) -> None:
        """Put the job's next due time into the wheel, if it is new and within the window."""
        due_ms = codec.status_due_ms(status)
        if row not in self._flights_of and not 0 < due_ms < self.horizon_ms:
            return
        state, _, generation, *_ = codec.status_columns(status)
        for flight in self._flights_of.get(row, ()):
            paused = state == JobState.PAUSED and flight.kind == ExecutionKind.OCCURRENCE
            flight.stale = generation != flight.fire.generation or paused
        if not 0 < due_ms < self.horizon_ms:
            return
        known = self.table.job(row)
        if isinstance(known, (JobRow, Partly)) and row not in self._awaiting:
            before = codec.status_columns(known.status)
            if (before[0], before[2], before[4]) == (state, generation, due_ms):
                return
        self._awaiting.discard(row)
        self.wheel.add(due_ms, row, generation)

    def _arm_execution(self, row: Row, data: bytes) -> None:
        if row in self.flights:
            return
        due_ms, attempt = codec.execution_due(data)
        if 0 < due_ms < self.horizon_ms:
            self.wheel.add(due_ms, row, -(attempt + 1))

    # --- the wheel's window ---

    def widen(self, until_ms: Ms) -> Ms:
        """Move the window's end to `until_ms` and take in what the store does not hold yet. Returns the former end.

        The caller then reads [former end, until) from the store and hands it to `load`. What is applied meanwhile goes
        into the wheel by itself, and entries that come twice fire once, because an entry must match its row.
        """
        from_ms, self.horizon_ms = self.horizon_ms, max(until_ms, self.horizon_ms)
        for due_ms, row, status in self.table.due_between(max(from_ms, 1), self.horizon_ms):
            self.wheel.add(due_ms, row, codec.status_columns(status)[2])
        for row, data in self.table.live_unflushed():
            due_ms, attempt = codec.execution_due(data)
            if max(from_ms, 1) <= due_ms < self.horizon_ms:
                self.wheel.add(due_ms, row, -(attempt + 1))
        return from_ms

    def load(self, entries: Iterable[Entry]) -> None:
        """Take entries that were read from the store."""
        for due_ms, row, generation in entries:
            self.wheel.add(due_ms, row, generation)

    def shrink(self, until_ms: Ms) -> None:
        """Bring the window's end nearer: what is due later is dropped from the wheel and loaded again in time."""
        self.horizon_ms = until_ms
        self.wheel.compact(lambda due_ms, _row, _generation: due_ms < until_ms)

    # --- firing ---

    def fire(self, now_ms: Ms, limit: int, crowded: Crowded = never_crowded) -> Fired:
        """Take at most `limit` due entries from the wheel and say what is to be done about them."""
        entries = self.wheel.advance(now_ms, limit)
        piece = _Slice(now_ms, crowded, Fired(len(entries)))
        for entry in entries:
            if entry[2] < 0:
                self._fire_execution(entry, piece)
            else:
                self._fire_job(entry, piece)
        return piece.fired

    def _fire_job(self, entry: Entry, piece: _Slice) -> None:
        due_ms, row, generation = entry
        if row in self.held or row in self._logging:
            self._parked.setdefault(row, []).append(entry)
            return
        job = self.table.job(row)
        if job is GONE:
            return
        if not isinstance(job, JobRow):
            piece.fired.cold.append(entry)
            return
        status = codec.decode_status(job.status)
        if status.due_ms != due_ms or status.generation != generation:
            return
        if status.state != JobState.SCHEDULED:
            self._logging.add(row)
            piece.fired.commands.append(Expire(row, due_ms))
            return
        self._fire_occurrence(entry, job, status, piece)

    def _fire_occurrence(self, entry: Entry, job: JobRow, status: Status, piece: _Slice) -> None:
        fired, row = piece.fired, entry[1]
        spec = decode_spec(job.spec)
        plan = schedule.compile(spec.schedule, spec.window)
        fire_ms, missed = misfire.resolve(spec, plan, status.next_ms, piece.now_ms)
        late = piece.late(status.due_ms)
        if fire_ms and status.live and spec.overlap != OverlapPolicy.ALLOW_ALL:
            if late and spec.misfire == MisfirePolicy.ALL and not isinstance(spec.schedule, Once):
                self._awaiting.add(row)
                return
            self._logging.add(row)
            fired.commands.append(self._overlapped(row, status, spec, fire_ms, missed))
            return
        if fire_ms and len(status.live) >= LIVE_MAX:
            missed = _and_missed(missed, fire_ms, Reason.LIVE_LIMIT)
            fire_ms = 0
        if not fire_ms:
            self._logging.add(row)
            fired.commands.append(Due(row, status.due_ms, 0, 0, missed=missed))
            return
        if piece.put_off(spec, entry):
            return
        self._logging.add(row)
        execution_row = self.next_row
        self.next_row += 1
        fired.commands.append(Due(row, status.due_ms, fire_ms, execution_row, missed=missed))
        execution = Execution(
            row, job.uid, job.namespace, job.name, ExecutionKind.OCCURRENCE, fire_ms, "",
            ExecutionState.RUNNING, create_ms=piece.now_ms, due_ms=status.due_ms,
        )  # fmt: skip
        fired.fires.append(self._launch(execution_row, execution, status, spec, late))

    def _overlapped(
        self, row: Row, status: Status, spec: Spec, fire_ms: Ms, missed: Missed | None
    ) -> Due:
        if spec.overlap == OverlapPolicy.BUFFER_ONE and not status.buffered_ms:
            return Due(row, status.due_ms, 0, 0, buffered_ms=fire_ms, missed=missed)
        return Due(row, status.due_ms, 0, 0, missed=_and_missed(missed, fire_ms, Reason.OVERLAP))

    def _fire_execution(self, entry: Entry, piece: _Slice) -> None:
        due_ms, row, _ = entry
        if row in self.flights:
            return
        data = self.table.execution(row)
        if data is GONE:
            return
        if not isinstance(data, bytes):
            piece.fired.cold.append(entry)
            return
        execution = codec.decode_execution(data)
        if execution.due_ms != due_ms:
            return
        if execution.job_row in self.held:
            self._parked.setdefault(execution.job_row, []).append(entry)
            return
        self._fire_again(entry, execution, piece)

    def _fire_again(self, entry: Entry, execution: Execution, piece: _Slice) -> None:
        fired = piece.fired
        job = self.table.job(execution.job_row)
        if not isinstance(job, JobRow):
            if job is not GONE:
                fired.cold.append(entry)
            return
        status = codec.decode_status(job.status)
        if status.state == JobState.PAUSED and execution.kind == ExecutionKind.OCCURRENCE:
            return
        if status.state in {JobState.CANCELLED, JobState.DISABLED}:
            fired.commands.append(Abandon(execution.job_row, entry[1]))
            return
        spec = decode_spec(job.spec)
        if not piece.put_off(spec, entry):
            late = piece.late(entry[0])
            fired.fires.append(self._launch(entry[1], execution, status, spec, late))

    def _launch(
        self, row: Row, execution: Execution, status: Status, spec: Spec, late: bool
    ) -> Fire:
        fire = Fire(
            shard=self.number,
            execution_row=row,
            job_row=execution.job_row,
            id=execution.id,
            namespace=execution.namespace,
            job=execution.job,
            generation=status.generation,
            epoch=self.epoch,
            scheduled_ms=execution.scheduled_ms,
            due_ms=execution.due_ms,
            attempt=execution.attempt + 1,
            target=spec.target,
            late=late,
        )
        flight = Flight(fire, execution.kind, spec)
        self.flights[row] = flight
        self._flights_of.setdefault(execution.job_row, []).append(flight)
        return fire

    def may_send(self, fire: Fire) -> bool:
        """Asked right before the first byte leaves. False: not now or never; dispatch reports WITHDRAWN."""
        flight = self.flights.get(fire.execution_row)
        if flight is None or flight.withdrawn or flight.stale or flight.fire.epoch != fire.epoch:
            return False
        assert fire.job_row not in self.held, "the gate waits until the job is let go"
        flight.sent = True
        return True

    def landed(self, fire: Fire, *, withdrawn: bool) -> None:
        """Dispatch is done with it. One that was withheld for a pause or a new spec is due again, with the new spec."""
        flight = self.flights.pop(fire.execution_row, None)
        if flight is None:
            return
        of_job = self._flights_of[fire.job_row]
        of_job.remove(flight)
        if not of_job:
            del self._flights_of[fire.job_row]
        if withdrawn and not flight.withdrawn:
            self.wheel.add(fire.due_ms, fire.execution_row, -fire.attempt)

    def running(self, row: Row) -> int:
        """How many attempts of the job are on their way."""
        return sum(flight.sent for flight in self._flights_of.get(row, ()))

    def view(self, row: Row, job: JobRow) -> JobView:
        """The job as this leader sees it."""
        return JobView(row, job, codec.decode_status(job.status), self.running(row))


def _and_missed(missed: Missed | None, fire_ms: Ms, reason: Reason) -> Missed:
    """The occurrence itself is given up too. What was given up before it keeps its count under this one's reason."""
    if missed is None:
        return Missed(fire_ms, fire_ms, 1, reason)
    return Missed(missed.first_ms, fire_ms, missed.length + 1, reason)
