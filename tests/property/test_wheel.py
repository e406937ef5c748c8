"""The timing wheel against a heap: any sequence of calls, the same answers."""

import heapq

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tickwheel.server.wheel import Entry, Wheel

DAY_MS = 86_400_000

distances = st.one_of(
    st.integers(-3, 10),
    st.integers(-2_000, 5_000),
    st.sampled_from([1_023, 1_024, 1_025, 2**20 - 1, 2**20, 2**20 + 1, 2**30 + 5]),
    st.integers(0, 20 * 60_000),
    st.integers(0, 400 * DAY_MS),
)
steps = st.one_of(st.integers(0, 5), st.integers(0, 3_000), st.integers(0, 90 * DAY_MS))
rows = st.integers(0, 50)
generations = st.integers(-5, 5)
limits = st.one_of(st.integers(1, 4), st.just(1_000))


class WheelMachine(RuleBasedStateMachine):
    """The oracle is a heap of (due, number of insertion, row, generation)."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.count = 0
        self.heap: list[tuple[int, int, int, int]] = []
        self.wheel = Wheel(0)

    @initialize(now_ms=st.sampled_from([0, 1_023, 2**20 - 1, 1_800_000_000_000]))
    def begin(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.wheel = Wheel(now_ms)

    def put(self, due_ms: int, row: int, generation: int) -> None:
        self.count += 1
        heapq.heappush(self.heap, (due_ms, self.count, row, generation))
        self.wheel.add(due_ms, row, generation)

    def expected(self, limit: int) -> list[Entry]:
        taken: list[Entry] = []
        while self.heap and self.heap[0][0] <= self.now_ms and len(taken) < limit:
            due_ms, _, row, generation = heapq.heappop(self.heap)
            taken.append((due_ms, row, generation))
        return taken

    @rule(ahead_ms=distances, row=rows, generation=generations)
    def add(self, ahead_ms: int, row: int, generation: int) -> None:
        self.put(self.now_ms + ahead_ms, row, generation)

    @rule(ahead_ms=distances, count=st.integers(2, 12))
    def add_a_burst(self, ahead_ms: int, count: int) -> None:
        for row in range(count):
            self.put(self.now_ms + ahead_ms, row, 1)

    @rule(data=st.data(), row=rows)
    def add_beside_another(self, data: st.DataObject, row: int) -> None:
        if self.heap:
            self.put(data.draw(st.sampled_from(self.heap))[0], row, 1)

    @rule(data=st.data(), before_ms=st.sampled_from([1, 2, 1_023, 1_024, 2**20]))
    def come_near_and_add_beside(self, data: st.DataObject, before_ms: int) -> None:
        """Time passes until shortly before something is due: an entry added now lies further in."""
        if self.heap:
            due_ms = data.draw(st.sampled_from(self.heap))[0]
            self.now_ms = max(due_ms - before_ms, self.now_ms)
            assert self.wheel.advance(self.now_ms, 1) == self.expected(1)
            self.put(due_ms, self.count, 1)

    @rule(step_ms=steps, limit=limits)
    def advance(self, step_ms: int, limit: int) -> None:
        self.now_ms += step_ms
        assert self.wheel.advance(self.now_ms, limit) == self.expected(limit)

    @rule(limit=limits)
    def advance_to_the_next(self, limit: int) -> None:
        if self.heap:
            self.now_ms = max(self.heap[0][0], self.now_ms)
            assert self.wheel.advance(self.now_ms, limit) == self.expected(limit)

    @rule(step_ms=steps, limit=limits, ahead_ms=distances)
    def re_insert_what_expires(self, step_ms: int, limit: int, ahead_ms: int) -> None:
        self.now_ms += step_ms
        taken = self.wheel.advance(self.now_ms, limit)
        assert taken == self.expected(limit)
        for due_ms, row, generation in taken:
            self.put(due_ms + ahead_ms, row, generation)

    @rule(back_ms=steps, limit=limits)
    def ask_with_a_clock_that_went_back(self, back_ms: int, limit: int) -> None:
        now_ms, self.now_ms = self.now_ms, self.now_ms - back_ms
        assert self.wheel.advance(self.now_ms, limit) == self.expected(limit)
        self.now_ms = now_ms

    @rule(change_ms=st.one_of(steps, steps.map(lambda ms: -ms)))
    def rebuild(self, change_ms: int) -> None:
        self.now_ms += change_ms
        self.wheel.rebuild(self.now_ms)

    @rule(modulus=st.integers(1, 4))
    def compact(self, modulus: int) -> None:
        kept = [entry for entry in self.heap if (entry[0] + entry[2]) % modulus]
        dropped = self.wheel.compact(lambda due_ms, row, _: (due_ms + row) % modulus != 0)
        assert dropped == len(self.heap) - len(kept)
        self.heap = kept
        heapq.heapify(self.heap)

    @rule(ahead_ms=distances)
    def look_ahead(self, ahead_ms: int) -> None:
        until_ms = self.now_ms + ahead_ms
        seen = list(self.wheel.upcoming(until_ms))
        wanted = [(due, row, gen) for due, _, row, gen in self.heap if due <= until_ms]
        assert [entry[0] for entry in seen] == sorted(entry[0] for entry in wanted)
        assert sorted(seen) == sorted(wanted)

    @rule()
    def clear(self) -> None:
        self.wheel.clear()
        self.heap = []

    @invariant()
    def agrees(self) -> None:
        self.wheel.check()
        assert len(self.wheel) == len(self.heap)
        assert self.wheel.next_ms() == (self.heap[0][0] if self.heap else None)


TestWheel = WheelMachine.TestCase
TestWheel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
