"""`tickwheel backup` asks a running node for a copy of itself, or of all its cluster; `tickwheel restore` makes a data
directory of one.

The backup lies on the node's machine. Restoring works on directories alone, needs the server's package, and says what
the restored node will do when it starts, alone or as the first one of a new cluster.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from tickwheel.cli.serve import missing
from tickwheel.cli.settings import (
    Settings,
    client_library,
    failed,
    with_connection,
)

if TYPE_CHECKING:
    from tickwheel.server.restore import Restored
    from tickwheel.v1.admin_service_pb2 import CreateBackupResponse

CONNECT_TIMEOUT_S = 10.0


@click.command()
@click.argument("name", default="")
@with_connection()
@click.pass_obj
def backup(settings: Settings, name: str) -> None:
    """Copy all that a running node holds, or its whole cluster, while it goes on.

    NAME is that of a new directory below the node's --backup-dir, on its machine; by default the time. Everything that
    was answered before is in it, by whichever node. Interrupting it leaves nothing behind.
    """
    last = None
    with _told("shards copied") as told:
        for last in _steps(settings, name):
            told(last.done_count, last.shard_count)
    if last is None or not last.complete:
        raise click.ClickException("the node ended the backup early; look into its log")
    size = f"{last.size_bytes:,} bytes of {last.shard_count} shards"
    click.echo(f"{last.directory}: {size}")


def _steps(settings: Settings, name: str) -> "Iterator[CreateBackupResponse]":
    client = client_library()
    import grpc  # noqa: PLC0415 - slow to import

    from tickwheel.client.channel import addresses_of  # noqa: PLC0415
    from tickwheel.client.errors import from_call  # noqa: PLC0415
    from tickwheel.v1.admin_service_pb2 import CreateBackupRequest  # noqa: PLC0415
    from tickwheel.v1.admin_service_pb2_grpc import AdminServiceStub  # noqa: PLC0415

    metadata = (("authorization", f"Bearer {settings.api_key}"),) if settings.api_key else ()
    try:
        addresses = addresses_of(settings.server)
        if len(addresses) != 1:
            raise click.UsageError(
                "Name the one node whose machine shall have it: --server host:port."
            )
        with grpc.insecure_channel(addresses[0]) as channel:
            grpc.channel_ready_future(channel).result(CONNECT_TIMEOUT_S)
            request = CreateBackupRequest(backup_id=name)
            yield from AdminServiceStub(channel).CreateBackup(request, metadata=metadata)
    except grpc.FutureTimeoutError:
        text = f"no server answers at {settings.server}; is it running, and is this its gRPC port?"
        raise failed(client.Unavailable(text, reason="NOT_CONNECTED")) from None
    except grpc.RpcError as error:
        raise failed(from_call(cast("Any", error))) from error
    except client.TickwheelError as error:
        raise failed(error) from error


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data-dir", required=True, type=click.Path(path_type=Path), metavar="NEW",
              help="Where the data directory is made; empty, or not there yet.")  # fmt: skip
@click.option("--paused", is_flag=True, help="Pause every job that would fire.")
def restore(directory: Path, data_dir: Path, *, paused: bool) -> None:
    """Make a data directory of the backup in DIRECTORY, for a node to start on.

    The node may run alone; or be the first of a new cluster, with a --cluster name that etcd does not know: then the others
    start after it, on empty directories. The backup is checked, byte for byte, and not changed. What will fire is told
    before anything can.
    """
    try:
        from tickwheel.server.errors import TickwheelError  # noqa: PLC0415 - an extra
        from tickwheel.server.restore import restore as run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing(error) from error
    try:
        with _told("shards restored") as told:
            now_ms = time.time_ns() // 1_000_000  # noqa: TID251 - of the host, as the node's is
            report = run(directory, data_dir, now_ms, pause=paused, told=told)
    except TickwheelError as error:
        raise click.ClickException(error.message) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or data_dir}: {error.strerror}") from error
    for line in _report(report, data_dir):
        click.echo(line)


def _report(report: "Restored", data_dir: Path) -> Iterator[str]:
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.backup.start_ms / 1000))
    yield f"{data_dir}: {report.jobs:,} jobs and {report.live:,} unfinished executions as of {made}"
    if report.paused:
        yield f"paused: {report.paused:,} jobs; `tickwheel jobs resume` sets one going"
    yield "when a node starts on it:"
    if not report.paused:
        yield f"  {report.fire_late:,} one-off jobs fire at once, late"
        yield f"  {report.recurring_fire:,} recurring jobs fire a missed run at once"
        yield f"  {report.given_up:,} jobs record what they missed, and fire nothing of it"
    yield f"  {report.live:,} executions go on; an attempt of then is made again, with its id"
    if report.at_most_once_paused:
        yield f"  {report.at_most_once_paused:,} AT_MOST_ONCE jobs that were due since are paused"
    yield "WARNING: what the original did after the backup is not known here. What it fired since is fired again,"
    yield "with the same ids; jobs it cancelled are back. Never run both. (docs/OPERATING.md, Backup and restore)"


@contextmanager
def _told(what: str) -> Generator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("TERM") == "dumb":
        yield lambda _done, _total: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
