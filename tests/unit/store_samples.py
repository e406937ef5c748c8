"""Jobs, executions and change sets for the tests of the store."""

from dataclasses import dataclass, field
from struct import Struct

from tickwheel.server import codec
from tickwheel.server.model import (
    MS_PER_DAY,
    ExecutionState,
    JobRow,
    JobState,
    Ms,
    Row,
    Status,
)

DAY_0: Ms = 20_000 * MS_PER_DAY
NOW: Ms = DAY_0 + 36_000_000

_EXECUTION = Struct("<6q")


@dataclass
class Changed:
    """A change set as `table` makes them."""

    jobs: dict[Row, JobRow] = field(default_factory=dict[Row, JobRow])
    statuses: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    drops: set[Row] = field(default_factory=set[Row])
    live: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    ended: dict[Row, bytes] = field(default_factory=dict[Row, bytes])


def job(  # noqa: PLR0913 - keyword-only, each with a default
    name: str,
    *,
    namespace: str = "acme",
    body: bytes = b"{}",
    labels: dict[str, str] | None = None,
    state: JobState = JobState.SCHEDULED,
    generation: int = 1,
    create_ms: Ms = NOW,
    next_ms: Ms | None = None,
    due_ms: Ms = NOW + 1,
    last_outcome: int = 0,
) -> JobRow:
    status = Status(
        state=state,
        generation=generation,
        create_ms=create_ms,
        update_ms=create_ms,
        next_ms=due_ms if next_ms is None else next_ms,
        due_ms=due_ms,
        last_outcome=last_outcome,
    )
    uid = create_ms.to_bytes(6, "big") + name.encode().ljust(10, b"\0")[:10]
    encoded = codec.encode_labels(labels or {})
    return JobRow(namespace, name, uid, body, codec.encode_status(status), encoded)


def execution(  # noqa: PLR0913 - keyword-only, each with a default
    job_row: Row,
    name: str,
    *,
    namespace: str = "acme",
    state: ExecutionState = ExecutionState.RETRYING,
    create_ms: Ms = NOW,
    scheduled_ms: Ms = NOW,
    due_ms: Ms = 0,
    attempt: int = 1,
) -> bytes:
    """An execution in a stored form of the tests' own: the store knows it by `execution_columns` only."""
    numbers = _EXECUTION.pack(job_row, state, create_ms, scheduled_ms, due_ms, attempt)
    return numbers + f"{namespace}/{name}".encode()


def execution_columns(data: bytes) -> tuple[Row, int, Ms, Ms, Ms, int, str, str]:
    job_row, state, create_ms, scheduled_ms, due_ms, attempt = _EXECUTION.unpack_from(data)
    namespace, name = data[_EXECUTION.size :].decode().split("/")
    return job_row, state, create_ms, scheduled_ms, due_ms, attempt, namespace, name
