"""The peers over gRPC, where it is gRPC that matters: certificates, what is refused on the wire, limits."""

import asyncio
import logging
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import grpc
import grpc.aio
import pytest
from tests.conformance.peer_worlds import CLUSTER, OPTIONS, Files, Node, acks, until

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.cluster import peer_door, snapshots
from tickwheel.server.cluster.peer_hello import Identity, make_hello
from tickwheel.server.cluster.peer_link import REPLICATE, StreamOpener
from tickwheel.server.cluster.peer_options import PeerOptions, Tls, dial
from tickwheel.server.cluster.peer_port import Forwarded, Member
from tickwheel.server.cluster.peers import FORWARD, GrpcPeers
from tickwheel.server.cluster.snapshots import Throttle
from tickwheel.server.errors import (
    DeadlineExceeded,
    ResourceExhausted,
    TickwheelError,
    Unavailable,
)

STRANGER = Identity(CLUSTER, "5e" * 16)


@asynccontextmanager
async def listening(name: str, options: PeerOptions = OPTIONS) -> AsyncGenerator[Node]:
    """A node."""
    node = Node(name, CLUSTER)
    peers = GrpcPeers(node.me, node.owner, options, Random(1))
    node.address = f"127.0.0.1:{await peers.start()}"
    node.peers, node.counters = peers, peers.counters
    peers.set_session(1)
    try:
        yield node
    finally:
        await peers.close()


async def refused(node: Node, *frames: bytes, options: PeerOptions = OPTIONS) -> str:
    """How the door ends a stream of these frames."""
    channel = dial(node.address, options)
    opener: StreamOpener = channel.stream_stream(REPLICATE)
    call = opener()
    try:
        for frame in frames:
            await call.write(frame)
        async with asyncio.timeout(5):
            while await call.read() is not grpc.aio.EOF:
                pass
            return f"{(await call.code()).name} {await call.details()}"
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return f"{(await call.code()).name} {await call.details()}"
    finally:
        await channel.close()


def hello(node: Node, session: int = 1) -> bytes:
    """The first frame of a stranger."""
    said = make_hello(STRANGER, node.store, session, stream=1, lane=pb.LANE_BULK)
    return pb.ReplicateRequest(hello=said).SerializeToString()


# --- the wire --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT FRAME_MALFORMED"),
        (b"\x10\x07", "INVALID_ARGUMENT FRAME_MALFORMED"),
        (b"\x10\x01\x1a\x04\xfa\x01\x01x", "FAILED_PRECONDITION MESSAGE_KIND_UNKNOWN"),
    ],
)
async def test_a_stream_that_makes_no_sense_is_ended_with_the_reason(
    second: bytes, words: str
) -> None:
    async with listening("a") as a:
        assert (await refused(a, hello(a), second)).startswith(words)
        assert a.got == []


@pytest.mark.parametrize("first", [b"\xff", b"", b"\x10\x01"])
async def test_a_stream_that_does_not_say_hello_is_refused(first: bytes) -> None:
    async with listening("a") as a:
        assert "HELLO_MISSING" in await refused(a, first) or first == b"\xff"


async def test_streams_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_door, "STREAMS_MAX", 0)
    async with listening("a") as a:
        assert (await refused(a, hello(a))).startswith("RESOURCE_EXHAUSTED STREAMS_MAX")


async def test_an_address_that_is_taken_is_an_error() -> None:
    async with listening("a") as a:
        port = int(a.address.rpartition(":")[2])
        with pytest.raises(OSError, match="can't listen"):
            async with listening("b", PeerOptions(listen=("127.0.0.1", port))):
                pass


# --- calls -----------------------------------------------------------------------------------


async def forwarded(node: Node, **fields: object) -> grpc.StatusCode:
    """How the door ends a forwarded call made by hand."""
    request = pb.ForwardRequest(hello=make_hello(STRANGER, node.store, 1), method="m", **fields)  # type: ignore[arg-type]
    channel = dial(node.address, OPTIONS)
    try:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(FORWARD)
        await call(request.SerializeToString(), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await channel.close()
    return grpc.StatusCode.OK


async def test_a_call_that_was_forwarded_before_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(_call: Forwarded) -> bytes:
        return b""

    async with listening("a") as a:
        a.answer = answer
        assert await forwarded(a, hops=1) is grpc.StatusCode.OK
        for hops in (0, 2):
            assert await forwarded(a, hops=hops) is grpc.StatusCode.FAILED_PRECONDITION
        monkeypatch.setattr(peer_door, "FORWARDS_MAX", 0)
        assert await forwarded(a, hops=1) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(a.forwarded) == 1


async def test_a_call_under_way_has_a_while_when_its_node_leaves() -> None:
    answers = {"quick": 0.2, "slow": 60.0}

    async def answer(call: Forwarded) -> bytes:
        await asyncio.sleep(answers[call.method])
        return b"done"

    async with listening("a") as a, listening("b") as b:
        b.answer = answer
        a.peers.set_members({b.store: Member(b.address, 1)})
        calls = [
            asyncio.create_task(a.peers.forward(b.store, method, b"", 30.0)) for method in answers
        ]
        await until(lambda: len(b.forwarded) == len(calls))
        a.peers.set_members({})
        assert await calls[0] == b"done"
        with pytest.raises(DeadlineExceeded, match="left the cluster"):
            await calls[1]


async def test_a_call_that_is_given_up_is_cancelled() -> None:
    async def answer(_call: Forwarded) -> bytes:
        await asyncio.sleep(60)
        return b""

    async with listening("a") as a, listening("b") as b:
        b.answer = answer
        a.peers.set_members({b.store: Member(b.address, 1)})
        call = asyncio.create_task(a.peers.forward(b.store, "m", b"", 30.0))
        await until(lambda: b.forwarded)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_who_is_turned_away_at_the_door_tells_its_client_to_repeat() -> None:
    """A node that was away is of a former session for a moment; its client has done nothing wrong."""
    async with listening("a") as a, listening("b") as b:
        a.peers.set_members({b.store: Member(b.address, 1)})
        b.peers.set_members({a.store: Member(a.address, 9)})
        with pytest.raises(Unavailable, match="STALE_SESSION") as caught:
            await a.peers.forward(b.store, "m", b"", 5.0)
        assert caught.value.reason == "PEER_REFUSED"
        assert b.forwarded == []


async def test_a_fault_of_the_other_node_stays_in_its_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_call: Forwarded) -> bytes:
        raise ZeroDivisionError("secret")

    async with listening("a") as a, listening("b") as b:
        b.answer = fail
        a.peers.set_members({b.store: Member(b.address, 1)})
        with (
            caplog.at_level(logging.CRITICAL, "tickwheel"),
            pytest.raises(TickwheelError, match=f"internal error on node {b.store}") as caught,
        ):
            await a.peers.forward(b.store, "m", b"", 5.0)
        assert "secret" not in str(caught.value)


async def test_a_peer_that_nobody_reaches_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tickwheel")
    async with listening("b") as b:
        gone = b.address
    async with listening("a") as a:
        a.peers.set_members({b.store: Member(gone, 1)})
        await until(lambda: len(caplog.records) >= 2)
        await asyncio.sleep(0.5)
        lanes = {vars(record)["peer"] for record in caplog.records}
        assert len(lanes) == 2, "one line a lane"
        assert len(caplog.records) <= 4
        assert a.events == []


# --- snapshots -------------------------------------------------------------------------------


async def test_a_copy_is_throttled() -> None:
    loop = asyncio.get_running_loop()
    throttle = Throttle(1_000_000)
    start_s = loop.time()
    await asyncio.gather(*(throttle.take(20_000) for _ in range(6)))
    assert loop.time() - start_s >= 0.099
    await Throttle(0).take(1 << 60)


async def test_only_some_copies_are_sent_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SERVED_MAX", 0)

    async def never(_data: bytes) -> None:
        raise AssertionError

    async def opened(_shard: int) -> Files:
        return Files({"x": b"x"})

    with pytest.raises(ResourceExhausted):
        await snapshots.SnapshotSource(opened).serve(pb.SnapshotRequest(), never)


async def test_a_part_with_a_hole_is_fetched_once_more(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4_000
    files = Files({"x.db": data})
    async with listening("a") as a, listening("b") as b:
        b.files = lambda _shard: files
        a.peers.set_members({b.store: Member(b.address, 1)})
        head = snapshots.make_head(files)
        (tmp_path / snapshots.HEAD).write_bytes(head.SerializeToString())
        (tmp_path / "x.db.part").write_bytes(bytes(600_000))
        await a.peers.fetch_snapshot(b.store, 3, tmp_path)
        assert files.reads[0] == (0, 600_000)
        assert (tmp_path / "x.db").read_bytes() == data


# --- certificates ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def issue(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Tls]:
    """Make a certificate: of which authority, for which name."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the command openssl")
    home = tmp_path_factory.mktemp("tls")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], check=True, capture_output=True, cwd=home, timeout=60)

    def authority(name: str) -> None:
        run(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
        )  # fmt: skip

    def make(ca: str, dns: str) -> Tls:
        if not (home / f"{ca}.pem").exists():
            authority(ca)
        name = f"{ca}-{dns}"
        (home / "ext").write_text(f"subjectAltName=DNS:{dns}\n")
        run(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={dns}", "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        run(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
            "-CAcreateserial", "-extfile", "ext", "-out", f"{name}.pem", "-days", "2",
        )  # fmt: skip
        return Tls(home / f"{ca}.pem", home / f"{name}.pem", home / f"{name}.key")

    return make


def with_tls(tls: Tls | None) -> PeerOptions:
    """Options of a node."""
    return PeerOptions(listen=("127.0.0.1", 0), tls=tls, backoff_max_s=0.2, stop_grace_s=1.0)


async def test_nodes_of_one_authority_speak_to_each_other(issue: Callable[[str, str], Tls]) -> None:
    options = with_tls(issue("ours", "tickwheel-peer"))
    async with listening("a", options) as a, listening("b", options) as b:
        a.peers.set_members({b.store: Member(b.address, 1)})
        await until(lambda: a.peers.connected(b.store))
        a.peers.send(b.store, acks(3))
        await until(lambda: b.messages(a) == acks(3))


@pytest.mark.parametrize(
    "certificate", [None, ("theirs", "tickwheel-peer"), ("ours", "somebody-else")]
)
async def test_whoever_is_no_node_is_not_let_in(
    issue: Callable[[str, str], Tls], certificate: tuple[str, str] | None
) -> None:
    ours = issue("ours", "tickwheel-peer")
    other = None
    if certificate is not None:
        made = issue(*certificate)
        other = Tls(ours.ca, made.cert, made.key)
    async with listening("b", with_tls(ours)) as b, listening("a", with_tls(other)) as a:
        a.peers.set_members({b.store: Member(b.address, 1)})
        with pytest.raises((Unavailable, TickwheelError)):
            await a.peers.forward(b.store, "m", b"", 1.0)
        assert not a.peers.connected(b.store)
        assert (a.events, b.got, b.forwarded) == ([], [], [])
        b.peers.set_members({a.store: Member(a.address, 1)})
        await asyncio.sleep(0.3)
        assert (b.events, a.got) == ([], []), "nor is it called"
