"""`tickwheel cluster`: who is there, who leads what, live if wanted; draining a node, moving a shard.

Nodes are named by their host, or by the beginning of their uuid, as long as only one fits.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import click

from tickwheel.cli.settings import (
    Settings,
    client_library,
    failed,
    with_connection,
    with_output,
)
from tickwheel.cli.show import plain, print_many, print_one

if TYPE_CHECKING:
    from tickwheel.v1.cluster_service_pb2 import Cluster, Node

CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 30.0
"""Unless --timeout says otherwise: longer than other calls have, for a shard that moves waits for what is in flight."""

SHORT = 8
DRAIN_POLL_S = 0.2


@click.group()
def cluster() -> None:
    """The nodes and shards of the server's cluster; a server alone is a cluster of one."""


@cluster.command()
@click.option(
    "-w", "--watch", is_flag=True, help="Show it anew whenever it changes; ctrl-c ends it."
)
@with_output
@with_connection()
@click.pass_obj
def status(settings: Settings, *, watch: bool) -> None:
    """Who leads how many shards, and what is out of order."""
    if watch:
        _watch(settings)
        return
    with _service(settings) as call:
        shown = call("GetCluster")
    print_one(settings, plain(shown), _lines(shown))


@cluster.command()
@with_output
@with_connection()
@click.pass_obj
def nodes(settings: Settings) -> None:
    """The nodes: where they listen, where they stand."""
    with _service(settings) as call:
        shown = call("GetCluster")
    columns = ("NODE", "HOST", "ZONE", "STATE", "ALIVE", "GRPC", "LEADS", "COPIES", "VERSION")
    print_many(settings, columns, [(_row(shown, node), plain(node)) for node in shown.nodes])


@cluster.command()
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let it take shards again.")
@with_connection()
@click.pass_obj
def drain(settings: Settings, node: str, *, undo: bool) -> None:
    """Have NODE hand its shards over, and keep it free of them: before a machine is worked on."""
    from tickwheel.v1.cluster_service_pb2 import DrainNodeRequest  # noqa: PLC0415 - slow to import

    with _service(settings) as call:
        found = _find(call("GetCluster"), node)
        call("DrainNode", DrainNodeRequest(name=found.name, undo=undo))
        if undo:
            click.echo(f"{found.host}: may take shards again")
            return
        left = _leads(call("GetCluster"), found.name)
        for _ in range(int((settings.timeout_s or CALL_TIMEOUT_S) / DRAIN_POLL_S)):
            if not left:
                break
            time.sleep(DRAIN_POLL_S)
            left = _leads(call("GetCluster"), found.name)
    words = f"still leads {left} shards, and goes on handing them over" if left else "leads nothing"
    click.echo(f"{found.host}: draining, {words}")


@cluster.command()
@click.argument("shard", type=click.IntRange(0))
@click.argument("node")
@with_connection()
@click.pass_obj
def move(settings: Settings, shard: int, node: str) -> None:
    """Hand the leadership of SHARD to NODE, which must hold a copy of it."""
    from tickwheel.v1.cluster_service_pb2 import MoveShardRequest  # noqa: PLC0415 - slow to import

    with _service(settings) as call:
        found = _find(call("GetCluster"), node)
        moved = call("MoveShard", MoveShardRequest(name=f"shards/{shard}", node=found.name))
    click.echo(f"shard {shard}: led by {found.host} at epoch {moved.epoch}")


# --- asking ---


@contextmanager
def _service(settings: Settings) -> Generator[Callable[..., Any]]:
    """A function that calls a method of ClusterService; errors become a line and an exit code."""
    client = client_library()
    import grpc  # noqa: PLC0415 - slow to import

    from tickwheel.client.channel import addresses_of  # noqa: PLC0415
    from tickwheel.client.errors import from_call  # noqa: PLC0415
    from tickwheel.v1.cluster_service_pb2 import GetClusterRequest  # noqa: PLC0415
    from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceStub  # noqa: PLC0415

    metadata = (("authorization", f"Bearer {settings.api_key}"),) if settings.api_key else ()
    limit_s = settings.timeout_s or CALL_TIMEOUT_S
    try:
        channel = _first_that_answers(
            addresses_of(settings.server), min(CONNECT_TIMEOUT_S, limit_s)
        )
        with channel:
            stub: Any = ClusterServiceStub(channel)

            def call(method: str, request: Any = None, **options: Any) -> Any:
                timeout = options.pop("timeout", limit_s)
                asked = GetClusterRequest() if request is None else request
                return getattr(stub, method)(asked, timeout=timeout, metadata=metadata)

            yield call
    except grpc.FutureTimeoutError:
        text = f"no server answers at {settings.server}; is it running, and is this its gRPC port?"
        raise failed(client.Unavailable(text, reason="NOT_CONNECTED")) from None
    except grpc.RpcError as error:
        raise failed(from_call(cast("Any", error))) from error
    except client.TickwheelError as error:
        raise failed(error) from error


def _first_that_answers(addresses: tuple[str, ...], timeout_s: float) -> Any:
    """Any node shows the cluster. Raises grpc.FutureTimeoutError when none is there."""
    import grpc  # noqa: PLC0415 - slow to import

    for address in addresses:
        channel = grpc.insecure_channel(address)
        try:
            grpc.channel_ready_future(channel).result(timeout_s / len(addresses))
        except grpc.FutureTimeoutError:
            channel.close()
        else:
            return channel
    raise grpc.FutureTimeoutError


def _watch(settings: Settings) -> None:
    """One page that is drawn again; without a terminal, a page a change."""
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from tickwheel.v1.cluster_service_pb2 import WatchClusterRequest  # noqa: PLC0415

    console = Console()
    try:
        with _service(settings) as call:
            news = call("WatchCluster", WatchClusterRequest(), timeout=None)
            if not console.is_terminal:
                for answer in news:
                    click.echo("\n".join(_lines(answer.cluster)) + "\n")
                return
            with Live(console=console, auto_refresh=False) as live:
                for answer in news:
                    live.update(Text("\n".join(_lines(answer.cluster))), refresh=True)
    except KeyboardInterrupt:
        return


# --- showing ---


def _lines(shown: "Cluster") -> Iterator[str]:
    from tickwheel.v1.cluster_service_pb2 import ShardState  # noqa: PLC0415 - slow to import

    yield f"cluster {shown.uid[:SHORT]}, {shown.shard_count} shards, revision {shown.revision}"
    yield ""
    yield f"{'NODE':<10}{'HOST':<20}{'STATE':<10}{'LEADS':>6}{'COPIES':>8}"
    for node in shown.nodes:
        name, host, _zone, state, alive, _grpc, leads, copies, _version = _row(shown, node)
        gone = "" if alive == "yes" else "  not there"
        yield f"{name:<10}{host:<20}{state:<10}{leads:>6}{copies:>8}{gone}"
    states = [ShardState.Name(s.state).removeprefix("SHARD_STATE_").lower() for s in shown.shards]
    yield ""
    yield "shards: " + ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
    thin = [s.number for s in shown.shards if len(s.voters) < _usual(shown)]
    if thin:
        yield f"with fewer copies than others: {_numbers(thin)}"
    learning = [s.number for s in shown.shards if s.learners]
    if learning:
        yield f"being copied to another node: {_numbers(learning)}"


def _usual(shown: "Cluster") -> int:
    return max((len(shard.voters) for shard in shown.shards), default=0)


def _numbers(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:16]))
    return f"{shown} and {len(numbers) - 16} more" if len(numbers) > 16 else shown  # noqa: PLR2004


def _row(shown: "Cluster", node: "Node") -> tuple[str, ...]:
    from tickwheel.v1.cluster_service_pb2 import NodeState  # noqa: PLC0415 - slow to import

    copies = sum(node.name in shard.voters for shard in shown.shards)
    return (
        node.name.removeprefix("nodes/")[:SHORT],
        node.host,
        node.zone,
        NodeState.Name(node.state).removeprefix("NODE_STATE_").lower(),
        "yes" if node.alive else "no",
        node.grpc_address,
        str(_leads(shown, node.name)),
        str(copies),
        node.version,
    )


def _leads(shown: "Cluster", name: str) -> int:
    return sum(shard.leader == name for shard in shown.shards)


def _find(shown: "Cluster", word: str) -> "Node":
    """The node of a host's name, or of the beginning of a uuid. A usage error when none or several fit."""
    word = word.removeprefix("nodes/")
    found = [n for n in shown.nodes if word and n.host == word]
    found = found or [n for n in shown.nodes if word and n.name.startswith(f"nodes/{word}")]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{n.host} ({n.name.removeprefix('nodes/')[:SHORT]})" for n in shown.nodes)
    text = f"{'no' if not found else 'more than one'} node {word!r}; there are {known}"
    raise click.BadParameter(text, param_hint="NODE")
