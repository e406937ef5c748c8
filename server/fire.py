"""Floor 0. What goes to dispatch and what comes back: one attempt to be made, and how it ended.

    shard ──Fire──► runner ──► dispatch ──Outcome──► runner ──► shard (as the command `Ended`)

Both are values: they hold no handle, so that a simulation can make, keep and compare them.

Must never import: anything of this project but `model`; no I/O, no clock.
"""

from enum import IntEnum
from typing import NamedTuple

from tickwheel.server.model import HttpTarget, Ms, Row

TargetKey = tuple[str, str, int]
"""(scheme, host, port): the attempts that share slots and places in dispatch."""


class Fire(NamedTuple):
    """One attempt. `id` is the execution's id, the same over all its attempts; `target` the spec's as it is now.

    `scheduled_ms` is the occurrence, `due_ms` when this attempt was due (jitter and backoff included). `late`: it is
    caught up with, and waits behind what is on time.
    """

    shard: int
    execution_row: Row
    job_row: Row
    id: str
    namespace: str
    job: str
    generation: int
    epoch: int
    scheduled_ms: Ms
    due_ms: Ms
    attempt: int
    target: HttpTarget
    late: bool


class OutcomeKind(IntEnum):
    """What the end of an attempt means for its execution."""

    SUCCEEDED = 1
    RETRY = 2
    """It failed; another attempt may help."""
    FAIL = 3
    """It failed, and no further attempt is wanted."""
    DISABLE = 4
    """The target is gone for good: the job's state becomes DISABLED."""
    WITHDRAWN = 5
    """The gate said no: not one byte was sent, and it does not count as an attempt."""


class Outcome(NamedTuple):
    """The end of one attempt.

    `status` is the HTTP code, 0 when no response came; then `error` names the failure in one word. `start_ms` is when
    the gate passed, or, if it was never reached, when the attempt began. `sent` is False when certainly no byte of the
    request left: only such a failure may be repeated under AT_MOST_ONCE. `retry_after_ms` is the least pause that the
    target asked for.
    """

    kind: OutcomeKind
    status: int
    error: str
    body: bytes
    start_ms: Ms
    end_ms: Ms
    retry_after_ms: int = 0
    sent: bool = True
