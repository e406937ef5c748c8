"""What a user of a running service relies on, end to end: changes, lists, bad targets, restarts, an orderly end."""

import asyncio
import socket
import ssl
import subprocess
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import grpc.aio
import pytest
from bench import calls
from bench.node import Node, Sink, free_port, get, wait_until
from google.protobuf.field_mask_pb2 import FieldMask
from tests.e2e.harness import SETTLE_S, running_node

from tickwheel.v1 import job_service_pb2 as js
from tickwheel.v1.execution_pb2 import (
    EXECUTION_STATE_FAILED,
    EXECUTION_STATE_SUCCEEDED,
    Execution,
)
from tickwheel.v1.job_pb2 import JOB_STATE_DISABLED, JOB_STATE_PAUSED, Job

pytestmark = pytest.mark.timeout(120)
HOUR_MS = 3_600_000
DRAIN_MS = 2_000
JOBS = 5_000


async def ended(api: calls.Api, name: str) -> Execution:
    """The first execution of a job, once it has ended."""
    until = calls.now_ms() + int(SETTLE_S * 1_000)
    while calls.now_ms() < until:
        async for each in api.executions(name):
            if each.HasField("end_time"):
                return each
        await asyncio.sleep(0.05)
    raise TimeoutError(name)


def one_try(url: str, **more: object) -> Job:
    job = calls.once(url, calls.now_ms(), **more)  # type: ignore[arg-type]
    job.retry_policy.max_attempts = 1
    return job


# --- lists and counts --------------------------------------------------------------------------


async def test_five_thousand_jobs_are_listed_counted_and_kept_over_a_restart(node: Node) -> None:
    api = calls.Api(node.target)
    due = calls.now_ms() + HOUR_MS
    names = [f"n{number:05}" for number in range(JOBS)]
    for start in range(0, JOBS, 1_000):
        requests: list[js.CreateJobRequest] = []
        for name in names[start : start + 1_000]:
            job = calls.once("http://127.0.0.1:65001/", due)
            job.labels["team"] = "abc"[int(name[1:]) % 3]
            requests.append(calls.request(name, job))
        await api.create_many(requests)
    await api.jobs.PauseJob(js.PauseJobRequest(name=calls.full_name(names[7])))
    for _ in range(2):
        assert sorted(await listed(api, "")) == names
        assert sorted(await listed(api, 'labels.team = "b"')) == names[1::3]
        assert await listed(api, "state = PAUSED") == [names[7]]
        assert await grouped(api) == {"a": 1667, "b": 1667, "c": 1666}
        await api.close()
        node.kill()
        node.start()
        api = calls.Api(node.target)
    await api.close()


async def listed(api: calls.Api, where: str) -> list[str]:
    """All names, page by page; no page repeats one."""
    names: list[str] = []
    token = ""
    while True:
        ask = js.ListJobsRequest(
            parent=calls.PARENT, filter=where, page_size=700, page_token=token, consistent=True
        )
        answer = await api.jobs.ListJobs(ask, timeout=30)
        assert len(answer.jobs) <= 700
        names += [job.name.rpartition("/")[2] for job in answer.jobs]
        token = answer.next_page_token
        if not token:
            assert len(set(names)) == len(names)
            return names


async def grouped(api: calls.Api) -> dict[str, int]:
    ask = js.CountJobsRequest(
        parent=calls.PARENT, group_by=js.COUNT_GROUPING_LABEL, label_key="team", consistent=True
    )
    answer = await api.jobs.CountJobs(ask, timeout=30)
    return {group.label_value: group.count for group in answer.counts}


# --- changes -----------------------------------------------------------------------------------


async def test_an_update_with_an_old_etag_changes_nothing(node: Node) -> None:
    api = calls.Api(node.target)
    far = calls.once("http://127.0.0.1:65001/", calls.now_ms() + HOUR_MS)
    first = await api.create("a", far)
    await api.jobs.DeleteJob(js.DeleteJobRequest(name=first.name))
    again = js.CreateJobRequest(parent=calls.PARENT, job_id="a", job=far, request_id="again")
    second = await api.jobs.CreateJob(again)
    change = Job(name=first.name, description="mine", etag=first.etag)
    update = js.UpdateJobRequest(job=change, update_mask=FieldMask(paths=["description"]))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await api.jobs.UpdateJob(update)
    assert raised.value.code() is grpc.StatusCode.ABORTED
    update.job.etag = second.etag
    assert (await api.jobs.UpdateJob(update)).job.description == "mine"
    await api.close()


async def test_a_pause_holds_over_a_restart_and_a_run_now_goes_out_beside_it(
    node: Node, sink: Sink
) -> None:
    api = calls.Api(node.target)
    job = await api.create("tick", calls.every(sink.url(), 1_000, calls.now_ms()))
    wait_until(lambda: sink.count() >= 1, SETTLE_S, "a first request")
    await api.jobs.PauseJob(js.PauseJobRequest(name=job.name))
    await api.close()
    node.terminate()
    sink.reset()
    node.start()
    api = calls.Api(node.target)
    assert (await api.get("tick")).state == JOB_STATE_PAUSED
    await asyncio.sleep(2.2)
    assert sink.count() == 0
    await api.jobs.ResumeJob(js.ResumeJobRequest(name=job.name))
    wait_until(lambda: sink.count() >= 2, SETTLE_S, "two requests")
    await api.close()


async def test_a_dead_letter_is_retried_with_its_id(node: Node, sink: Sink) -> None:
    api = calls.Api(node.target)
    await api.create("dead", one_try(sink.url("/fail?times=1")))
    letter = await ended(api, "dead")
    assert letter.state == EXECUTION_STATE_FAILED
    assert letter.attempts[-1].http_status == 503
    await api.jobs.RetryExecution(js.RetryExecutionRequest(name=letter.name))
    wait_until(lambda: sink.count() == 2, SETTLE_S, "the retry")
    assert len({arrival.id for arrival in sink.records()}) == 1
    for _ in range(100):
        if (await ended(api, "dead")).state == EXECUTION_STATE_SUCCEEDED:
            break
        await asyncio.sleep(0.05)
    assert (await ended(api, "dead")).state == EXECUTION_STATE_SUCCEEDED
    await api.close()


# --- targets that behave badly -----------------------------------------------------------------


async def test_a_target_that_is_gone_disables_the_job(node: Node, sink: Sink) -> None:
    api = calls.Api(node.target)
    await api.create("gone", calls.every(sink.url("/gone"), 1_000, calls.now_ms()))
    await ended(api, "gone")
    assert (await api.get("gone")).state == JOB_STATE_DISABLED
    await asyncio.sleep(1.5)
    assert sink.count() == 1
    await api.close()


async def test_retry_after_is_a_floor(node: Node, sink: Sink) -> None:
    api = calls.Api(node.target)
    await api.create("later", calls.once(sink.url("/retry-after?s=2"), calls.now_ms()))
    wait_until(lambda: sink.count() == 2, SETTLE_S, "the retry")
    first, second = sink.records()
    assert second.arrival_us - first.arrival_us >= 2_000_000
    await api.close()


async def test_a_slow_target_delays_no_other(node: Node, sink: Sink) -> None:
    """More requests hang than one target may have in flight; the other target's are on time."""
    api = calls.Api(node.target)
    with Sink() as slow:
        now = calls.now_ms()
        hang = [calls.request(f"h{n}", calls.once(slow.url("/hang"), now)) for n in range(600)]
        await api.create_many(hang)
        wait_until(lambda: slow.count() >= 256, SETTLE_S, "hanging requests")
        due = calls.now_ms() + 500
        fast = [calls.request(f"f{n}", calls.once(sink.url(), due)) for n in range(200)]
        await api.create_many(fast)
        wait_until(lambda: sink.count() == 200, SETTLE_S, "the others")
        assert max(a.arrival_us // 1_000 for a in sink.records()) - due < 1_500
        assert slow.count() == 256
        assert get(node.http_port, "/readyz")[0] == 200, "slow targets are no fault of the node"
        await api.close()
        node.close()


async def test_readyz_says_when_firing_is_behind_and_when_it_caught_up(tmp_path: Path) -> None:
    """More is due than may wait in memory, and nobody answers: what stays in the wheel makes the node unready.

    Each request has a target of its own: what waits for one slow target is kept apart, and delays no other.
    """
    options = ["--dispatch-concurrency", "4", "--dispatch-concurrency-per-target", "4",
               "--dispatch-queue-max", "8"]  # fmt: skip
    with ExitStack() as stack, running_node(tmp_path, options=options) as node:
        api = calls.Api(node.target)
        requests: list[js.CreateJobRequest] = []
        for number in range(48):
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            job = one_try(f"http://127.0.0.1:{silent.getsockname()[1]}/")
            job.http_target.timeout.CopyFrom(calls.span(1_000))
            requests.append(calls.request(f"h{number}", job))
        await api.create_many(requests)
        assert node.ready(), "it is not behind yet"
        wait_until(lambda: not node.ready(), SETTLE_S, "the node to fall behind")
        status, why = get(node.http_port, "/readyz")
        assert (status, b"firing is" in why) == (503, True)
        assert get(node.http_port, "/healthz")[0] == 200
        await api.get("h0")
        wait_until(node.ready, SETTLE_S, "the node to catch up")
        for number in range(48):
            assert (await ended(api, f"h{number}")).attempts[-1].error == "timeout"
        await api.close()


@pytest.mark.parametrize(
    ("path", "error"),
    [("/close", "reset"), ("/status/500", "status"), ("/hang", "timeout")],
)
async def test_how_it_failed_is_told(node: Node, sink: Sink, path: str, error: str) -> None:
    api = calls.Api(node.target)
    job = one_try(sink.url(path))
    job.http_target.timeout.CopyFrom(calls.span(1_000))
    await api.create("a", job)
    execution = await ended(api, "a")
    assert execution.state == EXECUTION_STATE_FAILED
    assert execution.attempts[-1].error == error
    assert sink.count() == 1, "a re-send that nobody asked for"
    await api.close()


async def test_nobody_listens(node: Node) -> None:
    api = calls.Api(node.target)
    await api.create("a", one_try(f"http://127.0.0.1:{free_port()}/"))
    assert (await ended(api, "a")).attempts[-1].error == "connect"
    await api.close()


async def test_a_certificate_that_nobody_signed(node: Node, tmp_path: Path) -> None:
    api = calls.Api(node.target)
    async with redirecting("/", self_signed(tmp_path)) as port:
        await api.create("a", one_try(f"https://localhost:{port}/"))
        assert (await ended(api, "a")).attempts[-1].error == "tls"
    await api.close()


def self_signed(directory: Path) -> ssl.SSLContext:
    """A listener's context with a certificate of its own making."""
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=directory, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip("openssl makes no certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


# --- where it may not call ---------------------------------------------------------------------


async def test_the_guard_stands_at_the_socket(tmp_path: Path, sink: Sink) -> None:
    """An address is refused when the job is made; what a name stands for is known, and refused, when it fires."""
    name = private_name()
    with running_node(tmp_path, options=["--allow-private-targets", ""]) as node:
        api = calls.Api(node.target)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await api.create("literal", one_try(sink.url()))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await api.create("name", one_try(f"http://{name}:{sink.port}/ok"))
        assert (await ended(api, "name")).attempts[-1].error == "blocked"
        await api.close()
    assert sink.count() == 0


def private_name() -> str:
    """This machine's own name, if it stands for private addresses alone."""
    name = socket.gethostname()
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, 80)}
    except OSError:
        found = set[str]()
    if not found or not all(ip_address(each).is_private for each in found):
        pytest.skip("this machine has no name for a private address")
    return name


async def test_a_redirect_to_the_metadata_service_is_refused(node: Node) -> None:
    api = calls.Api(node.target)
    async with redirecting("http://169.254.169.254/latest") as port:
        job = one_try(f"http://127.0.0.1:{port}/")
        job.http_target.max_redirects = 3
        await api.create("a", job)
        execution = await ended(api, "a")
    assert execution.state == EXECUTION_STATE_FAILED
    assert execution.attempts[-1].error == "blocked"
    await api.close()


class redirecting:  # noqa: N801 - reads as a function
    """A target that sends everyone elsewhere."""

    def __init__(self, location: str, context: ssl.SSLContext | None = None) -> None:
        self.location = location
        self.context = context

    async def __aenter__(self) -> int:
        self.server = await asyncio.start_server(self.talk, "127.0.0.1", 0, ssl=self.context)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 307 Elsewhere\r\nLocation: {self.location}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self.server.close()


# --- the end -----------------------------------------------------------------------------------


async def test_it_ends_in_time_while_a_hundred_requests_hang(tmp_path: Path, sink: Sink) -> None:
    """SIGTERM: exit code 0 soon after the drain time-out; what hung is sent again, with its id, after a start.

    So many may hang at a time even if the start took so long that they are late.
    """
    with running_node(tmp_path, options=["--drain-timeout-ms", f"{DRAIN_MS}"]) as node:
        api = calls.Api(node.target)
        now = calls.now_ms()
        hang = [calls.request(f"h{n}", calls.once(sink.url("/hang"), now)) for n in range(100)]
        await api.create_many(hang)
        wait_until(lambda: sink.count() == 100, SETTLE_S, "hanging requests")
        await api.close()
        start_ms = calls.now_ms()
        assert node.terminate(DRAIN_MS / 1_000 + 8) == 0
        assert calls.now_ms() - start_ms < DRAIN_MS + 5_000
        assert "Traceback" not in node.log.read_text()
        first = {arrival.id for arrival in sink.records()}
        node.start()
        wait_until(lambda: sink.count() == 200, SETTLE_S, "all again")
        assert {arrival.id for arrival in sink.records()} == first
