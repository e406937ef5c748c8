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
from collections.abc import Iterable
from typing import Final

WORD_BITS: Final = 64
BITS_PER_KEY: Final = 16
"""At least: there are 2**n words. Below this it asks to be made anew."""

WORDS_MIN: Final = 1 << 12


class _Words:
    """Words for about `expected` keys."""

    __slots__ = ("keys", "mask", "words")

    def __init__(self, expected: int) -> None:
        wanted = expected * BITS_PER_KEY // WORD_BITS
        size = max(1 << wanted.bit_length(), WORDS_MIN)
        self.words = array("Q", bytes(8 * size))
        self.mask = size - 1
        self.keys = 0

    def add(self, key: int) -> None:
        place, bits = key & self.mask, _bits_of(key)
        word = self.words[place]
        if word & bits != bits:  # a job that is changed comes again, and takes no room
            self.words[place] = word | bits
            self.keys += 1

    @property
    def crowded(self) -> bool:
        return self.keys * BITS_PER_KEY > len(self.words) * WORD_BITS


def _bits_of(key: int) -> int:
    """Four bits, which the word's number does not depend on."""
    return (
        1 << (key >> 40 & 63)
        | 1 << (key >> 46 & 63)
        | 1 << (key >> 52 & 63)
        | 1 << (key >> 58 & 63)
    )


class Bloom:
    """The filter of one shard. Keys are 64-bit integers, of either sign."""

    __slots__ = ("_learning", "_now")

    def __init__(self) -> None:
        self._now: _Words | None = None
        self._learning: _Words | None = None

    def may_hold(self, key: int) -> bool:
        """False only for a key that was never added, nor learnt."""
        now = self._now
        if now is None:
            return True
        bits = _bits_of(key)
        return now.words[key & now.mask] & bits == bits

    def add(self, key: int) -> None:
        """The key is there from now on. Adding it again does no harm."""
        if self._now is not None:
            self._now.add(key)
        if self._learning is not None:
            self._learning.add(key)

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
        for key in keys:
            self._learning.add(key)

    def end(self) -> None:
        """All of it was learnt."""
        assert self._learning is not None, "begin comes first"
        self._now, self._learning = self._learning, None
