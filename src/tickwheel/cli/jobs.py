"""`tickwheel jobs`: make, read, change and end jobs."""

from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import click

from tickwheel.cli import show
from tickwheel.cli.bulk import load_file
from tickwheel.cli.parameters import (
    SPAN,
    check_schedule,
    job_options,
    with_schedule,
    with_target,
)
from tickwheel.cli.settings import Settings, settings_of, with_connection, with_output

if TYPE_CHECKING:
    from tickwheel.client import Job, JobHandle
    from tickwheel.client.aio import Grouping
    from tickwheel.client.drafts import JobOptions

_LIST_MAX = 100
_FILTER_HELP = 'For example: state = PAUSED AND labels.team = "a"'


@click.group()
def jobs() -> None:
    """Make, read, change and end jobs."""


@jobs.command(
    epilog="\b\ntickwheel jobs create --url https://example.com/hook --in 90s --body hello"
    "\ntickwheel jobs create --id report --url https://example.com/report --cron '0 9 * * 1-5' --time-zone Europe/Berlin"
    "\ntickwheel jobs create --from jobs.ndjson"
)
@click.option(
    "--id",
    "job_id",
    metavar="ID",
    default="",
    help="The job's name. Default: made from the request.",
)
@with_schedule
@with_target
@click.option("--request-id", metavar="ID", default="", help="Repeating it gives the same job.")
@click.option(
    "--validate-only", is_flag=True, help="Say what is right and wrong, and make nothing."
)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE|-",
    help="Make one job of each line of JSON; running it again makes none twice.",
)
@with_output
@with_connection()
@click.pass_context
def create(
    context: click.Context,
    /,
    *,
    job_id: str,
    request_id: str,
    validate_only: bool,
    source: str | None,
    **given: Any,
) -> None:
    """Make a job, or very many with --from.

    Give --url and exactly one of --at, --in, --cron, --every.
    """
    settings = settings_of(context)
    if source is not None:
        if (
            job_id
            or request_id
            or validate_only
            or any(value not in {None, ()} for value in given.values())
        ):
            raise click.UsageError("--from takes everything from the file: give it alone")
        load_file(settings, source)
        return
    url = given.pop("url")
    if not url:
        raise click.UsageError("Missing option '--url', or '--from' for many jobs.")
    check_schedule(given, required=True)
    options = cast("JobOptions", job_options(given))
    with settings.connect() as client:
        if validate_only:
            _validate(context, settings, url, job_id, options)
            return
        handle = client.create(url, job_id=job_id, request_id=request_id, **options)
    _print_handle(settings, handle)


def _validate(
    context: click.Context, settings: Settings, url: str, job_id: str, options: "JobOptions"
) -> None:
    with settings.connect() as client:
        found = client.validate(url, job_id=job_id, **options)
    lines = (
        f"{'ok   ' if c.met else 'WRONG'}  {c.field or 'job'}: {c.description}"
        for c in found.criteria
    )
    show.print_one(settings, show.plain_value(found), lines)
    if not found.valid:
        context.exit(2)


def _print_handle(settings: Settings, handle: "JobHandle") -> None:
    next_time = settings.show_time(handle.next_time) if handle.next_time else ""
    lines = show.pairs([("name", handle.name), ("uid", handle.uid), ("next", next_time)])
    show.print_one(settings, show.plain_value(handle), lines)


def _print_job(settings: Settings, job: "Job") -> None:
    show.print_one(settings, show.plain(job), show.job_lines(settings, job))


@jobs.command()
@click.argument("job")
@with_output
@with_connection()
@click.pass_context
def get(context: click.Context, *, job: str) -> None:
    """Read a job."""
    settings = settings_of(context)
    with settings.connect() as client:
        found = client.get(job)
    _print_job(settings, found)


@jobs.command("list")
@click.option("--filter", "where", default="", metavar="FILTER", help=_FILTER_HELP)
@click.option(
    "--limit", type=click.IntRange(min=0), default=_LIST_MAX, show_default=True, help="0: all."
)
@click.option("--full", is_flag=True, help="With bodies and header values.")
@click.option(
    "--consistent", is_flag=True, help="Wait until every change answered before is visible."
)
@click.option("--all-namespaces", is_flag=True, help="Of all that you may read.")
@with_output
@with_connection()
@click.pass_context
def list_(
    context: click.Context,
    *,
    where: str,
    limit: int,
    full: bool,
    consistent: bool,
    all_namespaces: bool,
) -> None:
    """List jobs, oldest first."""
    settings = settings_of(context)
    with settings.connect() as client:
        found = client.list(where, full=full, consistent=consistent, all_namespaces=all_namespaces)
        shown = islice(found, limit) if limit else found
        rows = ((show.job_row(settings, job), show.plain(job)) for job in shown)
        show.print_many(settings, show.JOB_HEAD, rows)
        if limit and next(found, None) is not None:
            click.echo(f"these are the first {limit}; there are more (--limit 0 for all)", err=True)


@jobs.command()
@click.option("--filter", "where", default="", metavar="FILTER", help=_FILTER_HELP)
@click.option(
    "--by",
    metavar="state|last-outcome|next-time|label:KEY",
    help="Count in groups.",
)
@click.option(
    "--bucket", type=SPAN, metavar="SPAN", help="With --by next-time: the width of a group."
)
@click.option(
    "--consistent", is_flag=True, help="Wait until every change answered before is visible."
)
@click.option("--all-namespaces", is_flag=True, help="Of all that you may read.")
@with_output
@with_connection()
@click.pass_context
def count(
    context: click.Context,
    *,
    where: str,
    by: str | None,
    bucket: str | None,
    consistent: bool,
    all_namespaces: bool,
) -> None:
    """Count jobs, in groups if asked to."""
    settings = settings_of(context)
    grouping, label_key = _grouping(by)
    with settings.connect() as client:
        counts = client.count(
            where,
            group_by=grouping,
            label_key=label_key,
            bucket=bucket,
            consistent=consistent,
            all_namespaces=all_namespaces,
        )
    groups = [
        (key if isinstance(key, str) else settings.show_time(key), f"{number}")
        for key, number in counts.groups.items()
    ]
    lines = show.pairs([*groups, ("total", f"{counts.total}")])
    show.print_one(settings, show.plain_value(counts), lines)


def _grouping(by: str | None) -> "tuple[Grouping | None, str]":
    if by is None:
        return None, ""
    kind, _, key = by.partition(":")
    kind = kind.replace("-", "_")
    if kind not in {"state", "last_outcome", "next_time", "label"} or (kind == "label") != bool(
        key
    ):
        text = f"{by!r} is not state, last-outcome, next-time or label:KEY"
        raise click.BadParameter(text, param_hint="--by")
    return cast("Grouping", kind), key


@jobs.command()
@click.argument("job")
@with_schedule
@with_target
@click.option("--etag", default="", metavar="ETAG", help="Only if nobody changed it since.")
@with_output
@with_connection()
@click.pass_context
def update(context: click.Context, /, *, job: str, etag: str, **given: Any) -> None:
    """Change what is given and nothing else."""
    settings = settings_of(context)
    check_schedule(given, required=False)
    options = job_options(given)
    if not options:
        raise click.UsageError("Nothing to change: give at least one option.")
    with settings.connect() as client:
        changed = client.update(job, etag=etag, **options)
    item = show.plain_value(changed) | {"job": show.plain(changed.job)}
    before = [("before the change", _outcome_words(changed.outcome, changed.attempt))]
    lines = [*show.job_lines(settings, changed.job), *show.pairs(before)]
    show.print_one(settings, item, lines)


@jobs.command()
@click.argument("job")
@click.option("--etag", default="", metavar="ETAG", help="Only if nobody changed it since.")
@with_output
@with_connection()
@click.pass_context
def cancel(context: click.Context, *, job: str, etag: str) -> None:
    """End a job for good, and say what became of the occurrence under way."""
    settings = settings_of(context)
    with settings.connect() as client:
        ended = client.cancel(job, etag=etag)
    item = show.plain_value(ended) | {"job": show.plain(ended.job)}
    lines = show.pairs(
        [
            ("name", ended.job.name),
            ("outcome", _outcome_words(ended.outcome, ended.attempt)),
            ("execution", ended.execution),
        ]
    )
    show.print_one(settings, item, lines)


def _outcome_words(outcome: str, attempt: int) -> str:
    return f"{outcome} (attempt {attempt})" if attempt else outcome


@jobs.command()
@click.argument("job", nargs=-1, required=True)
@click.option("--etag", default="", metavar="ETAG", help="Only if nobody changed it since.")
@click.option("--missing-ok", is_flag=True, help="A job that is not there is no error.")
@with_connection()
@click.pass_context
def delete(context: click.Context, *, job: tuple[str, ...], etag: str, missing_ok: bool) -> None:
    """Remove jobs and their waiting executions."""
    with settings_of(context).connect() as client:
        for name in job:
            client.delete(name, etag=etag, missing_ok=missing_ok)
            click.echo(f"deleted {name}")


@jobs.command()
@click.argument("job")
@click.option("--etag", default="", metavar="ETAG", help="Only if nobody changed it since.")
@with_output
@with_connection()
@click.pass_context
def pause(context: click.Context, *, job: str, etag: str) -> None:
    """Stop firing until `resume`."""
    settings = settings_of(context)
    with settings.connect() as client:
        paused = client.pause(job, etag=etag)
    _print_job(settings, paused)


@jobs.command()
@click.argument("job")
@click.option("--etag", default="", metavar="ETAG", help="Only if nobody changed it since.")
@with_output
@with_connection()
@click.pass_context
def resume(context: click.Context, *, job: str, etag: str) -> None:
    """Fire again, from now on."""
    settings = settings_of(context)
    with settings.connect() as client:
        resumed = client.resume(job, etag=etag)
    _print_job(settings, resumed)


@jobs.command()
@click.argument("job")
@click.option(
    "--request-id", metavar="ID", default="", help="Repeating it gives the same execution."
)
@with_output
@with_connection()
@click.pass_context
def run(context: click.Context, *, job: str, request_id: str) -> None:
    """Start one execution now, beside the schedule."""
    settings = settings_of(context)
    with settings.connect() as client:
        started = client.run(job, request_id=request_id)
    show.print_one(settings, show.plain(started), show.execution_lines(settings, started))
