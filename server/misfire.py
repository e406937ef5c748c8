"""Floor 1, pure. What to do with an occurrence, or a row of them, that falls due: fire which, give up which, and why.

    a recurring job, every hour, down from 09:30 to 13:10, woken with next = 10:00

    policy        fires      gives up (one record each)
    LATEST        13:00      10:00–12:00  MISFIRE_POLICY  3
    ALL           10:00      –            (11:00, 12:00, 13:00 follow, one after the other)
    ALL(max 2)    12:00      10:00–11:00  MISFIRE_POLICY  2
    SKIP          –          10:00–13:00  MISFIRE_POLICY  4   (13:00 is more than the grace ago)

`catchup_window` goes first: what is older is given up as CATCHUP_WINDOW, whatever the policy. Where the policy then gives
up more, one record covers both and says MISFIRE_POLICY. `expire_after` narrows the window of a recurring job; a one-off
fires late unless it has passed. Nothing is dropped without a record.

Must never import: any room but `model`, `command`; no I/O, no clock.
"""

from typing import NamedTuple

from tickwheel.server.command import Missed, Plan
from tickwheel.server.model import MisfirePolicy, Ms, Once, Reason, Spec

SKIP_GRACE_MS = 10_000
"""Under SKIP an occurrence that is at most this late still counts as on time."""

ALL_MAX = 10_000
"""The most occurrences that ALL without a maximum catches up with."""

COUNT_MAX = 10_000_000


class Verdict(NamedTuple):
    """`fire_ms` is the scheduled time to attempt now (0: none); `missed` what is given up before it."""

    fire_ms: Ms
    missed: Missed | None = None


def resolve(spec: Spec, plan: Plan, next_ms: Ms, now_ms: Ms) -> Verdict:
    """Decide about all occurrences from `next_ms` (the first unhandled one) up to `now_ms`."""
    assert next_ms <= now_ms, "an occurrence is never handled before its time"
    if isinstance(spec.schedule, Once):
        return _resolve_once(spec, next_ms, now_ms)
    first_ms, reason = _first_kept(spec, plan, next_ms, now_ms)
    if first_ms == next_ms:
        return Verdict(next_ms)
    if first_ms is None:
        last_ms = plan.prev_at_or_before(now_ms) or next_ms
        return Verdict(0, _missed(plan, next_ms, last_ms, reason))
    last_ms = plan.prev_at_or_before(first_ms - 1) or next_ms
    return Verdict(first_ms, _missed(plan, next_ms, last_ms, reason))


def _resolve_once(spec: Spec, next_ms: Ms, now_ms: Ms) -> Verdict:
    if 0 < spec.expire_after_ms < now_ms - next_ms:
        return Verdict(0, Missed(next_ms, next_ms, 1, Reason.EXPIRED))
    return Verdict(next_ms)


def _first_kept(spec: Spec, plan: Plan, next_ms: Ms, now_ms: Ms) -> tuple[Ms | None, Reason]:
    """The first occurrence in [next, now] that is attempted, and why those before it are not."""
    window_ms = _shortest(spec.catchup_window_ms, spec.expire_after_ms)
    kept_ms: Ms | None = next_ms
    reason = Reason.NONE
    if window_ms and now_ms - next_ms > window_ms:
        reason = Reason.CATCHUP_WINDOW
        kept_ms = plan.next_after(now_ms - window_ms - 1)
        if kept_ms is None or kept_ms > now_ms:
            return None, reason
    assert kept_ms is not None
    chosen_ms = _by_policy(spec, plan, kept_ms, now_ms)
    return chosen_ms, (reason if chosen_ms == kept_ms else Reason.MISFIRE_POLICY)


def _by_policy(spec: Spec, plan: Plan, first_ms: Ms, now_ms: Ms) -> Ms | None:
    """The first occurrence in [first, now] that the misfire policy keeps."""
    latest_ms = plan.prev_at_or_before(now_ms) or first_ms
    if spec.misfire == MisfirePolicy.LATEST:
        return latest_ms
    if spec.misfire == MisfirePolicy.SKIP:
        return latest_ms if now_ms - latest_ms <= SKIP_GRACE_MS else None
    keep = spec.misfire_max or ALL_MAX
    if plan.count_between(first_ms - 1, now_ms, keep + 1) <= keep:
        return first_ms
    kept_ms = latest_ms
    for _ in range(keep - 1):
        kept_ms = plan.prev_at_or_before(kept_ms - 1) or kept_ms
    return kept_ms


def _shortest(*limits_ms: int) -> int:
    """The smallest limit that is set (0 = not set)."""
    return min((limit for limit in limits_ms if limit), default=0)


def _missed(plan: Plan, first_ms: Ms, last_ms: Ms, reason: Reason) -> Missed:
    count = plan.count_between(first_ms - 1, last_ms, COUNT_MAX)
    return Missed(first_ms, last_ms, max(count, 1), reason)
