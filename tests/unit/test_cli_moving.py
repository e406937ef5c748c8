"""`tickwheel import` and `export` at their edges; what they are for is tested on real servers (tests/e2e)."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.unit import client_fakes as fakes

from tickwheel.cli import main, moving

JOB = {"httpTarget": {"url": "https://example.com"}, "schedule": {"once": {"delay": "60s"}}}


def line(number: int, namespace: str) -> str:
    name = f"namespaces/{namespace}/jobs/j{number}"
    return json.dumps({"jobId": f"j{number}", "moved": True, "job": {"name": name, **JOB}})


def test_each_line_goes_to_its_namespace(tmp_path: Path) -> None:
    """More namespaces than connections that are kept open."""
    path = tmp_path / "jobs"
    names = [f"n{number % (moving.CLIENTS_MAX + 3)}" for number in range(60)]
    lines = [line(number, name) for number, name in enumerate(names)]
    lines.append(json.dumps({"jobId": "bare", "job": JOB}))
    path.write_text("\n".join(lines))
    jobs = fakes.FakeJobs()
    with fakes.serving(jobs) as address:
        result = CliRunner().invoke(main, ["-s", address, "import", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout == "imported 61, failed 0\n"
    found = {request.job_id: batch.parent for batch in jobs.batches for request in batch.requests}
    assert found.pop("bare") == "namespaces/default"
    assert found == {f"j{number}": f"namespaces/{name}" for number, name in enumerate(names)}
    requests = [request for batch in jobs.batches for request in batch.requests]
    assert all(request.moved == (request.job_id != "bare") for request in requests)


def test_lines_before_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    path.write_text("\n".join(["nonsense", "", line(3, "a"), line(4, "a")]))
    jobs = fakes.FakeJobs()
    with fakes.serving(jobs) as address:
        result = CliRunner().invoke(main, ["-s", address, "import", str(path), "--from-line", "4"])
    assert result.stdout == "imported 1, failed 0\n"
    assert [request.job_id for batch in jobs.batches for request in batch.requests] == ["j4"]


def question(server: str = "a") -> dict[str, str]:
    return {"server": server, "filter": "", "namespace": "default"}


def write_pages(path: Path, asked: dict[str, str], *, pages: int) -> tuple[str, int]:
    """Where it began: after which token, and how many jobs."""
    with moving._output(str(path), asked) as out:
        began = out.token, out.jobs
        for page in range(pages):
            out.add([b"%d\n" % page], f"token-{page}")
        if pages < 3:
            raise KeyboardInterrupt
        out.add([], "")
    return began


def test_only_the_same_question_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_pages(path, question(), pages=2)
    assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        write_pages(path, question("b"), pages=1)
    assert write_pages(path, question("b"), pages=3) == ("token-0", 1)
    assert path.read_bytes() == b"0\n0\n1\n2\n"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["out"]


def test_a_state_that_says_too_much_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_pages(path, question(), pages=2)
    (tmp_path / "out.partial").write_bytes(b"0")  # a power cut took the rest
    assert write_pages(path, question(), pages=3) == ("", 0)
    assert path.read_bytes() == b"0\n1\n2\n"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    jobs = fakes.FakeJobs()
    with fakes.serving(jobs) as address:
        arguments = ["-s", address, "export", str(tmp_path / "none" / "out")]
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "No such file" in result.stderr
