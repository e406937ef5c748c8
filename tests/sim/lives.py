"""Many processes on one virtual loop: each is a *life*, and its end takes everything of it along, and nothing else.

    life.spawn(work) ──► a task in the life's context ──► every task, timer and callback that comes of it, too
    life.end()       what of it is queued, or would be later, does not run any more
    life.pause()     SIGSTOP: it is held, in its order, while the others' time goes on; resume() lets it go on

The life is a context variable, so asyncio itself hands it on. What is under way between lives (frames, requests to etcd)
is scheduled in a neutral context, and enters the receiver's by `life.enter`.
"""

import asyncio
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heappush
from typing import Any, TypeVar

from tests.sim.loop import VirtualLoop

T = TypeVar("T")

LIFE: "ContextVar[Life | None]" = ContextVar("life", default=None)


class Life:
    """One process, from its start to its end. `tasks` keeps those that will never end from the collector."""

    def __init__(self, loop: "LifeLoop", name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self._loop = loop
        self._held: list[asyncio.Handle] = []
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

    def may_run(self, handle: asyncio.Handle) -> bool:
        """Whether a callback of this life runs now; if it is only paused, it is kept."""
        if self.paused:
            self._held.append(handle)
        return self.alive and not self.paused


class _Handle(asyncio.Handle):
    def _run(self) -> None:
        life = self._context.get(LIFE)  # type: ignore[attr-defined]
        if life is None or life.may_run(self):
            super()._run()


class _TimerHandle(asyncio.TimerHandle):
    def _run(self) -> None:
        life = self._context.get(LIFE)  # type: ignore[attr-defined]
        if life is None or life.may_run(self):
            super()._run()


class LifeLoop(VirtualLoop):
    """A virtual loop whose callbacks ask their life first."""

    def __init__(self, now_s: float = 0.0) -> None:
        super().__init__(now_s)
        self.lives: list[Life] = []
        self.set_task_factory(self._make_task)

    def _make_task(self, _loop: object, work: Any, **options: Any) -> "asyncio.Task[Any]":
        task = asyncio.Task(work, loop=self, **options)
        context: Context | None = options.get("context")
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None:
            life.tasks[task] = None
            task.add_done_callback(lambda done: life.tasks.pop(done, None))
        return task

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As the base's, with a handle that asks its life."""
        timer = _TimerHandle(when, callback, args, self, context)
        heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def requeue(self, handle: asyncio.Handle) -> None:
        """It was held; its turn comes now."""
        if not handle.cancelled():
            self._ready.append(handle)  # type: ignore[attr-defined]


def life_of(context: dict[str, Any]) -> Life | None:
    """Whose callback raised, by what the loop's exception handler is told."""
    handle = context.get("handle")
    if isinstance(handle, events.Handle):
        return handle._context.get(LIFE)  # type: ignore[attr-defined,no-any-return]
    return None
