"""Options that say when and what, shared by `jobs create`, `jobs update` and `preview`; and how the client takes them."""

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

if TYPE_CHECKING:
    from tickwheel.client.drafts import UpdateOptions

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

BODY_BYTES_MAX: Final = 64 * 1024 * 1024  # what is read; the server's own limit is far lower
_DST_GAPS = ["skip", "fire_after"]
_DST_OVERLAPS = ["first", "second", "both"]


class SpanType(click.ParamType[str]):
    """A span of time: 90s, 5m, 1h30m, 2d."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it here, where the option can be named; the client converts it."""
        from tickwheel.client.times import parse_span  # noqa: PLC0415 - imports gRPC

        try:
            parse_span(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return cast("str", value)


class TimeType(click.ParamType[datetime]):
    """RFC 3339 with an offset, or, where `civil` allows, a civil time without one."""

    name = "time"

    def __init__(self, *, civil: bool = False) -> None:
        self.civil = civil

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """A datetime, with a zone unless civil times are allowed."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time; write it as 2027-01-31T09:00:00+01:00", param, ctx)
        if moment.tzinfo is None and not self.civil:
            self.fail(
                f"{value!r} has no offset; write it as {value}+01:00, or {value}Z", param, ctx
            )
        return moment


class PairType(click.ParamType[tuple[str, str]]):
    """Two texts with a separator between them."""

    name = "pair"

    def __init__(self, separator: str) -> None:
        self.separator = separator

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """The two texts without the spaces around them."""
        if isinstance(value, tuple):
            return cast("tuple[str, str]", value)
        key, found, content = value.partition(self.separator)
        if not found or not key.strip():
            self.fail(f"{value!r} is not name{self.separator}value", param, ctx)
        return key.strip(), content.strip()


_KINDS: Final = (("at", "--at"), ("delay", "--in"), ("cron", "--cron"), ("every", "--every"))
SPAN: Final = SpanType()
TIME: Final = TimeType()


def _together(*options: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


with_schedule = _together(
    click.option("--at", type=TimeType(civil=True), metavar="TIME",
                 help="Once: RFC 3339 with an offset, or a civil time with --time-zone."),
    click.option("--in", "delay", type=SPAN, metavar="SPAN", help="Once, this long from now: 90s, 1h30m."),
    click.option("--cron", metavar="EXPR", help="Five fields, such as '0 9 * * 1-5'; or @daily."),
    click.option("--every", type=SPAN, metavar="SPAN", help="A fixed period, from 1s."),
    click.option("--time-zone", metavar="ZONE", help="IANA zone of --cron or of a civil --at."),
    click.option("--seconds", is_flag=True, default=None, help="--cron has six fields, seconds first."),
    click.option("--anchor", type=TIME, metavar="TIME", help="One of the occurrences of --every."),
    click.option("--dst-gap", type=click.Choice(_DST_GAPS), help="A civil time that does not exist."),
    click.option("--dst-overlap", type=click.Choice(_DST_OVERLAPS), help="A civil time that exists twice."),
    click.option("--start", type=TIME, metavar="TIME", help="No occurrence before this."),
    click.option("--end", type=TIME, metavar="TIME", help="No occurrence after this."),
)  # fmt: skip

with_target = _together(
    click.option("--url", metavar="URL", help="What to request."),
    click.option("--method", metavar="METHOD", help="Default: POST."),
    click.option("--header", "headers", type=PairType(":"), multiple=True, metavar="NAME:VALUE",
                 help="As often as needed."),
    click.option("--body", metavar="TEXT|@FILE|-", help="What to send: text, a file, or standard input."),
    click.option("--attempt-timeout", type=SPAN, metavar="SPAN", help="Of one attempt."),
    click.option("--label", "labels", type=PairType("="), multiple=True, metavar="KEY=VALUE",
                 help="As often as needed."),
    click.option("--description", metavar="TEXT", help="For people."),
    click.option("--max-attempts", type=click.IntRange(min=1), metavar="N", help="1 means no retry."),
    click.option("--min-backoff", type=SPAN, metavar="SPAN", help="The least pause between attempts."),
    click.option("--max-backoff", type=SPAN, metavar="SPAN", help="The longest pause."),
    click.option("--overlap", type=click.Choice(["skip", "buffer_one", "allow_all"]),
                 help="An occurrence falls due while an earlier one runs."),
    click.option("--misfire", type=click.Choice(["latest", "all", "skip"]),
                 help="Occurrences that fell due while the server was down."),
    click.option("--delivery", type=click.Choice(["at_least_once", "at_most_once"]),
                 help="An attempt whose end nobody saw."),
    click.option("--expire-after", type=SPAN, metavar="SPAN", help="Too late after this."),
    click.option("--jitter", type=SPAN, metavar="SPAN", help="Spread occurrences over this."),
    click.option("--max-executions", type=int, metavar="N", help="Complete after so many."),
    click.option("--past", type=click.Choice(["refuse", "fire_now"]), help="An --at that has passed."),
    click.option("--on-success", metavar="URL", help="Called when an execution succeeded."),
    click.option("--on-failure", metavar="URL", help="Called when an execution failed."),
    click.option("--flow-key", metavar="KEY", help="Jobs with the same key share these limits:"),
    click.option("--max-concurrent", type=int, metavar="N", help="Attempts in flight."),
    click.option("--per-second", type=float, metavar="N", help="Attempts started a second."),
)  # fmt: skip


def check_schedule(given: dict[str, Any], *, required: bool) -> None:
    """Refuse what is no schedule, or two, in the words of the command line. UsageError."""
    kinds = [flag for name, flag in _KINDS if given.get(name) is not None]
    if len(kinds) > 1 or (required and not kinds):
        named = " and ".join(kinds) or "none"
        raise click.UsageError(
            f"Give exactly one of --at, --in, --cron, --every; {named} was given."
        )
    at: datetime | None = given.get("at")
    if at is not None and at.tzinfo is None and not given.get("time_zone"):
        text = f"{at.isoformat()} has no zone: add an offset such as +01:00, or give --time-zone"
        raise click.BadParameter(text, param_hint="--at")


def job_options(given: dict[str, Any]) -> "UpdateOptions":
    """What was given, as the client's options; what was not is left out."""
    options = {name: value for name, value in given.items() if value is not None and value != ()}
    if "attempt_timeout" in options:
        options["timeout"] = options.pop("attempt_timeout")
    if "labels" in options:
        options["labels"] = dict(options["labels"])
    if "body" in options:
        options["body"] = read_body(options["body"])
    retry = {
        name: options.pop(name)
        for name in ("max_attempts", "min_backoff", "max_backoff")
        if name in options
    }
    if retry:
        from tickwheel.client import Retry  # noqa: PLC0415 - imports gRPC

        options["retry"] = Retry(**retry)
    return cast("UpdateOptions", options)


def read_body(text: str) -> bytes:
    """`@file` is the file's bytes, `-` standard input's; all else is the text itself."""
    if text == "-":
        body = sys.stdin.buffer.read(BODY_BYTES_MAX + 1)
    elif text.startswith("@"):
        try:
            with Path(text[1:]).open("rb") as file:
                body = file.read(BODY_BYTES_MAX + 1)
        except OSError as error:
            message = f"{text[1:]}: {error.strerror or error}"
            raise click.BadParameter(message, param_hint="--body") from error
    else:
        body = text.encode()
    if len(body) > BODY_BYTES_MAX:
        raise click.BadParameter("longer than any server takes", param_hint="--body")
    return body
