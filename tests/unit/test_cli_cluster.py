"""`tickwheel cluster` against a server whose cluster the test writes: what is shown, asked, and how it ends."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from click.testing import CliRunner, Result
from google.rpc.status_pb2 import Status
from tests.unit import client_fakes as fakes

from tickwheel.cli import cluster as commands
from tickwheel.cli import main
from tickwheel.v1 import cluster_service_pb2 as pb
from tickwheel.v1.cluster_service_pb2_grpc import (
    ClusterServiceServicer,
    add_ClusterServiceServicer_to_server,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
ANNA, BERT, CARL = ("a1" * 16, "b2" * 16, "a3" * 16)


def node(uid: str, host: str, **more: Any) -> pb.Node:
    fields: dict[str, Any] = {"state": pb.NODE_STATE_ACTIVE, "alive": True, "version": "1.2"}
    return pb.Node(name=f"nodes/{uid}", host=host, grpc_address=f"{host}:7070", **(fields | more))


def shard(number: int, leader: str, *voters: str, **more: Any) -> pb.Shard:
    names = [f"nodes/{uid}" for uid in voters]
    fields: dict[str, Any] = {"state": pb.SHARD_STATE_SERVING, "epoch": 4} | more
    lead = f"nodes/{leader}" if leader else ""
    return pb.Shard(name=f"shards/{number}", number=number, leader=lead, voters=names, **fields)


def three_nodes() -> pb.Cluster:
    nodes = [node(ANNA, "anna", zone="z1"), node(BERT, "bert"), node(CARL, "carl")]
    all_three = (ANNA, BERT, CARL)
    shards = [shard(0, ANNA, *all_three), shard(1, ANNA, *all_three), shard(2, BERT, *all_three)]
    return pb.Cluster(uid="c" * 32, shard_count=3, nodes=nodes, shards=shards, revision=17)


class Canned(ClusterServiceServicer):
    """The cluster as the test says; each GetCluster takes one of `maps`, the last one for ever."""

    def __init__(self) -> None:
        self.maps = [three_nodes()]
        self.seen: list[Any] = []
        self.keys: list[str] = []
        self.left_s: list[float] = []
        self.silent: tuple[type, ...] = ()
        self.error: Status | None = None

    async def GetCluster(self, request: Any, context: Any) -> pb.Cluster:  # noqa: N802 - gRPC's name
        await self._meet(request, context)
        return self.maps.pop(0) if len(self.maps) > 1 else self.maps[0]

    async def WatchCluster(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[pb.WatchClusterResponse]:
        await self._meet(request, context)
        for shown in self.maps:
            yield pb.WatchClusterResponse(cluster=shown)

    async def DrainNode(self, request: Any, context: Any) -> pb.Node:  # noqa: N802
        await self._meet(request, context)
        return pb.Node(name=request.name)

    async def MoveShard(self, request: Any, context: Any) -> pb.Shard:  # noqa: N802
        await self._meet(request, context)
        return pb.Shard(name=request.name, leader=request.node, epoch=5)

    async def _meet(self, request: Any, context: Any) -> None:
        self.seen.append(request)
        self.left_s.append(context.time_remaining())
        if isinstance(request, self.silent):
            await asyncio.Event().wait()
        given: dict[str, Any] = dict(context.invocation_metadata() or ())
        self.keys.append(str(given.get("authorization", "")))
        asked = not isinstance(request, pb.GetClusterRequest) or len(self.seen) > 1
        if self.error is not None and asked:
            await fakes.abort(context, self.error)


@contextmanager
def serving(canned: Canned) -> Generator[str]:
    """The address of a server on a thread of its own."""
    started: list[str] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_ClusterServiceServicer_to_server(canned, server)
        started.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield started[0]
    finally:
        stop.set()
        thread.join()


class Terminal:
    """The command line, connected to a canned cluster."""

    def __init__(self, canned: Canned, address: str) -> None:
        self.canned = canned
        self.address = address

    def __call__(self, *arguments: str, server: str = "") -> Result:
        env = {"TICKWHEEL_SERVER": server or self.address, "TZ": "UTC"}
        return CliRunner().invoke(main, ["cluster", *arguments], env=env)


@pytest.fixture
def tickwheel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(commands, "DRAIN_POLL_S", 0.001)
    monkeypatch.setattr(commands, "CONNECT_TIMEOUT_S", 2.0)
    canned = Canned()
    with serving(canned) as address:
        yield Terminal(canned, address)


# --- showing ---


def test_status_of_a_cluster_in_order(tickwheel: Terminal) -> None:
    result = tickwheel("status")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "cluster cccccccc, 3 shards, revision 17",
        "",
        "NODE      HOST                STATE      LEADS  COPIES",
        "a1a1a1a1  anna                active         2       3",
        "b2b2b2b2  bert                active         1       3",
        "a3a3a3a3  carl                active         0       3",
        "",
        "shards: 3 serving",
    ]


def test_status_tells_what_is_out_of_order(tickwheel: Terminal) -> None:
    shown = tickwheel.canned.maps[0]
    shown.nodes[2].alive = False
    shown.nodes[1].state = pb.NODE_STATE_DRAINING
    del shown.shards[1].voters[2]
    shown.shards[2].state = pb.SHARD_STATE_LEADERLESS
    shown.shards[2].leader = ""
    shown.shards[0].learners.append(f"nodes/{BERT}")
    lines = tickwheel("status").stdout.splitlines()
    assert "b2b2b2b2  bert                draining       0       3" in lines
    assert "a3a3a3a3  carl                active         0       2  not there" in lines
    assert "shards: 1 leaderless, 2 serving" in lines
    assert "with fewer copies than others: 1" in lines
    assert "being copied to another node: 0" in lines


def test_many_shards_are_named_in_short(tickwheel: Terminal) -> None:
    shown = tickwheel.canned.maps[0]
    shown.shards.extend(shard(number, ANNA, ANNA, BERT) for number in range(3, 23))
    line = next(line for line in tickwheel("status").stdout.splitlines() if "fewer" in line)
    assert line.endswith("17, 18 and 4 more")


def test_a_cluster_of_nothing_yet_is_shown(tickwheel: Terminal) -> None:
    tickwheel.canned.maps = [pb.Cluster(uid="c" * 32, shard_count=64)]
    assert tickwheel("status").exit_code == 0


def test_status_for_programs(tickwheel: Terminal) -> None:
    shown = json.loads(tickwheel("status", "-o", "json").stdout)
    assert shown["uid"] == "c" * 32
    assert shown["shards"][2]["leader"] == f"nodes/{BERT}"
    assert yaml.safe_load(tickwheel("status", "-o", "yaml").stdout)["revision"] == "17"


def test_nodes_in_a_table_and_for_programs(tickwheel: Terminal) -> None:
    result = tickwheel("nodes")
    assert result.exit_code == 0, result.output
    head, first, *others = result.stdout.splitlines()
    assert head.split() == [
        "NODE", "HOST", "ZONE", "STATE", "ALIVE", "GRPC", "LEADS", "COPIES", "VERSION"
    ]  # fmt: skip
    assert first.split() == ["a1a1a1a1", "anna", "z1", "active", "yes", "anna:7070", "2", "3", "1.2"]  # fmt: skip
    assert len(others) == 2
    lines = tickwheel("nodes", "-o", "ndjson").stdout.splitlines()
    assert [json.loads(line)["host"] for line in lines] == ["anna", "bert", "carl"]


def test_without_a_terminal_watch_prints_a_page_a_change(tickwheel: Terminal) -> None:
    later = three_nodes()
    later.revision = 18
    tickwheel.canned.maps.append(later)
    result = tickwheel("status", "-w")
    assert result.exit_code == 0, result.output
    pages = [line for line in result.stdout.splitlines() if line.startswith("cluster ")]
    assert [page.rpartition(" ")[2] for page in pages] == ["17", "18"]


def test_a_watch_that_breaks_ends_with_its_error(tickwheel: Terminal) -> None:
    tickwheel.canned.error = fakes.status(grpc.StatusCode.UNAVAILABLE, "the node stops")
    result = tickwheel("status", "-w")
    assert (result.exit_code, "the node stops" in result.stderr) == (5, True)


# --- changing ---


def test_a_node_is_drained_and_waited_for(tickwheel: Terminal) -> None:
    half, empty = three_nodes(), three_nodes()
    half.shards[0].leader = f"nodes/{BERT}"
    for led in empty.shards:
        led.leader = f"nodes/{BERT}"
    tickwheel.canned.maps = [three_nodes(), three_nodes(), half, empty]
    result = tickwheel("drain", "anna")
    assert result.exit_code == 0, result.output
    assert result.stdout == "anna: draining, leads nothing\n"
    request = tickwheel.canned.seen[1]
    assert request == pb.DrainNodeRequest(name=f"nodes/{ANNA}")


def test_a_drain_that_takes_long_says_so(tickwheel: Terminal) -> None:
    begin_s = time.monotonic()
    result = tickwheel("drain", "anna", "--timeout", "0.5")
    assert result.stdout == "anna: draining, still leads 2 shards, and goes on handing them over\n"
    assert 0.4 < time.monotonic() - begin_s < 5
    assert len(tickwheel.canned.seen) > 5


def test_a_drain_is_undone_at_once(tickwheel: Terminal) -> None:
    result = tickwheel("drain", "bert", "--undo")
    assert result.stdout == "bert: may take shards again\n"
    assert tickwheel.canned.seen[-1] == pb.DrainNodeRequest(name=f"nodes/{BERT}", undo=True)


def test_a_shard_is_moved(tickwheel: Terminal) -> None:
    result = tickwheel("move", "2", "carl")
    assert result.stdout == "shard 2: led by carl at epoch 5\n"
    assert tickwheel.canned.seen[-1] == pb.MoveShardRequest(name="shards/2", node=f"nodes/{CARL}")


# --- names ---


@pytest.mark.parametrize("word", ["b2", BERT, f"nodes/{BERT}", "bert"])
def test_a_node_is_named_by_its_host_or_the_beginning_of_its_uuid(
    tickwheel: Terminal, word: str
) -> None:
    assert tickwheel("move", "1", word).exit_code == 0
    assert tickwheel.canned.seen[-1].node == f"nodes/{BERT}"


def test_a_host_beats_a_uuid_that_begins_so(tickwheel: Terminal) -> None:
    tickwheel.canned.maps[0].nodes[1].host = "a1"
    tickwheel("move", "1", "a1")
    assert tickwheel.canned.seen[-1].node == f"nodes/{BERT}"


@pytest.mark.parametrize(
    ("word", "words"),
    [("a", "more than one node 'a'"), ("dora", "no node"), ("", "no node"), ("nodes/", "no node")],
)
def test_a_name_that_fits_none_or_several_changes_nothing(
    tickwheel: Terminal, word: str, words: str
) -> None:
    result = tickwheel("drain", word)
    assert result.exit_code == 2
    assert words in result.stderr
    assert all(isinstance(request, pb.GetClusterRequest) for request in tickwheel.canned.seen)


def test_two_nodes_of_one_host_can_be_told_apart(tickwheel: Terminal) -> None:
    tickwheel.canned.maps[0].nodes[2].host = "anna"
    result = tickwheel("drain", "anna")
    assert result.exit_code == 2
    assert "anna (a1a1a1a1)" in result.stderr
    assert "anna (a3a3a3a3)" in result.stderr


def test_a_shard_is_a_number(tickwheel: Terminal) -> None:
    assert tickwheel("move", "first", "anna").exit_code == 2
    assert tickwheel("move", "--", "-1", "anna").exit_code == 2


# --- errors ---


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.NOT_FOUND, 3),
        (grpc.StatusCode.FAILED_PRECONDITION, 4),
        (grpc.StatusCode.ABORTED, 4),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 5),
        (grpc.StatusCode.PERMISSION_DENIED, 6),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_a_refusal_is_told_and_counts(
    tickwheel: Terminal, code: grpc.StatusCode, exit_code: int
) -> None:
    tickwheel.canned.error = fakes.status(code, "there is no other node", reason="NOWHERE_TO_GO")
    result = tickwheel("move", "1", "anna")
    assert result.exit_code == exit_code
    assert result.stderr == "tickwheel: there is no other node\n"
    assert result.stdout == ""


def test_the_time_that_is_given_is_kept(tickwheel: Terminal) -> None:
    tickwheel.canned.silent = (pb.MoveShardRequest,)
    begin_s = time.monotonic()
    result = tickwheel("move", "1", "anna", "--timeout", "0.5")
    assert (result.exit_code, "Deadline" in result.stderr) == (5, True)
    assert time.monotonic() - begin_s < 5
    assert all(left_s < 0.7 for left_s in tickwheel.canned.left_s)


def test_without_one_a_move_has_longer_than_others(tickwheel: Terminal) -> None:
    assert tickwheel("move", "1", "anna").exit_code == 0
    assert all(20 < left_s < commands.CALL_TIMEOUT_S + 1 for left_s in tickwheel.canned.left_s)


def test_nobody_there_for_so_long(tickwheel: Terminal) -> None:
    begin_s = time.monotonic()
    result = tickwheel("status", "--timeout", "0.2", server="127.0.0.1:1")
    assert result.exit_code == 5
    assert time.monotonic() - begin_s < 1.5


def test_nobody_there(tickwheel: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "CONNECT_TIMEOUT_S", 0.2)
    result = tickwheel("status", server="127.0.0.1:1")
    assert result.exit_code == 5
    assert "no server answers at 127.0.0.1:1" in result.stderr
    assert "tickwheel serve" in result.stderr


def test_an_address_that_is_none(tickwheel: Terminal) -> None:
    assert tickwheel("status", server=",").exit_code == 2


def test_another_node_stands_in_for_one_that_is_gone(tickwheel: Terminal) -> None:
    result = tickwheel("status", server=f"127.0.0.1:1,{tickwheel.address}")
    assert result.exit_code == 0, result.output


def test_the_key_is_sent_with_every_call(tickwheel: Terminal) -> None:
    tickwheel("move", "1", "anna", "--api-key", "k1")
    assert tickwheel.canned.keys == ["Bearer k1", "Bearer k1"]


# --- the page ---


def test_the_page_of_the_command_line_knows_every_command() -> None:
    page = (DOCS / "CLI.md").read_text()
    for name, command in commands.cluster.commands.items():
        assert f"`tickwheel cluster {name}" in page, name
        flags = [flag for option in command.params for flag in option.opts if flag.startswith("--")]
        shared = {"--server", "--namespace", "--timeout", "--api-key", "--output", "--show-zone"}
        for flag in set(flags) - shared:
            assert flag in page, (name, flag)
