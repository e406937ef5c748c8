"""Junk on both ports, bounded in count and time: the node keeps serving and firing, and its memory stays flat.

Each attack runs against one standing node beside a job that fires every second; after each, a call is answered, a new
job fires, `/readyz` is 200, and nothing was logged as an error. Loopback only.
"""

import asyncio
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from random import Random

import grpc
import pytest
from bench import calls
from bench.node import Node, Sink, get, wait_until
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tests.bad_input import good_create
from tests.e2e.harness import SETTLE_S, running_node
from tests.e2e.random_messages import change, fill

from tickwheel.v1.job_service_pb2 import DESCRIPTOR

pytestmark = pytest.mark.timeout(120)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
CREATE = "/tickwheel.v1.JobService/CreateJob"
CONNECTIONS = 1_000
GROWTH_BYTES_MAX = 96 << 20
PATIENCE_S = 5.0
MESSAGES = 1_500
UNARY = [
    method
    for method in DESCRIPTOR.services_by_name["JobService"].methods
    if not (method.client_streaming or method.server_streaming)
]
ANSWERS = frozenset(
    (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
     grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED, grpc.StatusCode.UNIMPLEMENTED)
)  # fmt: skip
KNOWN = re.compile(r"--- start|\S+Z (INFO |WARNING) ")

Attack = Callable[[Node], None]


@pytest.fixture(scope="module")
def target() -> Iterator[Sink]:
    with Sink() as running:
        yield running


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("junk")) as running:
        yield running


# --- attacks -----------------------------------------------------------------------------------


def push(port: int, data: bytes) -> bytes:
    """Send bytes and read what comes back, up to 4 KiB, until the peer closes or a moment has passed."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as peer:
        peer.settimeout(0.2)
        answer = b""
        with suppress(OSError):
            peer.sendall(data)
            while len(answer) < 4_096 and (piece := peer.recv(4_096)):
                answer += piece
        return answer


def random_bytes(node: Node) -> None:
    rng = Random(1)
    for port in (node.grpc_port, node.http_port):
        for size in (1, 9, 100, 10_000, 1_000_000):
            push(port, rng.randbytes(size))


def frames_of_junk(node: Node) -> None:
    """A good preface, then frames whose lengths, types and streams are wrong."""
    rng = Random(2)
    push(node.grpc_port, PREFACE + SETTINGS + b"\xff\xff\xff\1\0\0\0\0\1" + rng.randbytes(1_000))
    push(node.grpc_port, PREFACE + SETTINGS + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0")
    for kind in range(12):
        junk = rng.randbytes(64)
        push(
            node.grpc_port,
            PREFACE + SETTINGS + b"\0\0\x40" + bytes([kind, 4, 0, 0, 0, 1]) + junk,
        )


def wrong_protocol(node: Node) -> None:
    """HTTP/1.1 on the gRPC port, HTTP/2 on the other."""
    push(node.grpc_port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    push(node.http_port, PREFACE + SETTINGS)
    assert push(node.http_port, b"BREW /readyz HTTP/9.9\r\n\r\n").startswith(b"HTTP/1.")


def bad_requests_over_http(node: Node) -> None:
    head = b"GET /readyz HTTP/1.1\r\nHost: x\r\n"
    assert b" 400 " in push(node.http_port, head + b"X: " + b"a" * 200_000 + b"\r\n\r\n")[:64]
    assert b" 40" in push(node.http_port, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")[:64]
    assert b" 40" in push(node.http_port, b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n")
    push(node.http_port, head + b"Content-Length: 99999999999\r\n\r\n" + b"a" * 1_000_000)
    push(node.http_port, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    push(node.http_port, head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert get(node.http_port, "/nothing")[0] == 404


def raw(channel: grpc.Channel, path: str) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
    """A method that takes and gives bytes."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return call


def unary(node: Node, data: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.StatusCode:
    """What a call of raw bytes is answered."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(node.target, options=options) as channel:
        call = raw(channel, CREATE)
        with pytest.raises(grpc.RpcError) as raised:
            call(data, timeout=PATIENCE_S, metadata=metadata)
        assert isinstance(raised.value, grpc.Call)
        return raised.value.code()


def invalid_protobuf(node: Node) -> None:
    rng = Random(3)
    for size in (1, 2, 10, 1_000, 100_000):
        code = unary(node, b"\xff" + rng.randbytes(size))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    deep = b""
    for _ in range(300):
        deep = b"\x1a" + bytes([len(deep)]) + deep if len(deep) < 127 else deep
    assert unary(node, deep) is grpc.StatusCode.INVALID_ARGUMENT


def random_messages(node: Node) -> None:
    """Of every method that takes one message, and creates that are wrong in a place or two: each has an answer."""
    rng = Random(4)
    with grpc.insecure_channel(node.target) as channel:
        for number in range(MESSAGES):
            create = good_create()
            create.job_id = f"random-{rng.randrange(10**9)}"
            create.job.http_target.url = "http://127.0.0.1:65001/"
            change(rng, create.job, rng.choice((1, 2, 3)))
            answer(channel, "CreateJob", create)
            method = UNARY[number % len(UNARY)]
            message = GetMessageClass(method.input_type)()
            fill(rng, message)
            answer(channel, method.name, message)


def answer(channel: grpc.Channel, method: str, message: Message) -> None:
    """A call, that must end in time and not by a fault of the server."""
    path = f"/tickwheel.v1.JobService/{method}"
    call = raw(channel, path).future(message.SerializeToString(), timeout=PATIENCE_S)
    call.exception()
    assert call.code() in ANSWERS, f"{method} ended with {call.code()}: {message}"


def long_messages(node: Node) -> None:
    """Some that are junk, some that are too long to be read at all."""
    for _ in range(5):
        assert unary(node, b"x" * (5 << 20)) is grpc.StatusCode.INVALID_ARGUMENT
        assert unary(node, b"x" * (17 << 20)) is grpc.StatusCode.RESOURCE_EXHAUSTED


def long_metadata(node: Node) -> None:
    for _ in range(10):
        code = unary(node, b"", (("x-junk", "a" * 100_000),))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def unknown_methods(node: Node) -> None:
    with grpc.insecure_channel(node.target) as channel:
        for path in ("/a/b", "/tickwheel.v1.JobService/Nothing", "/" + "a" * 4_000):
            with pytest.raises(grpc.RpcError) as raised:
                raw(channel, path)(b"", timeout=PATIENCE_S)
            assert isinstance(raised.value, grpc.Call)
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def many_idle_connections(node: Node) -> None:
    """Half of them in the middle of the preface, half in the middle of a request's head; cut without a word."""
    with ExitStack() as stack:
        for number in range(CONNECTIONS):
            port, start = (
                (node.grpc_port, PREFACE[:9]) if number % 2 else (node.http_port, b"GET /rea")
            )
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            peer.sendall(start)
        assert get(node.http_port, "/readyz")[0] == 200


def slow_clients(node: Node) -> None:
    """A byte now and then, and readers that never read."""
    head = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        peers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", node.http_port)))
            for _ in range(100)
        ]
        for peer in peers[50:]:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            with suppress(OSError):
                peer.sendall(head * 20)
        for place in range(10):
            for peer in peers[:50]:
                peer.sendall(head[place : place + 1])
            time.sleep(0.1)


def cancelled_calls(node: Node) -> None:
    """Calls given up at once, with their stream reset."""
    with grpc.insecure_channel(node.target) as channel:
        for _ in range(300):
            raw(channel, CREATE).future(b"", timeout=PATIENCE_S).cancel()


ATTACKS: tuple[Attack, ...] = (
    random_bytes,
    frames_of_junk,
    wrong_protocol,
    bad_requests_over_http,
    invalid_protobuf,
    random_messages,
    long_messages,
    long_metadata,
    unknown_methods,
    many_idle_connections,
    slow_clients,
    cancelled_calls,
)


# --- tests -------------------------------------------------------------------------------------


async def still_works(node: Node, sink: Sink, name: str) -> None:
    """A call is answered, a job fires soon, the node is ready and has nothing to complain of."""
    api = calls.Api(node.target)
    due = calls.now_ms() + 200
    uid = (await api.create(name, calls.once(sink.url(), due))).uid
    wait_until(lambda: bool(arrivals(sink, uid)), SETTLE_S, f"the job after {name}")
    assert arrivals(sink, uid)[0] - due < 2_000, "it fired late"
    await api.close()
    assert get(node.http_port, "/readyz")[0] == 200
    strange = [line for line in node.log.read_text().splitlines() if not KNOWN.match(line)]
    assert not strange


def arrivals(sink: Sink, uid: str) -> list[int]:
    return [a.arrival_us // 1_000 for a in sink.records() if a.id.startswith(uid)]


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.__name__ for attack in ATTACKS])
async def test_it_stands(standing: Node, target: Sink, attack: Attack) -> None:
    before = standing.rss_bytes()
    await asyncio.to_thread(attack, standing)
    await still_works(standing, target, f"after-{attack.__name__.replace('_', '-')}")
    assert standing.rss_bytes() - before < GROWTH_BYTES_MAX


async def test_it_fires_on_time_under_all_of_it_and_memory_is_flat(
    standing: Node, target: Sink
) -> None:
    """The second and third round of everything at once take no more memory than the first left."""
    api = calls.Api(standing.target)
    uid = (await api.create("tick", calls.every(target.url(), 1_000, calls.now_ms()))).uid
    sizes: list[int] = []
    for _ in range(3):
        await asyncio.gather(*(asyncio.to_thread(attack, standing) for attack in ATTACKS))
        sizes.append(standing.rss_bytes())
    await still_works(standing, target, "after-all")
    assert sizes[-1] - sizes[0] < GROWTH_BYTES_MAX // 2, sizes
    times = arrivals(target, uid)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps
    assert max(gaps) < 3_000, gaps
    await api.close()
