"""A report at 02:30 in Berlin, and what the clocks' change does to it, looked at before the job is made.

Needs a node (`make run`). Makes the job `nightly-report`, shows it, and deletes it.
"""

import os
from datetime import UTC, datetime

from tickwheel.client import Client, Occurrence

SPRING = datetime(2027, 3, 27, tzinfo=UTC)
AUTUMN = datetime(2027, 10, 30, tzinfo=UTC)


def line(at: Occurrence) -> str:
    """Civil time, offset, instant, and what the change did to it."""
    return f"  {at.local_time} {at.utc_offset}  {at.scheduled_time:%Y-%m-%d %H:%M}Z  {at.dst_note}"


with Client(os.environ.get("TICKWHEEL_SERVER", "127.0.0.1:7070")) as tickwheel:
    for after, gap, overlap in (
        (SPRING, "fire_after", "first"),
        (SPRING, "skip", "first"),
        (AUTUMN, "fire_after", "both"),
    ):
        print(f"dst_gap={gap} dst_overlap={overlap}")
        seen = tickwheel.preview(
            cron="30 2 * * *",
            time_zone="Europe/Berlin",
            dst_gap=gap,
            dst_overlap=overlap,
            after=after,
            count=3,
        )
        print(*map(line, seen.occurrences), sep="\n")
        print(*(f"  {lost.local_time} is none: {lost.reason}" for lost in seen.dropped), sep="\n")

    job = tickwheel.create(
        "http://127.0.0.1:9000/ok",
        job_id="nightly-report",
        cron="30 2 * * *",
        time_zone="Europe/Berlin",
        dst_gap="skip",
    )
    print(job.name, "next", job.next_time)
    tickwheel.delete(job)
