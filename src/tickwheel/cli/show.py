"""How answers are printed: tables for people, JSON, NDJSON and YAML for programs.

Programs get the messages in the JSON mapping of protobuf, as the REST API spells them: times in UTC, bytes in base64.
People get columns: on a terminal drawn by rich, elsewhere plain and never cut off.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from textwrap import indent
from typing import TYPE_CHECKING, Any, cast

import click

from tickwheel.cli.settings import Settings

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from tickwheel.client import Execution, Job
    from tickwheel.v1.schedule_pb2 import Once, Schedule

Row = Sequence[str]
Plain = dict[str, Any]


def plain(message: "Message") -> Plain:
    """A message in the JSON mapping of protobuf."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - slow to import

    return MessageToDict(message)


def plain_value(value: Any) -> Plain:
    """One of the client's small values, spelled as the API spells messages."""
    return {_camel(key): _plain_item(item) for key, item in asdict(value).items()}


def _plain_item(item: Any) -> Any:
    if isinstance(item, datetime):
        spec = "milliseconds" if item.microsecond else "seconds"
        return item.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=spec) + "Z"
    if isinstance(item, Mapping):
        entries = cast("Mapping[object, object]", item).items()
        return {_camel(str(_plain_item(key))): _plain_item(value) for key, value in entries}
    if isinstance(item, list | tuple):
        return [_plain_item(each) for each in cast("Sequence[object]", item)]
    return item


def _camel(name: str) -> str:
    head, *rest = name.split("_") if name.islower() else [name]
    return head + "".join(part.title() for part in rest)


def print_one(settings: Settings, item: Plain, lines: Iterable[str]) -> None:
    """Print one thing: `lines` for people, `item` for programs."""
    if settings.output == "table":
        for line in lines:
            click.echo(line)
    elif settings.output == "json":
        click.echo(json.dumps(item, indent=2, ensure_ascii=False))
    else:
        click.echo(_structured(settings.output, item))


def print_many(settings: Settings, head: Row, rows: Iterable[tuple[Row, Plain]]) -> None:
    """Print a list: a table for people; for programs one item after the other, as they come."""
    if settings.output == "table":
        print_table(head, [row for row, _ in rows])
    elif settings.output == "json":
        _print_array(item for _, item in rows)
    else:
        for _, item in rows:
            click.echo(_structured(settings.output, item))


class Printed:
    """A list without an end: each item is printed when it comes, JSON one in a line. Columns widen as they must."""

    def __init__(self, settings: Settings, head: Row) -> None:
        self._settings = settings
        self._head = head
        self._widths = [len(title) for title in head]

    def put(self, row: Row, item: Plain) -> None:
        """Print one."""
        output = self._settings.output
        if output != "table":
            click.echo(_structured("ndjson" if output == "json" else output, item))
        else:
            self._put_row(row)
        sys.stdout.flush()

    def _put_row(self, row: Row) -> None:
        needed = [max(pair) for pair in zip(self._widths, map(len, row), strict=True)]
        shown = [row]
        if self._head and needed != self._widths:
            self._widths = needed
            shown, self._head = [self._head, row], ()
        self._widths = needed
        for each in shown:
            click.echo("  ".join(map(str.ljust, each, self._widths)).rstrip())


def _structured(output: str, item: Plain) -> str:
    if output == "ndjson":
        return json.dumps(item, ensure_ascii=False)
    import yaml  # noqa: PLC0415 - for `-o yaml` alone

    return "---\n" + yaml.safe_dump(item, sort_keys=False, allow_unicode=True).rstrip()


def _print_array(items: Iterable[Plain]) -> None:
    opening = "["
    for item in items:
        click.echo(opening, nl=False)
        text = json.dumps(item, indent=2, ensure_ascii=False)
        click.echo("\n" + indent(text, "  "), nl=False)
        opening = ","
    click.echo("[]" if opening == "[" else "\n]")


def print_table(head: Row, rows: Sequence[Row]) -> None:
    """Print columns; on a terminal drawn to its width, elsewhere plain."""
    if not rows:
        click.echo("nothing found", err=True)
    elif _stdout_is_terminal():
        _draw(head, rows)
    else:
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        for row in (head, *rows):
            click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


def _stdout_is_terminal() -> bool:
    return sys.stdout.isatty()


def _draw(head: Row, rows: Sequence[Row]) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - on a terminal alone
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in head:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def pairs(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines of `name   value`, those without a value left out."""
    kept = [(name, value) for name, value in items if value]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        yield f"{name.ljust(width)}  {value}"


# --- jobs and executions in words -------------------------------------------------------------


def words_of(enum: Any, number: int) -> str:
    """An enum's value in words: `JOB_STATE_SCHEDULED` is `SCHEDULED`. Empty for the unspecified one."""
    from tickwheel.client.values import word  # noqa: PLC0415 - imports gRPC

    descriptor = enum.DESCRIPTOR
    first: str = descriptor.values_by_number[0].name
    return "" if number == 0 else word(descriptor, number, first.removesuffix("UNSPECIFIED"))


def own_part(name: str) -> str:
    return name.rpartition("/")[2]


def moment_of(settings: Settings, message: "Message", field: str) -> str:
    """The time in a field, in the user's zone; empty if the field is not set."""
    if not message.HasField(field):
        return ""
    stamp: Timestamp = getattr(message, field)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    there = timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1_000)
    return settings.show_time(epoch + there)


def span_words(duration: "Duration") -> str:
    """A span as it is typed: `1h30m`, `90s` as `1m30s`, `0.25s`."""
    seconds, rest = duration.seconds, ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        count, seconds = divmod(seconds, size)
        rest += f"{count}{unit}" if count else ""
    fraction = f"{duration.nanos / 1e9:.3f}".lstrip("0").rstrip("0.") if duration.nanos else ""
    return rest + (f"{seconds}{fraction}s" if seconds or fraction or not rest else "")


def schedule_words(settings: Settings, schedule: "Schedule") -> str:
    """A schedule on one line."""
    match schedule.WhichOneof("kind"):
        case "cron":
            zone = schedule.cron.time_zone or "UTC"
            return f"cron {schedule.cron.expression} ({zone})"
        case "every":
            return f"every {span_words(schedule.every.period)}"
        case "once":
            return _once_words(settings, schedule.once)
        case _:
            return ""


def _once_words(settings: Settings, once: "Once") -> str:
    match once.WhichOneof("when"):
        case "civil_time":
            return f"once {once.civil_time} ({once.time_zone})"
        case "delay":
            return f"once in {span_words(once.delay)}"
        case _:
            return f"once {moment_of(settings, once, 'scheduled_time')}"


def target_words(job: "Job") -> str:
    """What a job does, on one line."""
    if job.HasField("worker_target"):
        return f"worker {job.worker_target.task_type}"
    return f"{job.http_target.method or 'POST'} {job.http_target.url}"


JOB_HEAD = ("JOB", "STATE", "NEXT", "LAST", "SCHEDULE", "TARGET")


def job_row(settings: Settings, job: "Job") -> Row:
    from tickwheel.v1.execution_pb2 import ExecutionState  # noqa: PLC0415 - slow to import
    from tickwheel.v1.job_pb2 import JobState  # noqa: PLC0415

    return (
        own_part(job.name),
        words_of(JobState, job.state),
        moment_of(settings, job, "next_time") or "-",
        words_of(ExecutionState, job.last_outcome) or "-",
        schedule_words(settings, job.schedule),
        target_words(job),
    )


def job_lines(settings: Settings, job: "Job") -> Iterator[str]:
    """A job for people."""
    _, state, _, outcome, schedule, target = job_row(settings, job)
    labels = ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))
    done = (
        f"{job.started_count} started, {job.succeeded_count} succeeded, {job.failed_count} failed, "
        f"{job.skipped_count} skipped or missed"
    )
    return pairs(
        [
            ("name", job.name),
            ("uid", job.uid),
            ("state", state),
            ("schedule", schedule),
            ("target", target),
            ("next", moment_of(settings, job, "next_time")),
            ("last", moment_of(settings, job, "last_time")),
            ("last outcome", outcome.strip("-")),
            ("executions", done),
            ("labels", labels),
            ("description", job.description),
            ("created", moment_of(settings, job, "create_time")),
            ("changed", moment_of(settings, job, "update_time")),
            ("generation", str(job.generation or "")),
            ("etag", job.etag),
        ]
    )


EXECUTION_HEAD = ("EXECUTION", "JOB", "STATE", "SCHEDULED", "ATTEMPTS", "RESULT")


def execution_row(settings: Settings, execution: "Execution") -> Row:
    from tickwheel.v1.execution_pb2 import ExecutionState  # noqa: PLC0415 - slow to import

    parts = execution.name.split("/")
    state = words_of(ExecutionState, execution.state)
    if execution.HasField("skip_run") and execution.skip_run.count > 1:
        state += f" x{execution.skip_run.count}"
    return (
        parts[-1],
        parts[-3] if len(parts) > len(("jobs", "job")) else "",
        state,
        moment_of(settings, execution, "scheduled_time"),
        str(execution.attempt_count),
        _result_words(execution),
    )


def _result_words(execution: "Execution") -> str:
    from tickwheel.v1.execution_pb2 import Reason  # noqa: PLC0415 - slow to import

    words = [words_of(Reason, execution.reason)]
    if execution.attempts:
        last = execution.attempts[-1]
        words += [str(last.http_status or ""), last.error]
    return " ".join(word for word in words if word) or "-"


def execution_lines(settings: Settings, execution: "Execution") -> Iterator[str]:
    """An execution for people, with its attempts."""
    _, _, state, scheduled, attempts, result = execution_row(settings, execution)
    yield from pairs(
        [
            ("name", execution.name),
            ("state", state),
            ("result", result.strip("-")),
            ("scheduled", scheduled),
            ("started", moment_of(settings, execution, "start_time")),
            ("ended", moment_of(settings, execution, "end_time")),
            ("next attempt", moment_of(settings, execution, "next_attempt_time")),
            ("attempts", attempts),
            ("cause", execution.cause),
        ]
    )
    for attempt in execution.attempts:
        answer = " ".join(part for part in (str(attempt.http_status or ""), attempt.error) if part)
        started = moment_of(settings, attempt, "start_time")
        yield f"  attempt {attempt.number}  {started}  {answer or 'succeeded'}"
        if attempt.response_body:
            yield f"    {attempt.response_body.decode(errors='replace')}"
