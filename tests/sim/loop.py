"""An asyncio event loop on virtual time: when nothing is ready, the clock jumps to the next timer.

No file descriptor, no thread, no real second: a run is a function of its seed. Waiting for something that can't come
(nothing ready, no timer) is an error instead of a hang.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from inspect import CORO_CREATED, getcoroutinestate
from types import CoroutineType
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
        if timeout_s > 0:
            self._loop.now_s += timeout_s + self._loop.stall()
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """`now_s` is the loop's time. Abandon it (never close a running task) to simulate a crash.

    `stall` says by how many seconds a wake-up comes late: a busy machine.
    """

    def __init__(self, now_s: float = 0.0, stall: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self.now_s = now_s
        self.stall = stall
        self._selector = _Jump(self)

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def live(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run until the work is done (True) or somebody stopped the loop (False). Raises what the work raised."""
        task = self.create_task(work)
        task.add_done_callback(lambda _task: self.stop())
        self.run_forever()
        if not task.done():
            return False
        task.result()
        return True

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list, "there are no descriptors here"

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""

    def abandon(self) -> None:
        """A crash: what runs here never runs again, and says nothing about it.

        What a `finally` of an abandoned coroutine asks for, whenever memory is freed, is ignored.
        """
        closings: list[Coroutine[Any, Any, Any]] = []  # `aclose` of generators that were dropped
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            work = task.get_coro()
            if not isinstance(work, CoroutineType):
                closings += [work] if isinstance(work, Coroutine) else []
            elif getcoroutinestate(work) == CORO_CREATED:
                work.close()
        ready: list[Any] = list(self._ready)  # type: ignore[attr-defined]
        for handle in ready:
            closings += [work for work in handle._args or () if isinstance(work, Coroutine)]
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()
        self.call_soon = self.call_at = self.call_later = _ignored  # type: ignore[method-assign]
        self.call_exception_handler = _ignored  # type: ignore[method-assign]
        for closing in closings:  # from Python 3.13 on, one that never began warns
            with suppress(RuntimeError):
                closing.close()


def _ignored(*_args: object, **_options: object) -> Any:
    return None
