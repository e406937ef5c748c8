"""`tickwheel executions`: what became of occurrences."""

from contextlib import suppress
from itertools import islice

import click

from tickwheel.cli import show
from tickwheel.cli.settings import settings_of, with_connection, with_output

_LIST_MAX = 100


@click.group()
def executions() -> None:
    """Look at what was carried out, and retry what failed."""


@executions.command("list")
@click.argument("job", default="-")
@click.option("--filter", "where", default="", metavar="FILTER", help="For example: state = FAILED")
@click.option(
    "--limit", type=click.IntRange(min=0), default=_LIST_MAX, show_default=True, help="0: all."
)
@click.option(
    "--consistent", is_flag=True, help="Wait until every change answered before is visible."
)
@with_output
@with_connection()
@click.pass_context
def list_(context: click.Context, *, job: str, where: str, limit: int, consistent: bool) -> None:
    """List executions of JOB, or of all jobs, those made last first."""
    settings = settings_of(context)
    with settings.connect() as client:
        found = client.executions.list(job, where, consistent=consistent)
        shown = islice(found, limit) if limit else found
        rows = ((show.execution_row(settings, each), show.plain(each)) for each in shown)
        show.print_many(settings, show.EXECUTION_HEAD, rows)
        if limit and next(found, None) is not None:
            click.echo(f"these are the first {limit}; there are more (--limit 0 for all)", err=True)


@executions.command()
@click.argument("job", default="-")
@click.option("--filter", "where", default="", metavar="FILTER", help="For example: state = FAILED")
@click.option("--token", default="", metavar="TOKEN", help="Go on after it; see --tokens.")
@click.option("--tokens", is_flag=True, help="Tell on stderr, after each line, where to go on.")
@with_output
@with_connection()
@click.pass_context
def watch(context: click.Context, *, job: str, where: str, token: str, tokens: bool) -> None:
    """Print executions of JOB, or of all jobs, as they change, until ctrl-c; with -o json one in a line."""
    settings = settings_of(context)
    printed = show.Printed(settings, show.EXECUTION_HEAD)
    with suppress(KeyboardInterrupt), settings.connect() as client:
        for change in client.executions.watch(job, where, token=token, pulse=True):
            if change.execution is not None:
                row = show.execution_row(settings, change.execution)
                printed.put(row, show.plain(change.execution))
            if tokens:
                click.echo(change.token, err=True)


@executions.command()
@click.argument("execution")
@click.option("--job", metavar="JOB", help="Needed unless EXECUTION is a whole name.")
@with_output
@with_connection()
@click.pass_context
def get(context: click.Context, *, execution: str, job: str | None) -> None:
    """Read an execution with all its attempts."""
    settings = settings_of(context)
    with settings.connect() as client:
        found = client.executions.get(execution, job=job)
    show.print_one(settings, show.plain(found), show.execution_lines(settings, found))


@executions.command()
@click.argument("execution")
@click.option("--job", metavar="JOB", help="Needed unless EXECUTION is a whole name.")
@click.option("--request-id", metavar="ID", default="", help="Repeating it starts nothing new.")
@with_output
@with_connection()
@click.pass_context
def retry(context: click.Context, *, execution: str, job: str | None, request_id: str) -> None:
    """Give a failed execution a new budget of attempts."""
    settings = settings_of(context)
    with settings.connect() as client:
        found = client.executions.retry(execution, job=job, request_id=request_id)
    show.print_one(settings, show.plain(found), show.execution_lines(settings, found))
