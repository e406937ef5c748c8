"""The load generator, a process of its own: creates jobs and measures how long each answer took.

Open loop with `--rate`: request k is due at start + k / rate, is sent then whether or not earlier ones were answered,
and its latency counts from that instant, so that a stall of the server shows in full. Without a rate it is a closed loop
of `--flight` requests, which finds the most that gets through.

    unary    CreateJob, one job a call            bulk     BatchCreateJobs of `--batch`
    stream   StreamCreateJobs, windowed           gather   the client library, which gathers single creates by itself

Occurrence k of `--count` falls due at `--due-ms` + k x `--spread-ms` / count. The last line on stdout is the result as
JSON. Run: `python -m bench.load unary --target 127.0.0.1:7070 --url http://127.0.0.1:8000/ok --count 1000`.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc.aio

from bench import calls
from bench.histogram import Histogram
from tickwheel.v1 import job_service_pb2 as js


class Load:
    """One run: the requests, and what became of them."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.api = calls.Api(asked.target)
        self.latency_us = Histogram()
        self.accepted = 0
        self.refused: dict[str, int] = {}
        self.template = calls.request("", calls.once(asked.url, 0, body=b"x" * asked.body))

    # --- messages ---

    def fill(self, request: js.CreateJobRequest, number: int) -> None:
        """Make a copy of the template the job of that number."""
        asked = self.asked
        request.CopyFrom(self.template)
        request.job_id = f"{asked.prefix}{number}"
        request.request_id = request.job_id
        due_ms = asked.due_ms + number * asked.spread_ms // asked.count
        request.job.schedule.once.scheduled_time.CopyFrom(calls.stamp(due_ms))

    def batch(self, number: int) -> js.BatchCreateJobsRequest:
        """The `number`-th batch."""
        message = js.BatchCreateJobsRequest(parent=calls.PARENT)
        for k in self.span(number):
            self.fill(message.requests.add(), k)
        return message

    def span(self, number: int) -> range:
        """The numbers of the jobs of a batch."""
        low = number * self.asked.batch
        return range(low, min(low + self.asked.batch, self.asked.count))

    @property
    def batches(self) -> int:
        """How many there are."""
        return -(-int(self.asked.count) // int(self.asked.batch))

    # --- sending ---

    async def paced(self, count: int, send: Callable[[int], Awaitable[None]]) -> None:
        """Call `send` for 0..count-1: at the rate, or `flight` at a time."""
        if self.asked.rate:
            await self.open_loop(count, send)
        else:
            numbers = iter(range(count))
            await asyncio.gather(*(self.closed(numbers, send) for _ in range(self.asked.flight)))

    async def closed(self, numbers: Any, send: Callable[[int], Awaitable[None]]) -> None:
        """One of `flight` users, each of whom waits for an answer before the next request."""
        for number in numbers:
            start = time.monotonic()
            await send(number)
            self.record(start)

    async def open_loop(self, count: int, send: Callable[[int], Awaitable[None]]) -> None:
        """Send on schedule, whatever the answers do."""
        step_s = self.jobs_a_call / self.asked.rate
        start = time.monotonic()

        async def one(number: int) -> None:
            await send(number)
            self.record(start + number * step_s)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                delay = start + number * step_s - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                group.create_task(one(number))

    @property
    def jobs_a_call(self) -> int:
        """How many jobs one call makes."""
        return int(self.asked.batch) if self.asked.mode == "bulk" else 1

    def record(self, since: float) -> None:
        """Enter a latency."""
        self.latency_us.record(int((time.monotonic() - since) * 1e6))

    # --- modes ---

    async def unary(self) -> None:
        """One call a job."""

        async def send(number: int) -> None:
            request = js.CreateJobRequest(parent=calls.PARENT)
            self.fill(request, number)
            try:
                await self.api.jobs.CreateJob(request, timeout=60.0)
                self.accepted += 1
            except grpc.aio.AioRpcError as error:
                self.refuse(error.code().name)

        await self.paced(self.asked.count, send)

    async def bulk(self) -> None:
        """A thousand jobs a call. In a closed loop, what the server refuses for now is sent again after a pause."""

        async def once(number: int) -> None:
            answer = await self.api.jobs.BatchCreateJobs(self.batch(number), timeout=120.0)
            self.count_results(answer.results)

        async def insist(number: int) -> None:
            uids = await self.api.create_many(self.batch(number).requests)
            self.accepted += len(uids)

        async def send(number: int) -> None:
            try:
                await (once(number) if self.asked.rate else insist(number))
            except grpc.aio.AioRpcError as error:
                self.refuse(error.code().name, len(self.span(number)))
            except calls.GaveUp:
                self.refuse("GAVE_UP", len(self.span(number)))

        await self.paced(self.batches, send)

    async def stream(self) -> None:
        """One stream, as many messages unanswered as the server's window allows."""
        credits_ = asyncio.Semaphore(0)
        sent: dict[int, float] = {}

        async def requests() -> AsyncIterator[js.StreamCreateJobsRequest]:
            for number in range(self.batches):
                await credits_.acquire()
                message = js.StreamCreateJobsRequest(sequence=number + 1, parent=calls.PARENT)
                message.requests.extend(self.batch(number).requests)
                sent[message.sequence] = time.monotonic()
                yield message

        async for answer in self.api.jobs.StreamCreateJobs(requests()):
            if answer.HasField("window"):
                for _ in range(answer.window.messages):
                    credits_.release()
                continue
            credits_.release()
            self.record(sent.pop(answer.result.sequence))
            self.count_results(answer.result.results)

    async def gather(self) -> None:
        """The client library as a user has it: single `create` calls, which it gathers into batches by itself."""
        # the other modes measure the server alone
        from tickwheel.client import AsyncClient, TickwheelError  # noqa: PLC0415

        asked = self.asked
        body = b"x" * asked.body
        async with AsyncClient(asked.target) as client:

            async def send(number: int) -> None:
                due_ms = asked.due_ms + number * asked.spread_ms // asked.count
                at = datetime.fromtimestamp(due_ms / 1_000, UTC)
                try:
                    name = f"{asked.prefix}{number}"
                    await client.create(asked.url, job_id=name, at=at, body=body)
                    self.accepted += 1
                except TickwheelError as error:
                    self.refuse(type(error).__name__)

            await self.paced(asked.count, send)

    def count_results(self, results: Any) -> None:
        """Count what became of each item of a batch."""
        for result in results:
            if result.HasField("error"):
                self.refuse(str(result.error.code))
            else:
                self.accepted += 1

    def refuse(self, why: str, count: int = 1) -> None:
        """Count refusals by code."""
        self.refused[why] = self.refused.get(why, 0) + count

    async def run(self) -> dict[str, Any]:
        """The whole run; its result."""
        await self.api.channel.channel_ready()
        start, cpu = time.monotonic(), time.process_time()
        await getattr(self, self.asked.mode)()
        wall_s = time.monotonic() - start
        await self.api.close()
        return {
            "mode": self.asked.mode,
            "accepted": self.accepted,
            "refused": sum(self.refused.values()),
            "why": self.refused,
            "repeats": self.api.repeats,
            "wall_s": round(wall_s, 3),
            "per_s": round(self.accepted / wall_s),
            "latency_ms": self.latency_us.ms(),
            "generator_cpu_s": round(time.process_time() - cpu, 2),
        }


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("mode", choices=("unary", "bulk", "stream", "gather"))
    parser.add_argument("--target", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--prefix", default="b-")
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--flight", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.0, help="jobs a second; 0 = closed loop")
    parser.add_argument("--due-ms", type=int, default=0, help="default: in a day")
    parser.add_argument("--spread-ms", type=int, default=0)
    parser.add_argument("--body", type=int, default=100, help="bytes")
    asked = parser.parse_args(arguments)
    asked.due_ms = asked.due_ms or calls.now_ms() + 86_400_000
    return asked


def main() -> None:
    """Run, print the result."""

    async def run() -> dict[str, Any]:
        return await Load(parse(sys.argv[1:])).run()

    print(json.dumps(asyncio.run(run())))


if __name__ == "__main__":
    main()
