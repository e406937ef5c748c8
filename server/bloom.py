"""Floor 1, pure. Which jobs of a shard are surely not there: most creates name a job that does not exist.

    key (64 bits of a hash) ──► one word of 64 bits, and four bits in it       one is 0:   surely not there
                                                                               all are 1:  perhaps, the store knows

A Bloom filter (Bloom, 1970) whose bits of a key are in one word (Putze, Sanders and Singler, 2007): one look in memory,
and one number in Python. It says "perhaps" to everything until it was told all that the store holds: `begin`, then
`learn` page by page while jobs come and go, then `end`. What is added meanwhile is in both, so nothing is missed.
Nothing can be taken out: a deleted job costs a look-up, as every job does without the filter.

A needless "perhaps" makes a whole group of commands wait for the store's thread, so they are to be rare: one in 500 or less
when it was made, one in 200 when it asks to be made anew.

Must never import: anything of this project; no I/O, no clock.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Final

WORD_BITS: Final = 64
BITS_PER_KEY: Final = 16
"""At least: there are 2**n words. Below this it asks to be made anew."""

WORDS_MIN: Final = 1 << 12

_TWO_BITS: Final = [1 << (pair & 63) | 1 << (pair >> 6) for pair in range(1 << 12)]
"""A key's bits are two of these, by its 24 highest bits: the word's number does not depend on them."""


class _Words:
    """Words for about `expected` keys."""

    __slots__ = ("keys", "mask", "words")

    def __init__(self, expected: int) -> None:
        wanted = expected * BITS_PER_KEY // WORD_BITS
        size = max(1 << wanted.bit_length(), WORDS_MIN)
        self.words = array("Q", bytes(8 * size))
        self.mask = size - 1
        self.keys = 0

    def add(self, keys: Iterable[int]) -> None:
        words, mask, two_bits = self.words, self.mask, _TWO_BITS
        for key in keys:
            bits = two_bits[key >> 40 & 4095] | two_bits[key >> 52 & 4095]
            word = words[key & mask]
            if word & bits != bits:  # a job that is changed comes again, and takes no room
                words[key & mask] = word | bits
                self.keys += 1

    @property
    def crowded(self) -> bool:
        return self.keys * BITS_PER_KEY > len(self.words) * WORD_BITS


class Bloom:
    """The filter of one shard. Keys are 64-bit integers, of either sign."""

    __slots__ = ("_learning", "_now")

    def __init__(self) -> None:
        self._now: _Words | None = None
        self._learning: _Words | None = None

    def may_hold(self, keys: Sequence[int]) -> list[bool]:
        """False only for a key that was never added, nor learnt."""
        now = self._now
        if now is None:
            return [True] * len(keys)
        words, mask, two_bits = now.words, now.mask, _TWO_BITS
        return [
            not ~words[key & mask] & (two_bits[key >> 40 & 4095] | two_bits[key >> 52 & 4095])
            for key in keys
        ]

    def add(self, keys: Sequence[int]) -> None:
        """The keys are there from now on. Adding one again does no harm."""
        for words in (self._now, self._learning):
            if words is not None:
                words.add(keys)

    # --- made, and made anew ---

    @property
    def wanting(self) -> bool:
        """True while it knows nothing yet, or so many keys that it should be made anew."""
        now = self._now
        return now is None or now.crowded

    def begin(self, expected: int) -> None:
        """Make a new filter, for a third more keys than are expected; what is added from here on is in it."""
        self._learning = _Words(expected * 4 // 3)

    def learn(self, keys: Iterable[int]) -> None:
        """Some of what the store holds."""
        assert self._learning is not None, "begin comes first"
        self._learning.add(keys)

    def end(self) -> None:
        """All of it was learnt."""
        assert self._learning is not None, "begin comes first"
        self._now, self._learning = self._learning, None
