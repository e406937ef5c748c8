"""`tickwheel executions watch`: what it prints as it comes, and how it ends."""

import json
from typing import Any

import grpc
import pytest
import yaml
from tests.unit import client_fakes as fakes
from tests.unit.test_cli_jobs import Terminal, tickwheel
from tests.unit.test_client_watch import pulse, refusal, script

from tickwheel.cli import show
from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1.execution_pb2 import EXECUTION_STATE_FAILED, EXECUTION_STATE_SUCCEEDED

__all__ = ["tickwheel"]
JOB = "namespaces/default/jobs"
EXPIRED = refusal(
    fakes.status(grpc.StatusCode.ABORTED, "list, then watch anew", reason="RESUME_TOKEN_EXPIRED")
)


def change(number: int, job: str, state: Any) -> pb.WatchExecutionsResponse:
    message = pb.WatchExecutionsResponse(resume_token=f"t{number}")
    message.execution.name = f"{JOB}/{job}/executions/u:{number}"
    message.execution.state = state
    return message


def scripted(terminal: Terminal) -> None:
    messages = [
        pulse(0),
        change(1, "nightly", EXECUTION_STATE_SUCCEEDED),
        change(2, "a-much-longer-name", EXECUTION_STATE_FAILED),
    ]
    terminal.jobs.watch = script((messages, EXPIRED))


def test_columns_come_line_by_line(tickwheel: Terminal) -> None:
    scripted(tickwheel)
    result = tickwheel("executions", "watch", "--filter", "state = FAILED", "--token", "t")
    assert result.exit_code != 0
    assert "list, then watch anew" in result.stderr
    head, first, second = result.stdout.splitlines()
    assert head.split() == ["EXECUTION", "JOB", "STATE", "SCHEDULED", "ATTEMPTS", "RESULT"]
    assert first.split()[:3] == ["u:1", "nightly", "SUCCEEDED"]
    assert second.split()[:3] == ["u:2", "a-much-longer-name", "FAILED"]
    request = tickwheel.sent()
    assert (request.parent, request.filter, request.resume_token) == (
        f"{JOB}/-",
        "state = FAILED",
        "t",
    )


def test_programs_get_one_object_a_line(tickwheel: Terminal) -> None:
    scripted(tickwheel)
    result = tickwheel("executions", "watch", "nightly", "-o", "json")
    found = [json.loads(line)["state"] for line in result.stdout.splitlines()]
    assert found == ["EXECUTION_STATE_SUCCEEDED", "EXECUTION_STATE_FAILED"]
    assert tickwheel.sent().parent == f"{JOB}/nightly"


def test_yaml_documents_and_tokens(tickwheel: Terminal) -> None:
    scripted(tickwheel)
    result = tickwheel("executions", "watch", "-o", "yaml", "--tokens")
    assert [item["state"][16:] for item in yaml.safe_load_all(result.stdout)] == [
        "SUCCEEDED",
        "FAILED",
    ]
    assert result.stderr.splitlines()[:3] == ["t0", "t1", "t2"]


def test_ctrl_c_is_how_it_ends(tickwheel: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(tickwheel)

    def interrupted(_printed: show.Printed, _row: Any, _item: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(show.Printed, "put", interrupted)
    assert tickwheel("executions", "watch").exit_code == 0
