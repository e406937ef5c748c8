"""An asyncio event loop on virtual time: when nothing is ready, the clock jumps to the next timer.

No file descriptor, no thread, no real second: a run is a function of its seed. Waiting for something that can't come
(nothing ready, no timer) is an error instead of a hang.
"""

import asyncio
from typing import Any


class Deadlock(Exception):
    """Nothing is ready and no timer is set: whoever waits would wait for ever."""


class _Jump:
    """Takes the selector's place: instead of sleeping it moves the clock."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        if timeout_s is None:
            raise Deadlock("nothing is ready and no timer is set")
        self._loop.now_s += max(timeout_s, 0.0)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """`now_s` is the loop's time. Abandon it (never close a running task) to simulate a crash."""

    def __init__(self, now_s: float = 0.0) -> None:
        super().__init__()
        self.now_s = now_s
        self._selector = _Jump(self)
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _loop, context: self.failures.append(context))

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list, "there are no descriptors here"

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""

    def abandon(self) -> None:
        """A crash: what runs here never runs again, and says nothing about it."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._ready.clear()
        self._scheduled.clear()
        self.close()
