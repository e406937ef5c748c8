"""What may go wrong in a seed: its weather (how slow, how full, how often), and how each life of the node ends."""

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import NamedTuple

KIB = 1024
STEPS_MS = (-30_000, -2_500, -400, 1_500, 20_000, 90_000, 90_000)


class End(Enum):
    """How a life ends. All but STOP are crashes."""

    STOP = "told to stop, in order"
    KILL = "the process dies, the machine does not"
    POWER = "power cut, between two events"
    CUT = "power cut, in the middle of a call to the disk"
    CUT_EARLY = "power cut during recovery"
    SYNC = "an fsync of the journal fails"
    FULL = "another program fills the disk"


CRASHES = (End.KILL, End.POWER, End.POWER, End.CUT, End.CUT, End.CUT_EARLY, End.SYNC)


@dataclass(frozen=True, slots=True)
class Weather:
    """One seed's world. Delays are the longest, in seconds; shares are of 1."""

    wal_s: float
    store_s: float
    stall_share: float
    segment_bytes: int
    table_bytes_max: int
    clock_steps: bool
    store_full: bool
    target_trouble: float


class Fate(NamedTuple):
    """One life: how it ends, when (virtual seconds), and what follows. `at` counts syncs or steps of the disk."""

    end: End
    after_s: float
    at: int
    down_s: float
    power_too: bool
    step_ms: int


def draw_weather(rng: Random) -> Weather:
    """Half of the seeds have a calm world, so that what they find needs no excuse."""
    return Weather(
        wal_s=rng.choice((0.0, 0.002, 0.008, 0.03)),
        store_s=rng.choice((0.0, 0.002, 0.02)),
        stall_share=rng.choice((0.0, 0.0, 0.02)),
        segment_bytes=rng.choice((16, 32, 64)) * KIB,
        table_bytes_max=rng.choice((512, 512, 24)) * KIB,
        clock_steps=rng.random() < 0.35,
        store_full=rng.random() < 0.15,
        target_trouble=rng.choice((0.0, 1.0, 1.0)),
    )


def draw_fate(rng: Random, weather: Weather) -> Fate:
    """The next life. A disk that fills up needs a long one."""
    end = rng.choice((End.STOP, End.FULL, *CRASHES, *CRASHES))
    after_s = rng.choice((0.05, 0.7, 3.0, 11.0)) * (0.5 + rng.random())
    return Fate(
        end=end,
        after_s=30.0 if end == End.FULL else after_s,
        at=rng.randint(1, 6)
        if end == End.CUT_EARLY
        else rng.choice((3, 30, 300)) + rng.randrange(9),
        down_s=rng.choice((0.2, 1.0, 4.0, 4.0, 300.0)),
        power_too=rng.random() < 0.5,
        step_ms=rng.choice(STEPS_MS) if weather.clock_steps and rng.random() < 0.5 else 0,
    )
