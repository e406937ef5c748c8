"""Filters: what they mean, and where and why they are refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.server.api.filter import execution_query, job_query
from tickwheel.server.errors import InvalidArgument
from tickwheel.server.model import ExecutionState, JobState
from tickwheel.server.query import ExecutionQuery, JobQuery, Range

BASE = JobQuery("acme", limit=7)
T = 1_774_742_400_000  # 2026-03-29T00:00:00Z
NOTHING = (0,)


def narrowed(text: str) -> JobQuery:
    return job_query(text, BASE)


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_filter_narrows_nothing(text: str) -> None:
    assert narrowed(text) == BASE


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("state = SCHEDULED", (1,)),
        ("state:SCHEDULED", (1,)),
        ('state="SCHEDULED"', (1,)),
        ("state = 'SCHEDULED'", (1,)),
        ("state != SCHEDULED", (2, 3, 4, 5)),
        ("state = COMPLETED OR state = CANCELLED", (3, 4)),
        ("(state = COMPLETED OR state = CANCELLED)", (3, 4)),
        ("((state = COMPLETED) OR (state = CANCELLED))", (3, 4)),
        ("state = PAUSED AND state = SCHEDULED", NOTHING),
        ("state != PAUSED AND state != SCHEDULED", (3, 4, 5)),
    ],
)
def test_states(text: str, states: tuple[int, ...]) -> None:
    query = narrowed(text)
    assert query.states == states
    assert (query.namespace, query.limit) == ("acme", 7)


def test_or_binds_tighter_than_and() -> None:
    query = narrowed("last_outcome = FAILED AND state = PAUSED OR state = DISABLED")
    assert (query.last_outcomes, query.states) == ((5,), (2, 5))


def test_conditions_of_several_fields_hold_together() -> None:
    query = narrowed('(state = PAUSED AND labels.team = a) AND job_id = "nightly-*"')
    assert query.states == (2,)
    assert query.labels == (("team", "a"),)
    assert query.name_prefix == "nightly-"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("labels.team = a", (("team", "a"),)),
        ("labels.team:a", (("team", "a"),)),
        ('labels."team/sub" = "a b"', (("team/sub", "a b"),)),
        ("labels.team/sub.x = a", (("team/sub.x", "a"),)),
        ('labels.q = "say \\"hi\\""', (("q", 'say "hi"'),)),
        ("labels.a = 1 AND labels.b = 2", (("a", "1"), ("b", "2"))),
    ],
)
def test_labels(text: str, labels: tuple[tuple[str, str], ...]) -> None:
    assert narrowed(text).labels == labels


@pytest.mark.parametrize(
    ("condition", "span"),
    [
        (">= 2026-03-29T00:00:00Z", Range(T)),
        (">= 2026-03-29T00:00:00.0001Z", Range(T + 1)),
        ("> 2026-03-29T00:00:00Z", Range(T + 1)),
        ("> 2026-03-29T00:00:00.0001Z", Range(T + 1)),
        ("< 2026-03-29T00:00:00Z", Range(1, T)),
        ("< 2026-03-29T00:00:00.0001Z", Range(1, T + 1)),
        ("<= 2026-03-29T00:00:00Z", Range(1, T + 1)),
        ("<= '2026-03-29T00:00:00.9999+00:00'", Range(1, T + 1000)),
        ("= 2026-03-29T02:00:00+02:00", Range(T, T + 1)),
    ],
)
def test_times_are_compared_at_the_millisecond(condition: str, span: Range) -> None:
    assert narrowed(f"next_time {condition}").next_time == span
    assert narrowed(f"create_time {condition}").create_time == span
    query = execution_query(f"scheduled_time {condition}", ExecutionQuery("acme"))
    assert query.scheduled == span


def test_two_bounds_make_a_span() -> None:
    query = narrowed("next_time >= 2026-03-29T00:00:00Z AND next_time < 2026-03-29T00:00:01Z")
    assert query.next_time == Range(T, T + 1000)
    assert query.states == ()


@pytest.mark.parametrize(
    "text",
    [
        "next_time < 2026-03-29T00:00:00Z AND next_time > 2026-03-29T00:00:00Z",
        "next_time > 2026-03-29T00:00:00Z AND next_time <= 2026-03-29T00:00:00Z",
        "next_time = 2026-03-29T00:00:00.0001Z",
        "next_time < 1970-01-01T00:00:00Z",
        "create_time < 1970-01-01T00:00:00Z",
    ],
)
def test_a_span_that_holds_nothing_finds_nothing(text: str) -> None:
    assert narrowed(text).states == NOTHING


def test_an_empty_span_of_executions_finds_nothing() -> None:
    query = execution_query("scheduled_time < 1970-01-01T00:00:00Z", ExecutionQuery("acme"))
    assert query.states == NOTHING


def test_executions_by_state() -> None:
    query = execution_query("state = FAILED OR state = UNKNOWN", ExecutionQuery("acme", "nightly"))
    assert query.states == (5, 9)
    assert query.job == "nightly"


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("state", 6, "operator"),
        ("state = ", 9, "value"),
        ("= PAUSED", 1, "a field"),
        ("state = NOWHERE", 1, "SCHEDULED, PAUSED"),
        ("state > PAUSED", 1, "=, != or :"),
        ("state = PAUSED AND", 19, "a field"),
        ("state = PAUSED colour = red", 16, "AND or the end"),
        ("colour = red", 1, "create_time, job_id, labels.<key>, last_outcome, next_time, state"),
        ("state.x = PAUSED", 1, "not filterable"),
        ("labels = a", 1, "labels.<key>"),
        ("labels.a != b", 1, "= or :"),
        ("labels.a = b*", 1, "wildcards"),
        ("labels.a = b OR labels.a = c", 17, "OR is not supported for labels.a"),
        ("labels.a = b OR state = PAUSED", 17, "one field only"),
        ("NOT state = PAUSED", 1, "NOT is not supported"),
        ("-state = PAUSED", 1, "NOT is not supported"),
        ("(state = PAUSED", 16, "opened at 1 is not closed"),
        ("(state = PAUSED AND labels.a = b) OR state = PAUSED", 1, "groups that contain AND"),
        ("(" * 11 + "state = PAUSED" + ")" * 11, 10, "too deeply"),
        (" AND ".join(["state = PAUSED"] * 65), 1217, "more than 64"),
        ("a" * 2049, 2049, "longer than 2048"),
        ("next_time = tomorrow", 1, "RFC 3339"),
        ("next_time = 2026-02-30T00:00:00Z", 1, "day"),
        ("next_time : 2026-03-29T00:00:00Z", 1, "=, <, <=, > or >="),
        ("job_id = nightly", 1, "GetJob"),
        ("job_id > 'a*'", 1, "GetJob"),
        ("job_id = 'a*b'", 1, "GetJob"),
        ("job_id = 'a*' AND job_id = 'b*'", 19, "GetJob"),
    ],
)
def test_a_refusal_says_where_and_why(text: str, at: int, says: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        narrowed(text)
    (violation,) = raised.value.violations
    assert violation.field == "filter"
    assert violation.reason == "FILTER"
    assert violation.description.startswith(f"at character {at}: ")
    assert says in violation.description


def test_a_refusal_names_what_executions_are_filtered_by() -> None:
    with pytest.raises(InvalidArgument, match="these are: scheduled_time, state"):
        execution_query("labels.a = b", ExecutionQuery("acme"))


@given(st.text(max_size=60) | st.lists(st.sampled_from(
    ["state", "=", "PAUSED", "(", ")", "AND", "OR", "NOT", "-", "labels.a", ":", "'", '"', " ", "2026-01-01T00:00:00Z"]
)).map("".join))  # fmt: skip
def test_any_text_is_understood_or_refused(text: str) -> None:
    with suppress(InvalidArgument):
        assert narrowed(text).namespace == "acme"


@given(
    st.sets(st.sampled_from(JobState), min_size=1),
    st.sets(st.sampled_from(ExecutionState), min_size=1),
)
def test_any_sets_of_states_come_through(
    states: set[JobState], outcomes: set[ExecutionState]
) -> None:
    one = " OR ".join(f"state = {state.name}" for state in sorted(states))
    other = " OR ".join(f"last_outcome = {state.name}" for state in sorted(outcomes))
    query = narrowed(f"{one} AND {other}")
    assert set(query.states) == states
    assert set(query.last_outcomes) == outcomes
