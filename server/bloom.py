"""Floor 1, pure. Which jobs of a shard are surely not there: most creates name a job that does not exist.

    key (64 bits of a hash) ──► two bits of a bitmap      one of them is 0: surely not there, nobody is asked
                                                          both are 1:      perhaps, the store knows

A Bloom filter (Bloom, 1970) of two hashes, which are the halves of the key. It says "perhaps" to everything until it was
told all that the store holds: `begin`, then `learn` page by page while jobs come and go, then `end`. What is added
meanwhile is in both, so nothing is missed. Nothing can be taken out: a deleted job costs a look-up, as every job does
without the filter. At 16 bits a key some 1.4 % of the answers are a needless "perhaps", at 8 bits, where it asks to
be made anew, 5 %.

Must never import: anything of this project; no I/O, no clock.
"""

from collections.abc import Iterable
from typing import Final

BITS_PER_KEY: Final = 16
BITS_PER_KEY_MIN: Final = 8
BITS_MIN: Final = 1 << 14
_HALF: Final = 32


class _Bits:
    """A bitmap for about `expected` keys."""

    __slots__ = ("bits", "keys", "mask")

    def __init__(self, expected: int) -> None:
        size = max(1 << (expected * BITS_PER_KEY - 1).bit_length(), BITS_MIN)
        self.bits = bytearray(size // 8)
        self.mask = size - 1
        self.keys = 0

    def add(self, key: int) -> None:
        bits, mask = self.bits, self.mask
        first, second = key & mask, key >> _HALF & mask
        bits[first >> 3] |= 1 << (first & 7)
        bits[second >> 3] |= 1 << (second & 7)
        self.keys += 1


class Bloom:
    """The filter of one shard. Keys are 64-bit integers, of either sign."""

    __slots__ = ("_learning", "_now")

    def __init__(self) -> None:
        self._now: _Bits | None = None
        self._learning: _Bits | None = None

    def may_hold(self, key: int) -> bool:
        """False only for a key that was never added, nor learnt."""
        now = self._now
        if now is None:
            return True
        bits, first, second = now.bits, key & now.mask, key >> _HALF & now.mask
        return bool(bits[first >> 3] >> (first & 7) & bits[second >> 3] >> (second & 7) & 1)

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
        return now is None or now.keys * BITS_PER_KEY_MIN > now.mask

    def begin(self, expected: int) -> None:
        """Make a new filter, for a third more keys than are expected; what is added from here on is in it."""
        self._learning = _Bits(expected * 4 // 3)

    def learn(self, keys: Iterable[int]) -> None:
        """Some of what the store holds."""
        assert self._learning is not None, "begin comes first"
        for key in keys:
            self._learning.add(key)

    def end(self) -> None:
        """All of it was learnt."""
        assert self._learning is not None, "begin comes first"
        self._now, self._learning = self._learning, None
