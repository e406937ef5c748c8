"""A disk in memory that forgets what was not synced, and fails when told to.

What it may do at `crash()`, and no more: each 512-byte sector that was written since its file's last sync is as before or
as written, at random; or, the other way a write ends early, everything up to one byte is as written and the rest as
before. Each unlink since the last `sync_directory` is kept or undone, on its own. Names made by `create_filled` stay.
"""

import errno
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

SECTOR_BYTES = 512


class PowerCut(Exception):
    """The power failed in the middle of a call. Then `crash()` says what is left."""


@dataclass
class _File:
    """`cached` is what reads see, `durable` what a crash leaves for sure; `dirty` the writes between the two."""

    cached: bytearray
    durable: bytes
    dirty: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


class SimHandle:
    """An open file of a SimDisk."""

    def __init__(self, disk: "SimDisk", name: str) -> None:
        self._disk = disk
        self._file = disk.files[name]

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write into the cache; an injected error leaves a part of it there."""
        self._disk.writes += 1
        file = self._file
        assert offset + len(data) <= len(file.cached), "the journal never lets a file grow"
        if self._disk.writes == self._disk.fail_write_at:
            done = self._disk.rng.randrange(len(data) + 1)
            self._put(data[:done], offset)
            raise OSError(errno.EIO, "injected: write")
        self._put(data, offset)
        self._disk.step()

    def _put(self, data: bytes, offset: int) -> None:
        self._file.cached[offset : offset + len(data)] = data
        self._file.dirty.append((offset, offset + len(data)))

    def fdatasync(self) -> None:
        """Make the cache durable. An injected error loses it, yet reads still see it, and it counts as clean."""
        self._disk.syncs += 1
        self._disk.step()
        if self._disk.syncs == self._disk.fail_sync_at:
            self._file.dirty.clear()
            raise OSError(errno.EIO, "injected: fdatasync")
        self._disk.sync_file(self._file)

    def close(self) -> None:
        """Nothing becomes durable by it."""


class SimDisk:
    """Implements `files.Files`."""

    def __init__(self, rng: Random, capacity: int = 1 << 40) -> None:
        self.rng = rng
        self.capacity = capacity
        self.files: dict[str, _File] = {}
        self.unlinked: dict[str, _File] = {}
        self.writes = 0
        self.syncs = 0
        self.fail_write_at = 0
        self.fail_sync_at = 0
        self.steps = 0
        self.cut_at = 0
        self.left: int | None = None

    # --- the port ---

    def list(self) -> list[str]:
        """Names, sorted."""
        return sorted(self.files)

    def create_filled(self, name: str, size: int) -> None:
        """Make a file of zeros, or none if the disk is full."""
        assert name not in self.files, f"{name} is there already"
        if self.free_bytes() < size:
            raise OSError(errno.ENOSPC, "no space left")
        self.unlinked.pop(name, None)
        self.files[name] = _File(bytearray(size), bytes(size))
        self.step()

    def read(self, name: str) -> bytes:
        """What the cache holds."""
        return bytes(self.files[name].cached)

    def open(self, name: str) -> SimHandle:
        """Open an existing file."""
        return SimHandle(self, name)

    def unlink(self, name: str) -> None:
        """Remove a name; a crash may bring it back."""
        self.unlinked[name] = self.files.pop(name)
        self.step()

    def sync_directory(self) -> None:
        """Make unlinks durable."""
        self.step()
        self.unlinked.clear()

    def free_bytes(self) -> int:
        """Capacity less what lies there; no more than `left`, if another program eats what becomes free."""
        free = self.capacity - sum(len(file.cached) for file in self.files.values())
        return free if self.left is None else min(free, self.left)

    # --- what may go wrong ---

    def step(self) -> None:
        """One more change of the disk; the power fails at the `cut_at`th, after writes and before syncs."""
        self.steps += 1
        if self.steps == self.cut_at:
            raise PowerCut

    def sync_file(self, file: _File) -> None:
        """Make one file's writes durable."""
        durable = bytearray(file.durable)
        for start, end in file.dirty:
            durable[start:end] = file.cached[start:end]
        file.durable = bytes(durable)
        file.dirty.clear()

    def crash(self) -> None:
        """The power comes back after it failed: what was not synced is there or not, as chance has it."""
        self.kill()
        for name in sorted(self.unlinked):
            if self.rng.random() < 0.5:
                self.files[name] = self.unlinked[name]
        self.unlinked.clear()
        for name in sorted(self.files):
            self._tear(self.files[name])

    def kill(self) -> None:
        """The process died, the machine did not: the page cache stays, and nothing in it is any more durable."""
        self.fail_write_at = self.fail_sync_at = self.cut_at = 0

    def _tear(self, file: _File) -> None:
        after = bytearray(file.durable)
        survives = self.rng.choice(("none", "all", "prefix", "sectors"))
        for start, end in file.dirty:
            last = self.rng.randint(start, end) if survives == "prefix" else end
            for low, high in sectors(start, last):
                keeps = survives != "none" if survives != "sectors" else self.rng.random() < 0.5
                if keeps:
                    after[low:high] = file.cached[low:high]
        file.durable = bytes(after)
        file.cached = after
        file.dirty.clear()

    def flip(self, name: str, bit: int) -> None:
        """Turn one bit over, for good."""
        file = self.files[name]
        file.cached[bit // 8] ^= 1 << bit % 8
        file.durable = bytes(file.cached)

    def clone(self) -> "SimDisk":
        """A disk of the same content, with nothing pending."""
        twin = SimDisk(Random(0), self.capacity)
        for name, file in self.files.items():
            twin.files[name] = _File(bytearray(file.cached), bytes(file.cached))
        return twin


def sectors(start: int, end: int) -> list[tuple[int, int]]:
    """Cut [start, end) at the borders of sectors."""
    cuts = [start, *range(start - start % SECTOR_BYTES + SECTOR_BYTES, end, SECTOR_BYTES), end]
    return list(pairwise(cuts))
