"""Floor 1. When an execution is tried again, or why it is not.

The pause before attempt k + 1 is drawn from [100 ms, backoff(k)], evenly: full jitter, the variant that makes the fewest
collisions (AWS Architecture Blog, "Exponential Backoff And Jitter"), with a floor so that no pause is nothing.

backoff(k) follows Cloud Scheduler's RetryConfig: it begins at `min_backoff`, doubles `max_doublings` times, then grows
by the last doubled value each time, and never exceeds `max_backoff`. Its documented example, min 10 s, max 300 s and 3
doublings:

    attempt that ended    1   2   3   4    5    6    7    8
    backoff, s           10  20  40  80  160  240  300  300

A target's `Retry-After` is a floor for the pause, believed up to one hour. Whichever limit comes first ends the
execution: `max_attempts`, or a next attempt that would start later than `max_retry_duration` after the first one did.

Must never import: any room but `model`; no I/O, no clock; chance comes as an argument.
"""

from random import Random

from tickwheel.server.model import Ms, Reason, RetryPolicy

PAUSE_MIN_MS = 100
"""No retry follows sooner, whatever the policy says."""

RETRY_AFTER_MAX_MS = 3_600_000
"""A target cannot put its retries off for longer than this."""

DOUBLINGS_MAX = 48
"""One millisecond doubled so often is thousands of years: more changes nothing, but numbers would grow."""


def backoff_ms(policy: RetryPolicy, attempt: int) -> int:
    """Return the longest pause after the attempt of this number, before jitter and `Retry-After`."""
    assert attempt >= 1, "a backoff follows an attempt"
    assert policy.max_doublings >= 0
    steps = attempt - 1
    doubled_ms = policy.min_backoff_ms << min(steps, policy.max_doublings, DOUBLINGS_MAX)
    linear = max(steps - policy.max_doublings, 0)
    return min(doubled_ms * (1 + linear), policy.max_backoff_ms)


def next_attempt_ms(
    policy: RetryPolicy,
    *,
    attempt: int,
    first_attempt_ms: Ms,
    now_ms: Ms,
    retry_after_ms: int,
    rng: Random,
) -> Ms | Reason:
    """Return when the next attempt may start, or the `Reason` why there is none.

    `attempt` is how many attempts of the present budget have ended, `first_attempt_ms` when the first one started,
    `retry_after_ms` what the target asked for (0: nothing).
    """
    if attempt >= policy.max_attempts:
        return Reason.ATTEMPTS_EXHAUSTED
    longest_ms = max(backoff_ms(policy, attempt), PAUSE_MIN_MS)
    pause_ms = rng.randint(PAUSE_MIN_MS, longest_ms)
    next_ms = now_ms + max(pause_ms, min(retry_after_ms, RETRY_AFTER_MAX_MS))
    duration_ms = policy.max_retry_duration_ms
    if duration_ms and next_ms > first_attempt_ms + duration_ms:
        return Reason.RETRY_DURATION_EXHAUSTED
    return next_ms
