"""Misfire: the table of its docstring, the catch-up window, expiry. A plan with one occurrence an hour."""

import pytest
from tests.unit.shard_kit import HOUR, MINUTE, NOW, SECOND

from tickwheel.server import schedule
from tickwheel.server.command import Missed
from tickwheel.server.misfire import ALL_MAX, SKIP_GRACE_MS, Verdict, resolve
from tickwheel.server.model import Every, HttpTarget, MisfirePolicy, Once, Reason, Spec, Window

TEN = NOW + 2 * HOUR
ELEVEN, TWELVE, THIRTEEN = TEN + HOUR, TEN + 2 * HOUR, TEN + 3 * HOUR
WOKEN = THIRTEEN + 10 * MINUTE
TARGET = HttpTarget("http://127.0.0.1/")
LATEST, ALL, SKIP = MisfirePolicy.LATEST, MisfirePolicy.ALL, MisfirePolicy.SKIP


def ask(spec: Spec, now_ms: int = WOKEN, next_ms: int = TEN) -> Verdict:
    return resolve(spec, schedule.compile(spec.schedule, spec.window), next_ms, now_ms)


def hourly(
    misfire: MisfirePolicy = LATEST,
    misfire_max: int = 0,
    *,
    catchup_window_ms: int = 0,
    expire_after_ms: int = 0,
    window: Window | None = None,
) -> Spec:
    return Spec(
        Every(HOUR),
        TARGET,
        window=window or Window(),
        misfire=misfire,
        misfire_max=misfire_max,
        catchup_window_ms=catchup_window_ms,
        expire_after_ms=expire_after_ms,
    )


def missed(first_ms: int, last_ms: int, length: int, reason: Reason) -> Missed:
    return Missed(first_ms, last_ms, length, reason)


@pytest.mark.parametrize(
    ("misfire", "misfire_max", "fire_ms", "gone"),
    [
        (LATEST, 0, THIRTEEN, missed(TEN, TWELVE, 3, Reason.MISFIRE_POLICY)),
        (ALL, 0, TEN, None),
        (ALL, 4, TEN, None),
        (ALL, 2, TWELVE, missed(TEN, ELEVEN, 2, Reason.MISFIRE_POLICY)),
        (ALL, 1, THIRTEEN, missed(TEN, TWELVE, 3, Reason.MISFIRE_POLICY)),
        (SKIP, 0, 0, missed(TEN, THIRTEEN, 4, Reason.MISFIRE_POLICY)),
    ],
)
def test_the_table_of_the_docstring(
    misfire: MisfirePolicy, misfire_max: int, fire_ms: int, gone: Missed | None
) -> None:
    assert ask(hourly(misfire, misfire_max)) == Verdict(fire_ms, gone)


@pytest.mark.parametrize("misfire", [LATEST, ALL, SKIP])
def test_on_time_is_never_missed(misfire: MisfirePolicy) -> None:
    assert ask(hourly(misfire), now_ms=TEN) == Verdict(TEN)


def test_skip_has_a_grace() -> None:
    spec = hourly(SKIP)
    assert ask(spec, now_ms=TEN + SKIP_GRACE_MS) == Verdict(TEN)
    gone = missed(TEN, TEN, 1, Reason.MISFIRE_POLICY)
    assert ask(spec, now_ms=TEN + SKIP_GRACE_MS + 1) == Verdict(0, gone)
    gone = missed(TEN, TWELVE, 3, Reason.MISFIRE_POLICY)
    assert ask(spec, now_ms=THIRTEEN + SKIP_GRACE_MS) == Verdict(THIRTEEN, gone)


def test_the_catchup_window_goes_before_the_policy() -> None:
    spec = hourly(ALL, catchup_window_ms=90 * MINUTE)
    gone = missed(TEN, ELEVEN, 2, Reason.CATCHUP_WINDOW)
    assert ask(spec) == Verdict(TWELVE, gone)
    assert ask(hourly(ALL, catchup_window_ms=WOKEN - TEN)) == Verdict(TEN)


def test_window_and_policy_together_make_one_record() -> None:
    spec = hourly(LATEST, catchup_window_ms=90 * MINUTE)
    assert ask(spec) == Verdict(THIRTEEN, missed(TEN, TWELVE, 3, Reason.MISFIRE_POLICY))


def test_nothing_inside_the_catchup_window() -> None:
    spec = hourly(ALL, catchup_window_ms=5 * MINUTE)
    assert ask(spec) == Verdict(0, missed(TEN, THIRTEEN, 4, Reason.CATCHUP_WINDOW))


def test_nothing_left_of_the_schedule_inside_the_catchup_window() -> None:
    spec = hourly(ALL, catchup_window_ms=30 * MINUTE, window=Window(end_ms=ELEVEN))
    assert ask(spec) == Verdict(0, missed(TEN, ELEVEN, 2, Reason.CATCHUP_WINDOW))


def test_expiry_narrows_the_window_of_a_recurring_job() -> None:
    spec = hourly(ALL, catchup_window_ms=3 * HOUR, expire_after_ms=30 * MINUTE)
    assert ask(spec) == Verdict(THIRTEEN, missed(TEN, TWELVE, 3, Reason.CATCHUP_WINDOW))


def test_all_without_a_maximum_has_one_all_the_same() -> None:
    spec = Spec(Every(SECOND), TARGET, misfire=ALL)
    late_ms = NOW + (ALL_MAX + 50) * SECOND
    verdict = ask(spec, now_ms=late_ms, next_ms=NOW)
    first_ms = late_ms - (ALL_MAX - 1) * SECOND
    gone = missed(NOW, first_ms - SECOND, 51, Reason.MISFIRE_POLICY)
    assert verdict == Verdict(first_ms, gone)


def test_a_one_off_fires_late_unless_it_has_expired() -> None:
    plain, expiring = Spec(Once(TEN), TARGET), Spec(Once(TEN), TARGET, expire_after_ms=HOUR)
    assert ask(plain) == Verdict(TEN)
    assert ask(expiring, now_ms=ELEVEN) == Verdict(TEN)
    assert ask(expiring, now_ms=ELEVEN + 1) == Verdict(0, missed(TEN, TEN, 1, Reason.EXPIRED))


def test_an_occurrence_is_never_handled_early() -> None:
    with pytest.raises(AssertionError, match="before its time"):
        ask(hourly(), now_ms=TEN - 1)
