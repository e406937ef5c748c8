"""Many processes on one virtual loop: each is a *life*, and its end takes everything of it along, and nothing else.

    life.spawn(work) ──► a task in the life's context ──► every task, timer and callback that comes of it, too
    life.end()       what of it is queued, or would be later, does not run any more
    life.pause()     SIGSTOP: it is held, in its order, while the others' time goes on; resume() lets it go on

The life is a context variable, so asyncio itself hands it on. What is under way between lives (frames, requests to etcd)
is scheduled in a neutral context, and enters the receiver's by `life.enter`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from typing import Any, TypeVar

from tests.sim.loop import Deadlock, VirtualLoop

T = TypeVar("T")

LIFE: "ContextVar[Life | None]" = ContextVar("life", default=None)


class Life:
    """One process, from its start to its end. `tasks` keeps those that will never end from the collector."""

    def __init__(self, loop: "LifeLoop", name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.tasks: list[asyncio.Task[Any]] = []
        self._loop = loop
        self._held: list[_Handle] = []
        self._context = copy_context()
        self._context.run(LIFE.set, self)
        loop.lives.append(self)

    def enter(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Something reaches the process: in its own turn, if it lives by then."""
        self._loop.call_soon(callback, *arguments, context=self._context.copy())

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Do something in the process."""
        return self._loop.create_task(work, context=self._context.copy())

    async def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done there and wait for it, from elsewhere; for ever, if the process ends."""
        answer: asyncio.Future[T] = self._loop.create_future()

        def answered(task: "asyncio.Task[T]") -> None:
            error = None if task.cancelled() else task.exception()
            if answer.done() or task.cancelled():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())

        self.spawn(work).add_done_callback(answered)
        return await answer

    def end(self) -> None:
        """Nothing of it runs any more."""
        self.alive = self.paused = False
        self._held.clear()

    def pause(self) -> None:
        """Stop where it is."""
        self.paused = self.alive

    def resume(self) -> None:
        """Go on where it was."""
        self.paused = False
        held, self._held = self._held, []
        for handle in held:
            self._loop.requeue(handle)

    def may_run(self, handle: "_Handle") -> bool:
        """Whether a callback of this life runs now; if it is only paused, it is kept."""
        if self.paused:
            self._held.append(handle)
        return self.alive and not self.paused


class _Handle:
    """A callback and its life: a part of `asyncio.Handle` that costs a quarter of it."""

    __slots__ = ("args", "callback", "context", "gone", "life", "when_s")

    def __init__(
        self, callback: Any, args: Any, context: Context | None, when_s: float = 0.0
    ) -> None:
        self.callback: Any = callback
        self.args: Any = args
        self.context = copy_context() if context is None else context
        self.life: Life | None = self.context.get(LIFE)
        self.gone = False
        self.when_s = when_s

    def cancel(self) -> None:
        """It will not run."""
        self.gone = True
        self.callback = self.args = None

    def cancelled(self) -> bool:
        """Whether somebody did so."""
        return self.gone

    def when(self) -> float:
        """The time that it was set for."""
        return self.when_s


class LifeLoop(VirtualLoop):
    """A virtual loop whose callbacks ask their life first. What is set for one moment runs in the order it was set."""

    def __init__(self, now_s: float = 0.0) -> None:
        super().__init__(now_s)
        self.lives: list[Life] = []
        self._turns: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._set = 0
        self.set_task_factory(self._make_task)

    def _make_task(self, _loop: object, work: Any, **options: Any) -> "asyncio.Task[Any]":
        task = asyncio.Task(work, loop=self, **options)
        context: Context | None = options.get("context")
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None:
            life.tasks.append(task)
        return task

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> _Handle:
        """As the base's."""
        handle = _Handle(callback, args, context)
        self._turns.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> _Handle:
        """As the base's."""
        self._set += 1
        handle = _Handle(callback, args, context, when)
        heappush(self._timers, (when, self._set, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> _Handle:
        """As the base's."""
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        """All turns there are until somebody stops the loop: what the base does, without descriptors and statistics."""
        turns, timers = self._turns, self._timers
        while not self._stopping:  # type: ignore[attr-defined]
            if not turns:
                self._jump()
            while timers and timers[0][0] <= self.now_s:
                turns.append(heappop(timers)[2])
            for _ in range(len(turns)):
                handle = turns.popleft()
                life = handle.life
                if handle.gone or not (life is None or life.may_run(handle)):
                    continue
                try:
                    handle.context.run(handle.callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - as asyncio does
                    self._failed(handle, error)

    def _failed(self, handle: _Handle, error: BaseException) -> None:
        what = f"in {handle.callback!r}"
        self.call_exception_handler({"message": what, "exception": error, "life": handle.life})

    def _jump(self) -> None:
        timers = self._timers
        while timers and timers[0][2].gone:
            heappop(timers)
        if not timers:
            raise Deadlock("nothing is ready and no timer is set")
        self.now_s = max(self.now_s, timers[0][0] + self.stall())

    def abandon(self) -> None:
        """See the base."""
        super().abandon()
        self._turns.clear()
        self._timers.clear()

    def requeue(self, handle: _Handle) -> None:
        """It was held; its turn comes now."""
        if not handle.gone:
            self._turns.append(handle)


def life_of(context: dict[str, Any]) -> Life | None:
    """Whose callback raised, by what the loop's exception handler is told."""
    life: Life | None = context.get("life")
    return life
