"""The command line against a server whose answers the test writes: what it prints, sends, and ends with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from click.testing import CliRunner, Result
from google.protobuf.duration_pb2 import Duration
from tests.unit import client_fakes as fakes

from tickwheel.cli import main, show
from tickwheel.cli.settings import Settings
from tickwheel.v1 import execution_pb2, job_pb2, schedule_pb2
from tickwheel.v1 import job_service_pb2 as pb

C = grpc.StatusCode
URL = "https://example.com/hook"
NIGHTLY = "namespaces/default/jobs/nightly"


class Terminal:
    """The command line, connected to a fake server."""

    def __init__(self, jobs: fakes.FakeJobs, address: str) -> None:
        self.jobs = jobs
        self._env = {"TICKWHEEL_SERVER": address, "TZ": "UTC"}

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(main, arguments, input=stdin, env=self._env)

    def sent(self) -> Any:
        """The last request."""
        return self.jobs.seen[-1][1]


@pytest.fixture
def tickwheel() -> Iterator[Terminal]:
    jobs = fakes.FakeJobs()
    with fakes.serving(jobs) as address:
        yield Terminal(jobs, address)


def test_a_job_is_made(tickwheel: Terminal) -> None:
    result = tickwheel(
        "jobs", "create", "--id", "nightly", "--url", URL, "--in", "90s", "--body", "hello",
        "--header", "x-a: b", "--label", "team=a", "--max-attempts", "3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert NIGHTLY in result.stdout
    assert "2030-03-17 17:46:40 UTC" in result.stdout
    (request,) = tickwheel.jobs.batches[0].requests
    assert request.job_id == "nightly"
    assert request.job.http_target.body == b"hello"
    assert [(h.name, h.value) for h in request.job.http_target.headers] == [("x-a", "b")]
    assert dict(request.job.labels) == {"team": "a"}
    assert request.job.retry_policy.max_attempts == 3
    assert request.job.schedule.once.delay.seconds == 90


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--at", "2027-01-01T00:00:00Z"], "once.scheduled_time.seconds", 1_798_761_600),
        (["--at", "2027-01-01T00:00", "--time-zone", "UTC"], "once.civil_time", "2027-01-01T00:00:00"),
        (["--cron", "@daily", "--time-zone", "Europe/Berlin"], "cron.time_zone", "Europe/Berlin"),
        (["--cron", "0 0 9 * * *", "--seconds"], "cron.dialect", schedule_pb2.CRON_DIALECT_SECONDS_FIRST),
        (["--every", "5m"], "every.period.seconds", 300),
    ],
)  # fmt: skip
def test_schedules(tickwheel: Terminal, flags: list[str], field: str, value: object) -> None:
    assert tickwheel("jobs", "create", "--url", URL, *flags).exit_code == 0
    found: Any = tickwheel.jobs.batches[0].requests[0].job.schedule
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "Missing option '--url'"),
        (["--url", URL], "exactly one of --at, --in, --cron, --every; none was given"),
        (["--url", URL, "--in", "1s", "--cron", "@daily"], "--in and --cron was given"),
        (["--url", URL, "--in", "soon"], "no span of time"),
        (["--url", URL, "--at", "soon"], "no time"),
        (["--url", URL, "--at", "2027-01-01T00:00:00"], "or give --time-zone"),
        (["--url", URL, "--in", "1s", "--header", "x"], "is not name:value"),
        (["--url", URL, "--in", "1s", "--body", "@/no/such"], "No such file"),
        (["--url", URL, "--in", "1s", "--start", "2027-01-01T00:00:00"], "has no offset"),
        (["--url", URL, "--every", "5m", "--time-zone", "UTC"], "does not go with every"),
    ],
)
def test_wrong_usage_ends_with_two_and_says_what_to_do(
    tickwheel: Terminal, flags: list[str], words: str
) -> None:
    result = tickwheel("jobs", "create", *flags)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not tickwheel.jobs.batches


def test_a_body_from_a_file_and_from_standard_input(tickwheel: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"\x00file")
    tickwheel("jobs", "create", "--url", URL, "--in", "1s", "--body", f"@{path}")
    tickwheel("jobs", "create", "--url", URL, "--in", "1s", "--body", "-", stdin=b"\xffpipe")
    bodies = [batch.requests[0].job.http_target.body for batch in tickwheel.jobs.batches]
    assert bodies == [b"\x00file", b"\xffpipe"]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (C.INVALID_ARGUMENT, 2),
        (C.NOT_FOUND, 3),
        (C.ALREADY_EXISTS, 4),
        (C.ABORTED, 4),
        (C.FAILED_PRECONDITION, 4),
        (C.RESOURCE_EXHAUSTED, 5),
        (C.DEADLINE_EXCEEDED, 5),
        (C.UNAUTHENTICATED, 6),
        (C.PERMISSION_DENIED, 6),
        (C.UNIMPLEMENTED, 1),
        (C.INTERNAL, 1),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(
    tickwheel: Terminal, code: C, exit_code: int
) -> None:
    tickwheel.jobs.answers["GetJob"] = fakes.failing(fakes.status(code, "the reason"))
    result = tickwheel("jobs", "get", "nightly")
    assert result.exit_code == exit_code
    assert result.stderr.startswith("tickwheel: the reason")
    assert result.stdout == ""


def test_nobody_there_is_five_with_a_remedy() -> None:
    result = CliRunner().invoke(main, ["-s", "127.0.0.1:1", "--timeout", "0.2", "jobs", "get", "x"])
    assert result.exit_code == 5
    assert "127.0.0.1:1" in result.stderr
    assert "tickwheel serve" in result.stderr


def test_a_refusal_names_the_field_and_its_option(tickwheel: Terminal) -> None:
    tickwheel.jobs.errors[""] = [
        fakes.status(
            C.INVALID_ARGUMENT,
            "wrong",
            violations={
                "job.schedule.cron.expression": "minute 61",
                "job.jitter": "too long",
                "job.worker_target": "later",
            },
        )
    ]
    result = tickwheel("jobs", "create", "--url", URL, "--cron", "61 * * * *")
    assert result.exit_code == 2
    assert "--cron (job.schedule.cron.expression): minute 61" in result.stderr
    assert "--jitter (job.jitter): too long" in result.stderr
    assert "\njob.worker_target: later" in result.stderr


def test_the_wait_that_the_server_asks_for_is_told(tickwheel: Terminal) -> None:
    full = fakes.status(C.RESOURCE_EXHAUSTED, "full", retry_ms=60_000)
    tickwheel.jobs.answers["GetJob"] = fakes.failing(full)
    assert "try again in 60 s" in tickwheel("jobs", "get", "nightly").stderr


def test_a_job_for_people(tickwheel: Terminal) -> None:
    tickwheel.jobs.answers["GetJob"] = fakes.answering(fakes.job())
    lines = tickwheel("jobs", "get", "nightly").stdout.splitlines()
    assert f"name        {NIGHTLY}" in lines
    assert "schedule    cron 0 9 * * 1-5 (Europe/Berlin)" in lines
    assert "next        2030-03-17 17:46:40 UTC" in lines


def test_times_are_shown_in_the_zone_that_is_asked_for(tickwheel: Terminal) -> None:
    tickwheel.jobs.answers["GetJob"] = fakes.answering(fakes.job())
    result = tickwheel("jobs", "get", "nightly", "--show-zone", "Asia/Tokyo")
    assert "2030-03-18 02:46:40 JST" in result.stdout
    wrong = tickwheel("jobs", "get", "nightly", "--show-zone", "Mars/X")
    assert wrong.exit_code == 2
    assert "Europe/Berlin" in wrong.stderr


@pytest.mark.parametrize("output", ["json", "ndjson", "yaml"])
def test_a_job_for_programs(tickwheel: Terminal, output: str) -> None:
    tickwheel.jobs.answers["GetJob"] = fakes.answering(fakes.job())
    result = tickwheel("jobs", "get", "nightly", "-o", output)
    read = yaml.safe_load if output == "yaml" else json.loads
    assert read(result.stdout)["schedule"]["cron"]["timeZone"] == "Europe/Berlin"


def some_jobs(count: int) -> pb.ListJobsResponse:
    return pb.ListJobsResponse(
        jobs=[fakes.job(f"namespaces/default/jobs/j{i}") for i in range(count)]
    )


def test_a_list_is_columns(tickwheel: Terminal) -> None:
    tickwheel.jobs.answers["ListJobs"] = fakes.answering(some_jobs(2))
    lines = tickwheel("jobs", "list", "--filter", "state = PAUSED").stdout.splitlines()
    assert lines[0].split() == ["JOB", "STATE", "NEXT", "LAST", "SCHEDULE", "TARGET"]
    assert [line.split()[0] for line in lines[1:]] == ["j0", "j1"]
    assert lines[1].endswith(f"POST {URL}")
    assert tickwheel.sent().filter == "state = PAUSED"


def test_a_long_list_says_that_there_is_more(tickwheel: Terminal) -> None:
    tickwheel.jobs.answers["ListJobs"] = fakes.answering(some_jobs(5))
    result = tickwheel("jobs", "list", "--limit", "3")
    assert len(result.stdout.splitlines()) == 1 + 3
    assert "first 3" in result.stderr
    everything = tickwheel("jobs", "list", "--limit", "0")
    assert len(everything.stdout.splitlines()) == 1 + 5
    assert everything.stderr == ""


def test_a_list_for_programs(tickwheel: Terminal) -> None:
    tickwheel.jobs.answers["ListJobs"] = fakes.answering(some_jobs(2))
    names = [f"namespaces/default/jobs/j{i}" for i in range(2)]
    array = json.loads(tickwheel("jobs", "list", "-o", "json").stdout)
    lines = tickwheel("-o", "ndjson", "jobs", "list").stdout.splitlines()
    documents = yaml.safe_load_all(tickwheel("jobs", "list", "-o", "yaml").stdout)
    for items in (array, map(json.loads, lines), documents):
        assert [item["name"] for item in items] == names


def test_on_a_terminal_a_list_is_drawn(
    tickwheel: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "_stdout_is_terminal", lambda: True)
    tickwheel.jobs.answers["ListJobs"] = fakes.answering(some_jobs(2))
    lines = tickwheel("jobs", "list").stdout.splitlines()
    assert "JOB" in lines[1]
    assert "──" in lines[2]
    assert "j1" in "".join(lines[3:])


@pytest.mark.parametrize(
    ("seconds", "nanos", "words"),
    [
        (0, 0, "0s"),
        (90, 0, "1m30s"),
        (3_600, 0, "1h"),
        (2 * 86_400 + 5, 0, "2d5s"),
        (0, 250_000_000, "0.25s"),
        (10, 0, "10s"),
        (61, 500_000_000, "1m1.5s"),
    ],
)
def test_spans_read_as_they_are_typed(seconds: int, nanos: int, words: str) -> None:
    assert show.span_words(Duration(seconds=seconds, nanos=nanos)) == words


def test_every_schedule_and_target_has_words() -> None:
    settings = Settings(zone="UTC")
    job = job_pb2.Job()
    assert show.schedule_words(settings, job.schedule) == ""
    job.schedule.every.period.seconds = 300
    assert show.schedule_words(settings, job.schedule) == "every 5m"
    job.schedule.once.delay.seconds = 90
    assert show.schedule_words(settings, job.schedule) == "once in 1m30s"
    job.schedule.once.civil_time = "2027-01-01T09:00:00"
    job.schedule.once.time_zone = "Europe/Berlin"
    assert show.schedule_words(settings, job.schedule) == "once 2027-01-01T09:00:00 (Europe/Berlin)"
    job.schedule.once.scheduled_time.seconds = fakes.NEXT_S
    assert show.schedule_words(settings, job.schedule) == "once 2030-03-17 17:46:40 UTC"
    job.worker_target.task_type = "mail"
    assert show.target_words(job) == "worker mail"


def test_an_empty_list_is_still_a_list(tickwheel: Terminal) -> None:
    tickwheel.jobs.answers["ListJobs"] = fakes.answering(pb.ListJobsResponse())
    assert json.loads(tickwheel("jobs", "list", "-o", "json").stdout) == []
    people = tickwheel("jobs", "list")
    assert (people.stdout, people.stderr) == ("", "nothing found\n")


def test_counts(tickwheel: Terminal) -> None:
    answer = pb.CountJobsResponse(total_count=7)
    answer.counts.add(state=job_pb2.JOB_STATE_PAUSED, count=7)
    tickwheel.jobs.answers["CountJobs"] = fakes.answering(answer)
    assert tickwheel("jobs", "count", "--by", "state").stdout == "PAUSED  7\ntotal   7\n"
    assert tickwheel.sent().group_by == pb.COUNT_GROUPING_STATE
    tickwheel("jobs", "count", "--by", "label:team")
    assert (tickwheel.sent().group_by, tickwheel.sent().label_key) == (
        pb.COUNT_GROUPING_LABEL,
        "team",
    )
    found = json.loads(tickwheel("jobs", "count", "-o", "json").stdout)
    assert (found["total"], found["groups"]) == (7, {"PAUSED": 7})


@pytest.mark.parametrize("by", ["size", "label", "state:x"])
def test_an_unknown_grouping_is_refused(tickwheel: Terminal, by: str) -> None:
    assert tickwheel("jobs", "count", "--by", by).exit_code == 2


def test_an_update_sends_what_is_given(tickwheel: Terminal) -> None:
    tickwheel.jobs.answers["UpdateJob"] = fakes.answering(
        pb.UpdateJobResponse(
            job=fakes.job(), cancellation=pb.CANCELLATION_ALREADY_DISPATCHED, attempt=2
        )
    )
    result = tickwheel("jobs", "update", "nightly", "--cron", "@daily", "--label", "a=b")
    assert "ALREADY_DISPATCHED (attempt 2)" in result.stdout
    assert list(tickwheel.sent().update_mask.paths) == [
        "labels",
        "schedule.cron.dialect",
        "schedule.cron.expression",
    ]
    assert tickwheel("jobs", "update", "nightly").exit_code == 2


def test_a_cancel_tells_what_became_of_the_race(tickwheel: Terminal) -> None:
    ended = pb.CancelJobResponse(
        job=fakes.job(), cancellation=pb.CANCELLATION_CANCELLED_BEFORE_DISPATCH
    )
    tickwheel.jobs.answers["CancelJob"] = fakes.answering(ended)
    assert "CANCELLED_BEFORE_DISPATCH" in tickwheel("jobs", "cancel", "nightly").stdout
    found = json.loads(tickwheel("jobs", "cancel", "nightly", "-o", "json").stdout)
    assert (found["outcome"], found["job"]["name"]) == ("CANCELLED_BEFORE_DISPATCH", NIGHTLY)


def test_pause_resume_delete(tickwheel: Terminal) -> None:
    for method in ("PauseJob", "ResumeJob"):
        tickwheel.jobs.answers[method] = fakes.answering(fakes.job())
    tickwheel.jobs.answers["DeleteJob"] = fakes.answering(fakes.EMPTY)
    assert tickwheel("jobs", "pause", "nightly", "--etag", '"1"').exit_code == 0
    assert tickwheel.sent().etag == '"1"'
    assert tickwheel("jobs", "resume", "nightly").exit_code == 0
    result = tickwheel("jobs", "delete", "a", "b", "--missing-ok")
    assert result.stdout == "deleted a\ndeleted b\n"


def execution() -> execution_pb2.Execution:
    found = execution_pb2.Execution(
        name=f"{NIGHTLY}/executions/u:5",
        state=execution_pb2.EXECUTION_STATE_FAILED,
        reason=execution_pb2.REASON_ATTEMPTS_EXHAUSTED,
        attempt_count=2,
    )
    found.scheduled_time.seconds = fakes.NEXT_S
    found.attempts.add(number=2, http_status=500, error="status", response_body=b"oops")
    return found


def test_executions(tickwheel: Terminal) -> None:
    for method in ("GetExecution", "RetryExecution", "RunJob"):
        tickwheel.jobs.answers[method] = fakes.answering(execution())
    skipped = execution_pb2.Execution(state=execution_pb2.EXECUTION_STATE_SKIPPED)
    skipped.skip_run.count = 4
    answer = pb.ListExecutionsResponse(executions=[execution(), skipped])
    tickwheel.jobs.answers["ListExecutions"] = fakes.answering(answer)
    lines = tickwheel("executions", "list", "nightly").stdout.splitlines()
    assert lines[1].split()[:3] == ["u:5", "nightly", "FAILED"]
    assert lines[1].endswith("ATTEMPTS_EXHAUSTED 500 status")
    assert "SKIPPED x4" in lines[2]
    shown = tickwheel("executions", "get", "u:5", "--job", "nightly").stdout
    assert "attempt 2" in shown
    assert "oops" in shown
    assert tickwheel("executions", "retry", f"{NIGHTLY}/executions/u:5").exit_code == 0
    assert tickwheel.sent().request_id
    assert tickwheel("jobs", "run", "nightly").exit_code == 0
    assert tickwheel("executions", "get", "u:5").exit_code == 2


def test_a_preview_explains_daylight_saving(tickwheel: Terminal) -> None:
    answer = pb.PreviewScheduleResponse(tzdata_version="2026a")
    answer.occurrences.add(
        local_time="2027-03-28T03:00:00", utc_offset="+02:00", dst_note=pb.DST_NOTE_MOVED_AFTER_GAP
    ).scheduled_time.seconds = 1_806_195_600
    answer.dropped.add(local_time="2027-03-29T02:30:00", reason=pb.DROP_REASON_EXCLUDED)
    tickwheel.jobs.answers["PreviewSchedule"] = fakes.answering(answer)
    result = tickwheel("preview", "--cron", "30 2 * * *", "--time-zone", "Europe/Berlin")
    assert "+02:00" in result.stdout
    assert "clocks go forward" in result.stdout
    assert "excluded" in result.stdout
    assert "2026a" in result.stderr
    found = json.loads(tickwheel("preview", "nightly", "-o", "json").stdout)
    assert found["occurrences"][0]["dstNote"] == "MOVED_AFTER_GAP"
    assert found["occurrences"][0]["scheduledTime"] == "2027-03-28T01:00:00Z"
    assert tickwheel("preview").exit_code == 2


def test_a_preview_keeps_the_order_of_an_hour_that_comes_twice(tickwheel: Terminal) -> None:
    answer = pb.PreviewScheduleResponse()
    for local, offset in (("02:10", "+02:00"), ("02:50", "+02:00"), ("02:10", "+01:00")):
        answer.occurrences.add(local_time=f"2027-10-31T{local}:00", utc_offset=offset)
    answer.dropped.add(local_time="2027-10-31T02:30:00", reason=pb.DROP_REASON_EXCLUDED)
    tickwheel.jobs.answers["PreviewSchedule"] = fakes.answering(answer)
    lines = tickwheel("preview", "nightly").stdout.splitlines()[1:]
    assert [line.split()[0][11:16] for line in lines] == ["02:10", "02:30", "02:50", "02:10"]
    assert [line.split()[1] for line in lines] == ["+02:00", "-", "+02:00", "+01:00"]


def test_validation_only(tickwheel: Terminal) -> None:
    criteria = [pb.Criterion(field="schedule", reason="R", met=False, description="is wrong")]
    tickwheel.jobs.answers["ValidateJob"] = fakes.answering(
        pb.ValidateJobResponse(valid=False, criteria=criteria)
    )
    result = tickwheel("jobs", "create", "--url", URL, "--in", "1s", "--validate-only")
    assert result.exit_code == 2
    assert "WRONG  schedule: is wrong" in result.stdout
    assert not tickwheel.jobs.batches


def test_flags_after_the_command_beat_those_before_it_and_the_environment(
    tickwheel: Terminal,
) -> None:
    tickwheel.jobs.answers["GetJob"] = fakes.answering(fakes.job())
    tickwheel("-n", "first", "jobs", "get", "nightly", "-n", "second")
    assert tickwheel.sent().name == "namespaces/second/jobs/nightly"
    tickwheel("-n", "first", "jobs", "get", "nightly")
    assert tickwheel.sent().name == "namespaces/first/jobs/nightly"
