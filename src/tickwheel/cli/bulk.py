"""`tickwheel jobs create --from`: one job of each line.

A line is a job in JSON as `jobs list -o ndjson --full` prints it (its own part of `name` becomes the id), or a whole
request: `{"jobId": "nightly", "job": {…}}`. Empty lines are passed over.

Each line's request_id is made from the digest of the file and the line's number: after an interruption, or to mend the
lines that failed for want of a server, run the same command again; what was made is met, not made twice.
"""

import hashlib
import io
import json
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, cast

import click

from tickwheel.cli.settings import Settings, failed

if TYPE_CHECKING:
    from tickwheel.client import Loaded, TickwheelError
    from tickwheel.v1.job_service_pb2 import CreateJobRequest

LINE_BYTES_MAX: Final = 4 * 1024 * 1024
_MEMORY_BYTES: Final = 16 * 1024 * 1024
_PLAIN_STEP: Final = 10_000
_SHOWN_FAULTS: Final = 100
_DIGEST_CHARS: Final = 32
_LOST: Final = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED"}


class Progress(Protocol):
    """Told after each line."""

    def __call__(self, made: int, failed: int) -> None: ...


class Load:
    """One run over a file: what was sent, made, and refused."""

    def __init__(self, source: IO[bytes], digest: str) -> None:
        self._source = source
        self._digest = digest
        self._numbers: list[int] = []  # the line of each request, in the order of their results
        self.made = 0
        self.failed = 0
        self.lost: TickwheelError | None = None  # nobody takes any more: going on is of no use

    def requests(self) -> "Iterator[CreateJobRequest]":
        """A request of each line that can be read; the others are reported."""
        for number, request in self.numbered():
            self._numbers.append(number)
            yield request

    def numbered(self, from_line: int = 1) -> "Iterator[tuple[int, CreateJobRequest]]":
        """As `requests`, with the lines' numbers, from one of them on."""
        for number, line in enumerate(_lines(self._source), start=1):
            if number < from_line or not line.strip():
                continue
            try:
                request = read_line(line, f"{self._digest}-{number}")
            except ValueError as error:
                self.fault(number, str(error))
                continue
            yield number, request

    def note(self, result: "Loaded") -> None:
        """Count one result of `requests`."""
        self.note_line(self._numbers[result.index], result)

    def note_line(self, number: int, result: "Loaded") -> None:
        """Count the result of a line."""
        if result.error is None:
            self.made += 1
        elif result.error.code in _LOST:
            self.lost = result.error
        else:
            self.fault(number, str(result.error))

    def fault(self, number: int, reason: str) -> None:
        self.failed += 1
        if self.failed <= _SHOWN_FAULTS:
            click.echo(f"line {number}: {reason}", err=True)
        elif self.failed == _SHOWN_FAULTS + 1:
            click.echo("further failed lines are counted, not shown", err=True)


def load_file(settings: Settings, name: str) -> None:
    """Make a job of each line of a file, or of standard input (`-`). Ends with 1 if a line failed."""
    with opened(name) as source, shown_progress("made") as told, settings.connect() as client:
        load = Load(source, digest(source))
        for result in client.load(load.requests()):
            load.note(result)
            told(load.made, load.failed)
            if load.lost is not None:
                break
    click.echo(f"made {load.made}, failed {load.failed}")
    if load.lost is not None:
        click.echo("run the same command again: what was made is not made twice", err=True)
        raise failed(load.lost)
    if load.failed:
        raise SystemExit(1)


@contextmanager
def opened(name: str) -> Generator[IO[bytes]]:
    """The file; standard input is set aside first, since it is read twice."""
    if name != "-":
        with Path(name).open("rb") as file:
            yield file
        return
    with SpooledTemporaryFile(max_size=_MEMORY_BYTES) as kept:
        stdin = sys.stdin.buffer
        while chunk := stdin.read(io.DEFAULT_BUFFER_SIZE):
            kept.write(chunk)
        yield cast("IO[bytes]", kept)


def digest(source: IO[bytes]) -> str:
    """What the requests of a file are known by, when it is loaded again. Leaves the file at its beginning."""
    digest = hashlib.sha256()
    source.seek(0)
    while chunk := source.read(1024 * 1024):
        digest.update(chunk)
    source.seek(0)
    return digest.hexdigest()[:_DIGEST_CHARS]


def _lines(source: IO[bytes]) -> Iterator[bytes]:
    while line := source.readline(LINE_BYTES_MAX):
        yield line


def read_line(line: bytes, request_id: str) -> "CreateJobRequest":
    """The request that a line means. ValueError says what is wrong with it."""
    from google.protobuf.json_format import ParseDict, ParseError  # noqa: PLC0415 - slow to import

    from tickwheel.v1.job_service_pb2 import CreateJobRequest  # noqa: PLC0415

    try:
        content: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - a wrong file, not a wrong program
    fields = cast("dict[str, Any]", content)
    request = CreateJobRequest()
    try:
        if "job" in fields:
            ParseDict(fields, request)
        else:
            ParseDict(fields, request.job)
            request.job_id = request.job.name.rpartition("/")[2]
    except ParseError as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    request.parent = ""
    request.request_id = request_id
    return request


@contextmanager
def shown_progress(what: str) -> Generator[Progress]:
    """A bar on a terminal; elsewhere a line now and then."""
    if not sys.stderr.isatty():
        yield partial(_plain_progress, what)
        return
    from rich.console import Console  # noqa: PLC0415 - on a terminal alone
    from rich.progress import Progress as Bar  # noqa: PLC0415
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting")

        def told(made: int, failed: int) -> None:
            bar.update(task, description=f"{made:,} {what}, {failed:,} failed")

        yield told


def _plain_progress(what: str, made: int, failed: int) -> None:
    if (made + failed) % _PLAIN_STEP == 0:
        click.echo(f"{made:,} {what}, {failed:,} failed", err=True)
