"""Floor 1. The stored forms of what a shard keeps, and back: status, execution, effects, spec, labels.

A status is packed by `struct` because one is written for each job created and each occurrence fired (0.5 µs against
3 µs for a protobuf message); everything else is protobuf, which tells its own version. Bytes made here go into the
journal and into SQLite: a field may be added behind (the version byte says how much is there), never moved.

    status  = head (fixed, `_HEAD`) ‖ skip run if any (`_SKIP`) ‖ live rows (u64 each) ‖ requests (16 B + u64 each)

Must never import: any room but `model`, `errors`; no I/O, no clock.
"""

from collections.abc import Iterable, Sequence
from struct import Struct

from tickwheel.internal.v1 import effects_pb2 as pb
from tickwheel.server.model import (
    Attempt,
    Effects,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobParts,
    JobState,
    Ms,
    Reason,
    Row,
    SkipRun,
    Status,
)

VERSION = 1

# version, state, last_outcome, has_skip | generation, run, succeeded, failed, skipped | next, due, create, update, last,
# buffered | origin | answer to the cancel | number of live rows, number of requests
_HEAD = Struct("<BBBBIIIIIqqqqqq16sIHH")
_COLUMNS = Struct("<xBBxI16xqqqq")
_DUE = Struct("<q")
_DUE_OFFSET = 32
_SKIP = Struct("<QqqqIB")
_REQUEST = Struct("<16sQ")
_ROWS = tuple(Struct(f"<{count}Q") for count in range(9))

_NEW_HEAD = Struct("<BBBBIIIII").pack(VERSION, JobState.SCHEDULED, 0, 0, 1, 0, 0, 0, 0)
_TWO_TIMES = Struct("<qq")

_STATES = {int(s): s for s in JobState}


def _rows(count: int) -> Struct:
    """So many rows in a line; few of them are the rule, and making a `Struct` costs more than using it."""
    return _ROWS[count] if count < len(_ROWS) else Struct(f"<{count}Q")


def encode_status(status: Status) -> bytes:
    """The stored form; `decode_status` is its inverse."""
    (state, generation, create_ms, update_ms, next_ms, due_ms, last_ms, last_outcome, run, succeeded, failed, skipped,
     buffered_ms, origin, skip, live, requests, cancel) = status  # fmt: skip
    head = _HEAD.pack(
        VERSION, state, last_outcome, skip is not None, generation, run, succeeded, failed, skipped,
        next_ms, due_ms, create_ms, update_ms, last_ms, buffered_ms, origin, cancel, len(live),
        len(requests),
    )  # fmt: skip
    if skip is None and not live and not requests:
        return head
    parts = [head]
    if skip is not None:
        parts.append(_SKIP.pack(*skip))
    parts.append(_rows(len(live)).pack(*live))
    parts += (_REQUEST.pack(digest, row) for digest, row in requests)
    return b"".join(parts)


def encode_new_statuses(now_ms: Ms, due_ms: Iterable[Ms], origins: Iterable[bytes]) -> list[bytes]:
    """What `encode_status` makes of one-offs that were made now: they differ in when they are due, and in their origin."""
    head, made, end = _NEW_HEAD, _TWO_TIMES.pack(now_ms, now_ms) + bytes(16), bytes(8)
    pack, join = _TWO_TIMES.pack, b"".join
    return [
        join((head, pack(ms, ms), made, origin, end))
        for ms, origin in zip(due_ms, origins, strict=True)
    ]


def decode_status(data: bytes) -> Status:
    """The `Status` of its stored form."""
    (version, state, last_outcome, has_skip, generation, run, succeeded, failed, skipped, next_ms, due_ms, create_ms,
     update_ms, last_ms, buffered_ms, origin, cancel, live_count, request_count) = _HEAD.unpack_from(data)  # fmt: skip
    assert version == VERSION, f"status of version {version}: written by a newer node?"
    skip: SkipRun | None = None
    live: tuple[Row, ...] = ()
    requests: tuple[tuple[bytes, Row], ...] = ()
    if len(data) > _HEAD.size:
        at = _HEAD.size
        if has_skip:
            row, created, first, last, count, reason = _SKIP.unpack_from(data, at)
            skip = SkipRun(row, created, first, last, count, Reason(reason))
            at += _SKIP.size
        live = _rows(live_count).unpack_from(data, at)
        at += 8 * live_count
        requests = tuple(_REQUEST.iter_unpack(data[at : at + request_count * _REQUEST.size]))
    return Status(
        _STATES[state], generation, create_ms, update_ms, next_ms, due_ms, last_ms, last_outcome, run, succeeded,
        failed, skipped, buffered_ms, origin, skip, live, requests, cancel,
    )  # fmt: skip


def status_columns(data: bytes) -> tuple[int, int, int, int, int, int, int]:
    """(state, last_outcome, generation, next_ms, due_ms, create_ms, update_ms): what the store indexes and filters."""
    return _COLUMNS.unpack_from(data)


def status_due_ms(data: bytes) -> int:
    """`due_ms` alone, for scans."""
    due_ms: int = _DUE.unpack_from(data, _DUE_OFFSET)[0]
    return due_ms


def encode_labels(labels: dict[str, str]) -> str:
    r"""`\x1fkey=value\x1fkey=value\x1f`, keys in order, so that one substring search finds a pair. Empty: ``.

    >>> encode_labels({"team": "a"}) == "\x1fteam=a\x1f"
    True
    """
    if not labels:
        return ""
    return "\x1f" + "\x1f".join(f"{k}={labels[k]}" for k in sorted(labels)) + "\x1f"


def decode_labels(text: str) -> dict[str, str]:
    """The inverse of `encode_labels`."""
    pairs = (pair.split("=", 1) for pair in text.split("\x1f") if pair)
    return dict(pairs)


# --- executions ------------------------------------------------------------------------------------------------------

_KINDS = {int(k): k for k in ExecutionKind}
_EXECUTION_STATES = {int(s): s for s in ExecutionState}
_REASONS = {int(r): r for r in Reason}


def encode_execution(execution: Execution) -> bytes:
    """The stored form; `decode_execution` is its inverse. Written twice a fire, so what is 0 is not even named."""
    (job_row, uid, namespace, job, kind, scheduled_ms, request_id, state, create_ms, due_ms, end_ms, number, base,
     first_attempt_ms, reason, last_ms, length, attempts) = execution  # fmt: skip
    m = pb.Execution(
        job_row=job_row, uid=uid, namespace=namespace, job=job, kind=kind, scheduled_ms=scheduled_ms, state=state,
        create_ms=create_ms, length=length,
    )  # fmt: skip
    if request_id:
        m.request_id = request_id
    if due_ms:
        m.due_ms = due_ms
    if end_ms:
        m.end_ms = end_ms
    if base or reason or last_ms:
        m.base, m.reason, m.last_ms = base, reason, last_ms
    if number or first_attempt_ms:
        m.attempt, m.first_attempt_ms = number, first_attempt_ms
    for attempt in attempts:
        _put_attempt(m.attempts.add(), attempt)
    return m.SerializeToString()


def _put_attempt(m: pb.Attempt, attempt: Attempt) -> None:
    number, epoch, generation, start_ms, end_ms, status, error, body = attempt
    m.number, m.epoch, m.generation = number, epoch, generation
    m.start_ms, m.end_ms, m.status = start_ms, end_ms, status
    if error:
        m.error = error
    if body:
        m.body = body


def decode_execution(data: bytes) -> Execution:
    """The `Execution` of its stored form."""
    m = pb.Execution.FromString(data)
    attempts = tuple(
        Attempt(a.number, a.epoch, a.generation, a.start_ms, a.end_ms, a.status, a.error, a.body)
        for a in m.attempts
    )
    return Execution(
        m.job_row, m.uid, m.namespace, m.job, _KINDS[m.kind], m.scheduled_ms, m.request_id, _EXECUTION_STATES[m.state],
        m.create_ms, m.due_ms, m.end_ms, m.attempt, m.base, m.first_attempt_ms, _REASONS[m.reason], m.last_ms,
        m.length, attempts,
    )  # fmt: skip


def execution_due(data: bytes) -> tuple[Ms, int]:
    """(due_ms, attempts that ended), for the wheel."""
    m = pb.Execution.FromString(data)
    return m.due_ms, m.attempt


def execution_columns(data: bytes) -> tuple[Row, int, Ms, Ms, Ms, int, str, str]:
    """(job_row, state, create_ms, scheduled_ms, due_ms, attempt, namespace, job): what the store indexes and filters."""
    m = pb.Execution.FromString(data)
    return m.job_row, m.state, m.create_ms, m.scheduled_ms, m.due_ms, m.attempt, m.namespace, m.job


# --- effects: the payload of a journal entry -------------------------------------------------------------------------


def encode_effects(effects: Effects) -> bytes:
    """The payload of an ENTRY; `decode_effects` is its inverse."""
    m = pb.Effects(time_ms=effects.time_ms, next_row=effects.next_row)
    if effects.jobs:
        _put_jobs(m.jobs, effects.jobs)
    for row, status in effects.statuses:
        m.statuses.add(row=row, status=status)
    for row, namespace, name in effects.drops:
        m.drops.add(row=row, namespace=namespace, name=name)
    for row, data in effects.live:
        m.live.add(row=row, execution=data)
    for row, data in effects.ended:
        m.ended.add(row=row, execution=data)
    return m.SerializeToString()


def _put_jobs(m: pb.JobPuts, jobs: Sequence[tuple[Row, JobParts]]) -> None:
    rows, parts = zip(*jobs, strict=True)
    namespaces, names, uids, specs, statuses, labels = zip(*parts, strict=True)
    m.row.extend(rows)
    m.namespace.extend(namespaces)
    m.name.extend(names)
    m.uid.extend(uids)
    m.spec.extend(specs)
    m.status.extend(statuses)
    m.labels.extend(labels)


def _take_jobs(m: pb.JobPuts) -> list[tuple[Row, JobParts]]:
    parts = zip(m.namespace, m.name, m.uid, m.spec, m.status, m.labels, strict=True)
    return list(zip(m.row, parts, strict=True))


def decode_executions(data: bytes) -> Effects:
    """Of the `Effects` of an ENTRY's payload only what concerns executions: of jobs nothing is even looked at."""
    m = pb.Effects.FromString(data)
    live = [(e.row, e.execution) for e in m.live]
    return Effects(m.time_ms, m.next_row, [], [], [], live, [(e.row, e.execution) for e in m.ended])


def decode_effects(data: bytes) -> Effects:
    """The `Effects` of an ENTRY's payload."""
    m = pb.Effects.FromString(data)
    return Effects(
        m.time_ms,
        m.next_row,
        _take_jobs(m.jobs),
        [(s.row, s.status) for s in m.statuses],
        [(d.row, d.namespace, d.name) for d in m.drops],
        [(e.row, e.execution) for e in m.live],
        [(e.row, e.execution) for e in m.ended],
    )
