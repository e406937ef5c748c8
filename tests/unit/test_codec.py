"""Codec: what goes in comes out; the columns are the same fields; the layout that is on disks stands."""

import pytest

from tickwheel.server import codec
from tickwheel.server.model import (
    Attempt,
    Effects,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    Reason,
    SkipRun,
    Status,
)

PLAIN = Status(JobState.SCHEDULED, 1, 1_000, 2_000)
FULL = Status(
    state=JobState.PAUSED,
    generation=7,
    create_ms=1_000,
    update_ms=2_000,
    next_ms=3_000,
    due_ms=4_000,
    last_ms=2_500,
    last_outcome=int(ExecutionState.FAILED),
    run=9,
    succeeded=4,
    failed=3,
    skipped=2,
    buffered_ms=2_900,
    origin=bytes(range(16)),
    skip=SkipRun(88, 1_500, 1_400, 1_900, 6, Reason.OVERLAP),
    live=(5, 6),
    requests=((b"a" * 16, 5), (b"b" * 16, 6)),
)
EXECUTION = Execution(
    job_row=3,
    uid=b"u" * 16,
    namespace="acme",
    job="report",
    kind=ExecutionKind.MANUAL,
    scheduled_ms=10,
    request_id="r1",
    state=ExecutionState.RETRYING,
    create_ms=11,
    due_ms=12,
    end_ms=13,
    attempt=2,
    base=1,
    first_attempt_ms=14,
    reason=Reason.EXPIRED,
    last_ms=15,
    length=4,
    attempts=(
        Attempt(1, 2, 3, 4, 5, 503, "", b"busy"),
        Attempt(2, 2, 3, 6, 7, 0, "TIMEOUT", b""),
    ),
)


@pytest.mark.parametrize(
    "status",
    [
        PLAIN,
        FULL,
        FULL._replace(skip=None),
        FULL._replace(live=()),
        FULL._replace(requests=()),
        PLAIN._replace(skip=FULL.skip),
        PLAIN._replace(live=(1 << 63,)),
    ],
)
def test_a_status_comes_back(status: Status) -> None:
    assert codec.decode_status(codec.encode_status(status)) == status


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_comes_back(state: JobState) -> None:
    decoded = codec.decode_status(codec.encode_status(PLAIN._replace(state=state)))
    assert decoded.state is state


def test_the_columns_of_a_status_are_its_fields() -> None:
    data = codec.encode_status(FULL)
    assert codec.status_columns(data) == (JobState.PAUSED, 5, 7, 3_000, 4_000, 1_000, 2_000)
    assert codec.status_due_ms(data) == 4_000


def test_a_plain_status_is_small_and_its_layout_stands() -> None:
    data = codec.encode_status(PLAIN)
    assert len(data) == 96
    assert data.hex() == (
        "01010000" "01000000" + "00000000" * 4 + "00" * 16
        + "e803000000000000" "d007000000000000" + "00" * 16 + "00" * 16 + "00000000" + "0000" "0000"
    )  # fmt: skip


def test_a_status_of_another_version_is_refused() -> None:
    data = bytes([codec.VERSION + 1]) + codec.encode_status(PLAIN)[1:]
    with pytest.raises(AssertionError, match="newer node"):
        codec.decode_status(data)


def test_labels_come_back_in_order_and_each_pair_can_be_searched() -> None:
    labels = {"team": "a=b", "env": "", "app": "x"}
    text = codec.encode_labels(labels)
    assert text == "\x1fapp=x\x1fenv=\x1fteam=a=b\x1f"
    assert codec.decode_labels(text) == labels
    assert codec.encode_labels({}) == ""
    assert codec.decode_labels("") == {}


def test_an_execution_comes_back() -> None:
    assert codec.decode_execution(codec.encode_execution(EXECUTION)) == EXECUTION


@pytest.mark.parametrize("kind", list(ExecutionKind))
@pytest.mark.parametrize("state", [ExecutionState.PENDING, ExecutionState.UNKNOWN])
@pytest.mark.parametrize("reason", [Reason.NONE, Reason.LIVE_LIMIT])
def test_enums_of_an_execution_come_back(
    kind: ExecutionKind, state: ExecutionState, reason: Reason
) -> None:
    execution = EXECUTION._replace(kind=kind, state=state, reason=reason)
    assert codec.decode_execution(codec.encode_execution(execution)) == execution


def test_the_columns_of_an_execution_are_its_fields() -> None:
    data = codec.encode_execution(EXECUTION)
    assert codec.execution_columns(data) == (
        3, ExecutionState.RETRYING, 11, 10, 12, 2, "acme", "report",
    )  # fmt: skip
    assert codec.execution_due(data) == (12, 2)


def test_ids_come_from_the_schedule_or_from_the_request() -> None:
    uid = (b"u" * 16).hex()
    assert EXECUTION.id == f"{uid}:r:r1"
    assert EXECUTION._replace(kind=ExecutionKind.OCCURRENCE).id == f"{uid}:10"


def test_effects_come_back() -> None:
    status, data = codec.encode_status(FULL), codec.encode_execution(EXECUTION)
    effects = Effects(
        time_ms=5,
        next_row=9,
        jobs=[(1, JobRow("acme", "report", b"u" * 16, b"spec", status, "\x1fa=b\x1f"))],
        statuses=[(2, status), (3, status)],
        drops=[(4, "acme", "gone")],
        live=[(5, data)],
        ended=[(6, data), (7, data)],
    )
    assert codec.decode_effects(codec.encode_effects(effects)) == effects


def test_empty_effects_come_back() -> None:
    effects = Effects(5, 9, [], [], [], [], [])
    assert codec.decode_effects(codec.encode_effects(effects)) == effects
