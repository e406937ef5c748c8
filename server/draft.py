"""Floor 2, pure. The overlay that one batch is decided on: what was read, and over it what the batch has changed so far.

    Rows (read for this batch) ──► Draft (this batch's changes) ──► Effects (after-images, encoded once)

A later command of the batch sees what an earlier one changed. A handler that refuses must do so before it changes the
draft, so that a refusal leaves no trace.

Must never import: any driver, `store`, `table`, `wheel`; no I/O, no clock; chance comes from the shard's `Random`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from tickwheel.server import codec
from tickwheel.server.fire import Fire
from tickwheel.server.model import (
    Effects,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobParts,
    JobRow,
    Ms,
    Row,
    Spec,
    Status,
)
from tickwheel.server.spec import decode_spec


class Rows:
    """What a batch needs to know, as it was applied when the batch began. 0 and None say: known not to exist."""

    __slots__ = ("ended", "jobs", "live", "names", "statuses")

    def __init__(
        self,
        names: dict[tuple[str, str], Row] | None = None,
        jobs: dict[Row, JobRow | None] | None = None,
        live: dict[Row, bytes | None] | None = None,
    ) -> None:
        self.names = {} if names is None else names
        self.jobs = {} if jobs is None else jobs
        self.live = {} if live is None else live
        self.statuses: dict[Row, bytes] = {}
        self.ended: dict[Row, bytes | None] = {}


@dataclass(slots=True)
class Flight:
    """An execution that dispatch holds. `sent`: the first byte may have left. `withdrawn`: it never will.

    `spec` is the job's in the generation of `fire`.
    `stale`: its job was paused or changed since; dispatch gives it back, and it is due again under the new spec.
    """

    fire: Fire
    kind: ExecutionKind
    spec: Spec
    sent: bool = False
    withdrawn: bool = False
    stale: bool = False


class Stamp(NamedTuple):
    """The batch's time and place: stamped once by the leader, so that replay decides nothing.

    `start_ms` is when this leadership began: what was due before it may have been sent under an earlier epoch.
    """

    now_ms: Ms
    epoch: int
    start_ms: Ms


class Draft:
    """One batch's view of one shard."""

    def __init__(
        self,
        rows: Rows,
        stamp: Stamp,
        *,
        next_row: Row,
        rng: Random,
        flights: dict[Row, list[Flight]],
    ) -> None:
        self.rows = rows
        self.stamp = stamp
        self.now_ms = stamp.now_ms
        self.rng = rng
        self.next_row = next_row
        self.withdrawn: list[Row] = []
        self._flights = flights
        self._names: dict[tuple[str, str], Row] = {}
        self._created: dict[Row, JobParts] = {}
        self._jobs: dict[Row, JobRow] = {}
        self._statuses: dict[Row, Status] = {}
        self._drops: dict[Row, JobRow] = {}
        self._live: dict[Row, Execution] = {}
        self._ended: dict[Row, Execution] = {}

    # --- look-ups ---

    def find(self, namespace: str, name: str) -> Row:
        """The row of a name, 0 if there is none."""
        key = (namespace, name)
        row = self._names.get(key)
        return self.rows.names.get(key, 0) if row is None else row

    def all_new(self, namespace: str, names: Sequence[str]) -> bool:
        """True if no two of these names are one, and none of them is a job's."""
        keys = [(namespace, name) for name in names]
        known = any(map(self.rows.names.get, keys)) or any(map(self._names.get, keys))
        return not known and len({*names}) == len(names)

    def job(self, row: Row) -> tuple[JobRow, Status] | None:
        """The job of a row. The status inside the JobRow may be older than the one beside it."""
        if row in self._drops:
            return None
        made = self._created.get(row)
        job = JobRow(*made) if made else self._jobs.get(row) or self.rows.jobs.get(row)
        if job is None:
            return None
        return job, self._statuses.get(row) or codec.decode_status(job.status)

    def execution(self, row: Row) -> Execution | None:
        """A live execution, or None when it ended or never was."""
        if row in self._ended:
            return None
        found = self._live.get(row)
        if found is None and (data := self.rows.live.get(row)) is not None:
            return codec.decode_execution(data)
        return found

    def letter(self, row: Row) -> Execution | None:
        """An execution that ended, as it is now; None when retention took it."""
        found = self._ended.get(row)
        if found is None and (data := self.rows.ended.get(row)) is not None:
            return codec.decode_execution(data)
        return found

    def flights(self, job_row: Row) -> Sequence[Flight]:
        """What dispatch holds of this job."""
        return self._flights.get(job_row, ())

    def spec(self, row: Row, job: JobRow, status: Status) -> Spec:
        """The job's spec. What dispatch holds of it has it decoded, mostly: specs of their own fill every cache."""
        for flight in self._flights.get(row, ()):
            if flight.fire.generation == status.generation:
                return flight.spec
        return decode_spec(job.spec)

    # --- changes ---

    def new_row(self) -> Row:
        """A row number never given before."""
        self.next_row += 1
        return self.next_row - 1

    def create(self, job: JobRow) -> Row:
        """A new job, its status within; the answer is its row. Most changes are this one, so it is the quickest."""
        row = self.next_row
        self.next_row = row + 1
        self._names[job.namespace, job.name] = row
        self._created[row] = job
        return row

    def create_all(self, jobs: Sequence[JobParts]) -> None:
        """New jobs, their statuses within; their rows follow each other."""
        rows = range(self.next_row, self.next_row + len(jobs))
        self.next_row = rows.stop
        self._names.update(zip((job[:2] for job in jobs), rows, strict=True))
        self._created.update(zip(rows, jobs, strict=True))

    def put_job(self, row: Row, job: JobRow, status: Status) -> None:
        """A job with a new spec; `job.status` is filled in at the end."""
        self._names[job.namespace, job.name] = row
        self._created.pop(row, None)
        self._jobs[row] = job
        self._statuses[row] = status

    def put_status(self, row: Row, status: Status) -> None:
        """A job's new mutable part."""
        if (job := self._created.pop(row, None)) is not None:
            self._jobs[row] = JobRow(*job)
        self._statuses[row] = status

    def drop(self, row: Row, job: JobRow) -> None:
        """Forget a job."""
        self._names[job.namespace, job.name] = 0
        self._created.pop(row, None)
        self._jobs.pop(row, None)
        self._statuses.pop(row, None)
        self._drops[row] = job

    def put_live(self, row: Row, execution: Execution) -> None:
        """An execution that has not ended."""
        self._ended.pop(row, None)
        self._live[row] = execution

    def put_ended(self, row: Row, execution: Execution) -> None:
        """An execution that ended, or a record of occurrences that nobody attempts."""
        self._live.pop(row, None)
        self._ended[row] = execution

    def withdraw(self, row: Row) -> None:
        """Dispatch must not begin to send this execution any more."""
        self.withdrawn.append(row)

    # --- the result ---

    def ended(self) -> list[tuple[Row, ExecutionState]]:
        """(job row, state) of the executions and records that this batch ends."""
        return [(e.job_row, e.state) for e in self._ended.values()]

    @property
    def touched(self) -> set[Row]:
        """The job rows that are held until this batch is applied."""
        return {*self._created, *self._statuses, *self._drops}

    def effects(self) -> Effects | None:
        """The after-images of the batch, or None when it changes nothing."""
        changed = self._created or self._statuses or self._drops or self._live or self._ended
        if not changed:
            return None
        encode_status = codec.encode_status
        jobs = list(self._created.items())
        statuses: list[tuple[Row, bytes]] = []
        for row, status in self._statuses.items():
            job = self._jobs.get(row)
            data = encode_status(status)
            if job is None:
                statuses.append((row, data))
            else:
                jobs.append((row, JobRow(job[0], job[1], job[2], job[3], data, job[5])))
        return Effects(
            self.now_ms,
            self.next_row,
            jobs,
            statuses,
            [(row, job.namespace, job.name) for row, job in self._drops.items()],
            [(row, codec.encode_execution(e)) for row, e in self._live.items()],
            [(row, codec.encode_execution(e)) for row, e in self._ended.items()],
        )
