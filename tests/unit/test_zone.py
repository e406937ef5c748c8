"""Zones: where the spans of one offset lie; tests/property/test_schedule_zones.py compares all with the files."""

import pytest

from tickwheel.server import zone


def test_the_version_is_that_of_the_package() -> None:
    assert zone.tz_version()[:2] == "20"
    assert zone.tz_version()[4:].isalpha()


def test_a_zone_out_of_its_years_is_a_fault_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        zone.load("UTC").span_at(zone.LATEST_S)


def test_an_edge_of_a_chunk_that_would_cut_a_night_is_moved() -> None:
    berlin_zone = zone.load("Europe/Berlin")
    moved = [c for c in range(53, 80) if _edge(c) != c << zone.CHUNK_BITS]
    assert moved
    for chunk in moved:
        inside = (chunk << zone.CHUNK_BITS) + 1
        assert berlin_zone.span_at(inside).start_s < _edge(chunk)
        assert berlin_zone.span_at(_edge(chunk)).start_s == _edge(chunk)


def _edge(chunk: int) -> int:
    return zone._spans("Europe/Berlin", chunk)[0].start_s


def test_a_civil_time_that_exists_is_in_no_gap() -> None:
    assert zone.load("Europe/Berlin").gap_end(1_782_864_000) is None


def test_instants_of_a_civil_time() -> None:
    berlin = zone.load("Europe/Berlin")
    summer_begins = 1_774_746_000  # 2026-03-29T01:00Z
    winter_begins = 1_792_890_000  # 2026-10-25T01:00Z
    gap, twice = summer_begins + 3_600 + 1_800, winter_begins + 3_600 + 1_800
    assert berlin.instants(gap) == []
    assert berlin.gap_end(gap) == summer_begins
    assert berlin.instants(twice) == [winter_begins - 1_800, winter_begins + 1_800]
    assert [berlin.pass_of(t) for t in berlin.instants(twice)] == [1, 2]
    assert berlin.pass_of(winter_begins + 3_600) == berlin.pass_of(winter_begins - 3_601) == 0
