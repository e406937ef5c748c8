"""`tickwheel export` and `tickwheel import`: jobs from one server to another, as they stand.

A line is a request that `jobs create --from` takes too: {"parent": …, "jobId": …, "moved": true, "job": {…}}. It keeps
the job's name, uid, state, next time and counts, and what its first create is known by; so a job that is imported twice
is made once, and a client that repeats its create meets the job on the new server.

    export FILE    FILE.partial, and FILE.partial.state = {token, bytes, jobs, question}; both go when FILE is whole.
                   Interrupted, the same command goes on behind the last whole page.
    import FILE    in slices of lines, parted by namespace. Interrupted, the same command is right, and --from-line N
                   passes over what is known to be done.
"""

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

import click

from tickwheel.cli.bulk import Load, Progress, digest, opened, shown_progress
from tickwheel.cli.settings import Settings, failed, with_connection

if TYPE_CHECKING:
    from tickwheel.client import Client, Job
    from tickwheel.v1.job_service_pb2 import CreateJobRequest

SLICE_LINES: Final = 8_000
CLIENTS_MAX: Final = 16
NAMESPACES_LOOKED_AT: Final = 100
UNFINISHED: Final = "(state = PENDING OR state = RUNNING OR state = RETRYING)"
UNFINISHED_COUNTED: Final = 1_000


# --- export ----------------------------------------------------------------------------------


@click.command("export")
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--filter", "where", default="", metavar="FILTER", help="For example: state = PAUSED")
@click.option("--all-namespaces", is_flag=True, help="Jobs of every namespace.")
@with_connection()
@click.pass_obj
def export(settings: Settings, file: str, where: str, *, all_namespaces: bool) -> None:
    """Write every job of a running server to FILE (default: standard output), one a line.

    For `tickwheel import`. Jobs go with their names, states, next times and counts; executions stay. Interrupted, the
    same command goes on where it was.
    """
    question = {"server": settings.server, "filter": where}
    question["namespace"] = "-" if all_namespaces else settings.namespace
    namespaces: set[str] = set()
    with settings.connect() as client, shown_progress("exported") as told:
        with _output(file, question) as out:
            pages = client.pages(
                where, token=out.token, full=True, consistent=True, all_namespaces=all_namespaces
            )
            for page in pages:
                lines = [_line(job) for job in page.items]
                namespaces.update(job.name.split("/")[1] for job in page.items)
                out.add(lines, page.next_token)
                told(out.jobs, 0)
        if not all_namespaces:
            namespaces = {settings.namespace}
        unfinished = sum(
            _unfinished(settings, n) for n in islice(sorted(namespaces), NAMESPACES_LOOKED_AT)
        )
    click.echo(f"exported {out.jobs:,} jobs", err=True)
    if unfinished:
        many = "or more " if unfinished >= UNFINISHED_COUNTED else ""
        text = f"{unfinished:,} {many}executions have not ended; they, and their retries, stay with that server"
        click.echo(f"note: {text}", err=True)


def _line(job: "Job") -> bytes:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - slow to import

    _, namespace, _, job_id = job.name.split("/")
    request = {"parent": f"namespaces/{namespace}", "jobId": job_id, "moved": True}
    return json.dumps(request | {"job": MessageToDict(job)}, separators=(",", ":")).encode() + b"\n"


def _unfinished(settings: Settings, namespace: str) -> int:
    with replace(settings, namespace=namespace).connect() as client:
        found = client.executions.list(where=UNFINISHED, consistent=True)
        return sum(1 for _ in islice(found, UNFINISHED_COUNTED))


class Output:
    """Where the lines go, and how far they are."""

    def __init__(self, stream: IO[bytes], state: Path | None, question: dict[str, str]) -> None:
        self._stream = stream
        self._state = state
        self._question = question
        self.token = ""
        self.jobs = 0
        self.bytes = 0
        if state is not None:
            self._go_on(state)

    def _go_on(self, state: Path) -> None:
        """Behind the last whole page of an earlier run that asked the same."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found: dict[str, Any] = json.loads(state.read_bytes())
            size = self._stream.seek(0, os.SEEK_END)
            if found["question"] == self._question and found["bytes"] <= size:
                self.token, self.jobs = str(found["token"]), int(found["jobs"])
                self.bytes = int(found["bytes"])
        self._stream.seek(self.bytes)
        self._stream.truncate()
        if self.jobs:
            click.echo(f"going on behind {self.jobs:,} jobs", err=True)

    def add(self, lines: list[bytes], token: str) -> None:
        """A page; only a whole one counts."""
        data = b"".join(lines)
        self._stream.write(data)
        self._stream.flush()
        self.jobs += len(lines)
        self.bytes += len(data)
        self.token = token
        if self._state is not None and token:
            state = {"token": token, "bytes": self.bytes, "jobs": self.jobs}
            draft = self._state.with_name(self._state.name + ".new")
            draft.write_text(json.dumps(state | {"question": self._question}))
            draft.replace(self._state)


@contextmanager
def _output(file: str, question: dict[str, str]) -> Generator[Output]:
    if file == "-":
        yield Output(sys.stdout.buffer, None, question)
        return
    path = Path(file)
    partial = path.with_name(path.name + ".partial")
    state = path.with_name(path.name + ".partial.state")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)  # bodies may be secret
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from error
    with os.fdopen(descriptor, "r+b") as stream:
        yield Output(stream, state, question)
        os.fsync(stream.fileno())
    partial.replace(path)
    state.unlink(missing_ok=True)


# --- import ----------------------------------------------------------------------------------


@click.command("import")
@click.argument("file", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--from-line", type=click.IntRange(min=1), default=1, metavar="N",
              help="Pass over the lines before.")  # fmt: skip
@with_connection()
@click.pass_obj
def import_(settings: Settings, file: str, from_line: int) -> None:
    """Make the jobs of FILE (default: standard input), which `tickwheel export` wrote.

    Each goes to the namespace that it was in. What is there already is met, not made twice: run it again for lines
    that failed. Ends with 1 if a line failed.
    """
    with opened(file) as source, shown_progress("imported") as told, Clients(settings) as clients:
        load = Load(source, digest(source))
        done_line = _import_all(load, clients, from_line, told)
    click.echo(f"imported {load.made:,}, failed {load.failed:,}")
    if load.lost is not None:
        click.echo(f"go on with --from-line {done_line + 1}", err=True)
        raise failed(load.lost)
    if load.failed:
        raise SystemExit(1)


def _import_all(load: Load, clients: "Clients", from_line: int, told: Progress) -> int:
    """Slice after slice; the last line of the last whole one."""
    done_line = from_line - 1
    requests = load.numbered(from_line)
    while load.lost is None and (part := list(islice(requests, SLICE_LINES))):
        _import_slice(load, clients, part)
        told(load.made, load.failed)
        if load.lost is None:
            done_line = part[-1][0]
    return done_line


def _import_slice(
    load: Load, clients: "Clients", part: "Iterable[tuple[int, CreateJobRequest]]"
) -> None:
    by_namespace: dict[str, list[tuple[int, CreateJobRequest]]] = {}
    for number, request in part:
        namespace = request.job.name.split("/")[1] if request.job.name.count("/") > 1 else ""
        by_namespace.setdefault(namespace, []).append((number, request))
    for namespace, numbered in by_namespace.items():
        requests = (request for _, request in numbered)
        for result in clients.of(namespace).load(requests):
            load.note_line(numbered[result.index][0], result)
            if load.lost is not None:
                return


class Clients:
    """A client for each namespace, the last few of them kept."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, tuple[Client, Callable[..., object]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._close(next(iter(self._open)))

    def of(self, namespace: str) -> "Client":
        """The client of a namespace; "" is that of the options."""
        if namespace not in self._open:
            if len(self._open) >= CLIENTS_MAX:
                self._close(next(iter(self._open)))
            wanted = replace(self._settings, namespace=namespace or self._settings.namespace)
            connection = wanted.connect()
            self._open[namespace] = connection.__enter__(), connection.__exit__
        return self._open[namespace][0]

    def _close(self, namespace: str) -> None:
        self._open.pop(namespace)[1](None, None, None)
