"""Floor 1. Time, as an argument: the one room that reads the clock.

Wall time says when something is due; it may be stepped by an operator or NTP. Boot time (CLOCK_BOOTTIME) only goes
forward and counts through suspend; it says how long something took. Their difference changes exactly when the wall
clock is stepped: `StepDetector` watches it.

    boottime   1000    2000    3000    4000
    wall       5000    6000    9500   10500
    difference 4000    4000    6500    6500      seen at 3000: a step of +2500 ms

Must never import: any room but `model`.
"""

import time
from typing import Protocol

from tickwheel.server.model import Ms

STEP_MS = 1_000
"""A smaller change is slewing or jitter: followed, not reported."""


class Clock(Protocol):
    """What the rooms are given. Tests give one that they move themselves."""

    def now_ms(self) -> Ms:
        """Wall time: UTC milliseconds since the epoch, rounded down, so that nothing is early by it."""
        ...

    def now_us(self) -> int:
        """Wall time in microseconds."""
        ...

    def monotonic_ms(self) -> int:
        """Boot time in milliseconds: never goes back, counts through suspend."""
        ...

    def monotonic(self) -> float:
        """Boot time in seconds, for durations."""
        ...


class SystemClock:
    """The host's clocks."""

    __slots__ = ()

    def now_ms(self) -> Ms:
        """Wall time in milliseconds, rounded down."""
        return time.time_ns() // 1_000_000

    def now_us(self) -> int:
        """Wall time in microseconds, rounded down."""
        return time.time_ns() // 1_000

    def monotonic_ms(self) -> int:
        """Boot time in milliseconds, rounded down."""
        return _boottime_ns() // 1_000_000

    def monotonic(self) -> float:
        """Boot time in seconds."""
        return _boottime_ns() / 1e9


def _boottime_ns() -> int:
    return time.clock_gettime_ns(_CLOCK)


_CLOCK: int = getattr(
    time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC
)  # macOS: monotonic counts sleep too


class StepDetector:
    """Tells a step of the wall clock from time that passed. Pure: it is handed both times."""

    __slots__ = ("_difference_ms",)

    def __init__(self, wall_ms: Ms, boottime_ms: int) -> None:
        self._difference_ms = wall_ms - boottime_ms

    def observe(self, wall_ms: Ms, boottime_ms: int) -> int:
        """Return the step in ms since the last one reported: negative is backward, 0 is none.

        Slewing is followed only through steps: a drift of less than a second is kept, so that many small changes
        in one direction are reported once together they reach it.
        """
        change_ms = wall_ms - boottime_ms - self._difference_ms
        if abs(change_ms) < STEP_MS:
            return 0
        self._difference_ms += change_ms
        return change_ms
