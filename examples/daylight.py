"""A report at 02:30 in Berlin, and what the clocks' change does to it, looked at before the job is made.

Needs a node (`make run`). Makes the job `nightly-report`, shows it, and deletes it.
"""

import os
from datetime import UTC, datetime

from tickwheel.client import Client, Occurrence
from tickwheel.client.aio import PreviewOptions

SPRING = datetime(2027, 3, 27, tzinfo=UTC)
AUTUMN = datetime(2027, 10, 30, tzinfo=UTC)
NIGHTLY: PreviewOptions = {"cron": "30 2 * * *", "time_zone": "Europe/Berlin"}


def line(at: Occurrence) -> str:
    """Civil time, offset, instant, and what the change did to it."""
    return f"  {at.local_time} {at.utc_offset}  {at.scheduled_time:%Y-%m-%d %H:%M}Z  {at.dst_note}"


def show(tickwheel: Client, after: datetime, more: PreviewOptions) -> None:
    """The next three occurrences, and the civil times among them that are none."""
    print(f"after {after:%Y-%m-%d} {more}")
    preview = tickwheel.preview(after=after, count=3, **(NIGHTLY | more))
    for at in preview.occurrences:
        print(line(at))
    for lost in preview.dropped:
        print(f"  {lost.local_time} is none: {lost.reason}")


with Client(os.environ.get("TICKWHEEL_SERVER", "127.0.0.1:7070")) as tickwheel:
    show(tickwheel, SPRING, {})
    show(tickwheel, SPRING, {"dst_gap": "skip"})
    show(tickwheel, AUTUMN, {})
    show(tickwheel, AUTUMN, {"dst_overlap": "both"})

    job = tickwheel.create(
        "http://127.0.0.1:9000/ok",
        job_id="nightly-report",
        cron="30 2 * * *",
        time_zone="Europe/Berlin",
        dst_gap="skip",
    )
    print(job.name, "next", job.next_time)
    tickwheel.delete(job)
