"""Watches against slow truths: a feed against the whole log, the filter of a watch against that of a list."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.store_samples import NOW, Changed, job

from tickwheel.server import codec
from tickwheel.server.feed import Feed, Feeds
from tickwheel.server.model import Execution, ExecutionKind, ExecutionState, Row
from tickwheel.server.query import Applied, ExecutionQuery, Range
from tickwheel.server.store import ShardStore, StoreOptions

SHARDS = 3
Images = list[tuple[Row, bytes]]
IMAGES = st.lists(st.tuples(st.integers(1, 9), st.binary(max_size=200)), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, SHARDS - 1), IMAGES, IMAGES),
        st.tuples(st.just("age"), st.integers(0, 60_000), st.just([]), st.just([])),
        st.tuples(st.just("reset"), st.integers(0, SHARDS - 1), st.just([]), st.just([])),
    ),
    max_size=60,
)


@given(steps=STEPS, bytes_max=st.sampled_from([0, 500, 3_000, 1 << 20]))
def test_a_feed_tells_the_whole_truth_or_nothing(
    steps: list[tuple[str, int, Images, Images]], bytes_max: int
) -> None:
    feeds = Feeds(bytes_max)
    shards: list[Feed] = [feeds.open(0) for _ in range(SHARDS)]
    logs: list[list[tuple[Images, Images]]] = [[] for _ in range(SHARDS)]
    now_ms = 0
    for what, number, live, ended in steps:
        if what == "put":
            logs[number].append((live, ended))
            shards[number].put(len(logs[number]), NOW, live, ended)
        elif what == "age":
            now_ms += number
            feeds.age(now_ms)
        else:
            shards[number].reset(len(logs[number]))
        assert 0 <= feeds.bytes_held <= bytes_max
        for feed, log in zip(shards, logs, strict=True):
            _holds(feed, log)
    feeds.age(now_ms + 200_000)
    assert feeds.bytes_held == 0, "whatever happened, nothing is leaked"


def _holds(feed: Feed, log: list[tuple[Images, Images]]) -> None:
    assert feed.since(len(log)) == [], "who has seen everything can always go on"
    for index in range(len(log)):
        found = feed.since(index)
        if found is None:
            assert index < feed.floor
            continue
        truth = [
            (entry, live, ended)
            for entry, (live, ended) in enumerate(log, 1)
            if entry > index and (live or ended)
        ]
        assert [(c.entry, [*c.live], [*c.ended]) for c in found] == truth


STATES = st.lists(st.sampled_from([0, *(int(s) for s in ExecutionState)]), max_size=3).map(tuple)
RANGES = st.builds(
    Range, st.sampled_from([0, NOW, NOW + 3]), st.sampled_from([0, NOW + 2, NOW + 4])
)
QUERIES = st.builds(
    ExecutionQuery,
    namespace=st.sampled_from(["acme", "other", "none"]),
    job=st.sampled_from(["", "a", "b", "c"]),
    states=STATES,
    scheduled=RANGES,
)
EXECUTIONS = st.lists(
    st.tuples(
        st.sampled_from(["acme", "other"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(list(ExecutionState)),
        st.integers(NOW, NOW + 5),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@given(executions=EXECUTIONS, queries=st.lists(QUERIES, min_size=1, max_size=5))
def test_a_watch_shows_what_a_list_would_show(
    executions: list[tuple[str, str, ExecutionState, int, bool]], queries: list[ExecutionQuery]
) -> None:
    names = [("acme", "a"), ("acme", "b"), ("other", "a"), ("other", "b")]
    changed = Changed(
        jobs={row: job(name, namespace=space) for row, (space, name) in enumerate(names, 1)}
    )
    for row, (space, name, state, scheduled_ms, live) in enumerate(executions, 10):
        job_row = names.index((space, name)) + 1
        image = codec.encode_execution(
            Execution(
                job_row, bytes(16), space, name, ExecutionKind.OCCURRENCE, scheduled_ms, "", state,
                NOW + row,
            )
        )  # fmt: skip
        (changed.live if live else changed.ended)[row] = image
    images = {**changed.live, **changed.ended}
    with tempfile.TemporaryDirectory() as directory:
        store = ShardStore.open(Path(directory), 3, StoreOptions())
        store.flush(changed, Applied(1, 1, 100, NOW))
        for query in queries:
            listed = {hit.key.row for hit in store.list_executions(query)}
            watched = set[Row]()
            for row, image in images.items():
                columns = codec.execution_columns(image)
                if query.holds(columns[6], columns[7], columns[1], columns[3]):
                    watched.add(row)
            assert watched == listed, query
        store.close()
