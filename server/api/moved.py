"""Floor 5. A job that was read from another server and goes on here: its output-only fields, taken at their word.

Not kept: when it was created and changed (lists are in the order of creation on this server), its etag, executions,
and the request_ids of its manual runs.

Must never import: rooms below but `command`, `errors`, `model`.
"""

from typing import Final

from tickwheel.server.api.times import SecondsNanos, ms_up
from tickwheel.server.command import Moved
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.model import ExecutionState, JobState, Ms, Status
from tickwheel.v1 import job_service_pb2 as pb

_BYTES: Final = 16
_COUNT_MAX: Final = (1 << 32) - 1
_COUNTS: Final = (
    "generation",
    "started_count",
    "succeeded_count",
    "failed_count",
    "skipped_count",
)
_STATES: Final = frozenset(map(int, JobState))
_OUTCOMES: Final = frozenset(map(int, ExecutionState))
_SECONDS_MAX: Final = 253_402_300_799
"""The last second of the year 9999."""


def take(request: pb.CreateJobRequest) -> Moved:
    """What the job of the request keeps. Raises InvalidArgument with all that is wrong."""
    job = request.job
    found: list[Violation] = []
    if not request.job_id:
        found.append(Violation("job_id", "must be set for a job that is moved", "REQUIRED"))
    uid = _uid(job.uid, found)
    if len(job.origin) != _BYTES:
        text = f"must be {_BYTES} bytes, as another server gave it: read the job in FULL"
        found.append(Violation("job.origin", text, "MOVED_INVALID"))
    if int(job.state) not in _STATES:
        found.append(Violation("job.state", "must be that of the job", "MOVED_INVALID"))
    if job.last_outcome and int(job.last_outcome) not in _OUTCOMES:
        found.append(Violation("job.last_outcome", "is no outcome", "MOVED_INVALID"))
    counts = {name: int(getattr(job, name)) for name in _COUNTS}
    for name, count in counts.items():
        if not int(name == "generation") <= count <= _COUNT_MAX:
            found.append(Violation(f"job.{name}", "is no such number", "MOVED_INVALID"))
    next_ms = _time("next_time", job.next_time, found) if job.HasField("next_time") else 0
    last_ms = _time("last_time", job.last_time, found) if job.HasField("last_time") else 0
    if found:
        raise InvalidArgument.of(found)
    status = Status(
        JobState(job.state),
        counts["generation"],
        create_ms=0,
        update_ms=0,
        next_ms=next_ms,
        last_ms=last_ms,
        last_outcome=int(job.last_outcome),
        run=counts["started_count"],
        succeeded=counts["succeeded_count"],
        failed=counts["failed_count"],
        skipped=counts["skipped_count"],
        origin=job.origin,
    )
    return Moved(uid, status)


def _uid(text: str, found: list[Violation]) -> bytes:
    try:
        uid = bytes.fromhex(text)
    except ValueError:
        uid = b""
    if len(uid) != _BYTES:
        found.append(Violation("job.uid", "must be 32 hexadecimal digits", "MOVED_INVALID"))
    return uid


def _time(name: str, value: SecondsNanos, found: list[Violation]) -> Ms:
    if not 0 < value.seconds <= _SECONDS_MAX or not 0 <= value.nanos < 1_000_000_000:  # noqa: PLR2004
        found.append(Violation(f"job.{name}", "is no time of a job", "MOVED_INVALID"))
        return 0
    return ms_up(value)
