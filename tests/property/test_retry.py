"""Retry: what holds for every policy and every attempt."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tickwheel.server.model import Reason, RetryPolicy
from tickwheel.server.retry import PAUSE_MIN_MS, RETRY_AFTER_MAX_MS, backoff_ms, next_attempt_ms

policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 100),
    max_retry_duration_ms=st.integers(0, 10**8),
    min_backoff_ms=st.integers(1, 10**6),
    max_backoff_ms=st.integers(10**6, 10**9),
    max_doublings=st.integers(0, 100),
)


@given(policy=policies, attempt=st.integers(1, 10_000))
def test_backoff_never_shrinks_and_keeps_its_bounds(policy: RetryPolicy, attempt: int) -> None:
    now, then = backoff_ms(policy, attempt), backoff_ms(policy, attempt + 1)
    assert policy.min_backoff_ms <= now <= then <= policy.max_backoff_ms


@given(
    policy=policies,
    attempt=st.integers(1, 120),
    ago_ms=st.integers(0, 10**8),
    retry_after_ms=st.integers(0, 10**9),
    seed=st.integers(0, 2**32),
)
def test_the_answer_is_a_time_within_bounds_or_the_limit_that_ended_it(
    policy: RetryPolicy, attempt: int, ago_ms: int, retry_after_ms: int, seed: int
) -> None:
    now_ms = 1_800_000_000_000
    end_ms = now_ms - ago_ms + policy.max_retry_duration_ms
    answer = next_attempt_ms(
        policy,
        attempt=attempt,
        first_attempt_ms=now_ms - ago_ms,
        now_ms=now_ms,
        retry_after_ms=retry_after_ms,
        rng=Random(seed),
    )
    floor_ms = max(PAUSE_MIN_MS, min(retry_after_ms, RETRY_AFTER_MAX_MS))
    longest_ms = max(backoff_ms(policy, attempt), floor_ms)
    if answer is Reason.ATTEMPTS_EXHAUSTED:
        assert attempt >= policy.max_attempts
    elif answer is Reason.RETRY_DURATION_EXHAUSTED:
        assert policy.max_retry_duration_ms
        assert now_ms + longest_ms > end_ms
    else:
        assert now_ms + floor_ms <= answer <= now_ms + longest_ms
        assert not policy.max_retry_duration_ms or answer <= end_ms
