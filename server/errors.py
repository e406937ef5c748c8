"""Floor 0. Every error a caller can meet, in one tree; the doors map it once (`api/errors`).

    TickwheelError                 code              when
    ├── InvalidArgument            INVALID_ARGUMENT    a field is wrong; `violations` name each
    │   └── NotYetSupported        INVALID_ARGUMENT    the field is known, but this version does not honour it
    ├── NotFound                   NOT_FOUND           no such job, execution, namespace
    ├── AlreadyExists              ALREADY_EXISTS      the name is taken by other content
    ├── FailedPrecondition         FAILED_PRECONDITION the resource's state forbids it
    ├── Aborted                    ABORTED             the etag no longer matches
    ├── ResourceExhausted          RESOURCE_EXHAUSTED  a queue, the disk or a quota is full; retry after a while
    ├── Unavailable                UNAVAILABLE         the shard is starting, stopping or moving; retry
    │   └── NotLeader              UNAVAILABLE         this replica does not lead the shard, or not yet, or no more
    ├── DeadlineExceeded           DEADLINE_EXCEEDED   the caller's deadline passed; the outcome is unknown
    ├── Unimplemented              UNIMPLEMENTED       the method's turn comes later
    ├── Unauthenticated            UNAUTHENTICATED     no credential, or one nobody knows
    ├── PermissionDenied           PERMISSION_DENIED   the credential does not reach that far
    └── Fatal                      INTERNAL            the node must not go on
        ├── WalFailed                                  a write or fsync of the journal failed: never retried
        ├── WalRot                                     the journal holds damage that is not a torn tail
        ├── LogBroken                                  a rule of the replicated log does not hold (L1 to L9)
        ├── StoreFailed                                SQLite reported I/O error, corruption or a full disk
        └── DirectoryLocked                            another process owns the data directory

`reason` is UPPER_SNAKE_CASE and stable: programs match on it. `metadata` repeats every dynamic part of the message
(AIP-193). Must never import: anything of this project; no I/O, no clock.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple


class Violation(NamedTuple):
    """One wrong field: its path as the API spells it (`schedule.cron.expression`), what to do, and a stable reason."""

    field: str
    description: str
    reason: str = "INVALID"


class TickwheelError(Exception):
    """The root. `code` is a gRPC status name; `retry_after_ms` is set where waiting helps."""

    code: ClassVar[str] = "INTERNAL"
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_ms = retry_after_ms


class InvalidArgument(TickwheelError):
    """A field of the request is wrong."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"

    @classmethod
    def of(cls, violations: Sequence[Violation]) -> "InvalidArgument":
        """The error of one or more violations; the first one's reason and text lead."""
        assert violations, "an InvalidArgument names at least one field"
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        return cls(
            f"{first.field}: {first.description}{more}",
            reason=first.reason,
            metadata={"field": first.field},
            violations=violations,
        )


class NotYetSupported(InvalidArgument):
    """The field is part of the API, but this version does not honour it; it is refused rather than ignored."""

    default_reason = "NOT_YET_SUPPORTED"


class NotFound(TickwheelError):
    """The named resource does not exist."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExists(TickwheelError):
    """The name is taken, by a job with other content."""

    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(TickwheelError):
    """The resource's state does not allow the call."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"


class Aborted(TickwheelError):
    """The etag that the caller holds is not the resource's any more."""

    code = "ABORTED"
    default_reason = "ETAG_MISMATCH"


class ResourceExhausted(TickwheelError):
    """A bound is reached; `retry_after_ms` says when to come again."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(TickwheelError):
    """Not now: nothing was done, the call is safe to repeat."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class NotLeader(Unavailable):
    """This replica takes no proposals: it does not lead the shard, or not yet, or no more."""

    default_reason = "NOT_LEADER"


class DeadlineExceeded(TickwheelError):
    """The deadline passed; whether it was done is unknown, so repeat it with the same request_id."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class Unimplemented(TickwheelError):
    """The method is part of the API, but this version does not have it."""

    code = "UNIMPLEMENTED"
    default_reason = "METHOD_NOT_YET_SUPPORTED"


class Unauthenticated(TickwheelError):
    """No credential, or one that nobody knows."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(TickwheelError):
    """The credential does not allow it."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"


class Fatal(TickwheelError):
    """The node must stop: going on could lose or repeat what was promised."""


class WalFailed(Fatal):
    """A write or fsync of the journal failed. The kernel may have dropped the pages: never retried."""

    default_reason = "WAL_FAILED"


class WalRot(Fatal):
    """The journal is damaged in a place that a crash cannot explain. Names the file and the offset."""

    default_reason = "WAL_ROT"


class LogBroken(Fatal):
    """A rule of the replicated log does not hold: `metadata["rule"]` names it. Going on could lose what was promised."""

    default_reason = "LOG_BROKEN"


class StoreFailed(Fatal):
    """SQLite reported an I/O error, corruption, or a full disk."""

    default_reason = "STORE_FAILED"


class DirectoryLocked(Fatal):
    """Another process holds the data directory."""

    default_reason = "DIRECTORY_LOCKED"
