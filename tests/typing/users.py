"""What users write, and must type-check under mypy strict and pyright strict. It is read by them, never run.

An `ignore` is a claim too: where the library stopped refusing the wrong use, mypy would call the comment unused.
"""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import assert_type

from tickwheel.client import (
    AsyncClient,
    Cancelled,
    Change,
    Client,
    Counts,
    Execution,
    InvalidArgument,
    Job,
    JobHandle,
    Loaded,
    Page,
    Preview,
    Retry,
    TickwheelError,
    Updated,
    new_job,
)


def five_lines() -> None:
    with Client("127.0.0.1:7070") as tickwheel:
        job = tickwheel.create("https://example.com/hook", delay="90s", body=b"hello")
        assert_type(job, JobHandle)
        assert_type(job.next_time, datetime | None)


def schedules(tickwheel: Client) -> None:
    url = "https://example.com/hook"
    tickwheel.create(url, at=datetime(2027, 1, 1, 9, tzinfo=UTC), past="fire_now")
    tickwheel.create(url, at="2027-01-01T09:00:00", time_zone="Europe/Berlin")
    tickwheel.create(url, delay=timedelta(seconds=90))
    tickwheel.create(url, cron="0 9 * * 1-5", time_zone="Europe/Berlin", dst_gap="skip")
    tickwheel.create(url, every="5m", exclude=[date(2027, 1, 6)], job_id="nightly")
    tickwheel.create(
        url,
        every="5m",
        method="PUT",
        headers={"x-a": "b"},
        body={"a": [1, 2]},
        labels={"team": "a"},
        retry=Retry(max_attempts=3, min_backoff="2s"),
        overlap="buffer_one",
        on_failure="https://example.com/failed",
        request_id="abc",
        timeout_s=3,
    )


def wrong(tickwheel: Client) -> None:
    tickwheel.create("https://example.com", delay=90)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    tickwheel.create("https://example.com", dealy="9s")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    tickwheel.create("https://example.com", delay="9s", overlap="x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    tickwheel.update("nightly", job_id="x")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def reading(tickwheel: Client) -> None:
    assert_type(tickwheel.get("nightly"), Job)
    for job in tickwheel.list("state = PAUSED"):
        assert_type(job, Job)
    for page in tickwheel.pages(page_size=10):
        assert_type(page, Page[Job])
    for execution in tickwheel.executions.list("nightly", "state = FAILED"):
        assert_type(execution, Execution)
    for change in tickwheel.executions.watch("nightly", "state = FAILED", pulse=True):
        assert_type(change, Change)
        assert_type(change.execution, Execution | None)
    assert_type(tickwheel.count(group_by="state"), Counts)
    assert_type(tickwheel.preview("nightly", count=3), Preview)


def changing(tickwheel: Client) -> None:
    handle = tickwheel.create("https://example.com", cron="@daily")
    try:
        assert_type(tickwheel.update(handle, url="https://example.com/new"), Updated)
        assert_type(tickwheel.cancel(handle), Cancelled)
    except InvalidArgument as error:
        assert_type([violation.field for violation in error.violations], list[str])
    except TickwheelError as error:
        assert_type(error.reason, str)
        assert_type(error.retry_after_s, float | None)
    for result in tickwheel.load(new_job("https://example.com", every="1h") for _ in range(9)):
        assert_type(result, Loaded)


async def together() -> None:
    async with AsyncClient(["a:7070", "b:7070"], namespace="team", api_key="k") as tickwheel:
        handles = await asyncio.gather(
            *(tickwheel.create("https://example.com", delay="1h") for _ in range(100))
        )
        assert_type(handles, list[JobHandle])
        async for job in tickwheel.list(consistent=True):
            assert_type(job, Job)
        assert_type(await tickwheel.run(handles[0]), Execution)
