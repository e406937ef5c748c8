"""Retry: the growth of the backoff, the jitter's bounds, and the limits."""

from random import Random

import pytest

from tickwheel.server.model import Reason, RetryPolicy
from tickwheel.server.retry import (
    PAUSE_MIN_MS,
    RETRY_AFTER_MAX_MS,
    backoff_ms,
    next_attempt_ms,
)

NOW_MS = 1_800_000_000_000


def ask(
    policy: RetryPolicy,
    attempt: int = 1,
    *,
    first_attempt_ms: int = NOW_MS,
    retry_after_ms: int = 0,
    seed: int = 1,
) -> int | Reason:
    return next_attempt_ms(
        policy,
        attempt=attempt,
        first_attempt_ms=first_attempt_ms,
        now_ms=NOW_MS,
        retry_after_ms=retry_after_ms,
        rng=Random(seed),
    )


def test_backoff_is_the_documented_example_of_cloud_scheduler() -> None:
    policy = RetryPolicy(min_backoff_ms=10_000, max_backoff_ms=300_000, max_doublings=3)
    seconds = [backoff_ms(policy, attempt) // 1_000 for attempt in range(1, 9)]
    assert seconds == [10, 20, 40, 80, 160, 240, 300, 300]


def test_no_doublings_grow_linearly() -> None:
    policy = RetryPolicy(min_backoff_ms=1_000, max_backoff_ms=3_500, max_doublings=0)
    assert [backoff_ms(policy, attempt) for attempt in range(1, 6)] == [
        1_000,
        2_000,
        3_000,
        3_500,
        3_500,
    ]


def test_the_default_policy_doubles_up_to_five_minutes() -> None:
    policy = RetryPolicy()
    assert [backoff_ms(policy, attempt) // 1_000 for attempt in (1, 2, 3, 4, 9, 10, 10**9)] == [
        1,
        2,
        4,
        8,
        256,
        300,
        300,
    ]


def test_endless_doublings_stay_bounded() -> None:
    policy = RetryPolicy(min_backoff_ms=1, max_backoff_ms=10**9, max_doublings=10**9)
    assert backoff_ms(policy, 10**9) == 10**9


def test_the_attempt_counts_from_one() -> None:
    with pytest.raises(AssertionError):
        backoff_ms(RetryPolicy(), 0)


def test_jitter_is_full_and_never_below_the_floor() -> None:
    policy = RetryPolicy(min_backoff_ms=1_000, max_attempts=9)
    pauses: list[int] = []
    for seed in range(2_000):
        answer = ask(policy, 2, seed=seed)
        assert not isinstance(answer, Reason)
        pauses.append(answer - NOW_MS)
    assert PAUSE_MIN_MS <= min(pauses) < 150
    assert 1_950 < max(pauses) <= 2_000
    mean_ms = sum(pauses) / len(pauses)
    assert abs(mean_ms - (PAUSE_MIN_MS + 2_000) / 2) < 50


def test_a_tiny_backoff_is_lifted_to_the_floor() -> None:
    policy = RetryPolicy(min_backoff_ms=1, max_backoff_ms=5)
    assert ask(policy) == NOW_MS + PAUSE_MIN_MS


def test_the_same_seed_gives_the_same_time() -> None:
    assert ask(RetryPolicy(), 3, seed=5) == ask(RetryPolicy(), 3, seed=5)


def test_retry_after_is_a_floor_and_not_more() -> None:
    policy = RetryPolicy(min_backoff_ms=1_000, max_backoff_ms=1_000)
    assert ask(policy, retry_after_ms=90_000) == NOW_MS + 90_000
    assert ask(policy, retry_after_ms=1) == ask(policy)


def test_retry_after_is_believed_up_to_one_hour() -> None:
    assert ask(RetryPolicy(), retry_after_ms=10**12) == NOW_MS + RETRY_AFTER_MAX_MS
    assert RETRY_AFTER_MAX_MS == 3_600_000


@pytest.mark.parametrize(("attempt", "ended"), [(1, False), (4, False), (5, True), (6, True)])
def test_attempts_run_out(attempt: int, ended: bool) -> None:
    answer = ask(RetryPolicy(max_attempts=5), attempt)
    assert (answer == Reason.ATTEMPTS_EXHAUSTED) is ended
    assert isinstance(answer, Reason) is ended


def test_one_attempt_means_no_retry() -> None:
    assert ask(RetryPolicy(max_attempts=1)) is Reason.ATTEMPTS_EXHAUSTED


def test_the_duration_counts_from_the_first_start_and_includes_its_last_instant() -> None:
    policy = RetryPolicy(
        max_attempts=99, min_backoff_ms=1, max_backoff_ms=1, max_retry_duration_ms=60_000
    )
    last_ms = NOW_MS + PAUSE_MIN_MS - 60_000
    assert ask(policy, first_attempt_ms=last_ms) == NOW_MS + PAUSE_MIN_MS
    assert ask(policy, first_attempt_ms=last_ms - 1) is Reason.RETRY_DURATION_EXHAUSTED


def test_retry_after_beyond_the_duration_ends_it() -> None:
    policy = RetryPolicy(max_retry_duration_ms=60_000)
    assert ask(policy, retry_after_ms=60_001) is Reason.RETRY_DURATION_EXHAUSTED


def test_attempts_are_named_when_both_limits_are_reached() -> None:
    policy = RetryPolicy(max_attempts=2, max_retry_duration_ms=1)
    assert ask(policy, 2) is Reason.ATTEMPTS_EXHAUSTED
