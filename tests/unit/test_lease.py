from tickwheel.server.lease import FOREVER_MS, Clocks, Holds, Rights, Suspicions
from tickwheel.server.message import Beat, BeatAcked, Led

ABC = (("a", "b", "c"),)


def beat(
    sent_ms: int, *led: tuple[int, int], wall_ms: int = 0, unheard: tuple[str, ...] = ()
) -> Beat:
    return Beat(sent_ms, wall_ms, tuple(Led(*one) for one in led), unheard)


# --- holds ---


def test_a_voter_waits_after_its_own_start() -> None:
    holds = Holds(5_000)
    assert holds.wait_ms(3, 6, 5_000, released=False) == 1_000
    assert holds.wait_ms(3, 6, 5_400, released=False) == 600
    assert holds.wait_ms(3, 6, 6_000, released=False) == 0


def test_a_release_excuses_the_start_of_a_voter_that_promised_the_epoch_before() -> None:
    holds = Holds(5_000)
    holds.promised(3, 5)
    assert holds.wait_ms(3, 6, 5_000, released=True) == 0
    assert holds.wait_ms(3, 7, 5_000, released=True) == 1_000, "it may have acked epoch 6 since"
    assert holds.wait_ms(4, 1, 5_000, released=True) == 0, "nobody led before"


def test_an_ack_holds_off_higher_epochs() -> None:
    holds = Holds(0)
    assert holds.beat(beat(77, (3, 6), (4, 2)), 10_000) == BeatAcked(77, ())
    assert holds.wait_ms(3, 7, 10_300, released=False) == 700
    assert holds.wait_ms(3, 6, 10_300, released=False) == 0, "not against the leader itself"
    assert holds.wait_ms(3, 7, 11_000, released=False) == 0
    assert holds.wait_ms(5, 7, 10_300, released=False) == 0, "another shard"


def test_a_release_excuses_only_the_leader_that_said_it() -> None:
    holds = Holds(0)
    holds.beat(beat(1, (3, 5)), 10_000)
    assert holds.wait_ms(3, 6, 10_300, released=True) == 0
    assert holds.wait_ms(3, 7, 10_300, released=True) == 700, "6 released, 5 may still act"


def test_a_promise_refuses_lower_leaders() -> None:
    holds = Holds(0)
    holds.promised(3, 7)
    holds.promised(3, 6)
    assert holds.beat(beat(1, (3, 6), (4, 1)), 10_000) == BeatAcked(1, (3,))
    assert holds.beat(beat(2, (3, 7)), 10_000) == BeatAcked(2, ())


def test_a_leader_below_one_that_was_acked_is_refused() -> None:
    holds = Holds(0)
    holds.beat(beat(1, (3, 6)), 10_000)
    assert holds.beat(beat(1, (3, 5)), 10_100) == BeatAcked(1, (3,))


def test_a_hold_is_not_prolonged_once_a_fence_was_asked_for() -> None:
    holds = Holds(0)
    holds.beat(beat(1, (3, 5)), 10_000)
    assert holds.wait_ms(3, 6, 10_300, released=False) == 700
    assert holds.beat(beat(2, (3, 5)), 10_400) == BeatAcked(2, (3,))
    assert holds.wait_ms(3, 6, 11_000, released=False) == 0
    assert holds.beat(beat(3, (3, 6)), 11_100) == BeatAcked(3, ())


# --- rights ---


def rights(*shards: int) -> Rights:
    made = Rights("a", 100)
    made.beat(200, 0)
    for shard in shards:
        made.lead(shard, 6)
    return made


def test_a_quorum_covers_from_the_sending_on() -> None:
    right = rights(3)
    assert right.until_ms(3, ABC) == 0
    assert right.beat(1_000, 77, ["z", "y"]) == Beat(1_000, 77, (Led(3, 6),), ("y", "z"))
    assert right.until_ms(3, ABC) == 0
    right.acked("c", BeatAcked(1_000, ()))
    assert right.until_ms(3, ABC) == 1_999, "L less what clocks may drift"
    assert right.until_ms(3, (("a", "b", "c"),)) == 1_999, "another tuple of the same"
    right.acked("b", BeatAcked(1_000, ()))
    right.beat(1_250, 0)
    right.acked("b", BeatAcked(1_250, ()))
    assert right.until_ms(3, ABC) == 2_249


def test_late_acks_do_not_shorten() -> None:
    right = rights(3)
    right.beat(1_000, 0)
    right.beat(1_250, 0)
    right.acked("b", BeatAcked(1_250, ()))
    right.acked("b", BeatAcked(1_000, ()))
    assert right.until_ms(3, ABC) == 2_249


def test_of_five_the_second_best_other_counts() -> None:
    right = rights(3)
    for sent_ms, peer in ((1_000, "b"), (1_100, "c"), (1_200, "d")):
        right.beat(sent_ms, 0)
        right.acked(peer, BeatAcked(sent_ms, ()))
    assert right.until_ms(3, (tuple("abcde"),)) == 2_099


def test_both_configurations_count() -> None:
    right = rights(3)
    right.beat(1_000, 0)
    right.acked("b", BeatAcked(1_000, ()))
    assert right.until_ms(3, (("a", "b"), ("a", "d"))) == 0
    right.beat(1_100, 0)
    right.acked("d", BeatAcked(1_100, ()))
    assert right.until_ms(3, (("a", "b"), ("a", "d"))) == 1_999


def test_alone_it_needs_nobody() -> None:
    right = rights(3)
    assert right.until_ms(3, (("a",),)) == FOREVER_MS
    assert right.until_ms(3, ()) == 0
    assert right.until_ms(4, (("a",),)) == 0, "it does not lead that"


def test_the_ack_of_a_beat_from_before_the_leadership_says_nothing() -> None:
    right = rights()
    right.beat(1_000, 0)
    right.lead(3, 6)
    right.acked("b", BeatAcked(1_000, (3,)))
    assert right.until_ms(3, ABC) == 0
    right.beat(1_250, 0)
    right.acked("b", BeatAcked(1_250, ()))
    assert right.until_ms(3, ABC) == 2_249, "and neither does its refusal"


def test_who_refuses_covers_no_more() -> None:
    right = rights(3, 4)
    right.beat(1_000, 0)
    right.acked("b", BeatAcked(1_000, ()))
    right.beat(1_250, 0)
    right.acked("b", BeatAcked(1_250, (3, 9)))
    assert right.until_ms(3, ABC) == 0
    assert right.until_ms(4, ABC) == 2_249
    right.acked("c", BeatAcked(1_250, ()))
    assert right.until_ms(3, ABC) == 2_249
    right.lead(3, 8)
    assert right.until_ms(3, ABC) == 0
    right.beat(1_500, 0)
    right.acked("b", BeatAcked(1_500, ()))
    assert right.until_ms(3, ABC) == 2_499


def test_acks_of_another_life_are_ignored() -> None:
    right = rights(3)
    right.beat(1_000, 0)
    right.acked("b", BeatAcked(90, ()))
    right.acked("b", BeatAcked(1_001, ()))
    assert right.until_ms(3, ABC) == 0


def test_a_leadership_that_is_over_covers_nothing() -> None:
    right = rights(3)
    right.beat(1_000, 0)
    right.acked("b", BeatAcked(1_000, ()))
    right.leave(3)
    assert right.until_ms(3, ABC) == 0
    assert right.beat(1_250, 0).led == ()


# --- suspicions ---


def lives(names: str, session: int = 1) -> list[tuple[str, int]]:
    return [(name, session) for name in names]


def suspicions() -> Suspicions:
    made = Suspicions("a", fresh_ms=0)
    made.registered(lives("abc"), 0)
    return made


def test_a_majority_that_does_not_hear_a_node_says_so_once() -> None:
    made = suspicions()
    made.heard("b", beat(0, unheard=("c",)), 1_000)
    assert made.unheard(1_199) == ()
    assert made.due(1_199) == []
    assert made.unheard(1_200) == ("c",)
    assert made.due(1_200) == ["c"]
    assert made.due(1_300) == []
    made.heard("c", beat(0), 1_400)
    made.heard("b", beat(0, unheard=("c",)), 2_500)
    assert made.due(2_600) == ["c"], "it was heard in between"


def test_one_that_is_cut_off_suspects_nobody() -> None:
    made = suspicions()
    assert made.unheard(5_000) == ("b", "c")
    assert made.due(5_000) == []


def test_who_is_heard_is_not_suspected_whatever_others_say() -> None:
    made = suspicions()
    made.heard("c", beat(0), 4_900)
    made.heard("b", beat(0, unheard=("c",)), 4_900)
    assert made.due(5_000) == []


def test_what_a_silent_node_said_last_does_not_count() -> None:
    made = Suspicions("a", fresh_ms=0)
    made.registered(lives("abcd"), 0)
    made.heard("b", beat(0, unheard=("c",)), 500)
    made.heard("d", beat(0, unheard=("c",)), 4_900)
    assert made.due(5_000) == [], "two of four"
    made.heard("b", beat(0, unheard=("c",)), 5_000)
    assert made.due(5_100) == ["c"]


def test_strangers_and_those_that_left_are_forgotten() -> None:
    made = suspicions()
    made.heard("z", beat(0, unheard=("c",)), 1_000)
    made.heard("b", beat(0, unheard=("c",)), 1_000)
    assert made.due(1_300) == ["c"]
    made.registered(lives("ab"), 1_400)
    assert made.unheard(1_500) == ()
    made.registered(lives("abc"), 2_000)
    made.heard("b", beat(0, unheard=("c",)), 3_000)
    assert made.due(3_100) == [], "it is new, and has time"
    assert made.due(3_200) == ["c"]


def test_who_has_just_registered_is_not_suspected() -> None:
    """It opens stores, connects, and is silent for longer than others may be; its lease is short enough."""
    made = Suspicions("a")
    made.registered(lives("abc"), 0)
    for now_ms in (1_300, 4_999):
        made.heard("b", beat(0, unheard=("c",)), now_ms)
        assert (made.unheard(now_ms), made.due(now_ms)) == ((), [])
    made.heard("b", beat(0, unheard=("c",)), 5_000)
    assert (made.unheard(5_000), made.due(5_000)) == (("c",), ["c"])


def test_who_was_heard_once_has_started() -> None:
    """Or a leader that dies soon after a restart of one of the others would be suspected by nobody."""
    made = Suspicions("a")
    made.registered(lives("abc"), 0)
    made.heard("b", beat(0, unheard=("c",)), 1_200)
    assert made.due(1_200) == []
    made.heard("c", beat(0), 1_200)
    made.heard("b", beat(0, unheard=("c",)), 2_400)
    assert (made.unheard(2_400), made.due(2_400)) == (("c",), ["c"])


def test_nor_is_a_new_life_of_one_that_was_silent() -> None:
    """A restart may be seen at once: the node was never missing."""
    made = Suspicions("a")
    made.registered(lives("abc"), 0)
    made.heard("b", beat(0, unheard=("c",)), 6_000)
    assert made.due(6_000) == ["c"]
    made.registered([*lives("ab"), ("c", 2)], 6_100)
    made.heard("b", beat(0, unheard=("c",)), 7_500)
    assert (made.unheard(7_500), made.due(7_500)) == ((), [])
    made.heard("b", beat(0, unheard=("c",)), 11_100)
    assert made.due(11_100) == ["c"], "it may be said once more"


def test_what_a_former_life_said_does_not_count() -> None:
    made = Suspicions("a")
    made.registered(lives("abc"), 0)
    made.heard("b", beat(0, unheard=("c",)), 5_900)
    made.registered([*lives("ac"), ("b", 2)], 6_000)
    assert made.unheard(6_000) == ("c",)
    assert made.due(6_000) == []


# --- clocks ---


def test_the_median_of_a_nodes_beats() -> None:
    clocks = Clocks()
    assert clocks.offset_ms("b") == 0
    for offset_ms in (10, 900, 20, 30, -500):
        clocks.heard("b", beat(0, wall_ms=5_000 + offset_ms), 5_000, 0)
    assert clocks.offset_ms("b") == 20
    for _ in range(3):
        clocks.heard("b", beat(0, wall_ms=9_000), 5_000, 0)
    assert clocks.offset_ms("b") == 4_000


def test_a_clock_that_the_majority_contradicts_is_wrong() -> None:
    clocks = Clocks()
    clocks.heard("b", beat(0, wall_ms=7_000), 5_000, 100)
    assert not clocks.wrong(100), "of two nobody knows which"
    clocks.heard("c", beat(0, wall_ms=7_100), 5_000, 100)
    assert clocks.off_ms(100) == 2_000
    assert clocks.wrong(100)
    assert not clocks.wrong(5_000), "they are not heard any more"


def test_a_clock_in_the_middle_is_right() -> None:
    clocks = Clocks()
    clocks.heard("b", beat(0, wall_ms=2_000), 5_000, 0)
    clocks.heard("c", beat(0, wall_ms=8_000), 5_000, 0)
    assert clocks.off_ms(0) == 0


def clocks_of(offsets: dict[str, int], now_ms: int = 0, clocks: Clocks | None = None) -> Clocks:
    """What the beats of some nodes say, each by its wall clock."""
    clocks = clocks or Clocks()
    for _ in range(5):
        for node, offset_ms in offsets.items():
            clocks.heard(node, beat(0, wall_ms=50_000 + offset_ms), 50_000, now_ms)
    return clocks


def test_what_the_way_of_a_beat_explains_is_no_offset() -> None:
    """A busy machine reads beats late: they look as if the others were behind."""
    clocks = clocks_of({"b": -1_800, "c": -1_700, "d": 1_800})
    for sent_ms in (1_000, 1_100, 1_200, 900, 1_300):
        for node in "bcd":
            clocks.acked(node, BeatAcked(sent_ms, ()), 3_000)
    assert [clocks.offset_ms(node) for node in "bcd"] == [0, 0, 0]
    for _ in range(5):
        clocks.acked("b", BeatAcked(2_900, ()), 3_000)
        clocks.acked("d", BeatAcked(2_900, ()), 3_000)
        clocks.acked("d", BeatAcked(9_000, ()), 3_000)
    assert [clocks.offset_ms(node) for node in "bcd"] == [-1_700, 0, 1_700]


def test_a_limit_is_kept_and_left_again_at_half_of_it() -> None:
    clocks = clocks_of({"b": 1_000, "c": 1_000})
    assert not clocks.wrong(0)
    for offset_ms, wrong in (
        (1_001, True),
        (501, True),
        (500, False),
        (1_000, False),
        (-1_001, True),
    ):
        clocks_of({"b": offset_ms, "c": offset_ms}, 0, clocks)
        assert clocks.wrong(0) is wrong, offset_ms


def test_who_was_contradicted_is_not_right_because_others_died() -> None:
    clocks = clocks_of({"b": 5_000, "c": 5_000})
    assert clocks.wrong(0)
    clocks_of({"b": 5_000}, 3_000, clocks)
    assert clocks.wrong(3_000), "the one that is left does not agree"
    clocks_of({"b": 100}, 3_100, clocks)
    assert not clocks.wrong(3_100)
    clocks_of({"b": 5_000}, 3_200, clocks)
    assert not clocks.wrong(3_200), "of two nobody knows which"


def test_alone_nobody_contradicts() -> None:
    clocks = clocks_of({"b": 5_000, "c": 5_000})
    assert clocks.wrong(0)
    assert not clocks.wrong(10_000)
