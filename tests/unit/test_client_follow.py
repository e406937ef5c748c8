"""The client learns who leads which shard: what goes straight to a leader, and what happens when the map is of no use."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.unit import client_fakes as fakes

from tickwheel import client
from tickwheel.client import AsyncClient, Client, follow
from tickwheel.client.follow import LEARN_AFTER_CALLS
from tickwheel.client.shards import NODES_MAX, ShardMap, key_of, key_of_create, read_map
from tickwheel.server.api import names
from tickwheel.v1 import cluster_service_pb2 as cs
from tickwheel.v1 import job_service_pb2 as pb

C = grpc.StatusCode
URL = "https://example.com/hook"
SHARDS = 6
NAMES = [f"j{k}" for k in range(60)]


# --- the map ---


def cluster(*addresses: str, leads: Callable[[int], int], revision: int = 1) -> cs.Cluster:
    """Nodes at these addresses; `leads` tells which of them leads a shard, by its place."""
    nodes = [
        cs.Node(name=f"nodes/n{place}", alive=True, grpc_address=address)
        for place, address in enumerate(addresses)
    ]
    shards = [cs.Shard(number=n, leader=f"nodes/n{leads(n)}") for n in range(SHARDS)]
    return cs.Cluster(
        uid="c" * 32, shard_count=SHARDS, nodes=nodes, shards=shards, revision=revision
    )


def test_a_jobs_shard_is_that_of_the_contract() -> None:
    leaders = tuple(f"h{n}:1" for n in range(64))
    key = key_of("namespaces/default/jobs/nightly-report")
    assert ShardMap("c", 1, leaders, leaders).leader_of(key) == "h30:1", "the vector of the proto"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("namespaces/acme/jobs/nightly", "acme/nightly"),
        ("namespaces/acme/jobs/nightly/executions/e:1", "acme/nightly"),
        ("namespaces/-/jobs/nightly", ""),
        ("namespaces/acme/jobs/-", ""),
        ("namespaces/acme", ""),
        ("", ""),
        ("a/b/c/d", ""),
    ],
)
def test_what_a_name_is_of(name: str, key: str) -> None:
    assert key_of(name) == key


def test_a_create_without_a_name_has_the_one_that_the_server_will_give() -> None:
    named = pb.CreateJobRequest(job_id="nightly", request_id="r1")
    unnamed = pb.CreateJobRequest(request_id="r1")
    assert key_of_create("acme", named) == "acme/nightly"
    assert key_of_create("acme", unnamed) == f"acme/{names.generated_job_id('acme', 'r1')}"
    assert key_of_create("acme", pb.CreateJobRequest()) == "", "the server will draw it"


def test_who_leads_is_found_by_address() -> None:
    shown = cluster("a:1", "b:1", leads=lambda n: n % 2)
    found = read_map(shown, "a:1")
    assert found == ShardMap("c" * 32, 1, ("a:1", "b:1") * 3, ("a:1", "b:1"))
    shown.shards[0].leader = ""
    shown.nodes[1].alive = False
    found = read_map(shown, "a:1")
    assert found is not None
    assert found.leaders == ("", "", "a:1", "", "a:1", "")
    assert found.nodes == ("a:1",)


@pytest.mark.parametrize(
    ("address", "told_by", "known"),
    [
        ("127.0.0.1:7070", "127.0.0.1:7071", True),
        ("127.0.0.1:7070", "localhost:7071", True),
        ("127.0.0.1:7070", "unix:/run/tickwheel", True),
        ("127.0.0.1:7070", "10.0.0.1:7070", False),
        ("localhost:7070", "db.example:7070", False),
        ("[::1]:7070", "db.example:7070", False),
        ("10.0.0.2:7070", "10.0.0.1:7070", True),
        ("db.example:7070", "10.0.0.1:7070", True),
        ("0.0.0.0:7070", "127.0.0.1:7070", False),
        ("[::]:7070", "127.0.0.1:7070", False),
        ("10.0.0.2:0", "10.0.0.1:7070", False),
        (":7070", "10.0.0.1:7070", False),
        ("nonsense", "10.0.0.1:7070", False),
        ("", "10.0.0.1:7070", False),
    ],
)
def test_only_addresses_that_may_mean_that_node_here_too(
    address: str, told_by: str, known: bool
) -> None:
    found = read_map(cluster("x:1", address, leads=lambda _: 1), told_by)
    assert found is not None
    assert set(found.leaders) == {address if known else ""}


def test_maps_of_no_use_or_of_no_measure() -> None:
    assert read_map(cluster("a:1", leads=lambda _: 0), "a:1") is None, "one node has it all"
    huge = cluster("a:1", "b:1", leads=lambda _: 0)
    huge.shard_count = 1_000_000
    assert read_map(huge, "a:1") is None
    wrong = cluster("a:1", "b:1", leads=lambda _: 0)
    wrong.shards.add(number=SHARDS, leader="nodes/n0")
    wrong.shards.add(number=-1, leader="nodes/n0")
    assert read_map(wrong, "a:1") is not None
    many = cluster(*(f"h{k}:1" for k in range(NODES_MAX + 9)), leads=lambda n: NODES_MAX + n)
    found = read_map(many, "a:1")
    assert found is not None
    assert (len(found.nodes), set(found.leaders)) == (NODES_MAX, {""})


# --- following ---


class Node:
    """One fake server of a cluster."""

    def __init__(self) -> None:
        self.jobs = fakes.FakeJobs()
        self.map = fakes.FakeMap()
        self.jobs.answers["GetJob"] = self._get
        self.server: grpc.aio.Server | None = None
        self.address = ""

    async def _get(self, request: pb.GetJobRequest, _context: Any) -> Any:
        return fakes.job(request.name)

    async def start(self, *, has_map: bool = True) -> None:
        port = int(self.address.rpartition(":")[2] or 0)
        self.server, self.address = await fakes.start(
            self.jobs, port, self.map if has_map else None
        )

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(None)
        self.server = None

    @property
    def made(self) -> set[str]:
        return {request.job_id for batch in self.jobs.batches for request in batch.requests}

    @property
    def got(self) -> set[str]:
        return {request.name.rpartition("/")[2] for _, request, _ in self.jobs.seen}

    def forget(self) -> None:
        self.jobs.batches.clear()
        self.jobs.seen.clear()


class Bed:
    """Three nodes; shard n is led by node n mod 3 unless the test says otherwise."""

    def __init__(self) -> None:
        self.nodes = [Node() for _ in range(3)]
        self.revision = 0

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()
        self.tell(lambda n: n % 3)

    def tell(self, leads: Callable[[int], int]) -> None:
        self.revision += 1
        shown = cluster(*(node.address for node in self.nodes), leads=leads, revision=self.revision)
        for node in self.nodes:
            node.map.tell(shown)

    def forget(self) -> None:
        for node in self.nodes:
            node.forget()

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]


@pytest.fixture
async def bed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    monkeypatch.setattr(follow, "PAUSE_S", 0.02)
    monkeypatch.setattr(follow, "SPACE_S", 0.01)
    bed = Bed()
    await bed.start()
    yield bed
    for node in bed.nodes:
        await node.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


def on(place: int, chosen: list[str], count: int = 3) -> set[str]:
    """The jobs whose shard is led by the node at that place."""
    return {n for n in chosen if zlib.crc32(f"default/{n}".encode()) % SHARDS % count == place}


async def learn(tickwheel: AsyncClient, bed: Bed) -> None:
    """Make calls until every leader is known, and forget them."""
    follower = tickwheel._core.links._follower
    assert follower is not None
    for _ in range(LEARN_AFTER_CALLS):
        await tickwheel.get("first")
    await until(lambda: len(follower.usable) == 3)
    bed.forget()


async def create_all(tickwheel: AsyncClient, chosen: list[str]) -> None:
    await asyncio.gather(*(tickwheel.create(URL, delay="1s", job_id=name) for name in chosen))


async def test_a_program_of_few_calls_learns_nothing(bed: Bed) -> None:
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        for _ in range(LEARN_AFTER_CALLS - 1):
            await tickwheel.get("nightly")
        await asyncio.sleep(0.05)
    assert [node.map.watched for node in bed.nodes] == [0, 0, 0]
    assert [len(node.jobs.seen) for node in bed.nodes] == [LEARN_AFTER_CALLS - 1, 0, 0]


async def test_what_is_about_one_job_goes_to_its_leader(bed: Bed) -> None:
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        await create_all(tickwheel, NAMES)
        for name in NAMES:
            await tickwheel.get(name)
        handles = [await tickwheel.create(URL, delay="1s") for _ in range(12)]
    for place, node in enumerate(bed.nodes):
        assert node.made - {""} == node.got == on(place, NAMES)
        assert len(node.jobs.batches[0].requests) == len(on(place, NAMES)), "one call a leader"
        unnamed = [r for batch in node.jobs.batches for r in batch.requests if not r.job_id]
        ids = {names.generated_job_id("default", request.request_id) for request in unnamed}
        assert ids == on(place, list(ids))
    assert len(handles) == 12


async def test_lists_and_the_like_go_to_any_node(bed: Bed) -> None:
    bed.nodes[0].jobs.answers["CountJobs"] = fakes.answering(pb.CountJobsResponse(total_count=7))
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        for _ in range(5):
            assert (await tickwheel.count()).total == 7


async def test_who_does_not_want_to_follow_does_not(bed: Bed) -> None:
    async with AsyncClient(bed.addresses[0], follow=False) as tickwheel:
        await create_all(tickwheel, NAMES)
        for name in NAMES:
            await tickwheel.get(name)
        await asyncio.sleep(0.05)
    assert bed.nodes[0].made == bed.nodes[0].got == set(NAMES)
    assert [node.map.watched for node in bed.nodes] == [0, 0, 0]


async def test_a_shard_that_moves_is_followed(bed: Bed) -> None:
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        bed.tell(lambda n: n % 2)
        follower: Any = tickwheel._core.links._follower
        await until(lambda: follower.map.revision == 2)
        await create_all(tickwheel, NAMES)
        await tickwheel.get("j1")
    assert [node.made for node in bed.nodes] == [on(0, NAMES, 2), on(1, NAMES, 2), set()]


async def test_a_node_that_is_gone_from_the_map_is_let_go(bed: Bed) -> None:
    """What is under way there may end."""
    left = bed.nodes[2]
    left.jobs.gate = asyncio.Event()
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        name = on(2, NAMES).pop()
        making = asyncio.create_task(tickwheel.create(URL, delay="1s", job_id=name))
        await until(lambda: bool(left.jobs.batches))
        for node in bed.nodes:
            shown = cluster(*bed.addresses[:2], leads=lambda n: n % 2, revision=9)
            node.map.tell(shown)
        await until(lambda: left.address not in tickwheel._core.links._open)
        await create_all(tickwheel, NAMES)
        left.jobs.gate.set()
        assert (await making).job_id == name
    assert left.made == {name}


async def test_a_connection_that_was_closed_meanwhile_is_as_good_as_none(bed: Bed) -> None:
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        links = tickwheel._core.links
        name = on(1, NAMES).pop()
        closed = links.link(bed.addresses[1])
        await closed.channel.close()
        closed.channel.get_state = lambda try_to_connect=False: grpc.ChannelConnectivity.READY  # type: ignore[method-assign]
        assert (await tickwheel.get(name)).name.endswith(name)
    assert bed.nodes[0].got == {name}


async def test_a_leader_dies_and_every_create_is_made(bed: Bed) -> None:
    """Its lane breaks under way; what was in it goes to a node that lives, and so does what comes."""
    async with AsyncClient(bed.addresses[0], timeout_s=20) as tickwheel:
        await learn(tickwheel, bed)
        dying = bed.nodes[1]
        dying.jobs.gate = asyncio.Event()
        making = asyncio.create_task(create_all(tickwheel, NAMES))
        await until(lambda: bool(dying.jobs.batches))
        await dying.stop()
        await making
        await create_all(tickwheel, [f"later-{name}" for name in NAMES])
        made = bed.nodes[0].made | bed.nodes[2].made
        assert made == {*NAMES, *(f"later-{name}" for name in NAMES)}
        dying.jobs.gate = None
        dying.forget()
        await dying.start()
        await until(lambda: len(tickwheel._core.links._follower.usable) == 3)  # type: ignore[union-attr]
        bed.forget()
        await create_all(tickwheel, NAMES)
    assert [node.made for node in bed.nodes] == [on(place, NAMES) for place in range(3)]


async def test_when_all_its_own_addresses_are_gone_a_leader_stands_in(bed: Bed) -> None:
    async with AsyncClient(bed.addresses[0], timeout_s=20) as tickwheel:
        await learn(tickwheel, bed)
        await bed.nodes[0].stop()
        await create_all(tickwheel, NAMES)
        for name in NAMES:
            await tickwheel.get(name)
        bed.tell(lambda n: 1 + n % 2)
        await until(lambda: bed.nodes[1].map.watched + bed.nodes[2].map.watched > 0)
    assert bed.nodes[1].made | bed.nodes[2].made == set(NAMES)


async def test_a_leader_that_is_silent_is_left_alone_until_it_answers(bed: Bed) -> None:
    async def never(_request: Any, _context: Any) -> None:
        await asyncio.Event().wait()

    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        bed.nodes[1].jobs.answers["GetJob"] = never
        (name, *_) = on(1, NAMES)
        asked = bed.nodes[1].map.asked
        with pytest.raises(client.DeadlineExceeded):
            await tickwheel.get(name, timeout_s=0.1)
        assert (await tickwheel.get(name)).name.endswith(name)
        await until(lambda: bed.nodes[1].map.asked > asked)
    assert name in bed.nodes[0].got


async def test_an_update_that_broke_at_the_leader_is_not_repeated(bed: Bed) -> None:
    async def broken(_request: Any, context: fakes.Context) -> None:
        await context.abort(C.UNAVAILABLE, "connection reset")

    for node in bed.nodes:
        node.jobs.answers["UpdateJob"] = broken
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        with pytest.raises(client.Unavailable):
            await tickwheel.update(on(2, NAMES).pop(), cron="@daily")
    assert [len(node.jobs.seen) for node in bed.nodes] == [0, 0, 1]


async def test_a_leader_that_refuses_for_now_is_asked_through_another(bed: Bed) -> None:
    starting = fakes.status(C.UNAVAILABLE, "not the leader", reason="NOT_LEADER")
    bed.nodes[2].jobs.answers["GetJob"] = fakes.failing(starting)
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        name = on(2, NAMES).pop()
        assert (await tickwheel.get(name)).name.endswith(name)
    assert (len(bed.nodes[0].jobs.seen), len(bed.nodes[2].jobs.seen)) == (1, 1)


# --- maps that are of no use ---


async def test_a_server_that_is_older_than_the_map_is_used_as_ever() -> None:
    old = Node()
    await old.start(has_map=False)
    async with AsyncClient(old.address) as tickwheel:
        await create_all(tickwheel, NAMES)
        await asyncio.sleep(0.05)
        await create_all(tickwheel, NAMES)
    await old.stop()
    assert old.made == set(NAMES)


async def test_a_server_alone_is_asked_once(bed: Bed) -> None:
    alone = bed.nodes[0]
    alone.map.tell(cluster(alone.address, leads=lambda _: 0, revision=9))
    async with AsyncClient(alone.address) as tickwheel:
        await create_all(tickwheel, NAMES)
        await until(lambda: alone.map.watched == 1)
        await asyncio.sleep(0.1)
        await create_all(tickwheel, NAMES)
        assert (alone.map.watched, alone.map.asked) == (1, 0)
        assert list(tickwheel._core.links._open) == [alone.address]


async def test_who_is_of_another_cluster_is_never_called(bed: Bed) -> None:
    """The same address means another machine here."""
    stranger = bed.nodes[2]
    other = cs.Cluster()
    other.CopyFrom(stranger.map.shown)
    other.uid = "d" * 32
    stranger.map.tell(other)
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        for _ in range(LEARN_AFTER_CALLS):
            await tickwheel.get("first")
        await until(lambda: stranger.map.asked > 1)
        bed.nodes[0].forget()
        await create_all(tickwheel, NAMES)
    assert stranger.made == set()
    assert bed.nodes[0].made == on(0, NAMES) | on(2, NAMES)


async def test_a_leader_that_cannot_be_reached_costs_nothing(bed: Bed) -> None:
    await bed.nodes[2].stop()
    follower: Any
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        follower = tickwheel._core.links._follower
        for _ in range(LEARN_AFTER_CALLS):
            await tickwheel.get("first")
        await until(lambda: len(follower.usable) == 2)
        await create_all(tickwheel, NAMES)
    assert bed.nodes[0].made == on(0, NAMES) | on(2, NAMES)


async def test_a_node_with_enough_watchers_is_asked_now_and_then(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "LONG_S", 0.05)
    full = fakes.status(C.RESOURCE_EXHAUSTED, "too many watch", retry_ms=30_000)
    for node in bed.nodes:
        node.map.error = full
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        bed.tell(lambda _: 1)
        await until(lambda: tickwheel._core.links._follower.map.revision == 2)  # type: ignore[union-attr]
        await create_all(tickwheel, NAMES)
    assert bed.nodes[1].made == set(NAMES)


@pytest.mark.parametrize("code", [C.PERMISSION_DENIED, C.UNAUTHENTICATED])
async def test_who_may_not_see_the_map_goes_on_without(bed: Bed, code: C) -> None:
    bed.nodes[0].map.error = fakes.status(code, "not for you")
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await create_all(tickwheel, NAMES)
        await until(lambda: bed.nodes[0].map.watched == 1)
        await create_all(tickwheel, NAMES)
        assert not tickwheel._core.links.follows
    assert bed.nodes[0].made == set(NAMES)


async def test_a_watch_is_opened_anew_where_it_broke_and_when_its_time_is_over(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "WATCH_S", 0.2)
    async with AsyncClient(bed.addresses, timeout_s=20) as tickwheel:
        await learn(tickwheel, bed)
        await until(lambda: all(node.map.watched >= 2 for node in bed.nodes))
        assert tickwheel._core.links.follows
        await bed.nodes[0].stop()
        bed.tell(lambda _: 2)
        follower: Any = tickwheel._core.links._follower
        await until(lambda: set(follower.map.leaders) == {bed.nodes[2].address})
        bed.forget()
        await create_all(tickwheel, NAMES)
    assert bed.nodes[2].made == set(NAMES)


async def test_a_node_that_tells_nothing_is_not_waited_for_for_ever(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "WATCH_S", 0.2)
    bed.nodes[0].map.tell(cs.Cluster())
    async with AsyncClient(bed.addresses) as tickwheel:
        for _ in range(LEARN_AFTER_CALLS):
            await tickwheel.get("first")
        await until(lambda: tickwheel._core.links.follows)
    assert bed.nodes[0].map.watched > 0


async def test_the_sync_client_follows_too(bed: Bed) -> None:
    def work() -> None:
        with Client(bed.addresses[0]) as tickwheel:
            for _ in range(LEARN_AFTER_CALLS):
                tickwheel.get("first")
            follower: Any = tickwheel._async._core.links._follower
            until_made = iter(range(2_000))
            while len(follower.usable) < 3:
                next(until_made)
                tickwheel.get("first")
            for name in NAMES:
                tickwheel.get(name)
        with Client(bed.addresses[0], follow=False) as tickwheel:
            assert tickwheel._async._core.links._follower is None

    await asyncio.to_thread(work)
    for place, node in enumerate(bed.nodes):
        assert on(place, NAMES) <= node.got
    assert not bed.nodes[1].got & on(2, NAMES)


def test_pauses_are_drawn_and_bounded() -> None:
    for failures, most in ((1, 0.5), (2, 1.0), (100, follow.PAUSE_S_MAX)):
        for _ in range(20):
            assert most / 2 <= follow.backoff_s(failures) <= most


async def test_what_one_leader_answered_waits_a_moment_for_the_others_and_no_longer(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tickwheel.client.gather.TOGETHER_S", (0.05, 0.05))
    slow = bed.nodes[1]
    async with AsyncClient(bed.addresses[0]) as tickwheel:
        await learn(tickwheel, bed)
        slow.jobs.gate = asyncio.Event()
        making = {
            name: asyncio.create_task(tickwheel.create(URL, delay="1s", job_id=name))
            for name in NAMES
        }
        quick = [making[name] for name in NAMES if name not in on(1, NAMES)]
        await asyncio.wait(quick, return_when=asyncio.FIRST_COMPLETED)
        await until(lambda: all(task.done() for task in quick))
        assert not any(making[name].done() for name in on(1, NAMES))
        slow.jobs.gate.set()
        await asyncio.gather(*making.values())


async def test_closing_while_leaders_are_asked_leaves_nobody_waiting(bed: Bed) -> None:
    tickwheel = AsyncClient(bed.addresses[0])
    await learn(tickwheel, bed)
    for node in bed.nodes:
        node.jobs.gate = asyncio.Event()
    making = [asyncio.create_task(tickwheel.create(URL, delay="1s", job_id=name)) for name in NAMES]
    await until(lambda: all(node.jobs.batches for node in bed.nodes))
    await tickwheel.close()
    ends = await asyncio.gather(*making, return_exceptions=True)
    assert {getattr(end, "reason", end) for end in ends} == {"CLIENT_CLOSED"}
    for node in bed.nodes:
        node.jobs.gate.set()  # type: ignore[union-attr]


async def test_a_call_that_is_cancelled_before_it_began_is_refused(bed: Bed) -> None:
    tickwheel = AsyncClient(bed.addresses[0])
    making = asyncio.create_task(tickwheel.create(URL, delay="1s"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await tickwheel.close()
    with pytest.raises(client.Unavailable, match="closed"):
        await making
