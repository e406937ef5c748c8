"""Floor 1. What a node tells Prometheus: every name and unit in one place.

Two ways in: rooms that see something happen call a method (`observe_lag`, `call_ended`), and what has a present value
is read when Prometheus asks (`watch`), so that it costs nothing in between.

    tickwheel_fire_lag_seconds       start of the attempt minus due time, `late` = catch-up or recovery
    tickwheel_attempts_total         by outcome
    tickwheel_executions_ended_total by state
    tickwheel_commands_total         by command
    tickwheel_grpc_...               calls by method and code, seconds by method
    tickwheel_wal_...                batches, records, bytes, seconds of commit, segments, bytes that wait
    tickwheel_store_...              rows flushed, seconds of a flush, bytes of the table not yet flushed
    tickwheel_wheel_...              entries, how far ahead they reach, how late the head is
    tickwheel_dispatch_..., queue    requests in flight, waiting, put off for their target's sake; commands waiting
    tickwheel_clock_step_...         steps of the host's clock
    process_...                      CPU, memory, descriptors, start time (from which uptime follows)

Labels are of bounded number: no namespace, job or target is ever one.

Must never import: any room of this project.
"""

from bisect import bisect_left
from collections import Counter as Tallied
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

LAG_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
LAG_BUCKETS_MS = tuple(bound_s * 1_000 for bound_s in LAG_BUCKETS_S)
CALL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
FLUSH_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


Read = Callable[[], Sequence[tuple[str, str, float]]]
"""(name, words, value) of each."""


class Sized(Protocol):
    """A wheel."""

    def __len__(self) -> int:
        """Entries it holds."""
        ...


class ShardView(Protocol):
    """What is read of a shard."""

    @property
    def wheel(self) -> Sized:
        """Its wheel."""
        ...

    @property
    def horizon_ms(self) -> int:
        """Up to which due time the wheel is filled."""
        ...


class SlotView(Protocol):
    """What is read of a shard's place on this node."""

    @property
    def shard(self) -> ShardView:
        """The machine."""
        ...


class ClockView(Protocol):
    """What is read of the clock."""

    def now_ms(self) -> int:
        """Wall time."""
        ...


class FeedsView(Protocol):
    """What is read of the memory for watches."""

    @property
    def bytes_held(self) -> int:
        """Its bytes."""
        ...


class RunnerView(Protocol):
    """What is read of the runner."""

    @property
    def slots(self) -> Mapping[int, SlotView]:
        """The shards of this node."""
        ...

    @property
    def clock(self) -> ClockView:
        """Its clock."""
        ...

    @property
    def put_off_count(self) -> int:
        """Due requests that wait for a place of their target."""
        ...

    @property
    def waiting_count(self) -> int:
        """Commands that wait."""
        ...

    @property
    def table_bytes(self) -> int:
        """Bytes that the store has not taken yet."""
        ...

    @property
    def feeds(self) -> FeedsView:
        """What happened lately."""
        ...

    def overdue_ms(self) -> int:
        """How late the earliest entry is."""
        ...


class CountersView(Protocol):
    """What the journal counts."""

    @property
    def batches(self) -> int:
        """Batches made durable."""
        ...

    @property
    def records(self) -> int:
        """Records in them."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of them."""
        ...

    @property
    def commit_seconds(self) -> float:
        """Seconds of writing and fdatasync."""
        ...

    @property
    def segments(self) -> int:
        """Segments that exist now."""
        ...


class WalView(Protocol):
    """What is read of the journal."""

    @property
    def counters(self) -> CountersView:
        """Its counters."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the disk."""
        ...


class DispatchView(Protocol):
    """What is read of dispatch."""

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        ...

    @property
    def waiting(self) -> int:
        """Due requests that wait for their turn."""
        ...


class Metrics:
    """The metrics of one node, in the registry that it is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lag = _Lag()
        registry.register(self._lag)
        self._calls = Counter(
            "tickwheel_grpc_calls", "Calls that ended.", ["method", "code"], registry=registry
        )
        self._call_seconds = Histogram(
            "tickwheel_grpc_call_seconds",
            "How long calls took.",
            ["method"],
            buckets=CALL_BUCKETS_S,
            registry=registry,
        )
        self._flush = Histogram(
            "tickwheel_store_flush_seconds",
            "How long it took to write a change set to SQLite.",
            buckets=FLUSH_BUCKETS_S,
            registry=registry,
        )
        self._flushed = _counter(registry, "store_rows_flushed", "Rows written to SQLite.")
        self._attempts = _Tally("attempts", "Attempts that ended.", "outcome")
        self._ended = _Tally("executions_ended", "Executions that ended.", "state")
        self._commands = _Tally("commands", "Commands decided.", "command")
        for tally in (self._attempts, self._ended, self._commands):
            registry.register(tally)
        self._put_off = _counter(
            registry, "dispatch_put_off", "Due requests whose target had no place in the queue."
        )
        self._steps = _counter(registry, "clock_steps", "Steps of the host's clock.", "direction")
        self._step_seconds = _counter(
            registry, "clock_step_seconds", "How far the host's clock was stepped.", "direction"
        )
        ProcessCollector(registry=registry)

    def observe_lag(self, lag_ms: int, *, late: bool) -> None:
        """Note that an attempt started `lag_ms` after it was due; `late` when it had to be, after an outage."""
        self._lag.observe(lag_ms, late=late)

    def count_attempt(self, outcome: str) -> None:
        """Note how an attempt ended."""
        self._attempts.counts[outcome] += 1

    def count_ended(self, state: str, count: int = 1) -> None:
        """Note how executions ended."""
        self._ended.counts[state] += count

    def count_command(self, command: str, count: int = 1) -> None:
        """Note that commands of a kind were decided."""
        self._commands.counts[command] += count

    def count_put_off(self, count: int) -> None:
        """Note that due requests found no place for their target; one is counted each time."""
        self._put_off.inc(count)

    def count_flushed(self, rows: int) -> None:
        """Note that rows went to SQLite."""
        self._flushed.inc(rows)

    def observe_flush(self, seconds: float) -> None:
        """Note how long a flush took."""
        self._flush.observe(seconds)

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """Note that a call ended, with a status, after so long."""
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    def clock_stepped(self, step_ms: int) -> None:
        """Note a step of the host's clock; negative is backward."""
        direction = "forward" if step_ms > 0 else "backward"
        self._steps.labels(direction).inc()
        self._step_seconds.labels(direction).inc(abs(step_ms) / 1_000)

    def watch(
        self,
        runner: RunnerView,
        wal: WalView,
        dispatch: DispatchView,
        *,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        """Read these whenever Prometheus asks, from now on. Once a registry."""
        self._registry.register(_Watch(runner, wal, dispatch, ready))

    def watch_more(self, gauges: Read, totals: Read) -> None:
        """Read these too. Once a registry."""
        self._registry.register(_Readings(gauges, totals))


class _Readings(Collector):
    """Present values and totals of a part of the node that brings its own names."""

    def __init__(self, gauges: Read, totals: Read) -> None:
        self._read_gauges, self._read_totals = gauges, totals

    def collect(self) -> Iterable[Metric]:
        """Read everything once."""
        yield from _gauges(*self._read_gauges())
        yield from _totals(*self._read_totals())

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the registry need not read values to learn the names."""
        return []


class _Tally(Collector):
    """A counter by one label, of what the loop alone counts: a plain number each, for it is there at every fire."""

    def __init__(self, name: str, words: str, label: str) -> None:
        self.counts: Tallied[str] = Tallied()
        self._name, self._words, self._label = f"tickwheel_{name}", words, label

    def collect(self) -> Iterable[Metric]:
        """Read every value."""
        family = CounterMetricFamily(self._name, self._words, labels=[self._label])
        for value, count in self.counts.items():
            family.add_metric([value.lower()], count)
        yield family


class _Lag(Collector):
    """The histogram of lags, by `late`; plain numbers too."""

    def __init__(self) -> None:
        self._counts = {late: [0] * (len(LAG_BUCKETS_MS) + 1) for late in (False, True)}
        self._sum_ms = {False: 0, True: 0}

    def observe(self, lag_ms: int, *, late: bool) -> None:
        self._counts[late][bisect_left(LAG_BUCKETS_MS, lag_ms)] += 1
        self._sum_ms[late] += lag_ms

    def collect(self) -> Iterable[Metric]:
        """Read every value."""
        words = "Start of an attempt after its due time."
        family = HistogramMetricFamily("tickwheel_fire_lag_seconds", words, labels=["late"])
        bounds = [*map(str, LAG_BUCKETS_S), "+Inf"]
        for late, counts in self._counts.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric([str(late).lower()], buckets, self._sum_ms[late] / 1_000)
        yield family


def _counter(registry: CollectorRegistry, name: str, words: str, *labels: str) -> Counter:
    return Counter(f"tickwheel_{name}", words, labels, registry=registry)


class _Watch(Collector):
    """Present values, read when asked."""

    def __init__(
        self,
        runner: RunnerView,
        wal: WalView,
        dispatch: DispatchView,
        ready: Callable[[], bool] | None,
    ) -> None:
        self._runner, self._wal, self._dispatch, self._ready = runner, wal, dispatch, ready

    def collect(self) -> Iterable[Metric]:
        """Read everything once."""
        counters = self._wal.counters
        yield from _gauges(
            ("shards", "Shards on this node.", len(self._runner.slots)),
            ("commands_waiting", "Commands that wait to be decided.", self._runner.waiting_count),
            ("table_bytes", "Changes that SQLite has not taken yet.", self._runner.table_bytes),
            ("watch_bytes", "What watches can go on from.", self._runner.feeds.bytes_held),
            ("wheel_entries", "Entries of all wheels.", self._entries()),
            ("wheel_window_seconds", "How far ahead every wheel is filled.", self._window_s()),
            ("wheel_overdue_seconds", "Age of the head.", self._runner.overdue_ms() / 1_000),
            ("dispatch_in_flight", "Requests under way.", self._dispatch.in_flight),
            ("dispatch_waiting", "Due requests that wait for their turn.", self._dispatch.waiting),
            ("dispatch_shelved", "Due; target has no place.", self._runner.put_off_count),
            ("wal_segments", "Journal segments on disk.", counters.segments),
            ("wal_waiting_bytes", "Bytes that wait for the disk.", self._wal.waiting_bytes),
        )
        if self._ready is not None:
            yield from _gauges(("ready", "1 while the node fires on time.", int(self._ready())))
        yield from _totals(
            ("wal_batches", "Batches made durable.", counters.batches),
            ("wal_records", "Records made durable.", counters.records),
            ("wal_bytes", "Bytes made durable.", counters.bytes),
            ("wal_commit_seconds", "Seconds of writes and fdatasync.", counters.commit_seconds),
        )

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the registry need not read values to learn the names."""
        return []

    def _entries(self) -> int:
        return sum(len(slot.shard.wheel) for slot in self._runner.slots.values())

    def _window_s(self) -> float:
        horizons = (slot.shard.horizon_ms for slot in self._runner.slots.values())
        ahead_ms = min(horizons, default=0) - self._runner.clock.now_ms()
        return max(ahead_ms, 0) / 1_000


def _gauges(*values: tuple[str, str, float]) -> Iterator[Metric]:
    for name, words, value in values:
        yield GaugeMetricFamily(f"tickwheel_{name}", words, value=value)


def _totals(*values: tuple[str, str, float]) -> Iterator[Metric]:
    for name, words, value in values:
        yield CounterMetricFamily(f"tickwheel_{name}", words, value=value)
