"""What all commands share: where the server is, how to print, and how a failure ends.

The options may stand before the command or after it; after it wins. Commands get a `Settings` and never see gRPC.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from tickwheel.client import Client, TickwheelError

EXIT_CODES: Final = (
    (0, "done"),
    (1, "an error that has no number of its own; a bulk load with failed lines"),
    (2, "wrong usage, or a value that the server refuses"),
    (3, "not found"),
    (4, "conflict: the name is taken, the etag is old, or the job's state forbids it"),
    (5, "the server cannot be reached, is busy, or did not answer in time; try again"),
    (6, "no API key, or one that does not reach that far"),
)
_EXIT_CODE_OF: Final = {
    "INVALID_ARGUMENT": 2,
    "NOT_FOUND": 3,
    "ALREADY_EXISTS": 4,
    "ABORTED": 4,
    "FAILED_PRECONDITION": 4,
    "UNAVAILABLE": 5,
    "RESOURCE_EXHAUSTED": 5,
    "DEADLINE_EXCEEDED": 5,
    "UNAUTHENTICATED": 6,
    "PERMISSION_DENIED": 6,
}
_FLAGS: Final = (  # the field of a violation: the option that sets it
    ("schedule.cron.expression", "--cron"),
    ("schedule.cron.time_zone", "--time-zone"),
    ("schedule.once.time_zone", "--time-zone"),
    ("schedule.once.delay", "--in"),
    ("schedule.once.past_policy", "--past"),
    ("schedule.once", "--at"),
    ("schedule.every", "--every"),
    ("http_target.url", "--url"),
    ("http_target.method", "--method"),
    ("http_target.headers", "--header"),
    ("http_target.body", "--body"),
    ("http_target.timeout", "--attempt-timeout"),
    ("retry_policy.max_attempts", "--max-attempts"),
    ("retry_policy.min_backoff", "--min-backoff"),
    ("retry_policy.max_backoff", "--max-backoff"),
    ("flow_control.key", "--flow-key"),
    ("flow_control.max_concurrent", "--max-concurrent"),
    ("flow_control.per_second", "--per-second"),
    ("flow_control", "--flow-key, --max-concurrent, --per-second"),
    ("on_success", "--on-success"),
    ("on_failure", "--on-failure"),
    ("window.start_time", "--start"),
    ("window.end_time", "--end"),
    ("description", "--description"),
    ("max_executions", "--max-executions"),
    ("expire_after", "--expire-after"),
    ("jitter", "--jitter"),
    ("delivery", "--delivery"),
    ("misfire.policy", "--misfire"),
    ("overlap_policy", "--overlap"),
    ("labels", "--label"),
    ("job_id", "--id"),
    ("filter", "--filter"),
    ("parent", "--namespace"),
)
_HINTS: Final = {
    "NOT_CONNECTED": "start one with `tickwheel serve`, or name another with --server host:port",
    "ETAG_MISMATCH": "read the job again, then decide",
    "UNAUTHENTICATED": "give a key with --api-key or TICKWHEEL_API_KEY",
}
OUTPUTS: Final = ("table", "json", "ndjson", "yaml")
TIMEOUT_S: Final = 10.0

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """What the shared options say."""

    server: str = "127.0.0.1:7070"
    namespace: str = "default"
    timeout_s: float | None = None
    api_key: str | None = None
    output: str = "table"
    zone: str | None = None

    @contextmanager
    def connect(self) -> "Generator[Client]":
        """A client for the time of one command; its errors become a line, a hint, and an exit code."""
        client_module = client_library()
        try:
            with client_module.Client(
                self.server,
                namespace=self.namespace,
                timeout_s=self.timeout_s or TIMEOUT_S,
                api_key=self.api_key,
            ) as client:
                yield client
        except client_module.TickwheelError as error:
            raise failed(error) from error

    def tzinfo(self) -> tzinfo | None:
        """The zone to show times in; None is this machine's. A usage error if nobody knows it."""
        return None if self.zone is None else zone_of(self.zone)

    def show_time(self, moment: datetime) -> str:
        """`2027-01-31 09:00:00 CET`, in the user's zone; milliseconds only where there are some."""
        there = moment.astimezone(self.tzinfo())
        spec = "milliseconds" if there.microsecond else "seconds"
        civil = there.replace(tzinfo=None).isoformat(" ", timespec=spec)
        return f"{civil} {there.tzname()}"


def client_library() -> Any:
    """`tickwheel.client`, imported when first needed."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are told here, in words
    from tickwheel import client  # noqa: PLC0415 - gRPC takes longer to import than --help may take

    return client


def zone_of(name: str) -> tzinfo:
    """An IANA zone by its name. A usage error if this machine has no such zone."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - only where a zone is named

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        text = f"no zone {name!r} on this machine; write an IANA name such as Europe/Berlin"
        raise click.BadParameter(text, param_hint="--show-zone") from error


def failed(error: "TickwheelError") -> click.exceptions.Exit:
    """Tell an error (message, wrong fields with their options, a hint); the way out with its exit code."""
    click.echo("tickwheel: " + "\n".join(_told(error)), err=True)
    return click.exceptions.Exit(_EXIT_CODE_OF.get(error.code, 1))


def _told(error: "TickwheelError") -> Iterator[str]:
    fields = [violation for violation in error.violations if violation.field]
    if fields:
        for violation in fields:
            yield f"{_with_flag(violation.field)}: {violation.description}"
    else:
        yield error.message
    if error.retry_after_s is not None:
        yield f"try again in {error.retry_after_s:g} s"
    hint = _HINTS.get(error.reason)
    if hint:
        yield hint


def _with_flag(field: str) -> str:
    bare = field.removeprefix("job.")
    flag = next((flag for prefix, flag in _FLAGS if bare.startswith(prefix)), None)
    return f"{flag} ({field})" if flag else field


def settings_of(context: click.Context) -> Settings:
    """The settings of this run; made by the first shared option, wherever it stands."""
    return context.ensure_object(Settings)


def _stored(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        settings = settings_of(context)
        if value is not None:
            setattr(settings, field, value)

    return store


def _shared(field: str, *flags: str, **more: Any) -> Callable[[Decorated], Decorated]:
    return click.option(
        *flags, callback=_stored(field), expose_value=False, show_envvar=True, **more
    )


def with_connection(*, environment: bool = False) -> Callable[[Decorated], Decorated]:
    """The options that say where the server is. The environment is read at the top only: a flag beats it."""

    def env(name: str) -> str | None:
        return f"TICKWHEEL_{name}" if environment else None

    def decorate(command: Decorated) -> Decorated:
        for add in (
            _shared(
                "api_key", "--api-key", envvar=env("API_KEY"), help="Credential of the server."
            ),
            _shared(
                "timeout_s",
                "--timeout",
                type=click.FloatRange(min=0, min_open=True),
                envvar=env("TIMEOUT"),
                metavar="SECONDS",
                help="For a call and its repeats.  [default: 10]",
            ),
            _shared(
                "namespace",
                "--namespace",
                "-n",
                envvar=env("NAMESPACE"),
                help="Whose jobs.  [default: default]",
            ),
            _shared(
                "server",
                "--server",
                "-s",
                envvar=env("SERVER"),
                metavar="HOST:PORT,...",
                help="Several: the others stand in for one that is gone.  [default: 127.0.0.1:7070]",
            ),
        ):
            command = add(command)
        return command

    return decorate


def with_output(command: Decorated) -> Decorated:
    """The options that say how to print."""
    command = _shared(
        "zone", "--show-zone", metavar="ZONE", help="Show times in this zone.  [default: yours]"
    )(command)
    return _shared(
        "output",
        "--output",
        "-o",
        type=click.Choice(OUTPUTS),
        help="How to print.  [default: table]",
    )(command)
