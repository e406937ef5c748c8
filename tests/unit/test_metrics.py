"""Metrics: what is noted comes out under its name and unit."""

from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tickwheel.server.metrics import Metrics
from tickwheel.server.wheel import Wheel

NOW_MS = 1_800_000_000_000


@dataclass
class FakeShard:
    wheel: Wheel
    horizon_ms: int


@dataclass
class FakeSlot:
    shard: FakeShard


@dataclass
class FakeCounters:
    batches: int = 3
    records: int = 40
    bytes: int = 5_000
    commit_seconds: float = 0.25
    segments: int = 2


@dataclass
class FakeWal:
    counters: FakeCounters = field(default_factory=FakeCounters)
    waiting_bytes: int = 77


@dataclass
class FakeDispatch:
    in_flight: int = 4
    waiting: int = 9


class FakeClock:
    def now_ms(self) -> int:
        return NOW_MS


@dataclass
class FakeFeeds:
    bytes_held: int = 555


class FakeRunner:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.slots: dict[int, FakeSlot] = {}
        self.waiting_count = 6
        self.put_off_count = 8
        self.table_bytes = 123
        self.feeds = FakeFeeds()

    def overdue_ms(self) -> int:
        return 1_500


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def test_lag_is_in_seconds_and_tells_late_ones_apart(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.observe_lag(3, late=False)
    metrics.observe_lag(70_000, late=True)
    get = registry.get_sample_value
    assert get("tickwheel_fire_lag_seconds_sum", {"late": "false"}) == 0.003
    assert get("tickwheel_fire_lag_seconds_bucket", {"late": "false", "le": "0.005"}) == 1
    assert get("tickwheel_fire_lag_seconds_bucket", {"late": "false", "le": "0.0025"}) == 0
    assert get("tickwheel_fire_lag_seconds_bucket", {"late": "true", "le": "60.0"}) == 0
    assert get("tickwheel_fire_lag_seconds_count", {"late": "true"}) == 1


def test_events_are_counted_by_label(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.count_attempt("SUCCEEDED")
    metrics.count_attempt("RETRY")
    metrics.count_attempt("RETRY")
    metrics.count_ended("FAILED")
    metrics.count_command("Create", 5)
    metrics.count_put_off(7)
    metrics.count_flushed(12)
    metrics.observe_flush(0.02)
    metrics.call_ended("GetJob", "OK", 0.004)
    metrics.clock_stepped(2_500)
    metrics.clock_stepped(-61_000)
    get = registry.get_sample_value
    assert get("tickwheel_attempts_total", {"outcome": "retry"}) == 2
    assert get("tickwheel_attempts_total", {"outcome": "succeeded"}) == 1
    assert get("tickwheel_executions_ended_total", {"state": "failed"}) == 1
    assert get("tickwheel_commands_total", {"command": "create"}) == 5
    assert get("tickwheel_dispatch_put_off_total") == 7
    assert get("tickwheel_store_rows_flushed_total") == 12
    assert get("tickwheel_store_flush_seconds_sum") == 0.02
    assert get("tickwheel_grpc_calls_total", {"method": "GetJob", "code": "OK"}) == 1
    assert get("tickwheel_grpc_call_seconds_sum", {"method": "GetJob"}) == 0.004
    assert get("tickwheel_clock_steps_total", {"direction": "forward"}) == 1
    assert get("tickwheel_clock_step_seconds_total", {"direction": "backward"}) == 61


def test_present_values_are_read_when_asked(registry: CollectorRegistry, metrics: Metrics) -> None:
    runner, ready = FakeRunner(), [True]
    metrics.watch(runner, FakeWal(), FakeDispatch(), ready=lambda: ready[0])
    get = registry.get_sample_value
    assert get("tickwheel_wheel_entries") == 0
    assert get("tickwheel_wheel_window_seconds") == 0
    for number, horizon_ms in enumerate((NOW_MS + 10_000, NOW_MS + 900_000)):
        runner.slots[number] = FakeSlot(FakeShard(Wheel(NOW_MS), horizon_ms))
        runner.slots[number].shard.wheel.add(NOW_MS + 5, number, 1)
    ready[0] = False
    expected = {
        "tickwheel_shards": 2,
        "tickwheel_commands_waiting": 6,
        "tickwheel_table_bytes": 123,
        "tickwheel_watch_bytes": 555,
        "tickwheel_wheel_entries": 2,
        "tickwheel_wheel_window_seconds": 10,
        "tickwheel_wheel_overdue_seconds": 1.5,
        "tickwheel_dispatch_in_flight": 4,
        "tickwheel_dispatch_waiting": 9,
        "tickwheel_dispatch_shelved": 8,
        "tickwheel_wal_segments": 2,
        "tickwheel_wal_waiting_bytes": 77,
        "tickwheel_ready": 0,
        "tickwheel_wal_batches_total": 3,
        "tickwheel_wal_records_total": 40,
        "tickwheel_wal_bytes_total": 5_000,
        "tickwheel_wal_commit_seconds_total": 0.25,
    }
    assert {name: get(name) for name in expected} == expected


def test_without_a_say_there_is_no_ready_gauge(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.watch(FakeRunner(), FakeWal(), FakeDispatch())
    assert registry.get_sample_value("tickwheel_ready") is None


def test_the_page_parses_and_every_name_is_ours_or_the_process(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.watch(FakeRunner(), FakeWal(), FakeDispatch())
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert len(families) > 20
    assert all(family.name.startswith(("tickwheel_", "process_")) for family in families)
    assert all(family.documentation for family in families)
    start_s = registry.get_sample_value("process_start_time_seconds")
    assert start_s is not None
    assert start_s > 0


def test_two_nodes_in_one_process_do_not_meet() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Metrics(first).count_attempt("RETRY")
    Metrics(second)
    assert second.get_sample_value("tickwheel_attempts_total", {"outcome": "retry"}) is None
