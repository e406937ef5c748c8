"""Every bad request of the table over the wire: the right refusal, and a node that serves and fires after all of them.

The same table runs against the doors alone in tests/conformance; here the bytes pass gRPC, and the shards are real.
"""

from collections.abc import Iterator

import grpc
import pytest
from bench import calls
from bench.node import Node, Sink, wait_until
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from tests.bad_input import Case, cases, good_create
from tests.e2e.harness import SETTLE_S, running_node

from tickwheel.v1.job_service_pb2 import DESCRIPTOR

pytestmark = pytest.mark.timeout(120)
CASES = cases()
METHODS = DESCRIPTOR.services_by_name["JobService"].methods_by_name
DETAILS = "grpc-status-details-bin"
MESSAGE_BYTES_MAX = 8_192  # what a client's default takes as trailers


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("bad")) as running:
        yield running


@pytest.fixture(scope="module")
def channel(standing: Node) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(standing.target) as opened:
        yield opened


def ask(channel: grpc.Channel, method: str, request: Message) -> Message:
    call = channel.unary_unary(
        f"/tickwheel.v1.JobService/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(METHODS[method].output_type).FromString,
    )
    answer: Message = call(request, timeout=10)
    return answer


def refusal(error: grpc.RpcError) -> tuple[Status, ErrorInfo, BadRequest]:
    """The parts of a refusal, which must all be there."""
    assert isinstance(error, grpc.Call)
    raw = next(item.value for item in error.trailing_metadata() or () if item.key == DETAILS)
    assert isinstance(raw, bytes)
    status, info, bad = Status.FromString(raw), ErrorInfo(), BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    return status, info, bad


@pytest.mark.parametrize("case", CASES, ids=[f"{case.method}: {case.label}" for case in CASES])
def test_a_bad_request_is_refused(channel: grpc.Channel, standing: Node, case: Case) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        ask(channel, case.method, case.request)
    status, info, bad = refusal(raised.value)
    first = bad.field_violations[0]
    assert Code.Name(status.code) == case.code, status
    assert (info.reason, first.reason, first.field) == (case.reason, case.reason, case.field)
    assert status.ByteSize() < MESSAGE_BYTES_MAX
    assert standing.code() is None


@pytest.mark.parametrize("dry", [case for case in CASES if case.method == "CreateJob"][::7])
def test_a_dry_run_refuses_the_same(channel: grpc.Channel, dry: Case) -> None:
    request = type(good_create()).FromString(dry.request.SerializeToString())
    request.validate_only = True
    with pytest.raises(grpc.RpcError) as raised:
        ask(channel, "CreateJob", request)
    _, info, _ = refusal(raised.value)
    assert info.reason == dry.reason


async def test_after_all_that_it_serves_and_fires(standing: Node, sink: Sink) -> None:
    """Nothing bad came through, no error of the server's own was logged, and a good job fires."""
    api = calls.Api(standing.target)
    for case in CASES:
        with pytest.raises(grpc.aio.AioRpcError):
            await api.jobs.__dict__[case.method](case.request)
    assert await api.count() == 0
    await api.create("good", calls.once(sink.url(), calls.now_ms()))
    wait_until(lambda: sink.count() == 1, SETTLE_S, "the request")
    await api.close()
    log = standing.log.read_text()
    assert "Traceback" not in log
    assert " ERROR " not in log
