"""An asyncio event loop on virtual time: when nothing is ready, the clock jumps to the next timer.

No file descriptor, no thread, no real second: a run is a function of its seed. Waiting for something that can't come
(nothing ready, no timer) is an error instead of a hang.
"""

import asyncio
from collections.abc import Callable
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

    def run_until(self, done: Callable[[], bool], *, limit_s: float) -> bool:
        """Turn until `done()` or until `limit_s` of virtual time have passed; True if done."""
        end_s = self.now_s + limit_s
        asyncio.events._set_running_loop(None)
        self._thread_id = None
        return asyncio.BaseEventLoop.run_until_complete(self, self._poll(done, end_s))

    async def _poll(self, done: Callable[[], bool], end_s: float) -> bool:
        while not done():
            if self.now_s >= end_s:
                return False
            await asyncio.sleep(0.001)
        return True
