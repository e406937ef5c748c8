"""What the runner keeps: the shelf of due entries whose target has no place."""

from tickwheel.server.slot import Shelf

A, B = ("http", "a", 80), ("http", "b", 80)


def test_the_shelf_gives_back_a_targets_entries_earliest_first() -> None:
    shelf = Shelf()
    for due_ms in (30, 10, 20):
        shelf.put(A, due_ms % 7, (due_ms, due_ms, 1))
    shelf.put(B, 1, (5, 5, 1))
    assert (len(shelf), A in shelf, ("http", "c", 80) in shelf) == (4, True, False)
    assert shelf.take(A, 2) == [(3, (10, 10, 1)), (6, (20, 20, 1))]
    assert shelf.take(A, 0) == []
    assert shelf.take(A, 9) == [(2, (30, 30, 1))]
    assert (len(shelf), A in shelf, shelf.take(A, 1)) == (1, False, [])
