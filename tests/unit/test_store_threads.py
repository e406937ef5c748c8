"""The port to the stores: threads and their twin."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from functools import partial

import pytest

from tickwheel.server.errors import ResourceExhausted, StoreFailed, Unavailable
from tickwheel.server.store import InlineStore, StoreThreads

Port = StoreThreads | InlineStore


@pytest.fixture(params=["threads", "inline"])
async def port(request: pytest.FixtureRequest) -> AsyncIterator[Port]:
    loop = asyncio.get_running_loop()
    made = StoreThreads(loop) if request.param == "threads" else InlineStore(loop)
    yield made
    await made.close()


async def test_answers(port: Port) -> None:
    assert await port.read(lambda: 1) == 1
    assert await port.flush(lambda: "two") == "two"
    assert await port.query(lambda: [3]) == [3]


async def test_keeps_the_order_of_a_kind(port: Port) -> None:
    done: list[int] = []
    await asyncio.gather(*(port.flush(partial(done.append, n)) for n in range(50)))
    assert done == list(range(50))


async def test_raises_what_the_work_raises(port: Port) -> None:
    with pytest.raises(ZeroDivisionError):
        await port.read(lambda: 1 // 0)
    assert await port.read(lambda: "still here") == "still here"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (sqlite3.SQLITE_FULL, "STORE_FULL"),
        (sqlite3.SQLITE_IOERR | (4 << 8), "STORE_IO"),
        (sqlite3.SQLITE_CORRUPT, "STORE_CORRUPT"),
        (sqlite3.SQLITE_NOTADB, "STORE_CORRUPT"),
    ],
)
async def test_failing_disk_is_fatal(port: Port, code: int, reason: str) -> None:
    def fail() -> None:
        error = sqlite3.OperationalError("as SQLite puts it")
        error.sqlite_errorcode = code
        raise error

    with pytest.raises(StoreFailed) as caught:
        await port.flush(fail)
    assert caught.value.reason == reason


async def test_work_never_runs_inside_the_call(port: Port) -> None:
    done: list[int] = []
    waiting = port.read(lambda: done.append(threading.get_ident()))
    if isinstance(port, InlineStore):
        assert done == []
    await waiting
    assert (done == [threading.get_ident()]) == isinstance(port, InlineStore)


async def test_kinds_do_not_wait_for_each_other() -> None:
    port = StoreThreads(asyncio.get_running_loop())
    gate = threading.Event()
    flushing = asyncio.ensure_future(port.flush(gate.wait))
    assert await port.read(lambda: 1) == 1
    assert await port.query(lambda: 2) == 2
    assert not flushing.done()
    gate.set()
    assert await flushing
    await port.close()


async def test_refuses_beyond_its_bound() -> None:
    port = StoreThreads(asyncio.get_running_loop(), waiting_max=2)
    gate = threading.Event()
    waiting = [asyncio.ensure_future(port.read(gate.wait)) for _ in range(2)]
    with pytest.raises(ResourceExhausted) as caught:
        await port.read(gate.wait)
    assert caught.value.reason == "STORE_BUSY"
    assert caught.value.retry_after_ms
    gate.set()
    assert await asyncio.gather(*waiting) == [True, True]
    assert await port.read(lambda: 3) == 3
    await port.close()


async def test_waiter_may_go_away() -> None:
    port = StoreThreads(asyncio.get_running_loop())
    gate = threading.Event()
    waiting = asyncio.ensure_future(port.read(gate.wait))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    assert await port.read(lambda: "next") == "next"
    assert waiting.cancelled()
    await port.close()


async def test_close_does_what_waits_then_refuses() -> None:
    port = StoreThreads(asyncio.get_running_loop())
    done: list[int] = []
    waiting = [asyncio.ensure_future(port.flush(partial(done.append, n))) for n in range(20)]
    await port.close()
    assert done == list(range(20))
    await asyncio.gather(*waiting)
    with pytest.raises(Unavailable):
        await port.flush(lambda: 1)
    await port.close()


def test_loop_that_is_gone_ends_the_thread() -> None:
    loop = asyncio.new_event_loop()
    port = StoreThreads(loop)
    started, gate = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        gate.wait()

    port.read(work)
    started.wait()
    loop.close()
    gate.set()
    port._reads._thread.join(10)
    assert not port._reads._thread.is_alive()
    for worker in (port._flushes, port._queries):
        worker.close().join(10)
