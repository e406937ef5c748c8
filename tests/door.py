"""JobService behind its transport, over a fake scheduler: for the tests of the doors."""

from typing import Any

from google.protobuf.message import Message
from tests.bad_input import good_create
from tests.fake_scheduler import TAKES_ALL, FakeScheduler

from tickwheel.server.api import limits
from tickwheel.server.api.convert import Converter
from tickwheel.server.api.grpc import method_table
from tickwheel.server.api.messages import request_class
from tickwheel.v1 import job_pb2


class Door:
    """The methods, and the scheduler behind them."""

    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.converter = Converter(TAKES_ALL, body_bytes_max=limits.BODY_BYTES_MAX)
        self.table = method_table(self.scheduler, self.converter)

    async def __call__(self, method: str, request: Message) -> Any:
        name = f"tickwheel.v1.JobService.{method}"
        return await self.table[name](request_class(name).FromString(request.SerializeToString()))


async def create(door: Door, job_id: str = "nightly") -> job_pb2.Job:
    request = good_create()
    request.job_id = job_id
    job: job_pb2.Job = await door("CreateJob", request)
    return job
