"""Queries, and how the pages of shards become one."""

import pytest

from tickwheel.server.model import JobRow
from tickwheel.server.query import (
    ExecutionHit,
    ExecutionQuery,
    GroupBy,
    Grouping,
    JobHit,
    JobQuery,
    Key,
    Range,
    behind_row,
    merge_counts,
    merge_executions,
    merge_jobs,
)

ROW = JobRow("acme", "a", bytes(16), b"", b"")


def test_jobs_merge_oldest_first() -> None:
    keys = [[Key(1, 5, 0), Key(3, 6, 0)], [Key(1, 5, 1), Key(2, 1, 1)], []]
    merged = merge_jobs([[JobHit(key, ROW) for key in page] for page in keys], 3)
    assert [hit.key for hit in merged] == [Key(1, 5, 0), Key(1, 5, 1), Key(2, 1, 1)]


def test_executions_merge_newest_first() -> None:
    keys = [[Key(3, 6, 0), Key(1, 5, 0)], [Key(3, 6, 1), Key(2, 1, 1)]]
    merged = merge_executions([[ExecutionHit(key, b"") for key in page] for page in keys], 3)
    assert [hit.key for hit in merged] == [Key(3, 6, 1), Key(3, 6, 0), Key(2, 1, 1)]


def test_counts_add_up() -> None:
    assert merge_counts([{1: 2, 3: 1}, {}, {1: 5}]) == {1: 7, 3: 1}


@pytest.mark.parametrize("shard", [2, 3, 4])
def test_the_next_page_begins_in_each_shard_right_behind_the_last_key(shard: int) -> None:
    after = Key(5, 7, 3)
    behind = [row for row in range(1, 20) if Key(5, row, shard) > after]
    assert behind_row(after, shard) == behind[0]


@pytest.mark.parametrize(
    ("span", "inside"),
    [
        (Range(), True),
        (Range(5), True),
        (Range(6), False),
        (Range(0, 5), False),
        (Range(5, 6), True),
    ],
)
def test_range_is_half_open(span: Range, inside: bool) -> None:
    assert span.holds(5) == inside


@pytest.mark.parametrize("limit", [0, 1001])
def test_limits_are_bounded(limit: int) -> None:
    with pytest.raises(AssertionError):
        JobQuery(limit=limit)
    with pytest.raises(AssertionError):
        ExecutionQuery(limit=limit)


def test_job_needs_its_namespace() -> None:
    with pytest.raises(AssertionError):
        ExecutionQuery(job="a")


def test_grouping_has_what_its_kind_needs() -> None:
    with pytest.raises(AssertionError):
        Grouping(GroupBy.LABEL)
    with pytest.raises(AssertionError):
        Grouping(GroupBy.STATE, bucket_ms=5)
