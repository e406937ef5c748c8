"""What every implementation of `Peers` must do: gRPC on loopback, and the network of the simulations."""

import asyncio
from pathlib import Path

import pytest
from tests.conformance.peer_worlds import (
    QUEUE_BYTES,
    Files,
    Node,
    Runner,
    World,
    acks,
    acquaint,
    contents_of,
    entry,
    flows,
    run_real,
    run_sim,
    two,
    until,
)

from tickwheel.server.cluster.peer_port import MANIFEST, Forwarded, Member, SnapshotFile
from tickwheel.server.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Violation,
)
from tickwheel.server.message import Acked, Beat, BeatAcked, Message

pytestmark = pytest.mark.parametrize("run", [run_real, run_sim])

# --- messages --------------------------------------------------------------------------------


def test_messages_arrive_whole_and_in_order_both_ways(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        sent: list[Message] = [*acks(300), entry(1), entry(2, 2 << 20), entry(3), *acks(300, 500)]
        for start in range(0, len(sent), 7):
            a.peers.send(b.store, sent[start : start + 7])
            if start % 5 == 0:
                await asyncio.sleep(0)
        b.peers.send(a.store, sent)
        await until(lambda: len(b.got) == len(sent) == len(a.got))
        assert b.got == [(a.store, 1, message) for message in sent]
        assert a.messages(b) == sent

    run(scenario)


def test_what_one_turn_sends_travels_in_one_frame(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        before = a.counters.frames_sent
        for message in acks(200):
            a.peers.send(b.store, [message])
        await until(lambda: len(b.got) == 200)
        assert a.counters.frames_sent - before == 1

    run(scenario)


def test_nothing_is_sent_to_strangers_and_to_oneself(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        a.peers.send("ff" * 16, acks(1))
        a.peers.send(a.store, acks(1))
        assert not a.peers.connected(a.store)
        await flows(a, b, 9)
        assert a.got == []

    run(scenario)


# --- connections -----------------------------------------------------------------------------


def test_a_broken_connection_is_told_and_made_again(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        for number in range(3):
            a.peers.send(b.store, acks(100, 1_000 * number))
            world.cut(a, b)
            await until(lambda: ("down", b.store) in a.events)
            await until(lambda: a.events[-1] == ("up", b.store))
            assert [kind for kind, _ in a.events] == ["up", "down", "up"]
            await flows(a, b, number)
            await until(lambda: [kind for kind, _ in b.events] == ["up", "down", "up"])
            del a.events[:-1], b.events[:-1]
        matches = [m.match for m in b.messages(a) if isinstance(m, Acked) and m.shard == 1]
        assert matches == sorted(set(matches))

    run(scenario)


def test_a_peer_that_goes_silent_is_given_up(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        world.hold(a, b)
        await until(lambda: a.events[-1] == ("down", b.store) and b.events[-1][0] == "down")
        a.peers.send(b.store, acks(5))
        world.heal()
        await flows(a, b, 9)
        assert Acked(1, 1, 1) not in b.messages(a)

    run(scenario)


def test_a_partition_of_one_way_lets_the_other_way_through(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        world.hold_one_way(a, b)
        a.peers.send(b.store, acks(1))
        b.peers.send(a.store, acks(1))
        await until(lambda: a.messages(b) == acks(1))
        assert b.got == []
        world.heal()
        await flows(a, b, 9)

    run(scenario)


def test_members_come_go_and_move(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        a.peers.set_members({})
        await until(lambda: a.events == [("up", b.store), ("down", b.store)])
        a.peers.send(b.store, acks(1))
        await asyncio.sleep(0.05)
        assert b.got == []
        assert not a.peers.connected(b.store)
        a.peers.set_members({b.store: world.member(a, b)})
        await flows(a, b, 9)
        a.peers.set_members({b.store: world.member(a, b)})
        a.peers.set_members({b.store: world.member(a, b, session=4)})
        assert a.peers.connected(b.store), "the address is the same"

    run(scenario)


def test_nobody_is_called_after_close(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        before = list(a.events)
        await asyncio.wait_for(a.peers.close(), 5)
        await until(lambda: b.events[-1] == ("down", a.store))
        b.peers.send(a.store, acks(1))
        await asyncio.sleep(0.1)
        assert (a.events, a.got) == (before, [])

    run(scenario)


# --- who is who ------------------------------------------------------------------------------


def test_a_former_session_is_heard_no_more(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        b.peers.set_members({a.store: world.member(b, a, session=5)})
        a.peers.send(b.store, acks(10))
        await until(lambda: a.events[-1] == ("down", b.store))
        assert b.messages(a) == []
        a.peers.set_session(5)
        await flows(a, b, 9)
        assert {session for _, session, _ in b.got} == {5}

    run(scenario)


def test_a_second_process_of_the_same_store_silences_the_first(run: Runner) -> None:
    async def scenario(world: World) -> None:
        old, b = await two(world)
        new = await world.join("a", session=2)
        new.peers.set_members({b.store: world.member(new, b)})
        await flows(new, b, 1)
        old.peers.send(b.store, acks(10))
        await until(lambda: old.events[-1] == ("down", b.store))
        await flows(new, b, 2)
        assert Acked(1, 1, 1) not in b.messages(old)

    run(scenario)


def test_another_cluster_is_refused(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await world.join("a"), await world.join("b", cluster="dd" * 16)
        a.peers.set_members({b.store: world.member(a, b)})
        await asyncio.sleep(0.3)
        a.peers.send(b.store, acks(1))
        assert (a.events, b.got) == ([], [])
        with pytest.raises((FailedPrecondition, Unavailable)):
            await a.peers.forward(b.store, "m", b"", 1.0)
        assert b.forwarded == []

    run(scenario)


def test_an_address_that_went_to_another_store_is_refused(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        c = await world.join("c")
        a.peers.set_members({c.store: Member(world.member(a, b).address, 1)})
        await asyncio.sleep(0.3)
        a.peers.send(c.store, acks(1))
        assert not a.peers.connected(c.store)
        assert (b.got, c.got) == ([], [])
        with pytest.raises(Unavailable, match=b.store):
            await a.peers.forward(c.store, "m", b"", 1.0)

    run(scenario)


# --- bounds ----------------------------------------------------------------------------------


def test_a_slow_peer_is_reset_and_costs_the_others_nothing(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        c = await world.join("c")
        await acquaint(world, a, b, c)
        world.hold(a, b)
        sent_bytes = 0
        while a.counters.resets == 0:
            a.peers.send(b.store, [entry(1, 1 << 18)])
            sent_bytes += 1 << 18
            assert sent_bytes < 8 * QUEUE_BYTES, "nothing bounds what waits"
            if sent_bytes % (1 << 20) == 0:
                await asyncio.sleep(0)
        assert not a.peers.connected(b.store)
        a.peers.send(c.store, acks(1))
        await until(lambda: len(c.got) == 1)
        world.heal()
        await flows(a, b, 9)

    run(scenario)


def test_a_beat_does_not_wait_behind_megabytes(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        beat = Beat(1, 2, (), ())
        a.peers.send(b.store, [entry(index, 100_000) for index in range(1, 37)])
        a.peers.send(b.store, [beat])
        await until(lambda: len(b.got) == 37)
        assert b.messages(a).index(beat) < 36

    run(scenario)


def test_only_the_newest_beat_and_ack_wait(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        for number in range(50):
            a.peers.send(b.store, [Beat(number, 0, (), ()), BeatAcked(number, (1,))])
        await until(lambda: len(b.got) == 2)
        await flows(a, b, 9)
        assert b.messages(a)[:2] == [Beat(49, 0, (), ()), BeatAcked(49, (1,))]

    run(scenario)


# --- forwarded calls -------------------------------------------------------------------------


async def _echo(call: Forwarded) -> bytes:
    return call.method.encode() + call.request


def test_a_call_is_carried_out_there(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        b.answer = _echo
        assert await a.peers.forward(b.store, "Get", b"\x00", 5.0) == b"Get\x00"
        [call] = b.forwarded
        assert (call.sender, call.method, call.request) == (a.store, "Get", b"\x00")
        assert 0 < call.timeout_s < 5.5

    run(scenario)


def test_a_call_fails_with_the_error_it_failed_with_there(run: Runner) -> None:
    async def refuse(_call: Forwarded) -> bytes:
        raise InvalidArgument(
            "no", reason="WHY", metadata={"k": "v"}, violations=[Violation("f", "d", "R")],
            retry_after_ms=250,
        )  # fmt: skip

    async def scenario(world: World) -> None:
        a, b = await two(world)
        b.answer = refuse
        with pytest.raises(InvalidArgument) as caught:
            await a.peers.forward(b.store, "Get", b"", 5.0)
        error = caught.value
        assert (error.message, error.reason, error.metadata) == ("no", "WHY", {"k": "v"})
        assert error.violations == (Violation("f", "d", "R"),)
        assert error.retry_after_ms == 250

    run(scenario)


def test_a_call_is_forwarded_once(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        b.answer = _echo
        with pytest.raises(Unavailable) as caught:
            await a.peers.forward(b.store, "Get", b"", 5.0, hops=1)
        assert caught.value.reason == "FORWARDED_ONCE"
        assert b.forwarded == []

    run(scenario)


def test_a_call_without_an_answer_has_an_unknown_outcome(run: Runner) -> None:
    async def never(_call: Forwarded) -> bytes:
        await asyncio.sleep(60)
        return b""

    async def scenario(world: World) -> None:
        a, b = await two(world)
        b.answer = never
        with pytest.raises(DeadlineExceeded):
            await a.peers.forward(b.store, "Get", b"", 0.2)
        await until(lambda: len(b.forwarded) == 1)

    run(scenario)


def test_a_call_that_reaches_nobody_was_not_carried_out(run: Runner) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        with pytest.raises(Unavailable):
            await a.peers.forward("ff" * 16, "Get", b"", 1.0)
        await b.peers.close()
        with pytest.raises(Unavailable):
            await a.peers.forward(b.store, "Get", b"", 1.0)
        assert b.forwarded == []

    run(scenario)


# --- snapshots -------------------------------------------------------------------------------

CONTENTS = {"shard-0003.db": bytes(range(256)) * 6_000, "empty.db": b"", "day.db": b"x" * 100}


def test_a_snapshot_is_copied_and_complete_when_it_has_a_manifest(
    run: Runner, tmp_path: Path
) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        files = Files(CONTENTS, b"what it is")
        b.files = lambda _shard: files
        seen: list[str] = []

        async def verify(path: Path, file: SnapshotFile) -> None:
            assert len(contents_of(path.parent)[path.name]) == file.bytes
            assert MANIFEST not in contents_of(path.parent)
            seen.append(file.name)

        manifest = await a.peers.fetch_snapshot(b.store, 3, tmp_path / "s", verify)
        assert manifest == b"what it is"
        found = contents_of(tmp_path / "s")
        assert found == {**CONTENTS, MANIFEST: b"what it is"}
        assert seen == list(CONTENTS)
        await until(lambda: files.closed == 1)

    run(scenario)


class Breaking(Files):
    """Breaks the connection in the middle, some times."""

    def __init__(self, world: World, nodes: tuple[Node, Node], times: int) -> None:
        super().__init__(CONTENTS, b"m")
        self.world, self.nodes, self.times = world, nodes, times

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """Cut while the second piece is on its way."""
        data = await super().read(number, offset, size)
        if offset and self.times:
            self.times -= 1
            raise OSError("the disk of the source is in trouble")
        return data


def test_a_copy_goes_on_where_it_broke_off(run: Runner, tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        files = Breaking(world, (a, b), 2)
        b.files = lambda _shard: files
        await a.peers.fetch_snapshot(b.store, 3, tmp_path)
        assert (tmp_path / "shard-0003.db").read_bytes() == CONTENTS["shard-0003.db"]
        assert files.reads.count((0, 0)) == 1, "the first piece was fetched once"

    run(scenario)


def test_another_snapshot_begins_afresh(run: Runner, tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        b.files = lambda _shard: Breaking(world, (a, b), 100)
        with pytest.raises(Unavailable):
            await a.peers.fetch_snapshot(b.store, 3, tmp_path)
        assert not (tmp_path / MANIFEST).exists()
        other = {"shard-0003.db": b"y" * 1_000_000}
        b.files = lambda _shard: Files(other, b"later")
        assert await a.peers.fetch_snapshot(b.store, 3, tmp_path) == b"later"
        found = contents_of(tmp_path)
        assert found == {**other, MANIFEST: b"later"}

    run(scenario)


def test_a_snapshot_that_is_not_what_it_says_is_refused(run: Runner, tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        files = Files(CONTENTS)
        files.contents[2] = b"z" * 100
        b.files = lambda _shard: files
        with pytest.raises(FailedPrecondition, match=r"digest of day\.db"):
            await a.peers.fetch_snapshot(b.store, 3, tmp_path)
        assert not (tmp_path / MANIFEST).exists()
        assert not (tmp_path / "day.db").exists()

    run(scenario)


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", MANIFEST, "x.part"])
def test_a_name_that_leads_elsewhere_is_refused(run: Runner, tmp_path: Path, name: str) -> None:
    async def scenario(world: World) -> None:
        a, b = await two(world)
        b.files = lambda _shard: Files({name: b"data"})
        with pytest.raises(FailedPrecondition, match="no name of a file"):
            await a.peers.fetch_snapshot(b.store, 3, tmp_path / "in")
        assert contents_of(tmp_path) == {}

    run(scenario)


def test_a_verifier_refuses_and_the_source_refuses(run: Runner, tmp_path: Path) -> None:
    async def never(_path: Path, file: SnapshotFile) -> None:
        raise FailedPrecondition(f"not {file.name}")

    async def scenario(world: World) -> None:
        a, b = await two(world)
        with pytest.raises(NotFound):
            await a.peers.fetch_snapshot(b.store, 3, tmp_path)
        b.files = lambda _shard: Files(CONTENTS)
        with pytest.raises(FailedPrecondition, match="not shard-0003"):
            await a.peers.fetch_snapshot(b.store, 3, tmp_path, never)
        assert not (tmp_path / "shard-0003.db").exists()

    run(scenario)
