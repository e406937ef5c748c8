"""Floor 1. The timing wheel: what is due soon, by the millisecond (Varghese & Lauck, SOSP 1987, scheme 7).

An entry is three integers (due_ms, row, generation). It lies in a slot of a level; a slot is one flat array of such
triples, so no object stands for a timer. Levels and slots are made on first use: an empty wheel is a few hundred bytes.

    level   a slot covers        it reaches
    0       1 ms                 1.023 s
    1       1.024 s              17 min          the window of 15 minutes never needs more
    2       17 min 29 s          12.4 days
    ...     x 1024               the whole range of 64 bits

    add(due): the lowest level whose slot number for `due` is less than 1,024 ahead of its number for now

Worked example, now = 0:

    add(5)        level 0, slot 5
    add(3000)     3,000 ticks ahead: level 1, slot 2 = [2048, 3072)
    next_ms()     5
    advance(5)    [5]; nothing else moves
    next_ms()     3000, the least due in slot 2 of level 1, not that slot's beginning
    advance(2500) []; slot 2 has begun: it is taken whole, 3000 goes to level 0
    advance(3000) [3000]

What has fallen due and was not taken yet is *ready*: slots by due time, and a heap of those times. So a burst is
handed out in slices, in order, and an entry that comes late (past due already) finds its place among them.

Each level has a bitmap of its occupied slots in one Python integer (bit 0 = the slot `base`), so the next slot is found
without a scan and empty time costs nothing, be it a millisecond or a month.

Order: by due, then by insertion. Entries of one due time lie in levels that never rise in the order of their
insertion, for the distance to it only shrinks; so what comes down from an outer level goes before what lies below.

Invariants (`check` asserts them): a slot's number is greater than now's number in its level, and less than 1,024
ahead of it; an entry lies in the slot of its due time; what is ready is not after now; `len` is the number of triples.

Cancelling is not its business: a stale entry is recognised by its generation when it falls due, or in `compact`.

Must never import: any room but `model`; no I/O, no clock.
"""

import heapq
from array import array
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeAlias, cast

from tickwheel.server.model import Ms, Row

SLOT_BITS = 10
SLOTS = 1 << SLOT_BITS

NEVER = 1 << 64
"""A slot number after all others."""

FIELDS = 3
"""Integers of an entry in a slot."""

Entry = tuple[Ms, Row, int]
"""(due_ms, row, generation)."""

Alive = Callable[[Ms, Row, int], bool]
Slot: TypeAlias = "array[int]"


class Wheel:
    """The entries of one shard. `now_ms` only moves forward, but in `rebuild`."""

    __slots__ = ("_count", "_levels", "_now_ms", "_ready")

    def __init__(self, now_ms: Ms) -> None:
        self._now_ms = now_ms
        self._count = 0
        self._levels: list[_Level] = []
        self._ready = _Ready()

    def __len__(self) -> int:
        """How many entries it holds, stale ones among them."""
        return self._count

    def add(self, due_ms: Ms, row: Row, generation: int) -> None:
        """Take an entry, however late or far; each of the three must fit into 64 bits, signed."""
        now_ms = self._now_ms
        if due_ms <= now_ms:
            slot = self._ready.open(due_ms)
        else:
            for level in self._levels:
                number = due_ms >> level.shift
                if number - (now_ms >> level.shift) < SLOTS:
                    slot = level.slots.get(number) or level.open(number)
                    break
            else:
                level, number = self._grow(due_ms)
                slot = level.open(number)
        slot.fromlist([due_ms, row, generation])  # takes all three or, if one is out of range, none
        self._count += 1

    def advance(self, now_ms: Ms, limit: int) -> list[Entry]:
        """Take at most `limit` entries with due <= now, by due, then as they were added. The rest stays ready.

        `now_ms` may lie before the last one: then only what is due by it comes out, and the wheel does not turn.
        """
        assert limit > 0, "a slice holds at least one entry"
        if now_ms > self._now_ms:
            self._turn(now_ms)
        taken = self._ready.take(now_ms, limit)
        self._count -= len(taken)
        return taken

    def next_ms(self) -> Ms | None:
        """Return the least due time of all; in the past if something is ready, None if there is nothing at all."""
        if self._ready.heap:
            return self._ready.heap[0]
        least_ms: Ms | None = None
        for level in self._levels:
            if level.occupied and (least_ms is None or level.first << level.shift < least_ms):
                level_ms = level.least_ms()
                least_ms = level_ms if least_ms is None else min(level_ms, least_ms)
        return least_ms

    def upcoming(self, until_ms: Ms, after_ms: Ms = -NEVER) -> Iterator[Entry]:
        """Yield what is due behind `after_ms` and by `until_ms`, by due, and leave it. Nothing may change meanwhile."""
        return heapq.merge(
            self._ready.upcoming(until_ms, after_ms),
            *(level.upcoming(until_ms, after_ms) for level in self._levels),
        )

    def compact(self, alive: Alive) -> int:
        """Drop the entries that are not alive; return how many. Asks once for each entry."""
        kept = self._ready.keep(alive) + sum(level.keep(alive) for level in self._levels)
        dropped, self._count = self._count - kept, kept
        return dropped

    def rebuild(self, now_ms: Ms) -> None:
        """Start again at another time, also an earlier one: every entry finds its slot anew."""
        slots = self._ready.drain()
        for level in reversed(self._levels):
            slots += level.drain()
        count = self._count
        self.clear()
        self._now_ms, self._count = now_ms, count
        self._scatter(slots)

    def clear(self) -> None:
        """Drop everything; the time stays."""
        self._count = 0
        self._levels = []
        self._ready = _Ready()

    def check(self) -> None:
        """Assert by looking at every entry what must hold. Slow: for tests."""
        count = self._ready.check(self._now_ms)
        for depth, level in enumerate(self._levels):
            assert level.shift == depth * SLOT_BITS
            count += level.check(self._now_ms)
        assert count == self._count, "the count is the number of entries"

    def _grow(self, due_ms: Ms) -> tuple["_Level", int]:
        """Make the levels that are lacking, up to the one that reaches `due_ms`."""
        while True:
            shift = len(self._levels) * SLOT_BITS
            level = _Level(shift)
            self._levels.append(level)
            if (due_ms >> shift) - (self._now_ms >> shift) < SLOTS:
                return level, due_ms >> shift

    def _home(self, due_ms: Ms) -> tuple["_Level | _Ready", int]:
        now_ms = self._now_ms
        if due_ms <= now_ms:
            return self._ready, due_ms
        for level in self._levels:
            number = due_ms >> level.shift
            if number - (now_ms >> level.shift) < SLOTS:
                return level, number
        return self._grow(due_ms)

    def _turn(self, now_ms: Ms) -> None:
        """Open every slot that has begun: outer ones are spread, those of level 0 become ready."""
        self._now_ms = now_ms
        begun: list[Slot] = []
        for level in reversed(self._levels):
            if level.shift and level.first <= now_ms >> level.shift:
                begun += level.take_through(now_ms >> level.shift)
        due = self._levels[0].take_through(now_ms) if self._levels else []
        if begun:  # only now: no bitmap may span the time that was jumped over
            self._scatter(begun)
        for slot in due:
            self._ready.append(slot[0], slot)

    def _scatter(self, slots: list[Slot]) -> None:
        """Put the entries of outer slots in their places, before what lies there: they were added earlier."""
        fresh: dict[tuple[_Level | _Ready, int], Slot] = {}
        slot: Slot = array("q")
        last_ms: Ms | None = None
        for entry in chain.from_iterable(map(_entries, slots)):
            if entry[0] != last_ms:  # a burst: many in a row are due at once
                last_ms = entry[0]
                slot = fresh.setdefault(self._home(last_ms), array("q"))
            slot.fromlist(list(entry))
        for (place, number), slot in fresh.items():
            slot.extend(place.slots.get(number, ()))
            place.put(number, slot)


class _Level:
    """Slots of 2**shift ms each, by number (= time >> shift). Bit k of `occupied` is the slot base + k.

    `first` is the number of the earliest occupied slot, `NEVER` if there is none.

    `scan` remembers (number, integers looked at, least due) of the earliest slot, so that asking for the least due
    again looks only at what was added since.
    """

    __slots__ = ("base", "first", "occupied", "scan", "shift", "slots")

    def __init__(self, shift: int) -> None:
        self.shift = shift
        self.base = 0
        self.first = NEVER
        self.occupied = 0
        self.scan = (0, 0, 0)
        self.slots: dict[int, Slot] = {}

    def open(self, number: int) -> Slot:
        slot: Slot = array("q")
        self.put(number, slot)
        return slot

    def put(self, number: int, slot: Slot) -> None:
        """Set a slot, in place of the one that may be there."""
        if not self.occupied:
            self.base = number - SLOTS  # not after now, so not after any slot that is still to come
        self.slots[number] = slot
        self.occupied |= 1 << (number - self.base)
        self.first = min(number, self.first)
        if self.scan[0] == number:
            self.scan = (0, 0, 0)

    def find_first(self) -> None:
        """Look the first slot up in the bitmap, and let that begin nearer when it has grown long."""
        lowest = self.occupied & -self.occupied
        self.first = self.base + lowest.bit_length() - 1 if lowest else NEVER
        if lowest and self.first - self.base > 2 * SLOTS:
            self.occupied >>= self.first - SLOTS - self.base
            self.base = self.first - SLOTS

    def take_through(self, number: int) -> list[Slot]:
        """Take the slots up to this one, whole and in order."""
        taken: list[Slot] = []
        while self.first <= number:
            taken.append(self.slots.pop(self.first))
            self.occupied &= self.occupied - 1
            self.find_first()
        return taken

    def drain(self) -> list[Slot]:
        """Every slot, in order; the level is not used again."""
        return [self.slots[number] for number in sorted(self.slots)]

    def least_ms(self) -> Ms:
        """Return the least due of a level that is not empty."""
        number = self.first
        if self.shift == 0:
            return number
        slot = self.slots[number]
        known, length, least_ms = self.scan
        if known != number or length == 0:
            length, least_ms = 0, slot[0]
        if length < len(slot):
            added_ms = min(slot[length::FIELDS])
            least_ms = min(added_ms, least_ms)
            self.scan = (number, len(slot), least_ms)
        return least_ms

    def upcoming(self, until_ms: Ms, after_ms: Ms) -> Iterator[Entry]:
        first, last = after_ms >> self.shift, until_ms >> self.shift
        for number in sorted(n for n in self.slots if first <= n <= last):
            entries = _entries(self.slots[number])
            yield from sorted(entry for entry in entries if after_ms < entry[0] <= until_ms)

    def keep(self, alive: Alive) -> int:
        self.scan = (0, 0, 0)
        for number, slot in list(self.slots.items()):
            kept = _kept(slot, alive)
            if kept:
                self.slots[number] = kept
            else:
                del self.slots[number]
                self.occupied ^= 1 << (number - self.base)
        self.find_first()
        return _count(self.slots)

    def check(self, now_ms: Ms) -> int:
        now_number = now_ms >> self.shift
        numbers = {
            self.base + bit for bit in range(self.occupied.bit_length()) if self.occupied >> bit & 1
        }
        assert numbers == set(self.slots), "the bitmap names the slots"
        assert self.occupied.bit_length() <= 3 * SLOTS, "the bitmap stays short"
        for number, slot in self.slots.items():
            assert now_number < number < now_number + SLOTS, "a slot lies ahead, within reach"
            assert slot, "a slot that exists holds something"
            assert all(due_ms >> self.shift == number for due_ms, _, _ in _entries(slot))
        assert self.first == min(self.slots, default=NEVER), "the first slot is the first"
        if self.slots:
            slow = min(due_ms for slot in self.slots.values() for due_ms in slot[::FIELDS])
            assert self.least_ms() == slow, "the quick answer is the slow one"
        return _count(self.slots)


class _Ready:
    """What has fallen due: slots by due time, a heap of these times, and how much of a slot is taken already."""

    __slots__ = ("heap", "slots", "taken")

    def __init__(self) -> None:
        self.slots: dict[Ms, Slot] = {}
        self.heap: list[Ms] = []
        self.taken: dict[Ms, int] = {}

    def open(self, due_ms: Ms) -> Slot:
        slot = self.slots.get(due_ms)
        if slot is None:
            slot = array("q")
            self.put(due_ms, slot)
        return slot

    def put(self, due_ms: Ms, slot: Slot) -> None:
        assert due_ms not in self.slots, "a time falls due once"
        heapq.heappush(self.heap, due_ms)
        self.slots[due_ms] = slot

    def append(self, due_ms: Ms, slot: Slot) -> None:
        if due_ms in self.slots:
            self.slots[due_ms].extend(slot)
        else:
            self.put(due_ms, slot)

    def take(self, now_ms: Ms, limit: int) -> list[Entry]:
        taken: list[Entry] = []
        heap, slots = self.heap, self.slots
        while heap and heap[0] <= now_ms and len(taken) < limit:
            due_ms = heap[0]
            slot = slots[due_ms]
            start = self.taken.pop(due_ms, 0)
            end = start + FIELDS * (limit - len(taken))
            if len(slot) == FIELDS:
                taken.append(cast(Entry, tuple(slot)))
            else:
                taken += _entries(slot[start:end])
            if end < len(slot):
                self.taken[due_ms] = end
            else:
                heapq.heappop(heap)
                del slots[due_ms]
        return taken

    def drain(self) -> list[Slot]:
        """Every slot without what is taken, in order."""
        return [self.slots[due_ms][self.taken.get(due_ms, 0) :] for due_ms in sorted(self.slots)]

    def upcoming(self, until_ms: Ms, after_ms: Ms) -> Iterator[Entry]:
        for due_ms in sorted(due_ms for due_ms in self.slots if after_ms < due_ms <= until_ms):
            yield from sorted(_entries(self.slots[due_ms][self.taken.get(due_ms, 0) :]))

    def keep(self, alive: Alive) -> int:
        self.slots = {
            due_ms: kept
            for due_ms, slot in self.slots.items()
            if (kept := _kept(slot[self.taken.get(due_ms, 0) :], alive))
        }
        self.heap = sorted(self.slots)  # a sorted list is a heap
        self.taken = {}
        return _count(self.slots)

    def check(self, now_ms: Ms) -> int:
        assert sorted(self.heap) == sorted(self.slots), "the heap names the slots"
        for due_ms, slot in self.slots.items():
            assert due_ms <= now_ms, "what is ready is due"
            assert len(slot) > self.taken.get(due_ms, 0), "a slot that exists holds something"
            assert all(entry[0] == due_ms for entry in _entries(slot))
        assert self.taken.keys() <= self.slots.keys()
        return _count(self.slots) - sum(self.taken.values()) // FIELDS


def _entries(slot: Slot) -> Iterator[Entry]:
    return zip(slot[::FIELDS], slot[1::FIELDS], slot[2::FIELDS], strict=True)


def _kept(slot: Slot, alive: Alive) -> Slot:
    return array("q", [field for entry in _entries(slot) if alive(*entry) for field in entry])


def _count(slots: dict[int, Slot]) -> int:
    return sum(len(slot) for slot in slots.values()) // FIELDS
