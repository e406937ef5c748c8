"""Every bad request of the table is refused as it says: code, reason, field. Here against the doors alone."""

import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from tests.bad_input import Case, cases, good_create
from tests.fake_scheduler import FakeScheduler

from tickwheel.server.api.convert import Converter
from tickwheel.server.api.errors import to_status
from tickwheel.server.api.grpc import method_table
from tickwheel.server.api.limits import BODY_BYTES_MAX
from tickwheel.server.api.validate import TargetChecks
from tickwheel.server.dispatch.guard import Guard
from tickwheel.server.dispatch.headers import check_headers
from tickwheel.server.errors import TickwheelError

CASES = cases()


def make_converter() -> Converter:
    return Converter(TargetChecks(Guard().check_url, check_headers), body_bytes_max=BODY_BYTES_MAX)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.method}: {case.label}" for case in CASES])
async def test_a_bad_request_is_refused(case: Case) -> None:
    scheduler = FakeScheduler()
    await method_table(scheduler, make_converter())["tickwheel.v1.JobService.CreateJob"](
        good_create()
    )
    taken = len(scheduler.commands)
    call = method_table(scheduler, make_converter())[f"tickwheel.v1.JobService.{case.method}"]

    with pytest.raises(TickwheelError) as raised:
        await call(type(case.request).FromString(case.request.SerializeToString()))

    status = to_status(raised.value)
    info, bad = ErrorInfo(), BadRequest()
    assert status.details[0].Unpack(info)
    assert Code.Name(status.code) == case.code, status
    assert status.details[1].Unpack(bad)
    first = bad.field_violations[0]
    assert (info.reason, first.reason, first.field) == (case.reason, case.reason, case.field)
    assert info.domain == "tickwheel"
    assert info.metadata["field"] == case.field[:200]
    assert len(scheduler.commands) == taken, "a bad request reached the scheduler"
    assert status.ByteSize() < 8_192, MessageToDict(status)


def test_the_table_is_long_and_says_nothing_twice() -> None:
    labels = [(case.method, case.label) for case in CASES]
    assert len(labels) >= 60
    assert len(set(labels)) == len(labels)
