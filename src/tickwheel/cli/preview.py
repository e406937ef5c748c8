"""`tickwheel preview`: when a schedule will fire, with what daylight saving does to it."""

from datetime import datetime
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import click

from tickwheel.cli import show
from tickwheel.cli.parameters import SPAN, TIME, check_schedule, with_schedule
from tickwheel.cli.settings import Settings, settings_of, with_connection, with_output

if TYPE_CHECKING:
    from tickwheel.client import Preview
    from tickwheel.client.aio import PreviewOptions

_NOTES = {
    "": "",
    "MOVED_AFTER_GAP": "clocks go forward: its civil time does not exist, moved after the gap",
    "FIRST_OF_TWO": "clocks go back: the first of two",
    "SECOND_OF_TWO": "clocks go back: the second of two",
}
_DROPPED = {"DST_GAP": "does not exist that day", "EXCLUDED": "excluded"}
_HEAD = ("CIVIL TIME", "OFFSET", "INSTANT", "NOTE")


@click.command(
    epilog="\b\ntickwheel preview --cron '30 2 * * *' --time-zone Europe/Berlin --after 2027-03-27T00:00:00Z"
    "\ntickwheel preview nightly --count 3"
)
@click.argument("job", required=False)
@with_schedule
@click.option(
    "--count", type=click.IntRange(1, 1_000), default=10, show_default=True, help="How many."
)
@click.option("--after", type=TIME, metavar="TIME", help="Occurrences after this.  [default: now]")
@click.option("--jitter", type=SPAN, metavar="SPAN", help="Show the latest due time.")
@with_output
@with_connection()
@click.pass_context
def preview(
    context: click.Context, /, *, job: str | None, count: int, after: datetime | None, **given: Any
) -> None:
    """Show the next occurrences of JOB, or of a schedule."""
    settings = settings_of(context)
    options = cast("PreviewOptions", {k: v for k, v in given.items() if v is not None})
    check_schedule(given, required=job is None)
    with settings.connect() as client:
        found = client.preview(job, count=count, after=after, **options)
    _print(settings, found)


def _print(settings: Settings, found: "Preview") -> None:
    if settings.output != "table":
        show.print_one(settings, show.plain_value(found), ())
        return
    rows = [
        (
            o.local_time,
            o.utc_offset,
            settings.show_time(o.scheduled_time),
            _NOTES.get(o.dst_note, o.dst_note),
        )
        for o in found.occurrences
    ]
    dropped = [(d.local_time, "", "-", _DROPPED.get(d.reason, d.reason)) for d in found.dropped]
    # by civil time, but never against the order of the instants: an hour may come twice
    show.print_table(_HEAD, list(merge(rows, dropped, key=itemgetter(0))))
    click.echo(f"time zone database {found.tzdata_version}", err=True)
