"""A node whose wall clock somebody else sets: `python -m tests.e2e.stepping FILE serve …` is `tickwheel.server serve …`.

A real process in everything but what it reads as the time of day: to that it adds the milliseconds that stand in the
first eight bytes of FILE. Nobody could give one process of a machine another clock otherwise.
"""

import mmap
import sys
from pathlib import Path
from struct import Struct

from tickwheel.server.__main__ import serve
from tickwheel.server.clock import SystemClock
from tickwheel.server.settings import load_from_environment

_OFFSET_MS = Struct("<q")


class Hands:
    """Somebody's hold on a node's clock: a file that it maps. Made before the node starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    def set(self, offset_ms: int) -> None:
        """The node's clock is off by so much from now on."""
        data = _OFFSET_MS.pack(offset_ms)
        if not self.path.exists():
            self.path.write_bytes(data)
        with self.path.open("r+b") as file:
            file.write(data)

    @property
    def module(self) -> tuple[str, ...]:
        """What Python runs in the place of `tickwheel.server`."""
        return (__name__, str(self.path))


def _follow(path: Path) -> None:
    """Let every clock of this process follow the file."""
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), _OFFSET_MS.size)

    def offset_ms() -> int:
        found: int = _OFFSET_MS.unpack_from(shared)[0]
        return found

    real = SystemClock.now_ms, SystemClock.now_us

    def now_ms(clock: SystemClock) -> int:
        return real[0](clock) + offset_ms()

    def now_us(clock: SystemClock) -> int:
        return real[1](clock) + 1_000 * offset_ms()

    setattr(SystemClock, "now_ms", now_ms)  # noqa: B010 - a method cannot be assigned to
    setattr(SystemClock, "now_us", now_us)  # noqa: B010


if __name__ == "__main__":
    _follow(Path(sys.argv[1]))
    sys.exit(serve(load_from_environment(sys.argv[2:])))
