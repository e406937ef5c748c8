"""The clock's two readings, and telling a step from time that passed."""

import time

from tickwheel.server.clock import STEP_MS, StepDetector, SystemClock


def test_wall_time_is_the_hosts_in_whole_milliseconds() -> None:
    clock = SystemClock()
    before_ns = time.time_ns()
    now_ms, now_us = clock.now_ms(), clock.now_us()
    after_ns = time.time_ns()
    assert before_ns // 1_000_000 <= now_ms <= after_ns // 1_000_000
    assert before_ns // 1_000 <= now_us <= after_ns // 1_000


def test_boot_time_never_goes_back_and_its_two_readings_agree() -> None:
    clock = SystemClock()
    readings = [clock.monotonic_ms() for _ in range(1_000)]
    assert readings == sorted(readings)
    assert clock.monotonic() * 1_000 >= readings[-1]
    assert clock.monotonic() - readings[-1] / 1_000 < 60


def test_time_that_passes_is_no_step() -> None:
    detector = StepDetector(5_000, 1_000)
    assert [detector.observe(5_000 + ms, 1_000 + ms) for ms in (0, 1, 10**9)] == [0, 0, 0]


def test_a_step_is_reported_once_either_way() -> None:
    detector = StepDetector(5_000, 1_000)
    assert detector.observe(9_500, 3_000) == 2_500
    assert detector.observe(9_501, 3_001) == 0
    assert detector.observe(1_000, 4_000) == -9_500
    assert detector.observe(1_500, 4_500) == 0


def test_a_second_is_a_step_and_less_is_not() -> None:
    assert StepDetector(0, 0).observe(STEP_MS, 0) == STEP_MS
    assert StepDetector(0, 0).observe(-STEP_MS, 0) == -STEP_MS
    assert StepDetector(0, 0).observe(STEP_MS - 1, 0) == 0


def test_small_changes_add_up_to_a_step() -> None:
    detector = StepDetector(0, 0)
    assert [detector.observe(k * 400, 0) for k in (1, 2, 3, 4)] == [0, 0, 1_200, 0]
