"""`tickwheel jobs create --from`: one job of each line, failed lines named, none made twice."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from tests.unit import client_fakes as fakes

from tickwheel.cli import bulk, main

JOB = {"httpTarget": {"url": "https://example.com"}, "schedule": {"once": {"delay": "60s"}}}


@pytest.fixture
def jobs() -> fakes.FakeJobs:
    return fakes.FakeJobs()


@pytest.fixture
def address(jobs: fakes.FakeJobs) -> Iterator[str]:
    with fakes.serving(jobs) as found:
        yield found


def load(address: str, path: Path | str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(
        main, ["-s", address, "jobs", "create", "--from", str(path)], input=stdin
    )


def write(path: Path, *lines: object) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text)
    return path


def test_each_line_is_a_job(jobs: fakes.FakeJobs, address: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "jobs",
        JOB,
        "",
        {"name": "namespaces/elsewhere/jobs/b", **JOB},
        {"jobId": "c", "job": JOB, "parent": "namespaces/elsewhere"},
    )
    result = load(address, path)
    assert result.exit_code == 0, result.output
    assert result.stdout == "made 3, failed 0\n"
    found = [request for batch in jobs.batches for request in batch.requests]
    requests = sorted(found, key=lambda request: request.job_id)  # calls arrive in any order
    assert [request.job_id for request in requests] == ["", "b", "c"]
    assert {request.parent for request in requests} == {""}
    assert requests[0].job.schedule.once.delay.seconds == 60


def test_failed_lines_are_named_with_their_reason(
    jobs: fakes.FakeJobs, address: str, tmp_path: Path
) -> None:
    jobs.errors["taken"] = [fakes.status(grpc.StatusCode.ALREADY_EXISTS, "is taken")]
    path = write(
        tmp_path / "jobs",
        {"jobId": "a", "job": JOB},
        "nonsense",
        "[1]",
        {"bad": 1},
        {"jobId": "taken", "job": JOB},
        {"jobId": "z", "job": JOB},
    )
    result = load(address, path)
    assert result.exit_code == 1
    assert result.stdout == "made 2, failed 4\n"
    faults = dict(line.split(": ", 1) for line in result.stderr.splitlines())
    assert faults["line 2"].startswith("no JSON")
    assert faults["line 3"] == "no JSON object"
    assert '"bad"' in faults["line 4"]
    assert faults["line 5"] == "is taken"


def test_running_it_again_sends_the_same_request_ids(
    jobs: fakes.FakeJobs, address: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "jobs", JOB, JOB)
    first = ids_of(jobs, load(address, path))
    assert len(first) == 2
    assert ids_of(jobs, load(address, "-", stdin=path.read_bytes())) == first
    write(path, JOB, JOB, JOB)  # another file: other ids
    assert first.isdisjoint(ids_of(jobs, load(address, path)))


def ids_of(jobs: fakes.FakeJobs, result: Result) -> set[str]:
    """The request_ids that arrived since the last look."""
    assert result.exit_code == 0
    ids = {request.request_id for batch in jobs.batches for request in batch.requests}
    jobs.batches.clear()
    return ids


def test_very_many_faults_are_counted_not_shown(
    jobs: fakes.FakeJobs, address: str, tmp_path: Path
) -> None:
    result = load(address, write(tmp_path / "jobs", *["nonsense"] * 150))
    assert result.stdout == "made 0, failed 150\n"
    assert len(result.stderr.splitlines()) == 101
    assert not jobs.batches


def test_a_file_says_everything_itself(address: str, tmp_path: Path) -> None:
    path = write(tmp_path / "jobs", JOB)
    arguments = ["-s", address, "jobs", "create", "--from", str(path), "--in", "1s"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "give it alone" in result.stderr


def test_progress_is_told_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with bulk.shown_progress("made") as told:
        for made in range(1, 20_001):
            told(made, 0)
    assert capsys.readouterr().err == "10,000 made, 0 failed\n20,000 made, 0 failed\n"


def test_on_a_terminal_progress_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with bulk.shown_progress("made") as told:
        told(1_234, 5)
    assert "1,234 made, 5 failed" in terminal.getvalue()


def test_a_server_that_is_gone_ends_with_five(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs", JOB)
    arguments = ["-s", "127.0.0.1:1", "--timeout", "0.3", "jobs", "create", "--from", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 5
    assert "run the same command again" in result.stderr
