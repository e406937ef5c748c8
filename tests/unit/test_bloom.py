"""The filter: what it was told it never denies, and it denies most of the rest."""

from random import Random

from tickwheel.server.bloom import Bloom


def keys(count: int, seed: int = 1) -> list[int]:
    rng = Random(seed)
    return [rng.getrandbits(64) - (1 << 63) for _ in range(count)]


def learnt(known: list[int], expected: int) -> Bloom:
    bloom = Bloom()
    bloom.begin(expected)
    bloom.learn(known)
    bloom.end()
    return bloom


def test_it_denies_nothing_before_it_was_told_everything() -> None:
    bloom = Bloom()
    assert bloom.wanting
    assert bloom.may_hold([1]) == [True]
    bloom.begin(10)
    bloom.add([3])
    assert bloom.wanting
    assert bloom.may_hold([1]) == [True]
    bloom.end()
    assert not bloom.wanting
    assert bloom.may_hold([3]) == [True]
    assert bloom.may_hold([1]) == [False]


def test_what_is_added_is_there() -> None:
    bloom = learnt([], 0)
    for key in keys(1_000):
        assert not bloom.wanting
        bloom.add([key])
        assert bloom.may_hold([key]) == [True]


def test_a_key_that_comes_again_takes_no_room() -> None:
    bloom = learnt([], 0)
    for _ in range(100_000):
        bloom.add([7])
    assert not bloom.wanting
    assert bloom.may_hold([7]) == [True]


def test_few_others_are_taken_for_known() -> None:
    known = keys(100_000)
    bloom = learnt(known, len(known))
    assert all(bloom.may_hold(known))
    wrong = sum(bloom.may_hold(keys(20_000, seed=2)))
    assert wrong <= 20_000 // 200


def test_a_full_one_is_made_anew_while_jobs_come() -> None:
    bloom = learnt([], 0)
    known = keys(20_000)
    for key in known:
        bloom.add([key])
    assert bloom.wanting
    late = keys(500, seed=3)
    bloom.begin(len(known))
    for at, key in enumerate(late):
        bloom.learn(known[at * 40 : at * 40 + 40])
        bloom.add([key])
        assert bloom.may_hold([key]) == [True]
        assert bloom.may_hold(known[-1:]) == [True]
    bloom.end()
    assert not bloom.wanting
    assert all(bloom.may_hold([*known, *late]))
    assert sum(bloom.may_hold(keys(10_000, seed=4))) <= 50
