"""The timing wheel, by example; tests/property/test_wheel.py compares it with a heap."""

import sys
from itertools import pairwise

import pytest

from tickwheel.server.wheel import SLOTS, Entry, Wheel

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000


def drain(wheel: Wheel, now_ms: int, limit: int = 1_000_000) -> list[Entry]:
    taken: list[Entry] = []
    while part := wheel.advance(now_ms, limit):
        assert len(part) <= limit
        taken += part
        wheel.check()
    return taken


def test_the_worked_example_of_the_docstring() -> None:
    wheel = Wheel(0)
    wheel.add(5, 1, 1)
    wheel.add(3000, 2, 1)
    assert wheel.next_ms() == 5
    assert wheel.advance(4, 10) == []
    assert wheel.advance(5, 10) == [(5, 1, 1)]
    assert wheel.next_ms() == 3000
    assert wheel.advance(2500, 10) == []
    wheel.check()
    assert wheel.advance(2999, 10) == []
    assert wheel.advance(3000, 10) == [(3000, 2, 1)]
    assert wheel.next_ms() is None
    assert len(wheel) == 0


def test_an_empty_wheel_holds_nothing_and_is_small() -> None:
    wheel = Wheel(NOW_MS)
    assert len(wheel) == 0
    assert wheel.next_ms() is None
    assert wheel.advance(NOW_MS + DAY_MS, 1) == []
    assert list(wheel.upcoming(NOW_MS * 2)) == []
    assert wheel._levels == []
    assert sys.getsizeof(wheel) < 200


def test_what_is_past_due_is_ready_at_once_and_in_its_place() -> None:
    wheel = Wheel(NOW_MS)
    wheel.add(NOW_MS, 1, 1)
    wheel.add(NOW_MS - 5, 2, 1)
    wheel.add(0, 3, 1)
    wheel.add(-7, 4, 1)
    assert wheel.next_ms() == -7
    rows = [row for _, row, _ in wheel.advance(NOW_MS, 10)]
    assert rows == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "ahead_ms",
    [1, 1023, 1024, 1025, 2047, 2048, 2**20 - 1, 2**20, 2**20 + 1, 2**30, 2**40 + 3, 2**52, 2**62],
)
@pytest.mark.parametrize("now_ms", [0, 1, 1023, 1024, NOW_MS, 2**40 - 1])
def test_it_comes_at_its_millisecond_from_any_distance(now_ms: int, ahead_ms: int) -> None:
    wheel = Wheel(now_ms)
    due_ms = now_ms + ahead_ms
    wheel.add(due_ms, 7, 3)
    wheel.check()
    assert wheel.next_ms() == due_ms
    assert wheel.advance(due_ms - 1, 1) == []
    wheel.check()
    assert wheel.next_ms() == due_ms
    assert wheel.advance(due_ms, 1) == [(due_ms, 7, 3)]


def test_a_number_beyond_64_bits_is_refused_and_leaves_no_half_entry() -> None:
    wheel = Wheel(NOW_MS)
    wheel.add(NOW_MS + 1, 1, 1)
    with pytest.raises(OverflowError):
        wheel.add(NOW_MS + 1, 2**63, 1)
    assert wheel.advance(NOW_MS + 1, 10) == [(NOW_MS + 1, 1, 1)]


def test_a_burst_comes_in_slices_in_the_order_of_insertion() -> None:
    wheel = Wheel(NOW_MS)
    due_ms = NOW_MS + 60_000
    for row in range(1_000):
        wheel.add(due_ms, row, 1)
    seen: list[int] = []
    while part := wheel.advance(due_ms, 128):
        seen += [row for _, row, _ in part]
        assert len(wheel) == 1_000 - len(seen)
        assert wheel.next_ms() == (due_ms if len(seen) < 1_000 else None)
        wheel.check()
    assert seen == list(range(1_000))


def test_late_entries_find_their_place_in_a_burst_that_is_half_taken() -> None:
    wheel = Wheel(NOW_MS)
    for row in range(4):
        wheel.add(NOW_MS, row, 1)
    assert [row for _, row, _ in wheel.advance(NOW_MS, 2)] == [0, 1]
    wheel.add(NOW_MS, 4, 1)
    wheel.add(NOW_MS - 1, 5, 1)
    assert [row for _, row, _ in wheel.upcoming(NOW_MS)] == [5, 2, 3, 4]
    assert [row for _, row, _ in wheel.advance(NOW_MS, 10)] == [5, 2, 3, 4]


def test_equal_due_times_keep_their_order_across_levels() -> None:
    wheel = Wheel(0)
    due_ms = 3 * SLOTS * SLOTS + 5
    moments = [0, SLOTS * SLOTS, 2 * SLOTS * SLOTS + SLOTS, due_ms - SLOTS + 1, due_ms - 1]
    for row, now_ms in enumerate(moments):
        assert wheel.advance(now_ms, 1) == []
        wheel.add(due_ms, row, 1)
        wheel.check()
    assert [row for _, row, _ in wheel.advance(due_ms, 10)] == list(range(len(moments)))


def test_equal_due_times_keep_their_order_when_one_jump_opens_several_levels() -> None:
    wheel = Wheel(0)
    due_ms = 3 * SLOTS * SLOTS + 5
    for row, now_ms in enumerate([0, 2 * SLOTS * SLOTS + SLOTS, due_ms - 2]):
        assert wheel.advance(now_ms, 1) == []
        wheel.add(due_ms, row, 1)
    wheel.add(due_ms + 1, 9, 1)
    assert [row for _, row, _ in wheel.advance(due_ms + DAY_MS, 10)] == [0, 1, 2, 9]


def test_re_insertion_while_a_slot_is_being_handled_is_not_lost() -> None:
    wheel = Wheel(NOW_MS)
    wheel.add(NOW_MS + 10, 1, 1)
    wheel.add(NOW_MS + 10, 2, 1)
    rounds: list[int] = []
    for now_ms in range(NOW_MS, NOW_MS + 5 * SLOTS + 11):
        for due_ms, row, generation in wheel.advance(now_ms, 10):
            rounds.append(due_ms)
            wheel.add(due_ms + SLOTS, row, generation)
    assert rounds == [NOW_MS + 10 + k * SLOTS for k in range(6) for _ in range(2)]
    assert len(wheel) == 2


def test_the_wheel_does_not_turn_back_but_holds_back_what_is_not_due_by_a_clock_that_did() -> None:
    wheel = Wheel(NOW_MS)
    wheel.add(NOW_MS + 100, 1, 1)
    wheel.add(NOW_MS + 200, 2, 1)
    assert wheel.advance(NOW_MS + 300, 1) == [(NOW_MS + 100, 1, 1)]
    assert wheel.advance(NOW_MS + 150, 5) == []
    assert wheel.next_ms() == NOW_MS + 200
    assert wheel.advance(NOW_MS + 200, 5) == [(NOW_MS + 200, 2, 1)]


def test_rebuild_after_a_backward_step_keeps_every_entry_and_its_order() -> None:
    wheel = Wheel(NOW_MS)
    dues = [NOW_MS + ahead for ahead in (0, 0, 0, 5, 900, 5_000, 900_000, 30 * DAY_MS)]
    for row, due_ms in enumerate(dues):
        wheel.add(due_ms, row, 1)
    assert len(wheel.advance(NOW_MS, 1)) == 1
    wheel.rebuild(NOW_MS - DAY_MS)
    wheel.check()
    assert len(wheel) == len(dues) - 1
    assert wheel.advance(NOW_MS - 1, 10) == []
    assert wheel.next_ms() == NOW_MS
    rows = [row for _, row, _ in drain(wheel, NOW_MS + 40 * DAY_MS)]
    assert rows == list(range(1, len(dues)))


def test_upcoming_is_ordered_inclusive_and_takes_nothing() -> None:
    wheel = Wheel(0)
    wheel.add(2_000, 1, 1)
    assert wheel.advance(1_500, 1) == []
    wheel.add(1_900, 2, 1)
    wheel.add(1_000, 3, 1)
    wheel.add(3_500, 4, 1)
    wheel.add(3_400, 5, 1)
    wheel.add(10**7, 6, 1)
    assert [row for _, row, _ in wheel.upcoming(3_499)] == [3, 2, 1, 5]
    assert [row for _, row, _ in wheel.upcoming(3_500)] == [3, 2, 1, 5, 4]
    assert [row for _, row, _ in wheel.upcoming(3_500, 999)] == [3, 2, 1, 5, 4]
    assert [row for _, row, _ in wheel.upcoming(3_500, 1_000)] == [2, 1, 5, 4]
    assert [row for _, row, _ in wheel.upcoming(10**7, 3_400)] == [4, 6]
    assert list(wheel.upcoming(3_000, 3_399)) == []
    assert len(wheel) == 6
    wheel.check()


def test_compact_asks_once_for_each_and_drops_the_dead() -> None:
    wheel = Wheel(NOW_MS)
    for row, ahead_ms in enumerate([-5, 0, 0, 0, 7, 7, 5_000, 5_001, DAY_MS]):
        wheel.add(NOW_MS + ahead_ms, row, row + 10)
    assert wheel.advance(NOW_MS - 1, 1) == [(NOW_MS - 5, 0, 10)]
    assert wheel.advance(NOW_MS, 1) == [(NOW_MS, 1, 11)]
    asked: list[Entry] = []

    def alive(due_ms: int, row: int, generation: int) -> bool:
        asked.append((due_ms, row, generation))
        return row in {3, 5, 7}

    assert wheel.compact(alive) == 4
    assert sorted(row for _, row, _ in asked) == list(range(2, 9))
    assert len(wheel) == 3
    wheel.check()
    assert wheel.next_ms() == NOW_MS
    assert [row for _, row, _ in drain(wheel, NOW_MS + DAY_MS)] == [3, 5, 7]


def test_compact_of_a_whole_level_leaves_it_usable() -> None:
    wheel = Wheel(NOW_MS)
    wheel.add(NOW_MS + 5, 1, 1)
    wheel.add(NOW_MS + 5_000, 2, 1)
    assert wheel.compact(lambda due_ms, row, generation: False) == 2
    assert wheel.next_ms() is None
    wheel.check()
    assert wheel.advance(NOW_MS + 400 * DAY_MS, 1) == []
    wheel.add(NOW_MS + 400 * DAY_MS + 6, 3, 1)
    wheel.check()
    assert wheel.next_ms() == NOW_MS + 400 * DAY_MS + 6


def test_clear_drops_everything_and_keeps_the_time() -> None:
    wheel = Wheel(NOW_MS)
    wheel.add(NOW_MS + 5, 1, 1)
    wheel.add(NOW_MS, 2, 1)
    wheel.clear()
    assert (len(wheel), wheel.next_ms()) == (0, None)
    wheel.add(NOW_MS - 1, 3, 1)
    assert wheel.advance(NOW_MS, 5) == [(NOW_MS - 1, 3, 1)]


def test_the_least_due_of_an_outer_slot_is_looked_up_once_for_each_entry() -> None:
    """Asking again after one more entry looks at that entry alone: `scan` covers the whole slot each time."""
    wheel = Wheel(0)
    for row in range(100):
        wheel.add(5_000 - row, row, 1)
        assert wheel.next_ms() == 5_000 - row
    level = wheel._levels[1]
    assert level.scan == (level.first, 3 * len(wheel.advance(1, 1) or range(100)), 4_901)
    wheel.check()


def test_slices_are_at_least_one_entry() -> None:
    with pytest.raises(AssertionError):
        Wheel(0).advance(0, 0)


def test_one_wheel_takes_a_month_of_jumps_without_growing() -> None:
    wheel = Wheel(0)
    due_ms = 0
    for row in range(2_000):
        due_ms += 37 * 60_000 + 11
        wheel.add(due_ms, row, 1)
        wheel.add(due_ms + 3, row, 2)
        assert [generation for _, _, generation in wheel.advance(due_ms + 5, 5)] == [1, 2]
        wheel.check()
    assert len(wheel) == 0


def test_a_jump_over_days_with_both_levels_occupied_makes_no_long_bitmap() -> None:
    wheel = Wheel(NOW_MS)
    wheel.add(NOW_MS + 9, 1, 1)
    wheel.add(NOW_MS + 12 * DAY_MS, 2, 1)
    assert wheel.advance(NOW_MS + 12 * DAY_MS - 1, 5) == [(NOW_MS + 9, 1, 1)]
    wheel.check()
    assert max(level.occupied.bit_length() for level in wheel._levels) <= 3 * SLOTS
    assert wheel.advance(NOW_MS + 12 * DAY_MS, 5) == [(NOW_MS + 12 * DAY_MS, 2, 1)]


def test_compaction_that_never_lets_anything_fall_due_makes_no_long_bitmap() -> None:
    wheel = Wheel(0)
    newest = [0]
    for row in range(40):
        assert wheel.advance(row * 1_000, 1) == []
        wheel.add(row * 1_000 + 1_010, row, 1)
        newest[0] = row
        wheel.compact(lambda _due_ms, row, _generation: row == newest[0])
        wheel.check()


def test_a_past_due_entry_and_a_slot_of_the_same_time_after_a_jump_keep_their_order() -> None:
    wheel = Wheel(0)
    wheel.add(5_000, 1, 1)
    assert wheel.advance(4_096 + 10, 1) == []
    wheel.add(5_000, 2, 1)
    assert [row for _, row, _ in wheel.advance(6_000, 5)] == [1, 2]


def test_entries_of_a_second_come_out_sorted() -> None:
    wheel = Wheel(NOW_MS)
    for row in range(2_000):
        wheel.add(NOW_MS + 2_000 + row * 7919 % 1_024, row, 1)
    taken = drain(wheel, NOW_MS + 10_000, 100)
    assert all(before <= after for before, after in pairwise(taken))
    assert len(taken) == 2_000


def test_what_comes_down_into_a_slot_whose_least_due_is_known_is_seen() -> None:
    wheel = Wheel(0)
    slot_ms = SLOTS * SLOTS + 5 * SLOTS
    wheel.add(slot_ms + 500, 1, 1)
    wheel.advance(SLOTS * SLOTS - 10, 1)
    wheel.add(slot_ms + 700, 2, 1)
    assert wheel.next_ms() == slot_ms + 500, (
        "the slot of the outer level was asked, and the inner one"
    )
    assert wheel.advance(SLOTS * SLOTS, 1) == []
    wheel.check()
    assert wheel.next_ms() == slot_ms + 500
    assert [row for _, row, _ in wheel.advance(slot_ms + 999, 5)] == [1, 2]


def test_equal_due_times_keep_their_order_when_one_jump_passes_a_millisecond_and_its_outer_slot() -> (
    None
):
    wheel = Wheel(0)
    wheel.add(1_500, 1, 1)
    assert wheel.advance(600, 1) == []
    wheel.add(1_500, 2, 1)
    assert [row for _, row, _ in wheel.advance(2_000, 5)] == [1, 2]
    wheel.check()
