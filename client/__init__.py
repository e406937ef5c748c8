"""The Tickwheel client library.

    from tickwheel.client import Client

    with Client("127.0.0.1:7070") as tickwheel:
        job = tickwheel.create("https://example.com/hook", delay="90s", body=b"hello")
        print(job.name, job.next_time)

`AsyncClient` is the same with `async with` and `await`. Whole jobs and executions are the messages of `tickwheel.v1`.
Never imports `tickwheel.server`, nor anything that only a server needs.
"""

from tickwheel.client.aio import AsyncClient, Loaded, new_job
from tickwheel.client.core import Page
from tickwheel.client.drafts import JobOptions, Retry, UpdateOptions
from tickwheel.client.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TickwheelError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
)
from tickwheel.client.runs import AsyncExecutions
from tickwheel.client.sync import Client, Executions
from tickwheel.client.times import Span, parse_span
from tickwheel.client.values import (
    Cancelled,
    Change,
    Counts,
    Criterion,
    Dropped,
    JobHandle,
    JobRef,
    Occurrence,
    Preview,
    Updated,
    Validation,
)
from tickwheel.v1.execution_pb2 import Execution
from tickwheel.v1.job_pb2 import Job

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "AsyncExecutions",
    "Cancelled",
    "Change",
    "Client",
    "Counts",
    "Criterion",
    "DeadlineExceeded",
    "Dropped",
    "Execution",
    "Executions",
    "FailedPrecondition",
    "InternalError",
    "InvalidArgument",
    "Job",
    "JobHandle",
    "JobOptions",
    "JobRef",
    "Loaded",
    "NotFound",
    "Occurrence",
    "Page",
    "PermissionDenied",
    "Preview",
    "ResourceExhausted",
    "Retry",
    "Span",
    "TickwheelError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UpdateOptions",
    "Updated",
    "Validation",
    "Violation",
    "new_job",
    "parse_span",
]
